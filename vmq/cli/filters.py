# SPDX-License-Identifier: Apache-2.0
"""`vmq filter`: receive filters, listed, set, cleared and moved.

    vmq filter set 3 mac_destination==52:54:00:00:00:01 vlan_id==5 'arp_tpa & 255.255.255.0 == 10.0.0.0'

A test is a field, == or != and a value; with a mask before ==, the bits of the mask are compared. A frame passes the
filter when it passes every test. The words are split here and go to the engine as they are: it knows which fields
there are and how their values are written.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

from vmq.cli.client import ask_record, ask_rows
from vmq.cli.grammar import QUEUES, Verbs, add_nest, add_operation, add_owner, receive_queue
from vmq.errors import ConfigError
from vmq.table import Row, table

COLUMNS = ("filter", "owner", "queue", "in_effect", "priority", "text")
TEST = re.compile(
    r"\s*(?P<field>\w+)\s*(?:&\s*(?P<mask>[^\s&=!]+)\s*)?(?P<sign>==|!=)\s*(?P<value>[^\s&=!]+)\s*"
)


def add(verbs: Verbs) -> None:
    nested = add_nest(verbs, "filter", "receive filters: which frames belong to which receive queue")
    parser = add_operation(nested, "list", list_filters, "filters, and whether they are in effect")
    parser.add_argument(
        "queue", metavar="QUEUE", nargs="?", type=receive_queue, help="of one receive queue (default: of all)"
    )
    parser.add_argument("--owner", metavar="NAME", help="only of this owner (default: all)")
    parser = add_operation(nested, "set", set_filter, "let frames that pass every test go to a receive queue")
    parser.add_argument("queue", metavar="QUEUE", type=receive_queue, help='its number, "default" or "drop"')
    parser.add_argument(
        "tests", metavar="TEST", nargs="+", help="FIELD==VALUE, FIELD!=VALUE or FIELD&MASK==VALUE, quoted"
    )
    parser.add_argument(
        "--priority", metavar="N", type=int, help="of two filters that a frame passes the higher decides"
    )
    parser.add_argument(
        "--untagged-or-zero", action="store_true", help="only frames without a VLAN, or with VLAN 0"
    )
    parser.add_argument("--encapsulation", action="store_true", help="the addresses inside VXLAN and NVGRE")
    add_owner(parser)
    parser = add_operation(nested, "clear", clear, "take a filter away")
    parser.add_argument("filter", metavar="FILTER", type=int, help="its number")
    add_owner(parser)
    parser = add_operation(
        nested, "move", move, "let a filter point to another receive queue, between two frames"
    )
    parser.add_argument("filter", metavar="FILTER", type=int, help="its number")
    parser.add_argument("queue", metavar="QUEUE", type=receive_queue, help='its number, "default" or "drop"')
    add_owner(parser)


def list_filters(args: argparse.Namespace) -> int:
    rows = ask_rows(args.api, "enum_filters", uplink=args.uplink, owner=args.owner, queue=args.queue)
    print(json.dumps(rows, indent=2) if args.json else text(rows))
    return 0


def text(rows: Sequence[Row]) -> str:
    return table(rows, COLUMNS) if rows else "no filters"


def set_filter(args: argparse.Namespace) -> int:
    flags = {"vlan_untagged_or_zero": args.untagged_or_zero, "encapsulation": args.encapsulation}
    words: dict[str, Any] = {
        "tests": [test(one) for one in args.tests],
        "flags": [name for name, wanted in flags.items() if wanted],
    }
    if args.priority is not None:
        words["priority"] = args.priority
    made = ask_record(
        args.api, "set_filter", uplink=args.uplink, owner=args.owner, queue=args.queue, filter=words
    )
    print(json.dumps(made) if args.json else _where(args, made.get("filter")))
    return 0


def _where(args: argparse.Namespace, filter_id: Any) -> str:
    """What the filter's record says of its frames now."""
    row = ask_record(args.api, "filter_parameters", uplink=args.uplink, filter=filter_id)
    queue = row.get("queue")
    if queue == QUEUES["drop"]:
        return f"filter {filter_id}: its frames are dropped, by the drop queue"
    if row.get("in_effect"):
        name = "the default queue" if queue == QUEUES["default"] else f"receive queue {queue}"
        return f"filter {filter_id}: its frames belong to {name}"
    return f"filter {filter_id}: not in effect until the allocation of receive queue {queue} is complete"


def test(written: str) -> dict[str, str]:
    """One comparison in the API's words."""
    match = TEST.fullmatch(written)
    masked = bool(match and match["mask"])
    if not match or (masked and match["sign"] == "!="):
        raise ConfigError(
            "vmq filter set",
            f'"{written}" is no test',
            "Write it as vlan_id==5, vlan_id!=5 or 'arp_tpa & 255.255.255.0 == 10.0.0.0'",
        )
    kind = "mask_equal" if masked else "equal" if match["sign"] == "==" else "not_equal"
    said = {"field": match["field"], "kind": kind, "value": match["value"]}
    return {**said, "mask": match["mask"]} if masked else said


def clear(args: argparse.Namespace) -> int:
    done = ask_record(args.api, "clear_filter", uplink=args.uplink, owner=args.owner, filter=args.filter)
    print(json.dumps(done) if args.json else f"filter {args.filter}: cleared")
    return 0


def move(args: argparse.Namespace) -> int:
    done = ask_record(
        args.api,
        "move_filter",
        uplink=args.uplink,
        owner=args.owner,
        filter=args.filter,
        queue=args.queue,
    )
    print(json.dumps(done) if args.json else _where(args, args.filter))
    return 0
