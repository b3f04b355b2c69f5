# SPDX-License-Identifier: Apache-2.0
"""What the verbs share: the parser, words that may be shortened, and the options that several verbs have.

A word may be shortened as far as it stays unambiguous, as with `ip`: `vmq sh q` is `vmq show queues`. Long
options may be, too; argparse does that itself.

A mistake in the words is a ConfigError like one in a file, so it is printed like one: one line, with the
remedy.

`complete` on an argument tells shtab, at build time, what a shell offers there. The names of VMs and uplinks come
from `vmq __complete vms` and `vmq __complete uplinks`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from vmq import API_SOCKET
from vmq.errors import ConfigError

QEMU_IS = {"listen": "client", "connect": "server"}  # mode of a VM → libvirt's word for it
CONFIG = "/etc/vmq/vmq.toml"
OWNER = "cli"  # of receive queues and filters that commands set; they stay when a command has ended
QUEUES = {"default": 0, "drop": 65535}  # receive queues that have a word
FILES = {
    "bash": "_shtab_compgen_files",
    "zsh": "_files",
    "tcsh": "f",
    "fish": "(__fish_complete_path (commandline -ct))",
}


def _named(noun: str, ask: str) -> dict[str, Any]:
    """What a shell completes where the name of one of them stands: the words that a command prints."""
    return {
        "bash": f"_vmq_complete_{noun}",
        "zsh": f"($({ask}))",
        "tcsh": f"`{ask}`",
        "fish": f"({ask})",
        "preamble": {"bash": f'_vmq_complete_{noun}() {{ compgen -W "$({ask})" -- "$1"; }}'},
    }


VMS, UPLINKS = (_named(noun, f"vmq __complete {noun} 2>/dev/null") for noun in ("vms", "uplinks"))
DEVICES = _named("devices", "ls /sys/class/net")


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are ConfigErrors, to be printed in one place."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(self.prog, message, f"See {self.prog} --help")


Verbs = Any  # argparse's class of subparsers has no public name
Run = Callable[[argparse.Namespace], int]


def add_verb(verbs: Verbs, name: str, run: Run, summary: str) -> Parser:
    """A verb and the function that does it."""
    parser: Parser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
    )
    parser.set_defaults(run=run)
    return parser


def add_nest(verbs: Verbs, name: str, summary: str) -> Verbs:
    """A verb that has verbs of its own."""
    parser: Parser = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    nested = parser.add_subparsers(metavar="VERB", required=True)
    parser.set_defaults(verbs=nested.choices)
    return nested


def add_operation(nested: Verbs, name: str, run: Run, summary: str) -> Parser:
    """A verb below a verb, for the receive queues and filters of one uplink."""
    parser = add_verb(nested, name, run, summary)
    add_uplink(parser)
    add_api(parser)
    add_json(parser)
    return parser


def add_uplink(parser: Parser) -> None:
    option = parser.add_argument(
        "--uplink", metavar="NAME", help='which uplink (default: the only one; "": VMs without)'
    )
    offer(option, UPLINKS)


def add_owner(parser: Parser) -> None:
    parser.add_argument("--owner", metavar="NAME", default=OWNER, help="in whose name (default: %(default)s)")


def add_json(parser: Parser) -> None:
    parser.add_argument("-j", "--json", action="store_true", help="print JSON, errors too")


def add_api(parser: Parser) -> None:
    option = parser.add_argument(
        "--api", metavar="PATH", help=f"the engine's socket (default: $VMQ_API, or {API_SOCKET})"
    )
    offer(option, FILES)


def add_config(parser: Parser) -> None:
    option = parser.add_argument(
        "--config", metavar="FILE", default=CONFIG, help="the configuration (default: %(default)s)"
    )
    offer(option, FILES)


def offer(argument: argparse.Action, complete: dict[str, Any]) -> None:
    """What a shell completes for an argument."""
    argument.complete = complete  # type: ignore[attr-defined]


def expand(word: str, words: Collection[str]) -> str:
    """The one of `words` that `word` begins; if none, the word itself, for argparse to refuse."""
    found = [long for long in words if long.startswith(word)]
    if not word or word in words or not found:
        return word
    if len(found) > 1:
        raise argparse.ArgumentTypeError(f"{word} is ambiguous: {', '.join(found)}")
    return found[0]


def shortened(words: Collection[str]) -> Callable[[str], str]:
    """The type of an argument whose choices may be shortened."""

    def word(text: str) -> str:
        return expand(text, words)

    return word


def receive_queue(text: str) -> int:
    """The type of a receive queue: its id, or the word of one that is always there."""
    word = expand(text, QUEUES)
    if word not in QUEUES and not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(
            f"{text} is no receive queue: give its number, {' or '.join(QUEUES)}"
        )
    return QUEUES[word] if word in QUEUES else int(text)


def seconds(text: str) -> float:
    """The type of a time: seconds, more than none and less than a week."""
    value = float(text)
    if not 0 < value <= 7 * 86400:
        raise argparse.ArgumentTypeError(f"{text} is not a time in seconds")
    return value
