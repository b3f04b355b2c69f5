# SPDX-License-Identifier: Apache-2.0
"""`vmq events`: a line an event, in words or as the record; --follow goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from vmq.cli import events
from vmq.cli.dispatch import main

RECORDS: list[dict[str, Any]] = [
    {"number": 3, "time": None, "event": "missed", "records": 3},
    {"number": 4, "time": 1e9, "event": "configured", "actions": 2, "wrong": None, "remedy": None},
    {"number": 5, "time": 1e9, "event": "vm_state", "vm": "web", "state": "running", "before": "connected"},
    {"number": 6, "time": 1e9, "event": "learned", "vm": "web", "mac": "0e:fd:00:00:00:01"},
    {"number": 7, "time": 1e9, "event": "vm_error", "vm": "web", "what": "no memory", "remedy": "share it"},
    {
        "number": 8,
        "time": 1e9,
        "event": "configured",
        "actions": 0,
        "wrong": "no such device",
        "remedy": "make it",
    },
    {
        "number": 9,
        "time": 1e9,
        "event": "queue_state",
        "uplink": "lan",
        "queue": 3,
        "owner": "a",
        "state": "Paused",
        "step": "Set",
    },
    {
        "number": 10,
        "time": 1e9,
        "event": "current_capabilities",
        "uplink": "",
        "capabilities": {"queues": 4},
        "lost": ["filter_fields", "queues"],
    },
    {"number": 11, "time": 1e9, "event": "queue_lack", "vm": "web", "what": "all are taken"},
    {"number": 12, "time": 1e9, "event": "queue_lack", "vm": "web", "what": None},
    {
        "number": 13, "time": 1e9, "event": "finding", "code": "D28", "status": "found", "severity": "error",
        "subject": "VM web", "title": "MTUs do not match", "why": "Long frames are lost.", "fix": "mtu = 1500",
    },
    {
        "number": 14, "time": 1e9, "event": "finding", "code": "D04", "status": "cleared", "severity": "note",
        "subject": "", "title": "Processor 0", "why": "ignore of [doctor]", "fix": None,
    },
]  # fmt: skip


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An engine that knows RECORDS; the numbers it was asked for."""
    asked: list[int] = []

    def answer(_api: str | None, method: str, *, since: int) -> list[dict[str, Any]]:
        assert method == "events"
        asked.append(since)
        return [record for record in RECORDS if record["number"] > since]

    def tell(_api: str | None, since: int) -> Iterator[dict[str, Any]]:
        asked.append(since)
        yield from (record for record in RECORDS if record["number"] > since)
        raise KeyboardInterrupt

    monkeypatch.setattr(events, "ask", answer)
    monkeypatch.setattr(events, "follow", tell)
    return asked


def test_each_event_is_a_line_in_words(engine: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events"]) == 0
    lines = [line.split(maxsplit=2)[1:] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["3", "missed      records 3"],
        ["4", "configured  2 actions"],
        ["5", "vm_state    web: connected → running"],
        ["6", "learned     web: mac 0e:fd:00:00:00:01"],
        ["7", "vm_error    web: no memory. Remedy: share it"],
        ["8", "configured  no such device. Remedy: make it"],
        ["9", "queue_state  lan: receive queue 3 of a: Paused (Set)"],
        ["10", "current_capabilities  lost filter_fields,queues"],
        ["11", "queue_lack  web: all are taken"],
        ["12", "queue_lack  web: it has a receive queue of its own"],
        ["13", "finding     D28 error: VM web: MTUs do not match. Fix: mtu = 1500"],
        ["14", "finding     D04 cleared: Processor 0 (ignore of [doctor])"],
    ]
    assert engine == [0]


def test_json_is_the_record_as_it_is(engine: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events", "--json", "--since", "6"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == RECORDS[4:]


def test_follow_is_told_until_it_is_interrupted(
    engine: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """It asks once."""
    assert main(["events", "-f", "--since", "4"]) == 130
    assert engine == [4]
    assert len(capsys.readouterr().out.splitlines()) == len(RECORDS) - 2


@pytest.mark.parametrize("answer", [{}, [3], [{}]])
def test_an_answer_of_another_kind_is_refused(
    answer: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(events, "ask", lambda *_, **__: answer)
    assert main(["events"]) == 1
    assert "no list of events" in capsys.readouterr().err
