# SPDX-License-Identifier: Apache-2.0
"""`vmq demo`: the engine at work on a bare machine. No root, no NIC, no QEMU.

    bundled capture ──► uplink "wire" ──► engine, in this process ──► four guests, a process each
                                                                       (vhost-user socket, memfd, own driver)

The capture was recorded between real guests. Each built-in guest gets a list, made here in plain Python from the
capture alone, of what must reach it, and compares every frame byte for byte and in order; it also sends the frames
that its VM sent to the network. The replay is lossless and ends on a whole round, so at the end the sums must be
exact: that is the verdict. The guests sleep until the last one is ready, so that nothing is lost at the start.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmq import daemon
from vmq.abi.ethernet import ETH_ALEN, ETH_P_8021Q, LINK_LOCAL_MASK, LINK_LOCAL_VALUE, MAC_GROUP_BIT
from vmq.config import Config, Pcap, Vm
from vmq.config import Engine as EngineConfig
from vmq.control.views import show
from vmq.engine.engine import Engine
from vmq.errors import VmqError
from vmq.guest.frames import write_frames
from vmq.guest.traffic import compile_kernels as compile_guest_kernels
from vmq.table import table
from vmq.uplink.pcapfile import read_capture

CAPTURE = Path(__file__).parent / "data" / "demo.pcap"
WIRE = "wire"
READY_SECONDS, SETTLE_SECONDS, REFRESH_SECONDS = 60.0, 30.0, 0.5
ROUNDS_AHEAD = 50  # the replay ends this many rounds after it was told to: more than pass while it is told
SEND_RATE = 2000  # frames a second and guest towards the wire
TAG = ETH_P_8021Q.to_bytes(2, "big")
PROBLEMS = ("wrong", "out_of_place", "missing", "stray", "broken", "bad")


@dataclass
class Member:
    """One VM of the demo: its addresses, what must reach it in a round, what it sends."""

    name: str
    macs: tuple[str, ...]
    vlan: int | None = None
    expected: list[bytes] = field(default_factory=list)
    sends: list[bytes] = field(default_factory=list)
    counters: dict[str, Any] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None

    def accepts(self, destination: bytes) -> bool:
        """The rule of a receive filter, said again in other words: the demo must not trust the engine's."""
        number = int.from_bytes(destination, "little")
        if number & MAC_GROUP_BIT:
            return number & LINK_LOCAL_MASK != LINK_LOCAL_VALUE
        return any(destination == bytes.fromhex(mac.replace(":", "")) for mac in self.macs)


def members() -> list[Member]:
    """The VMs of the capture. FCoE data uses addresses of its own (0e:fd:00 and the port's number)."""
    return [
        Member("target", ("52:54:00:00:00:01", "0e:fd:00:00:00:01")),
        Member("initiator", ("52:54:00:00:00:02", "0e:fd:00:00:00:02")),
        Member("red", ("52:54:00:00:00:03",), 10),
        Member("blue", ("52:54:00:00:00:04",), 10),
    ]


def untagged(frame: bytes) -> tuple[int, bytes]:
    """VLAN id and what an access port sees; a priority tag stays where it is."""
    if frame[2 * ETH_ALEN : 2 * ETH_ALEN + 2] != TAG:
        return 0, frame
    vid = int.from_bytes(frame[14:16], "big") % 4096
    return (vid, frame[: 2 * ETH_ALEN] + frame[16:]) if vid else (0, frame)


def share_out(frames: list[bytes], vms: list[Member]) -> None:
    """Fill in what each VM must receive in a round of the capture, and what it sends to the wire."""
    known = {bytes.fromhex(mac.replace(":", "")) for vm in vms for mac in vm.macs}
    for frame in frames:
        vid, plain = untagged(frame)
        destination, source = frame[:ETH_ALEN], frame[ETH_ALEN : 2 * ETH_ALEN]
        for vm in vms:
            if vid != (vm.vlan or 0):
                continue
            if vm.accepts(destination):
                vm.expected.append(plain)
            own = any(source == bytes.fromhex(mac.replace(":", "")) for mac in vm.macs)
            if own and destination not in known and not destination[0] & 1:
                vm.sends.append(plain)


class Stage:
    """An engine in this process, and a guest process for each VM of the capture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vms = members()
        cpus, why = daemon.choose_processors(Config())
        self.engine = Engine("demo", cpus[-1:], why)
        self.seconds, self.busy_ns = 0.0, 0

    def socket(self, vm: Member) -> str:
        """Where a VM's front-end connects."""
        return str(self.folder / f"{vm.name}.sock")

    @asynccontextmanager
    async def play(self, config: Config, *more: str) -> AsyncIterator[None]:
        """The engine with this configuration, and its guests, which are told `more`; all of it ends with the block."""
        async with AsyncExitStack() as stack:
            stack.callback(self.engine.close)
            self.engine.start()
            self.engine.reconfigure(config)
            stack.push_async_callback(self.end_guests)
            for vm in self.vms:
                await self.start_guest(vm, *more)
            listeners = [asyncio.create_task(self.listen(vm)) for vm in self.vms]
            stack.callback(lambda: [task.cancel() for task in listeners])
            yield

    async def start_guest(self, vm: Member, *more: str) -> None:
        """Start one guest process and wait until its rings run."""
        expect, send = self.folder / f"{vm.name}.expect", self.folder / f"{vm.name}.send"
        write_frames(expect, vm.expected)
        write_frames(send, vm.sends)
        arguments = [
            "--socket",
            self.socket(vm),
            *(word for mac in vm.macs for word in ("--mac", mac)),
            "--expect",
            str(expect),
            *more,
        ]
        if vm.sends:
            arguments += ["--send", str(send), "--rate", str(SEND_RATE), "--hold"]
        vm.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "vmq.guest",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(READY_SECONDS):
            while await self.hear(vm) != "ready":
                pass

    async def hear(self, vm: Member) -> str:
        """One line of a guest; its event."""
        line = await vm.process.stdout.readline() if vm.process and vm.process.stdout else b""
        if not line:
            raise VmqError(f"guest {vm.name} ended early", "run make test-unit")
        told: dict[str, Any] = json.loads(line)
        if "frames" in told:
            vm.counters = told
        return str(told["event"])

    async def listen(self, vm: Member) -> None:
        """Follow a guest's counters to its end."""
        while await self.hear(vm) != "end":
            pass

    def tell(self, word: str, *vms: Member) -> None:
        """Say a word to these guests, or to every one."""
        for vm in vms or self.vms:
            if vm.process is not None and vm.process.stdin is not None:
                vm.process.stdin.write(word.encode() + b"\n")

    async def end_guests(self) -> None:
        """End the guest processes; none outlives us."""
        for vm in self.vms:
            if vm.process is not None and vm.process.returncode is None:
                vm.process.terminate()
        for vm in self.vms:
            if vm.process is not None:
                try:
                    await asyncio.wait_for(vm.process.wait(), timeout=5)
                except TimeoutError:
                    vm.process.kill()
                    await vm.process.wait()

    def judge(self, vm: Member, rounds: int, row: dict[str, Any]) -> list[str]:
        """What is wrong at one VM, in words; empty if nothing."""
        due = rounds * len(vm.expected)
        seen = {name: vm.counters.get(name, 0) for name in ("frames", "verified", *PROBLEMS)}
        wrong = [f"{vm.name}: {seen[name]} frames {name}" for name in PROBLEMS if seen[name]]
        if seen["verified"] != due:
            wrong.append(f"{vm.name}: {seen['verified']} of {due} frames arrived intact and in order")
        if row["frames_to_guest"] != due:
            wrong.append(f"{vm.name}: the engine counted {row['frames_to_guest']} frames, {due} were due")
        if row["drops"]:
            wrong.append(f"{vm.name}: drops {row['drops']}")
        return wrong


class Demo(Stage):
    """One replay of the capture."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.frames = [packet.data for packet in read_capture(str(CAPTURE), "demo")]
        share_out(self.frames, self.vms)
        self.engine.paused = True

    def config(self) -> Config:
        """The configuration a user would write for this."""
        return Config(
            engine=EngineConfig(api=str(self.folder / "api.sock")),
            uplinks={WIRE: Pcap(read=str(CAPTURE), write=str(self.folder / "left.pcap"), repeat=0)},
            vms={
                vm.name: Vm(socket=self.socket(vm), uplink=WIRE, mac=vm.macs, vlan=vm.vlan) for vm in self.vms
            },
        )

    async def run(self, seconds: float, refresh: Callable[[list[dict[str, Any]]], None]) -> dict[str, Any]:
        """Start, replay, stop on a whole round, wait for the last frame; the verdict."""
        async with self.play(self.config()):
            self.tell("send")
            self.engine.paused = False
            self.engine.publish()
            began = time.monotonic()
            self.busy_ns = -self.engine.workers[0].busy_ns
            while time.monotonic() - began < seconds:
                await asyncio.sleep(min(REFRESH_SECONDS, seconds))
                refresh(show(self.engine, "vms"))
            rounds = await self.finish(began)
            return self.verdict(rounds)

    async def finish(self, began: float) -> int:
        """End the replay on a whole round and wait until everything has arrived; the rounds."""
        lane, row = self.engine.uplinks[WIRE][1].lanes[0], self.engine.segment.rows["lane_state"][0]
        lane["laps"] = rounds = int(row["lap"]) + ROUNDS_AHEAD
        self.engine.publish()
        deadline = time.monotonic() + SETTLE_SECONDS
        # Kernels count in memory and set no events: look again and again.
        while (row["lap"] < rounds or row["pending"]) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self.seconds = time.monotonic() - began
        self.busy_ns += self.engine.workers[0].busy_ns
        while not self.arrived(rounds) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return rounds

    def arrived(self, rounds: int) -> bool:
        """Whether every guest has seen as many frames as there were for it."""
        return all(vm.counters.get("frames", 0) >= rounds * len(vm.expected) for vm in self.vms)

    def verdict(self, rounds: int) -> dict[str, Any]:
        """What was proved, and the figures."""
        rows = {row["name"]: row for row in show(self.engine, "vms")}
        complaints = [line for vm in self.vms for line in self.judge(vm, rounds, rows[vm.name])]
        delivered = sum(row["frames_to_guest"] for row in rows.values())
        sent = sum(row["frames_from_guest"] for row in rows.values())
        return {
            "ok": not complaints,
            "complaints": complaints,
            "rounds": rounds,
            "capture_frames": len(self.frames),
            "seconds": round(self.seconds, 3),
            "frames_to_guests": delivered,
            "bytes_to_guests": sum(row["bytes_to_guest"] for row in rows.values()),
            "frames_from_guests": sent,
            "frames_a_second": round(delivered / self.seconds) if self.seconds else None,
            "ns_a_frame": round(self.busy_ns / max(delivered + sent, 1), 1),
            "uplink": show(self.engine, "uplinks")[0],
            "vms": list(rows.values()),
        }


def compile_everything() -> None:
    """All kernels, of the engine and of the guests, before anything starts."""
    daemon.compile_kernels(compile_guest_kernels)


def live(seconds: float, *, plain: bool) -> Callable[[list[dict[str, Any]]], None]:
    """Shows the VM ports as they change: a table in place on a terminal, a line each time elsewhere."""
    began = time.monotonic()
    tall = 0

    def refresh(rows: list[dict[str, Any]]) -> None:
        nonlocal tall
        if plain:
            total = sum(row["frames_to_guest"] for row in rows)
            print(f"{time.monotonic() - began:5.1f} s of {seconds:g}: {total} frames delivered", flush=True)
            return
        text = table_of(rows)
        sys.stdout.write(f"\x1b[{tall}F\x1b[J" if tall else "")
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        tall = text.count("\n") + 1

    return refresh


def silent(_rows: list[dict[str, Any]]) -> None:
    """Shows nothing: the JSON at the end says it all."""


COLUMNS = (
    "name", "mac", "vlan", "processors", "frames_to_guest", "bytes_to_guest", "frames_from_guest", "indications",
    "frames_per_indication", "drops",
)  # fmt: skip


def table_of(rows: list[dict[str, Any]]) -> str:
    """The live table."""
    return table([row | {"mac": row["mac"][0]} for row in rows], COLUMNS)


def report(result: dict[str, Any]) -> str:
    """The verdict in words."""
    rate = result["frames_a_second"] or 0
    figures = (
        f"{result['frames_to_guests']:,} frames ({result['bytes_to_guests'] / 1e9:.2f} GB) delivered in "
        f"{result['seconds']:.1f} s: {rate / 1e6:.2f} million frames a second, {result['ns_a_frame']:.0f} ns a frame\n"
        f"{result['frames_from_guests']:,} frames sent by the guests; "
        f"{result['capture_frames']} frames in the capture, replayed {result['rounds']:,} times"
    )
    if result["ok"]:
        return f"{figures}\nPASS: every frame reached the VM it is addressed to, byte for byte, and no other"
    return f"{figures}\nFAIL:\n" + "\n".join(f"  {line}" for line in result["complaints"])


def run(seconds: float, as_json: bool, plain: bool) -> int:
    """Run the demo; 0 if the verdict is good."""
    compile_everything()
    plain = plain or not sys.stdout.isatty()
    with tempfile.TemporaryDirectory(prefix="vmq-demo-", dir=os.environ.get("TMPDIR")) as folder:
        demo = Demo(Path(folder))
        refresh = silent if as_json else live(seconds, plain=plain)
        result = asyncio.run(demo.run(seconds, refresh))
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        print(table_of(result["vms"]) if plain else "", report(result), sep="\n")
    return 0 if result["ok"] else 1
