# SPDX-License-Identifier: Apache-2.0
"""`vmq bench`: rows in turn, progress on stderr, a table or JSON for the command line to print.

    run              sizes and guests: what this engine does here
    with_without     receive-only guests, three ways, measured in turn (A B C A B C …):
                     (a) Linux bridge, TAP and what QEMU's virtio-net does for a frame     bridge.py
                     (b) this engine, every VM on the default queue
                     (c) this engine, a receive queue for each VM

What a way costs is time on processors of the host for each frame that arrived; what guests' processes take is apart, and
both together stand beside it; (a) has no guests and so no rate either. Before anything is measured it is proved: every byte
of every frame (stand.py, bridge.py). Several rounds have a median and a range; one that is too wide has no verdict (trial.py).
(a) needs a network namespace: it is left out, with the reason, where this user may make none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vmq import daemon
from vmq.errors import VmqError
from vmq.guest.traffic import compile_kernels as compile_guest_kernels
from vmq.speed.stand import DEFAULT, OWN, Stand, processors
from vmq.speed.trial import Record, Trial, compared, in_words, medians
from vmq.table import table

SIZES, GUESTS = (64, 512, 1514), (1, 4)
WAYS_SIZES = (64, 1514, 9000)
ROUNDS, TRIALS = 5, 3
BRIDGE, SHARED, QUEUE = "bridge + TAP", "default queue", "a queue per VM"
NAMES = {BRIDGE: "(a)", SHARED: "(b)", QUEUE: "(c)"}
T = TypeVar("T")
Way = Callable[[float], Any]  # seconds → a coroutine that gives a Trial

COLUMNS = (
    "bytes", "guests", "Mframes/s", "Gbit/s", "ns a frame", "host CPU %", "p50 µs", "p99 µs",
)  # fmt: skip
WAYS_COLUMNS = (
    "bytes", "guests", "way", "Mframes/s", "host ns a frame", "guests' ns", "both", "p50 µs", "p99 µs", "fairness",
)  # fmt: skip


def say(line: str) -> None:
    """Progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def prepare() -> str:
    """Compile what is not yet; where it will run, in words."""
    daemon.compile_kernels(compile_guest_kernels)
    cpu, others = processors()
    guests = ",".join(map(str, others))
    shared = "; there is no other processor, so they share it" if others == [cpu] else ""
    return f"engine on processor {cpu}, guests on {guests}{shared}"


def complete(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end; SIGTERM interrupts it as SIGINT does, and everything is put back."""

    async def main() -> T:
        if task := asyncio.current_task():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def run(seconds: float, as_json: bool) -> str:
    """`vmq bench`: what is to be printed."""
    where = prepare()
    say(where)
    records = complete(_plain(seconds))
    if as_json:
        return json.dumps({"where": where, "rows": records}, indent=2)
    return table([_cells(record) for record in records], COLUMNS)


async def _plain(seconds: float) -> list[Record]:
    records = []
    for size in SIZES:
        for guests in GUESTS:
            say(f"{size} bytes, {_count(guests)}")
            await prove(size, guests)
            with tempfile.TemporaryDirectory(prefix="vmq-speed-") as name:
                async with Stand(Path(name), size, guests) as stand:
                    trials = [await stand.measure(seconds / TRIALS) for _ in range(TRIALS)]
            records.append({"bytes": size, "guests": guests, **medians(trials)})
    return records


def with_without(seconds: float, as_json: bool) -> str:
    """`vmq bench --with-without`: what is to be printed."""
    where = prepare()
    say(where)
    records: list[Record] = []
    for size in WAYS_SIZES:
        for guests in GUESTS:
            found, why = complete(ways(size, guests, seconds))
            if why and not records:
                say(f"(a) is left out: {why}")
            records += [
                {"bytes": size, "guests": guests, "way": way, **medians(trials)}
                for way, trials in found.items()
            ]
    if as_json:
        return json.dumps({"where": where, "rows": records}, indent=2)
    return "\n".join([table([_cells(record) for record in records], WAYS_COLUMNS), *verdicts(records)])


async def ways(
    size: int, guests: int, seconds: float, rounds: int = ROUNDS
) -> tuple[dict[str, list[Trial]], str]:
    """Trials of each way that can be had, in turn; and why (a) cannot, if so."""
    say(f"{size} bytes, {_count(guests)}, {rounds} rounds")
    await prove(size, guests)
    found: dict[str, list[Trial]] = {}
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmq-speed-")))
        stand = await stack.enter_async_context(Stand(folder, size, guests))
        bridge, why = None, ""
        try:
            bridge = await stack.enter_async_context(_bridge(size, guests))
        except VmqError as error:
            why = error.wrong
        for _ in range(rounds):
            if bridge is not None:
                found.setdefault(BRIDGE, []).append(await bridge(seconds))
            for way, weight in ((SHARED, DEFAULT), (QUEUE, OWN)):
                stand.weigh(weight)
                found.setdefault(way, []).append(await stand.measure(seconds))
    return found, why


async def prove(size: int, guests: int) -> None:
    """Refuse a set-up where a guest does not get every byte, with a receive queue of its own or without."""
    with tempfile.TemporaryDirectory(prefix="vmq-speed-") as name:
        async with Stand(Path(name), size, guests, proof=True) as stand:
            for weight in (OWN, DEFAULT):
                stand.weigh(weight)
                await stand.prove()


@contextlib.asynccontextmanager
async def _bridge(size: int, guests: int) -> AsyncIterator[Way]:
    """The program of way (a), in a namespace of its own; what measures with it. VmqError if there can be none."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    argv = ("unshare", *user, "--net", sys.executable, "-m", "vmq.speed.bridge", str(size), str(guests))
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise VmqError(f"unshare: {error.strerror}") from None
    asked, output, errors = process.stdin, process.stdout, process.stderr
    if asked is None or output is None or errors is None:
        raise VmqError("it has no pipes")

    async def hear() -> bytes:
        if line := await output.readline():
            return line
        said = (await errors.read()).decode(errors="replace").strip().splitlines()
        raise VmqError(said[-1] if said else "it ended")

    async def measure(seconds: float) -> Trial:
        asked.write(f"{seconds}\n".encode())
        told = json.loads(await hear())
        frames = tuple(told["frames"])
        return Trial(size, None, frames, told["host_ns"], None, told["p50_ns"], told["p99_ns"])

    try:
        await hear()
        yield measure
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def verdicts(records: list[Record]) -> list[str]:
    """How many times the host CPU a frame of (c) the others take, row by row."""
    lines = []
    costs: dict[tuple[int, int], dict[str, Record]] = {}
    for record in records:
        costs.setdefault((record["bytes"], record["guests"]), {})[record["way"]] = record
    for (size, guests), by_way in costs.items():
        times = [
            f"{NAMES[way]} {compared(by_way[way], by_way[QUEUE], 'host_ns_a_frame')}"
            for way in (BRIDGE, SHARED)
            if way in by_way
        ]
        lines.append(f"{size} bytes, {_count(guests)}: host CPU a frame against (c): {', '.join(times)}")
    return lines


def _count(guests: int) -> str:
    return f"{guests} guest{'' if guests == 1 else 's'}"


def _cells(record: Mapping[str, Any]) -> Record:
    """A record as the table shows it."""
    way = record.get("way")
    return {
        "bytes": record["bytes"],
        "guests": record["guests"],
        "way": f"{NAMES[way]} {way}" if way else None,
        "Mframes/s": in_words(record, "frames_a_second", 1e-6),
        "Gbit/s": in_words(record, "gigabits_a_second"),
        "ns a frame": in_words(record, "host_ns_a_frame"),
        "host ns a frame": in_words(record, "host_ns_a_frame"),
        "guests' ns": in_words(record, "guest_ns_a_frame"),
        "both": in_words(record, "total_ns_a_frame"),
        "host CPU %": in_words(record, "host_cpu_percent"),
        "p50 µs": in_words(record, "p50_ns", 1e-3),
        "p99 µs": in_words(record, "p99_ns", 1e-3),
        "fairness": in_words(record, "fairness"),
    }
