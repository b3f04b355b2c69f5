# SPDX-License-Identifier: Apache-2.0
"""What a rule says: outcomes; and what is printed of it: findings.

    rule ──► Outcome: status, subject, evidence, why, fix            `found`, `clear`, `unknown`, `not_applicable`
               │ + the rule's row of the catalogue: code, title, severity, source
               ▼
             Finding

A rule that cannot see says unknown, never clear. What is found has evidence, a reason and a fix; what is clear says in
its evidence what was looked at; the other two say in `why` what was missing. A fix that the machine can carry out has
its steps (steps.py) beside the words.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from msgspec import json

from vmq.doctor.steps import Step

Status = Literal["found", "clear", "unknown", "not_applicable"]
Severity = Literal["error", "warning", "note"]
Confidence = Literal["certain", "likely", "possible"]
RELOAD = "nothing: on SIGHUP vmq run reads its file again"  # restart of what a running engine takes
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Evidence(NamedTuple):
    """Something that was read: where, what stood there, and what should."""

    where: str
    value: str
    expected: str = ""


class Fix(NamedTuple):
    """What to run or change; what has to be restarted for it, and what it disturbs: empty for nothing."""

    command: str
    restart: str = ""
    disturbs: str = ""
    steps: tuple[Step, ...] = ()  # the same for the machine; none: by hand


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one rule says about one subject. `vms`: the VMs it concerns; none: the host, an uplink or a processor."""

    status: Status
    subject: str = ""
    vms: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    why: str = ""
    fix: Fix | None = None
    undo: str = ""
    confidence: Confidence = "certain"
    severity: Severity | None = None  # None: the catalogue's


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's answer, with everything behind it."""

    code: str
    title: str
    status: Status
    severity: Severity
    confidence: Confidence
    subject: str
    evidence: tuple[Evidence, ...]
    why: str
    fix: Fix | None
    undo: str
    source: str
    accepted: bool = False  # the configuration says that it may stay

    def record(self) -> dict[str, Any]:
        """The same words, for JSON."""
        steps = json.decode(json.encode(self.fix.steps)) if self.fix else []
        return {
            **{one.name: getattr(self, one.name) for one in fields(self)},
            "evidence": [entry._asdict() for entry in self.evidence],
            "fix": {**self.fix._asdict(), "steps": steps} if self.fix else None,
        }


def found(
    subject: str,
    *evidence: Evidence,
    why: str,
    fix: Fix,
    undo: str = "",
    vms: tuple[str, ...] = (),
    confidence: Confidence = "certain",
    severity: Severity | None = None,
) -> Outcome:
    """The mistake is there."""
    return Outcome(
        status="found",
        subject=subject,
        vms=vms,
        evidence=evidence,
        why=why,
        fix=fix,
        undo=undo,
        confidence=confidence,
        severity=severity,
    )


def clear(*looked: Evidence) -> Outcome:
    """It is not there; what was looked at."""
    return Outcome(status="clear", evidence=looked)


def unknown(why: str, subject: str = "", *seen: Evidence, vms: tuple[str, ...] = ()) -> Outcome:
    """The rule could not look, and why."""
    return Outcome(status="unknown", subject=subject, vms=vms, evidence=seen, why=why)


def not_applicable(why: str) -> Outcome:
    """The mistake cannot be made here, and why."""
    return Outcome(status="not_applicable", why=why)


def sentence(phrase: str) -> str:
    """Words that others put behind a colon, as a reason of their own."""
    return f"{phrase[0].upper()}{phrase[1:]}."


def listed(names: list[str]) -> str:
    """Some of them."""
    return ", ".join(names[:8]) + (", …" if names[8:] else "")


def settled(outcomes: list[Outcome], *looked: Evidence) -> list[Outcome]:
    """The outcomes of a rule that looked at everything: clear if there are none."""
    return outcomes or [clear(*looked)]
