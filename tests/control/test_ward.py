# SPDX-License-Identifier: Apache-2.0
"""The doctor's rounds in a running engine: what begins and ends is told once, and the loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.engine.running import FIRST_CPU, Running, until
from vmq.config import Config, Doctor
from vmq.control import ward
from vmq.control.answers import AnyEvent, Found
from vmq.control.ward import MOST, Ward
from vmq.doctor import CATALOGUE, Facts, Situation, catalogue
from vmq.doctor.facts import Cpu
from vmq.doctor.finding import Evidence, Fix, Outcome, found, unknown
from vmq.errors import ConfigError
from vmq.jit import watch_compilation

FIX = Fix("cpupower frequency-set -g performance")


def look(running: Running, one: Ward) -> list[dict[str, Any]]:
    """One round; what it told."""
    journal = running.engine.journal
    before = journal.number
    asyncio.run_coroutine_threadsafe(one.look(), running.loop).result(30)
    told = [record for record in running.do(journal.since, before) if record["event"] == "finding"]
    assert all(isinstance(msgspec.convert(record, AnyEvent), Found) for record in told)
    return told


class Round:
    """An engine whose rounds a test makes, one by one, with what its rules say."""

    def __init__(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running, self.engine = running, running.engine
        self.outcomes: list[Outcome] = []
        self.problem: Exception | None = None
        self.saw: Any = None
        monkeypatch.setattr(catalogue, "CATALOGUE", (replace(CATALOGUE[0], rule=self._rule),))
        self.ward = running.do(lambda: Ward(running.engine, read=Facts))

    def _rule(self, see: Situation) -> list[Outcome]:
        self.saw = see
        if self.problem is not None:
            raise self.problem
        return self.outcomes

    def look(self) -> list[dict[str, Any]]:
        return look(self.running, self.ward)

    def found(self, *subjects: str) -> None:
        """From now on the rule finds these."""
        self.outcomes = [found(one, Evidence("here", "1"), why="It is.", fix=FIX) for one in subjects]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path) as one:
        yield one


@pytest.fixture
def doctor(running: Running, monkeypatch: pytest.MonkeyPatch) -> Round:
    return Round(running, monkeypatch)


@pytest.fixture
def rounds(running: Running) -> Iterator[Callable[..., Ward]]:
    """Rounds by the clock."""
    made: list[Ward] = []

    def begin(every: int, **options: Any) -> Ward:
        running.do(running.engine.reconfigure, Config(doctor=Doctor(every=every)))
        one = running.do(lambda: Ward(running.engine, **{"settled": 0.01} | options))
        running.do(one.start)
        made.append(one)
        return one

    yield begin
    for one in made:
        asyncio.run_coroutine_threadsafe(one.close(), running.loop).result(10)


def brief(told: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["subject"], one["status"]) for one in told]


def test_a_finding_is_told_when_it_begins_and_when_its_cause_has_gone(doctor: Round):
    """Once each; with the fix while there is something to fix."""
    assert doctor.look() == []
    doctor.found("VM a")
    told = doctor.look()
    entry = CATALOGUE[0]
    assert told[0] | {"number": 0, "time": 0} == {
        "number": 0, "time": 0, "event": "finding", "code": entry.code, "status": "found",
        "severity": entry.severity, "subject": "VM a", "title": entry.title, "why": "It is.", "fix": FIX.command,
    }  # fmt: skip
    assert doctor.look() == []
    doctor.found("VM b")
    assert brief(doctor.look()) == [("VM b", "found"), ("VM a", "cleared")]
    doctor.found()
    told = doctor.look()
    assert brief(told) == [("VM b", "cleared")]
    assert (told[0]["why"], told[0]["fix"]) == ("", None)


def test_other_numbers_are_not_another_finding(doctor: Round):
    """Counters go on; what is found, and where, stays the same. In another place it is another one."""
    for where, value, expected in (("x", "1", 1), ("x", "2", 0), ("y", "2", 2)):
        doctor.outcomes = [found("a", Evidence(where, value), why=value, fix=FIX)]
        assert len(doctor.look()) == expected


def test_a_rule_that_cannot_see_clears_nothing(doctor: Round):
    """Neither for its subject nor, without one, for any; another subject is no concern of it."""
    doctor.found("VM a")
    doctor.look()
    for blind in (unknown("no rights", "VM a"), unknown("no rights")):
        doctor.outcomes = [blind]
        assert doctor.look() == []
    doctor.outcomes = [unknown("no rights", "VM b")]
    assert brief(doctor.look()) == [("VM a", "cleared")]


@pytest.mark.parametrize("problem", [KeyError("no such row"), RuntimeError("a fault")])
def test_a_rule_that_raises_is_logged_once_and_nothing_ends(doctor: Round, problem: Exception):
    """Whatever it raises. What it found before stays as told, and it may go on."""
    doctor.found("VM a")
    doctor.look()
    doctor.problem = problem
    assert [doctor.look(), doctor.look()] == [[], []]
    lines = [line for line in doctor.running.log.lines if "doctor" in line]
    assert len(lines) == 1
    assert f"rule {CATALOGUE[0].code}" in lines[0]
    assert type(problem).__name__ in lines[0]
    doctor.problem, doctor.outcomes = None, []
    assert brief(doctor.look()) == [("VM a", "cleared")]


def test_a_host_that_cannot_be_read_is_logged_once(doctor: Round):
    def fails() -> Facts:
        raise OSError("no /proc")

    doctor.ward._read = fails
    assert [doctor.look(), doctor.look()] == [[], []]
    assert sum("a round, said once: OSError: no /proc" in line for line in doctor.running.log.lines) == 1


def test_what_is_accepted_is_not_told(doctor: Round):
    """What becomes accepted ends, and says so."""
    doctor.found("VM a")
    accepting = Config(doctor=Doctor(ignore=(CATALOGUE[0].code,)))
    doctor.running.do(doctor.engine.reconfigure, accepting)
    assert doctor.look() == []
    doctor.running.do(doctor.engine.reconfigure, Config())
    assert brief(doctor.look()) == [("VM a", "found")]
    doctor.running.do(doctor.engine.reconfigure, accepting)
    told = doctor.look()
    assert brief(told) == [("VM a", "cleared")]
    assert "ignore" in told[0]["why"]


def test_a_round_tells_so_many_and_the_next_one_the_rest(doctor: Round):
    """The journal keeps a thousand records, and has others to keep."""
    names = [f"VM {number}" for number in range(MOST + 5)]
    doctor.found(*names)
    assert [one["subject"] for one in [*doctor.look(), *doctor.look()]] == names
    assert doctor.look() == []
    doctor.found()
    assert [len(doctor.look()) for _ in range(3)] == [MOST, 5, 0]


def test_rules_see_the_host_the_configuration_and_the_rows_of_this_engine(doctor: Round):
    """As a client gets them: plain JSON."""
    doctor.running.pair()
    doctor.look()
    see = doctor.saw
    assert (see.facts, see.config, see.where) == (Facts(), doctor.engine.config, "test.toml")
    assert [row["name"] for row in see.rows("vms")] == ["a", "b"]
    assert see.processors == (doctor.engine.workers[0].cpu,)


def test_the_whole_catalogue_tells_a_mistake_and_that_it_has_gone(running: Running):
    """A worker's processor saves power (D30), and then does not."""
    governors = iter(("performance", "powersave", "powersave", "performance"))

    def read() -> Facts:
        return Facts(cpus={FIRST_CPU: Cpu(FIRST_CPU, (FIRST_CPU,), governor=next(governors))})

    one = running.do(lambda: Ward(running.engine, read=read))
    running.pair()
    told = [[record for record in look(running, one) if record["code"] == "D30"] for _ in range(4)]
    assert [[record["status"] for record in some] for some in told] == [[], ["found"], [], ["cleared"]]


def test_a_configuration_that_was_refused_is_told_until_one_is_taken(running: Running):
    """D06: what is in force is not what somebody asked for last."""
    one = running.do(lambda: Ward(running.engine, read=Facts))
    running.pair()
    look(running, one)
    with pytest.raises(ConfigError):
        running.configure(a=running.vm("a", processor=4000))
    (told,) = (record for record in look(running, one) if record["code"] == "D06")
    assert (told["status"], told["severity"]) == ("found", "warning")
    assert told["subject"].endswith("/test.toml")
    running.pair()
    assert [record["status"] for record in look(running, one) if record["code"] == "D06"] == ["cleared"]


def test_the_real_host_is_looked_at_and_nothing_compiled(running: Running):
    running.pair()
    one = running.do(lambda: Ward(running.engine))
    compiled: list[str] = []
    with watch_compilation(compiled.append):
        look(running, one)
    assert look(running, one) == []
    assert compiled == []
    assert not [line for line in running.log.lines if "doctor" in line]


def test_the_loop_goes_on_while_the_host_is_read(running: Running):
    """In a thread of its own, one at a time; the end does not wait for it."""
    held, threads = threading.Event(), list[str]()

    def slow() -> Facts:
        threads.append(threading.current_thread().name)
        held.wait(10)
        return Facts()

    one = running.do(lambda: Ward(running.engine, read=slow, settled=0.0))
    running.do(one.start)
    until(lambda: threads)
    for _ in range(20):
        running.barrier()
    running.do(one.reloaded)
    running.barrier()
    began = time.monotonic()
    asyncio.run_coroutine_threadsafe(one.close(), running.loop).result(10)
    assert time.monotonic() - began < 5
    held.set()
    assert threads == ["doctor"]


def test_a_round_that_does_not_come_back_is_said(running: Running, monkeypatch: pytest.MonkeyPatch):
    """And it goes on waiting: a second thread would hang, too."""
    monkeypatch.setattr(ward, "PATIENCE", 0.01)

    def slow() -> Facts:
        time.sleep(0.1)
        return Facts()

    one = running.do(lambda: Ward(running.engine, read=slow))
    asyncio.run_coroutine_threadsafe(one.look(), running.loop).result(30)
    assert sum("it has not come back" in line for line in running.log.lines) == 1


class Reads(list[float]):
    """When the host was read."""

    def read(self) -> Facts:
        self.append(time.monotonic())
        return Facts()


def test_rounds_come_after_a_start_has_settled_and_then_regularly(rounds: Callable[..., Ward]):
    reads, began = Reads(), time.monotonic()
    rounds(1, read=reads.read, settled=0.2)
    until(lambda: len(reads) == 2)
    assert reads[0] - began >= 0.2
    assert reads[1] - reads[0] >= 0.99


def test_every_0_is_never_until_a_reload_says_otherwise(running: Running, rounds: Callable[..., Ward]):
    """After a reload a round comes as soon as after a start."""
    reads = Reads()
    one = rounds(0, read=reads.read)
    time.sleep(0.1)
    assert reads == []
    running.do(running.engine.reconfigure, Config(doctor=Doctor(every=86_400)))
    running.do(one.reloaded)
    until(lambda: len(reads) == 1)
    running.do(one.reloaded)
    until(lambda: len(reads) == 2)
