# SPDX-License-Identifier: Apache-2.0
"""Lanes that replay recorded frames (a capture file, a generator in memory) and sink what leaves into a byte ring.

The frames lie in memory, in normal form, as rows of `recorded`. A lossless lane is not read while a destination is
full: what could not be delivered waits in the lane's backlog as (frame, receive queue) and goes first next time,
so the order of every queue is kept and nothing is delivered twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import VLAN_VID_MASK
from vmq.clock import now
from vmq.dataplane.classify import note
from vmq.dataplane.handover import push, still_there
from vmq.dataplane.reasons import HANDOVER_MOVED, TO_WIRE_FULL
from vmq.dataplane.state import (
    BURST,
    DELIVERIES,
    FRAMES,
    GAP_PARTS,
    LINE,
    NONE,
    PIECES,
    delivery,
    frame,
    piece,
    queue,
    recorded,
    waiting,
)
from vmq.jit import at, int64, kernel, prefetch

# Bytes of a frame that are brought nearer before its turn. With two lines and not all, 512 B cost 66 ns and not 47.
EXPECTED = 2048
LATE_NS = 10_000_000


@kernel
def present(lane: Any, row: Any, number: int) -> None:
    """Make `row` of recorded frame `number`."""
    item = at(lane["source"], lane["source_count"], recorded)[number]
    row["address"] = item["address"]
    row["head"] = row["length"] = item["length"]
    row["piece_first"] = row["piece_count"] = 0
    row["tci"] = item["tci"]
    row["tagged"] = item["tagged"]
    row["vid"] = int64(item["tci"]) & VLAN_VID_MASK


@kernel
def expect_recorded(lane: Any, number: int) -> None:
    """Bring a frame of the next burst nearer, and the row of one after that. Recordings are larger than caches."""
    if number + BURST < lane["source_count"]:
        rows = int64(lane["source"]) + number * recorded.itemsize
        prefetch(rows + BURST * recorded.itemsize, 0)
        row = at(rows, 1, recorded)[0]
        for place in range(0, min(int64(row["length"]), EXPECTED), LINE):
            prefetch(int64(row["address"]) + place, 0)


@kernel
def paced(lane: Any, state: Any) -> bool:
    """Whether frames are still to come, each at its time."""
    return bool(lane["receives"] and lane["gap"] > 0 and (lane["laps"] == 0 or state["lap"] < lane["laps"]))


@kernel
def until_due(w: Any, state: Any) -> int:
    """Milliseconds until a paced replay has a frame to send; from 1 to a second."""
    passed = (now(w) - int64(state["began"])) * GAP_PARTS
    wait = (int64(state["due"]) - passed) // (1_000_000 * GAP_PARTS)
    return min(max(wait, 1), 1000)


@kernel
def due(w: Any, lane: Any, state: Any) -> int:
    """How many frames the rate allows now; what could not be sent in time is made up for, LATE_NS of it at most."""
    gap = int64(lane["gap"])
    if gap == 0:
        return BURST
    time = now(w)
    if state["began"] == 0:
        state["began"] = time
    passed = (time - int64(state["began"])) * GAP_PARTS
    state["due"] = max(int64(state["due"]), passed - LATE_NS * GAP_PARTS)
    late = passed - int64(state["due"])
    return int64(0) if late < 0 else min(BURST, 1 + late // gap)


@kernel
def replay_receive(t: Any, w: Any, lane: Any, state: Any) -> int:
    """The next frames of the recording into the round; how many."""
    frames = at(w["frames"], FRAMES, frame)
    limit = min(due(w, lane, state), int64(t["frame_limit"]))
    taken = int64(0)
    while taken < limit and (lane["laps"] == 0 or state["lap"] < lane["laps"]):
        present(lane, frames[taken], state["cursor"])
        expect_recorded(lane, int64(state["cursor"]) + BURST)
        state["bytes_from_wire"] += frames[taken]["length"]
        taken += 1
        state["cursor"] += 1
        if state["cursor"] == lane["source_count"]:
            state["cursor"] = 0
            state["lap"] += 1
    state["due"] += taken * int64(lane["gap"])
    w["frame_count"] = taken
    return taken


@kernel
def replay_backlog(t: Any, w: Any, lane: Any, state: Any) -> None:
    """Bring what waits back into the round: one frame row a delivery. What was paused since is dropped."""
    rows = at(lane["backlog"], DELIVERIES, waiting)
    frames = at(w["frames"], FRAMES, frame)
    count = min(int64(state["pending"]), FRAMES)
    for index in range(count):
        number = int64(rows[index]["queue"])
        present(lane, frames[index], rows[index]["recorded"])
        frames[index]["account"] = NONE
        frames[index]["source"] = NONE
        frames[index]["uplink"] = lane["uplink"]
        if still_there(t, number, int64(rows[index]["generation"])):
            note(t, w, index, number)
        else:
            state["account"]["drops"][HANDOVER_MOVED] += 1
    w["frame_count"] = count


@kernel
def keep_backlog(t: Any, w: Any, lane: Any, state: Any, first: int, presented: int) -> None:
    """After delivery: what is undone waits. `first` is the recorded number of frame 0, NONE if it was the backlog.

    `presented` rows of an older backlog were in this round; what lies behind them moves up.
    """
    rows = at(lane["backlog"], DELIVERIES, waiting)
    deliveries = at(w["deliveries"], DELIVERIES, delivery)
    queues = at(t["queues"], max(int64(t["queue_count"]), 1), queue)
    left = int64(0)
    for index in range(w["delivery_count"]):
        if not deliveries[index]["done"]:
            number = int64(deliveries[index]["frame"])
            if first == NONE:
                rows[left]["recorded"] = rows[number]["recorded"]
            else:
                rows[left]["recorded"] = (first + number) % lane["source_count"]
            rows[left]["queue"] = deliveries[index]["queue"]
            rows[left]["generation"] = queues[deliveries[index]["queue"]]["generation"]
            left += 1
    for index in range(presented, state["pending"]):
        rows[left]["recorded"] = rows[index]["recorded"]
        rows[left]["queue"] = rows[index]["queue"]
        rows[left]["generation"] = rows[index]["generation"]
        left += 1
    state["pending"] = left


@kernel
def replay_transmit(w: Any, lane: Any, state: Any) -> None:
    """What leaves goes into the sink, if there is one."""
    frames = at(w["frames"], FRAMES, frame)
    pieces = at(w["pieces"], PIECES, piece)
    outgoing = at(w["outgoing"], FRAMES, np.int64)
    for index in range(w["outgoing_count"]):
        row = frames[outgoing[index]]
        if lane["sink"] and not push(lane["sink"], row, pieces, NONE, 0, 0):
            state["to_wire_drops"][TO_WIRE_FULL] += 1
            continue
        state["frames_to_wire"] += 1
        state["bytes_to_wire"] += row["length"]
