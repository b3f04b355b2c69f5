# SPDX-License-Identifier: Apache-2.0
"""Outcomes and findings: their fields, and that JSON has the same words."""

from __future__ import annotations

import json

from vmq.doctor.finding import (
    Evidence,
    Finding,
    Fix,
    clear,
    found,
    not_applicable,
    sentence,
    settled,
    unknown,
)
from vmq.doctor.steps import Write, edit

FIELDS = (
    "code",
    "title",
    "status",
    "severity",
    "confidence",
    "subject",
    "evidence",
    "why",
    "fix",
    "undo",
    "source",
    "accepted",
)


def test_a_record_has_the_fields_of_a_finding_and_nothing_else() -> None:
    seen = Evidence("a file", "1", "2")
    finding = Finding(
        code="D04",
        title="t",
        status="found",
        severity="note",
        confidence="certain",
        subject="s",
        evidence=(seen,),
        why="w",
        fix=Fix("do", "r", "d", (edit("vm.web", mtu=1500), Write("/sys/a", "1"))),
        undo="u",
        source="KB1",
    )
    record = finding.record()

    assert tuple(record) == FIELDS
    assert record["evidence"] == [{"where": "a file", "value": "1", "expected": "2"}]
    assert record["fix"] == {
        "command": "do",
        "restart": "r",
        "disturbs": "d",
        "steps": [
            {"kind": "edit", "changes": [{"table": "vm.web", "key": "mtu", "value": 1500}]},
            {"kind": "write", "path": "/sys/a", "value": "1"},
        ],
    }
    assert json.loads(json.dumps(record)) == record


def test_outcomes_say_what_their_status_needs() -> None:
    """Found: evidence, reason, fix. Clear: what was looked at. Others: why not."""
    said = found("s", Evidence("a", "b"), why="w", fix=Fix("f"))
    assert (said.status, said.severity, said.confidence) == ("found", None, "certain")
    assert clear(Evidence("a", "b")).evidence
    assert unknown("because").why == not_applicable("because").why == "because"


def test_a_rule_that_found_nothing_is_clear() -> None:
    assert [one.status for one in settled([], Evidence("a", "b"))] == ["clear"]
    assert settled([unknown("u")]) == [unknown("u")]


def test_shared_words_become_a_sentence() -> None:
    """vmq plan puts them behind a colon."""
    assert sentence("a worker waits") == "A worker waits."
