# SPDX-License-Identifier: Apache-2.0
"""The guests of a measurement, all on one processor: our own front-end, or dpdk-testpmd's. Both only receive.

The same program drives every system, so a difference is the system's. Frames are counted at the receivers.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.systems import GUEST_CPU, Served, mac
from tests.dpdk.frames import read_capture
from tests.dpdk.lab import PATHS, Testpmd, pcap, until

READY_SECONDS = 120
RING = 1024


# Frames that have arrived at each guest, and the second of its clock at which that was so.
Meter = Callable[[], list[tuple[int, float]]]


def rate(first: list[tuple[int, float]], then: list[tuple[int, float]]) -> float:
    """Frames a second at all guests between two readings; 0 where a guest's clock stood still."""
    return sum(
        (count - before) / (now - since) if now > since else 0.0
        for (before, since), (count, now) in zip(first, then, strict=True)
    )


@contextlib.contextmanager
def built_in(_folder: Path, served: Served) -> Iterator[Meter]:
    """A vmq.guest process for each socket."""
    readings: list[tuple[int, float] | None] = [None] * len(served.sockets)

    def follow(number: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)
            if told["event"] == "ready" or "frames" in told:
                readings[number] = int(told.get("frames", 0)), told.get("elapsed_ns", 0) / 1e9

    with contextlib.ExitStack() as stack:
        for number, socket in enumerate(served.sockets):
            argv = [
                *(sys.executable, "-m", "vmq.guest", "--socket", str(socket), "--mac", mac(number), "--poll"),
                *("--cpu", str(GUEST_CPU), "--size", str(RING), *(["--server"] if served.guests_listen else [])),
            ]  # fmt: skip
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ)
            stack.callback(_end, process)
            threading.Thread(target=follow, args=(number, process), daemon=True).start()
        until(lambda: all(readings), "all guests are ready", READY_SECONDS)
        yield lambda: [reading for reading in readings if reading is not None]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def device(number: int, served: Served) -> str:
    """The front-end of guest `number`."""
    ring = f"queues=1,queue_size={RING},{PATHS['mergeable'][0]}"
    path, listens = served.sockets[number], int(served.guests_listen)
    return f"net_virtio_user{number},path={path},mac={mac(number)},{ring},server={listens}"


@contextlib.contextmanager
def testpmd(folder: Path, served: Served) -> Iterator[Meter]:
    """One dpdk-testpmd with a virtio_user port for each socket."""
    guests = range(len(served.sockets))
    process = Testpmd(
        folder,
        [device(number, served) for number in guests],
        cpu=GUEST_CPU,
        forward="rxonly",
        options=("--port-topology=loop",),
    )
    with process as front_end:
        front_end.say("start")
        yield lambda: [(front_end.received(number), time.monotonic()) for number in guests]


@contextlib.contextmanager
def keeping(folder: Path, served: Served) -> Iterator[tuple[Meter, Callable[[], list[list[bytes]]]]]:
    """As `testpmd`, and every frame is kept; also gives what ends it and returns the frames, guest by guest."""
    guests = range(len(served.sockets))
    devices = []
    for number in guests:
        devices += [device(number, served), pcap(number, write=folder / f"{number}.kept")]
    with Testpmd(folder, devices, cpu=GUEST_CPU) as front_end:
        front_end.say("start")

        def kept() -> list[list[bytes]]:
            front_end.quit()
            return [read_capture(folder / f"{number}.kept") for number in guests]

        yield lambda: [(front_end.received(2 * number), time.monotonic()) for number in guests], kept


FRONT_ENDS = {"built-in": built_in, "testpmd": testpmd}
