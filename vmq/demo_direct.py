# SPDX-License-Identifier: Apache-2.0
"""`vmq demo --direct`: the same frames twice, written into guest memory by the engine, then by the kernel. As root.

    sender ─► far end ══ veth ══ near end ─► program of the uplink ─┬─ switched: its socket ─► the engine copies ─► guests
                                                                    └─ direct: pair of the VM ─► guests, told by the engine

This process goes into a network namespace that has no name before it has a second thread: all that it makes is there, and
goes with it. The host sees none of it.

A wire has no way to say that it is full, so the sender goes on only when every guest has taken what was sent: WINDOW frames
at most, fewer than the least room on their way, which is that of a veth. Groups come to the engine by another way than frames
to one VM, and may overtake them or be overtaken; so they go first in each round, in windows of their own.

While it sends, the sender has the engine's processor: so the engine finds all of a window at once, as under load. The engine's
time is that of its processor while it has work; the sender's is that of its thread, as the kernel brings a frame to a socket
or into guest memory before it returns from sending. Both are of frames to one VM, the median of all rounds.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

from vmq import linux
from vmq.abi.ethernet import ETH_HLEN, MAC_GROUP_BIT
from vmq.abi.netdevice import CLONE_NEWNET
from vmq.abi.xdp import AF_XDP
from vmq.config import Config, Vm, Xdp
from vmq.config import Engine as EngineConfig
from vmq.control.views import show
from vmq.demo import (
    CAPTURE,
    REFRESH_SECONDS,
    SETTLE_SECONDS,
    WIRE,
    Member,
    Stage,
    compile_everything,
    live,
    share_out,
    silent,
    untagged,
)
from vmq.direct.pair import FAR, Apart, Pair
from vmq.errors import VmqError
from vmq.speed.wire import refusal
from vmq.table import table
from vmq.uplink.pcapfile import read_capture

WHERE = "vmq demo --direct"
Placement = Literal["switched", "direct"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
MTU = 1500
WINDOW = 200  # frames; a veth holds 256, and nothing else on the way holds fewer
RING = 1024  # buffers of a guest
PLACED_SECONDS, LOOK_SECONDS = 60.0, 0.0005
ENOUGH = 0.99  # of the frames to one VM: so many the kernel has to place
Refresh = Callable[[list[dict[str, Any]]], None]


def wire() -> AbstractContextManager[Pair]:
    """Take this process to where nobody else is, and lay the wire there; HostError where that cannot be."""
    try:
        apart = Apart()  # held to the end of the process
        linux.setns(apart.fd, CLONE_NEWNET)
        socket.socket(AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC).close()
        return closing(Pair(apart, 0, MTU))
    except OSError as error:
        wrong = "a network of its own with AF_XDP is refused"
        raise refusal(WHERE, wrong, error, "; vmq demo needs none of it") from error


def crosses(frame: bytes) -> bool:
    """Whether the wire takes a frame: one of its MTU, and a tag."""
    return len(untagged(frame)[1]) <= MTU + ETH_HLEN


@contextmanager
def instead_of(cpu: int) -> Iterator[None]:
    """Have a processor for this thread alone, for a moment: whoever runs there waits."""
    usual, parameter, before = os.sched_getscheduler(0), os.sched_getparam(0), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    with suppress(PermissionError):  # not given to this group of processes: then the engine runs in between
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, usual, parameter)
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Window:
    """Frames that are sent at once; `due`: how many of a round each VM has then."""

    frames: Sequence[bytes]
    groups: bool
    due: Sequence[int]


def windows(frames: Sequence[bytes], vms: Sequence[Member]) -> list[Window]:
    """A round of frames, groups first; what each VM is to get is filled in. Nobody sends but the wire."""
    made = []
    for groups in (True, False):
        kind = [one for one in frames if bool(one[0] & MAC_GROUP_BIT) is groups]
        for first in range(0, len(kind), WINDOW):
            part = kind[first : first + WINDOW]
            share_out(part, list(vms))
            made.append(Window(part, groups, [len(vm.expected) for vm in vms]))
    for vm in vms:
        vm.sends.clear()
    return made


class Half(Stage):
    """The frames of one placement."""

    def __init__(self, folder: Path, placement: Placement, frames: Sequence[bytes], device: str) -> None:
        super().__init__(folder)
        self.placement, self.device = placement, device
        self.windows = windows(frames, self.vms)
        self.rounds = 0
        self.spent: list[tuple[int, int]] = []  # ns of engine and sender, of each round

    def config(self) -> Config:
        """The configuration a user would write for this, but for the guard, which would try the default queue meanwhile."""
        return Config(
            engine=EngineConfig(api=str(self.folder / "api.sock"), guard=False),
            uplinks={WIRE: Xdp(device=self.device, mode="native", prepared=True)},
            vms={
                vm.name: Vm(
                    socket=self.socket(vm), uplink=WIRE, mac=vm.macs, vlan=vm.vlan, placement=self.placement
                )
                for vm in self.vms
            },
        )

    async def run(
        self, seconds: float, sender: socket.socket, watch: Callable[[], Refresh]
    ) -> dict[str, Any]:
        """Whole rounds, for some seconds at least; the figures."""
        cpu = self.engine.workers[0].cpu
        other = min(os.sched_getaffinity(0) - {cpu}, default=cpu)
        async with self.play(self.config(), "--size", str(RING), "--cpu", str(other)):
            await self.placed()
            refresh, began = watch(), time.monotonic()
            shown = began
            while await self.lap(sender) and time.monotonic() - began < seconds:
                if time.monotonic() - shown >= REFRESH_SECONDS:
                    shown = time.monotonic()
                    refresh(show(self.engine, "vms"))
            self.seconds = time.monotonic() - began
            await self.count()
            return self.figures()

    def misplaced(self) -> list[str]:
        """Which VMs are not placed as they are to be, and why."""
        return [
            f"{row['of']} is {row['effective']}, not {self.placement}: {row['why']}"
            for row in show(self.engine, "settings")
            if row["name"] == "placement"
            and row["of"].startswith("vm ")
            and row["effective"] != self.placement
        ]

    async def placed(self) -> None:
        """Wait until all VMs are placed as they are to be; VmqError if one is not."""
        deadline = time.monotonic() + PLACED_SECONDS
        while wrong := self.misplaced():
            if time.monotonic() > deadline:
                raise VmqError("; ".join(wrong), "docs/direct.md says what is in the way", place=WHERE)
            await asyncio.sleep(REFRESH_SECONDS / 10)

    async def lap(self, sender: socket.socket) -> bool:
        """Send all frames once; whether all of them arrived."""
        worker, engine_ns, sender_ns = self.engine.workers[0], 0, 0
        complete = True
        for window in self.windows:
            busy = worker.busy_ns
            with instead_of(worker.cpu):
                began = time.thread_time_ns()
                for frame in window.frames:
                    sender.send(frame)
                spent = time.thread_time_ns() - began
            complete = complete and await self.arrived(window)
            if not window.groups:
                engine_ns, sender_ns = engine_ns + worker.busy_ns - busy, sender_ns + spent
        self.spent.append((engine_ns, sender_ns))
        self.rounds += 1
        return complete

    async def arrived(self, window: Window) -> bool:
        """Wait until the guests have a window; whether they have."""
        deadline = time.monotonic() + SETTLE_SECONDS
        due = [self.rounds * len(vm.expected) + count for vm, count in zip(self.vms, window.due, strict=True)]
        for vm, count in zip(self.vms, due, strict=True):
            while vm.counters.get("frames", 0) < count:
                if time.monotonic() > deadline:
                    return False
                if self.engine.vms[vm.name].queue_rows()["frames_to_guest"].sum() >= count:
                    self.tell("count", vm)
                await asyncio.sleep(LOOK_SECONDS)
        return True

    async def count(self) -> None:
        """Have every guest count once more: a frame that came to the wrong one is one too many."""
        for vm in self.vms:
            vm.counters = {}
        self.tell("count")
        deadline = time.monotonic() + SETTLE_SECONDS
        # What a guest says is heard by a task of its own: look again and again.
        while not all(vm.counters for vm in self.vms) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)

    def figures(self) -> dict[str, Any]:
        """What was seen, and what of it is wrong."""
        rows = show(self.engine, "vms")
        (uplink,) = show(self.engine, "uplinks")
        frames = sum(row["frames_to_guest"] for row in rows)
        to_one = sum(not one[0] & MAC_GROUP_BIT for vm in self.vms for one in vm.expected)
        engine, sender = (median(spent) / to_one for spent in zip(*self.spent, strict=True))
        told = {
            "placement": self.placement,
            "rounds": self.rounds,
            "seconds": round(self.seconds, 3),
            "frames": frames,
            "to_one_vm": self.rounds * to_one,
            "led_to_pairs": uplink["verdicts"]["direct"],
            "frames_placed": sum(row["frames_placed"] for row in rows),
            "bytes": sum(row["bytes_to_guest"] for row in rows),
            "bytes_copied": sum(row["bytes_copied"] for row in rows),
            "engine_ns": round(engine, 1),
            "sender_ns": round(sender, 1),
            "ns_a_frame": round(engine + sender, 1),
            "uplink": uplink,
            "vms": rows,
        }
        at_vms = [
            line for vm, row in zip(self.vms, rows, strict=True) for line in self.judge(vm, self.rounds, row)
        ]
        wrong = [*self.misplaced(), *at_vms, *misplaced_frames(told)]
        return told | {"complaints": [f"{self.placement}: {line}" for line in wrong]}


def misplaced_frames(half: dict[str, Any]) -> list[str]:
    """What was written by another than was to write it, in words; empty if nothing."""
    placed, led = half["frames_placed"], half["led_to_pairs"]
    if half["placement"] == "switched":
        return [f"the kernel placed {max(placed, led)} frames"] if placed or led else []
    wrong = []
    if min(placed, led) < ENOUGH * half["to_one_vm"]:
        wrong.append(f"the kernel placed {min(placed, led)} of {half['to_one_vm']} frames to one VM")
    if half["bytes_copied"]:
        wrong.append(f"the engine copied {half['bytes_copied']} bytes")
    return wrong


COLUMNS = (
    "placement", "rounds", "frames", "frames_placed", "bytes", "bytes_copied", "engine_ns", "sender_ns", "ns_a_frame",
)  # fmt: skip
LEGEND = """\
frames_placed: written into guest memory by the kernel; bytes_copied: by the engine
engine_ns: of its processor, for a frame to one VM; sender_ns: of the thread that sends it, in whose time the kernel brings it
to the engine or into guest memory, one frame at a time; ns_a_frame: both. The guests' time is in none."""
GOOD = """\
PASS: every frame reached the VM it is addressed to, byte for byte and in order, and no other;
      the second time the kernel wrote them where the guests wanted them, and the engine copied nothing"""


def report(result: dict[str, Any]) -> str:
    """Both halves side by side, and the verdict in words."""
    kept_out = f"; {result['too_long']} of them are too long for the wire" if result["too_long"] else ""
    lines = [
        f"{result['capture_frames']} frames in the capture{kept_out}",
        table(result["placements"], COLUMNS),
        LEGEND,
    ]
    complaints = "\n".join(["FAIL:", *(f"  {line}" for line in result["complaints"])])
    return "\n".join([*lines, GOOD if result["ok"] else complaints])


def compare(pair: Pair, seconds: float, show_live: Callable[[str], Refresh]) -> dict[str, Any]:
    """Both halves, one after the other; the verdict."""
    frames = [packet.data for packet in read_capture(str(CAPTURE), WHERE)]
    fit = [frame for frame in frames if crosses(frame)]
    halves = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sender:
        sender.bind((FAR.format(0), 0))
        for placement in PLACEMENTS:
            with tempfile.TemporaryDirectory(prefix="vmq-demo-", dir=os.environ.get("TMPDIR")) as folder:
                half = Half(Path(folder), placement, fit, pair.name)
                halves.append(asyncio.run(half.run(seconds / 2, sender, partial(show_live, placement))))
    complaints = [line for half in halves for line in half.pop("complaints")]
    return {
        "ok": not complaints,
        "complaints": complaints,
        "capture_frames": len(frames),
        "too_long": len(frames) - len(fit),
        "placements": halves,
    }


def run(seconds: float, as_json: bool, plain: bool) -> int:
    """Run both halves; 0 if the verdict is good."""
    plain = plain or not sys.stdout.isatty()

    def show_live(placement: str) -> Refresh:
        if as_json:
            return silent
        print(f"placement = {placement}")
        return live(seconds / 2, plain=plain)

    with wire() as pair:
        compile_everything()
        result = compare(pair, seconds, show_live)
    print(json.dumps(result, indent=2) if as_json else report(result))
    return 0 if result["ok"] else 1
