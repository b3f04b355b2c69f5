# SPDX-License-Identifier: Apache-2.0
"""No unnamed drop: what must be equal among the counters, whatever happened.

A few equations, for every row that counts:

        source         frames in = forwarded + drops                   (a guest's queue, a lane)
        receive queue  offered = delivered + to_guest_* drops
        all            copies = offered + handover_* drops + what is on its way
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.dataplane import reasons, state
from vmq.jit import at
from vmq.publisher import Segment

ON_THE_WAY = [reasons.HANDOVER_FULL, reasons.HANDOVER_MOVED]
TO_GUEST = [code for code, (name, _) in enumerate(reasons.DROPS) if name.startswith("to_guest_")]


def parcels(address: int) -> int:
    """Frames that wait in a byte ring."""
    ring = at(address, 1, state.byte_ring)[0]
    tail, count = int(ring["tail"]), 0
    while tail < int(ring["head"]):
        place = int(ring["data"]) + tail % int(ring["size"])
        size = int(at(place, 1, np.int64)[0])
        count += size > 0 and int(at(place, 1, state.parcel)[0]["queue"]) != state.NONE
        tail += abs(size)
    return count


def _judged(account: Any) -> int:
    """Frames of one source that were forwarded or dropped when they were steered."""
    drops = account["drops"].copy()
    drops[ON_THE_WAY] = 0
    return int(account["forwarded"]) + int(drops.sum())


def used_rows(segment: Segment) -> Any:
    """Rows of the receive queues that any frame has touched."""
    rows = segment.rows["queue_state"]
    return rows[rows["frames_from_guest"] + rows["offered_to_guest"] + rows["to_guest_drops"].sum(axis=1) > 0]


def check_laws(segment: Segment) -> None:
    copies = arrived = 0
    for row in used_rows(segment):
        assert int(row["frames_from_guest"]) == _judged(row["account"])
        dropped = int(row["to_guest_drops"][TO_GUEST].sum())
        assert int(row["offered_to_guest"]) == int(row["frames_to_guest"]) + dropped
        copies += int(row["account"]["copies"])
        arrived += int(row["offered_to_guest"]) + int(row["to_guest_drops"][ON_THE_WAY].sum())
        arrived += int(row["account"]["drops"][ON_THE_WAY].sum())
    for row in segment.rows["lane_state"]:
        assert int(row["frames_from_wire"]) == _judged(row["account"])
        copies += int(row["account"]["copies"])
        arrived += int(row["account"]["drops"][ON_THE_WAY].sum()) + int(row["pending"])
    rings = segment.rows["rings"]
    arrived += sum(parcels(int(address)) for address in rings[rings != 0])
    assert copies == arrived, "a copy is neither delivered, nor dropped under a name, nor on its way"
