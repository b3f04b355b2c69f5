# SPDX-License-Identifier: Apache-2.0
"""From findings to fixes that are applied, proved, and taken back where they do not help.

    findings ──prescribe──► cures ──shown, approved──► treat: for each cure
                                                         is it still found, with the same steps?
                                                         each step: its way back into the history, then the step
                                                         look again: not found any more, and no new error
                                                       anything else: everything of this run is taken back, last first

A run is one change: it ends with all of its cures in place, or with none. A finding that is gone by itself or by the cure
of another is left alone, and so is one that would take other steps than those that were shown.

What a counter said cannot be unsaid: a finding that is not certain counts as gone when its numbers no longer move.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vmq.doctor.catalogue import Report, examine
from vmq.doctor.finding import RELOAD, Finding
from vmq.doctor.hands import Hands
from vmq.doctor.history import Applied, History
from vmq.doctor.situation import Situation
from vmq.doctor.steps import Edit, words
from vmq.errors import VmqError

# Seconds before each look after a fix: a guest reconnects within one, and counters need some time to show that they rest.
PAUSES = (0.0, 0.5, 1.0, 1.5, 2.0)
Status = Literal["fixed", "gone", "left", "failed", "rolled back", "undone"]


@dataclass(frozen=True)
class Cure:
    """A finding, and why nobody but a person can fix it; empty if a machine can."""

    finding: Finding
    by_hand: str = ""


@dataclass(frozen=True)
class Result:
    """What became of a cure. `why` says it in words where the status does not."""

    code: str
    subject: str
    status: Status
    why: str = ""


def prescribe(see: Situation, report: Report, *, uncertain: bool) -> list[Cure]:
    """A cure for everything that was found. `uncertain`: also where the finding is not certain."""
    return [Cure(one, _by_hand(see, one, uncertain=uncertain)) for one in report.found]


def _by_hand(see: Situation, finding: Finding, *, uncertain: bool) -> str:
    fix = finding.fix
    if fix is None or not fix.steps:
        return fix.restart if fix and fix.restart not in ("", RELOAD) else "somebody has to choose"
    edits = [step for step in fix.steps if isinstance(step, Edit)]
    if edits and see.config is None:
        return "no configuration file was read: name it with --config"
    if see.shown is not None and any(step.restarts for step in edits):
        return "vmq run has to be started again for it"
    if finding.confidence != "certain" and not uncertain:
        return f"the finding is {finding.confidence}, not certain: --all fixes it, too"
    return ""


class Treatment:
    """One run. `look` looks at everything anew."""

    def __init__(
        self,
        look: Callable[[], Situation],
        hands: Hands,
        history: History,
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        self.look, self.hands, self.history, self.pauses = look, hands, history, pauses
        self._done: list[Applied] = []

    def treat(self, cures: list[Cure], tell: Callable[[Result], object] = lambda _: None) -> list[Result]:
        """Apply what was approved, and tell of each cure at once; after a failure also what was taken back."""
        results: list[Result] = []

        def note(result: Result) -> None:
            results.append(result)
            tell(result)

        for cure in cures:
            finding = cure.finding
            try:
                left = self._differs(finding)
                if left is None:
                    self._apply(finding)
                note(left or Result(finding.code, finding.subject, "fixed"))
            except (Exception, KeyboardInterrupt) as problem:  # whatever it was: nothing is left half-done
                why = str(problem) or type(problem).__name__
                note(Result(finding.code, finding.subject, "failed", why))
                self._roll_back(note)
                if not isinstance(problem, VmqError | KeyboardInterrupt):
                    raise
                break
        return results

    def _differs(self, shown: Finding) -> Result | None:
        """Why a cure is not applied: what was shown is not what would be done."""
        now = _same(examine(self.look(), (shown.code,)), shown)
        if now is None:
            return Result(shown.code, shown.subject, "gone", "it is not found any more")
        if now.fix is None or shown.fix is None or now.fix.steps != shown.fix.steps:
            why = "it would take other steps by now than were shown: run vmq doctor --fix again"
            return Result(shown.code, shown.subject, "left", why)
        return None

    def _apply(self, finding: Finding) -> None:
        before = self.look()
        entry = Applied(time.time(), finding.code, finding.subject, finding.title, str(self.hands.file))
        self._done.append(entry)
        self.history.push(entry)
        for step in finding.fix.steps if finding.fix else ():
            back = self.hands.way_back(step)
            entry.steps.append(step)
            entry.back.insert(0, back)
            self.history.save()
            try:
                self.hands.do(step)
            except BaseException:
                entry.back.remove(back)  # it was not done
                raise
        self._prove(finding, before)

    def _prove(self, finding: Finding, before: Situation) -> None:
        """Look until the finding is gone and nothing is worse; VmqError if that does not come."""
        wrong, seen, known = "", None, _errors(examine(before))
        for pause in self.pauses:
            time.sleep(pause)
            see = self.look()
            if before.shown is not None and see.shown is None:
                raise VmqError("the engine no longer answers", "See its log")
            report = examine(see)
            worse = _errors(report) - known
            there = _same(report, finding)
            moving = there is not None and (finding.confidence == "certain" or there.evidence != seen)
            seen = there.evidence if there else None
            if finding.code in report.failed:
                wrong = "the rule could not be run again"
            elif moving:
                wrong = "the finding is still there"
            elif worse:
                wrong = f"it brought about {', '.join(sorted(worse))}"
            else:
                return
        raise VmqError(wrong)

    def _roll_back(self, note: Callable[[Result], None]) -> None:
        """Take everything of this run back, last first. What cannot be is tried later, by --undo."""
        while self._done:
            note(take_back(self.hands, self.history, self._done.pop(), "rolled back"))


def take_back(hands: Hands, history: History, fix: Applied, status: Status) -> Result:
    """Undo the steps of a fix; those that fail stay in the history."""
    failed, problems = [], []
    for back in fix.back:
        try:
            hands.do(back)
        except VmqError as problem:
            failed.append(back)
            problems.append(f"{words(back, fix.file)}: {problem}")
    fix.back = failed
    if failed:
        history.save()
        return Result(fix.code, fix.subject, "failed", f"NOT taken back: {'; '.join(problems)}")
    history.drop(fix)
    return Result(fix.code, fix.subject, status)


def _same(report: Report, finding: Finding) -> Finding | None:
    """The finding of the same rule about the same subject."""
    return next(
        (one for one in report.found if (one.code, one.subject) == (finding.code, finding.subject)), None
    )


def _errors(report: Report) -> set[str]:
    return {f"{one.code} {one.subject}" for one in report.found if one.severity == "error"}


def check(new: Situation, now: Situation) -> None:
    """Judge another configuration as vmq check does: VmqError for an error that is not there now."""
    worse = _errors(examine(new, kind="plan")) - _errors(examine(now, kind="plan"))
    if worse:
        raise VmqError(f"the new configuration would have {', '.join(sorted(worse))}", "Change it by hand")
