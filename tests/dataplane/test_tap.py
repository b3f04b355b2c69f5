# SPDX-License-Identifier: Apache-2.0
"""Lanes on a TAP queue. A pair of datagram sockets carries the same frames; real TAPs: tests/uplink/test_tap.py."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from tests.dataplane.harness_wire import Round, aligned, plain
from vmq.abi.virtio import net_hdr
from vmq.dataplane import state
from vmq.jit import address_of

EMPTY = bytes(net_hdr.itemsize)
SIZE = 12 + 1514 + 4 + 1


class TapLane:
    """A lane of TAP kind on one end of a pair of sockets."""

    def __init__(self) -> None:
        self.peer, self.queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self.peer, self.queue):
            end.setblocking(False)
        self._buffers = aligned(state.BURST * SIZE)
        self.row = np.zeros(1, state.lane)[0]
        self.row["kind"], self.row["fd"], self.row["frame_max"] = state.LANE_TAP, self.queue.fileno(), 1514
        self.row["buffers"], self.row["buffer_size"] = address_of(self._buffers), SIZE


@pytest.fixture
def lane() -> Iterator[TapLane]:
    made = TapLane()
    with made.peer, made.queue:
        yield made


def test_frames_come_in_order_behind_their_headers(lane: TapLane) -> None:
    tagged = plain(2, 1514)[:12] + b"\x81\x00\x00\x07" + plain(2, 1514)[12:]
    for frame in (plain(1), tagged, plain(3, 14)):
        lane.peer.send(EMPTY + frame)

    assert Round().drain(lane.row) == [plain(1), tagged, plain(3, 14)]


@pytest.mark.parametrize("length", [1515, 1516, 1519, 1520, 3000])
def test_a_frame_longer_than_the_mtu_is_a_named_drop(lane: TapLane, length: int) -> None:
    """Whether the buffer cut it or not."""
    worker = Round()
    lane.peer.send(EMPTY + plain(1, length))
    lane.peer.send(EMPTY + plain(2))

    assert worker.drain(lane.row) == [plain(2)]
    assert worker.drops(lane.row) == {"from_wire_too_long": 1}


@pytest.mark.parametrize("length", [1, 11, 12, 25])
def test_a_read_too_short_for_a_frame_is_a_runt(lane: TapLane, length: int) -> None:
    worker = Round()
    lane.peer.send((EMPTY + plain(1))[:length])

    assert worker.drain(lane.row) == []
    assert worker.drops(lane.row) == {"runt": 1}
    assert worker.state_of(lane.row)["bytes_from_wire"] == max(length - 12, 0)


def test_frames_leave_behind_an_empty_header(lane: TapLane) -> None:
    worker = Round()
    worker.put(plain(1))
    worker.put(plain(2), tci=7, cuts=(30,))
    worker.put(plain(3, 1514), cuts=tuple(range(60, 1400)))

    worker.transmit(lane.row)

    tagged = plain(2)[:12] + b"\x81\x00\x00\x07" + plain(2)[12:]
    assert [lane.peer.recv(4000) for _ in range(3)] == [
        EMPTY + plain(1),
        EMPTY + tagged,
        EMPTY + plain(3, 1514),
    ]
    assert worker.state_of(lane.row)["bytes_to_wire"] == 60 + 60 + 1514


def test_what_the_device_does_not_take_is_a_named_drop(lane: TapLane) -> None:
    worker = Round()
    for number in range(100):
        worker.put(plain(number))
    lane.queue.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    worker.transmit(lane.row)
    sent = int(worker.state_of(lane.row)["frames_to_wire"])
    assert 0 < sent < 100
    assert worker.drops(lane.row) == {"to_wire_full": 100 - sent}

    lane.peer.close()
    worker.begin()
    worker.put(plain(1))
    worker.transmit(lane.row)
    assert worker.drops(lane.row)["to_wire_error"] == 1
