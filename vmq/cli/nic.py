# SPDX-License-Identifier: Apache-2.0
"""`vmq nic`: what a NIC of this host can do for vmq, step by step; it is left as it was found.

Exit codes: 0 an xdp uplink with direct placement has what it needs, 1 something of that is not there, or could not be tried, 2 nothing
was tried: no such device, no permission, or the default route leads over it and nobody said --force.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from vmq.cli.grammar import DEVICES, Verbs, add_json, add_verb, offer
from vmq.table import plain

if TYPE_CHECKING:
    from vmq.nic import Step

WIDTH = len("zero-copy-guest")  # of a step's name, at most


def add(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "nic", run, "what a NIC can do for vmq, step by step; it is left as it was found"
    )
    option = parser.add_argument(
        "device", metavar="DEVICE", help="the NIC; its traffic may pause for seconds"
    )
    offer(option, DEVICES)
    parser.add_argument(
        "--queue", metavar="N", type=_queue, default=0, help="which receive queue is tried (default: 0)"
    )
    parser.add_argument(
        "--rules", action="store_true", help="also add a rule to its table for a moment, and delete it"
    )
    parser.add_argument(
        "--force", action="store_true", help="even if the default route leads over it: its link may be reset"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from vmq.nic import Nic, examine, held, refuse

    nic = Nic(args.device, args.queue)
    refuse(nic, force=args.force)
    steps = []
    with held() as look:
        for step in examine(nic, rules=args.rules, look=look):
            steps.append(step)
            if not args.json:
                _show(step)
    wanting = [step.name for step in steps if step.in_the_way]
    if args.json:
        told = {"device": nic.name, "queue": nic.queue, "ready": not wanting}
        print(json.dumps({**told, "steps": [step.record() for step in steps]}, indent=2))
    else:
        what = "an xdp uplink with direct placement"
        print(
            f"\n{what} has not all it needs: {', '.join(wanting)}"
            if wanting
            else f"\n{what} has what it needs"
        )
    return 1 if wanting else 0


def _queue(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} is no receive queue: give its number")
    return int(text)


def _show(step: Step) -> None:
    mark = "needed" if step.needed else ""
    print(f"{step.verdict}  {step.name:<{WIDTH}}  {mark:<6}  {plain(step.found)}", flush=True)
    if step.remedy:
        print(f"      remedy: {plain(step.remedy)}", flush=True)
