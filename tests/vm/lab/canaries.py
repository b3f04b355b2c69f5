# SPDX-License-Identifier: Apache-2.0
"""A guest whose whole memory is known: each byte is a pattern, a ring, or a frame that it was due.

    pattern of its own everywhere ─► rings zero ─► start ─► `gets` writes each due frame into the model ─► `check`

The pattern says where it stands, so that bytes of memory that were copied to another place are seen as well. `check`
compares memory with the model outside the rings: buffers that were posted and not used, what is behind a frame in its
buffer, what was never posted. A frame that is too much is one that nobody is due.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from tests.hostile.arena import MACS, PATIENCE
from vmq.abi.virtio import split_ring_bytes
from vmq.guest.driver import HEADER
from vmq.guest.guest import Guest, wait_for_calls
from vmq.guest.rings import Virtqueue

COUNT = slice(HEADER - 2, HEADER)  # of its buffers, in the packet header of a frame
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # neighbouring words have nothing in common
KIND = b"\x88\xb5"
TO, SOURCE, NUMBER = slice(0, 6), slice(6, 12), slice(14, 18)
ANY_TIME = "02:00:00:00:00:78"  # whose frames come or do not: they are sent while their guest comes and goes
LATE = bytes.fromhex(ANY_TIME.replace(":", ""))


def pattern(size: int, seed: int) -> Any:
    """Bytes each eight of which say where they stand, and whose they are."""
    words = np.arange(1, size // 8 + 1, dtype=np.uint64) * SPREAD + np.uint64(seed)
    return (words ^ (words >> np.uint64(29))).view(np.uint8)


def secret(whose: str) -> bytes:
    """Sixteen bytes that are in frames to `whose` and in no others."""
    return hashlib.sha256(whose.encode()).digest()[:16]


def letter(to: str, source: str, number: int, size: int, whose: str = "") -> bytes:
    """A frame with its number, and from there on full of the secret of `whose` (of `to`); names or addresses."""
    addresses = "".join(MACS.get(name, name) for name in (to, source)).replace(":", "")
    head = bytes.fromhex(addresses) + KIND + number.to_bytes(4, "big")
    return (head + secret(whose or to) * (size // 16 + 1))[:size]


class Watched:
    """A guest at VM port `name`; `model` is what its memory has to be, outside of its rings."""

    def __init__(self, folder: Path, name: str, seed: int = 0, **options: Any) -> None:
        self.name, self.number = name, 0
        path = folder / f"{name}.sock"
        self.guest = Guest(path, MACS[name], room=1 << 17, timeout=PATIENCE, **options)
        self.memory: Any = self.guest.memory.array(0, self.guest.memory.size, np.uint8)
        self.rings = np.zeros(len(self.memory), bool)
        self.spilt: tuple[int, bytes] = 0, b""  # from where on a posted buffer may begin like this
        for one in self.guest.virtqueues:
            places = one.desc_guest, one.avail_guest, one.used_guest
            for place, length in zip(places, split_ring_bytes(one.size), strict=True):
                self.rings[place : place + length] = True
        self.fill(seed)

    @property
    def incoming(self) -> Virtqueue:
        return self.guest.virtqueue(to_guest=True)

    def fill(self, seed: int) -> None:
        """The pattern everywhere but in the rings; from here on nothing else is due."""
        self.model = pattern(len(self.memory), seed)
        self.memory[~self.rings] = self.model[~self.rings]

    def start(self) -> Self:
        self.guest.start()
        return self

    def letters(self, source: str, sizes: Sequence[int]) -> list[bytes]:
        """Its next frames, one of each size."""
        self.number += len(sizes)
        first = self.number - len(sizes)
        return [letter(self.name, source, first + place, size) for place, size in enumerate(sizes)]

    def gets(self, frames: Sequence[bytes], *, in_order: bool = True) -> None:
        """Wait for exactly these frames, each in as many buffers as it needs, behind its packet header.

        In order are those to the same address: copies for all come by another way.
        """
        left, ring = list(frames), self.incoming
        deadline = time.monotonic() + PATIENCE
        while True:
            self._take(left, in_order=in_order)
            if not left:
                return
            seconds = deadline - time.monotonic()
            assert seconds > 0, f"{self.name}: {len(left)} of {len(frames)} missing"
            wait_for_calls([ring], seconds)

    def _take(self, left: list[bytes], *, in_order: bool) -> None:
        """What has come, off the list of what is due."""
        read, came = self.guest.memory.read, iter(self.incoming.harvest())
        for slot, length in came:
            more = int.from_bytes(read(self.incoming.buffer(slot), HEADER)[COUNT], "little") - 1
            used = [(slot, length), *islice(came, more)]
            data = b"".join(read(self.incoming.buffer(slot), length) for slot, length in used)
            needed = -(-len(data) // self.incoming.shape.buffer_bytes)
            assert data[:HEADER] == bytes(HEADER - 2) + needed.to_bytes(2, "little")
            frame = data[HEADER:]
            if frame[SOURCE] == LATE:
                assert frame == letter(self.name, ANY_TIME, int.from_bytes(frame[NUMBER]), len(frame))
            else:
                assert left, f"{self.name} got a frame that is not due: {frame.hex()}"
                assert frame == left.pop(self._place(left, frame, in_order=in_order))
            self._keep(data, used)

    def _keep(self, data: bytes, used: Sequence[tuple[int, int]]) -> None:
        """A frame stands in these buffers from now on, which are the device's again."""
        first = 0
        for slot, length in used:
            place = self.incoming.buffer(slot)
            self.model[place : place + length] = np.frombuffer(data[first : first + length], np.uint8)
            first += length
            self._post(slot)

    @staticmethod
    def _place(left: list[bytes], frame: bytes, *, in_order: bool) -> int:
        """Which of those that are due it has to be."""
        alike = [
            place for place, one in enumerate(left) if one[TO] == frame[TO] and (in_order or one == frame)
        ]
        return alike[0] if alike else 0

    def _post(self, slot: int) -> None:
        ring = self.incoming
        ring.describe(slot, ring.buffer(slot), ring.shape.buffer_bytes)
        ring.submit([slot])

    def gives_up(self) -> None:
        """From here on nothing is due, and nobody may write: what stands there, rings and all, stays."""
        self.rings[:] = False
        self.model = self.memory.copy()

    def check(self, others: Collection[str]) -> None:
        """Nothing more has come, no byte is another than it has to be, and no secret of others is anywhere."""
        self._take([], in_order=True)
        self.is_whole()
        self.has_no_secret_of(others)

    def is_whole(self, *outside: tuple[int, int]) -> None:
        """The model is what stands there, but in the rings and `outside` (address, bytes)."""
        changed = (self.memory != self.model) & ~self.rings & ~self._spilt()
        for place, length in outside:
            changed[place : place + length] = False
        places = np.flatnonzero(changed)
        assert not len(places), f"{self.name}: {len(places)} bytes changed, the first at {places[0]:#x}"

    def _spilt(self) -> Any:
        """Where a posted buffer has what may stand at its beginning."""
        found, ring = np.zeros(len(self.memory), bool), self.incoming
        (first, data), each = self.spilt, ring.shape.buffer_bytes
        place, part = slice(ring.buffers_guest, ring.buffers_guest + ring.slots * each), slice(first, each)
        buffers, same = self.memory[place].reshape(-1, each), found[place].reshape(-1, each)
        same[:, first : len(data)] = buffers[:, first : len(data)] == np.frombuffer(data[part], np.uint8)
        return found

    def has_no_secret_of(self, others: Collection[str]) -> None:
        """Nowhere, rings and buffers included; any eight bytes of one would be seen."""
        whole = self.memory.tobytes()
        for other in others:
            twice = 2 * secret(other)
            assert not any(twice[step : step + 8] in whole for step in range(16)), (
                f"{self.name} has of {other}'s"
            )

    def close(self) -> None:
        del self.memory
        self.guest.close()
