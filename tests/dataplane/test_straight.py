# SPDX-License-Identifier: Apache-2.0
"""Frames of a VM's own queue of a TAP, into its guest's buffers at once. One end of a pair of datagram sockets is the queue."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Sequence
from typing import Any, Self

import pytest

from tests.dataplane.harness_wire import aligned
from tests.dataplane.rig import BROADCAST, HEADER, MERGEABLE, NOBODY, A, B, Rig, frame, numbered
from tests.dataplane.test_steer import ARP, on
from vmq.abi.virtio import NET_HDR_F_DATA_VALID, NET_HDR_F_NEEDS_CSUM
from vmq.dataplane import reasons, state
from vmq.dataplane.loop import prepare_sleep
from vmq.jit import address_of

EMPTY = bytes(HEADER)
SIZE = 12 + 1514 + 4 + 1


class Queue:
    """A VM with a queue of its own on a TAP; `wire` is the kernel's end of it. Another VM has none."""

    def __init__(self, *, workers: int = 1, straight: bool = True, **options: Any) -> None:
        self.rig = Rig(workers=workers)
        self.wire, self.end = self._pair()
        self.silent, self.lane_end = self._pair()
        uplink = self.rig.uplink(kind=state.LANE_TAP)
        self._buffers = [aligned(state.BURST * SIZE) for _ in range(workers)]
        for row, memory in zip(self.rig.uplinks[0].lanes, self._buffers, strict=True):
            row["fd"], row["receives"] = self.lane_end.fileno(), 1
            row["buffers"], row["buffer_size"] = address_of(memory), SIZE
        self.vm = self.rig.vm(A, uplink=uplink, **{"regions": ((0x10000, 1 << 19),)} | options)
        self.other = self.rig.vm(B, uplink=uplink)
        self.vm.tap, self.vm.straight = self.end.fileno(), straight
        self.rig.publish()

    @staticmethod
    def _pair() -> tuple[socket.socket, socket.socket]:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in pair:
            end.setblocking(False)
        return pair

    def arrive(self, frames: Sequence[bytes], header: bytes = EMPTY) -> None:
        for data in frames:
            self.wire.send(header + data)

    def straight(self, on: bool) -> None:
        self.vm.straight = on
        self.rig.publish()

    @property
    def lane(self) -> Any:
        return self.rig.segment.rows["lane_state"][0]

    def wire_drops(self) -> dict[str, int]:
        drops = self.lane["account"]["drops"]
        return {name: int(drops[code]) for code, (name, _) in enumerate(reasons.DROPS) if drops[code]}

    @property
    def placed(self) -> int:
        return int(self.vm.books()["frames_placed"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.rig.close()
        for one in (self.wire, self.end, self.silent, self.lane_end):
            one.close()


def tag(data: bytes, tci: int) -> bytes:
    return data[:12] + b"\x81\0" + tci.to_bytes(2, "big") + data[12:]


LENGTHS = (14, 15, 16, 17, 18, 60, 1513, 1514)


def test_frames_of_every_length_land_behind_their_header_and_nothing_else_is_touched() -> None:
    frames = [frame(A, B, length) for length in LENGTHS]
    with Queue() as queue:
        queue.vm.post(len(frames))
        queue.arrive(frames)
        assert queue.rig.step() == len(frames)
        assert queue.vm.received() == frames
        assert queue.vm.num_buffers == [1] * len(frames)
        assert queue.placed == len(frames)
        books = queue.vm.books()
        assert int(books["bytes_placed"]) == int(books["bytes_to_guest"]) == sum(LENGTHS)
        assert int(queue.lane["bytes_from_wire"]) == sum(LENGTHS)
        assert queue.vm.to_guest.called() == 1
        assert queue.rig.step() == 0


def test_a_guest_in_a_vlan_gets_its_frames_without_their_tags() -> None:
    frames = [frame(A, B, length) for length in LENGTHS]
    with Queue(vlan=10) as queue:
        queue.vm.post(len(frames))
        queue.arrive([tag(data, 0x600A) for data in frames])
        queue.rig.step()
        assert queue.vm.received() == frames
        assert (queue.placed, int(queue.vm.books()["bytes_placed"])) == (len(frames), sum(LENGTHS))


def test_a_priority_tag_stays_in_the_frame_and_is_not_counted() -> None:
    frames = [tag(frame(A, B, length), 0x6000) for length in LENGTHS]
    with Queue() as queue:
        queue.vm.post(len(frames))
        queue.arrive(frames)
        queue.rig.step()
        assert queue.vm.received() == frames
        assert int(queue.vm.books()["bytes_placed"]) == int(queue.lane["bytes_from_wire"]) == sum(LENGTHS)


@pytest.mark.parametrize("vlan", [0, 10])
def test_a_frame_may_take_several_chains_of_several_buffers(vlan: int) -> None:
    """As many as it needs are given back, in order, and the others are there for the next frame."""
    frames = [frame(A, B, length) for length in (1514, 60, 700, 14, 1000)]
    with Queue(vlan=vlan) as queue:
        for _ in range(9):
            address = queue.vm.memory.allocate(512)
            queue.vm.to_guest.chain([(address, 13), (address + 13, 1), (address + 14, 498)])
        queue.arrive([tag(data, vlan) if vlan else data for data in frames])
        queue.rig.run()
        assert queue.vm.received() == frames
        assert queue.vm.num_buffers == [3, 1, 2, 1, 2]
        assert queue.placed == 4  # when the last one came, there was no room for the longest
        assert int(queue.vm.books()["unfit"]) == 0


def test_where_buffers_are_too_few_for_the_longest_frame_it_is_switched_and_without_any_dropped() -> None:
    with Queue() as queue:
        queue.vm.post(2)
        frames = [numbered(A, B, number) for number in range(4)]
        queue.arrive(frames)
        queue.rig.run()
        assert queue.vm.received() == frames[:2]
        assert queue.vm.drops() == {"to_guest_no_buffer": 2}
        queue.vm.post(1, 128)
        queue.arrive(frames[2:3])
        queue.rig.run()
        assert queue.vm.received() == frames[2:3]
        assert (queue.placed, int(queue.vm.books()["frames_to_guest"])) == (2, 3)


def test_buffers_that_can_never_take_the_longest_frame_are_told_to_control() -> None:
    with Queue(features=0) as queue:
        queue.vm.post(2, 512)
        queue.arrive([frame(A, B, 60)])
        queue.rig.run()
        assert queue.vm.received() == [frame(A, B, 60)]
        assert (queue.placed, int(queue.vm.books()["unfit"])) == (0, state.UNFIT_BUFFERS)


def test_a_round_takes_a_burst_and_tells_the_guest_once() -> None:
    frames = [numbered(A, B, number) for number in range(state.BURST + 6)]
    with Queue(size=128, features=MERGEABLE) as queue:
        queue.vm.post(len(frames))
        queue.arrive(frames[: state.BURST])
        queue.arrive(frames[state.BURST :])
        assert [queue.rig.step() for _ in range(3)] == [state.BURST, 6, 0]
        assert queue.vm.received() == frames
        assert queue.vm.to_guest.called() == 2


def test_more_buffers_than_one_read_takes_are_filled_by_the_engine() -> None:
    with Queue(size=64) as queue:
        memory = queue.vm.memory
        room, table = memory.allocate(2 * state.CHAIN_MAX), memory.allocate(16 * state.CHAIN_MAX)
        queue.vm.to_guest.chain([(room, 13), *((room + 13 + 2 * n, 2) for n in range(1022))], table)
        queue.arrive([frame(A, B, 1000)])
        queue.rig.run()
        assert queue.vm.received() == [frame(A, B, 1000)]
        assert (queue.placed, int(queue.vm.books()["unfit"])) == (0, state.UNFIT_BUFFERS)


@pytest.mark.parametrize(("data", "drop"), [
    (frame(A, B)[:13], "runt"),
    (b"", "runt"),
    (tag(frame(A, B), 0)[:17], "vlan_truncated"),
    (frame(B, A), "from_wire_astray"),
    (frame(NOBODY, A), "from_wire_astray"),
    (frame(BROADCAST, A), "from_wire_astray"),
    (tag(frame(A, B), 7), "from_wire_astray"),
    (frame(A, B, 1515), "from_wire_too_long"),
    (frame(A, B, 1519), "from_wire_too_long"),
    (frame(A, B, 4000), "from_wire_too_long"),
], ids=str)  # fmt: skip
def test_what_is_not_its_frame_is_shown_to_nobody_and_takes_no_buffer(data: bytes, drop: str) -> None:
    with Queue() as queue:
        queue.vm.post(2)
        queue.other.post(1)
        queue.arrive([data, frame(A, B)])
        queue.rig.run()
        assert queue.vm.received() == [frame(A, B)]
        assert queue.other.received() == []
        assert queue.wire_drops() == {drop: 1}
        assert int(queue.vm.books()["unfit"]) == (state.UNFIT_FRAME if drop == "from_wire_astray" else 0)
        queue.vm.post(1)


def test_a_frame_longer_than_the_ports_mtu_is_named_at_the_port() -> None:
    with Queue(frame_max=200) as queue:
        queue.vm.post(2, 512)
        queue.arrive([frame(A, B, 201), frame(A, B, 200)])
        queue.rig.run()
        assert queue.vm.received() == [frame(A, B, 200)]
        assert queue.vm.drops() == {"to_guest_too_long": 1}


def test_a_header_that_asks_for_something_is_refused_and_one_that_tells_is_not() -> None:
    """The device finishes checksums and segments (TUNSETOFFLOAD 0); that one is right already may be said, and is left out."""
    with Queue() as queue:
        queue.vm.post(2)
        queue.arrive([frame(A, B)], bytes([NET_HDR_F_NEEDS_CSUM]) + EMPTY[1:])
        queue.arrive([frame(A, B)], b"\0\1" + EMPTY[2:])
        queue.arrive([frame(A, B)], bytes([NET_HDR_F_DATA_VALID]) + EMPTY[1:])
        queue.rig.run()
        assert queue.vm.received() == [frame(A, B)]
        assert queue.wire_drops() == {"from_wire_offload": 2}


def test_while_it_is_not_straight_the_queue_is_a_lane_as_any_other() -> None:
    with Queue(straight=False) as queue:
        queue.vm.post(4)
        queue.other.post(2)
        mine = [numbered(A, B, number) for number in range(4)]
        queue.arrive([mine[0], numbered(B, A, 7), mine[1]])
        queue.rig.run()
        assert queue.placed == 0
        queue.straight(True)
        queue.arrive([mine[2]])
        queue.rig.run()
        assert queue.placed == 1
        queue.straight(False)
        queue.arrive([mine[3]])
        queue.rig.run()
        assert (queue.vm.received(), queue.other.received()) == (mine, [numbered(B, A, 7)])
        assert queue.placed == 1


def test_generic_filters_and_whoever_looks_on_have_it_switched() -> None:
    with Queue() as queue:
        queue.vm.post(3)
        queue.vm.to_guest.features |= state.RING_OBSERVED
        queue.rig.publish()
        queue.arrive([numbered(A, B, 1)])
        queue.rig.run()
        queue.vm.to_guest.features &= ~state.RING_OBSERVED
        queue.rig.filters = [on(0, (ARP, state.TO_DROP_QUEUE))]
        queue.rig.publish()
        queue.arrive([frame(A, B, kind=0x0806), numbered(A, B, 2)])
        queue.rig.run()
        assert (queue.vm.received(), queue.placed) == ([numbered(A, B, number) for number in (1, 2)], 0)
        assert queue.wire_drops() == {"drop_queue": 1}


def test_a_queue_on_its_way_to_another_processor_is_read_by_that_one_and_its_frames_wait_in_turn() -> None:
    """They are straight again when none of them is left in the ring."""
    with Queue(workers=2, straight=True) as queue:
        queue.vm.post(6)
        frames = [numbered(A, B, number) for number in range(3)]
        queue.vm.workers, queue.vm.former = (1,), 0
        queue.rig.publish()
        queue.arrive(frames[:1])
        for worker in (0, 1, 1):
            queue.rig.step(worker)
        assert queue.vm.received() == []
        queue.vm.former = state.NONE
        queue.rig.publish()
        queue.arrive(frames[1:2])
        queue.rig.step(1)
        queue.arrive(frames[2:])
        queue.rig.run()
        assert queue.vm.received() == frames
        assert queue.placed == 2


def test_an_uplink_that_receives_nothing_yet_is_not_read_and_a_worker_with_such_a_queue_may_sleep() -> None:
    with Queue() as queue:
        queue.vm.post(1)
        queue.rig.uplinks[0].lanes[0]["receives"] = 0
        queue.rig.publish()
        queue.arrive([frame(A, B)])
        assert queue.rig.step() == 0
        assert int(prepare_sleep(queue.rig.tables(), queue.rig.worker())) == -1
        queue.rig.uplinks[0].lanes[0]["receives"] = 1
        queue.rig.publish()
        queue.rig.run()
        assert queue.vm.received() == [frame(A, B)]


def test_a_faulted_or_disabled_guest_gets_nothing_and_its_frames_are_named() -> None:
    with Queue() as queue:
        queue.vm.post(2)
        queue.vm.to_guest.enabled = False
        queue.rig.publish()
        queue.arrive([frame(A, B)])
        queue.rig.run()
        queue.vm.to_guest.enabled = True
        queue.rig.publish()
        queue.vm.to_guest.offer(5000)
        queue.vm.to_guest.show(queue.vm.to_guest.index + 500)
        queue.arrive([frame(A, B)])
        queue.rig.run()
        assert queue.vm.fault == "avail_jump"
        assert queue.vm.drops() == {"to_guest_not_running": 2}
        assert queue.placed == 0


def test_a_frame_whose_buffers_are_gone_is_named_and_stops_the_vm_port() -> None:
    """The kernel has taken it out of the queue; what comes after it is dropped as for any port that stopped."""
    with Queue() as queue:
        memory, page = queue.vm.memory, 4096
        first = 0x10000 + (1 << 17)
        first += -memory.host(first) % page
        for number in range(8):
            memory.allow(first + page * number, page)
            queue.vm.to_guest.chain([(first + page * number, 2048)])
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        place, length = ctypes.c_void_p(memory.host(first)), ctypes.c_size_t(8 * page)
        assert protect(place, length, 0) == 0
        try:
            queue.arrive([numbered(A, B, number, 1514) for number in range(6)])
            assert queue.rig.step() == 1
            while queue.rig.step():
                pass
        finally:
            assert protect(place, length, 3) == 0
        assert queue.vm.fault == "memory_gone"
        assert queue.vm.drops() == {"to_guest_not_running": 6}
        assert (queue.vm.received(), int(queue.lane["frames_from_wire"])) == ([], 6)
