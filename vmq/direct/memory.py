# SPDX-License-Identifier: Apache-2.0
"""All memory of a guest as one piece of ours, as a UMEM has to be: each file once, one behind the other.

        files of the memory table:   [file a ............][file b ....]        a region lies at its offset in its file

The regions that kernels translate with are mapped one by one (vhost/memory.py), and the same file may be there several times.
"""

from __future__ import annotations

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
        except OSError:
            self.close()
            raise
        self.spans = _spans(regions, {known: place for known, (_, _, place) in files.items()})

    def close(self) -> None:
        """Give it back; nobody looks there any more. It may be called again."""
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
