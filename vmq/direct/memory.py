# SPDX-License-Identifier: Apache-2.0
"""All memory of a guest as one piece of ours, as a UMEM has to be: what regions need of each file, one behind the other.

        files of the memory table:   [file a ............][file b ....][file a ..]        nothing twice, and no more than is needed
        memory of ours, if wanted:                                                [beside ....]

The regions that kernels translate with are mapped one by one (vhost/memory.py), and the same file may be there several times.

The kernel pins the pages that are there when the memory is registered. One that a front-end gives back to the host (a balloon,
free page reporting, virtio-mem, a shorter file) is another page when it is there again, and frames would land in the old one. No message
says so, but the file does: it has fewer blocks as long as the page is not there. (Its times change when a guest touches a page for
the first time, too; and a memfd gives no inotify events since Linux 6.14.) linux-fallocate.2, linux-stat.2
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vmq import linux
from vmq.dataplane.state import span
from vmq.vhost.message import Region

BLOCK = 512  # bytes: linux-stat.2, st_blocks


def files_of(regions: Collection[Region]) -> frozenset[tuple[int, int]]:
    """Device and inode of each."""
    return frozenset(_file(region) for region in regions)


def identity(regions: Collection[Region]) -> tuple[tuple[int, ...], ...]:
    """What is the same as long as the memory is: another front-end may give another file by the same descriptor."""
    return tuple((*_file(region), region.offset, region.gpa, region.size) for region in regions)


def _file(region: Region) -> tuple[int, int]:
    """Device and inode."""
    about = os.fstat(region.fd)
    return about.st_dev, about.st_ino


@dataclass
class Piece:
    """So much of a file as regions need, in whole pages of it, at `place` of the whole."""

    descriptor: int
    file: tuple[int, int]  # device, inode
    page: int
    first: int
    end: int
    place: int = 0

    def has(self, region: Region) -> bool:
        return self.file == _file(region) and self.first <= region.offset < self.end


def pieces(regions: Collection[Region]) -> list[Piece]:
    """What is to be mapped, one behind the other: nothing of a file twice, and nothing that no region names."""
    found: list[Piece] = []
    for region in sorted(regions, key=lambda one: (_file(one), one.offset)):
        file, page = _file(region), max(os.fstat(region.fd).st_blksize, linux.PAGE)
        first, end = region.offset // page * page, -(-(region.offset + region.size) // page) * page
        last = found[-1] if found else None
        if last is not None and last.file == file and first <= last.end:
            last.end = max(last.end, end)
        else:
            found.append(Piece(region.fd, file, page, first, end))
    found.sort(key=lambda one: -one.page)  # each begins at a page of its own
    for before, piece in pairwise(found):
        piece.place = before.place + before.end - before.first
    return found


class GuestMemory:
    """`address`, `size`: the guest's; `spans`: where each region lies in it; `files`: device and inode of each.

    Behind it lie `beside` bytes of ours, whole pages: `whole` bytes in all.
    """

    def __init__(self, regions: Collection[Region], beside: int = 0) -> None:
        self._held = contextlib.ExitStack()
        self._files: dict[int, int] = {}  # descriptor → the most blocks it had
        self._whole: dict[int, int] = {}  # descriptor → blocks with every page of its pieces
        found, self.files = pieces(regions), files_of(regions)
        self.size = sum(piece.end - piece.first for piece in found)
        self.whole = self.size + beside
        page = found[0].page if found else linux.PAGE  # the largest
        room = self.whole + page
        start = linux.map_private(room)
        self._held.callback(linux.unmap, start, room)
        self.address = -(-start // page) * page
        try:
            for piece in found:
                linux.map_over(
                    self.address + piece.place, piece.descriptor, piece.end - piece.first, piece.first
                )
                self._watch(
                    piece.descriptor,
                    sum(one.end - one.first for one in found if one.file == piece.file) // BLOCK,
                )
        except OSError:
            self.close()
            raise
        self.spans = _spans(regions, found)

    def _watch(self, descriptor: int, whole: int) -> None:
        own = os.dup(descriptor)  # the session may close its own
        self._held.callback(os.close, own)
        self._files[own], self._whole[own] = 0, whole

    def registered(self) -> None:
        """The kernel has every page of it by now: where one is not there, it was given back meanwhile."""
        for descriptor, whole in self._whole.items():
            self._files[descriptor] = max(self._files[descriptor], whole)

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
        self._whole.clear()


def _spans(regions: Collection[Region], found: Collection[Piece]) -> npt.NDArray[np.void]:
    """Rows for kernels; the largest region first, as most lies in it."""
    rows = np.zeros(len(regions), span)
    for row, region in zip(rows, sorted(regions, key=lambda one: -one.size), strict=True):
        (piece,) = (piece for piece in found if piece.has(region))
        row["guest"], row["size"] = region.gpa, region.size
        row["place"] = piece.place + region.offset - piece.first
    return rows
