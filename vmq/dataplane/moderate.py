# SPDX-License-Identifier: Apache-2.0
"""Indications of a receive queue: one a batch, or fewer (interrupt moderation).

    gap      ns from one indication to the next, WAIT_NS where only `gather` is set
    gather   frames for which it is made before its time

Frames are shown to the driver at once, whatever becomes of the call: one that looks by itself loses nothing. A call that
is owed is made by a later batch, or by `remind` in a round that finds it due; a processor that sleeps meanwhile looks
every millisecond.
"""

from __future__ import annotations

from typing import Any

from vmq.clock import now
from vmq.dataplane.ports import call
from vmq.dataplane.state import BATCH_BINS, MAX_QUEUES, engine, queue, queue_state, ring_state, virtqueue
from vmq.jit import at, int64, kernel

WAIT_NS = 1_000_000


@kernel
def bin_of(frames: int) -> int:
    """Histogram bin of a batch: 1, 2-3, 4-7, …"""
    index = int64(0)
    while frames > 1 and index < BATCH_BINS - 1:
        frames >>= 1
        index += 1
    return index


@kernel
def due(w: Any, row: Any, ring: Any) -> bool:
    """Whether the indication that is owed may be made; then it begins the next gap."""
    time = now(w)
    wait = int64(row["gap"]) if row["gap"] else int64(WAIT_NS)
    many = row["gather"] > 0 and ring["owed"] >= row["gather"]
    if not many and time - int64(ring["indicated"]) < wait:
        return False
    ring["indicated"] = time
    return True


@kernel
def indicate(w: Any, row: Any, vq: Any, ring: Any, books: Any, batch: int, wanted: bool) -> None:
    """A batch of frames was shown; the driver wants a call, or wanted one before."""
    if row["gap"] or row["gather"]:
        if wanted or ring["owed"]:
            ring["owed"] += batch
            wanted = due(w, row, ring)
            if not wanted:
                books["put_off"] += 1
                return
            batch = int64(ring["owed"])
            ring["owed"] = 0
    elif ring["owed"]:  # from when there were limits
        batch += int64(ring["owed"])
        ring["owed"] = 0
        wanted = True
    if wanted:
        call(w, vq, books)
        books["indications"] += 1
        books["batches"][bin_of(batch)] += 1
    elif batch > 0:
        books["suppressed"] += 1


@kernel
def remind(t: Any, w: Any, number: int) -> None:
    """Make an indication that is owed by now."""
    shared = at(w["engine"], 1, engine)[0]
    ring = at(shared["ring_state"], 2 * MAX_QUEUES, ring_state)[2 * number]
    vq = at(t["virtqueues"], 2 * t["queue_count"], virtqueue)[2 * number]
    row = at(t["queues"], t["queue_count"], queue)[number]
    if ring["owed"] == 0 or not vq["running"] or not due(w, row, ring):
        return
    books = at(shared["queue_state"], MAX_QUEUES, queue_state)[number]
    call(w, vq, books)
    books["indications"] += 1
    books["batches"][bin_of(int64(ring["owed"]))] += 1
    ring["owed"] = 0
