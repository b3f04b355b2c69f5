# SPDX-License-Identifier: Apache-2.0
"""How long a processor looks for work before it sleeps."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.dataplane.rig import interpreted
from vmq.abi.linux import rusage, timespec
from vmq.clock import now
from vmq.dataplane import patience, state
from vmq.dataplane.patience import LONGEST, ROUNDS, SHORTEST, found, learn, taken_away, tired
from vmq.jit import address_of


@pytest.fixture
def worker() -> Iterator[Any]:
    """A row with what these kernels need; nobody else's processor."""
    row, clock, usage = np.zeros(1, state.worker)[0], np.zeros(1, timespec), np.zeros(1, rusage)
    row["clock"], row["usage"] = address_of(clock), address_of(usage)
    row["patience"] = SHORTEST
    yield row
    del clock, usage  # not before


def alone(row: Any) -> Callable[..., None]:
    """`learn`, again where the machine took the processor away meanwhile: then it must have lost its patience."""

    def learned(slept: int, woken: bool) -> None:
        for _ in range(1000):
            before, switches = int(row["patience"]), int(row["switches"])
            learn(row, slept, woken)
            if int(row["switches"]) == switches:
                return
            assert row["patience"] == SHORTEST
            row["patience"] = before
        raise AssertionError("the processor is never ours")

    return learned


def test_what_the_kernel_counts_is_read_where_it_stands(worker):
    """Python asks the same; between two questions it may grow."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    taken_away(worker)
    assert before <= int(worker["switches"]) <= resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def test_who_was_woken_soon_looks_twice_as_long_up_to_a_limit(worker):
    """At the start of a processor it is not patient at all."""
    taken_away(worker)
    worker["patience"] = 0
    learned = alone(worker)
    lengths = []
    for _ in range(6):
        learned(LONGEST - 1, True)
        lengths.append(int(worker["patience"]))
    assert lengths == [SHORTEST, 2 * SHORTEST, 4 * SHORTEST, 8 * SHORTEST, LONGEST, LONGEST]


@pytest.mark.parametrize(("slept", "woken"), [(LONGEST, True), (1, False), (10**9, False)])
def test_who_slept_long_or_was_woken_by_nobody_looks_shortly(worker, slept, woken):
    taken_away(worker)
    worker["patience"] = LONGEST
    alone(worker)(slept, woken)
    assert worker["patience"] == SHORTEST


@interpreted
def test_who_had_to_give_its_processor_to_others_looks_shortly(worker, monkeypatch):
    """What getrusage says is the kernel's; here it says that others came, once."""
    counts = iter([7, 8, 8])

    def says(_who: int, _address: int) -> int:
        worker_usage["involuntary"] = next(counts)
        return 0

    worker_usage = np.zeros(1, rusage)
    worker["usage"] = address_of(worker_usage)
    monkeypatch.setattr(patience, "c_getrusage", says)
    assert taken_away(worker)
    worker["patience"] = LONGEST // 2
    learn(worker, 1, True)
    assert (int(worker["patience"]), int(worker["switches"])) == (SHORTEST, 8)
    learn(worker, 1, True)
    assert worker["patience"] == 2 * SHORTEST


def test_it_sleeps_when_nothing_came_for_as_long_as_it_looks(worker):
    """The clock is read every ROUNDS rounds; the time counts from the first of those."""
    worker["patience"] = 10**12
    assert [bool(tired(worker, idle)) for idle in range(1, 2 * ROUNDS)] == [False] * (2 * ROUNDS - 1)
    assert 0 < int(worker["idle_since"]) <= int(now(worker))
    worker["patience"] = 0
    assert not tired(worker, 2 * ROUNDS - 1)
    assert tired(worker, 2 * ROUNDS)


def test_the_time_it_looked_in_is_not_busy(worker):
    worker["woke"], worker["idle_since"] = 1000, int(now(worker)) - 5_000_000
    found(worker, ROUNDS - 1)
    assert worker["woke"] == 1000
    found(worker, ROUNDS)
    assert 5_001_000 <= int(worker["woke"]) < 10**12
