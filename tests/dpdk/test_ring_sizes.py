# SPDX-License-Identifier: Apache-2.0
"""Virtqueues of every size that a split ring may have here, around the ring many times (L4)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dpdk.frames import series
from tests.dpdk.pair import VMS, A, B, pair
from tests.dpdk.wire import switched

pytestmark = [pytest.mark.dpdk, pytest.mark.root, pytest.mark.timeout(300)]

LAPS = 100
SMALL = (60, 61, 64, 67, 100, 128)


@pytest.mark.parametrize("size", [256, 512, 1024, pytest.param(4096, marks=pytest.mark.slow)])
def test_ring_goes_round_a_hundred_times_and_no_byte_is_lost(tmp_path: Path, size: int) -> None:
    """Both rings of both guests wrap; every frame is compared."""
    count = LAPS * size
    frames = {"a": series(B, A, count, SMALL), "b": series(A, B, count, SMALL, first=count)}
    with switched(tmp_path, VMS) as engine:
        it = pair(tmp_path, frames, "mergeable", size, buffers=8 * size + 8192)
        with it.pmd:
            for name in VMS:
                engine.wait_for(name, "running")
            it.start()
            it.arrived(120)
            shown = engine.show("queues")
            it.quit_and_compare()

    for row in shown.values():
        assert (row["size_to_guest"], row["size_from_guest"]) == (size, size)
        assert (row["frames_to_guest"], row["frames_from_guest"], row["drops"]) == (count, count, {})
