# SPDX-License-Identifier: Apache-2.0
"""Counters begin anew for who looks, and their writer knows nothing of it."""

from __future__ import annotations

import numpy as np

from vmq.dataplane.reasons import DROP_COUNT, DROP_QUEUE, RUNT
from vmq.dataplane.state import lane_state, queue_state
from vmq.engine.counted import Counted


def test_what_is_cleared_is_counted_from_there_and_the_rows_stay_as_they_are():
    rows = np.zeros(3, queue_state)
    counted = Counted(lambda: rows)
    rows["frames_to_guest"] = (5, 6, 7)
    counted.clear(0, 2)
    assert list(counted.rows()["frames_to_guest"]) == [0, 6, 0]
    rows["frames_to_guest"] += 2
    assert list(counted.rows()["frames_to_guest"]) == [2, 8, 2]
    assert list(rows["frames_to_guest"]) == [7, 8, 9]
    counted.clear(1)
    assert list(counted.rows()["frames_to_guest"]) == [2, 0, 2]


def test_what_counts_nothing_is_shown_as_it_is():
    """Where a replay stands is no counter."""
    rows = np.zeros(2, lane_state)
    counted = Counted(lambda: rows, ("pending",))
    rows["pending"], rows["frames_from_wire"] = 4, 9
    counted.clear(0)
    shown = counted.rows()
    assert (list(shown["pending"]), list(shown["frames_from_wire"])) == ([4, 4], [0, 9])
    shown["pending"] = 0
    assert list(rows["pending"]) == [4, 4]


def test_one_kind_of_drop_begins_anew_alone():
    rows = np.zeros(2, lane_state)
    counted = Counted(lambda: rows)
    rows["account"]["drops"][:] = np.arange(DROP_COUNT) + 1
    counted.clear_drop(DROP_QUEUE)
    drops = counted.rows()["account"]["drops"]
    assert list(drops[:, DROP_QUEUE]) == [0, 0]
    assert list(drops[:, RUNT]) == [RUNT + 1] * 2
