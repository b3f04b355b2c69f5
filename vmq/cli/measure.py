# SPDX-License-Identifier: Apache-2.0
"""`vmq measure`: have the engine measure how long frames to a VM are under way; `vmq show histograms` shows it.

It costs a reading of the clock for every burst of the whole engine, so it is off until somebody asks. What was
measured stays to be seen until the next measurement begins.
"""

from __future__ import annotations

import argparse
import json

from vmq.cli.client import ask_record
from vmq.cli.grammar import VMS, Verbs, add_api, add_json, add_verb, offer

SWITCH = ("on", "off")


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "measure", run, "measure how long frames to a VM are under way")
    offer(parser.add_argument("vm", metavar="VM", help="the NAME of a [vm.NAME]"), VMS)
    parser.add_argument(
        "switch", nargs="?", choices=SWITCH, default="on", help="one of %(choices)s (default: %(default)s)"
    )
    add_api(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    done = ask_record(args.api, "measure", vm=args.vm, on=args.switch == "on")
    words = "is measured: vmq show histograms" if args.switch == "on" else "is measured no more"
    print(json.dumps(done) if args.json else f"{args.vm} {words}")
    return 0
