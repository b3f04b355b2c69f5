# SPDX-License-Identifier: Apache-2.0
"""`vmq explain`: where a frame would go, and why.

The engine decides it with the tables it forwards with; this prints the decision. The frame is given by what a
filter sees of it (--mac, --vlan) or as its bytes (--hex), as tcpdump -x and Wireshark print them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vmq.cli.client import ask
from vmq.cli.grammar import Verbs, add_api, add_json, add_verb
from vmq.errors import ApiError, ConfigError
from vmq.table import plain


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "explain", run, "which filter and which queue a frame meets, or why none")
    parser.add_argument("--mac", metavar="MAC", help="the destination address")
    parser.add_argument("--vlan", metavar="N", type=int, help="the VLAN of its tag (default: it has none)")
    parser.add_argument("--uplink", metavar="NAME", help="the uplink it comes from (default: the only one)")
    parser.add_argument("--hex", metavar="FRAME", help="the frame itself, in hexadecimal, at least 14 bytes")
    add_api(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.mac is None and args.hex is None:
        raise ConfigError("vmq explain", "no frame is given", "Give --mac MAC, --hex FRAME or both")
    if args.vlan is not None and not 0 <= args.vlan <= 4095:
        raise ConfigError("vmq explain --vlan", f"{args.vlan} is not a VLAN", "Give a number from 0 to 4095")
    frame = None if args.hex is None else _frame(args.hex)
    mac = None if args.mac is None else _mac(args.mac)
    answer = ask(args.api, "explain", mac=mac, vlan=args.vlan, uplink=args.uplink, hex=frame)
    if not isinstance(answer, dict):
        raise ApiError(
            "FAILURE", "the engine's answer is not a decision", "Use the vmq of the engine's version"
        )
    print(json.dumps(answer, indent=2) if args.json else text(answer))
    return 0


def text(answer: Mapping[str, Any]) -> str:
    """The decision, the reason, the steps that led to it, and what to do if it is not what was meant."""
    return "\n".join(plain(line) for line in _lines(answer))


def _lines(answer: Mapping[str, Any]) -> Iterator[str]:
    where = [f"{noun} {answer[noun]}" for noun in ("vm", "queue") if answer.get(noun) is not None]
    yield ": ".join(part for part in (str(answer.get("verdict")), ", ".join(where)) if part)
    if answer.get("reason"):
        yield f"reason: {answer['reason']}"
    for number, step in enumerate(answer.get("steps") or (), start=1):
        yield f"{number:3}. {step}"
    if answer.get("remedy"):
        yield f"remedy: {answer['remedy']}"


def _mac(written: str) -> str:
    """Any address, also a multicast one: frames have them."""
    digits = re.sub(r"[:-]", "", written).lower()
    if not re.fullmatch(r"[0-9a-f]{12}", digits):
        raise ConfigError(
            "vmq explain --mac", f'"{written}" is not a MAC address', "Write it as 52:54:00:00:00:01"
        )
    return bytes.fromhex(digits).hex(":")


def _frame(written: str) -> str:
    """The digits of a frame, from any of the ways to write bytes."""
    digits = re.sub(r"0x|[\s:,.-]", "", written).lower()
    if not re.fullmatch(r"(?:[0-9a-f]{2}){14,65535}", digits):
        raise ConfigError(
            "vmq explain --hex", "this is not a frame", "Give at least 14 bytes, two hexadecimal digits each"
        )
    return digits
