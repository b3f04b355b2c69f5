# SPDX-License-Identifier: Apache-2.0
"""A built-in guest as a process of its own: python -m vmq.guest --socket S --mac M [--expect FILE] [--send FILE] …

It prints JSON lines: {"event": "ready"} when its rings run, {"event": "counters", …} every 200 ms, and at the end
{"event": "end", "reason": …, …} with the last counters. It ends when its input does or says `stop`, on SIGTERM or
SIGINT, after --seconds, or when the back-end hangs up. With --hold it sends nothing until a line says `send`; a line
that says `count` is answered with counters at once.

Exit codes: 0 it did its work, 1 the back-end was not there or hung up, 2 the arguments are wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from vmq.abi.ethernet import VLAN_VID_MAX, mac_number
from vmq.errors import ProtocolError
from vmq.guest.frames import read_frames
from vmq.guest.guest import ROOM, Guest
from vmq.guest.rings import Shape
from vmq.guest.traffic import Traffic, compile_kernels, transmit_room
from vmq.jit import watch_compilation

PERIOD = 0.2  # seconds between two lines of counters
DONE, FAILED, WRONG = 0, 1, 2


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vmq.guest", description="A guest without a machine.")
    parser.add_argument("--compile-only", action="store_true", help="compile the kernels and exit")
    parser.add_argument("--socket", help="vhost-user socket of the back-end")
    parser.add_argument("--mac", action="append", help="its address (repeat: more of them)")
    parser.add_argument(
        "--vlan", type=int, default=0, help="its VLAN: frames tagged otherwise are counted as stray"
    )
    parser.add_argument("--expect", help="file of the frames that must arrive, in order, round and round")
    parser.add_argument("--send", help="file of the frames to send, round and round")
    parser.add_argument("--rate", type=int, default=0, help="frames a second to send (0: as the ring allows)")
    parser.add_argument("--limit", type=int, default=0, help="frames to send in all (0: no limit)")
    parser.add_argument(
        "--window", type=int, default=0, help="frames in flight at most (0: as the ring allows)"
    )
    parser.add_argument(
        "--hold", action="store_true", help="send nothing before a line on the input says send"
    )
    parser.add_argument("--seconds", type=float, default=0, help="end after so long (0: when told)")
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--size", type=int, default=256, help="descriptors a virtqueue")
    parser.add_argument("--buffer", type=int, default=2048, help="bytes of a receive buffer")
    parser.add_argument("--mtu", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1, help="pieces of a sent chain; 2: header apart")
    parser.add_argument("--mergeable", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--event-idx", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--indirect", action=argparse.BooleanOptionalAction, default=False, help="send by tables"
    )
    parser.add_argument("--server", action="store_true", help="listen, and let the back-end connect")
    parser.add_argument("--poll", action="store_true", help="never sleep, only yield the processor")
    parser.add_argument("--cpu", type=int, help="run on this processor only")
    return parser


def say(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def progress(name: str) -> None:
    """A kernel is being compiled; helpers without a name are not worth a line."""
    if name.isidentifier() and not name.startswith("_"):
        say("compiling", kernel=name)


class Reader:
    """Lines of the input, and the end of it, without blocking."""

    def __init__(self, stop_fd: int) -> None:
        self.stop_fd = stop_fd  # readable after a signal
        self._text = b""

    def words(self, seconds: float) -> list[str]:
        """What was said within `seconds`; "end" for the end of the input, "signal" for a signal."""
        fds, _, _ = select.select([0, self.stop_fd], [], [], seconds)
        if self.stop_fd in fds:
            return ["signal"]
        if not fds:
            return []
        data = os.read(0, 4096)
        *lines, self._text = (self._text + data).split(b"\n")
        return [line.decode(errors="replace").strip() for line in lines] if data else ["end"]


def watch(guest: Guest, traffic: Traffic, reader: Reader) -> str:
    """Tell the counters until the end; its reason."""
    due = time.monotonic() + PERIOD
    while traffic.running:
        for word in reader.words(max(due - time.monotonic(), 0)):
            if word == "send":
                traffic.hold(on=False)
            elif word == "count":
                say("counters", **traffic.counters())
            elif word in ("stop", "end", "signal"):
                return word
        if not guest.frontend.connected:
            return "disconnected"
        if time.monotonic() >= due:
            say("counters", **traffic.counters())
            due += PERIOD
    return "seconds"


def run(options: argparse.Namespace, reader: Reader) -> int:
    expected = read_frames(options.expect) if options.expect else []
    transmit = read_frames(options.send) if options.send else []
    with Guest(
        options.socket,
        options.mac[0],
        options.queues,
        options.size,
        options.mergeable,
        options.event_idx,
        options.indirect,
        buffer_bytes=options.buffer,
        server=options.server,
        transmit_shape=Shape(parts=options.parts, indirect=options.indirect),
        mtu=options.mtu,
        room=ROOM + transmit_room(transmit),
    ) as guest:
        bounds = {name: getattr(options, name) for name in ("rate", "limit", "window", "poll", "vlan")}
        traffic = Traffic(
            guest,
            expected,
            transmit,
            duration=options.seconds,
            hold=options.hold,
            macs=options.mac[1:],
            **bounds,
        )
        with traffic:
            say("ready", socket=options.socket, mac=options.mac[0], pid=os.getpid())
            reason = watch(guest, traffic, reader)
        say("end", reason=reason, **traffic.counters())
    return FAILED if reason == "disconnected" else DONE


def check(options: argparse.Namespace) -> str:
    """What is wrong with the arguments."""
    if not options.socket or not options.mac:
        return "--socket and --mac are needed"
    if not 0 <= options.vlan <= VLAN_VID_MAX:
        return f"--vlan {options.vlan} is not 0 to {VLAN_VID_MAX}"
    try:
        for mac in options.mac:
            mac_number(mac)
    except ValueError as error:
        return str(error)
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    with watch_compilation(progress):
        compile_kernels()
    if options.compile_only:
        return DONE
    if wrong := check(options):
        sys.stderr.write(f"vmq.guest: {wrong}\n")
        return WRONG
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    stop_fd, wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        return run(options, Reader(stop_fd))
    except (OSError, ValueError, ProtocolError) as error:
        with contextlib.suppress(BrokenPipeError):
            say("failed", error=str(error))
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
