# SPDX-License-Identifier: Apache-2.0
"""What a measurement comes to."""

from __future__ import annotations

from typing import Any

import pytest

from vmq.speed.trial import Trial, compared, in_words, jain, medians, noisy


def test_figures_are_by_frame_and_by_second() -> None:
    record = Trial(1000, 2.0, (3_000_000, 1_000_000), 1e9, 2e9, 100.0, 200.0).record()

    assert record["frames_a_second"] == 2_000_000
    assert record["gigabits_a_second"] == 16.0
    assert record["host_ns_a_frame"] == 250.0
    assert record["guest_ns_a_frame"] == 500.0
    assert record["total_ns_a_frame"] == 750.0
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
    assert found["guest_ns_a_frame"] is found["total_ns_a_frame"] is None
    assert found["ranges"]["host_ns_a_frame"] == (10.0, 45.0)
    assert "guest_ns_a_frame" not in found["ranges"]


def test_without_a_time_there_is_a_cost_and_no_rate() -> None:
    record = Trial(64, None, (10,), 2000.0).record()
    assert record["host_ns_a_frame"] == 200.0
    assert record["frames_a_second"] is record["gigabits_a_second"] is record["host_cpu_percent"] is None


def costs(*ns: float) -> dict[str, Any]:
    return medians([Trial(64, 1.0, (1,), one) for one in ns])


@pytest.mark.parametrize(
    ("ns", "said"),
    [
        ((90.0, 100.0, 110.0), "100.00 (90.00–110.00)"),
        ((100.0, 100.0), "100.00"),
        ((70.0, 100.0, 130.0), "100.00 (70.00–130.00)"),
        ((69.0, 100.0, 130.0), "noisy: 69.00–130.00"),
    ],
)
def test_a_median_has_its_range_and_too_wide_a_range_no_median(ns: tuple[float, ...], said: str) -> None:
    assert in_words(costs(*ns), "host_ns_a_frame") == said
    assert noisy(costs(*ns), "host_ns_a_frame") == said.startswith("noisy")


def test_a_single_measurement_is_a_number() -> None:
    record = Trial(64, 1.0, (1,), 2000.0).record()
    assert in_words(record, "host_ns_a_frame", 1e-3) == 2.0
    assert in_words(record, "p50_ns") is None


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ((190, 200, 210), (95, 100, 105), "2.00 × (1.81–2.21)"),
        ((80, 83, 90), (95, 100, 105), "0.83 × (0.76–0.95)"),
        ((95, 98, 100), (99, 100, 105), "too close to tell (0.90–1.01)"),
        ((100, 200, 300), (10, 10, 10), "too noisy to tell"),
        ((10, 10, 10), (100, 200, 300), "too noisy to tell"),
    ],
)
def test_a_comparison_tells_only_what_the_runs_do(one: Any, other: Any, said: str) -> None:
    assert compared(costs(*one), costs(*other), "host_ns_a_frame") == said
