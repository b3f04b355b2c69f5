# SPDX-License-Identifier: Apache-2.0
"""Second pass of a burst: write the frames of one receive queue into its guest, publish once, call at most once.

        frame:   [first part, private] [tag, if it is kept] [rest of it] [pieces …]
        guest:   [12-byte header][…]   one chain, or several with VIRTIO_NET_F_MRG_RXBUF

A frame is placed whole or not at all: its buffers are gathered and checked first, then written, then given back.
What does not fit is a named drop at the receiver, except for a source that waits (`hold`): then the delivery stays
undone, and so does everything behind it for the same queue, which keeps the order.

A receive buffer that cannot be used is returned with length 0; one that is merely too short stays where it is. Work is
bounded by CLAIMS buffers a frame and STEPS descriptors a round.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import ETH_TYPE_OFFSET, TPID_8021Q_LE, VLAN_HLEN
from vmq.abi.virtio import VRING_DESC_F_WRITE, net_hdr
from vmq.clock import now
from vmq.dataplane.direct import is_led
from vmq.dataplane.divert import divert
from vmq.dataplane.memory import pour
from vmq.dataplane.moderate import indicate
from vmq.dataplane.observe import observe
from vmq.dataplane.ports import fault
from vmq.dataplane.reasons import (
    FAULT_BASE,
    TO_GUEST_BAD_BUFFER,
    TO_GUEST_NO_BUFFER,
    TO_GUEST_NOT_RUNNING,
    TO_GUEST_TOO_LONG,
)
from vmq.dataplane.split import (
    available,
    expect_descriptors,
    expect_entries,
    give_back,
    head_at,
    publish,
    read_ahead,
    walk,
)
from vmq.dataplane.state import (
    CLAIMS,
    DELIVERIES,
    DONE,
    DONE_DROPPED,
    FRAMES,
    LINE,
    M16,
    MAX_QUEUES,
    NONE,
    PIECES,
    RING_MERGEABLE,
    RING_OBSERVED,
    STEPS,
    chain,
    claim,
    delivery,
    engine,
    frame,
    piece,
    port_state,
    queue,
    queue_state,
    ring_state,
    todo,
    virtqueue,
    vport,
)
from vmq.jit import at, copy, copy_short, int64, kernel, poke, prefetch

HEADER = net_hdr.itemsize
DELIVERED = 0
ONE_BUFFER = np.uint32(1 << 16)  # csum_offset 0, num_buffers 1
EXPECT_STEPS = 2
# So many chains are read ahead at least: what is too early for this burst is in time for the next (docs/nanoseconds.md).
AHEAD = 12
# Frames of so many bytes are copied by many stores: all lines of the buffer after the next are fetched, too.
LONG, LONGEST, LONG_AHEAD = 1024, 2048, 2


@kernel
def gather(t: Any, w: Any, port: Any, vq: Any, ring: Any, need: int) -> int:
    """Claim the chains for `need` bytes into w["targets"]; pieces, or -1 - drop, or -1 - FAULT_BASE - fault."""
    claims = at(w["claims"], CLAIMS, claim)
    pieces = at(w["targets"], PIECES, piece)
    ready = available(vq, ring)
    if ready < 0:
        return ready
    count = heads = room = int64(0)
    w["claim_count"] = 0
    while room < need:
        if heads == ready:
            return -1 - (TO_GUEST_TOO_LONG if ready == vq["size"] else TO_GUEST_NO_BUFFER)
        if heads == CLAIMS:
            return -1 - TO_GUEST_TOO_LONG
        head = head_at(vq, ring, heads)
        count = walk(t, w, port, vq, ring, head, 1, pieces, count)
        if -1 - FAULT_BASE < count < 0:
            count = -1 - TO_GUEST_BAD_BUFFER
        if count < 0:
            claims[heads]["head"] = head
            w["claim_count"] = heads + 1
            return count
        claims[heads]["head"] = head
        claims[heads]["length"] = w["total"]
        room += w["total"]
        heads += 1
        # virtio-1.2 §5.1.6.4 Processing of Incoming Packets: the whole header lies in the first buffer
        if room < need and (not vq["features"] & RING_MERGEABLE or room < HEADER):
            return -1 - TO_GUEST_TOO_LONG
    w["claim_count"] = heads
    return count


@kernel
def write_frame(w: Any, row: Any, tag: int, source: Any) -> None:
    """Header, frame and (with `tag`) its 802.1Q tag into the claimed buffers."""
    targets = at(w["targets"], PIECES, piece)
    header = int64(w["header"])
    poke(header, np.uint64, np.uint64(0))
    poke(header + 8, np.uint32, np.uint32(int64(w["claim_count"]) << 16))  # csum_offset 0, num_buffers
    first = int64(row["address"])
    head = int64(row["head"])
    if row["piece_count"] == 0 and not tag and targets[0]["length"] >= HEADER + head:
        base = int64(targets[0]["address"])
        copy(base, header, HEADER)
        copy(base + HEADER, first, head)
        return
    place, used = pour(targets, 0, 0, header, HEADER)
    if tag:
        place, used = pour(targets, place, used, first, ETH_TYPE_OFFSET)
        poke(header, np.uint16, np.uint16(TPID_8021Q_LE))
        tci = int64(row["tci"])
        poke(header + 2, np.uint16, np.uint16(((tci & 255) << 8) | (tci >> 8)))
        place, used = pour(targets, place, used, header, VLAN_HLEN)
        first, head = first + ETH_TYPE_OFFSET, head - ETH_TYPE_OFFSET
    place, used = pour(targets, place, used, first, head)
    for index in range(row["piece_first"], row["piece_first"] + row["piece_count"]):
        place, used = pour(targets, place, used, source[index]["address"], source[index]["length"])


@kernel
def return_claims(w: Any, vq: Any, ring: Any, need: int) -> None:
    """Give the claimed chains back: all but the last filled completely; with `need` 0 all of them unused."""
    claims = at(w["claims"], CLAIMS, claim)
    for index in range(w["claim_count"]):
        length = min(need, int64(claims[index]["length"])) if need > 0 else int64(0)
        give_back(vq, ring, claims[index]["head"], length)
        need -= length


@kernel
def place(t: Any, w: Any, port: Any, vq: Any, ring: Any, row: Any) -> int:
    """Put one frame into the guest: DELIVERED, or -1 - drop, or -1 - FAULT_BASE - fault."""
    tag = 1 if row["tagged"] and port["vlan"] == 0 else 0
    length = int64(row["length"])
    if length > port["frame_max"]:
        return -1 - TO_GUEST_TOO_LONG
    need = HEADER + length + VLAN_HLEN * tag
    outcome = gather(t, w, port, vq, ring, need)
    if outcome >= 0:
        write_frame(w, row, tag, at(w["pieces"], PIECES, piece))
        return_claims(w, vq, ring, need)
        return DELIVERED
    if outcome == -1 - TO_GUEST_BAD_BUFFER:
        return_claims(w, vq, ring, 0)
    return outcome


@kernel
def place_at_once(w: Any, port: Any, vq: Any, ring: Any, row: Any, ahead: Any) -> bool:
    """The common case: a frame in two parts at most, no tag to write, and one buffer with room for it. Else nothing happens.

    What `place` would do, without its lists, from the chain as it was read `ahead`: one that is not this simple is for `place`
    to read, check and judge.
    """
    length, host = int64(row["length"]), int64(ahead["address"])
    need = HEADER + length
    if host == 0 or ahead["length"] < need or row["piece_count"] > 1 or length > port["frame_max"]:
        return False
    if row["tagged"] and port["vlan"] == 0:
        return False
    poke(host, np.uint64, np.uint64(0))
    poke(host + 8, np.uint32, ONE_BUFFER)
    first = int64(row["head"])
    copy_short(host + HEADER, int64(row["address"]), first)
    if row["piece_count"]:
        rest = at(w["pieces"], PIECES, piece)[row["piece_first"]]
        copy_short(host + HEADER + first, int64(rest["address"]), int64(rest["length"]))
    give_back(vq, ring, ahead["head"], need)
    return True


@kernel
def expect_room(ahead: Any, length: int) -> None:
    """Bring all lines of a receive buffer nearer that a frame of such a length will take; `read_ahead` did the first two."""
    for offset in range(2 * LINE, length, LINE):
        prefetch(int64(ahead["address"]) + offset, 1)


@kernel
def expect(t: Any, w: Any, number: int, step: int) -> None:
    """Bring what `deliver` will touch nearer: what the guest wrote last lies in its processor's cache."""
    shared = at(w["engine"], 1, engine)[0]
    vq = at(t["virtqueues"], 2 * t["queue_count"], virtqueue)[2 * number]
    if not vq["running"]:
        return
    ring = at(shared["ring_state"], 2 * MAX_QUEUES, ring_state)[2 * number]
    count = int64(at(w["todo"], MAX_QUEUES, todo)[number]["count"])
    if step == 0:
        expect_entries(vq, ring)
    else:
        expect_descriptors(vq, ring, count)


@kernel
def deliver(t: Any, w: Any, number: int, hold: int) -> None:
    """Everything noted for receive queue `number`, in order."""
    shared = at(w["engine"], 1, engine)[0]
    row = at(t["queues"], t["queue_count"], queue)[number]
    port = at(t["vports"], t["vport_count"], vport)[row["vport"]]
    vq = at(t["virtqueues"], 2 * t["queue_count"], virtqueue)[2 * number]
    ring = at(shared["ring_state"], 2 * MAX_QUEUES, ring_state)[2 * number]
    books = at(shared["queue_state"], MAX_QUEUES, queue_state)[number]
    health = at(shared["port_state"], t["vport_count"], port_state)[row["vport"]]
    deliveries = at(w["deliveries"], DELIVERIES, delivery)
    frames = at(w["frames"], FRAMES, frame)
    noted = at(w["todo"], MAX_QUEUES, todo)[number]
    index = int64(noted["first"])
    running = vq["running"] and vq["enabled"]
    if running and health["fault"] == 0 and is_led(row, vq, ring):
        divert(w, row, int64(port["vlan"]), noted, books)
        return
    w["steps_left"] = STEPS
    batch = offered = volume = int64(0)
    ahead = at(w["posted"], FRAMES, chain)
    began, posted = int64(ring["next_avail"]), int64(0)
    if running:
        posted = min(max(available(vq, ring), 0), max(int64(noted["count"]), AHEAD), FRAMES)
        read_ahead(t, port, vq, ring, VRING_DESC_F_WRITE, ahead, posted)
    while index != NONE:
        one = frames[deliveries[index]["frame"]]
        outcome = int64(-1 - TO_GUEST_NOT_RUNNING)
        if running and health["fault"] == 0:
            taken = (int64(ring["next_avail"]) - began) & M16
            if taken + LONG_AHEAD < posted and LONG < one["length"] <= LONGEST:
                expect_room(ahead[taken + LONG_AHEAD], int64(one["length"]))
            if taken < posted and place_at_once(w, port, vq, ring, one, ahead[taken]):
                outcome = int64(DELIVERED)
            else:
                outcome = place(t, w, port, vq, ring, one)
        if outcome <= -1 - FAULT_BASE:
            fault(w, int64(row["vport"]), vq, -1 - FAULT_BASE - outcome)
            outcome = int64(-1 - TO_GUEST_NOT_RUNNING)
        if hold and outcome == -1 - TO_GUEST_NO_BUFFER:
            break
        offered += 1
        if outcome == DELIVERED:
            batch += 1
            volume += one["length"]
            deliveries[index]["done"] = DONE
        else:
            books["to_guest_drops"][-1 - outcome] += 1
            deliveries[index]["done"] = DONE_DROPPED
        index = int64(deliveries[index]["next"])
    books["offered_to_guest"] += offered
    books["frames_to_guest"] += batch
    books["bytes_to_guest"] += volume
    if running:
        wanted = publish(vq, ring)
        shown = now(w) if vq["features"] & RING_OBSERVED else int64(0)
        indicate(w, row, vq, ring, books, batch, wanted)
        if shown:
            observe(t, w, number, shown)
