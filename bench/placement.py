# SPDX-License-Identifier: Apache-2.0
"""What it takes to become direct, and to be switched again: memory that is pinned, and a guest that waits for its frames.

    direct-register   a guest's memory, all of it touched before: time until the kernel has it, and memory that the kernel
                      takes for it beside the guest's own (MemFree, /proc/meminfo)
    direct-change     a frame every PAUSE_NS to one guest, while a measurement of the VM begins (it is switched) and ends (it is
                      direct again): the longest that a frame was under way, beside the longest while nothing changes

Each frame of direct-change is compared, and comes once. On the way to direct a newer one may come before an older one that
still stood in the engine's socket (docs/adr/0011): how many is told. Sender, guest and the engine's control share a processor,
so a turn of control is in all three figures.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.delivery import RefusedError
from bench.direct import PATIENCE, frame, served
from bench.quiet import say
from bench.stats import Figure, Measure
from bench.systems import GUEST_CPU
from vmq.affinity import on_processor
from vmq.dataplane.state import direct_queue
from vmq.direct.memory import GuestMemory
from vmq.direct.pair import Apart, Pair
from vmq.direct.socket import GuestSocket
from vmq.guest.guest import Guest
from vmq.speed.placed import Served
from vmq.speed.wire import Wire, wire
from vmq.vhost.message import Region

MIB = 1 << 20
SIZES = (512 * MIB, 4096 * MIB)
MTU = 1500
PAUSE_NS = 50_000
STEADY_SECONDS = 0.2
NUMBER = slice(14, 22)  # of a frame
Journey = tuple[int, int]  # when a frame was sent and when its guest had it, ns


# --- registering -------------------------------------------------------------------------------------------------


def registered(size: int) -> tuple[float, float]:
    """Seconds, and MiB that the kernel takes, for a guest of so many bytes."""
    with contextlib.ExitStack() as stack:
        file = os.memfd_create("guest", os.MFD_CLOEXEC)
        stack.callback(os.close, file)
        os.ftruncate(file, size)
        with mmap.mmap(file, size) as touched:
            np.frombuffer(touched, np.uint8)[:: mmap.PAGESIZE] = 1
        memory = stack.enter_context(contextlib.closing(GuestMemory((Region(0, size, 0, 0, file),))))
        apart = stack.enter_context(contextlib.closing(Apart()))
        pair = stack.enter_context(contextlib.closing(Pair(apart, 1, MTU)))
        row = np.zeros(1, direct_queue)[0]
        free, began = _free(), time.monotonic()
        made = apart.call(lambda: GuestSocket(pair.far_index, memory.address, memory.size, MTU + 14, row))
        spent, taken = time.monotonic() - began, free - _free()
        made.close()
        return spent, taken / MIB


def _free() -> int:
    found = re.search(r"MemFree: +([0-9]+) kB", Path("/proc/meminfo").read_text())
    return 1024 * int(found[1]) if found else 0


def register(runs: int) -> dict[str, Figure]:
    """Both sizes in turn."""
    values: dict[str, list[float]] = {}
    for run in range(runs):
        for size in SIZES:
            spent, taken = registered(size)
            values.setdefault(f"{size // MIB} MiB: s", []).append(spent)
            values.setdefault(f"{size // MIB} MiB: MiB of the kernel's", []).append(taken)
            say(f"direct-register: {run + 1}/{runs}, {size // MIB} MiB in {spent:.2f} s")
    return {name: Figure.of(found) for name, found in values.items()}


# --- changing ----------------------------------------------------------------------------------------------------


class Flow:
    """Frames to one guest, one after the other, and when each was there."""

    def __init__(self, sender: socket.socket, guest: Guest) -> None:
        self.sender, self.guest = sender, guest
        self.journeys: dict[int, Journey] = {}
        self.overtaken = 0
        self._sent: list[int] = []

    def run(self, go_on: Callable[[], bool]) -> None:
        """As long as it is to go on, and until all have arrived that do."""
        due = time.monotonic_ns()
        while go_on():
            if time.monotonic_ns() >= due:
                self._sent.append(time.monotonic_ns())
                self.sender.send(numbered(len(self._sent) - 1))
                due += PAUSE_NS
            self._take(1, 0)
        self._take(self.missing, PATIENCE)

    @property
    def missing(self) -> int:
        return len(self._sent) - len(self.journeys)

    def _take(self, most: int, seconds: float) -> None:
        for got in self.guest.receive(most, seconds) if most else ():
            number = int.from_bytes(got[NUMBER], "big")
            if got != numbered(number) or number in self.journeys:
                raise RefusedError(f"frame {number} came twice, or not as it was sent")
            self.overtaken += bool(self.journeys) and number < next(reversed(self.journeys))
            self.journeys[number] = self._sent[number], time.monotonic_ns()

    def longest(self, began: int, ended: int) -> float:
        """ms that a frame was under way, of those that were at any time between."""
        found = [there - sent for sent, there in self.journeys.values() if there >= began and sent <= ended]
        return max(found) / 1e6


def numbered(number: int) -> bytes:
    """Frame `number`: of 256 bytes."""
    data = frame(256)
    return data[: NUMBER.start] + number.to_bytes(8, "big") + data[NUMBER.stop :]


def changed() -> dict[str, float]:
    """The longest journeys of one flow, ms, and how many frames were overtaken."""
    with wire() as one, served(one, "direct") as engine, _sender(one) as sender:
        flow, marks = Flow(sender, engine.guests["direct"]), list[int]()

        def change() -> None:
            for on, wanted in ((True, "switched"), (False, "direct")):
                time.sleep(STEADY_SECONDS)
                marks.append(time.monotonic_ns())
                engine.ask("measure", vm="direct", on=on)
                engine.until_placed("direct", wanted)
                marks.append(time.monotonic_ns())
            time.sleep(STEADY_SECONDS)

        changing = threading.Thread(target=change)
        began = time.monotonic_ns()
        changing.start()
        with on_processor(GUEST_CPU):
            flow.run(changing.is_alive)
        changing.join()
        if flow.missing:
            raise RefusedError(
                f"{flow.missing} frames did not arrive: {engine.ask('show', what='vms')[0]['drops']}"
            )
        if len(marks) < 4:
            raise RefusedError("its placement did not change")
        return {
            "frames waited for the change, ms": _waited(engine),
            "longest journey, ms, while nothing changes": flow.longest(began, marks[0]),
            "longest journey, ms, direct to switched": flow.longest(*marks[:2]),
            "longest journey, ms, switched to direct": flow.longest(*marks[2:]),
            "frames that were overtaken": flow.overtaken,
        }


def _waited(engine: Served) -> float:
    """As the engine tells it."""
    (told,) = (
        one
        for one in engine.ask("events", since=0)
        if one["event"] == "placement" and one["placement"] == "switched"
    )
    return float(told["waited_ms"])


def _sender(one: Wire) -> socket.socket:
    made = one.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    made.bind((one.far, 0))
    return made


def change(runs: int) -> dict[str, Figure]:
    """One flow a run."""
    values: dict[str, list[float]] = {}
    for run in range(runs):
        found = changed()
        for name, value in found.items():
            values.setdefault(name, []).append(value)
        say(
            f"direct-change: {run + 1}/{runs}, "
            + ", ".join(f"{name} {value:.1f}" for name, value in found.items())
        )
    return {name: Figure.of(told) for name, told in values.items()}


ROWS: dict[str, Measure] = {"direct-register": register, "direct-change": change}
