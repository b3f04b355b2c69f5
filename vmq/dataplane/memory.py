# SPDX-License-Identifier: Apache-2.0
"""Guest addresses to host addresses, and lists of host pieces.

The only place where a number from a guest becomes memory. A region is (guest address, size, host address); a VM
port's regions are neighbours in the table, sorted, and do not overlap (vhost/memory.py saw to that). A buffer may
span adjacent regions (vhost-user.md: the hole below 1 MiB of a PC), so it becomes one or more pieces.

Arithmetic that cannot wrap: a guest address or length with bit 63 set is negative here and refused; every test is
a subtraction of two numbers already known to be ordered.
"""

from __future__ import annotations

from typing import Any

from vmq.dataplane.state import NONE, region
from vmq.jit import at, copy, int64, kernel


@kernel
def translate(t: Any, port: Any, ring: Any, address: int) -> tuple[int, int]:
    """Host address of a guest address and the bytes that follow it in its region; (0, 0) outside guest memory."""
    if address < 0:
        return int64(0), int64(0)
    first = int64(port["region_first"])
    count = int64(port["region_count"])
    table = at(t["regions"], t["region_count"], region)
    hint = int64(ring["region"])
    if first <= hint < first + count:
        row = table[hint]
        distance = address - int64(row["guest"])
        if 0 <= distance < int64(row["size"]):
            return int64(row["host"]) + distance, int64(row["size"]) - distance
    low, high = first, first + count
    while low < high:  # the last region that begins at or before the address
        middle = (low + high) // 2
        if int64(table[middle]["guest"]) <= address:
            low = middle + 1
        else:
            high = middle
    if low > first:
        row = table[low - 1]
        distance = address - int64(row["guest"])
        if distance < int64(row["size"]):
            ring["region"] = low - 1
            return int64(row["host"]) + distance, int64(row["size"]) - distance
    return int64(0), int64(0)


@kernel
def append(t: Any, port: Any, ring: Any, pieces: Any, count: int, address: int, length: int) -> int:
    """Append guest buffer (address, length) to `pieces` at `count`; the new count, or NONE if it is not memory.

    An empty buffer must lie in guest memory too, and adds nothing.
    """
    left = length
    while True:
        host, room = translate(t, port, ring, address)
        if room == 0 or count >= len(pieces):
            return NONE
        part = min(left, room)
        if part > 0:
            pieces[count]["address"] = host
            pieces[count]["length"] = part
            count += 1
            left -= part
        if left == 0:
            return count
        address += part


@kernel
def fetch(
    t: Any, port: Any, ring: Any, pieces: Any, count: int, address: int, length: int, scratch: int
) -> int:
    """Host address of `length` contiguous bytes of guest memory, in `scratch` if regions split them; 0 outside."""
    host, room = translate(t, port, ring, address)
    if room >= length:
        return host
    end = append(t, port, ring, pieces, count, address, length)
    if end < 0:
        return 0
    drain(pieces, count, end, scratch, length)
    return scratch


@kernel
def drain(pieces: Any, first: int, end: int, to: int, count: int) -> int:
    """Move `count` bytes off the front of pieces[first:end] to `to`; the index of the first piece still in use."""
    while count > 0 and first < end:
        row = pieces[first]
        part = min(count, int64(row["length"]))
        copy(to, row["address"], part)
        row["address"] += part
        row["length"] -= part
        to += part
        count -= part
        if row["length"] == 0:
            first += 1
    return first


@kernel
def pour(pieces: Any, place: int, used: int, source: int, count: int) -> tuple[int, int]:
    """Copy `count` bytes into `pieces` from byte `used` of piece `place` on; where the next byte goes.

    The caller has made sure that the pieces have room.
    """
    while count > 0:
        row = pieces[place]
        part = min(count, int64(row["length"]) - used)
        copy(int64(row["address"]) + used, source, part)
        source += part
        count -= part
        used += part
        if used == int64(row["length"]) and count > 0:
            place += 1
            used = int64(0)
    return place, used
