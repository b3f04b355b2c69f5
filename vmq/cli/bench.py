# SPDX-License-Identifier: Apache-2.0
"""`vmq bench`: what this machine can do, in a minute; `--with-without`: what a receive queue for each VM is worth here;
`--placement`: from which length of frames on direct placement pays here.

It starts an engine and guests of its own, in this process and below it, and asks no engine that runs: stop that one
first, or its traffic is in the figures.
"""

from __future__ import annotations

import argparse

from vmq.cli.client import ask
from vmq.cli.grammar import FILES, Verbs, add_json, add_verb, offer, seconds

PLACEMENT_TIMES = 4  # so long each length is measured: its figures are differences


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "bench", run, "what this machine can do, in a minute: no root, no NIC, no peers")
    parser.add_argument(
        "--seconds",
        metavar="N",
        type=seconds,
        default=1.0,
        help="how long each measurement takes (default: 1)",
    )
    parser.add_argument(
        "--with-without",
        action="store_true",
        help="receive queues beside the default queue alone, and beside Linux bridge, TAP and virtio-net's work (no QEMU runs)",
    )
    parser.add_argument(
        "--placement",
        action="store_true",
        help="what a frame takes of this machine, placed by the engine and by the kernel, and from which length on the latter pays; "
        'it is kept for placement = "auto"; as root',
    )
    output = parser.add_argument(
        "--output",
        metavar="FILE",
        help="where --placement keeps what it found (default: /var/lib/vmq/placement.json)",
    )
    offer(output, FILES)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from vmq.speed import placement, program

    if args.placement:
        print(placement.run(ask, args.seconds * PLACEMENT_TIMES, args.output, args.json))
    elif args.with_without:
        print(program.with_without(args.seconds / 2, args.json))
    else:
        print(program.run(args.seconds, args.json))
    return 0
