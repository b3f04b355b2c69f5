# SPDX-License-Identifier: Apache-2.0
"""From words to an exit code: find the verb, do it, and print what went wrong as one line on stderr.

Two requests are answered before any parsing. `--print-capabilities` ignores all other words: QEMU's
conventions want it so (vhost-user "Backend program conventions"). `__complete` is for shells, and never has
an error to show.

The feature names in the capabilities are ours, as the schema defines none for the type `net`: `mq` (several
receive queues for a guest) and `reconnect` (an engine that was started again takes its guests back).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from vmq import __version__
from vmq.cli import (
    bench,
    capabilities,
    capture,
    check,
    completion,
    doctor,
    events,
    explain,
    filters,
    measure,
    metrics,
    nic,
    plan,
    queues,
    run,
    show,
    snippet,
)
from vmq.cli.grammar import Parser, expand
from vmq.errors import ConfigErrors, VmqError

CAPABILITIES = {"type": "net", "features": ["mq", "reconnect"]}
EPILOG = """\
Verbs and their words may be shortened.
Exit codes: 0 done, 1 it failed, 2 the request or the configuration is wrong.
"""


def build_parser() -> Parser:
    """All verbs. Also for the manual page and the completions, which are made from it."""
    parser = Parser(
        prog="vmq",
        description="A receive queue of its own for every virtual machine of this host.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"vmq {__version__}")
    parser.add_argument(
        "--print-capabilities", action="store_true", help="what this vhost-user back-end can do, as JSON"
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for group in (run, check, plan, show, queues, filters, capabilities, events, explain, capture, measure):
        group.add(verbs)
    for group in (bench, metrics, nic, doctor, snippet, completion):
        group.add(verbs)
    parser.set_defaults(verbs=verbs.choices)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--print-capabilities" in words:
        print(json.dumps(CAPABILITIES))
        return 0
    if words[:1] == ["__complete"]:
        return completion.names(words[1:])
    try:
        return _run(words)
    except VmqError as error:
        _report(error, as_json="--json" in words or "-j" in words)
        return error.exit_code
    except SystemExit as end:  # --help and --version
        return int(end.code or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # vmq show | head: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(words: list[str]) -> int:
    parser = build_parser()
    args = parser.parse_args(_expanded(parser, words))
    code: int = args.run(args)
    sys.stdout.flush()
    return code


def _expanded(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """The verb in full, and the verb below it, where there is one."""
    verbs = parser.get_default("verbs")
    if not verbs or not words:
        return list(words)
    try:
        verb = expand(words[0], verbs)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    return [verb, *(_expanded(verbs[verb], words[1:]) if verb in verbs else words[1:])]


def _report(error: VmqError, *, as_json: bool) -> None:
    if as_json:
        errors = error.errors if isinstance(error, ConfigErrors) else (error,)
        print(json.dumps({"errors": [one.record() for one in errors]}, indent=2), file=sys.stderr)
    else:
        print(error, file=sys.stderr)
