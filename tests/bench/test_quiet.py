# SPDX-License-Identifier: Apache-2.0
"""The load of others, from the counters of the kernel."""

from __future__ import annotations

from bench.quiet import load, ticks, wait

STAT = "cpu  100 5 45 800 30 10 5 5 7 0\ncpu0 50 0 20 400 0 0 0 0 0 0\n"


def test_time_waiting_for_disks_is_idle_and_time_of_guests_counts_once() -> None:
    """What guests take (the ninth number) is in user already."""
    assert ticks(STAT) == (830, 1000)


def test_load_is_the_share_of_a_span() -> None:
    looks = iter([(100, 1000), (175, 1100)])

    assert load(lambda: next(looks), 0.0) == 0.25


def test_quiet_machine_is_waited_for_and_not_for_ever() -> None:
    shares = iter([0.9, 0.5, 0.05])

    assert wait(60.0, lambda: next(shares)) == 0.05
    assert wait(0.0, lambda: 0.9) == 0.9
