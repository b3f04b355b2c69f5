# SPDX-License-Identifier: Apache-2.0
"""Histograms: every frame of the span in one bin, and percentiles that are never less than the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.running import Running, frame, until
from vmq.control.histograms import BATCH_EDGES, LATENCY_EDGES, measure, percentile
from vmq.control.requests import Measure
from vmq.errors import ApiError
from vmq.guest.guest import Guest


def send(one: Guest, other: Guest, count: int) -> None:
    one.send([frame(other.mac, one.mac, number) for number in range(count)])
    assert len(other.receive(count, 10.0)) == count


def _timed(row: dict[str, Any]) -> int:
    """Frames that were taken before the measurement, and those in bins."""
    return int(sum(row["latency"]) + row["unstamped"])


def test_bins_and_counters_agree_over_a_measurement(tmp_path: Path):
    """Nothing before it, nothing after it; batches are counted always."""
    with Running(tmp_path) as running:
        running.pair()
        with running.guest("a") as one, running.guest("b") as other:
            send(one, other, 4)
            assert running.show("histograms", "b")["frames"] == 0
            before = running.show("queues", "b")["frames_to_guest"]
            running.do(measure, running.engine, Measure(vm="b"))
            for count in (1, 20, 7):
                send(one, other, count)
            # A guest may see a frame before it is counted.
            until(lambda: _timed(running.show("histograms", "b")) == 28)
            row = running.show("histograms", "b")
            assert row["measured"] is True
            assert _timed(row) == row["frames"] == 28
            assert running.show("queues", "b")["frames_to_guest"] - before == 28
            assert 0 < row["mean_ns"] == row["latency_total_ns"] // 28
            assert row["p50_ns"] <= row["p99_ns"] <= row["p999_ns"]
            running.do(measure, running.engine, Measure(vm="b", on=False))
            send(one, other, 2)
            after = running.show("histograms", "b")
            assert (after["measured"], after["latency"]) == (False, row["latency"])
            assert sum(after["batches"]) == running.show("queues", "b")["indications"]
            assert running.show("histograms", "a")["latency"] == [0] * len(row["latency"])


def test_nobody_else_is_measured(tmp_path: Path):
    with Running(tmp_path) as running:
        running.pair()
        with pytest.raises(ApiError, match="no VM 'c'") as refused:
            running.do(measure, running.engine, Measure(vm="c"))
        assert refused.value.status == "INVALID_PARAMETER"


@given(st.lists(st.integers(0, 1 << 30), min_size=1, max_size=200), st.sampled_from([0.5, 0.99, 0.999]))
def test_a_percentile_is_above_the_truth_and_below_twice_it(times: list[int], share: float):
    """But for what is below the first edge."""
    bins = [0] * (len(LATENCY_EDGES) + 1)
    for time in times:
        bins[next(place for place, edge in enumerate([*LATENCY_EDGES, 1 << 62]) if time < edge)] += 1
    found = percentile(bins, LATENCY_EDGES, share)
    rank = next(number for number in range(1, len(times) + 1) if number >= share * len(times))
    truth = sorted(times)[rank - 1]
    assert found is not None
    assert truth < found <= max(2 * truth, LATENCY_EDGES[0])


def test_a_percentile_of_nothing_or_beyond_the_last_edge_is_unknown():
    assert percentile([0, 0], [1], 0.5) is None
    assert percentile([1, 9], [1], 0.5) is None
    assert percentile([1, 9], [1], 0.1) == 1


def test_edges_are_those_of_the_kernels():
    assert (LATENCY_EDGES[0], LATENCY_EDGES[-1]) == (512, 1 << 31)
    assert (BATCH_EDGES[0], BATCH_EDGES[-1]) == (2, 128)
