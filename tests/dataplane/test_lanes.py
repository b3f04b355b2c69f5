# SPDX-License-Identifier: Apache-2.0
"""Each kind of lane receives and sends through its own functions; what came in belongs to the lane."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from tests.dataplane.rig import NOBODY, A, B, Rig, frame, interpreted
from vmq.abi.linux import mmsghdr
from vmq.dataplane import reasons, state
from vmq.jit import address_of

HEADER = bytes(12)
BUFFER = 2048


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end, and that of the host: one message a frame, as on a TAP."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.setblocking(False)
    far.setblocking(False)
    yield near, far
    near.close()
    far.close()


def test_a_tap_lane_reads_and_writes_its_descriptor(wire):
    near, far = wire
    buffers = np.zeros(state.BURST * BUFFER, np.uint8)
    with Rig() as rig:
        uplink = rig.uplink(kind=state.LANE_TAP)
        lane = rig.uplinks[uplink].lanes[0]
        lane["fd"], lane["receives"] = near.fileno(), 1
        lane["buffers"], lane["buffer_size"] = address_of(buffers), BUFFER
        vm = rig.vm(A, uplink=uplink)
        vm.post(4)
        far.send(HEADER + frame(A, B))
        far.send(HEADER + frame(NOBODY, B))
        vm.send(frame(NOBODY, A))
        rig.publish()
        rig.run()
        assert vm.received() == [frame(A, B)]
        assert far.recv(BUFFER) == HEADER + frame(NOBODY, A)
        assert rig.wire_drops() == {"default_queue": 1}
        assert [int(rig.lane_state()[name]) for name in ("frames_from_wire", "frames_to_wire")] == [2, 1]


def test_a_tap_lane_takes_no_more_than_a_round_may(wire):
    near, far = wire
    buffers = np.zeros(state.BURST * BUFFER, np.uint8)
    with Rig() as rig:
        uplink = rig.uplink(kind=state.LANE_TAP)
        lane = rig.uplinks[uplink].lanes[0]
        lane["fd"], lane["receives"] = near.fileno(), 1
        lane["buffers"], lane["buffer_size"] = address_of(buffers), BUFFER
        vm = rig.vm(A, uplink=uplink)
        vm.post(8)
        rig.publish()
        rig.tables()["frame_limit"] = 2
        for _ in range(5):
            far.send(HEADER + frame(A, B))
        assert [rig.step() for _ in range(4)] == [2, 2, 1, 0]
        assert len(vm.received()) == 5


def test_a_packet_lane_asks_its_socket_and_counts_what_it_refuses():
    messages = np.zeros(2 * state.BURST, mmsghdr)
    headers, held = np.zeros(32 * state.BURST, np.uint8), np.zeros(1, state.super_frame)
    with Rig() as rig:
        uplink = rig.uplink(kind=state.LANE_PACKET)
        lane = rig.uplinks[uplink].lanes[0]
        lane["receives"], lane["messages"], lane["held"] = 1, address_of(messages), address_of(held)
        lane["transmit"], lane["headers"] = address_of(messages[state.BURST :]), address_of(headers)
        vm = rig.vm(A, uplink=uplink)
        vm.send(frame(NOBODY, A))
        rig.publish()
        rig.run()
        assert int(rig.lane_state()["frames_from_wire"]) == 0
        assert int(rig.lane_state()["to_wire_drops"][reasons.TO_WIRE_ERROR]) == 1


@interpreted
def test_a_lane_of_no_kind_does_nothing():
    with Rig() as rig:
        uplink = rig.uplink(kind=0)
        rig.uplinks[uplink].lanes[0]["receives"] = 1
        vm = rig.vm(A, uplink=uplink)
        vm.send(frame(NOBODY, A))
        rig.publish()
        rig.run()
        assert len(vm.sent()) == 1


def test_what_a_lane_receives_is_counted_in_its_own_account():
    """Two uplinks on one worker: each has its books, and its frames its segment."""
    with Rig() as rig:
        wires = [rig.uplink(frames=[frame(A, B)] * count) for count in (2, 5)]
        vm = rig.vm(A, uplink=wires[1])
        vm.post(8)
        rig.publish()
        rig.run()
        assert len(vm.received()) == 5
        assert rig.wire_drops(wires[0]) == {"default_queue": 2}
        assert [int(rig.lane_state(wire)["account"]["forwarded"]) for wire in wires] == [0, 5]


def test_a_lane_that_does_not_receive_is_not_asked():
    with Rig(workers=2) as rig:
        wire = rig.uplink(frames=[frame(A, B)])
        vm = rig.vm(A, uplink=wire)
        vm.post(1)
        rig.publish()
        assert rig.step(1) == 0
        assert rig.step(0) == 1
        assert len(vm.received()) == 1
