# SPDX-License-Identifier: Apache-2.0
"""What a measurement comes to."""

from __future__ import annotations

import pytest

from vmq.speed.trial import Trial, jain, medians


def test_figures_are_by_frame_and_by_second() -> None:
    record = Trial(1000, 2.0, (3_000_000, 1_000_000), 1e9, 2e9, 100.0, 200.0).record()

    assert record["frames_a_second"] == 2_000_000
    assert record["gigabits_a_second"] == 16.0
    assert record["host_ns_a_frame"] == 250.0
    assert record["guest_ns_a_frame"] == 500.0
    assert record["host_cpu_percent"] == 50.0
    assert record["fairness"] == 0.8
    assert (record["p50_ns"], record["p99_ns"]) == (100.0, 200.0)


@pytest.mark.parametrize(("shares", "index"), [((5, 5, 5, 5), 1.0), ((1, 0, 0, 0), 0.25), ((0, 0), 0.0)])
def test_fairness_is_jains(shares: tuple[int, ...], index: float) -> None:
    assert jain(shares) == index


def test_of_several_trials_the_median_of_each_number() -> None:
    trials = [Trial(64, 1.0, (count,), cost, None) for count, cost in ((10, 100.0), (20, 900.0), (30, 600.0))]
    found = medians(trials)

    assert found["frames_a_second"] == 20
    assert found["host_ns_a_frame"] == 20.0
    assert found["guest_ns_a_frame"] is None
