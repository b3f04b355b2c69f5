# SPDX-License-Identifier: Apache-2.0
"""`vmq events`: what has happened in a running engine, and with --follow what happens.

A line an event: when, its number, what, and to whom. With --json a line is the engine's record as it is. An engine
keeps the last thousand; who asks for more is told how many it has forgotten. --follow is told, and does not ask.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

from vmq.cli.client import ask, follow
from vmq.cli.grammar import Verbs, add_api, add_json, add_verb
from vmq.errors import ApiError
from vmq.table import cell


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "events", run, "what has happened in a running engine")
    parser.add_argument(
        "--since",
        metavar="NUMBER",
        type=int,
        default=0,
        help="only events after this one (default: all that are kept)",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what happens from now on")
    add_api(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    for record in follow(args.api, args.since) if args.follow else _ask(args.api, args.since):
        print(json.dumps(record) if args.json else line(record), flush=args.follow)
    return 0


def line(record: Mapping[str, Any]) -> str:
    """One event as text."""
    when = time.strftime("%H:%M:%S", time.localtime(record["time"])) if record["time"] else "-" * 8
    return f"{when}  {record['number']:>5}  {record['event']:<10}  {_words(record)}"


def _words(record: Mapping[str, Any]) -> str:
    if record["event"] == "vm_state":
        return f"{record['vm']}: {record['before']} → {record['state']}"
    if record["event"] == "configured" and record["wrong"] is None:
        return f"{record['actions']} actions"
    if record["event"] == "queue_lack" and record["what"] is None:
        return f"{record['vm']}: it has a receive queue of its own"
    if record["event"] == "finding":
        return _finding(record)
    if record["event"] in {"queue_state", "dma_stopped"}:
        return (
            f"{record.get('uplink') or 'no uplink'}: receive queue {record['queue']} of {record['owner']}: "
            f"{record['state']} ({record['step']})"
        )
    parts = [f"{record['vm']}: " if "vm" in record else ""]
    named = {
        key: cell(value)
        for key, value in record.items()
        if key not in {"number", "time", "event", "vm", "capabilities"} and value
    }
    wrong, remedy = named.pop("what", named.pop("wrong", "")), named.pop("remedy", "")
    if wrong:
        return f"{parts[0]}{wrong}" + (f". Remedy: {remedy}" if remedy else "")
    return parts[0] + ", ".join(f"{key} {value}" for key, value in named.items())


def _finding(record: Mapping[str, Any]) -> str:
    """What the doctor says, with the fix; of what has gone, that it has, and why it is not told any more."""
    whose = f"{record['subject']}: " if record["subject"] else ""
    if record["status"] == "found":
        fix = f". Fix: {record['fix']}" if record["fix"] else ""
        return f"{record['code']} {record['severity']}: {whose}{record['title']}{fix}"
    why = f" ({record['why']})" if record["why"] else ""
    return f"{record['code']} {record['status']}: {whose}{record['title']}{why}"


def _ask(api: str | None, since: int) -> list[dict[str, Any]]:
    records = ask(api, "events", since=since)
    if not isinstance(records, list) or not all(isinstance(one, dict) and "number" in one for one in records):
        raise ApiError(
            "FAILURE", "the engine's answer is no list of events", "Use the vmq of the engine's version"
        )
    return records
