# SPDX-License-Identifier: Apache-2.0
"""Looking on: captures of a receive queue, and how long its frames were under way.

        engine ─► watches[queue] ─► capture ─► capture ─► 0       one ring each, filled by the queue's worker
        from_guest    as the guest sent it, before it is judged: what is refused below is what somebody looks for
        to_guest      as the guest gets it, VLAN tag and all, when the batch is shown

Nothing is paid where nobody looks: one bit of a word that is at hand says so, once a batch. A frame goes into the ring
as a finished block of a capture file (pcapng "Enhanced Packet Block"), so that control only copies bytes. Where the
ring is full the capture loses the frame, counts it, and the guest notices nothing.

The frames of a round were taken together. So the stamp is the round's, one reading of the clock; a parcel carries that
of its sender's round, and the time in its ring counts. A replayed frame that waits is taken when it is tried again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.capture import BLOCK_ENHANCED, INBOUND, OPTION_EPB_FLAGS, OUTBOUND, enhanced_block, enhanced_tail
from vmq.abi.ethernet import ETH_TYPE_OFFSET, TPID_8021Q_LE, VLAN_HLEN
from vmq.clock import now
from vmq.dataplane.handover import ALIGN, reserve, taken_of
from vmq.dataplane.state import (
    DELIVERIES,
    DONE,
    FRAMES,
    LATENCY_BINS,
    LATENCY_SHIFT,
    M32,
    MAX_QUEUES,
    NONE,
    PIECES,
    TO_GUEST,
    byte_ring,
    capture,
    delivery,
    engine,
    frame,
    latency,
    packet_record,
    piece,
    queue,
    todo,
    vport,
    watch,
)
from vmq.jit import at, copy, int64, kernel, load_acquire, poke, store_release

RECORD, BLOCK, TAIL = packet_record.itemsize, enhanced_block.itemsize, enhanced_tail.itemsize


@kernel
def captures_of(w: Any, number: int) -> int:
    """The first capture of a receive queue's guest, and in w["taken"] the time for it; 0 without."""
    shared = at(w["engine"], 1, engine)[0]
    # us: address, then the row | control: the row, then its address.
    first = int64(load_acquire(at(shared["watches"], MAX_QUEUES, watch)[number], "captures"))
    if first and w["taken"] == 0:
        w["taken"] = now(w)
    return first


@kernel
def lay(to: int, end: int, address: int, length: int) -> int:
    """Copy a part of a frame as far as there is room before `end`; where the next part goes."""
    count = min(length, end - to)
    if count > 0:
        copy(to, address, count)
    return to + count


@kernel
def lay_frame(w: Any, to: int, end: int, row: Any, tag: int) -> None:
    """The frame, and (with `tag`) its 802.1Q tag, up to `end`."""
    pieces = at(w["pieces"], PIECES, piece)
    first, head = int64(row["address"]), int64(row["head"])
    if tag:
        to = lay(to, end, first, ETH_TYPE_OFFSET)
        tci = int64(row["tci"])
        poke(w["header"], np.uint16, np.uint16(TPID_8021Q_LE))
        poke(w["header"] + 2, np.uint16, np.uint16(((tci & 255) << 8) | (tci >> 8)))
        to = lay(to, end, int64(w["header"]), VLAN_HLEN)
        first, head = first + ETH_TYPE_OFFSET, head - ETH_TYPE_OFFSET
    to = lay(to, end, first, head)
    for index in range(row["piece_first"], row["piece_first"] + row["piece_count"]):
        to = lay(to, end, int64(pieces[index]["address"]), int64(pieces[index]["length"]))


@kernel
def keep(w: Any, one: Any, row: Any, tag: int, direction: int, time: int) -> None:
    """A frame into the ring of one capture, as a block of its file; or it is lost, and counted."""
    ring = at(one["ring"], 1, byte_ring)[0]
    original = int64(row["length"]) + VLAN_HLEN * tag
    kept = min(original, int64(one["snaplen"]))
    padded = (kept + 3) & ~3
    length = BLOCK + padded + TAIL
    need = (RECORD + length + ALIGN - 1) & ~(ALIGN - 1)
    start = reserve(ring, need)
    if start == NONE:
        ring["lost"] += 1
        return
    place = int64(ring["data"]) + (start & (int64(ring["size"]) - 1))
    record = at(place, 1, packet_record)[0]
    record["size"], record["length"] = need, length
    place += RECORD
    head = at(place, 1, enhanced_block)[0]
    head["type"], head["length"] = BLOCK_ENHANCED, length
    head["interface"] = one["interface"]
    time += int64(one["offset"])
    head["high"], head["low"] = time >> 32, time & M32
    head["captured"], head["original"] = kept, original
    place += BLOCK
    lay_frame(w, place, place + kept, row, tag)
    for byte in range(kept, padded):
        poke(place + byte, np.uint8, np.uint8(0))
    tail = at(place + padded, 1, enhanced_tail)[0]
    tail["code"], tail["code_length"] = OPTION_EPB_FLAGS, 4
    tail["flags"] = INBOUND if direction == TO_GUEST else OUTBOUND
    tail["end"], tail["length"] = 0, length
    ring["kept"] += 1
    # us: block, then head | control: head, then block.
    store_release(ring, "head", start + need)


@kernel
def capture_all(w: Any, first: int, row: Any, tag: int, direction: int, time: int) -> None:
    """A frame for every capture of its receive queue that wants this direction."""
    address = first
    while address != 0:
        one = at(address, 1, capture)[0]
        if one["directions"] & direction:
            keep(w, one, row, tag, direction, time)
        address = int64(load_acquire(one, "next"))


@kernel
def latency_bin(time: int) -> int:
    """Histogram bin of a time in ns: state.LATENCY_SHIFT."""
    index = int64(0)
    time >>= LATENCY_SHIFT + 1
    while time > 0 and index < LATENCY_BINS - 1:
        time >>= 1
        index += 1
    return index


@kernel
def measure(w: Any, books: Any, row: Any, shown: int) -> None:
    """Count how long a frame was under way."""
    taken = taken_of(w, row)
    if taken == 0:
        books["unstamped"] += 1
        return
    passed = max(shown - taken, 0)
    books["total"] += passed
    books["bins"][latency_bin(passed)] += 1


@kernel
def observe(t: Any, w: Any, number: int, shown: int) -> None:
    """The frames of a batch that the guest of receive queue `number` was just shown."""
    shared = at(w["engine"], 1, engine)[0]
    look = at(shared["watches"], MAX_QUEUES, watch)[number]
    books = at(shared["latencies"], MAX_QUEUES, latency)[number]
    owner = int64(at(t["queues"], t["queue_count"], queue)[number]["vport"])
    keeps_tag = at(t["vports"], t["vport_count"], vport)[owner]["vlan"] == 0
    deliveries = at(w["deliveries"], DELIVERIES, delivery)
    frames = at(w["frames"], FRAMES, frame)
    first = int64(load_acquire(look, "captures"))
    index = int64(at(w["todo"], MAX_QUEUES, todo)[number]["first"])
    while index != NONE:
        if deliveries[index]["done"] == DONE:
            row = frames[deliveries[index]["frame"]]
            if look["measured"]:
                measure(w, books, row, shown)
            if first:
                capture_all(w, first, row, 1 if row["tagged"] and keeps_tag else 0, TO_GUEST, shown)
        index = int64(deliveries[index]["next"])
