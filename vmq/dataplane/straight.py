# SPDX-License-Identifier: Apache-2.0
"""Direct placement from a TAP: a frame of a VM's own queue is read straight into the buffers that its guest has posted.

        queue of the device ─► readv ─┬─ packet header, addresses, what may be a tag ─► memory of ours ─► looked at, then written
                                      ├─ the rest ──────────────────────────────────► the guest's buffers, where it belongs
                                      └─ what is too long for them ─────────────────► memory of ours

What the kernel has written into the guest's buffers is shown to nobody until the rest of the frame was looked at: that it is one, and
that its address in its VLAN is a receive filter of this receive queue. The program in the kernel has seen to that
(uplink/tap_steering.py), and control lets nothing be read straight while anything else may stand in the queue; a
frame that is another's all the same is a named drop, and `unfit` tells control.

Nobody knows the length of a frame before it is read. So it is read straight only where the next chains have room for the
longest that the VM port takes, tag included; else it is read and switched as the frames of any lane, and nothing was done here:
claimed chains are claimed in our own lists alone. Chains are checked by `gather`, and given back, as `place` does it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import (
    ETH_HLEN,
    ETH_TYPE_OFFSET,
    MAC_GROUP_BIT,
    TPID_8021Q_LE,
    VLAN_HLEN,
    VLAN_VID_MASK,
)
from vmq.abi.linux import EFAULT, UIO_MAXIOV, iovec
from vmq.abi.virtio import NET_HDR_F_NEEDS_CSUM, NET_HDR_GSO_NONE, net_hdr
from vmq.dataplane.classify import lookup, mac_at
from vmq.dataplane.memory import pour
from vmq.dataplane.moderate import indicate
from vmq.dataplane.offload import swap16
from vmq.dataplane.ports import fault
from vmq.dataplane.reasons import (
    FROM_WIRE_ASTRAY,
    FROM_WIRE_OFFLOAD,
    FROM_WIRE_TOO_LONG,
    MEMORY_GONE,
    NO_FAULT,
    RUNT,
    TO_GUEST_NOT_RUNNING,
    TO_GUEST_TOO_LONG,
    VLAN_TRUNCATED,
)
from vmq.dataplane.split import publish
from vmq.dataplane.state import (
    BURST,
    CLAIMS,
    MAX_QUEUES,
    MAX_VPORTS,
    NONE,
    PIECES,
    RING_OBSERVED,
    STEPS,
    UNFIT_BUFFERS,
    UNFIT_FRAME,
    claim,
    engine,
    piece,
    port_state,
    queue,
    queue_state,
    ring_state,
    todo,
    virtqueue,
    vport,
)
from vmq.dataplane.steer import ruled
from vmq.dataplane.to_guest import gather, return_claims
from vmq.dataplane.wire import refuse
from vmq.jit import at, int64, kernel, peek, poke, system_call

c_readv = system_call("readv", 3, wide=True)

HEADER = net_hdr.itemsize
FRONT = ETH_TYPE_OFFSET + VLAN_HLEN  # bytes of a frame that are read into memory of ours
PIECES_MOST = 64  # of a guest's buffers in a read, which the kernel looks at frame or no frame


@kernel
def lay_out(w: Any, lane: Any, count: int, own: int, room: int) -> int:
    """Where a frame is read to, as iovecs: all but the first `own` of `room` bytes goes into the claimed buffers. Their number."""
    targets = at(w["targets"], PIECES, piece)
    parts = at(w["iovecs"], UIO_MAXIOV, iovec)
    parts[0]["base"] = w["scratch"]
    parts[0]["len"] = HEADER + FRONT
    used, place = int64(1), int64(0)
    for index in range(count):
        length = min(int64(targets[index]["length"]), room - place)
        skip = min(max(own - place, 0), length)
        if length > skip:
            parts[used]["base"] = int64(targets[index]["address"]) + skip
            parts[used]["len"] = length - skip
            used += 1
        place += length
    parts[used]["base"] = lane["buffers"]
    parts[used]["len"] = lane["buffer_size"]
    return used + 1


@kernel
def inspect(t: Any, w: Any, port: Any, lane: Any, state: Any, number: int, head: int, length: int) -> int:
    """Count a frame of `length` bytes, tag included, by its first bytes at `head`: NONE, its bytes without tag in w["total"], or
    the code of its drop.
    """
    tagged = length >= ETH_HLEN and int64(peek(head + HEADER + ETH_TYPE_OFFSET, np.uint16)) == TPID_8021Q_LE
    header = at(head, 1, net_hdr)[0]
    mac, vid, bare = mac_at(head + HEADER), int64(0), length
    code = int64(NONE)
    if tagged and length >= ETH_HLEN + VLAN_HLEN:
        vid = swap16(int64(peek(head + HEADER + ETH_HLEN, np.uint16))) & VLAN_VID_MASK
        bare = length - VLAN_HLEN
    if length < ETH_HLEN:
        code = int64(RUNT)
    elif tagged and length < ETH_HLEN + VLAN_HLEN:
        code = int64(VLAN_TRUNCATED)
    elif bare > lane["frame_max"]:
        code = int64(FROM_WIRE_TOO_LONG)
    elif header["gso_type"] != NET_HDR_GSO_NONE or int64(header["flags"]) & NET_HDR_F_NEEDS_CSUM:
        code = int64(FROM_WIRE_OFFLOAD)
    elif mac & MAC_GROUP_BIT or vid != port["vlan"] or lookup(t, mac, vid, int64(port["uplink"])) != number:
        code = int64(FROM_WIRE_ASTRAY)
    w["total"] = bare
    if code != NONE:
        refuse(state, bare, code)
        return code
    state["frames_from_wire"] += 1
    state["bytes_from_wire"] += bare
    state["account"]["forwarded"] += 1
    state["account"]["copies"] += 1
    return code


@kernel
def complete(w: Any, vq: Any, ring: Any, head: int, own: int, used: int) -> None:
    """Write the packet header and the first bytes of a frame, `own` in all, and give back the chains of its `used` bytes."""
    claims = at(w["claims"], CLAIMS, claim)
    room = count = int64(0)
    while room < used:
        room += int64(claims[count]["length"])
        count += 1
    w["claim_count"] = count
    poke(head, np.uint64, np.uint64(0))
    poke(head + 8, np.uint32, np.uint32(count << 16))  # csum_offset 0, num_buffers
    pour(at(w["targets"], PIECES, piece), 0, 0, head, min(own, used))
    return_claims(w, vq, ring, used)


@kernel
def lose(w: Any, row: Any, vq: Any, state: Any, books: Any) -> None:
    """The kernel took a frame out of the queue, and the memory of its buffers is gone: the VM port is stopped, as where we touch it."""
    state["frames_from_wire"] += 1
    state["account"]["forwarded"] += 1
    state["account"]["copies"] += 1
    books["offered_to_guest"] += 1
    books["to_guest_drops"][TO_GUEST_NOT_RUNNING] += 1
    fault(w, int64(row["vport"]), vq, MEMORY_GONE)


@kernel
def book(w: Any, books: Any, batch: int, volume: int) -> None:
    """Count what the guest is about to be shown."""
    w["bursts"] += 1
    books["frames_to_guest"] += batch
    books["bytes_to_guest"] += volume
    books["frames_placed"] += batch
    books["bytes_placed"] += volume


@kernel
def may_read(t: Any, w: Any, number: int, uplink: int) -> bool:
    """Whether frames of this receive queue may be read straight now: nobody else looks at them, and none of it waits."""
    shared = at(w["engine"], 1, engine)[0]
    row = at(t["queues"], t["queue_count"], queue)[number]
    vq = at(t["virtqueues"], 2 * t["queue_count"], virtqueue)[2 * number]
    if not row["straight"] or row["worker"] != w["index"] or row["former"] != NONE or row["shared"]:
        return False
    if not vq["running"] or not vq["enabled"] or vq["features"] & RING_OBSERVED:
        return False
    if at(w["todo"], MAX_QUEUES, todo)[number]["held"] > 0 or ruled(t, uplink):
        return False
    return bool(at(shared["port_state"], MAX_VPORTS, port_state)[row["vport"]]["fault"] == NO_FAULT)


@kernel
def straight(t: Any, w: Any, number: int, lane: Any, state: Any) -> tuple[int, bool]:
    """Read frames of receive queue `number` into its guest's buffers, a burst at most: how many, and whether to switch the next."""
    if not may_read(t, w, number, int64(lane["uplink"])):
        return int64(0), True
    shared = at(w["engine"], 1, engine)[0]
    row = at(t["queues"], t["queue_count"], queue)[number]
    port = at(t["vports"], t["vport_count"], vport)[row["vport"]]
    vq = at(t["virtqueues"], 2 * t["queue_count"], virtqueue)[2 * number]
    ring = at(shared["ring_state"], 2 * MAX_QUEUES, ring_state)[2 * number]
    books = at(shared["queue_state"], MAX_QUEUES, queue_state)[number]
    w["steps_left"] = STEPS
    head = int64(w["scratch"])
    # A tag is written to a guest in no VLAN only, as part of the frame.
    kept = int64(VLAN_HLEN if port["vlan"] == 0 else 0)
    own, room = HEADER + ETH_TYPE_OFFSET + kept, HEADER + int64(port["frame_max"]) + kept
    taken = batch = volume = int64(0)
    other = False
    while taken < BURST:
        count = gather(t, w, port, vq, ring, room)
        if count == -1 - TO_GUEST_TOO_LONG or count > PIECES_MOST:
            books["unfit"] = UNFIT_BUFFERS
        if count < 0 or count > PIECES_MOST:
            other = True
            break
        got = c_readv(row["tap"], w["iovecs"], lay_out(w, lane, count, own, room))
        if got == -EFAULT:
            taken += 1
            lose(w, row, vq, state, books)
        if got <= 0:
            break
        taken += 1
        code = inspect(t, w, port, lane, state, number, head, got - HEADER)
        if code == FROM_WIRE_ASTRAY:
            books["unfit"] = UNFIT_FRAME
        if code != NONE:
            continue
        books["offered_to_guest"] += 1
        if w["total"] > port["frame_max"]:
            books["to_guest_drops"][TO_GUEST_TOO_LONG] += 1
            continue
        complete(w, vq, ring, head, own, got - VLAN_HLEN + kept)
        batch += 1
        volume += int64(w["total"])
    if batch > 0:
        book(w, books, batch, volume)
        indicate(w, row, vq, ring, books, batch, publish(vq, ring))
    return taken, other
