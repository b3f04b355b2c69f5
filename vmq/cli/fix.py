# SPDX-License-Identifier: Apache-2.0
"""`vmq doctor --fix` and `--undo`: the plan first, then a question, then step by step.

Nothing is changed before every step was shown, with what it disturbs and what takes it back, and somebody said yes: at
a terminal, or with --yes. Without either the plan is all, and exit code 1 says that nothing was applied.

A change of the configuration is judged, put in place and, if an engine runs, taken by it: it gets SIGHUP, and its events
are asked whether it accepted. The process that gets the signal is the one that listens at the engine's socket.

Exit codes: 0 everything is as it should be; 1 something was not applied, failed, or an error is left for hands.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmq.cli.client import ask
from vmq.cli.client import default_path as usual_socket
from vmq.cli.doctor import api_of, look
from vmq.errors import ApiError, HostError, VmqError
from vmq.table import plain

if TYPE_CHECKING:
    from vmq.doctor import Situation
    from vmq.doctor.hands import Hands
    from vmq.doctor.history import Applied
    from vmq.doctor.treatment import Cure, Result

PATIENCE = 10.0  # seconds until an engine has taken a new configuration; guests may have to be let go
PAUSE = 0.1
NOT_ASKED = "not applied: nobody could be asked; --yes applies it"


def fix(args: argparse.Namespace) -> int:
    """Plan, ask, apply, prove."""
    from vmq.doctor import examine
    from vmq.doctor.history import History, default_path
    from vmq.doctor.treatment import Treatment, prescribe

    see = look(args)
    cures = prescribe(see, examine(see, args.codes, args.vm), uncertain=args.all)
    hands = _hands(see.where, see, args)
    chosen = [cure for cure in cures if not cure.by_hand]
    plan = [_record(cure, hands) for cure in cures]  # before anything changes: the ways back are read
    if not args.json:
        _print(_plan(cures, hands))
    results: list[Result] = []
    agreed = bool(chosen) and _agreed(args)
    if agreed:
        with History.open(default_path()) as history:
            treatment = Treatment(partial(look, args), hands, history)
            results = treatment.treat(chosen, _silent if args.json else _aloud)
    if args.json:
        told = {"plan": plan, "applied": agreed, "results": [asdict(one) for one in results]}
        print(json.dumps(told, indent=2))
    if chosen and not agreed:
        return 1
    bad = any(one.status not in ("fixed", "gone") for one in results)
    return 1 if bad or examine(look(args), args.codes, args.vm).wrong else 0


def undo(args: argparse.Namespace) -> int:
    """Take the last fix back. The engine that is told is the one of the configuration that was changed."""
    from vmq.doctor.history import History, default_path
    from vmq.doctor.treatment import take_back

    with History.open(default_path()) as history:
        last = history.applied[-1] if history.applied else None
        if not args.json:
            _print(_last(last))
        back = {"code": last.code, "subject": last.subject, "back": _words(last)} if last else None
        agreed = last is not None and _agreed(args)
        result = None
        if last is not None and agreed:
            args.config = last.file if Path(last.file).exists() else args.config
            result = take_back(_hands(last.file, look(args), args), history, last, "undone")
            if not args.json:
                _print([_told(result)])
    if args.json:
        told = {"last": back, "applied": agreed, "result": asdict(result) if result else None}
        print(json.dumps(told, indent=2))
    return 0 if result is not None and result.status == "undone" else 1


def _agreed(args: argparse.Namespace) -> bool:
    """Whether somebody says yes."""
    if args.yes:
        return True
    if args.json or not sys.stdin.isatty():
        print(NOT_ASKED, file=sys.stderr)
        return False
    try:
        return input("Apply? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _hands(file: str, see: Situation, args: argparse.Namespace) -> Hands:
    from vmq.affinity import processors
    from vmq.config import Config, parse
    from vmq.doctor.hands import Hands
    from vmq.doctor.treatment import check

    def read(text: str) -> Config:
        return parse(text, file, processors())

    def no_new_errors(config: Config) -> None:
        now = look(args)
        check(replace(now, config=config), now)

    api = api_of(args, see.config)
    return Hands(file, read, no_new_errors, None if see.shown is None else partial(reload, api))


# --- a running engine ---------------------------------------------------------------------------------------


def reload(api: str | None) -> None:
    """Let the engine read its file again; VmqError unless it says that it has taken it."""
    before = _events(api, 0)
    last = before[-1]["number"] if before else 0
    process = _process(api)
    try:
        os.kill(process, signal.SIGHUP)
    except OSError as error:
        where = f"SIGHUP to process {process}"
        raise HostError(where, str(error.strerror), "Run it as the user of vmq run") from None
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        for record in _events(api, last):
            if record.get("event") == "configured":
                if record.get("wrong"):
                    raise VmqError(
                        f"the engine refused it: {record['wrong']}", str(record.get("remedy") or "")
                    )
                return
        time.sleep(PAUSE)
    raise VmqError(f"the engine did not take it within {PATIENCE:.0f} s", "See the log of vmq run")


def _events(api: str | None, since: int) -> list[dict[str, Any]]:
    records = ask(api, "events", since=since)
    if isinstance(records, list) and all(isinstance(one, dict) and "number" in one for one in records):
        return records
    raise ApiError(
        "FAILURE", "the engine's answer is no list of events", "Use the vmq of the engine's version"
    )


def _process(api: str | None) -> int:
    """Who listens at the socket. What it calls itself is another number if it lives in a container: that one is not ours."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.connect(api or usual_socket())
        except OSError as error:
            where = api or usual_socket()
            raise ApiError(
                "UNAVAILABLE", f"{where}: {error.strerror or error}", "Is an engine running?"
            ) from None
        said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process: int = struct.unpack("3i", said)[0]
    itself = ask(api, "ping")
    if process < 2 or not isinstance(itself, dict) or itself.get("pid") != process:
        raise VmqError("the engine's process is not to be seen from here", "Send it SIGHUP where it runs")
    return process


# --- text ---------------------------------------------------------------------------------------------------


def _plan(cures: list[Cure], hands: Hands) -> Iterator[str]:
    chosen = [cure for cure in cures if not cure.by_hand]
    others = [cure for cure in cures if cure.by_hand]
    yield f"{len(chosen)} to fix" if chosen else "nothing to fix"
    for cure in chosen:
        yield from ("", _headline(cure))
        yield from (f"     {line}" for line in _steps(cure, hands))
    if others:
        yield from ("", "by hand")
    for cure in others:
        yield _headline(cure)
        yield f"     do       {cure.finding.fix.command if cure.finding.fix else '-'}"
        yield f"     because  {cure.by_hand}"


def _headline(cure: Cure) -> str:
    one = cure.finding
    sure = "" if one.confidence == "certain" else f" ({one.confidence})"
    return f"{one.code}  {one.subject}: {one.title}{sure}"


def _steps(cure: Cure, hands: Hands) -> Iterator[str]:
    from vmq.doctor.steps import HOST, Edit, words

    steps = cure.finding.fix.steps if cure.finding.fix else ()
    for step in steps:
        yield f"do       {words(step, str(hands.file))}"
    yield f"disturbs {(cure.finding.fix and cure.finding.fix.disturbs) or 'nothing'}"
    for line in _backs(cure, hands):
        yield f"undo     {line}"
    if not all(isinstance(step, Edit) for step in steps):
        yield f"lasts    {HOST}"


def _backs(cure: Cure, hands: Hands) -> list[str]:
    """What would take the steps back, last first."""
    from vmq.doctor.steps import words

    steps = cure.finding.fix.steps if cure.finding.fix else ()
    try:
        return [words(hands.way_back(step), str(hands.file)) for step in reversed(steps)]
    except VmqError as problem:
        return [f"not known: {problem}"]


def _last(last: Applied | None) -> Iterator[str]:
    if last is None:
        yield "no fix to take back"
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last.at))
    yield f"{last.code}  {last.subject}: {last.title}, fixed {when}"
    yield from (f"     do       {line}" for line in _words(last))


def _words(fix: Applied) -> list[str]:
    from vmq.doctor.steps import words

    return [words(back, fix.file) for back in fix.back]


def _aloud(result: Result) -> None:
    _print([_told(result)])


def _silent(_: Result) -> None:
    pass


def _told(result: Result) -> str:
    loud = result.status.upper() if result.status in ("failed", "rolled back") else result.status
    why = f": {'; '.join(result.why.splitlines())}" if result.why else ""
    return f"{result.code}  {result.subject}: {loud}{why}"


def _record(cure: Cure, hands: Hands) -> dict[str, Any]:
    """The finding, and what would be done about it."""
    automatic = not cure.by_hand
    return {
        **cure.finding.record(),
        "automatic": automatic,
        "by_hand": cure.by_hand,
        "back": _backs(cure, hands) if automatic else [],
    }


def _print(lines: Iterable[str]) -> None:
    print("\n".join(plain(line) for line in lines), flush=True)
