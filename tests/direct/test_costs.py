# SPDX-License-Identifier: Apache-2.0
"""From which length on direct placement pays, by figures that are given: never, always, and what noise does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.direct.costs import MARGIN, Band, Cost, Spent, band, crossing

LENGTHS = (64, 512, 1024, 1514)
NOBODY = "by nobody"


def cost(length: int, gains: Sequence[float]) -> Cost:
    """Of which direct placement gains so much, round by round."""
    count = len(gains)
    switched = Spent((500.0,) * count, tuple(100.0 + gain for gain in gains))
    return Cost(length, switched, Spent((550.0,) * count, (50.0,) * count))


def steady(*gains: float) -> list[Cost]:
    """One gain for each length, the same in all rounds."""
    return [cost(length, [gain] * 3) for length, gain in zip(LENGTHS, gains, strict=True)]


gains = st.floats(-500, 500).map(lambda value: round(value, 3))
several = st.lists(gains, min_size=3, max_size=9)
tables = st.tuples(*(several for _ in LENGTHS)).map(
    lambda rounds: [cost(length, found) for length, found in zip(LENGTHS, rounds, strict=True)]
)


def test_where_the_lines_cross_it_begins_to_pay() -> None:
    found = band(steady(-100, -50, -10, 30), NOBODY)
    at = 1024 + 490 * 10 / 40

    assert found == (at - MARGIN, at + MARGIN, NOBODY)
    assert found.words() == f"direct placement pays from {at + MARGIN:.0f} on, by nobody"


@pytest.mark.parametrize(
    ("gained", "wanted", "words"),
    [
        ((-100, -100, -100, -1), (math.inf, math.inf), "for no length"),
        ((100, 100, 100, 0), (math.inf, math.inf), "for no length"),
        ((1, 1, 1, 1), (0, 0), "for all lengths"),
    ],
)
def test_never_and_always_are_answers(
    gained: tuple[float, ...], wanted: tuple[float, float], words: str
) -> None:
    found = band(steady(*gained), NOBODY)
    assert found[:2] == wanted
    assert words in found.words()


def test_what_rounds_disagree_about_is_between() -> None:
    """Of three rounds 100 ns apart a quarter is 50 ns from the median."""
    costs = [
        cost(length, [at - 100, at, at + 100])
        for length, at in zip(LENGTHS, (-80, -60, -20, 80), strict=True)
    ]
    assert band(costs, NOBODY)[:2] == pytest.approx((512 + 512 * 10 / 40, 1024 + 490 * 70 / 100))


def test_of_rounds_that_do_not_agree_on_the_longest_only_the_longest_is_direct() -> None:
    costs = [cost(length, [-50, -50, -50]) for length in LENGTHS[:3]] + [cost(1514, [-40, 20, 30])]
    assert band(costs, NOBODY).long == LENGTHS[-1]


def test_a_crossing_is_the_last_one() -> None:
    assert crossing([(100, 10.0), (200, -10.0), (300, 10.0)]) == 250
    assert crossing([(100, 10.0), (200, 0.0), (300, 10.0)]) == 200
    assert crossing([(100, -10.0), (200, 10.0), (300, 10.0)]) == 150


@given(tables)
def test_a_band_has_two_sides_and_lies_among_the_lengths(costs: list[Cost]) -> None:
    found = band(costs, NOBODY)
    assert isinstance(found, Band)
    assert found.short <= found.long
    if found.long < math.inf:
        assert 0 <= found.short < LENGTHS[-1]
        assert 0 <= found.long <= LENGTHS[-1]
    assert found.words()


@given(tables, st.floats(0, 300))
def test_who_gains_more_is_direct_no_later(costs: list[Cost], more: float) -> None:
    better = [cost(one.length, [gain + more for gain in one.gains()]) for one in costs]
    worse, found = band(costs, NOBODY), band(better, NOBODY)
    assert found.long <= worse.long + 1e-6
    assert found.short <= worse.short + 1e-6


@given(st.lists(gains, min_size=2, max_size=8))
def test_beyond_a_crossing_every_gain_is_one(values: list[float]) -> None:
    points = [(100 * number, value) for number, value in enumerate(values, 1)]
    at = crossing(points)
    assert all(value > 0 for length, value in points if length > at)
    assert at in (0, math.inf) or any(value <= 0 for length, value in points if length <= at)
