# SPDX-License-Identifier: Apache-2.0
"""`vmq plan`: which processor each VM will get, who will share one, and why; nothing is started.

What is printed is what `vmq run` does with the same file on the same host, decided by the same functions, in the
words of `vmq show`. With --topology the host is another one, recorded in a directory. An engine that already runs
and reloads the file leaves VMs where they are while it may.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vmq.cli.grammar import FILES, Verbs, add_json, add_verb, offer
from vmq.table import table

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
    found = forecast(config, topology, plan(config, topology, args.file))
    print(json.dumps(found, indent=2) if args.json else "\n".join(lines(found)))
    return 0


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
    for note in found["notes"]:
        yield f"{note['code']} {note['subject']}: {note['what']}. Remedy: {note['remedy']}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
