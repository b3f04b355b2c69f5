# SPDX-License-Identifier: Apache-2.0
"""An engine in this process and built-in guests that only receive: made once, measured several times.

    frames in memory ──► engine, one processor ──► guests, a process each, on the other processors
                         drops what a full guest cannot take

Time on processors is this process's, so it has all threads of the engine in it, control too; the guests' is counted apart.
Frames are the engine's count, which is judged by the guests' own when the source has stopped: a frame that the engine counts
and no guest has, or the other way round, refuses the figures.
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
from vmq.abi.ethernet import ETH_HLEN
from vmq.config import Config, Memory, Vm
from vmq.config import Engine as EngineConfig
from vmq.control.histograms import LATENCY_EDGES, percentile
from vmq.engine.engine import Engine
from vmq.errors import VmqError
from vmq.speed.trial import Trial

SOURCE = "source"
FLOWS, RING = 4096, 1024
USUAL_MTU = 1500
READY_SECONDS, SETTLE_SECONDS, LOOK_SECONDS = 60.0, 10.0, 0.02
WARM_SECONDS = 0.2
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
        self.frames = 0

    @classmethod
    async def start(cls, socket: Path, mac: str, cpu: int) -> Guest:
        """Start it, and wait until its rings run."""
        arguments = ("--socket", str(socket), "--mac", mac, "--size", str(RING), "--cpu", str(cpu))
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
        self.frames = told.get("frames", self.frames)
        return str(told["event"])

    async def listen(self) -> None:
        """Follow its counters."""
        with contextlib.suppress(VmqError):
            while await self.hear() != "end":
                pass

    async def end(self) -> None:
        """None outlives us."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


class Stand:
    """`guests` VMs that get frames of one size."""

    def __init__(self, folder: Path, size: int, guests: int) -> None:
        self.folder, self.size = folder, size
        cpu, self._others = processors()
        self.engine = Engine("bench", (cpu,), "the benchmark's")
        self.engine.paused = True
        self.config = Config(
            engine=EngineConfig(api=str(folder / "api.sock"), guard=False),
            uplinks={
                SOURCE: Memory(size=size, flows=FLOWS, lossless=False, mtu=max(USUAL_MTU, size - ETH_HLEN))
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
            for number, name in enumerate(self.config.vms):
                cpu = self._others[number % len(self._others)]
                guest = await Guest.start(self.folder / f"{name}.sock", mac(number), cpu)
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
        """Wait until every guest has seen as many frames as the engine counts."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._frames() != tuple(guest.frames for guest in self.guests):
            if time.monotonic() > deadline:
                seen = ", ".join(
                    f"{name} {there} and not {here}"
                    for name, here, there in zip(
                        self.engine.vms, self._frames(), [guest.frames for guest in self.guests], strict=True
                    )
                )
                raise VmqError(f"guests got other frames than the engine counts: {seen}", place="vmq bench")
            await asyncio.sleep(LOOK_SECONDS)


def mac(number: int) -> str:
    """The address of guest `number`."""
    return f"52:54:00:00:02:{number:02x}"
