# SPDX-License-Identifier: Apache-2.0
"""What is read of a process: its memory without guests', its time on processors; and the configuration it gets."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bench.engine import configuration, cpu_seconds, pss_mebibytes
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


def test_time_on_processors_counts_work_and_no_sleep() -> None:
    before = cpu_seconds(os.getpid())
    time.sleep(0.2)
    slept = cpu_seconds(os.getpid()) - before
    ended = time.process_time() + 0.2
    while time.process_time() < ended:
        pass

    assert cpu_seconds(os.getpid()) - before - slept > 0.1


@pytest.mark.parametrize("source", [True, False])
def test_configuration_is_one_that_the_engine_takes(tmp_path: Path, source: bool) -> None:
    (tmp_path / "vmq.toml").write_text(configuration(tmp_path, 3, source=source))

    config = load(tmp_path / "vmq.toml")

    assert list(config.vms) == ["v0", "v1", "v2"]
    assert {vm.uplink for vm in config.vms.values()} == {"source" if source else None}
