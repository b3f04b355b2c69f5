# SPDX-License-Identifier: Apache-2.0
"""Figures of the engine alone: idle cost, wake-up time, start, memory."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median

from bench.probe import Probe, compile_probe, echoing
from bench.stats import HISTOGRAM, Figure
from bench.systems import ENGINE_CPU, GUEST_CPU, mac
from tests.vm.lab.engine import EngineProcess
from vmq.affinity import on_processor
from vmq.guest.guest import Guest
from vmq.speed.stand import process_ns

IDLE_SECONDS, SILENCE_SECONDS, START_SECONDS = 4.0, 1.0, 120.0
MANY = 32
WAKE_UPS = 8  # of a run
GUEST_MEMORY = "/memfd:"
MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ ")


def configuration(folder: Path, vms: int, *, source: bool = False, idle: str = "sleep") -> str:
    """VM ports without an uplink, or with one that has frames without end."""
    text = f'[engine]\napi = "{folder}/api.sock"\nprocessors = "{ENGINE_CPU}"\nidle = "{idle}"\n'
    text += '[uplink.source]\nkind = "memory"\n' if source else ""
    for number in range(vms):
        text += (
            f'[vm.v{number}]\nsocket = "{folder}/v{number}.sock"\nmac = "{mac(number)}"\nqueue_pairs = 1\n'
        )
        text += 'uplink = "source"\n' if source else ""
    return text


@contextmanager
def running(vms: int, idle: str = "sleep") -> Iterator[tuple[EngineProcess, list[Guest]]]:
    """An engine with so many connected guests."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmq-bench-")))
        engine = stack.enter_context(EngineProcess(folder, configuration(folder, vms, idle=idle)))
        guests = [
            stack.enter_context(Guest(folder / f"v{number}.sock", mac(number))) for number in range(vms)
        ]
        yield engine, guests


def idle(runs: int) -> dict[str, Figure]:
    """Per cent of one processor that an engine with four connected, silent VMs takes."""
    with running(4) as (engine, _):
        time.sleep(1)
        values = []
        for _ in range(runs):
            before = process_ns(engine.pid)
            time.sleep(IDLE_SECONDS)
            values.append((process_ns(engine.pid) - before) / IDLE_SECONDS / 1e7)
    return {"% of a processor, four silent VMs": Figure.of(values)}


def wake_up(runs: int) -> dict[str, Figure]:
    """µs from a guest's frame after a second of silence until its neighbour's call; in turn, the floor of this machine.

    Then the same with a processor that polls: the neighbour's wake-up alone is left.
    """
    compile_probe()
    ours: list[float] = []
    floor: list[float] = []
    with running(2) as (_, (sender, receiver)), echoing(ENGINE_CPU) as probe, on_processor(GUEST_CPU):
        for _ in range(WAKE_UPS * runs):
            ours.append(one_wake_up(sender, receiver))
            with suppress(BlockingIOError):
                os.eventfd_read(int(probe.row["call"][0]))
            time.sleep(SILENCE_SECONDS)
            floor.append(probe.nanoseconds() / 1000)
    with running(2, idle="poll") as (_, (sender, receiver)), on_processor(GUEST_CPU):
        polled = [one_wake_up(sender, receiver) for _ in range(WAKE_UPS * runs)]
    figures = of_wake_ups("guest to guest", ours) | of_wake_ups("two eventfds and a thread", floor)
    return figures | of_wake_ups("guest to guest, a processor that polls", polled)


def of_wake_ups(whose: str, times: Sequence[float]) -> dict[str, Figure]:
    """Each WAKE_UPS of them are a run, which has a median and a longest: too few to have a tail."""
    several = [times[first : first + WAKE_UPS] for first in range(0, len(times), WAKE_UPS)]
    return {
        f"µs, {whose}, p50": Figure.of([median(one) for one in several]),
        f"µs, {whose}, the longest of {WAKE_UPS}": Figure.of([max(one) for one in several]),
        f"{HISTOGRAM}µs, {whose}": Figure.of(times),
    }


def one_wake_up(sender: Guest, receiver: Guest) -> float:
    """µs for one frame, from when it is shown to the device."""
    outgoing, incoming = sender.virtqueue(), receiver.virtqueue(to_guest=True)
    receiver.receive(1, 0)
    incoming.drain_calls()
    incoming.want_calls()
    outgoing.harvest()
    ethernet = bytes.fromhex((receiver.mac + sender.mac).replace(":", "")) + b"\x88\xb5"
    packet = bytes(12) + ethernet.ljust(64, b"\0")
    sender.memory.write(outgoing.buffer(0), packet)
    head = outgoing.write_chain([(outgoing.buffer(0), len(packet), 0)])
    outgoing.push(head)
    probe = Probe(outgoing.kick_fd, incoming.call_fd, incoming.call_fd, outgoing.row_address)
    try:
        time.sleep(SILENCE_SECONDS)
        return probe.nanoseconds() / 1000
    finally:
        probe.close()


def start(runs: int) -> dict[str, Figure]:
    """Seconds from the start of `vmq run` until its API answers, and until the first frame is with a guest.

    The first run has an empty cache and compiles; the others do not. The engine's own guest waits for its socket.
    """
    times: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="vmq-bench-cache-") as cache,
        _environment("VMQ_CACHE_DIR", cache),
    ):
        for run in range(runs + 1):
            for what, seconds in one_start().items():
                times.setdefault(f"s, {'warm' if run else 'cold'}, until {what}", []).append(seconds)
    return {name: Figure.of(values) for name, values in times.items()}


def one_start() -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="vmq-bench-") as name:
        folder, began = Path(name), time.monotonic()
        with EngineProcess(folder, configuration(folder, 1, source=True)):
            serves = time.monotonic() - began
            with Guest(folder / "v0.sock", mac(0)) as guest:
                if not guest.receive(1, START_SECONDS):
                    raise ValueError("no frame arrived")
                return {"it serves": serves, "the first frame": time.monotonic() - began}


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    known = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if known is not None:
            os.environ[name] = known


def pss_mebibytes(smaps: str) -> float:
    """Proportional share of memory in MiB, without guest memory; `smaps` as /proc/PID/smaps gives it."""
    total, ours = 0, True
    for line in smaps.splitlines():
        if MAPPING.search(line):
            ours = GUEST_MEMORY not in line
        elif line.startswith("Pss:") and ours:
            total += int(line.split()[1])
    return total / 1024


def memory(runs: int) -> dict[str, Figure]:
    """MiB of an engine without VMs, and what each connected VM with one receive queue adds."""
    alone, each = [], []
    for _ in range(runs):
        shares = {}
        for vms in (0, MANY):
            with running(vms) as (engine, _):
                shares[vms] = pss_mebibytes(Path(f"/proc/{engine.pid}/smaps").read_text())
        alone.append(shares[0])
        each.append((shares[MANY] - shares[0]) / MANY)
    return {
        "MiB, an engine without VMs": Figure.of(alone),
        "MiB, each VM with one receive queue": Figure.of(each),
    }


ROWS: dict[str, Callable[[int], dict[str, Figure]]] = {
    "idle": idle,
    "wake-up": wake_up,
    "start": start,
    "memory": memory,
}
