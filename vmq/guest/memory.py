# SPDX-License-Identifier: Apache-2.0
"""Guest memory: one memfd, cut into regions with guest addresses of their own, mapped once by us.

    guest      │ region 0 │ region 1 │   hole   │ region 2 │
    file, own  │ region 0 │ region 1 │ region 2 │

Regions stand in the file in the order of their guest addresses, so a buffer that spans two adjacent regions is
contiguous for us too. A user address (vhost-user "Multiple Memory regions description") is our own address.

Memory is handed out from the bottom and never taken back: a guest lives as long as its test or demo. Guest page 0
is not handed out: an address of 0 is then always somebody's mistake.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vmq.jit import address_of

Array = npt.NDArray[Any]
PAGE = mmap.PAGESIZE


class Region(NamedTuple):
    """`size` bytes at guest address `guest`; `own` is our address of them, `offset` their place in the file."""

    guest: int
    size: int
    own: int
    offset: int


def adjacent(total: int, count: int) -> list[tuple[int, int]]:
    """`count` regions (guest address, size) without holes, together at least `total` bytes."""
    size = -(-total // count // PAGE) * PAGE
    return [(index * size, size) for index in range(count)]


class Memory:
    """Guest memory of the regions (guest address, size); `sealed` memory can neither shrink nor grow."""

    def __init__(self, regions: Sequence[tuple[int, int]], *, sealed: bool = True) -> None:
        regions = sorted(regions)
        self.size = sum(size for _, size in regions)
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.size)
            if sealed:
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._map = mmap.mmap(self.fd, self.size)
        except BaseException:
            os.close(self.fd)
            raise
        self._bytes: Array = np.frombuffer(self._map, np.uint8)
        own = address_of(self._bytes)
        offsets = [sum(size for _, size in regions[:index]) for index in range(len(regions))]
        self.regions = tuple(
            Region(guest, size, own + offset, offset)
            for (guest, size), offset in zip(regions, offsets, strict=True)
        )
        self._next = max(self.regions[0].guest, PAGE)

    def allocate(self, size: int, align: int = 64, *, within_region: bool = False) -> int:
        """Guest address of `size` bytes never handed out before. They may span adjacent regions, but no hole."""
        for start in [self._next, *(region.guest for region in self.regions if region.guest > self._next)]:
            guest = -(-start // align) * align
            if self._room(guest, within_region=within_region) >= size:
                self._next = guest + size
                return guest
        raise MemoryError(f"guest memory of {self.size} bytes has no room for {size} more")

    def own(self, guest: int, size: int = 1) -> int:
        """Our address of a guest range; ValueError if it is not all guest memory."""
        if self._room(guest) < size:
            raise ValueError(f"{size} bytes at guest address {guest:#x} are not guest memory")
        region = self._region(guest)
        return region.own + guest - region.guest

    def array(self, guest: int, count: int, dtype: Any) -> Array:
        """`count` items of `dtype` at a guest address, as a view."""
        size = np.dtype(dtype).itemsize * count
        start = self.own(guest, size) - self.regions[0].own
        return self._bytes[start : start + size].view(dtype)

    def read(self, guest: int, size: int) -> bytes:
        return self.array(guest, size, np.uint8).tobytes()

    def write(self, guest: int, data: bytes) -> None:
        self.array(guest, len(data), np.uint8)[:] = np.frombuffer(data, np.uint8)

    def store(self, data: bytes, align: int = 64) -> int:
        """Guest address of a new copy of `data`."""
        guest = self.allocate(len(data), align)
        self.write(guest, data)
        return guest

    def truncate(self, size: int) -> None:
        """Cut the file short under everyone who mapped it; only without seals. We must not touch the rest either."""
        os.ftruncate(self.fd, size)

    def close(self) -> None:
        """Give the memory back, unless somebody still holds a view of it: then that view keeps the mapping."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        del self._bytes
        with contextlib.suppress(BufferError):
            self._map.close()

    def _region(self, guest: int) -> Region:
        return next(region for region in self.regions if 0 <= guest - region.guest < region.size)

    def _room(self, guest: int, *, within_region: bool = False) -> int:
        """Bytes of guest memory from `guest` up to the next hole, or to the end of the region."""
        end = guest
        for region in self.regions:
            if region.guest <= end < region.guest + region.size:
                end = region.guest + region.size
                if within_region:
                    break
        return end - guest
