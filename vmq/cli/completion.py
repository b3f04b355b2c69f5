# SPDX-License-Identifier: Apache-2.0
"""Completion for shells: a script with all words, made from the parser.

The words in it are fixed when it is made; for the names of VMs and uplinks it asks `vmq __complete vms` and
`vmq __complete uplinks`. It is made by shtab, which is needed here and nowhere else: a package ships the scripts, made at build time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vmq.cli.client import ask
from vmq.cli.grammar import Verbs, add_verb, shortened
from vmq.errors import VmqError

SHELLS = ("bash", "zsh", "fish")


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "completion", run, "the script with which a shell completes vmq's words")
    parser.add_argument("shell", choices=SHELLS, type=shortened(SHELLS), help="one of %(choices)s")


def run(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        raise VmqError(
            "shtab is not installed", "Run: python -m pip install shtab", place="vmq completion"
        ) from None
    from vmq.cli.dispatch import build_parser

    print(shtab.complete(build_parser(), args.shell))
    return 0


def names(words: Sequence[str]) -> int:
    """Print the names of one noun, a line each. A shell has no place for errors: then nothing is printed."""
    if list(words) not in (["vms"], ["uplinks"]):
        return 2
    try:
        rows = ask(None, "show", what=words[0])
    except VmqError:
        return 1
    for row in rows:
        print(row["name"])
    return 0
