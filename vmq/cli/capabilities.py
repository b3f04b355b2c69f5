# SPDX-License-Identifier: Apache-2.0
"""`vmq capabilities`: what an uplink can do for receive queues and filters, and what of it is in force.

A capability a line: what the hardware has (for vmq, the engine's software is part of it), and what is in force now.
Where they differ something was switched off or lost, and `vmq events` says when.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from vmq.cli.client import ask_record
from vmq.cli.grammar import Verbs, add_api, add_json, add_uplink, add_verb
from vmq.table import Row, table

COLUMNS = ("capability", "hardware", "current")


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "capabilities", run, "what an uplink can do, and what of it is in force")
    add_uplink(parser)
    add_api(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    methods = {
        "hardware": "hardware_capabilities",
        "current": "current_capabilities",
        "global": "global_parameters",
    }
    answers = {word: ask_record(args.api, method, uplink=args.uplink) for word, method in methods.items()}
    print(json.dumps(answers, indent=2) if args.json else text(answers))
    return 0


def text(answers: Mapping[str, Mapping[str, Any]]) -> str:
    hardware, current = answers["hardware"], answers["current"]
    rows = [row for name in hardware for row in _rows(name, hardware[name], current.get(name))]
    rows += [
        {"capability": name, "hardware": None, "current": value} for name, value in answers["global"].items()
    ]
    return table(rows, COLUMNS)


def _rows(name: str, hardware: Any, current: Any) -> Iterator[Row]:
    """One row, or one for each word of a list."""
    if not isinstance(hardware, list):
        yield {"capability": name, "hardware": hardware, "current": current}
        return
    for word in hardware:
        yield {"capability": f"{name} {word}", "hardware": True, "current": word in (current or ())}
