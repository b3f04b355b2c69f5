# SPDX-License-Identifier: Apache-2.0
"""A guest that changes its memory while the device reads it: two values in turn, as fast as a processor can.

The flipping runs in compiled code on a thread of its own, so it races with the device even when the device is in
the same process. Each value is whole when it is one machine word; longer ones may be seen torn, which is the point.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from vmq.abi.layout import i64, layout, rows
from vmq.guest.memory import Memory
from vmq.guest.rings import private
from vmq.jit import address_of, at, compile_for, copy, fence, kernel, load_acquire

FLIP = layout(32, ("to", i64), ("first", i64), ("second", i64), ("count", i64))
RACE = rows(("stop", i64), ("flips", i64), ("flip_count", i64), ("rounds", i64))
START_SECONDS = 10.0


@kernel
def flip(address: int) -> None:
    """Write the first and the second value of every flip in turn until told to stop; end with the first."""
    race = at(address, 1, RACE)[0]
    flips = at(race["flips"], race["flip_count"], FLIP)
    while not load_acquire(race, "stop"):
        race["rounds"] += 1
        for index in range(race["flip_count"]):
            copy(flips[index]["to"], flips[index]["second"], flips[index]["count"])
        fence()  # neither value is a dead store
        for index in range(race["flip_count"]):
            copy(flips[index]["to"], flips[index]["first"], flips[index]["count"])
        fence()


def compile_kernels() -> None:
    compile_for(flip, "int64")


class Flip(NamedTuple):
    """Bytes at a guest address that are now `first`, now `second`."""

    guest: int
    first: bytes
    second: bytes


class Race:
    """A context in which some bytes of guest memory flip."""

    def __init__(self, memory: Memory, flips: Sequence[Flip]) -> None:
        self._values = [(np.frombuffer(f.first, np.uint8), np.frombuffer(f.second, np.uint8)) for f in flips]
        self._flips = private(len(flips), FLIP)
        for row, one, (first, second) in zip(self._flips, flips, self._values, strict=True):
            if len(first) != len(second):
                raise ValueError("the two values of a flip have one length")
            row["to"], row["count"] = memory.own(one.guest, len(first)), len(first)
            row["first"], row["second"] = address_of(first), address_of(second)
        self._row = private(1, RACE)
        self._row["flips"], self._row["flip_count"] = address_of(self._flips), len(flips)
        self._thread = threading.Thread(target=flip, args=(address_of(self._row),), name="race")

    @property
    def rounds(self) -> int:
        return int(self._row["rounds"][0])

    def __enter__(self) -> Self:
        compile_kernels()
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self.rounds and time.monotonic() < deadline:  # what happens inside, happens while they flip
            time.sleep(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._row["stop"] = 1
        self._thread.join()
