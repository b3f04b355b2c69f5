# SPDX-License-Identifier: Apache-2.0
"""Frames of other paths for a direct receive queue, as they are sent into its pair; whole ways: tests/vm/test_direct.py."""

from __future__ import annotations

import numpy as np

from tests.dataplane.rig import interpreted
from vmq.dataplane import state
from vmq.dataplane.divert import BORROWED, tag

pytestmark = interpreted


def frames(*tags: tuple[int, int]) -> np.ndarray:
    rows = np.zeros(len(tags), state.frame)
    for row, (tagged, tci) in zip(rows, tags, strict=True):
        row["tagged"], row["tci"] = tagged, tci
    return rows


def tags(rows: np.ndarray) -> list[tuple[int, int]]:
    return [(int(row["tagged"]), int(row["tci"])) for row in rows]


def test_a_frame_that_is_in_a_vlan_by_its_segment_has_its_tag_while_it_is_sent() -> None:
    """One that has a tag keeps it; who reads the frame after that finds it as it was."""
    rows, turns = frames((0, 0), (1, 0x2005), (0, 0)), np.array([0, 1], np.int64)
    tag(rows, turns, 2, 5, 1)
    assert tags(rows) == [(BORROWED, 5), (1, 0x2005), (0, 0)]
    tag(rows, turns, 2, 5, 0)
    assert tags(rows) == [(0, 0), (1, 0x2005), (0, 0)]


def test_without_a_vlan_nothing_is_tagged() -> None:
    rows, turns = frames((0, 0), (1, 0x2000)), np.array([0, 1], np.int64)
    tag(rows, turns, 2, 0, 1)
    assert tags(rows) == [(0, 0), (1, 0x2000)]
