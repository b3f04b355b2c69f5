# SPDX-License-Identifier: Apache-2.0
"""Direct placement: the guest's own receive buffers stand in the kernel's fill ring, and frames land in them.

        guest: available chains ─► post: check, fill ring ─► kernel: frame behind the packet header ─► receive ring
                                                                                                            │
        guest: used elements    ◄── give back, in the order of the kernel ◄── header ◄── harvest ◄──────────┘

`next_avail` of a ring stays the first chain that was not given back; the `posted` chains are the next ones. The kernel
fills them in the order in which they were posted (copy mode, and a receive ring as long as the fill ring), which is
checked for each: so the chains that it has are always the next ones that the guest made available, and whoever stops
the queue only forgets them. The guest may change its rings meanwhile; what was read once, when a chain was posted, counts.

While frames are many, the processor has the kernel work for the pair in its own turn, before it looks what has come; otherwise
the kernel does so where frames come from. Control says which (vmq/direct/polling.py).

The first buffers are given when the queue is led (`begun`): until then the engine fills the same chains itself.

Only a chain of one buffer is posted: writable, with room for the longest frame that is let through, in one region, and
so far from both ends of the memory that the kernel takes its chunk. One that is not stops posting (`unfit`), and the
queue has to be switched. The kernel drops an entry that it does not take without a word: none may ever stand there.
linux-if_xdp.h
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.linux import MSG_DONTWAIT
from vmq.abi.virtio import VRING_DESC_F_WRITE, net_hdr, vring_desc
from vmq.abi.xdp import XDP_PACKET_HEADROOM, desc
from vmq.dataplane.reasons import (
    DIRECT_ORDER,
    FAULT_BASE,
    TO_GUEST_NO_BUFFER,
    TO_GUEST_PAIR,
    TO_GUEST_TOO_LONG,
)
from vmq.dataplane.split import available, give_back, head_at
from vmq.dataplane.state import BURST, LED, LOST, M32, NONE, direct_queue, span
from vmq.dataplane.xdp import advance, c_recvfrom, offset_of, own_index, their_index
from vmq.jit import at, int64, kernel, load_once, poke, prefetch

HEADER = net_hdr.itemsize
ONE_BUFFER = np.uint32(1 << 16)  # csum_offset 0, num_buffers 1
FEW = 64  # buffers that the kernel has: of fewer a processor that has nothing to do goes on looking for more
BURSTS = 4  # in one turn: to poll a pair brings two, and what stood there before is to become less
LOST_DROPS = np.array([TO_GUEST_NO_BUFFER, TO_GUEST_TOO_LONG, TO_GUEST_PAIR])  # by LOST_*
LEAD = XDP_PACKET_HEADROOM - HEADER  # bytes that the kernel leaves free in front of a packet header


@kernel
def seek(queue: Any, address: int) -> tuple[int, int]:
    """Where in the kernel's memory a guest address lies, and the bytes that follow it in its region; (NONE, 0) nowhere."""
    if address < 0:
        return int64(NONE), int64(0)
    spans = at(queue["spans"], queue["span_count"], span)
    for index in range(queue["span_count"]):
        distance = address - int64(spans[index]["guest"])
        if 0 <= distance < spans[index]["size"]:
            return int64(spans[index]["place"]) + distance, int64(spans[index]["size"]) - distance
    return int64(NONE), int64(0)


@kernel
def fit(vq: Any, queue: Any, head: int) -> int:
    """Where in the kernel's memory the buffer of a chain lies; NONE if the chain is none for the kernel."""
    size = int64(vq["size"])
    if head >= size:
        return NONE
    buffer = at(vq["desc"], size, vring_desc)[head]
    place, within = seek(queue, int64(load_once(buffer, "addr")))
    length = int64(load_once(buffer, "len"))
    if load_once(buffer, "flags") != VRING_DESC_F_WRITE or not queue["least"] <= length <= within:
        return NONE
    if place < LEAD or place - LEAD + int64(queue["chunk"]) > queue["size"]:
        return NONE
    return place


@kernel
def post(vq: Any, ring: Any, queue: Any) -> int:
    """Let the kernel have the next available chains, a burst at most; how many, or a negative fault."""
    ready = available(vq, ring)
    if ready < 0:
        return ready
    fill = queue["fill"]
    size = int64(fill["size"])
    slots = at(fill["entries"], size, np.uint64)
    heads, places = at(queue["heads"], size, np.int64), at(queue["places"], size, np.int64)
    end, stale = own_index(fill["producer"]), int64(queue["stale"])
    room = size - ((end - their_index(fill["consumer"])) & M32) + stale
    posted, count = int64(queue["posted"]), int64(0)
    most = min(ready - posted, room, size - posted, BURST)
    while count < most and not queue["unfit"]:
        head = head_at(vq, ring, posted + count)
        place = fit(vq, queue, head)
        if place == NONE:
            queue["unfit"] = 1
            break
        number = (int64(queue["first"]) + posted + count) & (size - 1)
        heads[number], places[number] = head, place
        slots[(end - stale) & (size - 1)] = place - LEAD
        end, stale = end + (stale == 0), max(stale - 1, 0)
        count += 1
    queue["stale"] = stale
    if count > 0:
        queue["posted"] = posted + count
        advance(fill["producer"], end)
    return count


@kernel
def begun(vq: Any, ring: Any, queue: Any) -> bool:
    """Whether the kernel has buffers of this queue. The first time it is given all that there are.

    It does not read its fill ring until frames are sent into the pair, which is after this: entries from before (`stale`) are
    written anew. Until then, and where the guest has no buffer or none for the kernel, frames are delivered as ever.
    """
    if not queue["begun"]:
        for _ in range(int64(queue["fill"]["size"]) // BURST + 1):
            if post(vq, ring, queue) <= 0:
                break
        if queue["posted"] > 0:
            queue["stale"], queue["begun"] = 0, 1
    return bool(queue["begun"])


@kernel
def is_led(row: Any, vq: Any, ring: Any) -> bool:
    """Whether frames for a receive queue go into its pair."""
    return bool(
        row["led"] == LED and row["direct"] != 0 and begun(vq, ring, at(row["direct"], 1, direct_queue)[0])
    )


@kernel
def harvest(vq: Any, ring: Any, queue: Any, books: Any) -> int:
    """Give back what the kernel has filled, a burst at most; frames, or a negative fault."""
    receive = queue["receive"]
    size = int64(receive["size"])
    entries = at(receive["entries"], size, desc)
    heads, places = at(queue["heads"], size, np.int64), at(queue["places"], size, np.int64)
    begin = own_index(receive["consumer"])
    count = min((their_index(receive["producer"]) - begin) & M32, BURST)
    memory, first = int64(queue["memory"]), int64(queue["first"])
    for index in range(min(count, int64(queue["posted"]))):
        prefetch(memory + places[(first + index) & (size - 1)], 1)
    volume = int64(0)
    for index in range(count):
        entry = entries[(begin + index) & (size - 1)]
        number = (first + index) & (size - 1)
        place = offset_of(int64(entry["addr"])) - HEADER
        if index >= queue["posted"] or place != places[number]:
            return -1 - FAULT_BASE - DIRECT_ORDER
        poke(memory + place, np.uint64, np.uint64(0))
        poke(memory + place + 8, np.uint32, ONE_BUFFER)
        give_back(vq, ring, heads[number], HEADER + int64(entry["len"]))
        volume += int64(entry["len"])
    if count > 0:
        queue["first"] = first + count
        queue["posted"] -= count
        advance(receive["consumer"], begin + count)
        books["offered_to_guest"] += count
        books["frames_to_guest"] += count
        books["bytes_to_guest"] += volume
        books["frames_placed"] += count
        books["bytes_placed"] += volume
    return count


@kernel
def exchange(vq: Any, ring: Any, queue: Any, books: Any, led: bool) -> tuple[int, int]:
    """Give back what the kernel has filled, and let it have others; frames, and buffers of which it had few, or a negative fault."""
    taken, wanted = int64(0), int64(0)
    for _ in range(BURSTS):
        got = harvest(vq, ring, queue, books)
        if got < 0:
            return taken, int64(got)
        taken += got
        few, posted = queue["posted"] < FEW, int64(0)
        if led and begun(vq, ring, queue):
            posted = int64(post(vq, ring, queue))
        if posted < 0:
            return taken, posted
        wanted += posted if few else 0
        if got < BURST:
            break
    return taken, wanted


@kernel
def poll_pair(queue: Any) -> None:
    """Have the kernel work for the pair now, and here, while frames are many."""
    if queue["poll"] != NONE:
        c_recvfrom(queue["poll"], 0, 0, MSG_DONTWAIT, 0, 0)


@kernel
def book_lost(queue: Any, books: Any) -> None:
    """Count what control has seen lost between a NIC, or our own hand, and a buffer."""
    for place in range(LOST):
        count = int64(queue["lost"][place]) - int64(queue["booked"][place])
        if count > 0:
            queue["booked"][place] += count
            books["offered_to_guest"] += count
            books["to_guest_drops"][LOST_DROPS[place]] += count
