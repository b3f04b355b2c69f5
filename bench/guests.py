# SPDX-License-Identifier: Apache-2.0
"""The guests of a measurement, all on one processor: our own front-end, or dpdk-testpmd's. Both only receive.

The same program drives every system, so a difference is the system's. `delivered` counts at the receivers.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.systems import GUEST_CPU, Served, mac
from tests.dpdk.lab import PATHS, Testpmd, until

READY_SECONDS = 120
RING = 1024


@contextlib.contextmanager
def built_in(_folder: Path, served: Served) -> Iterator[Callable[[], int]]:
    """A vmq.guest process for each socket; gives the frames that arrived at all of them."""
    counts = [-1] * len(served.sockets)
    processes = []

    def follow(number: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)
            if told["event"] == "ready" or "frames" in told:
                counts[number] = int(told.get("frames", 0))

    with contextlib.ExitStack() as stack:
        for number, socket in enumerate(served.sockets):
            argv = [
                sys.executable,
                "-m",
                "vmq.guest",
                "--socket",
                str(socket),
                "--mac",
                mac(number),
                "--poll",
            ]
            argv += [
                "--cpu",
                str(GUEST_CPU),
                "--size",
                str(RING),
                *(["--server"] if served.guests_listen else []),
            ]
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ)
            processes.append(process)
            stack.callback(_end, process)
            threading.Thread(target=follow, args=(number, process), daemon=True).start()
        until(lambda: min(counts) >= 0, "all guests are ready", READY_SECONDS)
        yield lambda: sum(counts)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


@contextlib.contextmanager
def testpmd(folder: Path, served: Served) -> Iterator[Callable[[], int]]:
    """One dpdk-testpmd with a virtio_user port for each socket; gives the frames that arrived at all of them."""
    devices = [
        f"net_virtio_user{number},path={socket},mac={mac(number)},queues=1,queue_size={RING},"
        f"{PATHS['mergeable'][0]},server={int(served.guests_listen)}"
        for number, socket in enumerate(served.sockets)
    ]
    process = Testpmd(folder, devices, cpu=GUEST_CPU, forward="rxonly", options=("--port-topology=loop",))
    with process as front_end:
        front_end.say("start")
        yield lambda: sum(front_end.received(number) for number in range(len(served.sockets)))


FRONT_ENDS = {"built-in": built_in, "testpmd": testpmd}
