# SPDX-License-Identifier: Apache-2.0
"""Who has nothing to do sleeps, and one frame wakes it: the engine by a guest's kick, a guest by the engine's
call (L9).

Sleeps and wake-ups are counted, not timed: how long a wake-up takes is a figure of the benchmarks.
"""

from __future__ import annotations

import itertools
import random
import struct
import time
from pathlib import Path

import pytest

from tests.dpdk.frames import frame, mac_bytes
from tests.dpdk.lab import Testpmd, until, virtio_user
from tests.dpdk.pair import VMS, A, B
from tests.dpdk.power import Sleeper, build
from tests.dpdk.wire import CPU, HOST, switched, wired
from tests.vm.lab.engine import EngineProcess
from vmq.guest.guest import Guest

pytestmark = [pytest.mark.dpdk, pytest.mark.root, pytest.mark.timeout(180)]

GUESTS = {f"g{number}": f"52:54:00:00:01:{number:02x}" for number in range(4)}
BURST, LAPS = 4, 20


def processor(engine: EngineProcess) -> dict:
    return engine.show("processors")[str(CPU)]


def asleep(engine: EngineProcess) -> dict:
    """Wait until the engine's processor sleeps; its row."""
    until(lambda: processor(engine)["state"] == "sleeping", "the engine sleeps")
    return processor(engine)


def ticks(pid: int) -> int:
    """Clock ticks that a process has run so far: proc(5), utime and stime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait_sent(engine: EngineProcess, vms: dict[str, str], count: int) -> None:
    """Wait until the engine has taken so many frames from these guests."""

    def sent() -> int:
        rows = engine.show("vms")
        return sum(rows[name]["frames_from_guest"] for name in vms)

    until(lambda: sent() >= count, f"{count} frames from the guests")
    assert sent() == count


@pytest.mark.parametrize("count", [1, 2, 4])
def test_engine_sleeps_until_a_guest_sends_and_again_after(tmp_path: Path, count: int) -> None:
    """With nothing to do it makes not one round; each burst of the guests wakes it, and all of it arrives."""
    vms = dict(itertools.islice(GUESTS.items(), count))
    macs = list(vms.values())
    devices = [
        virtio_user(index, tmp_path / f"{name}.sock", mac) for index, (name, mac) in enumerate(vms.items())
    ]
    peers = [f"--eth-peer={index},{macs[(index + 1) % count]}" for index in range(count)]
    with (
        switched(tmp_path, vms) as engine,
        Testpmd(tmp_path, devices, forward="rxonly", options=("--port-topology=loop", *peers)) as pmd,
    ):
        for name in vms:
            engine.wait_for(name, "running")
        pmd.say(f"set burst {BURST}")

        time.sleep(0.2)  # whatever was left to do is done
        before, ran = asleep(engine), ticks(engine.pid)
        time.sleep(1)
        after, idle = asleep(engine), ticks(engine.pid) - ran
        assert (after["rounds"], after["sleeps"]) == (before["rounds"], before["sleeps"])
        print(f"{idle} ticks of CPU in an idle second with {count} guests")

        for lap in range(1, LAPS + 1):
            slept = asleep(engine)
            pmd.say("start tx_first 1", "stop")
            wait_sent(engine, vms, lap * BURST * count)
            assert asleep(engine)["wakeups"] > slept["wakeups"]

        rows = engine.show("vms")
        for name in vms:  # a guest that is alone sends to itself, which no switch returns
            wanted = (LAPS * BURST, {}) if count > 1 else (0, {"own_address": LAPS * BURST})
            assert (rows[name]["frames_to_guest"], rows[name]["drops"]) == wanted


def routed(number: int) -> bytes:
    """An IPv4 packet that l3fwd-power sends back."""
    head = struct.pack(">BBHHHBBH4B4B", 0x45, 0, 46, number, 0, 64, 17, 0, 198, 18, 0, 1, 1, 1, 1, 5)
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return (
        mac_bytes(A)
        + mac_bytes(HOST)
        + b"\x08\x00"
        + head[:10]
        + struct.pack(">H", total ^ 0xFFFF)
        + head[12:]
        + bytes(26)
    )


def test_sleeping_guest_is_woken_by_the_first_frame_each_time(tmp_path: Path) -> None:
    """DPDK's interrupt-driven example sleeps, is called for one frame, answers, and sleeps again."""
    program = build(tmp_path)
    with (
        wired(tmp_path, {"a": A}) as (engine, wire),
        Sleeper(program, tmp_path, tmp_path / "a.sock", A) as guest,
    ):
        engine.wait_for("a", "running")
        guest.asleep_again(1)  # the engine calls once when it takes the rings
        woken = guest.wakeups

        for lap in range(1, LAPS + 1):
            asleep(engine)
            wire.send([routed(lap)])
            (answer,) = wire.receive(1)
            assert answer[6:12] == mac_bytes(A)
            assert answer[18:20] == struct.pack(">H", lap)
            guest.asleep_again(woken + lap)

        row = engine.show("vms")["a"]
        assert (row["frames_to_guest"], row["indications"]) == (LAPS, LAPS)


@pytest.mark.parametrize("event_idx", [True, False])
def test_no_wake_up_is_lost_in_ten_thousand_alternations(tmp_path: Path, event_idx: bool) -> None:
    """One frame and a pause, again and again: pauses end before, while and after the engine falls asleep.

    The guests are ours: they sleep in poll() on their call eventfds, and a lost call or kick is a time-out.
    """
    laps, pauses = 10_000, random.Random(20260)
    with (
        switched(tmp_path, VMS) as engine,
        Guest(tmp_path / "a.sock", A, event_idx=event_idx) as a,
        Guest(tmp_path / "b.sock", B, event_idx=event_idx) as b,
    ):
        before = processor(engine)
        for lap in range(laps):
            one = frame(B, A, 64, lap) if lap % 2 else frame(A, B, 64, lap)
            sender, receiver = (a, b) if lap % 2 else (b, a)
            sender.send([one])
            assert receiver.receive(1, timeout=5) == [one], f"lap {lap}"
            time.sleep(pauses.random() * 0.0004)
        after = processor(engine)

    assert after["wakeups"] - before["wakeups"] > laps // 10
