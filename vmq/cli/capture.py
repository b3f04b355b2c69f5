# SPDX-License-Identifier: Apache-2.0
"""`vmq capture`: the frames of a VM, as its guest gets and sends them, in a file or a pipe for Wireshark and tcpdump.

        vmq capture web --count 100 web.pcapng          vmq capture web - | tcpdump -n -r -

The engine tells whole blocks of a pcapng file, and this side opens the file: no path reaches the engine. --count,
--seconds, an interrupt and the end of the VM port end a capture in the same way: what is left is written, then how many
frames the capture itself has lost. Guests lose none by it.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import struct
import sys
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

from vmq.cli.client import Pieces, capturing
from vmq.cli.grammar import FILES, VMS, Verbs, add_api, add_verb, offer, seconds, shortened
from vmq.errors import ConfigError, HostError

DIRECTIONS = ("to_guest", "from_guest", "both")
PACKET = 6  # pcapng "Enhanced Packet Block"
HEAD = struct.Struct("<II")  # pcapng "General Block Structure": type, length


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "capture", run, "the frames of a VM, as a capture file (pcapng)")
    offer(parser.add_argument("vm", metavar="VM", help="the NAME of a [vm.NAME]"), VMS)
    offer(parser.add_argument("file", metavar="FILE", help='where to; "-": standard output'), FILES)
    parser.add_argument("--queue", metavar="N", type=int, help="only this receive queue (default: all)")
    parser.add_argument(
        "--direction",
        choices=DIRECTIONS,
        default="both",
        type=shortened(DIRECTIONS),
        help="one of %(choices)s (default: %(default)s)",
    )
    parser.add_argument("--count", metavar="N", type=_count, help="end after so many frames")
    parser.add_argument("--seconds", metavar="S", type=seconds, help="end after so long")
    parser.add_argument("--snaplen", metavar="N", type=_count, help="bytes of a frame that are kept")
    add_api(parser)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than one")
    return value


def run(args: argparse.Namespace) -> int:
    if args.file == "-" and sys.stdout.isatty():
        raise ConfigError(
            "vmq capture", "a capture is nothing to look at", "Pipe it: vmq capture VM - | tcpdump -n -r -"
        )
    asked = {"vm": args.vm, "queue": args.queue, "direction": args.direction, "snaplen": args.snaplen}
    with capturing(args.api, **asked) as pieces, _opened(args.file) as file, _ending(pieces, args.seconds):
        written, lost = write(pieces, file, args.count)
    print(f"{written} frames captured, {lost} lost by the capture", file=sys.stderr)
    return 0


def write(pieces: Pieces, file: BinaryIO, count: int | None) -> tuple[int, int]:
    """Everything that comes, but `count` frames at most; how many, and how many the capture has lost."""
    written = lost = 0
    for content, so_far in pieces:
        lost = so_far
        whole = bytearray()
        for kind, block in blocks(content):
            if kind != PACKET or count is None or written < count:
                whole += block
                written += kind == PACKET
        file.write(whole)
        file.flush()
        if written == count:
            pieces.enough()
    return written, lost


def blocks(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The blocks of a piece: type, and all of it."""
    place = 0
    while place + HEAD.size <= len(content):
        kind, length = HEAD.unpack_from(content, place)
        yield kind, content[place : place + max(length, HEAD.size)]
        place += max(length, HEAD.size)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdout.buffer
        return
    try:
        file = open(path, "wb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise HostError(
            "vmq capture", f"cannot write {path}: {error.strerror}", "Name a file that may be written"
        ) from error
    with file:
        yield file


@contextlib.contextmanager
def _ending(pieces: Pieces, after: float | None) -> Iterator[None]:
    """An interrupt, or time, ends the capture in an orderly way."""

    def enough(*_: Any) -> None:
        pieces.enough()

    before = {number: signal.signal(number, enough) for number in (signal.SIGINT, signal.SIGTERM)}
    timer = threading.Timer(after, enough) if after is not None else None
    if timer is not None:
        timer.start()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()
        for number, handler in before.items():
            signal.signal(number, handler)
