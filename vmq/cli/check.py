# SPDX-License-Identifier: Apache-2.0
"""`vmq check` and `vmq schema`: the configuration, judged and described, and nothing started.

What check prints is the configuration in effect, and is itself a configuration: with every default written
out and marked, paths absolute and addresses canonical. A key that was left out and stays open is a comment.
Reading the output gives the same configuration again. What works but is set up badly for this host, as far as
the configuration and the processors and devices of the host tell (vmq doctor), follows as comments; with --json
it goes to stderr. Only what would lose traffic makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vmq.cli.grammar import FILES, Verbs, add_json, add_verb, offer, shortened
from vmq.table import plain

if TYPE_CHECKING:
    from vmq.config import Config
    from vmq.doctor import Report

SCHEMAS = ("config", "api")


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "check", check, "the configuration, judged, and nothing started")
    offer(parser.add_argument("file", metavar="FILE", help="the configuration"), FILES)
    add_json(parser)
    parser = add_verb(verbs, "schema", schema, "the configuration or the API, described for machines")
    parser.add_argument("what", choices=SCHEMAS, type=shortened(SCHEMAS), help="one of %(choices)s")


def check(args: argparse.Namespace) -> int:
    from msgspec import to_builtins

    from vmq.config import load

    config = load(args.file)
    report = planned(args.file, config)
    if args.json:
        print(json.dumps(to_builtins(config), indent=2))
        noted = (*report.found, *report.accepted)
        if noted:
            records = [finding.record() for finding in noted]
            print(json.dumps({"findings": records}, indent=2), file=sys.stderr)
    else:
        print("\n".join((*effective(args.file, config), *_remarks(report))))
    return 1 if report.wrong else 0


def planned(name: str, config: Config) -> Report:
    """What the rules of kind "plan" find in the configuration on this host."""
    from vmq.doctor import Facts, Situation, examine
    from vmq.ethtool import describe

    facts = Facts.read(ask=describe, machines=False)
    return examine(Situation(facts=facts, config=config, where=name), kind="plan")


def _remarks(report: Report) -> Iterator[str]:
    """Findings as comments."""
    if report.found or report.accepted:
        yield ""
    for one in report.found:
        fix = f" Fix: {one.fix.command}" if one.fix else ""
        line = f"# {one.code} {one.severity}: {one.subject}: {one.title}. {one.why}{fix}"
        yield plain(line)
    for one in report.accepted:
        yield plain(f"# {one.code} accepted: {one.subject}: {one.title}.")


def schema(args: argparse.Namespace) -> int:
    if args.what == "api":
        from vmq.control.schema import schema as described
    else:
        from vmq.config import schema as described
    print(json.dumps(described(), indent=2))
    return 0


def effective(name: str, config: Config) -> Iterator[str]:
    """The configuration in effect, as lines of TOML."""
    counts = (_count(len(config.uplinks), "uplink"), _count(len(config.vms), "VM"))
    yield f"# {name}: no mistake found; {', '.join(counts)}"
    yield from _table("engine", config.engine)
    for noun, tables in (("uplink", config.uplinks), ("vm", config.vms)):
        for key, record in tables.items():
            yield from _table(f"{noun}.{_key(key)}", record)
    yield from _table("doctor", config.doctor)


def _table(title: str, record: Any) -> Iterator[str]:
    from msgspec.structs import fields

    yield f"\n[{title}]"
    if hasattr(record, "kind"):
        yield f'kind = "{record.kind}"'
    for field in fields(record):
        value = getattr(record, field.name)
        if value is None:
            yield f"# {field.name} is left open"
        else:
            mark = "  # default" if value == field.default else ""
            yield f"{field.name} = {_toml(field.name, value)}{mark}"


def _toml(key: str, value: object) -> str:
    """A record's value as it is written in the file."""
    from vmq.config import cpu_text

    if key == "processors" and isinstance(value, tuple):
        return f'"{cpu_text(value)}"'
    if key == "repeat" and value == 0:
        return "true"
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return json.dumps(name) if "." in name else name


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
