# SPDX-License-Identifier: Apache-2.0
"""An engine in this process and built-in guests that only receive: made once, measured several times.

    frames in memory ──► engine, one processor ──► guests, a process each, on the other processors
                         drops what a full guest cannot take

Time on processors is this process's, so it has all threads of the engine in it, control too; the guests' is counted apart.
Frames are the engine's count, which is judged by the guests' own when the source has stopped: a frame that the engine counts
and no guest has, or the other way round, refuses the figures. So does one that names another guest, or a buffer without a frame.

A stand made for proof gives no figures. Its source waits for full guests, and each guest compares every frame with a recording
that was made anew, byte for byte and in order: it comes before the stand that is measured, whose guests only count.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from msgspec.structs import replace

from vmq import daemon
from vmq.abi.ethernet import ETH_ALEN, ETH_HLEN, mac_number
from vmq.config import Config, Memory, Vm
from vmq.config import Engine as EngineConfig
from vmq.control.histograms import LATENCY_EDGES, percentile
from vmq.engine.engine import Engine
from vmq.errors import VmqError
from vmq.guest.frames import write_frames
from vmq.jit import address_of
from vmq.speed.trial import Trial
from vmq.uplink.recording import Recording, generate, rows_for

SOURCE = "source"
FLOWS = 4096  # so frames of any size are 8 MiB or more: past a processor's own caches
RING = 1024
USUAL_MTU = 1500
LOCAL_TYPE = b"\x88\xb5"  # for local experiments
READY_SECONDS, SETTLE_SECONDS, LOOK_SECONDS = 60.0, 10.0, 0.02
WARM_SECONDS = 0.2
FAULTS = ("stray", "broken", "empty", "bad", "wrong", "out_of_place", "missing")  # guests' counters
OWN, DEFAULT = 100, 0  # weights: a receive queue for each VM; the default queue for all


def processors() -> tuple[int, list[int]]:
    """The engine's processor, and those of the guests: the others, if there are any."""
    cpus, _ = daemon.choose_processors(Config())
    others = sorted(os.sched_getaffinity(0) - {cpus[-1]})
    return cpus[-1], others or [cpus[-1]]


def process_ns(pid: int) -> int:
    """Time on processors of all threads of a process so far: linux, /proc/PID/task/TID/schedstat, the first number."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((thread / "schedstat").read_text().split()[0])
    return total


class Guest:
    """A built-in guest in a process of its own, and what it said last."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.counters: dict[str, int] = {}

    @classmethod
    async def start(cls, socket: Path, mac: str, cpu: int, *more: str) -> Guest:
        """Start it, and wait until its rings run."""
        arguments = ("--socket", str(socket), "--mac", mac, "--size", str(RING), "--cpu", str(cpu), *more)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vmq.guest", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        guest = cls(process)
        try:
            async with asyncio.timeout(READY_SECONDS):
                while await guest.hear() != "ready":
                    pass
        except BaseException:
            await guest.end()
            raise
        return guest

    async def hear(self) -> str:
        """Its next line; the event."""
        line = await self.process.stdout.readline() if self.process.stdout else b""
        if not line:
            raise VmqError("a built-in guest ended early", "run make test-unit", place="vmq bench")
        told: dict[str, Any] = json.loads(line)
        event = str(told.pop("event"))
        if "frames" in told:
            self.counters = told
        return event

    async def listen(self) -> None:
        """Follow its counters."""
        with contextlib.suppress(VmqError):
            while await self.hear() != "end":
                pass

    def faults(self) -> str:
        """What should never have come, in words."""
        return ", ".join(f"{count} {name}" for name in FAULTS if (count := self.counters.get(name, 0)))

    async def end(self) -> None:
        """None outlives us."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


class Stand:
    """`guests` VMs that get frames of one size; `proof`: every one of them, compared."""

    def __init__(self, folder: Path, size: int, guests: int, *, proof: bool = False) -> None:
        self.folder, self.size, self.proof = folder, size, proof
        cpu, self._others = processors()
        self.engine = Engine("bench", (cpu,), "the benchmark's")
        self.engine.paused = True
        self.config = Config(
            engine=EngineConfig(api=str(folder / "api.sock"), guard=False),
            uplinks={
                SOURCE: Memory(size=size, flows=FLOWS, lossless=proof, mtu=max(USUAL_MTU, size - ETH_HLEN))
            },
            vms={
                f"v{number}": Vm(
                    socket=str(folder / f"v{number}.sock"), uplink=SOURCE, mac=(mac(number),), queue_pairs=1
                )
                for number in range(guests)
            },
        )
        self.guests: list[Guest] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            self._stack.callback(self.engine.close)
            self.engine.start()
            self.engine.reconfigure(self.config)
            expected = self._expected()
            for number, name in enumerate(self.config.vms):
                cpu = self._others[number % len(self._others)]
                guest = await Guest.start(
                    self.folder / f"{name}.sock", mac(number), cpu, *expected.get(number, ())
                )
                self._stack.push_async_callback(guest.end)
                listener = asyncio.create_task(guest.listen())
                self._stack.callback(listener.cancel)
                self.guests.append(guest)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _expected(self) -> dict[int, tuple[str, str]]:
        """What tells each guest the frames that it is to get; nothing if they only count."""
        if not self.proof:
            return {}
        told = {}
        for number, frames in enumerate(frames_of(self.size, len(self.config.vms))):
            place = self.folder / f"v{number}.frames"
            self._stack.callback(place.unlink, missing_ok=True)
            write_frames(place, frames)
            told[number] = ("--expect", str(place))
        return told

    def weigh(self, weight: int) -> None:
        """Give every VM a receive queue of its own, or none."""
        vms = {name: replace(vm, weight=weight) for name, vm in self.config.vms.items()}
        self.config = replace(self.config, vms=vms)
        self.engine.reconfigure(self.config)

    async def measure(self, seconds: float) -> Trial:
        """Let frames flow: warm up, count for some seconds, then see how long they are under way."""
        self.flow(True)
        try:
            await asyncio.sleep(WARM_SECONDS)
            pids = [guest.process.pid for guest in self.guests]
            frames, guest_ns = self._frames(), sum(map(process_ns, pids))
            began, host = time.monotonic(), time.process_time_ns()
            await asyncio.sleep(seconds)
            host, passed = time.process_time_ns() - host, time.monotonic() - began
            counted = tuple(now - before for now, before in zip(self._frames(), frames, strict=True))
            guest_ns = sum(map(process_ns, pids)) - guest_ns
            p50, p99 = await self._latency(min(seconds, WARM_SECONDS))
        finally:
            self.flow(False)
        await self.settle()
        if not all(counted):
            raise VmqError("a guest got nothing", "run vmq demo: it says what is wrong", place="vmq bench")
        return Trial(self.size, passed, counted, host, guest_ns, p50, p99)

    async def prove(self) -> None:
        """Let a lap of the recording flow, or a little more; VmqError unless its guests have it, byte for byte."""
        wanted = sum(self._frames()) + len(recording(self.size, len(self.guests)).rows)
        deadline = time.monotonic() + READY_SECONDS
        self.flow(True)
        try:
            while sum(self._frames()) < wanted:
                self._refuse_faults()
                if time.monotonic() > deadline:
                    raise VmqError(
                        "frames do not flow", "run vmq demo: it says what is wrong", place="vmq bench"
                    )
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self.flow(False)
        await self.settle()

    def flow(self, on: bool) -> None:
        """Let the source begin, or stop."""
        self.engine.paused = not on
        self.engine.publish()

    def _frames(self) -> tuple[int, ...]:
        return tuple(int(vm.queue_rows()["frames_to_guest"].sum()) for vm in self.engine.vms.values())

    async def _latency(self, seconds: float) -> tuple[int | None, int | None]:
        """p50 and p99, of all guests; reading the clock costs time, so nothing else is counted meanwhile."""
        vms = self.engine.vms.values()
        for vm in vms:
            vm.observed.measure(on=True)
        await asyncio.sleep(seconds)
        bins = sum(vm.observed.latencies()["bins"].sum(axis=0) for vm in vms)
        for vm in vms:
            vm.observed.measure(on=False)
        return percentile(bins, LATENCY_EDGES, 0.5), percentile(bins, LATENCY_EDGES, 0.99)

    async def settle(self) -> None:
        """Wait until every guest has seen as many frames as the engine counts, or has compared as many."""
        deadline = time.monotonic() + SETTLE_SECONDS
        counted = "verified" if self.proof else "frames"
        while True:
            self._refuse_faults()
            ours, theirs = self._frames(), tuple(guest.counters.get(counted, 0) for guest in self.guests)
            if ours == theirs:
                return
            if time.monotonic() > deadline:
                seen = ", ".join(
                    f"{name} {there} and not {here}"
                    for name, here, there in zip(self.engine.vms, ours, theirs, strict=True)
                )
                raise VmqError(f"guests got other frames than the engine counts: {seen}", place="vmq bench")
            await asyncio.sleep(LOOK_SECONDS)

    def _refuse_faults(self) -> None:
        """No frame is its guest's that names another, or has other bytes."""
        for name, guest in zip(self.engine.vms, self.guests, strict=True):
            if faults := guest.faults():
                raise VmqError(
                    f"{name} got what it should not: {faults}", "run make test-unit", place="vmq bench"
                )


def mac(number: int) -> str:
    """The address of guest `number`, which is its last byte."""
    return f"52:54:00:00:02:{number:02x}"


def recording(size: int, guests: int) -> Recording:
    """What a stand's source plays, made anew."""
    count, _ = rows_for(size, FLOWS, None) or (FLOWS, 0)
    return generate(size, FLOWS, count, [(mac_number(mac(number)), 0) for number in range(guests)])


def frames_of(size: int, guests: int) -> list[list[bytes]]:
    """The frames of a recording for each guest, in their order."""
    made = recording(size, guests)
    data = made.block.tobytes()
    found: list[list[bytes]] = [[] for _ in range(guests)]
    for place in (made.rows["address"] - address_of(made.block)).tolist():
        found[data[place + ETH_ALEN - 1]].append(data[place : place + size])
    return found
