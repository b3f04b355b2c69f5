# SPDX-License-Identifier: Apache-2.0
"""What a frame costs that the kernel places in guest memory, beside one that the engine copies there: the same uplink and guest.

    generator ─► veth ─► the NIC's program ─► switched: socket of the engine ─► engine copies ─► guest
                                           ─► direct:   pair of the VM ─► guest memory, engine tells the guest

The generator is a program that the kernel runs on frames of its own (BPF_F_TEST_XDP_LIVE_FRAMES): all that the kernel does
for a frame, up to where a socket has it, happens before its call returns, and is in its time. The same with a program that
drops the frames where the NIC's would look at them is what the generator costs; it is taken off. Meanwhile the engine is
stopped (SIGSTOP), then it finds a full ring; its time is that of its processor's thread. Of both, a burst less a burst of one
frame: what a system call, a wake-up and looking for more work cost is in neither.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bench.delivery import RefusedError
from bench.engine import on_processor
from bench.quiet import say
from bench.stats import Figure, Measure
from bench.systems import ENGINE_CPU, GUEST_CPU, mac
from tests.dpdk.lab import until
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.netns import Namespace
from vmq import linux
from vmq.abi import bpf
from vmq.bpf.assembler import R0, R1, R2, Code
from vmq.bpf.link import Link
from vmq.bpf.maps import attribute
from vmq.bpf.program import Program
from vmq.guest.guest import Guest
from vmq.uplink import link

BURST, BURSTS = (
    800,
    60,
)  # frames, so that the kernel keeps enough buffers for the engine not to look for more; bursts
BATCH = 64  # frames that the kernel makes before it lets others work: as many as a device is polled for
RING = 1024
STOPPED_SECONDS, ASLEEP_SECONDS = (
    0.001,
    0.003,
)  # until a signal has reached all threads; until a processor looks no more
PATIENCE, CALL_SECONDS = 20.0, 120.0
PLACEMENTS = ("switched", "direct")


@dataclass(frozen=True)
class Wire:
    """Two namespaces with a veth between, and what sends frames into it."""

    near: Namespace
    far: Namespace
    generator: Program

    def send(self, frame: bytes, count: int, batch: int = BATCH) -> int:
        """So many frames, `batch` at once; nanoseconds of this thread."""
        given = np.frombuffer(frame, np.uint8)
        asked = attribute(
            bpf.test_run,
            prog_fd=self.generator.fd,
            data_size_in=len(frame),
            data_in=given.ctypes.data,
            repeat=count,
            flags=bpf.BPF_F_TEST_XDP_LIVE_FRAMES,
            batch_size=batch,
        )
        began = time.thread_time_ns()
        linux.bpf(bpf.BPF_PROG_TEST_RUN, asked)
        return time.thread_time_ns() - began


def a_program(name: str, verdict: int, index: int = 0) -> Program:
    """Frames go to a device, or meet one verdict."""
    code = Code()
    code.let(R0, "=", verdict)
    if index:
        code.let(R1, "=", index)
        code.let(R2, "=", 0)
        code.call(bpf.BPF_FUNC_redirect)
    code.exit()
    return Program(bpf.BPF_PROG_TYPE_XDP, name, code)


@contextmanager
def wire() -> Iterator[Wire]:
    """The near end is wire0."""
    with Namespace("engine") as near, Namespace("wire") as far:
        for one in (near, far):
            one.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        near.veth("wire0", far, "host0")
        with a_program("generator", bpf.XDP_PASS, far.call(lambda: link.index_of("host0"))) as generator:
            yield Wire(near, far, generator)


def generating(size: int) -> float:
    """ns a frame of the generator and of the wire."""
    with (
        wire() as one,
        a_program("drop", bpf.XDP_DROP) as drop,
        one.near.call(lambda: Link(drop, link.index_of("wire0"), flags=bpf.XDP_FLAGS_DRV_MODE)),
        on_processor(GUEST_CPU),
    ):
        data = frame(size)
        spent = one.far.call(lambda: [(one.send(data, BURST), one.send(data, 1)) for _ in range(BURSTS)])
        return a_frame(spent)


def a_frame(spent: Sequence[tuple[int, int]]) -> float:
    """ns a frame, of what bursts took and what a single frame took, in turn."""
    whole, single = (float(statistics.median(times)) for times in zip(*spent, strict=True))
    return (whole - single) / (BURST - 1)


def frame(size: int) -> bytes:
    """For the guest, from somebody."""
    to, source = (bytes.fromhex(mac(number).replace(":", "")) for number in (0, 1))
    return (to + source + b"\x88\xb5").ljust(size, b"\x5a")


@contextmanager
def served(one: Wire, placement: str) -> Iterator[tuple[EngineProcess, Guest]]:
    """An engine on the wire, and a guest whose frames are placed like this."""
    with tempfile.TemporaryDirectory(prefix="vmq-bench-") as name:
        folder = Path(name)
        text = f'[engine]\napi = "{folder}/api.sock"\nprocessors = "{ENGINE_CPU}"\n'
        text += '[uplink.wire]\nkind = "xdp"\ndevice = "wire0"\nprepared = true\n'
        text += f'[vm.v]\nsocket = "{folder}/v.sock"\nmac = "{mac(0)}"\nuplink = "wire"\nplacement = "{placement}"\n'
        with (
            EngineProcess(folder, text, one.near) as engine,
            Guest(folder / "v.sock", mac(0), size=RING, timeout=PATIENCE) as guest,
        ):
            until(lambda: placed_as(engine) == placement, f"{placement} placement")
            yield engine, guest


def placed_as(engine: EngineProcess) -> str:
    (row,) = (
        row
        for row in engine.ask("show", what="settings")
        if (row["of"], row["name"]) == ("vm v", "placement")
    )
    return str(row["effective"])


def worked(engine: EngineProcess, thread: int) -> int:
    """ns that a thread of the engine has had a processor: linux, /proc/PID/task/TID/schedstat, the first number."""
    return int(Path(f"/proc/{engine.pid}/task/{thread}/schedstat").read_text().split()[0])


def placed(size: int, placement: str) -> tuple[float, float]:
    """ns a frame of the kernel, with the generator, and of the engine; every frame is compared."""
    data = frame(size)
    with wire() as one, served(one, placement) as (engine, guest), on_processor(GUEST_CPU):
        thread = int(engine.ask("show", what="processors")[0]["thread"])

        def burst(count: int) -> tuple[int, int]:
            before = worked(engine, thread)
            os.kill(engine.pid, signal.SIGSTOP)
            try:
                time.sleep(STOPPED_SECONDS)
                kernel = one.send(data, count)
            finally:
                os.kill(engine.pid, signal.SIGCONT)
            got = guest.receive(count, PATIENCE)
            if got != [data] * count:
                raise RefusedError(f"{placement}: {len(got)} of {count} frames arrived whole")
            time.sleep(ASLEEP_SECONDS)
            return kernel, worked(engine, thread) - before

        spent = one.far.call(lambda: [(burst(BURST), burst(1)) for _ in range(BURSTS)], timeout=CALL_SECONDS)
        told = engine.show("uplinks")["wire"]["verdicts"]
        if told["direct" if placement == "direct" else "steered"] != BURSTS * (BURST + 1):
            raise RefusedError(f"not all frames took the way that was asked for: {told}")
        kernel, own = (a_frame([(whole[part], single[part]) for whole, single in spent]) for part in range(2))
        return kernel, own


def direct(size: int, runs: int) -> dict[str, Figure]:
    """Both placements in turn."""
    values: dict[str, list[float]] = {}
    for run in range(runs):
        generator = generating(size)
        values.setdefault("ns a frame, generator", []).append(generator)
        for placement in PLACEMENTS:
            kernel, engine = placed(size, placement)
            parts = {
                "kernel": kernel - generator,
                "engine": engine,
                "in all": kernel - generator + engine,
            }
            for part, value in parts.items():
                values.setdefault(f"ns a frame, {placement}: {part}", []).append(value)
            told = ", ".join(f"{part} {value:.0f}" for part, value in parts.items())
            say(f"direct-{size}: {run + 1}/{runs}, {placement} {told} ns a frame")
    return {name: Figure.of(found) for name, found in values.items()}


ROWS: dict[str, Measure] = {f"direct-{size}": partial(direct, size) for size in (64, 512, 1514)}
