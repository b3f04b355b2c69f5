# SPDX-License-Identifier: Apache-2.0
"""Smoothed readings: half of what is known goes in a half-life, however often one looks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.dynamic.smooth import Smoother


def test_half_of_what_is_known_is_forgotten_in_a_half_life():
    smoother = Smoother[str](2.0)
    assert smoother.look(10.0, {"a": 100.0}) == {"a": 100.0}
    assert smoother.look(12.0, {"a": 0.0}) == {"a": 50.0}
    assert smoother.look(16.0, {"a": 0.0}) == {"a": 12.5}


def test_who_was_away_begins_anew():
    smoother = Smoother[str](2.0)
    smoother.look(0.0, {"a": 100.0, "b": 1.0})
    assert smoother.look(1.0, {"b": 1.0}) == {"b": 1.0}
    assert smoother.look(2.0, {"a": 3.0, "b": 1.0}) == {"a": 3.0, "b": 1.0}


@given(st.lists(st.floats(0.0, 5.0), max_size=8), st.floats(0.0, 1.0))
def test_the_number_of_looks_does_not_matter(pauses: list[float], reading: float):
    """A clock that stands still forgets nothing."""
    often, once = Smoother[str](2.0), Smoother[str](2.0)
    for smoother in (often, once):
        smoother.look(0.0, {"a": 1.0})
    now, seen = 0.0, 1.0
    for pause in pauses:
        now += pause
        seen = often.look(now, {"a": reading})["a"]
    if pauses:
        assert seen == pytest.approx(once.look(now, {"a": reading})["a"])
