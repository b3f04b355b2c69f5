# SPDX-License-Identifier: Apache-2.0
"""Numbered records of what has happened; what is no longer kept is said."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.engine.running import MACS, Running, frame, until
from vmq.config import Vm as VmConfig
from vmq.engine.journal import Journal, Record
from vmq.engine.vm import STATES_MAX
from vmq.errors import ConfigError


def test_records_are_numbered_and_who_comes_later_gets_what_is_new() -> None:
    journal = Journal()
    for number in range(1, 4):
        journal.tell("vm_state", vm="a", state=str(number))
    assert [record["number"] for record in journal.since(0)] == [1, 2, 3]
    assert [record["state"] for record in journal.since(2)] == ["3"]
    assert journal.since(3) == []
    assert abs(journal.since(2)[0]["time"] - time.time()) < 60


def test_watchers_are_told_of_each_record_as_it_is_made() -> None:
    journal = Journal(length=1)
    told: list[Record] = []
    journal.watchers.append(told.append)
    journal.tell("vm_error", vm="a")
    journal.tell("vm_error", vm="b")
    assert [(record["number"], record["vm"]) for record in told] == [(1, "a"), (2, "b")]
    assert journal.since(1) == told[1:]


@pytest.mark.parametrize("asked", [-5, 0, 2])
def test_what_is_no_longer_kept_is_counted(asked: int) -> None:
    journal = Journal(length=4)
    for _ in range(10):
        journal.tell("vm_error")
    first, *rest = journal.since(asked)
    assert first == {"number": 6, "time": None, "event": "missed", "records": 6 - max(asked, 0)}
    assert [record["number"] for record in rest] == [7, 8, 9, 10]
    assert [record["event"] for record in journal.since(6)] == ["vm_error"] * 4


def test_the_life_of_a_vm_is_told(tmp_path: Path) -> None:
    """Each change of state once, with the one before; learned addresses, errors, configurations."""
    with Running(tmp_path) as running:
        fcoe = {"learn": ("0e:fd:00:00:00:00/24",)}
        running.configure(a=running.vm("a", 1, **fcoe), b=running.vm("b", 2))
        with running.guest("a") as a:
            a.send([frame(MACS[1], "0e:fd:00:00:00:07")])
            until(lambda: running.show("vms", "a")["learned"])
        until(lambda: running.show("vms", "a")["state"] == "listening")
        with pytest.raises(ConfigError):
            running.configure(c=VmConfig(socket=running.path("c"), mac=(MACS[3],), processor=4000))
        told = running.do(running.engine.journal.since, 0)
    assert [record["number"] for record in told] == list(range(1, len(told) + 1))
    of_a = [(record["before"], record["state"]) for record in told if record["event"] == "vm_state"]
    assert of_a == [("listening", "connected"), ("connected", "running"), ("running", "listening")]
    assert [record["mac"] for record in told if record["event"] == "learned"] == ["0e:fd:00:00:00:07"]
    first, refused = (record for record in told if record["event"] == "configured")
    assert (first["actions"], first["wrong"]) == (2, None)
    assert (refused["actions"], "4000" in refused["wrong"], bool(refused["remedy"])) == (0, True, True)


def test_a_guest_that_changes_without_end_fills_no_journal(tmp_path: Path) -> None:
    with Running(tmp_path) as running:
        running.configure(a=running.vm("a", 1))
        vm = running.engine.vms["a"]
        for number in range(4 * STATES_MAX):
            vm._told = str(number)
            running.do(vm._tell_state)
        told = [
            record for record in running.do(running.engine.journal.since, 0) if record["event"] == "vm_state"
        ]
        assert len(told) == STATES_MAX
        vm._told_since -= 120
        running.do(vm._tell_state)
        told = running.do(running.engine.journal.since, 0)
        assert [record["event"] for record in told].count("vm_state") == STATES_MAX + 1
