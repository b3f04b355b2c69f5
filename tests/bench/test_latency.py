# SPDX-License-Identifier: Apache-2.0
"""Times of frames: the rate that we carry without loss, the same offer to both, no times where it was not carried."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import latency as latency_
from bench.crowd import BUCKETS, Crowd
from bench.delivery import RefusedError
from bench.latency import PERCENTILES, TOLERANCE, Passage, carries, latency, passed, without_loss
from bench.systems import Counts, Served, mac, udp_frame
from tests.engine.running import Running

TIMES = dict.fromkeys(PERCENTILES, 5.0)


@pytest.mark.parametrize("limit", [0.3, 5.0, 9.99, 20.0])
def test_search_finds_the_highest_rate_without_loss(limit: float) -> None:
    tried: list[float] = []

    def try_(rate: float, _seconds: float) -> bool:
        tried.append(rate)
        return rate <= limit

    found = without_loss(try_, 10.0)

    assert min(limit, 10) - 10 * TOLERANCE <= found <= limit
    assert len(tried) == 7  # six halvings, one confirmation


def test_rate_that_a_longer_trial_does_not_confirm_is_lowered() -> None:
    found = without_loss(lambda rate, seconds: rate < (9 if seconds == latency_.TRIAL_SECONDS else 8.5), 10.0)

    assert 8 < found < 8.5


@pytest.mark.parametrize("short_only", [False, True])
def test_search_without_a_rate_that_is_carried_is_refused(short_only: bool) -> None:
    with pytest.raises(RefusedError, match=r"no rate below 10\.00 Mpps"):
        without_loss(lambda _rate, seconds: short_only and seconds == latency_.TRIAL_SECONDS, 10.0)


@pytest.mark.parametrize(
    ("sent", "arrived", "short"),
    [(10, 10, ""), (9.95, 9.92, ""), (9.8, 9.8, "took 9.80 of 10.00"), (10, 9.8, "delivered 9.80 of 10.00")],
)
def test_run_that_fell_short_has_no_times(sent: float, arrived: float, short: str) -> None:
    told = Passage(10, sent, arrived, TIMES)

    assert told.short.startswith(short)
    assert bool(told.short) == bool(short)


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, float]]]:
    """What each system delivers of the offer, run by run; what was offered."""

    def set_up(**shares: list[float]) -> list[tuple[str, float]]:
        offers: list[tuple[str, float]] = []
        runs = {system: iter(several) for system, several in shares.items()}

        def told(system: str, offered: float) -> Passage:
            offers.append((system, offered))
            return Passage(offered, offered, next(runs[system]) * offered, TIMES)

        monkeypatch.setattr(latency_, "passage", told)
        monkeypatch.setattr(latency_, "own_rate", partial(float, 10))
        monkeypatch.setattr("bench.quiet.wait", partial(float, 0))
        return offers

    return set_up


def test_latency_is_told_at_a_share_of_our_own_rate(offer: Callable[..., list[tuple[str, float]]]) -> None:
    """Both systems are offered the same, whatever they can do."""
    offers = offer(vmq=[1, 1], ovs=[1, 1])
    figures = latency(50, 2)

    assert offers == [("vmq", 5.0), ("ovs", 5.0)] * 2
    assert figures["ovs: Mpps offered"].values == (5.0, 5.0)
    assert figures["vmq: µs, p99.9"].values == (5.0, 5.0)
    assert list(figures)[:3] == ["vmq: µs, p50", "vmq: µs, p99", "vmq: µs, p99.9"]


def test_system_that_does_not_carry_the_offer_has_rates_and_no_times(
    offer: Callable[..., list[tuple[str, float]]],
) -> None:
    offer(vmq=[1, 0.5, 1], ovs=[0.5, 0.5, 1])
    figures = latency(50, 3)

    assert figures["ovs: Mpps arrived"].values == (2.5, 2.5, 5.0)
    assert [name for name in figures if "ovs: µs" in name] == []
    assert len(figures["vmq: µs, p50"].values) == 2


def test_our_own_rate_that_we_do_not_carry_refuses_the_row(
    offer: Callable[..., list[tuple[str, float]]],
) -> None:
    offer(vmq=[0.5, 1], ovs=[1, 1])

    with pytest.raises(RefusedError, match=r"vmq carried 5\.00 Mpps in 1 of 2 runs"):
        latency(50, 2)


def pretended(frames: int, sent: int, skipped: int) -> Any:
    """Counters that move by so much between two looks."""
    seen = {"frames": iter((7, 7 + frames)), "sent": iter((9, 9 + sent)), "skipped": iter((5, 5 + skipped))}
    times = np.zeros(BUCKETS, np.int64)

    class Pretended:
        def __init__(self) -> None:
            self.times = times

        def count(self, name: str) -> int:
            times[40] += name == "frames"
            return next(seen[name])

        @property
        def skipped(self) -> int:
            return next(seen["skipped"])

    return Pretended()


def test_what_was_skipped_was_offered() -> None:
    told = passed(pretended(frames=60, sent=80, skipped=20), 2.0, 0)

    assert (told.offered, told.sent, told.arrived) == pytest.approx((2.0, 1.6, 1.2))


def test_what_was_lost_is_later_than_what_arrived() -> None:
    """With a tenth of the frames lost there is a median, and no p99."""
    told = passed(pretended(frames=90, sent=100, skipped=0), 2.0, 0)

    assert list(told.times) == ["p50"]


def test_nothing_that_arrives_has_no_passage() -> None:
    with pytest.raises(RefusedError, match="nothing was delivered"):
        passed(pretended(frames=0, sent=80, skipped=0), 2.0, 0)


def test_drop_is_a_loss_of_the_trial_however_little_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two trials may be disturbed."""
    drops = iter([3, 4, 5])
    served: Any = SimpleNamespace(counts=lambda: Counts(0, 3))
    crowd: Any = SimpleNamespace(pace=lambda _rate: None, hold=lambda **_: None)
    monkeypatch.setattr(latency_, "passed", lambda *_: Passage(1, 1, 1, TIMES))
    monkeypatch.setattr(latency_, "check_all", lambda *_: next(drops))

    assert carries(served, crowd, 1.0)
    assert not carries(served, crowd, 1.0)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair of an engine in this process, in place of any system; a search that takes what it is given."""

    @contextlib.contextmanager
    def stamping(_system: str) -> Iterator[tuple[Served, Crowd]]:
        with Running(tmp_path) as running:
            running.configure(**{f"v{n}": running.vm(f"v{n}", mac=(mac(n),)) for n in range(2)})

            def counts() -> Counts:
                return Counts(0, sum(sum(row["drops"].values()) for row in running.show("queues")))

            served = Served(
                [Path(running.path(f"v{n}")) for n in range(2)], False, tmp_path / "log", counts=counts
            )
            frames = [udp_frame(mac(1), mac(0), number, number, 64) for number in range(200)]
            with Crowd(served, {0: frames}, stamped=True) as crowd:
                yield served, crowd
            running.configure()

    monkeypatch.setattr("bench.quiet.wait", partial(float, 0))
    monkeypatch.setattr(latency_, "stamping", stamping)
    monkeypatch.setattr(latency_, "WARM_SECONDS", 0.05)
    monkeypatch.setattr(latency_, "MEASURED_SECONDS", 0.2)
    monkeypatch.setattr(latency_, "TRIAL_SECONDS", 0.1)


def test_passage_of_an_engine(pair: None) -> None:
    told = latency_.passage("vmq", 0.002)

    assert told.sent <= told.offered == 0.002
    times = list(told.times.values())  # of a machine that stops now and then not all have a value
    assert (next(iter(told.times)), times) == ("p50", sorted(times))
    assert times[0] > 0


def test_own_rate_is_searched_below_what_arrives_unpaced(pair: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trials are real; what they find is the machine's, so the search here takes the first."""
    tops: list[float] = []

    def search(try_: Callable[[float, float], bool], top: float) -> float:
        tops.append(top)
        try_(top / 100, 0.05)
        return top / 2

    monkeypatch.setattr(latency_, "without_loss", search)
    latency_.own_rate.cache_clear()
    try:
        assert latency_.own_rate() == tops[0] / 2 > 0
        assert latency_.own_rate() == tops[0] / 2
        assert len(tops) == 1
    finally:
        latency_.own_rate.cache_clear()


def test_rate_that_others_left_us_is_none_of_ours(pair: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_, "without_loss", lambda _try, top: top / 20)
    latency_.own_rate.cache_clear()

    for _ in range(2):  # it is not kept for the next row, either
        with pytest.raises(RefusedError, match="measure when it is quiet"):
            latency_.own_rate()
