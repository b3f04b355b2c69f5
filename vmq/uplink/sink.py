# SPDX-License-Identifier: Apache-2.0
"""What leaves through a replaying uplink, brought out to plain Python: one byte ring a lane, emptied by control.

A full ring is the named drop `to_wire_full` of its lane; no worker ever waits for a file.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vmq.abi.ethernet import ETH_P_8021Q, ETH_TYPE_OFFSET
from vmq.dataplane.sink import drain_ring
from vmq.dataplane.state import byte_ring, parcel
from vmq.jit import address_of, at, compile_for

RING = 1 << 22  # bytes a lane: some 2700 frames of 1514 bytes


def compile_sink() -> None:
    """Compile or load what empties a sink, before any worker starts."""
    compile_for(drain_ring, "int64", "int64")


class Sink:
    """The byte ring of one lane, in memory at `address` of `sink_bytes()` bytes."""

    def __init__(self, address: int) -> None:
        self.address = address
        ring = at(address, 1, byte_ring)[0]
        ring["size"], ring["data"] = RING, address + byte_ring.itemsize

    def frames(self) -> Iterator[bytes]:
        """What has left since the last call, oldest first, tags inside."""
        copied = np.empty(RING, np.uint8)
        for _ in range(2):  # to the end of the ring's memory, then from its beginning
            moved = drain_ring(self.address, address_of(copied))
            place = 0
            while place < moved:
                size = int(copied[place : place + 8].view(np.int64)[0])
                if size < 0:  # unused room at the end
                    place -= size
                    continue
                yield _on_the_wire(copied[place : place + size])
                place += size


def sink_bytes() -> int:
    """Memory that a sink takes."""
    return byte_ring.itemsize + RING


def _on_the_wire(record: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> bytes:
    """The bytes of a parcel's frame, with its tag."""
    header = record[: parcel.itemsize].view(parcel)[0]
    frame = record[parcel.itemsize : parcel.itemsize + int(header["length"])].tobytes()
    if not header["tagged"]:
        return frame
    tag = ETH_P_8021Q.to_bytes(2, "big") + int(header["tci"]).to_bytes(2, "big")
    return frame[:ETH_TYPE_OFFSET] + tag + frame[ETH_TYPE_OFFSET:]
