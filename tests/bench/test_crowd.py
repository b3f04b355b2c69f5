# SPDX-License-Identifier: Apache-2.0
"""Several guests of one loop: they send, receive, stop; and what a frame's time on its way is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.crowd import (
    AWAY_NS,
    BUCKETS,
    CROWD,
    RING_SIZE,
    STAMP,
    SUBS,
    Crowd,
    bucket,
    due,
    middle,
    percentile_of,
    skip,
)
from bench.systems import SOURCE, Served, mac, udp_frame
from tests.engine.running import Running, until
from vmq.guest.flood import FLOOD, NS

COUNT = 300


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Two VMs on a segment without an uplink, of an engine in this process."""
    with Running(tmp_path) as running:
        running.configure(**{f"v{n}": running.vm(f"v{n}", mac=(mac(n),)) for n in range(2)})
        yield Served([Path(running.path(f"v{n}")) for n in range(2)], False, tmp_path / "log")
        running.configure()


def frames(to: str) -> list[bytes]:
    return [udp_frame(to, mac(0), number, number, 64) for number in range(COUNT)]


def test_one_loop_drives_a_sender_and_a_receiver(served: Served) -> None:
    """Everything is verified in order, and comes back; nothing moves any more after `settle`."""
    before = threading.active_count()
    options: dict = {0: {"limit": 2 * COUNT, "window": 64}, 1: {"expected": frames(mac(1))}}
    with Crowd(served, {0: frames(mac(1))}, options=options) as crowd:
        assert crowd.count("sent") == 0
        crowd.hold(on=False)
        until(lambda: crowd.count("sent") == 2 * COUNT)
        assert crowd.settle()
        assert crowd.count("verified") == 2 * COUNT
        assert [count for count, _ in crowd.meter()] == [0, 2 * COUNT]
        assert not crowd.times.any()
    assert threading.active_count() == before


def test_stamped_pair_notes_a_time_for_each_frame(served: Served) -> None:
    options: dict = {0: {"limit": COUNT, "rate": 100_000}}
    with Crowd(served, {0: frames(mac(1))}, stamped=True, options=options) as crowd:
        crowd.hold(on=False)
        until(lambda: crowd.count("sent") == COUNT)
        assert crowd.settle()
        assert crowd.count("frames") == COUNT
        assert crowd.times.sum() == COUNT
        assert percentile_of(crowd.times, 0.5) > 0


def test_frame_that_cannot_be_delivered_is_missing_at_the_receiver(served: Served) -> None:
    with Crowd(served, {0: frames(SOURCE)}, options={0: {"limit": COUNT}}) as crowd:
        crowd.hold(on=False)
        until(lambda: crowd.count("sent") == COUNT)
        assert crowd.settle()
        assert (crowd.count("returned"), crowd.count("stray")) == (COUNT, crowd.count("frames"))


def test_the_place_of_the_clock_is_behind_the_headers_and_before_the_number() -> None:
    assert 14 + 20 + 8 <= STAMP <= 64 - 4 - 8


@pytest.mark.interpreted
@pytest.mark.parametrize("value", [0, 1, 63, 64, 65, 127, 128, 1000, 12345, 10**6, 10**9])
def test_bucket_is_3_per_cent_wide(value: int) -> None:
    assert abs(middle(int(bucket(value))) - value) <= value / (2 * SUBS) + 0.5
    assert bucket(value) <= bucket(value + 1) <= bucket(value) + 1


@pytest.mark.interpreted
def test_time_beyond_all_buckets_is_in_the_last() -> None:
    assert bucket(1 << 62) == BUCKETS - 1


@pytest.mark.parametrize(("rate", "left"), [(1_000_000, RING_SIZE), (500, 500), (0, 0)])
def test_what_is_due_beyond_a_ring_is_skipped_and_counted(rate: int, left: int) -> None:
    """A second behind its rate; without a rate there is nothing to be behind."""
    row, flood = np.zeros(1, CROWD), np.zeros(1, FLOOD)
    flood["rate"], flood["elapsed_ns"], row["looked"] = rate, NS, NS - AWAY_NS
    skip(row[0], flood[0])

    assert int(flood["elapsed_ns"][0]) * rate // NS == left
    assert flood["elapsed_ns"] + flood["started_ns"] == NS
    assert row["skipped"] == rate - left


def test_what_becomes_due_while_the_loop_does_not_run_is_not_offered() -> None:
    """Half a second of the second that is missing: the loop was there for the other half, and the ring was full."""
    row, flood = np.zeros(1, CROWD), np.zeros(1, FLOOD)
    flood["rate"], flood["elapsed_ns"], row["looked"] = 1_000_000, NS, NS // 2
    skip(row[0], flood[0])

    assert row["skipped"] == 500_000 - RING_SIZE
    assert int(flood["elapsed_ns"][0]) // 1000 == RING_SIZE
    assert row["looked"] == NS


@pytest.mark.parametrize("sent", [0, 3 * RING_SIZE])
def test_what_is_due_while_held_is_not_offered(sent: int) -> None:
    """Nor is it skipped; the schedule goes on, or back, to what was sent, of the rate that is set by then."""
    row, flood = np.zeros(1, CROWD), np.zeros(1, FLOOD)
    flood["rate"], flood["elapsed_ns"], flood["hold"], flood["sent"] = 1000, NS, 1, sent
    skip(row[0], flood[0])

    assert flood["elapsed_ns"] == sent * NS // 1000
    assert flood["elapsed_ns"] + flood["started_ns"] == NS
    assert [int(row[name][0]) for name in ("skipped", "paced")] == [0, 1000]


def test_frame_is_due_by_the_schedule_however_late_it_is_shown() -> None:
    flood = np.zeros(1, FLOOD)
    flood["rate"], flood["started_ns"], flood["sent"], flood["elapsed_ns"] = 1000, 5, 10, NS

    assert [due(flood[0], later) for later in range(2)] == [5 + 11 * NS // 1000, 5 + 12 * NS // 1000]


def test_without_a_rate_a_frame_is_due_when_it_is_shown() -> None:
    flood = np.zeros(1, FLOOD)
    flood["started_ns"], flood["elapsed_ns"], flood["sent"] = 5, NS, 10

    assert due(flood[0], 3) == 5 + NS


def test_pair_that_is_paced_anew_skips_nothing(served: Served) -> None:
    """From as fast as it goes to a slow rate, and to a higher one."""
    with Crowd(served, {0: frames(mac(1))}, stamped=True) as crowd:
        for rate in (0, 2000, 4000):
            crowd.pace(rate)
            before = crowd.count("sent")
            crowd.hold(on=False)
            until(lambda before=before: crowd.count("sent") > before)  # type: ignore[misc]
        assert crowd.settle()
        assert crowd.times.sum() == crowd.count("frames")
        assert crowd.skipped == 0


def test_percentiles_of_buckets() -> None:
    times = np.zeros(BUCKETS, np.int64)
    times[10], times[bucket(2000)] = 99, 1

    assert percentile_of(times, 0.5) == percentile_of(times, 0.99) == 0.01
    assert percentile_of(times, 0.999) == pytest.approx(2, rel=0.02)
    assert percentile_of(times, 1) == pytest.approx(2, rel=0.02)
    with pytest.raises(ValueError, match="no time"):
        percentile_of(np.zeros(BUCKETS, np.int64), 0.5)
