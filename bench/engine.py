# SPDX-License-Identifier: Apache-2.0
"""Figures of the engine alone: idle cost, wake-up time, start, memory."""

from __future__ import annotations

import os
import re
import select
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.stats import Figure, percentile
from bench.systems import mac
from tests.vm.lab.engine import EngineProcess
from vmq.guest.guest import Guest

IDLE_SECONDS = 4.0
SILENCE_SECONDS = 1.0
GUEST_MEMORY = re.compile(r"memfd:|/dev/zero \(deleted\)")


def configuration(folder: Path, vms: int) -> str:
    """VM ports without an uplink."""
    text = f'[engine]\napi = "{folder}/api.sock"\nprocessors = "1"\n'
    for number in range(vms):
        text += (
            f'[vm.v{number}]\nsocket = "{folder}/v{number}.sock"\nmac = "{mac(number)}"\nqueue_pairs = 1\n'
        )
    return text


@contextmanager
def running(vms: int) -> Iterator[tuple[EngineProcess, list[Guest]]]:
    """An engine with so many connected guests."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmq-bench-")))
        engine = stack.enter_context(EngineProcess(folder, configuration(folder, vms)))
        guests = [
            stack.enter_context(Guest(str(folder / f"v{number}.sock"), mac(number))) for number in range(vms)
        ]
        yield engine, guests


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle(runs: int) -> Figure:
    """Per cent of one processor that an engine with four connected, silent VMs takes."""
    with running(4) as (engine, _):
        time.sleep(1)
        values = []
        for _ in range(runs):
            before = cpu_seconds(engine.pid)
            time.sleep(IDLE_SECONDS)
            values.append((cpu_seconds(engine.pid) - before) / IDLE_SECONDS * 100)
    return Figure.of(values)


def wake_up(runs: int) -> dict[str, Figure]:
    """µs from a guest's kick after a second of silence until its neighbour's call, p50 and p99 of `runs`."""
    frame = bytes.fromhex(mac(1).replace(":", "") + mac(0).replace(":", "")) + b"\x88\xb5" + bytes(46)
    times = []
    with running(2) as (_, (sender, receiver)):
        poller = select.poll()
        poller.register(receiver.virtqueue(to_guest=True).call_fd, select.POLLIN)
        for _ in range(runs):
            receiver.receive(1, 0)
            receiver.virtqueue(to_guest=True).want_calls()
            while poller.poll(0):
                os.eventfd_read(receiver.virtqueue(to_guest=True).call_fd)
            time.sleep(SILENCE_SECONDS)
            began = time.perf_counter_ns()
            sender.send([frame])
            if not poller.poll(1000):
                raise ValueError("a frame was not indicated within a second")
            times.append((time.perf_counter_ns() - began) / 1000)
    return {"p50": Figure.of([percentile(times, 0.5)]), "p99": Figure.of([percentile(times, 0.99)])}


def start(runs: int) -> dict[str, Figure]:
    """Seconds from the start of `vmq run` until it serves: with an empty cache once, then from the cache."""
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory(prefix="vmq-bench-cache-") as cache:
        known = os.environ.get("VMQ_CACHE_DIR")
        os.environ["VMQ_CACHE_DIR"] = cache
        try:
            for run in range(runs + 1):
                began = time.monotonic()
                with running(0):
                    times["warm" if run else "cold"].append(time.monotonic() - began)
        finally:
            os.environ.pop("VMQ_CACHE_DIR")
            if known is not None:
                os.environ["VMQ_CACHE_DIR"] = known
    return {name: Figure.of(values) for name, values in times.items()}


def pss_mebibytes(pid: int) -> float:
    """Proportional share of the memory of a process without guest memory, MiB."""
    total, ours = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            ours = not GUEST_MEMORY.search(line)
        elif line.startswith("Pss:") and ours:
            total += int(line.split()[1])
    return total / 1024


def memory() -> dict[str, Figure]:
    """MiB of an engine without VMs, and what each connected VM with one receive queue adds."""
    shares = {}
    for vms in (0, 32):
        with running(vms) as (engine, _):
            shares[vms] = pss_mebibytes(engine.pid)
    return {"engine": Figure.of([shares[0]]), "a queue": Figure.of([(shares[32] - shares[0]) / 32])}
