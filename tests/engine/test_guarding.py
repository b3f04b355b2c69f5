# SPDX-License-Identifier: Apache-2.0
"""The guard: it measures VMs with traffic, falls back loudly where the own queue is slower, and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.running import Running, until
from vmq.config import Config, Engine
from vmq.dynamic import Answer, Guard, Verdict
from vmq.dynamic import Path as Way
from vmq.engine import dynamics, guarding
from vmq.engine.proving import Proof

SLOWER = Verdict(Answer.SLOWER, "own 90 ns a frame, plain 40", own=90.0, plain=40.0)
NOT_SLOWER = Verdict(Answer.NOT_SLOWER, "own 40 ns a frame, plain 60", own=40.0, plain=60.0)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Looks twenty times a second, at any traffic, and every measurement is one of the test's."""
    monkeypatch.setattr(dynamics, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(guarding, "RATE_MIN", 0)
    monkeypatch.setattr(guarding, "EVERY_SECONDS", 0.0)
    with Running(tmp_path) as one:
        yield one


class Measured:
    """In the place of the engine's measurements: verdicts in turn."""

    def __init__(self, running: Running, *verdicts: Verdict) -> None:
        self.asked: list[str] = []
        self._verdicts = list(verdicts)
        self._proving = running.engine.proving
        self._proving.start = self.start  # type: ignore[method-assign]

    def start(self, name: str, pairs: int = 16) -> Proof:
        self.asked.append(name)
        return Proof(name, 2 * pairs, verdict=self._verdicts.pop(0) if self._verdicts else NOT_SLOWER)


def test_a_vm_that_is_slower_with_its_own_queue_falls_back_loudly_and_comes_back(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(guarding, "Guard", lambda now: Guard(now, every=0.0, first_pause=0.2))
    measured = Measured(running, NOT_SLOWER, SLOWER, SLOWER, NOT_SLOWER)
    running.pair()
    vm = running.engine.vms["a"]
    with running.guest("a"):
        until(lambda: vm.queues[0].shared, "fallen back")
        row = next(
            row for row in running.show("settings") if (row["of"], row["name"]) == ("vm a", "receive_queue")
        )
        assert (row["requested"], row["effective"]) == ("own", "default")
        assert row["why"] == "the guard: own 90 ns a frame, plain 40"
        assert any(
            "vm a: served by the default queue from now on: slower" in line for line in running.log.lines
        )
        until(lambda: not vm.queues[0].shared, "back")
        assert running.engine.guarding.fallen(vm) == ""
    told = [one for one in running.do(running.engine.journal.since, 0) if one["event"] == "guard"]
    assert [(one["vm"], one["path"]) for one in told] == [("a", "plain"), ("a", "own")]
    assert set(measured.asked) == {"a"}, "b has no guest"


def test_who_switches_the_guard_off_is_not_measured(running: Running):
    measured = Measured(running)
    config = Config(engine=Engine(guard=False), vms={"a": running.vm("a")})
    running.do(running.engine.reconfigure, config)
    with running.guest("a"):
        until(lambda: running.engine.dynamics.readings.loads)
        looks = running.engine.dynamics._due
        until(lambda: running.engine.dynamics._due > looks + 0.1)
        assert measured.asked == []


def test_a_vm_that_is_gone_is_forgotten_with_its_guard(running: Running):
    Measured(running, SLOWER)
    running.configure(a=running.vm("a"))
    with running.guest("a"):
        until(lambda: running.engine.guarding.path(running.engine.vms["a"]) is Way.PLAIN)
        running.configure()
    running.configure(a=running.vm("a"))
    assert running.engine.guarding.path(running.engine.vms["a"]) is Way.OWN
    assert not running.engine.vms["a"].queues[0].shared


def test_a_reset_leaves_a_vm_on_the_way_that_the_guard_has_chosen(running: Running):
    Measured(running, SLOWER)
    running.configure(a=running.vm("a"))
    vm = running.engine.vms["a"]
    with running.guest("a"):
        until(lambda: vm.queues[0].shared)
        running.do(running.engine.contracts[""].reset)
        assert vm.queues[0].shared
        assert running.engine.guarding.fallen(vm)


def test_switching_the_guard_off_undoes_what_it_has_done(running: Running):
    Measured(running, SLOWER)
    running.configure(a=running.vm("a"))
    vm = running.engine.vms["a"]
    with running.guest("a"):
        until(lambda: vm.queues[0].shared)
        config = Config(engine=Engine(guard=False), vms={"a": running.vm("a")})
        running.do(running.engine.reconfigure, config)
        until(lambda: not vm.queues[0].shared)
        assert running.engine.guarding.fallen(vm) == ""
