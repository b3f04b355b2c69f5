# SPDX-License-Identifier: Apache-2.0
"""`vmq run` and `vmq demo`: the verbs that start something in this process.

They are the only ones that pay for the compiler, so what they call is imported here, in the branch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vmq.cli.grammar import Verbs, add_config, add_json, add_verb, seconds


def add(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "run", run, "the engine, in the foreground, until SIGTERM or SIGINT; SIGHUP reloads"
    )
    add_config(parser)
    parser = add_verb(verbs, "demo", demo, "the whole thing on this machine: no root, no NIC, no QEMU")
    parser.add_argument(
        "--seconds",
        metavar="N",
        type=seconds,
        default=5.0,
        help="how long the capture is replayed (default: 5)",
    )
    parser.add_argument(
        "--direct",
        action="store_true",
        help="as root, on a wire of its own: the engine writes the frames into guest memory, then the kernel; both compared",
    )
    parser.add_argument("--plain", action="store_true", help="lines instead of a live table")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from vmq import daemon

    return daemon.run(Path(args.config))


def demo(args: argparse.Namespace) -> int:
    if args.direct:
        from vmq import demo_direct

        return demo_direct.run(args.seconds, args.json, args.plain)
    from vmq import demo as built_in

    return built_in.run(args.seconds, args.json, args.plain)
