# SPDX-License-Identifier: Apache-2.0
"""`vmq queue`: receive queues, listed, allocated, changed and freed.

A receive queue belongs to an owner, and only in its name it is changed; a command's is "cli" unless --owner says
another one, and what it has allocated stays until it is freed. Those of the configuration belong to "config", and
change with the file.

What was asked for and what is in force may differ: below a row of the list stands each member where they do, and why,
as well as what keeps a receive queue from running.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from vmq.cli.client import ask_record, ask_rows
from vmq.cli.grammar import VMS, Parser, Verbs, add_nest, add_operation, add_owner, offer, receive_queue
from vmq.errors import ConfigError
from vmq.table import Row, cell, plain, table

COLUMNS = ("queue", "owner", "name", "vm", "state", "filters", "processor", "buffers", "weight")
ANY = "any"


def add(verbs: Verbs) -> None:
    nested = add_nest(verbs, "queue", "receive queues: who has which, and more or fewer of them")
    parser = add_operation(nested, "list", list_queues, "receive queues, what they have, and why not more")
    parser.add_argument("--owner", metavar="NAME", help="only of this owner (default: all)")
    parser = add_operation(nested, "allocate", allocate, "a new receive queue for a VM")
    offer(parser.add_argument("--vm", metavar="VM", required=True, help="the NAME of a [vm.NAME]"), VMS)
    parser.add_argument(
        "--incomplete",
        action="store_true",
        help="give it nothing that is scarce yet: vmq queue complete does",
    )
    add_owner(parser)
    _members(parser)
    parser = add_operation(
        nested, "complete", complete, "give allocated receive queues what they need, balanced"
    )
    parser.add_argument("queues", metavar="QUEUE", nargs="+", type=receive_queue, help="its number")
    add_owner(parser)
    parser = add_operation(nested, "set", change, "change a receive queue, while frames flow")
    parser.add_argument("queue", metavar="QUEUE", type=receive_queue, help="its number")
    add_owner(parser)
    _members(parser)
    parser = add_operation(
        nested, "free", free, "stop a receive queue that has no filters, and give back what it has"
    )
    parser.add_argument("queue", metavar="QUEUE", type=receive_queue, help="its number")
    add_owner(parser)
    parser = add_operation(nested, "reset-statistics", reset_statistics, "let its counters begin anew")
    parser.add_argument("queue", metavar="QUEUE", type=receive_queue, help='its number, "default" or "drop"')
    add_operation(nested, "reset", reset, "all counters begin anew, frames that wait are discarded")


def _members(parser: Parser) -> None:
    """What may be asked for, and changed later."""
    parser.add_argument("--name", help="for people")
    parser.add_argument("--processor", metavar="CPU", type=_processor, help=f'one of vmq\'s, or "{ANY}"')
    parser.add_argument("--weight", metavar="N", type=int, help="0 to 100; 0: no receive queue of its own")
    parser.add_argument("--buffers", metavar="N", type=int, help="suggested buffers: half of them will do")
    parser.add_argument("--indications", metavar="N", type=int, help="at most so many a second; 0: no limit")
    parser.add_argument("--frames", metavar="N", type=int, help="indicate once so many wait; 0: no limit")


def _processor(text: str) -> str:
    if text != ANY and not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text} is no processor: give its number, or "{ANY}"')
    return text


def list_queues(args: argparse.Namespace) -> int:
    rows = ask_rows(args.api, "enum_queues", uplink=args.uplink, owner=args.owner)
    print(json.dumps(rows, indent=2) if args.json else text(rows))
    return 0


def text(rows: Sequence[Row]) -> str:
    """The table: what is in force, and notes on what was asked for."""
    if not rows:
        return "no receive queues"
    shown = [
        {
            **row,
            "processor": _member(row, "effective", "processor"),
            "buffers": _member(row, "effective", "suggested_buffers"),
            "weight": _member(row, "requested", "weight"),
        }
        for row in rows
    ]
    return table(shown, COLUMNS, lambda row: tuple(_notes(row)))


def _member(row: Row, record: str, name: str) -> Any:
    found = row.get(record)
    return found.get(name) if isinstance(found, dict) else None


def _notes(row: Row) -> Iterator[str]:
    if row.get("why"):
        yield f"why: {row['why']}"
    for name, why in (row.get("difference") or {}).items():
        asked, has = _member(row, "requested", name), _member(row, "effective", name)
        yield f"{name}: requested {ANY if asked is None else asked}, effective {cell(has)}: {why}"


def allocate(args: argparse.Namespace) -> int:
    """One that is complete; if it cannot be, nothing stays, unless --incomplete says so."""
    where = {"uplink": args.uplink, "owner": args.owner}
    parameters = {"vm": args.vm, **_given(args)}
    made = ask_record(args.api, "allocate_queue", **where, parameters=parameters)
    if args.incomplete:
        print(json.dumps(made) if args.json else f"receive queue {made.get('queue')}: allocated")
        return 0
    rows = ask_rows(args.api, "queue_allocation_complete", **where, queues=[made.get("queue")])
    done = rows[0] if rows else {}
    has_all = done.get("status") == "SUCCESS"
    if not args.json:
        print(_completion(done))
    if not has_all:
        ask_record(args.api, "free_queue", **where, queue=made.get("queue"))
        done["freed"] = True
    if args.json:
        print(json.dumps(done, indent=2))
    elif not has_all:
        print(f"receive queue {made.get('queue')}: freed again; --incomplete keeps it")
    return 0 if has_all else 1


def complete(args: argparse.Namespace) -> int:
    done = ask_rows(
        args.api, "queue_allocation_complete", uplink=args.uplink, owner=args.owner, queues=args.queues
    )
    print(json.dumps(done, indent=2) if args.json else "\n".join(map(_completion, done)))
    return 0 if all(row.get("status") == "SUCCESS" for row in done) else 1


def _completion(row: Row) -> str:
    why = f": {row['why']}" if row.get("why") else ""
    return plain(f"receive queue {row.get('queue')}: {row.get('status')}{why}")


def change(args: argparse.Namespace) -> int:
    changes = _given(args)
    if not changes:
        raise ConfigError("vmq queue set", "nothing is to be changed", "See vmq queue set --help")
    done = ask_record(
        args.api,
        "set_queue_parameters",
        uplink=args.uplink,
        owner=args.owner,
        queue=args.queue,
        parameters=changes,
    )
    print(json.dumps(done) if args.json else f"receive queue {args.queue}: changed")
    return 0


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The members that were named, and those of moderation."""
    members = {"name": args.name, "weight": args.weight, "suggested_buffers": args.buffers}
    given: dict[str, Any] = {name: value for name, value in members.items() if value is not None}
    if args.processor is not None:
        given["processor"] = None if args.processor == ANY else int(args.processor)
    moderation = {"indications": args.indications, "frames": args.frames}
    if named := {name: value for name, value in moderation.items() if value is not None}:
        given["moderation"] = named
    return given


def free(args: argparse.Namespace) -> int:
    done = ask_record(args.api, "free_queue", uplink=args.uplink, owner=args.owner, queue=args.queue)
    pending = done.get("status") == "PENDING"
    words = "PENDING: buffers are still to come back; vmq events says when" if pending else "freed"
    print(json.dumps(done) if args.json else f"receive queue {args.queue}: {words}")
    return 0


def reset_statistics(args: argparse.Namespace) -> int:
    done = ask_record(args.api, "reset_statistics", uplink=args.uplink, queue=args.queue)
    print(json.dumps(done) if args.json else f"receive queue {args.queue}: its counters begin anew")
    return 0


def reset(args: argparse.Namespace) -> int:
    done = ask_record(args.api, "reset", uplink=args.uplink)
    words = "all counters begin anew, frames that waited are discarded; receive queues and filters stay"
    where = f"uplink {args.uplink}: " if args.uplink else ""
    print(json.dumps(done) if args.json else plain(f"{where}{words}"))
    return 0
