# SPDX-License-Identifier: Apache-2.0
"""Guest memory of hugepages: the engine needs none itself, and serves what a front-end brings (L7).

Memory of 4 KiB pages is what all other tests of this folder use.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dpdk.frames import series
from tests.dpdk.hugepages import NoHugepagesError, hugepages
from tests.dpdk.pair import VMS, A, B, pair
from tests.dpdk.wire import switched

pytestmark = [pytest.mark.dpdk, pytest.mark.root, pytest.mark.timeout(120)]

MEMORY = 256


@pytest.mark.parametrize("ring", ["mergeable", "vector"])
def test_guest_memory_of_2_mebibyte_pages(tmp_path: Path, ring: str) -> None:
    """One region of hugepages, frames of every size, both ways."""
    frames = {"a": series(B, A, 2000), "b": series(A, B, 2000, first=5000)}
    try:
        with hugepages(MEMORY) as folder, switched(tmp_path, VMS) as engine:
            it = pair(tmp_path, frames, ring, hugepages=folder, memory=MEMORY)
            with it.pmd:
                for name in VMS:
                    engine.wait_for(name, "running")
                it.start()
                it.arrived()
                it.quit_and_compare()
            assert engine.show("vms")["a"]["drops"] == {}
    except NoHugepagesError:
        pytest.skip("needs hugepages")
