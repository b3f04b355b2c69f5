# SPDX-License-Identifier: Apache-2.0
"""Counters begin anew for who looks, and their writer knows nothing of it."""

from __future__ import annotations

import numpy as np

from vmq.dataplane.reasons import (
    DROP_COUNT,
    DROP_QUEUE,
    HANDOVER_FULL,
    HANDOVER_MOVED,
    RUNT,
    TO_GUEST_NO_BUFFER,
)
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
    rows["account"]["forwarded"] = 9
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


def test_what_is_cleared_in_the_middle_of_a_burst_adds_up_when_the_burst_is_over():
    """The worker counts drops frame by frame, totals and what was delivered before or behind."""
    queues, lanes = np.zeros(1, queue_state), np.zeros(1, lane_state)
    counted = [Counted(lambda: queues), Counted(lambda: lanes)]
    queues["to_guest_drops"][0, TO_GUEST_NO_BUFFER], queues["to_guest_drops"][0, HANDOVER_MOVED] = 3, 5
    queues["frames_from_guest"], queues["account"]["forwarded"] = 8, 2
    lanes["frames_from_wire"], lanes["account"]["forwarded"], lanes["account"]["drops"][0, RUNT] = 64, 10, 4
    lanes["account"]["drops"][0, HANDOVER_FULL] = 7
    for one in counted:
        one.clear(0)
    queues["offered_to_guest"], queues["frames_to_guest"] = 60, 57
    queues["account"]["forwarded"] = 8
    lanes["account"]["forwarded"] = 60
    (queue,), (lane,) = (one.rows() for one in counted)
    assert (int(queue["offered_to_guest"]), int(queue["frames_to_guest"])) == (57, 57)
    assert (int(queue["frames_from_guest"]), int(queue["account"]["forwarded"])) == (6, 6)
    assert (int(lane["frames_from_wire"]), int(lane["account"]["forwarded"])) == (50, 50)
