# SPDX-License-Identifier: Apache-2.0
"""The control side of a byte ring: take out what a lane put into its sink, in one copy a call, or what was captured."""

from __future__ import annotations

import numpy as np

from vmq.dataplane.state import byte_ring, packet_record
from vmq.jit import at, copy, int64, kernel, load_acquire, store_release


@kernel
def drain_ring(address: int, to: int) -> int:
    """Move whole parcels of the ring at `address` to `to`, which has room for the ring; bytes moved.

    What lies beyond the end of the ring's memory comes with the next call: a parcel never wraps.
    """
    ring = at(address, 1, byte_ring)[0]
    size, tail = np.int64(ring["size"]), np.int64(ring["tail"])
    place = tail & (size - 1)
    # us: head, then parcels | writer: parcels, then head.
    count: int = min(int(load_acquire(ring, "head")) - int(tail), int(size - place))
    copy(to, int(ring["data"]) + int(place), count)
    # us: copy out, then tail | writer: reads tail, then writes over it.
    store_release(ring, "tail", tail + count)
    return count


@kernel
def drain_blocks(address: int, to: int, room: int) -> int:
    """Move whole blocks of the capture ring at `address` to `to`, one behind the other, `room` bytes at most; bytes moved."""
    ring = at(address, 1, byte_ring)[0]
    size, tail = int64(ring["size"]), int64(ring["tail"])
    # us: head, then blocks | writer: blocks, then head.
    head = int64(load_acquire(ring, "head"))
    moved = int64(0)
    while tail < head:
        place = int64(ring["data"]) + (tail & (size - 1))
        record = at(place, 1, packet_record)[0]
        step, length = int64(record["size"]), int64(record["length"])
        if step < 0:  # unused room at the end
            tail -= step
            continue
        if moved + length > room:
            break
        copy(to + moved, place + packet_record.itemsize, length)
        moved += length
        tail += step
    # us: copy out, then tail | writer: reads tail, then writes over it.
    store_release(ring, "tail", tail)
    return moved
