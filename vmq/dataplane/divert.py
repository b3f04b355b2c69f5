# SPDX-License-Identifier: Apache-2.0
"""Frames of other paths for a receive queue that is direct: sent into the VM's own pair, they take the next buffer in turn.

        VM to VM, copies of groups ─► near end of the pair ─► the same buffers, in one order with those of the NIC

A frame that is longer than the VM's MTU is dropped by name, as where the engine places it: nobody can make a VM switched by
sending such frames. A frame for a VM in a VLAN is sent with its tag, by which the far end knows it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import VLAN_VID_MASK
from vmq.dataplane.packet import send_all
from vmq.dataplane.reasons import TO_GUEST_TOO_LONG
from vmq.dataplane.state import (
    DELIVERIES,
    DONE,
    DONE_DROPPED,
    FRAMES,
    NONE,
    delivery,
    direct_queue,
    frame,
    lane,
    lane_state,
)
from vmq.jit import at, int64, kernel

BORROWED = 4  # in `tagged`, while a frame is sent into a pair


@kernel
def divert(w: Any, row: Any, vlan: int, noted: Any, books: Any) -> None:
    """Everything noted for a receive queue of VLAN `vlan` into its pair, in order."""
    placed = at(row["direct"], 1, direct_queue)[0]
    turns = at(placed["turns"], FRAMES, np.int64)
    deliveries = at(w["deliveries"], DELIVERIES, delivery)
    frames = at(w["frames"], FRAMES, frame)
    index, count = int64(noted["first"]), int64(0)
    while index != NONE:
        number = int64(deliveries[index]["frame"])
        if frames[number]["length"] > placed["longest"]:
            books["offered_to_guest"] += 1
            books["to_guest_drops"][TO_GUEST_TOO_LONG] += 1
            deliveries[index]["done"] = DONE_DROPPED
        else:
            turns[count] = number
            count += 1
            deliveries[index]["done"] = DONE
        index = int64(deliveries[index]["next"])
    tag(frames, turns, count, vlan, 1)
    send_all(w, at(placed["near"], 1, lane)[0], at(placed["near_state"], 1, lane_state)[0], turns, count)
    tag(frames, turns, count, vlan, 0)


@kernel
def tag(frames: Any, turns: Any, count: int, vlan: int, on: int) -> None:
    """Let frames that are in a VLAN by their segment alone have a tag of it (`on`), or have it no longer."""
    if vlan == 0:
        return
    for place in range(count):
        one = frames[turns[place]]
        if on and not one["tagged"]:
            one["tagged"], one["tci"] = BORROWED, vlan & VLAN_VID_MASK
        elif not on and one["tagged"] == BORROWED:
            one["tagged"], one["tci"] = 0, 0
