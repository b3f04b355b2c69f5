# SPDX-License-Identifier: Apache-2.0
"""Lanes on a TAP queue: one read or writev a frame, each with the twelve-byte virtio header in front.

The host's stack is told to finish checksums and segments itself (TUNSETOFFLOAD 0), so the header is empty both
ways. linux-if_tun.h
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.linux import EAGAIN, ENOBUFS, UIO_MAXIOV
from vmq.abi.virtio import net_hdr
from vmq.dataplane.reasons import TO_WIRE_ERROR, TO_WIRE_FULL
from vmq.dataplane.state import BURST, FRAMES, frame
from vmq.dataplane.wire import admit, frame_vector, normalise
from vmq.jit import at, c_read, int64, kernel, poke, system_call

c_writev = system_call("writev", 3, wide=True)

HEADER = net_hdr.itemsize


@kernel
def tap_receive(t: Any, w: Any, lane: Any, state: Any, descriptor: int) -> int:
    """Read frames from a queue of the device until there are none; reads that gave one."""
    frames = at(w["frames"], FRAMES, frame)
    size = int64(lane["buffer_size"])
    limit = min(BURST, int64(t["frame_limit"]))
    taken = int64(0)
    while taken < limit:
        buffer = int64(lane["buffers"]) + taken * size
        got = c_read(descriptor, buffer, size)
        if got <= 0:
            break
        taken += 1
        row = frames[w["frame_count"]]
        if normalise(state, row, buffer + HEADER, got - HEADER):
            admit(w, lane, state, row, got == size)
    return taken


@kernel
def tap_transmit(w: Any, lane: Any, state: Any) -> None:
    """Write what leaves."""
    frames = at(w["frames"], FRAMES, frame)
    outgoing = at(w["outgoing"], FRAMES, np.int64)
    for index in range(w["outgoing_count"]):
        row = frames[outgoing[index]]
        poke(w["header"], np.uint64, np.uint64(0))
        poke(w["header"] + 8, np.uint32, np.uint32(0))
        parts = frame_vector(w, row, w["iovecs"], UIO_MAXIOV, w["header"], HEADER)
        sent = c_writev(lane["fd"], w["iovecs"], parts)
        if sent < 0:
            full = sent == -EAGAIN or sent == -ENOBUFS
            state["to_wire_drops"][TO_WIRE_FULL if full else TO_WIRE_ERROR] += 1
            continue
        state["frames_to_wire"] += 1
        state["bytes_to_wire"] += row["length"]
