# SPDX-License-Identifier: Apache-2.0
"""A virtqueue of the driver: its memory, its eventfds and its row, for Python to use well or to abuse.

Used well, a virtqueue deals in slots: `take_slots`, `describe`, `submit`, `harvest`, `give_slots`. The kernels of
`driver` do it, with the memory order that a real driver has; `row_address` lets other kernels go on from there.

Abused, it is memory: `desc`, `avail`, `entries`, `used`, `elements` are views of what the device reads and writes.
`write_chain` puts any descriptors there, `push` any entry, `show` any index. The descriptors it borrows come back
when the device returns the chain: `harvest` then notes it in `raw_used`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmq.abi.layout import offset
from vmq.abi.virtio import (
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    split_ring_bytes,
    vring_avail,
    vring_desc,
    vring_used,
    vring_used_elem,
)
from vmq.errors import ProtocolError
from vmq.guest.driver import (
    AVAIL,
    DESC,
    ELEMENT,
    M16,
    USED,
    USED_PAIR,
    describe_slot,
    harvest,
    submit,
    want_calls,
)
from vmq.guest.frontend import Ring
from vmq.guest.memory import PAGE, Array, Memory
from vmq.jit import address_of

# (guest address, length, flags) links to the next one; a fourth number is `next`: a place in the chain, or, beyond
# its end, the very number.
Descriptor = tuple[int, int, int] | tuple[int, int, int, int]

WRITE, NEXT, INDIRECT = VRING_DESC_F_WRITE, VRING_DESC_F_NEXT, VRING_DESC_F_INDIRECT  # flags, for raw chains


@dataclass(frozen=True, slots=True)
class Shape:
    """How a virtqueue lays out its buffers: pieces a chain, in an indirect table or not, bytes a buffer."""

    buffer_bytes: int = 2048
    parts: int = 1  # 1: header and frame in one; 2: header apart; more: the frame in parts - 1 pieces
    indirect: bool = False

    def slots(self, size: int) -> int:
        return size if self.indirect else size // self.parts

    def room(self, size: int) -> int:
        """Guest memory that a virtqueue of this shape takes, alignment included."""
        tables = self.slots(size) * self.parts * DESC if self.indirect else 0
        return sum(split_ring_bytes(size)) + tables + self.slots(size) * self.buffer_bytes + 4 * PAGE


def private(count: int, dtype: Any) -> Array:
    """Zeroed rows of our own, from a page of their own on; the mapping lives as long as the array."""
    return np.frombuffer(mmap.mmap(-1, max(count, 1) * np.dtype(dtype).itemsize), dtype)


class Virtqueue:
    """Ring `index` of a guest: `writable` for frames to the guest. `row` is an item of an array of RING."""

    def __init__(self, memory: Memory, index: int, size: int, shape: Shape, row: Array) -> None:
        self.memory, self.index, self.size, self.shape = memory, index, size, shape
        self.slots = shape.slots(size)
        self.base = 0  # where the back-end is to begin
        self.calls = 0  # notifications counted by `drain_calls`
        self.raw_used: list[tuple[int, int]] = []  # (head, length) of raw chains that the device returned
        self._borrowed: dict[int, list[int]] = {}
        self.kick_fd, self.call_fd, self.err_fd = (
            os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(3)
        )
        self._place_ring()
        self.row = row[0]
        self.row_address = address_of(row)
        self._fill_row()
        self.reset()

    def _place_ring(self) -> None:
        size, memory = self.size, self.memory
        desc_bytes, avail_bytes, used_bytes = split_ring_bytes(size)
        self.desc_guest = memory.allocate(desc_bytes, PAGE, within_region=True)
        self.avail_guest = memory.allocate(avail_bytes, within_region=True)
        self.used_guest = memory.allocate(used_bytes, within_region=True)
        self.buffers_guest = memory.allocate(self.slots * self.shape.buffer_bytes, PAGE)
        self.desc = memory.array(self.desc_guest, size, vring_desc)
        self.avail = memory.array(self.avail_guest, 1, vring_avail)
        self.entries = memory.array(self.avail_guest + AVAIL, size, np.uint16)
        self.used_event = memory.array(self.avail_guest + AVAIL + 2 * size, 1, np.uint16)
        self.used = memory.array(self.used_guest, 1, vring_used)
        self.elements = memory.array(self.used_guest + USED, size, vring_used_elem)
        self.avail_event = memory.array(self.used_guest + USED + ELEMENT * size, 1, np.uint16)

    def _fill_row(self) -> None:
        shape, own = self.shape, self.memory.own
        self._free, self._flight = private(self.slots, np.int64), private(self.slots, np.int64)
        self._batch, self._pairs = private(self.slots, np.int64), private(USED_PAIR * self.size, np.int64)
        self._token = private(1, np.int64)
        self._token[0] = 1
        tables_guest = self.memory.allocate(self.slots * shape.parts * DESC, DESC) if shape.indirect else 0
        fields = {
            "size": self.size,
            "desc": own(self.desc_guest),
            "avail": own(self.avail_guest),
            "used": own(self.used_guest),
            "writable": int(self.index % 2 == 0),
            "indirect": int(shape.indirect),
            "slots": self.slots,
            "span": 1 if shape.indirect else shape.parts,
            "parts": shape.parts,
            "tables": own(tables_guest) if shape.indirect else 0,
            "tables_guest": tables_guest,
            "buffers": own(self.buffers_guest),
            "buffers_guest": self.buffers_guest,
            "stride": shape.buffer_bytes,
            "kick_fd": self.kick_fd,
            "call_fd": self.call_fd,
            "token": address_of(self._token),
            "free": address_of(self._free),
            "flight": address_of(self._flight),
        }
        for name, value in fields.items():
            self.row[name] = value

    def reset(self) -> None:
        """Begin anew, as a driver does that was loaded again: the ring is zero, every slot is free."""
        for guest, size in zip(
            (self.desc_guest, self.avail_guest, self.used_guest), split_ring_bytes(self.size), strict=True
        ):
            self.memory.array(guest, size, np.uint8)[:] = 0
        self._borrowed.clear()
        self._free[:] = np.arange(self.slots)[::-1]
        self._flight[:] = 0
        self.base = 0
        self.row["free_count"] = self.slots
        for name in ("next_avail", "next_used", "shown"):
            self.row[name] = 0

    def agree(self, *, mergeable: bool, event_idx: bool, indirect: bool) -> None:
        """The features that front-end and back-end have chosen; a shape with indirect tables needs theirs."""
        if self.shape.indirect and not indirect:
            raise ProtocolError(
                "virtio-1.2 §2.7.5.3 Indirect Descriptors", "the back-end does not offer them"
            )
        self.row["mergeable"], self.row["event_idx"] = int(mergeable), int(event_idx)

    def place(self) -> Ring:
        """The virtqueue as the front-end announces it."""
        own = self.memory.own
        addresses = own(self.desc_guest), own(self.avail_guest), own(self.used_guest)
        return Ring(self.index, self.size, *addresses, self.kick_fd, self.call_fd, self.err_fd)

    # --- used well ----------------------------------------------------------------------------------------

    @property
    def free_slots(self) -> int:
        return int(self.row["free_count"])

    def take_slots(self, count: int) -> list[int]:
        """Up to `count` free slots."""
        left = max(self.free_slots - count, 0)
        slots = self._free[left : self.free_slots][::-1].tolist()
        self.row["free_count"] = left
        return [int(slot) for slot in slots]

    def give_slots(self, slots: Sequence[int]) -> None:
        self._free[self.free_slots : self.free_slots + len(slots)] = slots
        self.row["free_count"] += len(slots)

    def buffer(self, slot: int) -> int:
        """Guest address of the buffer of a slot."""
        return self.buffers_guest + slot * self.shape.buffer_bytes

    def describe(self, slot: int, guest: int, length: int) -> None:
        """Let a slot be the `length` bytes at a guest address, cut as the shape says."""
        describe_slot(self.row_address, slot, guest, length)

    def submit(self, slots: Sequence[int]) -> bool:
        """Make described slots available with one index update; whether the device was kicked."""
        self._batch[: len(slots)] = slots
        return bool(submit(self.row_address, address_of(self._batch), len(slots)))

    def harvest(self) -> list[tuple[int, int]]:
        """(slot, length) of what the device has used since; what names no chain that it had is only counted, `bad`."""
        count = int(harvest(self.row_address, address_of(self._pairs), self.size))
        flat = self._pairs[: USED_PAIR * count].tolist()
        span = int(self.row["span"])
        taken = []
        for slot, length in zip(flat[::2], flat[1::2], strict=True):
            if slot * span in self._borrowed:
                self.give_slots(self._borrowed.pop(slot * span))
                self.raw_used.append((slot * span, length))
            elif slot >= 0:
                taken.append((slot, length))
        return taken

    def want_calls(self, *, wanted: bool = True) -> bool:
        """Ask for calls or refuse them; whether used elements are waiting already."""
        return bool(want_calls(self.row_address, int(wanted)))

    def drain_calls(self) -> int:
        """Calls since the last time: each is one notification of the device."""
        calls = 0
        with contextlib.suppress(BlockingIOError):
            calls = os.eventfd_read(self.call_fd)
        self.calls += calls
        return calls

    def kick(self) -> None:
        """Kick, wanted or not."""
        os.eventfd_write(self.kick_fd, 1)
        self.row["kicks"] += 1

    @property
    def used_index(self) -> int:
        """The used index as it stands in guest memory."""
        return int(self.used["idx"][0])

    # --- abused -------------------------------------------------------------------------------------------

    def write_chain(self, chain: Sequence[Descriptor], *, indirect: bool = False) -> int:
        """Write descriptors of any kind into free ones of the ring, or into a table that one of them names; the head.

        Nothing is made available yet.
        """
        direct = 1 if indirect else len(chain)
        span = int(self.row["span"])
        slots = self.take_slots(-(-direct // span))
        if len(slots) * span < direct:
            self.give_slots(slots)
            raise ValueError(f"virtqueue {self.index} has no {direct} free descriptors")
        places = [slot * span + step for slot in slots for step in range(span)][:direct]
        self._borrowed[places[0]] = slots
        if indirect:
            table_guest = self.write_table(chain)
            write_rows(self.desc, places, [(table_guest, len(chain) * DESC, INDIRECT)])
        else:
            write_rows(self.desc, places, chain)
        return places[0]

    def write_table(self, chain: Sequence[Descriptor]) -> int:
        """Guest address of a new indirect table."""
        guest = self.memory.allocate(len(chain) * DESC, DESC)
        write_rows(self.memory.array(guest, len(chain), vring_desc), range(len(chain)), chain)
        return guest

    def field(self, index: int, name: str) -> int:
        """Guest address of one field of a descriptor of the ring, for those who let it flip."""
        return self.desc_guest + index * DESC + offset(vring_desc, name)

    def push(self, *heads: int) -> None:
        """Append entries to the available ring, whatever they name; the device sees them after `show`."""
        for head in heads:
            self.entries[int(self.row["next_avail"]) % self.size] = head
            if head in self._borrowed:
                self._flight[head // int(self.row["span"])] = 1
            self.row["next_avail"] = (int(self.row["next_avail"]) + 1) & M16

    def show(self, index: int | None = None) -> None:
        """Set the available index: to what was offered, or to any other number."""
        self.row["shown"] = self.row["next_avail"]
        self.avail["idx"] = int(self.row["next_avail"]) if index is None else index & M16

    def raw_chain(self, chain: Sequence[Descriptor], *, indirect: bool = False) -> int:
        """`write_chain`, make it available and kick; the head."""
        head = self.write_chain(chain, indirect=indirect)
        self.push(head)
        self.show()
        self.kick()
        return head

    def returned(self, count: int) -> list[tuple[int, int]]:
        """The last `count` used elements (head, length) as they stand in the ring."""
        last = [self.elements[(self.used_index - back) % self.size] for back in range(count, 0, -1)]
        return [(int(element["id"]), int(element["len"])) for element in last]

    def close(self) -> None:
        """Close the eventfds and let go of guest memory."""
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)
        del self.desc, self.avail, self.entries, self.used_event, self.used, self.elements, self.avail_event


def write_rows(table: Array, places: Sequence[int], chain: Sequence[Descriptor]) -> None:
    """Descriptors `chain` at `places` of a table, linked in their order unless they say otherwise."""
    for step, (guest, length, flags, *explicit) in enumerate(chain):
        link = explicit[0] if explicit else step + 1
        if not explicit and step + 1 < len(chain):
            flags |= NEXT
        row = table[places[step]]
        row["addr"], row["len"], row["flags"] = guest, length, flags
        row["next"] = places[link] if link < len(chain) else link if explicit else 0
