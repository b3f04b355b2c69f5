# SPDX-License-Identifier: Apache-2.0
"""`vmq show`: what a running engine is doing.

One question to the engine, one table or one list of JSON. The columns are a selection; --json has every
field. The words are the same in both, and drops stand by name, never as a bare sum.

A VM that is not connected, has a last error, learns addresses or sends from an address that is not its own
has a note below its row, and so has a receive queue that is not in effect. Both words for the direction of a
VM's socket are given: vmq's, and what QEMU is (libvirt's mode).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from vmq.cli.client import ask
from vmq.cli.grammar import QEMU_IS, Verbs, add_api, add_json, add_verb, seconds, shortened
from vmq.cli.histogram import frames_text, picture, time_text
from vmq.errors import ApiError
from vmq.table import Row, table, wants_colour

COLUMNS = {
    "vms": "name state mac vlan uplink processors queues_running mtu frames_to_guest frames_from_guest "
    "socket drops",
    "queues": "vm queue queue_id own life processor state frames_to_guest bytes_to_guest frames_from_guest bytes_from_guest "
    "indications frames_per_indication drops",
    "filters": "mac vlan uplink vm queue source priority filter",
    "uplinks": "name kind device state mtu lanes membership frames_from_wire bytes_from_wire frames_to_wire "
    "bytes_to_wire drops",
    "misses": "kind mac vlan uplink vm count remedy",
    "settings": "of name requested effective why",
    "histograms": "vm queue measured frames p50_ns p99_ns p999_ns",
    "configuration": "file refused",
    "processors": "cpu state thread vms queues polled bursts sleeps wakeups busy_ratio why",
}
CLEAR = "\x1b[H\x1b[2J"


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "show", run, "what a running engine is doing")
    parser.add_argument(
        "what",
        nargs="?",
        default="vms",
        choices=tuple(COLUMNS),
        type=shortened(COLUMNS),
        help="one of %(choices)s (default: %(default)s)",
    )
    parser.add_argument(
        "-w",
        "--watch",
        metavar="SEC",
        type=seconds,
        nargs="?",
        const=1.0,
        help="show it again every SEC seconds (default: 1)",
    )
    add_api(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    rows = _rows(args)
    if args.watch is None:
        print(json.dumps(rows, indent=2) if args.json else text(args.what, rows, colour=wants_colour()))
        return 0
    clear = CLEAR if wants_colour() else ""
    while True:
        line = json.dumps(rows) if args.json else clear + text(args.what, rows, colour=bool(clear))
        print(line, flush=True)
        time.sleep(args.watch)
        rows = _rows(args)


def text(what: str, rows: Sequence[Row], *, colour: bool = False) -> str:
    """The table of one kind of thing."""
    if not rows:
        return f"no {what}"
    shown = [{**row, "vlan": "untagged"} if "vlan" in row and row["vlan"] is None else row for row in rows]
    return table(shown, COLUMNS[what].split(), lambda row: tuple(_notes(row)), colour=colour)


def _rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = ask(args.api, "show", what=args.what)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ApiError(
            "FAILURE", "the engine's answer is not a list of rows", "Use the vmq of the engine's version"
        )
    return rows


def _following(row: Row) -> Iterator[str]:
    """What became of the list that the guest gave its device."""
    if row.get("followed"):
        yield f"followed: {', '.join(row['followed'])}"
    if row.get("refused"):
        yield "refused: " + ", ".join(f"{one['mac']} ({one['why']})" for one in row["refused"])
    for note in row.get("notes", ()):
        yield f"note: {note['what']}. Remedy: {note['remedy']}"


def _notes(row: Row) -> Iterator[str]:
    if "latency_below_ns" in row:
        yield from picture("latency", row["latency"], row["latency_below_ns"], time_text)
        yield from picture("batches", row["batches"], row["batches_below"], frames_text)
    if row.get("corrected"):
        yield "corrected: the file was written since it was refused; SIGHUP to vmq run, which reads it again"
    for one in row.get("missing") or ():
        yield f"missing: {one}"
    mode = row.get("mode")
    if mode in QEMU_IS and row.get("state") in {"listening", "connecting"}:
        yield f"mode: {mode} (QEMU is the {QEMU_IS[mode]})"
    if row.get("learned"):
        yield f"learned: {', '.join(map(str, row['learned']))}"
    if row.get("queue_id") is not None and row.get("why"):
        yield f"why: {row['why']}"
    if isinstance(row.get("following"), dict):
        yield from _following(row["following"])
    if row.get("spoofed_mac"):
        yield (
            f"spoofed_mac: it sends from {row['spoofed_mac']}, which is not its mac. "
            "Remedy: Add it to mac, or set spoof_check to false"
        )
    error = row.get("last_error")
    if isinstance(error, dict):
        remedy = f". Remedy: {error['remedy']}" if error.get("remedy") else ""
        yield f"last_error: {error.get('what')}{remedy}"
