# SPDX-License-Identifier: Apache-2.0
"""What is read of a process, its memory without guests'; what several wake-ups come to; the configuration it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.engine import WAKE_UPS, configuration, of_wake_ups, pss_mebibytes
from vmq.config import load

SMAPS = """\
7f0000000000-7f0000100000 rw-s 00000000 00:01 1 /memfd:guest (deleted)
Pss:                4096 kB
7f0000200000-7f0000300000 rw-p 00000000 00:00 0
Rss:                2048 kB
Pss:                1536 kB
Pss_Dirty:          1536 kB
7f0000400000-7f0000500000 r-xp 00000000 00:01 2 /usr/lib/libc.so
Pss:                 512 kB
"""


def test_guest_memory_is_left_out() -> None:
    assert pss_mebibytes(SMAPS) == 2.0


def test_a_run_of_wake_ups_has_a_median_and_a_longest() -> None:
    """A figure is of as many values as there are runs; only what is drawn has all of them."""
    quiet, disturbed = [float(number) for number in range(1, WAKE_UPS + 1)], [50.0] * (WAKE_UPS - 1) + [900.0]

    found = of_wake_ups("ours", quiet + disturbed)

    assert {name: figure.values for name, figure in found.items()} == {
        "µs, ours, p50": ((WAKE_UPS + 1) / 2, 50.0),
        f"µs, ours, the longest of {WAKE_UPS}": (float(WAKE_UPS), 900.0),
        "histogram: µs, ours": (*quiet, *disturbed),
    }


@pytest.mark.parametrize("source", [True, False])
def test_configuration_is_one_that_the_engine_takes(tmp_path: Path, source: bool) -> None:
    (tmp_path / "vmq.toml").write_text(configuration(tmp_path, 3, source=source))

    config = load(tmp_path / "vmq.toml")

    assert list(config.vms) == ["v0", "v1", "v2"]
    assert {vm.uplink for vm in config.vms.values()} == {"source" if source else None}
