# SPDX-License-Identifier: Apache-2.0
"""All memory of a guest as one piece of ours, as a UMEM has to be: each file once, one behind the other.

        files of the memory table:   [file a ............][file b ....]        a region lies at its offset in its file

The regions that kernels translate with are mapped one by one (vhost/memory.py), and the same file may be there several times.

The kernel pins the pages that are there when the memory is registered. One that a front-end gives back to the host (a balloon,
free page reporting, virtio-mem, a shorter file) is another page when it is there again, and frames would land in the old one. No message
says so, but the file does: it has fewer blocks as long as the page is not there. (Its times change when a guest touches a page for
the first time, too; and a memfd gives no inotify events since Linux 6.14.) linux-fallocate.2
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from vmq import linux
from vmq.dataplane.state import span
from vmq.vhost.message import Region


def identity(regions: Collection[Region]) -> tuple[tuple[int, ...], ...]:
    """What is the same as long as the memory is: another front-end may give another file by the same descriptor."""
    found = []
    for region in regions:
        about = os.fstat(region.fd)
        found.append((about.st_dev, about.st_ino, region.offset, region.gpa, region.size))
    return tuple(found)


class GuestMemory:
    """`address`, `size`: the whole; `spans`: where each region lies in it."""

    def __init__(self, regions: Collection[Region]) -> None:
        files: dict[tuple[int, int], tuple[int, int, int]] = {}  # (device, inode) → descriptor, length, place
        self.size = 0
        self._held = contextlib.ExitStack()
        self._files: dict[int, int] = {}  # descriptor → the most blocks it had
        for region in regions:
            about = os.fstat(region.fd)
            known = about.st_dev, about.st_ino
            if known not in files:
                length = -(-about.st_size // linux.PAGE) * linux.PAGE
                files[known] = region.fd, length, self.size
                self.size += length
        self.address = linux.map_private(self.size)
        try:
            for descriptor, length, place in files.values():
                linux.map_over(self.address + place, descriptor, length)
                self._watch(descriptor)
        except OSError:
            self.close()
            raise
        self.spans = _spans(regions, {known: place for known, (_, _, place) in files.items()})

    def _watch(self, descriptor: int) -> None:
        own = os.dup(descriptor)  # the session may close its own
        self._held.callback(os.close, own)
        self._files[own] = 0

    def is_torn(self) -> bool:
        """Whether pages of it are not there that were when this was asked before."""
        for descriptor, most in self._files.items():
            blocks = os.fstat(descriptor).st_blocks
            if blocks < most:
                return True
            self._files[descriptor] = blocks
        return False

    def close(self) -> None:
        """Give it back; nobody looks there any more. It may be called again."""
        self._held.close()
        self._files.clear()
        if self.size:
            linux.unmap(self.address, self.size)
            self.size = 0


def _spans(regions: Collection[Region], places: Mapping[tuple[int, int], int]) -> npt.NDArray[np.void]:
    """Rows for kernels; the largest region first, as most lies in it."""
    rows = np.zeros(len(regions), span)
    for row, region in zip(rows, sorted(regions, key=lambda one: -one.size), strict=True):
        about = os.fstat(region.fd)
        place = places[about.st_dev, about.st_ino] + region.offset
        row["guest"], row["size"], row["place"] = region.gpa, region.size, place
    return rows
