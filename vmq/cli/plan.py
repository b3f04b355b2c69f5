# SPDX-License-Identifier: Apache-2.0
"""`vmq plan`: which processor each VM will get, who will share one, and why; nothing is started.

What is printed is what `vmq run` does with the same file on the same host, decided by the same functions, in the
words of `vmq show`. With --topology the host is another one, recorded in a directory. An engine that already runs
and reloads the file leaves VMs where they are while it may.

A file says nothing of receive queues that clients of the API have. Where an engine answers at the file's `api`, those are
listed as not planned: they have their processors and their share of `queues` beside the plan, until it is started anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vmq.cli.client import ask_rows
from vmq.cli.grammar import FILES, Verbs, add_json, add_verb, offer
from vmq.errors import ApiError
from vmq.table import Row, plain, table

VMS = ("name", "mac", "vlan", "uplink", "queue_pairs", "processors", "placement", "shares_with", "why")
PROCESSORS = ("cpu", "node", "core", "vms", "names")


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "plan", run, "which processor each VM will get, and why; nothing started")
    offer(parser.add_argument("file", metavar="FILE", help="the configuration"), FILES)
    offer(
        parser.add_argument(
            "--topology", metavar="DIR", help="a directory with the recorded /sys of another host"
        ),
        FILES,
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from vmq.config import load
    from vmq.forecast import forecast
    from vmq.placement import devices, plan
    from vmq.topology import read

    config = load(args.file, read(root=args.topology).allowed)
    topology = read(devices(config), args.topology)
    found: dict[str, Any] = {**forecast(config, topology, plan(config, topology, args.file))}
    found["not_planned"] = [] if args.topology else not_planned(config.engine.api)
    print(json.dumps(found, indent=2) if args.json else "\n".join(lines(found)))
    return 0


def not_planned(api: str) -> list[Row]:
    """Receive queues of clients of the API, if an engine runs: no file says them."""
    from vmq.contract import CONFIG

    try:
        rows = ask_rows(api, "show", what="queues")
    except ApiError:  # none runs, or it is not for us to ask: then there is the file, and that is all
        return []
    members = ("queue_id", "owner", "vm", "processor", "weight")
    return [
        {name: row.get(name) for name in members} for row in rows if row.get("owner") not in (None, CONFIG)
    ]


def lines(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """The plan as text: VMs, processors, capacity, notes."""
    from vmq.config import cpu_text

    if found["vms"]:
        rows = [
            {**row, "vlan": row["vlan"] or "untagged", "placement": row["placement"]["effective"]}
            for row in found["vms"]
        ]
        yield table(rows, VMS)
    else:
        yield "no vms"
    yield ""
    yield table(found["processors"], PROCESSORS)
    for left in found["left_out"]:
        yield f"left out: {cpu_text(left['processors'])}, {left['why']}"
    yield ""
    for row in found["capacity"]:
        counts = f"{_count(row['processors'], 'processor')} for {_count(row['vms'], 'VM')}"
        yield f"capacity of {row['of']}: {counts}: {row['why']}"
    for effective, why in dict.fromkeys(
        (row["placement"]["effective"], row["placement"]["why"]) for row in found["vms"]
    ):
        yield f"placement {effective}: {why}"
    for row in found["not_planned"]:
        words = f"not planned: receive queue {row['queue_id']} of {row['owner']} for {row['vm']}"
        yield plain(f"{words}, on processor {row['processor']}: a client's, in the engine that runs")
    for note in found["notes"]:
        yield f"{note['code']} {note['subject']}: {note['what']}. Remedy: {note['remedy']}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
