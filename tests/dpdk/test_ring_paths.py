# SPDX-License-Identifier: Apache-2.0
"""Every path of DPDK's driver, wire to guest to wire, across stops and starts of the guest's port.

The guest answers each frame with its addresses exchanged (`macswap`), so one comparison covers both directions.
"""

from __future__ import annotations

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


def descriptors(engine: EngineProcess) -> int:
    return len(list(Path(f"/proc/{engine.pid}/fd").iterdir()))


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
def test_stopped_port_gets_nothing_and_a_started_one_gets_the_first_frame(tmp_path: Path, ring: str) -> None:
    """Ten times: no frame after a stop, each dropped by name; one single frame each way after a start."""
    with wired(tmp_path, {"a": GUEST}) as (engine, wire), guest(tmp_path, ring) as pmd:
        engine.wait_for("a", "running")
        pmd.say("start")
        assert_echoed(wire, [frame(GUEST, HOST, 64, 0)])
        held = descriptors(engine)

        for lap in range(1, RESTARTS + 1):
            pmd.say("stop", "port stop 0")
            stopped = engine.wait_for("a", "connected")
            wire.send([frame(GUEST, HOST, 64, 1000 * lap + index) for index in range(3)])
            after = engine.show("vms")["a"]
            assert after["frames_to_guest"] == stopped["frames_to_guest"]
            assert after["drops"] == {"to_guest_not_running": 3 * lap}

            pmd.say("port start 0", "set burst 1", "start tx_first 1")
            engine.wait_for("a", "running")
            (first,) = wire.receive(1)
            assert first[6:12] == bytes.fromhex(GUEST.replace(":", ""))
            assert_echoed(wire, [frame(GUEST, HOST, 64, lap)])

        row = engine.show("vms")["a"]
        assert wire.receive(1, timeout=0.2) == [], "what was sent to a stopped port came later"
        assert (row["frames_to_guest"], row["frames_from_guest"]) == (RESTARTS + 1, 2 * RESTARTS + 1)
        assert (row["connects"], descriptors(engine)) == (1, held)
