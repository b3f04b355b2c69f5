# SPDX-License-Identifier: Apache-2.0
"""A kernel's TCP goes through an engine and through a bridge; nothing is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import taptcp

NAMESPACES = Path("/run/netns")


@pytest.mark.root
@pytest.mark.compiled
@pytest.mark.timeout(180)
def test_bytes_arrive_by_both_ways_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors")
    monkeypatch.setattr(taptcp, "SECONDS", 1)

    figures = taptcp.tap_tcp(1)

    assert {name.partition(":")[0] for name in figures} == {
        f"{way}, {direction} the guest"
        for way in ("vmq", "vmq, direct", "bridge")
        for direction in ("to", "from")
    }
    assert all(figure.median > 0 for figure in figures.values())
    assert not [one for one in NAMESPACES.iterdir() if one.name.startswith(f"vmq-{os.getpid()}-")]
