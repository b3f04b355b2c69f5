# SPDX-License-Identifier: Apache-2.0
"""DPDK's driver while the kernel writes its frames: every path of it, pages of both sizes, stops and starts."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.dpdk.frames import SIZES, difference, frame
from tests.dpdk.hugepages import NoHugepagesError, hugepages
from tests.dpdk.lab import PATHS, Testpmd, until, virtio_user
from tests.hostile.arena import MACS
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.netns import joined
from tests.vm.test_direct import DIRECT, is_placed
from tests.vm.test_xdp import UPLINK, WIRE, station, vm

pytestmark = [pytest.mark.dpdk, pytest.mark.root, pytest.mark.timeout(120)]
NAME, EACH, BURST, MEMORY, RESTARTS = "attacker", 96, 32, 256, 5


@contextlib.contextmanager
def direct(
    folder: Path, ring: str, pages: Path | None = None
) -> Iterator[tuple[EngineProcess, socket.socket, Testpmd]]:
    """A port of DPDK's that answers each frame with its addresses exchanged, and whose frames the kernel places."""
    device = virtio_user(0, folder / f"{NAME}.sock", MACS[NAME], ring)
    with (
        joined() as (near, far),
        EngineProcess(folder, UPLINK + vm(NAME, DIRECT), near) as engine,
        station(far) as wire,
        Testpmd(folder, [device], forward="macswap", hugepages=pages, memory=MEMORY) as pmd,
    ):
        assert pmd.path_is(ring), pmd.log
        pmd.say("set burst 16", "start")
        until(lambda: is_placed(engine, NAME, "direct"), "direct placement")
        yield engine, wire, pmd


def echoes(wire: socket.socket, frames: Sequence[bytes]) -> None:
    """They come back, in order, as they went."""
    for first in range(0, len(frames), BURST):
        burst = frames[first : first + BURST]
        for one in burst:
            wire.send(one)
        problem = difference(
            [wire.recv(2000) for _ in burst], [one[6:12] + one[:6] + one[12:] for one in burst]
        )
        assert not problem, problem


def numbered(size: int, first: int) -> list[bytes]:
    return [frame(MACS[NAME], WIRE, size, first + index) for index in range(EACH)]


@pytest.mark.parametrize("ring", PATHS)
def test_the_kernel_places_frames_of_every_size_on_every_path(tmp_path: Path, ring: str) -> None:
    with direct(tmp_path, ring) as (engine, wire, _):
        for number, size in enumerate(SIZES):
            echoes(wire, numbered(size, number * EACH))
        row, count = engine.show("vms")[NAME], EACH * len(SIZES)
        assert (row["frames_to_guest"], row["frames_placed"], row["bytes_copied"]) == (count, count, 0)
        assert (row["frames_from_guest"], row["drops"]) == (count, {})


def test_memory_of_2_mebibyte_pages(tmp_path: Path) -> None:
    try:
        with hugepages(MEMORY) as pages, direct(tmp_path, "mergeable", pages) as (engine, wire, _):
            echoes(wire, numbered(1514, 0))
            row = engine.show("vms")[NAME]
            assert (row["frames_placed"], row["bytes_copied"]) == (EACH, 0)
    except NoHugepagesError:
        pytest.skip("needs hugepages")


def test_a_port_that_stops_and_starts_is_direct_again(tmp_path: Path) -> None:
    """What lands while it is stopped is thrown away by this driver when it starts."""
    with direct(tmp_path, "mergeable") as (engine, wire, pmd):
        for lap in range(RESTARTS):
            echoes(wire, numbered(64, lap * EACH))
            pmd.say("stop", "port stop 0")
            seen = pmd.received(0)
            wire.send(frame(MACS[NAME], WIRE, 64, 1 << 20))
            assert pmd.received(0) == seen
            pmd.say("port start 0", "start")
            until(lambda: is_placed(engine, NAME, "direct"), "direct placement")
        row = engine.show("vms")[NAME]
        assert (row["frames_to_guest"], row["frames_placed"]) == (RESTARTS * (EACH + 1),) * 2
        assert (row["frames_from_guest"], row["drops"]) == (RESTARTS * EACH, {})
