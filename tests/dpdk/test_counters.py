# SPDX-License-Identifier: Apache-2.0
"""The engine and DPDK's driver count the same: each frame once, in both directions, by size and by kind of address (L6)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dpdk.frames import BROADCAST, MULTICAST, frame
from tests.dpdk.pair import PORT, VMS, A, B, pair
from tests.dpdk.wire import switched

pytestmark = [pytest.mark.dpdk, pytest.mark.root, pytest.mark.timeout(300)]

EACH = 10_000
# Bytes of a frame: the column of DPDK's xstats that counts it.
BINS = {
    64: "size_64", 100: "size_65_127", 255: "size_128_255", 512: "size_512_1023", 1024: "size_1024_1518",
    1514: "size_1024_1518",
}  # fmt: skip
CASTS = {"unicast": None, "multicast": MULTICAST, "broadcast": BROADCAST}


def burst(to: str, source: str) -> list[bytes]:
    """10 000 frames of each size, then 10 000 of each kind of address."""
    sized = [frame(to, source, size, index) for size in BINS for index in range(EACH)]
    cast = [frame(group or to, source, 64, index) for group in CASTS.values() for index in range(EACH)]
    return sized + cast


def expected(direction: str) -> dict[str, int]:
    """What xstats of one direction must say."""
    columns = {f"{direction}_q0_{column}_packets": 0 for column in BINS.values()}
    for column in BINS.values():
        columns[f"{direction}_q0_{column}_packets"] += EACH
    columns[f"{direction}_q0_size_64_packets"] += len(CASTS) * EACH
    for kind in ("multicast", "broadcast"):
        columns[f"{direction}_q0_{kind}_packets"] = EACH
    columns[f"{direction}_q0_good_packets"] = EACH * (len(BINS) + len(CASTS))
    return columns


def test_counters_of_engine_and_driver_agree_exactly(tmp_path: Path) -> None:
    """90 000 frames each way: the sums, the size bins and the kinds of address are what was sent."""
    frames = {"a": burst(B, A), "b": burst(A, B)}
    count, size = len(frames["a"]), sum(map(len, frames["a"]))
    with switched(tmp_path, VMS) as engine:
        it = pair(tmp_path, frames)
        with it.pmd:
            for name in VMS:
                engine.wait_for(name, "running")
            it.start()
            it.arrived()
            shown = engine.show("queues")
            driver = {name: it.pmd.xstats(port) for name, port in PORT.items()}
            it.quit_and_compare()

    for name in VMS:
        row, told = shown[f"{name}/0"], driver[name]
        for direction in ("rx", "tx"):
            wanted = expected(direction)
            assert {key: told[key] for key in wanted} == wanted
            assert told[f"{direction}_good_bytes"] == size
        assert (row["frames_to_guest"], row["bytes_to_guest"]) == (count, size)
        assert (row["frames_from_guest"], row["bytes_from_guest"]) == (count, size)
        assert (row["offered_to_guest"], row["forwarded"], row["copies"]) == (count, count, count)
        assert row["drops"] == {}
