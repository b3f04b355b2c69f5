# SPDX-License-Identifier: Apache-2.0
"""Split virtqueues, the driver's side, compiled: describe a chain, offer it, show it, take used ones back.

    describe ──► offer … offer ──► show ──► kick, if it is wanted        device: avail.idx, ring, descriptors
    take … take ◄── used                                                 device: elements, used.idx, call

The descriptor table is cut into *slots*: chains of a fixed number of descriptors, so that a slot needs no
allocation and its buffer lies at a fixed place. A slot has up to `parts` pieces; with more than one the packet
header is alone in the first. With `indirect` a slot takes one descriptor, and its pieces stand in a table of its
own. Which slots are free, and which the device has, is known outside guest memory: what a test (or a device)
scribbles over the ring cannot confuse us.

Kernels that Python calls take addresses; `RING` is the row they point to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.layout import i64, rows
from vmq.abi.virtio import (
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
    net_hdr,
    vring_avail,
    vring_desc,
    vring_used,
    vring_used_elem,
)
from vmq.jit import at, c_write, compile_for, fence, int64, kernel, load_acquire, load_once, store_release

RING = rows(
    ("size", i64),
    ("desc", i64), ("avail", i64), ("used", i64),  # our addresses
    ("writable", i64),  # 1: the device writes the buffers (to_guest)
    ("event_idx", i64), ("mergeable", i64), ("indirect", i64),
    ("slots", i64), ("span", i64), ("parts", i64),  # span: descriptors a slot takes from the ring
    ("tables", i64), ("tables_guest", i64),  # indirect tables, `parts` descriptors a slot
    ("buffers", i64), ("buffers_guest", i64), ("stride", i64),  # one buffer a slot
    ("kick_fd", i64), ("call_fd", i64), ("token", i64),  # token: address of the 8 bytes that a kick writes
    ("free", i64), ("free_count", i64),  # i64 stack of slots
    ("flight", i64),  # i64 a slot, 1: the device has it
    ("next_avail", i64), ("next_used", i64),
    ("shown", i64),  # available index the device was shown last
    ("kicks", i64),
    ("bad", i64),  # used elements that name no chain the device has
)  # fmt: skip

M16 = (1 << 16) - 1
HEADER = net_hdr.itemsize
AVAIL = vring_avail.itemsize
USED = vring_used.itemsize
ELEMENT = vring_used_elem.itemsize
DESC = vring_desc.itemsize
USED_PAIR = 2  # harvest writes pairs (slot, length)


@kernel
def cut(table: Any, base: int, parts: int, address: int, length: int, flags: int) -> int:
    """Write `length` bytes at guest address `address` as at most `parts` descriptors; how many they became."""
    index = int64(0)
    while True:
        part = (length + parts - index - 1) // (parts - index)
        if index == 0 and parts > 1:
            part = min(length, int64(HEADER))
        length -= part
        row = table[base + index]
        row["addr"] = address
        row["len"] = part
        row["flags"] = flags | VRING_DESC_F_NEXT if length > 0 else flags
        row["next"] = base + index + 1 if length > 0 else 0
        address += part
        index += 1
        if length == 0:
            return index


@kernel
def describe(ring: Any, slot: int, address: int, length: int) -> None:
    """Let the chain of `slot` be the `length` bytes at a guest address; the device must not have it."""
    parts = int64(ring["parts"])
    flags = int64(VRING_DESC_F_WRITE) if ring["writable"] else int64(0)
    table = at(ring["desc"], ring["size"], vring_desc)
    if not ring["indirect"]:
        cut(table, slot * parts, parts, address, length, flags)
        return
    nested = at(ring["tables"], int64(ring["slots"]) * parts, vring_desc)
    # Chains of an indirect table number its own entries: virtio-1.2 §2.7.5.3 Indirect Descriptors
    count = cut(nested[slot * parts : (slot + 1) * parts], 0, parts, address, length, flags)
    row = table[slot]
    row["addr"] = int64(ring["tables_guest"]) + slot * parts * DESC
    row["len"] = count * DESC
    row["flags"] = VRING_DESC_F_INDIRECT
    row["next"] = 0


@kernel
def claim(ring: Any) -> int:
    """A free slot; the caller has looked at free_count."""
    ring["free_count"] -= 1
    return int64(at(ring["free"], ring["slots"], np.int64)[ring["free_count"]])


@kernel
def release(ring: Any, slot: int) -> None:
    """Put a slot back."""
    at(ring["free"], ring["slots"], np.int64)[ring["free_count"]] = slot
    ring["free_count"] += 1


@kernel
def offer(ring: Any, slot: int) -> None:
    """Put a described slot into the available ring; the device sees it at the next `show`."""
    size = int64(ring["size"])
    at(ring["avail"] + AVAIL, size, np.uint16)[ring["next_avail"] & (size - 1)] = slot * int64(ring["span"])
    at(ring["flight"], ring["slots"], np.int64)[slot] = 1
    ring["next_avail"] = (int64(ring["next_avail"]) + 1) & M16


@kernel
def show(ring: Any) -> bool:
    """Show the device what was offered; whether it wants a kick."""
    size = int64(ring["size"])
    old, new = int64(ring["shown"]), int64(ring["next_avail"])
    if old == new:
        return False
    # us: ring entries and descriptors, then idx | device: idx, then those.
    store_release(at(ring["avail"], 1, vring_avail)[0], "idx", new)
    # us: write idx, then read avail_event or flags | device: write those, then read idx.
    # virtio-1.2 §2.7.10 Available Buffer Notification Suppression
    fence()
    ring["shown"] = new
    if ring["event_idx"]:
        event = int64(load_once(at(ring["used"] + USED + size * ELEMENT, 1, np.uint16), 0))
        return ((new - event - 1) & M16) < ((new - old) & M16)
    return not int64(load_once(at(ring["used"], 1, vring_used)[0], "flags")) & VRING_USED_F_NO_NOTIFY


@kernel
def kick(ring: Any) -> None:
    """Wake the device; the eventfd does not block, and one that is full wakes it too."""
    c_write(ring["kick_fd"], ring["token"], 8)
    ring["kicks"] += 1


@kernel
def used(ring: Any) -> int:
    """Used elements we have not taken."""
    # us: idx, then elements and buffers | device: writes those, then idx.
    index = int64(load_acquire(at(ring["used"], 1, vring_used)[0], "idx"))
    return (index - int64(ring["next_used"])) & M16


@kernel
def take(ring: Any) -> tuple[int, int]:
    """The next used element: its slot (-1: it names none that the device has) and the bytes written."""
    size, span = int64(ring["size"]), int64(ring["span"])
    element = at(ring["used"] + USED, size, vring_used_elem)[ring["next_used"] & (size - 1)]
    head, length = int64(load_once(element, "id")), int64(load_once(element, "len"))
    ring["next_used"] = (int64(ring["next_used"]) + 1) & M16
    slot = head // span
    if slot < ring["slots"] and head % span == 0:
        flight = at(ring["flight"], ring["slots"], np.int64)
        if flight[slot]:
            flight[slot] = 0
            return slot, length
    ring["bad"] += 1
    return int64(-1), length


@kernel
def ask_for_calls(ring: Any) -> bool:
    """Ask the device to call at its next used buffer; True if one came meanwhile (do not sleep)."""
    size = int64(ring["size"])
    if ring["event_idx"]:
        store_release(at(ring["avail"] + AVAIL, size + 1, np.uint16), size, int64(ring["next_used"]))
    else:
        store_release(at(ring["avail"], 1, vring_avail)[0], "flags", 0)
    # us: write used_event or flags, then read used.idx | device: write used.idx, then read those.
    # virtio-1.2 §2.7.7 Used Buffer Notification Suppression
    fence()
    return used(ring) != 0


@kernel
def refuse_calls(ring: Any) -> None:
    """Tell the device that we look by ourselves (with EVENT_IDX an old used_event says the same)."""
    if not ring["event_idx"]:
        store_release(at(ring["avail"], 1, vring_avail)[0], "flags", VRING_AVAIL_F_NO_INTERRUPT)


# --- what Python calls -------------------------------------------------------------------------------------


@kernel
def describe_slot(address: int, slot: int, guest: int, length: int) -> None:
    """`describe` for a ring by its address."""
    describe(at(address, 1, RING)[0], slot, guest, length)


@kernel
def submit(address: int, slots: int, count: int) -> int:
    """Offer `count` slots (i64 at `slots`) at once and kick if it is wanted; 1 if it was."""
    ring = at(address, 1, RING)[0]
    numbers = at(slots, count, np.int64)
    for index in range(count):
        offer(ring, int64(numbers[index]))
    if not show(ring):
        return 0
    kick(ring)
    return 1


@kernel
def harvest(address: int, pairs: int, room: int) -> int:
    """Take up to `room` used elements as pairs (slot, length) of i64; how many."""
    ring = at(address, 1, RING)[0]
    into = at(pairs, USED_PAIR * room, np.int64)
    count = min(used(ring), room)
    for index in range(count):
        slot, length = take(ring)
        into[USED_PAIR * index] = slot
        into[USED_PAIR * index + 1] = length
    return count


@kernel
def want_calls(address: int, wanted: int) -> int:
    """Ask for calls, or refuse them; 1 if used elements are waiting."""
    ring = at(address, 1, RING)[0]
    if wanted:
        return 1 if ask_for_calls(ring) else 0
    refuse_calls(ring)
    return 1 if used(ring) else 0


def compile_kernels() -> None:
    """Compile, or load, what Python calls, before traffic."""
    compile_for(describe_slot, *("int64",) * 4)
    compile_for(submit, *("int64",) * 3)
    compile_for(harvest, *("int64",) * 3)
    compile_for(want_calls, *("int64",) * 2)
