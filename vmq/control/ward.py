# SPDX-License-Identifier: Apache-2.0
"""The doctor's round: what is set up wrongly is told when it begins and when it ends, without anybody having asked.

    thread   the host's facts              doctor imported here, on the first round
    loop     the engine's rows             a view a turn, as clients that ask get them
    thread   the rules, one after another
    loop     what has changed ──► journal: event `finding`, found | cleared

The first round waits until a start has settled, as one after each reload does; then there is one every `every` seconds of
[doctor]. Rounds never overlap: one that does not come back is said in the log, and the next one waits for it. The thread
ends with the process, whatever it is reading.

A finding is one code at one subject in one place. A rule that cannot see clears nothing. What does not fit into a round's
MOST records is told in the next one. A rule that raises is a line in the log, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from vmq.config import Config
from vmq.control.views import show
from vmq.engine.engine import Engine

if TYPE_CHECKING:
    from vmq.doctor import Facts, Finding

SETTLED = 15.0  # seconds: guests that wait for an engine are back, and their drivers run
PATIENCE = 30.0  # seconds, until a round that does not come back is said
MOST = 32  # records of a round: the journal keeps a thousand, and not for us alone
ACCEPTED = "ignore of [doctor] says that it may stay"
LOG = logging.getLogger("vmq")
Rows = dict[str, list[dict[str, Any]]]
Key = tuple[str, str, str]
T = TypeVar("T")


def facts() -> Facts:
    """What vmq doctor reads of this host."""
    from vmq.doctor import Facts
    from vmq.ethtool import describe

    return Facts.read(ask=describe)


class Ward:
    """The rounds of one engine."""

    def __init__(self, engine: Engine, read: Callable[[], Facts] = facts, settled: float = SETTLED) -> None:
        self._engine, self._read, self._settled = engine, read, settled
        self._told: dict[Key, Finding] = {}
        self._logged: set[str] = set()
        self._reloaded = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin the rounds; the event loop runs."""
        self._task = asyncio.get_running_loop().create_task(self._rounds(), name="doctor")

    def reloaded(self) -> None:
        """The configuration is another one: what it says of rounds holds from now on."""
        self._reloaded.set()

    async def close(self) -> None:
        """No more rounds. It does not wait for the thread."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _rounds(self) -> None:
        pause = self._settled
        while True:
            never = self._engine.config.doctor.every == 0
            try:
                await asyncio.wait_for(self._reloaded.wait(), None if never else pause)
                self._reloaded.clear()
                pause = self._settled
            except TimeoutError:
                await self.look()
                pause = float(self._engine.config.doctor.every)

    async def look(self) -> None:
        """One round. It does not fail."""
        try:
            host = await self._aside(self._read)
            rows = await self._rows()
            config, where = self._engine.config, self._engine.where
            findings, failed = await self._aside(lambda: examined(host, config, rows, where))
        except Exception as problem:  # noqa: BLE001 - hosts and rows may have any shape, and frames flow without us
            self._log("a round", f"{type(problem).__name__}: {problem}")
            return
        for code, why in failed.items():
            self._log(f"rule {code}", why)
        for finding, status, why in self._changes(findings, failed):
            fix = finding.fix.command if finding.fix and status == "found" else None
            self._engine.journal.tell(
                "finding",
                code=finding.code,
                status=status,
                severity=finding.severity,
                subject=finding.subject,
                title=finding.title,
                why=why,
                fix=fix,
            )

    async def _rows(self) -> Rows:
        """What the rules look at, view by view: between two of them others have their turn."""
        from vmq.doctor import VIEWS

        rows: Rows = {}
        for view in VIEWS:
            rows[view] = show(self._engine, view)
            await asyncio.sleep(0)
        return rows

    def _changes(self, findings: list[Finding], failed: Iterable[str]) -> list[tuple[Finding, str, str]]:
        """What is to be told now, and is then held as told: what began, then what ended."""
        stands = {key(one): one for one in findings if one.status == "found" and not one.accepted}
        accepted = {key(one) for one in findings if one.accepted}
        blind = {(one.code, one.subject) for one in findings if one.status == "unknown"}
        blind |= {(code, "") for code in failed}
        began = [one for name, one in stands.items() if name not in self._told]
        ended = [
            one
            for name, one in self._told.items()
            if name not in stands and not {(one.code, one.subject), (one.code, "")} & blind
        ]
        told = [(one, "found", one.why) for one in began]
        told += [(one, "cleared", ACCEPTED if key(one) in accepted else "") for one in ended]
        for one, status, _ in told[:MOST]:
            if status == "found":
                self._told[key(one)] = one
            else:
                del self._told[key(one)]
        return told[:MOST]

    def _log(self, what: str, why: str) -> None:
        if what not in self._logged:
            self._logged.add(what)
            LOG.error("the doctor could not run %s, said once: %s", what, why)

    async def _aside(self, function: Callable[[], T]) -> T:
        """What a function returns, in a thread that nobody waits for at the end of the process."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(take: Callable[[Any], None], what: object) -> None:
            if not done.done():
                take(what)

        def run() -> None:
            take: Callable[[Any], None] = done.set_result
            what: object
            try:
                what = function()
            except BaseException as problem:  # noqa: BLE001 - it is raised where it is waited for
                take, what = done.set_exception, problem
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, take, what)

        threading.Thread(target=run, name="doctor", daemon=True).start()
        if not (await asyncio.wait((done,), timeout=PATIENCE))[0]:
            self._log("a round", f"it has not come back for {PATIENCE:.0f} s")
        return await done


def key(finding: Finding) -> Key:
    """What makes it the same one in another round: not its numbers."""
    return finding.code, finding.subject, finding.evidence[0].where if finding.evidence else ""


def examined(host: Facts, config: Config, rows: Rows, where: str) -> tuple[list[Finding], dict[str, str]]:
    """The findings of every rule, and why those that raised did."""
    from vmq.doctor import BY_CODE, Situation, examine

    shown = {view: msgspec.json.decode(msgspec.json.encode(of)) for view, of in rows.items()}
    see = Situation(facts=host, config=config, shown=shown, where=where, in_force=True)
    findings: list[Finding] = []
    failed: dict[str, str] = {}
    for code in BY_CODE:
        try:
            report = examine(see, (code,))
        except Exception as problem:  # noqa: BLE001 - as `examine` itself, for whatever a rule may raise
            failed[code] = f"{type(problem).__name__}: {problem}"
            continue
        findings += report.findings
        failed |= {one.code: one.why for one in report.findings if one.code in report.failed}
        time.sleep(0)  # whoever waits for the interpreter goes first: else it waits for up to 5 ms
    return findings, failed
