# SPDX-License-Identifier: Apache-2.0
"""A guest that posts no buffers: its frames are dropped at once, or wait a while, as its VM port says.

    keep 0             drop-newest: what finds no buffer is dropped, as on any ring
    keep n             hold: up to n frames wait in host memory, for the guest alone; what comes then is dropped
    keep n, `oldest`   drop-oldest: the same, but what has waited longest is dropped

Frames wait in the ring of their processor to itself that is for sources which wait (handover.py), so one place knows
how to keep order: while frames of a receive queue are in there (`kept`), every later one goes behind them, also when
the policy is another by now. All VMs of a
processor share its bytes; when it is full, the newest is dropped. Sources that wait by themselves lose nothing here.
"""

from __future__ import annotations

from typing import Any

from vmq.dataplane.handover import ASIDE, push, ring_of, taken_of
from vmq.dataplane.reasons import TO_GUEST_NO_BUFFER
from vmq.dataplane.state import (
    DELIVERIES,
    DONE,
    FRAMES,
    MAX_QUEUES,
    NONE,
    PIECES,
    delivery,
    engine,
    frame,
    piece,
    queue,
    queue_state,
    todo,
)
from vmq.dataplane.to_guest import deliver
from vmq.jit import at, int64, kernel

KEEP_MAX = 4096


@kernel
def put_aside(w: Any, number: int, row: Any) -> None:
    """What is noted for a receive queue and not delivered waits, or is dropped under its name."""
    deliveries = at(w["deliveries"], DELIVERIES, delivery)
    frames = at(w["frames"], FRAMES, frame)
    pieces = at(w["pieces"], PIECES, piece)
    waits = at(w["todo"], MAX_QUEUES, todo)[number]
    books = at(at(w["engine"], 1, engine)[0]["queue_state"], MAX_QUEUES, queue_state)[number]
    ring = ring_of(w, w["index"], w["index"], 1)
    most = int64(row["keep"]) if row["keep"] else int64(KEEP_MAX)  # behind those of a policy that is no more
    index = int64(waits["first"])
    while index != NONE:
        if not deliveries[index]["done"]:
            one = frames[deliveries[index]["frame"]]
            room = row["oldest"] or waits["aside"] < most
            one["tagged"] += ASIDE
            if room and push(ring, one, pieces, number, int64(row["generation"]), taken_of(w, one)):
                waits["held"] += 1
                waits["kept"] += 1
                waits["aside"] += 1
                if waits["aside"] - waits["excess"] > row["keep"]:
                    waits["excess"] += 1
            else:
                books["offered_to_guest"] += 1
                books["to_guest_drops"][TO_GUEST_NO_BUFFER] += 1
            one["tagged"] -= ASIDE
            deliveries[index]["done"] = DONE
        index = int64(deliveries[index]["next"])


@kernel
def fill(t: Any, w: Any, number: int, hold: int, again: int) -> None:
    """Deliver what is noted for a receive queue. `again`: it has waited in the ring of its processor to itself."""
    row = at(t["queues"], t["queue_count"], queue)[number]
    waits = at(w["todo"], MAX_QUEUES, todo)[number]
    if again or (row["keep"] == 0 and waits["aside"] == 0):
        deliver(t, w, number, hold)
        return
    if waits["kept"] == 0:
        deliver(t, w, number, 1)
    if not hold:
        put_aside(w, number, row)
