# SPDX-License-Identifier: Apache-2.0
"""Flipping memory."""

from __future__ import annotations

import time

import pytest

from vmq.guest.memory import Memory, adjacent
from vmq.guest.race import Flip, Race


@pytest.fixture
def memory():
    one = Memory(adjacent(1 << 16, 1))
    yield one
    one.close()


def test_both_values_are_seen_and_the_first_stays(memory):
    place = memory.allocate(8)
    values = (1).to_bytes(8, "little"), (2**64 - 1).to_bytes(8, "little")
    seen: set[bytes] = set()
    with Race(memory, [Flip(place, *values)]) as race:
        deadline = time.monotonic() + 10
        while len(seen & set(values)) < 2 and time.monotonic() < deadline:
            seen.add(memory.read(place, 8))
        assert race.rounds
    assert seen >= set(values)
    assert memory.read(place, 8) == values[0]


def test_values_have_one_length(memory):
    with pytest.raises(ValueError, match="one length"):
        Race(memory, [Flip(memory.allocate(8), b"1", b"22")])
