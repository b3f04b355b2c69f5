# SPDX-License-Identifier: Apache-2.0
"""Split virtqueues, the device's side: what is available, one chain, used elements, the indication.

        driver: descriptors, ring[idx], then avail.idx ──►  device: avail.idx (acquire), ring, descriptors (once)
        driver: used.idx (acquire), then elements      ◄──  device: elements, then used.idx (release)

Every field the driver can change is read exactly once, into a local that is checked and used. A chain is bounded
by the queue size (an indirect table by CHAIN_MAX), so a loop ends. Two kinds of refusal, both negative results: a
*drop* (this chain is unusable, the ring is sound) and a *fault* (the ring itself cannot be trusted any more).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.virtio import (
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
    vring_avail,
    vring_desc,
    vring_used,
    vring_used_elem,
)
from vmq.dataplane.memory import append, fetch, translate
from vmq.dataplane.reasons import (
    AVAIL_JUMP,
    CHAIN_LOOP,
    FAULT_BASE,
    FROM_GUEST_BAD_ADDRESS,
    FROM_GUEST_DIRECTION,
    FROM_GUEST_INDIRECT,
    FROM_GUEST_TOO_LONG,
    HEAD_RANGE,
    NEXT_RANGE,
)
from vmq.dataplane.state import CHAIN_MAX, LINE, M16, RING_EVENT_IDX, RING_INDIRECT
from vmq.jit import at, fence, int64, kernel, load_acquire, load_once, prefetch, store_release

DESC = vring_desc.itemsize
RING = vring_avail.itemsize
ELEMENT = vring_used_elem.itemsize
FAULT_AVAIL_JUMP = -1 - FAULT_BASE - AVAIL_JUMP


@kernel
def available(vq: Any, ring: Any) -> int:
    """Chains the driver has made available and we have not taken; negative: a fault."""
    avail = at(vq["avail"], 1, vring_avail)[0]
    # us: read idx, then the ring and its descriptors | driver: writes those, then idx.
    ready = (int64(load_acquire(avail, "idx")) - ring["next_avail"]) & M16
    return FAULT_AVAIL_JUMP if ready > vq["size"] else ready


@kernel
def head_at(vq: Any, ring: Any, ahead: int) -> int:
    """First descriptor of the chain `ahead` places after the next one; unchecked, `walk` checks it."""
    size = int64(vq["size"])
    entries = at(vq["avail"] + RING, size, np.uint16)
    return int64(load_once(entries, (int64(ring["next_avail"]) + ahead) & (size - 1)))


@kernel
def walk(
    t: Any, w: Any, port: Any, vq: Any, ring: Any, head: int, writable: int, pieces: Any, count: int
) -> int:
    """Append the buffers of one chain to `pieces` at `count`; the new count, their bytes in w["total"].

    Negative: -1 - drop (named as from_guest; to_guest translates), or -1 - FAULT_BASE - fault.
    """
    size = limit = int64(vq["size"])
    w["total"] = 0
    table = int64(vq["desc"])
    nested = False
    index = head
    steps = int64(0)
    if head >= size:
        return -1 - FAULT_BASE - HEAD_RANGE
    while True:
        steps += 1
        if steps > limit:
            return -1 - FAULT_BASE - CHAIN_LOOP
        w["steps_left"] -= 1
        if w["steps_left"] < 0:
            return -1 - FROM_GUEST_TOO_LONG
        place = table + index * DESC
        if nested:
            place = fetch(t, port, ring, pieces, count, place, DESC, w["scratch"])
            if place == 0:
                return -1 - FROM_GUEST_INDIRECT
        row = at(place, 1, vring_desc)[0]
        address = int64(load_once(row, "addr"))
        length = int64(load_once(row, "len"))
        flags = int64(load_once(row, "flags"))
        index = int64(load_once(row, "next"))
        if flags & VRING_DESC_F_INDIRECT:
            # virtio-1.2 §2.7.5.3 Indirect Descriptors: one level, last in its chain, whole descriptors
            entries = length // DESC
            sound = length > 0 and length % DESC == 0 and not flags & VRING_DESC_F_NEXT
            if nested or not sound or entries > CHAIN_MAX or not vq["features"] & RING_INDIRECT:
                return -1 - FROM_GUEST_INDIRECT
            nested = True
            table, index, limit, size, steps = address, int64(0), entries, entries, int64(0)
            continue
        if (flags & VRING_DESC_F_WRITE != 0) != (writable != 0):
            return -1 - FROM_GUEST_DIRECTION
        count = append(t, port, ring, pieces, count, address, length)
        if count < 0:
            return -1 - FROM_GUEST_BAD_ADDRESS
        w["total"] += length
        if count >= len(pieces) - 1:
            return -1 - FROM_GUEST_TOO_LONG
        if not flags & VRING_DESC_F_NEXT:
            return count
        if index >= size:
            return -1 - FAULT_BASE - NEXT_RANGE


@kernel
def expect_entries(vq: Any, ring: Any) -> None:
    """First step of looking ahead: the available index and its next entries."""
    size = int64(vq["size"])
    prefetch(vq["avail"], 0)
    prefetch(vq["avail"] + RING + 2 * (int64(ring["next_avail"]) & (size - 1)), 0)


@kernel
def expect_descriptors(vq: Any, ring: Any, count: int) -> None:
    """Second step: the first descriptors of the next chains, and where they will be given back."""
    size = int64(vq["size"])
    for ahead in range(min(count, available(vq, ring))):
        prefetch(vq["desc"] + (head_at(vq, ring, ahead) & (size - 1)) * DESC, 0)
        prefetch(vq["used"] + RING + ((int64(ring["next_used"]) + ahead) & (size - 1)) * ELEMENT, 1)


@kernel
def read_ahead(t: Any, port: Any, vq: Any, ring: Any, flags: int, chains: Any, count: int) -> None:
    """The next `count` available chains into `chains`, each field read once; the first lines of their buffers brought nearer.

    One buffer with exactly these flags, in one region, is all of a chain that is simple. Nothing is taken or judged here.
    """
    size, following = int64(vq["size"]), int64(ring["next_avail"])
    entries, table = at(vq["avail"] + RING, size, np.uint16), at(vq["desc"], size, vring_desc)
    for ahead in range(count):
        row = chains[ahead]
        head = int64(load_once(entries, (following + ahead) & (size - 1)))
        row["head"], row["address"] = head, 0
        if head >= size:
            continue
        buffer = table[head]
        host, within = translate(t, port, ring, int64(load_once(buffer, "addr")))
        length = int64(load_once(buffer, "len"))
        if load_once(buffer, "flags") == flags and 0 < length <= within:
            row["address"], row["length"] = host, length
            if flags:
                prefetch(host, 1)
                prefetch(host + LINE, 1)
            else:
                prefetch(host, 0)
                prefetch(host + LINE, 0)


@kernel
def give_back(vq: Any, ring: Any, head: int, length: int) -> None:
    """Write the next used element; the driver sees it at the next `publish`."""
    size = int64(vq["size"])
    element = at(vq["used"] + RING, size, vring_used_elem)[int64(ring["next_used"]) & (size - 1)]
    element["id"] = head
    element["len"] = length
    ring["next_used"] = (int64(ring["next_used"]) + 1) & M16
    ring["next_avail"] = (int64(ring["next_avail"]) + 1) & M16


@kernel
def publish(vq: Any, ring: Any) -> bool:
    """Show the driver the used elements written so far; whether to call it."""
    size = int64(vq["size"])
    old, new = int64(ring["shown"]), int64(ring["next_used"])
    if old == new:
        return False
    # us: elements, then idx | driver: idx, then elements.
    store_release(at(vq["used"], 1, vring_used)[0], "idx", new)
    # us: write idx, then read used_event or flags | driver: write those, then read idx.
    # A store before a load: without the full fence both may read the old value, and the guest
    # sleeps. virtio-1.2 §2.7.7 Used Buffer Notification Suppression
    fence()
    ring["shown"] = new
    if ring["first"]:
        ring["first"] = 0
        return True
    if vq["features"] & RING_EVENT_IDX:
        event = int64(load_once(at(vq["avail"] + RING, size + 1, np.uint16), size))
        return ((new - event - 1) & M16) < ((new - old) & M16)
    return not int64(load_once(at(vq["avail"], 1, vring_avail)[0], "flags")) & VRING_AVAIL_F_NO_INTERRUPT


@kernel
def ask_for_kicks(vq: Any, ring: Any) -> bool:
    """Ask the driver to kick at its next buffer; True if one came meanwhile (do not sleep)."""
    size = int64(vq["size"])
    if vq["features"] & RING_EVENT_IDX:
        event = vq["used"] + RING + size * ELEMENT
        store_release(at(event, 1, np.uint16), 0, ring["next_avail"])
    else:
        store_release(at(vq["used"], 1, vring_used)[0], "flags", 0)
    ring["asleep"] = 1
    # us: write avail_event or flags, then read avail.idx | driver: write avail.idx, then read those.
    # virtio-1.2 §2.7.10 Available Buffer Notification Suppression
    fence()
    return available(vq, ring) != 0


@kernel
def refuse_kicks(vq: Any, ring: Any) -> None:
    """Tell the driver that we look by ourselves (with EVENT_IDX an old avail_event says the same)."""
    ring["asleep"] = 0
    if not vq["features"] & RING_EVENT_IDX:
        store_release(at(vq["used"], 1, vring_used)[0], "flags", VRING_USED_F_NO_NOTIFY)
