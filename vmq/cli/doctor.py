# SPDX-License-Identifier: Apache-2.0
"""`vmq doctor`: what is set up so that it does nothing, or harm; the evidence, the fix, and how to undo it.

Rules look at the host, at a configuration and at a running engine, and at as many of the three as there are. What is
found stands first, the worst before the rest; then what could not be looked at, and why. Nothing is changed, unless --fix
or --undo says so (fix.py).

Exit codes: 0 nothing that loses traffic was found, 1 it was, or a rule could not be run, 2 the request is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vmq.cli.client import ask
from vmq.cli.grammar import CONFIG, FILES, VMS, Parser, Verbs, add_api, add_json, add_verb, offer
from vmq.cli.prove import prove
from vmq.errors import ApiError, ConfigError
from vmq.table import plain

if TYPE_CHECKING:
    from vmq.config import Config
    from vmq.doctor import Finding, Report, Situation

PAIRS = 16  # of samples
PLURAL = {"error": "errors", "warning": "warnings", "note": "notes"}


def add(verbs: Verbs) -> None:
    parser: Parser = add_verb(verbs, "doctor", run, "what is set up wrongly: the evidence and the fix")
    parser.add_argument(
        "codes", metavar="CODE", nargs="*", type=str.upper, help="some rules, as D12 (default: all)"
    )
    offer(parser.add_argument("--vm", metavar="NAME", help="what concerns one VM"), VMS)
    option = parser.add_argument(
        "--config", metavar="FILE", help=f"the configuration (default: {CONFIG}, if it exists)"
    )
    offer(option, FILES)
    option = parser.add_argument(
        "--libvirt",
        metavar="FILE",
        nargs="+",
        default=(),
        help="domains to look at, as virsh dumpxml prints them",
    )
    offer(option, FILES)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--fix", action="store_true", help="show what would fix it, ask, and do it")
    how.add_argument("--undo", action="store_true", help="take the last fix back")
    option = how.add_argument(
        "--prove", metavar="VM", help="measure this VM with and without a receive queue of its own"
    )
    offer(option, VMS)
    parser.add_argument("--all", action="store_true", help="with --fix: also what is found, but not certain")
    parser.add_argument("-y", "--yes", action="store_true", help="with --fix or --undo: without asking")
    add_api(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from vmq.doctor import BY_CODE, examine

    for code in args.codes:
        if code not in BY_CODE:
            known = f"{min(BY_CODE)} to {max(BY_CODE)}"
            raise ConfigError("vmq doctor", f"there is no rule {plain(code)}", f"Name one from {known}")
    for option, given in (
        ("--all", args.all and not args.fix),
        ("--yes", args.yes and not (args.fix or args.undo)),
    ):
        if given:
            raise ConfigError(f"vmq doctor {option}", "says nothing alone", "Add --fix")
    if args.prove is not None:
        return prove(args.api, args.prove, PAIRS, as_json=args.json)
    see = look(args)
    if args.vm is not None and args.vm not in {port.name for port in see.ports}:
        others = ", ".join(port.name for port in see.ports) or "none"
        raise ConfigError("vmq doctor --vm", f"there is no VM {plain(args.vm)}", f"Name one of: {others}")
    if args.fix or args.undo:
        from vmq.cli import fix

        return fix.fix(args) if args.fix else fix.undo(args)
    report = examine(see, args.codes, args.vm)
    if args.json:
        print(json.dumps([finding.record() for finding in report.findings], indent=2))
    else:
        print("\n".join(plain(line) for line in _lines(report, every=bool(args.codes))))
    return 1 if report.wrong else 0


def look(args: argparse.Namespace) -> Situation:
    """Everything there is to look at."""
    from vmq.doctor import Facts, Situation, libvirt
    from vmq.ethtool import describe

    domains = tuple(libvirt.load(path) for path in args.libvirt)
    config = _config(args.config)
    return Situation(
        facts=Facts.read(ask=describe),
        config=config,
        shown=_shown(api_of(args, config), must=args.api is not None),
        domains=domains,
        where=args.config or CONFIG,
    )


def api_of(args: argparse.Namespace, config: Config | None) -> str | None:
    """The engine's socket: as named, else of the environment, else of the configuration."""
    given: str | None = args.api
    return given or (config.engine.api if config and not os.environ.get("VMQ_API") else None)


def _config(path: str | None) -> Config | None:
    """The configuration that was named, else the one of the usual place, if there is one."""
    from vmq.config import load

    if path is None and not os.access(CONFIG, os.R_OK):
        return None
    return load(path or CONFIG)


def _shown(api: str | None, *, must: bool) -> dict[str, list[Any]] | None:
    """What a running engine tells, view by view; None if none runs, unless its socket was named."""
    from vmq.doctor import VIEWS

    found: dict[str, list[Any]] = {}
    for view in VIEWS:
        try:
            rows = ask(api, "show", what=view)
        except ApiError as error:
            if error.status == "NOT_FOUND":  # an engine of another version has no such view
                continue
            if must or error.status != "UNAVAILABLE":
                raise
            return None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ApiError(
                "FAILURE", "the engine's answer is not a list of rows", "Use the vmq of the engine's version"
            )
        found[view] = rows
    return found


# --- text ---------------------------------------------------------------------------------------------------


def _lines(report: Report, *, every: bool) -> Iterator[str]:
    """The summary, what was found by severity, what was not looked at. `every`: also why rules do not apply."""
    from vmq.doctor import SEVERITIES

    yield _summary(report)
    for severity in SEVERITIES:
        group = [finding for finding in report.found if finding.severity == severity]
        if group:
            yield from ("", PLURAL[severity])
        for finding in group:
            yield from told(finding)
    if report.accepted:
        yield from ("", "accepted, by ignore of [doctor]")
        yield from (f"{one.code}  {one.subject}: {one.title}" for one in report.accepted)
    for status, heading in (
        ("unknown", "not looked at"),
        ("not_applicable", "does not apply"),
        ("clear", "clear"),
    ):
        rest = [finding for finding in report.findings if finding.status == status]
        if rest and (every or status == "unknown"):
            yield from ("", heading)
            yield from (f"{one.code}  {one.title}: {_seen(one)}" for one in rest)
        elif rest:
            yield from ("", f"{heading}: {', '.join(dict.fromkeys(one.code for one in rest))}")


def told(finding: Finding) -> Iterator[str]:
    """One finding, whole."""
    sure = "" if finding.confidence == "certain" else f" ({finding.confidence})"
    yield f"{finding.code}  {finding.subject}: {finding.title}{sure}"
    for where, value, expected in finding.evidence:
        yield f"     seen    {where}: {value}" + (f"; expected {expected}" if expected else "")
    yield f"     why     {finding.why}"
    if finding.fix is not None:
        yield f"     fix     {finding.fix.command}"
        if finding.fix.restart:
            yield f"     restart {finding.fix.restart}"
        if finding.fix.disturbs:
            yield f"     disturbs {finding.fix.disturbs}"
    if finding.undo:
        yield f"     undo    {finding.undo}"
    yield f"     source  {finding.source}"


def _seen(finding: Finding) -> str:
    looked = "; ".join(f"{where}: {value}" for where, value, _ in finding.evidence)
    subject = f"{finding.subject}: " if finding.subject else ""
    return subject + "; ".join(part for part in (finding.why, looked) if part)


def _summary(report: Report) -> str:
    counts = [
        f"{number} {PLURAL[severity] if number != 1 else severity}"
        for severity in PLURAL
        if (number := sum(one.severity == severity for one in report.found))
    ]
    failed = f"; {', '.join(report.failed)} could not be run" if report.failed else ""
    return f"{', '.join(counts) or 'nothing found'}{failed}"
