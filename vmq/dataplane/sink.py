# SPDX-License-Identifier: Apache-2.0
"""The control side of a byte ring: take out what a lane put into its sink, in one copy a call."""

from __future__ import annotations

import numpy as np

from vmq.dataplane.state import byte_ring
from vmq.jit import at, copy, kernel, load_acquire, store_release


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
