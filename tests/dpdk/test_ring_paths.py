# SPDX-License-Identifier: Apache-2.0
"""Every path of DPDK's driver, wire to guest to wire, across stops and starts of the guest's port (L1).

The guest answers each frame with its addresses exchanged (`macswap`), so one comparison covers both directions.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.dpdk.frames import SIZES, difference, frame
from tests.dpdk.lab import PATHS, Testpmd, virtio_user
from tests.dpdk.wire import HOST, Wire, wired
from tests.vm.lab.engine import EngineProcess

pytestmark = [pytest.mark.dpdk, pytest.mark.root, pytest.mark.timeout(120)]

GUEST = "52:54:00:00:00:0a"
EACH, RESTARTS = 300, 10


def echo_of(one: bytes) -> bytes:
    return one[6:12] + one[:6] + one[12:]


def assert_echoed(wire: Wire, frames: Sequence[bytes]) -> None:
    wire.send(frames)
    problem = difference(wire.receive(len(frames)), [echo_of(one) for one in frames])
    assert not problem, problem


def descriptors(engine: EngineProcess) -> Counter[str]:
    """What the engine has open, by kind; sockets apart, since clients of its API come and go."""
    found: Counter[str] = Counter()
    for descriptor in Path(f"/proc/{engine.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[os.readlink(descriptor).partition(":")[0]] += 1
    del found["socket"]
    return found


def guest(folder: Path, ring: str) -> Testpmd:
    return Testpmd(folder, [virtio_user(0, folder / "a.sock", GUEST, ring)], forward="macswap")


@pytest.mark.parametrize("ring", PATHS)
def test_frames_of_every_size_come_back_from_every_path(tmp_path: Path, ring: str) -> None:
    """Sizes 64 to 1518 with the check sequence: wire to guest to wire, nothing lost, nothing changed."""
    with wired(tmp_path, {"a": GUEST}) as (engine, wire), guest(tmp_path, ring) as pmd:
        engine.wait_for("a", "running")
        assert pmd.path_is(ring), pmd.log
        pmd.say("set burst 16", "start")

        for number, size in enumerate(SIZES):
            assert_echoed(wire, [frame(GUEST, HOST, size, number * EACH + index) for index in range(EACH)])

        row, count = engine.show("vms")["a"], EACH * len(SIZES)
        assert (row["frames_to_guest"], row["frames_from_guest"], row["drops"]) == (count, count, {})
        assert (pmd.stats(0)["ipackets"], pmd.stats(0)["opackets"]) == (count, count)


@pytest.mark.parametrize("ring", PATHS)
def test_stopped_port_sees_nothing_and_a_started_one_goes_on(tmp_path: Path, ring: str) -> None:
    """Ten times: zero while stopped, though buffers are posted; after a start a single frame each way.

    What waits in the ring is thrown away by this driver when it starts: it never shows.
    """
    with wired(tmp_path, {"a": GUEST}) as (engine, wire), guest(tmp_path, ring) as pmd:
        engine.wait_for("a", "running")
        pmd.say("start")
        assert_echoed(wire, [frame(GUEST, HOST, 64, 0)])
        held = descriptors(engine)

        for lap in range(1, RESTARTS + 1):
            pmd.say("stop", "port stop 0")
            seen = pmd.received(0)
            wire.send([frame(GUEST, HOST, 64, 1000 * lap + index) for index in range(3)])
            assert pmd.received(0) == seen

            pmd.say("port start 0", "start")
            assert_echoed(wire, [frame(GUEST, HOST, 64, lap)])

        row = engine.show("vms")["a"]
        assert wire.receive(1, timeout=0.2) == []
        assert pmd.received(0) == RESTARTS + 1
        assert (row["frames_to_guest"], row["frames_from_guest"]) == (4 * RESTARTS + 1, RESTARTS + 1)
        assert (row["drops"], row["connects"], descriptors(engine)) == ({}, 1, held)


def test_unplugged_device_gets_nothing_and_its_successor_does(tmp_path: Path) -> None:
    """While no driver is there each frame is dropped by name; none of them reaches the next driver."""
    with wired(tmp_path, {"a": GUEST}) as (engine, wire), guest(tmp_path, "mergeable") as pmd:
        engine.wait_for("a", "running")
        held = descriptors(engine)
        for lap in range(1, RESTARTS + 1):
            pmd.say("start")
            assert_echoed(wire, [frame(GUEST, HOST, 64, lap)])
            pmd.say("stop", "port stop 0", "port close 0", "device detach net_virtio_user0")
            engine.wait_for("a", "listening")
            wire.send([frame(GUEST, HOST, 64, 1000 * lap + index) for index in range(3)])

            pmd.say(f"port attach {pmd.devices[0]}", "port start 0")
            row = engine.wait_for("a", "running")
            assert (row["frames_to_guest"], row["drops"]) == (lap, {"to_guest_not_running": 3 * lap})
            assert (row["connects"], descriptors(engine)) == (lap + 1, held)
