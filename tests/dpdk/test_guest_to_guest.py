# SPDX-License-Identifier: Apache-2.0
"""DPDK's virtio driver at both ends: what one guest sends reaches the other byte for byte, in order, both ways (L5.1).

The engine sees frames of every size on every path of the driver that split virtqueues have; net_pcap supplies and
stores them, and a plain reader compares the files.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dpdk.frames import read_capture, series, write_capture
from tests.dpdk.lab import PATHS, Testpmd, pcap, virtio_user
from tests.dpdk.pair import PATIENT, VMS, A, B, pair
from tests.dpdk.wire import switched

pytestmark = [pytest.mark.dpdk, pytest.mark.root, pytest.mark.timeout(120)]

NEGOTIATED = {"f_version_1", "ring_f_indirect_desc"}


@pytest.mark.parametrize("ring", PATHS)
def test_every_frame_arrives_intact_and_in_order_both_ways(tmp_path: Path, ring: str) -> None:
    """Frames of 60 to 1514 bytes, on each path; the bits agreed on are those of the path."""
    frames = {"a": series(B, A, 2000), "b": series(A, B, 2000, first=5000)}
    with switched(tmp_path, VMS) as engine:
        it = pair(tmp_path, frames, ring)
        with it.pmd:
            assert it.pmd.path_is(ring), it.pmd.log
            for name in VMS:
                agreed = set(engine.wait_for(name, "running")["features"])
                assert agreed >= NEGOTIATED
                assert ("net_f_mrg_rxbuf" in agreed) == (ring == "mergeable")
            it.start()
            it.arrived()
            shown = engine.show("vms")
            it.quit_and_compare()

    for name, sender in (("a", "b"), ("b", "a")):
        sent = sum(map(len, frames[sender]))
        assert (shown[name]["frames_to_guest"], shown[name]["bytes_to_guest"]) == (2000, sent)
        assert (shown[sender]["frames_from_guest"], shown[sender]["bytes_from_guest"]) == (2000, sent)
        assert shown[name]["drops"] == {}


def test_two_processes_with_memory_of_their_own(tmp_path: Path) -> None:
    """Each guest is a process; both share one processor, so the ring holds all that may wait while one does not run."""
    frames = {"a": series(B, A, 2000), "b": series(A, B, 2000, first=5000)}
    devices = {
        name: [
            virtio_user(0, tmp_path / f"{name}.sock", mac, "mergeable", 4096),
            pcap(0, write_capture(tmp_path / f"{name}.in", frames[name]), tmp_path / f"{name}.out"),
        ]
        for name, mac in VMS.items()
    }
    with (
        switched(tmp_path, VMS) as engine,
        Testpmd(tmp_path, devices["a"], name="a", descriptors=4096) as a,
        Testpmd(tmp_path, devices["b"], name="b", descriptors=4096) as b,
    ):
        for name in VMS:
            engine.wait_for(name, "running")
        for pmd in (a, b):
            pmd.say(*PATIENT, "start")
        for pmd in (a, b):
            pmd.wait_received(0, 2000)
            pmd.quit()

    assert read_capture(tmp_path / "b.out") == frames["a"]
    assert read_capture(tmp_path / "a.out") == frames["b"]
