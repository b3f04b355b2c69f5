# SPDX-License-Identifier: Apache-2.0
"""A rate is of the guests' own clocks."""

from __future__ import annotations

from bench.guests import rate


def test_rates_of_guests_are_added_each_by_its_own_clock() -> None:
    assert rate([(100, 1.0), (0, 5.0)], [(300, 2.0), (100, 5.5)]) == 400.0


def test_guest_that_said_nothing_new_adds_nothing() -> None:
    assert rate([(100, 1.0)], [(100, 1.0)]) == 0.0
