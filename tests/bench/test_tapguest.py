# SPDX-License-Identifier: Apache-2.0
"""A guest with a TAP moves frames as they are, in batches, and never more than its ring has room for."""

from __future__ import annotations

import os
import socket

import numpy as np

from bench.tapguest import BATCH, BETWEEN, LONGEST, carry, from_tap, to_tap
from tests.engine.running import frame
from tests.guest.backend import Backend
from vmq.guest.guest import Guest
from vmq.jit import address_of

MAC, OTHER = "52:54:00:00:00:01", "02:00:00:00:00:01"


def wire() -> tuple[socket.socket, socket.socket]:
    """In the place of a TAP: one frame a read, and a read does not wait."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


def test_frames_between_two_taps_come_whole_and_in_order() -> None:
    (one, near), (far, other) = wire(), wire()
    scratch = np.zeros(LONGEST, np.uint8)
    frames = [frame(MAC, OTHER, number, 60 + number) for number in range(BATCH + 1)]
    for data in frames:
        one.send(data)

    assert carry(near.fileno(), far.fileno(), address_of(scratch)) == BATCH
    assert carry(near.fileno(), far.fileno(), address_of(scratch)) == 1
    assert carry(near.fileno(), far.fileno(), address_of(scratch)) == 0
    assert [other.recv(LONGEST) for _ in frames] == frames
    for end in (one, near, far, other):
        end.close()


def test_frames_go_between_virtqueues_and_a_tap(tmp_path) -> None:
    """To the TAP what the device delivered, from it as many as the ring has slots for."""
    one, near = wire()
    row = np.zeros(1, BETWEEN)
    row["tap"] = near.fileno()
    with Backend(str(tmp_path / "s")) as backend, Guest(backend.path, MAC, size=8, indirect=False) as guest:
        receive, transmit = guest.virtqueue(to_guest=True), guest.virtqueue()
        data = frame(MAC, OTHER, 1, 100)
        backend.deliver(data)
        assert to_tap(row[0], receive.row) == 1
        assert one.recv(LONGEST) == data
        frames = [frame(OTHER, MAC, number, 80) for number in range(10)]
        for each in frames:
            one.send(each)
        assert from_tap(row[0], transmit.row) == 8
        assert backend.collect() == [bytes(12) + one for one in frames[:8]]
        assert from_tap(row[0], transmit.row) == 2
        assert backend.collect() == [bytes(12) + one for one in frames[8:]]
    for end in (one, near):
        end.close()
    assert os.listdir(tmp_path) in ([], ["s"])
