# SPDX-License-Identifier: Apache-2.0
"""Two processors: each delivers to its own guests, and what crosses arrives on the other side."""

from __future__ import annotations

import pytest

from bench.core import compile_kernels
from bench.pairs import GUESTS, Pair


@pytest.fixture(autouse=True)
def compiled() -> None:
    compile_kernels()


def by_processor(pair: Pair) -> list[int]:
    return [pair.arrived(slice(GUESTS * one, GUESTS * (one + 1))) for one in range(2)]


def test_one_processor_alone_fills_its_own_guests() -> None:
    with Pair(crossing=False, count=1024, spans=2) as pair:
        assert pair.rate(1) > 0
        first, second = by_processor(pair)
        assert (first, second > 0) == (0, True)


@pytest.mark.parametrize("crossing", [False, True])
def test_both_together_lose_nothing(crossing: bool) -> None:
    with Pair(crossing=crossing, count=1024, spans=2) as pair:
        assert pair.rate(0, 1) > 0
        assert min(by_processor(pair)) > 0
        assert sum(by_processor(pair)) == pair.forwarded()
        assert int(pair.segment.rows["lane_state"]["account"]["drops"].sum()) == 0
