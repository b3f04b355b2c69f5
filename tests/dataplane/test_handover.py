# SPDX-License-Identifier: Apache-2.0
"""Frames from processor to processor: against a deque, across the end of the ring, full, moved, waiting."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.dataplane.rig import BROADCAST, A, B, C, D, Rig, Vm, frame, interpreted, named, number_of, numbered
from tests.dataplane.test_nic_queue import Owned
from vmq.abi.ethernet import mac_number
from vmq.dataplane import handover, reasons, state
from vmq.dataplane.handover import parcels_waiting, push
from vmq.jit import address_of, at, int64
from vmq.worker import make_ring, unmap_rings

MAX = state.MAX_WORKERS


@pytest.mark.parametrize("vlan", [None, 0x2000])
def test_a_frame_crosses_to_the_processor_of_its_receive_queue(vlan):
    """The sender's chain comes back at once; scattered pieces arrive in one."""
    with Rig(workers=2) as rig:
        sender, receiver = rig.vm(A), rig.vm(B, workers=(1,))
        receiver.post(2)
        data = frame(B, A, 700, vlan=vlan)
        sender.send(data, cuts=[3, 80, 81, 300])
        rig.publish()
        rig.step(0)
        assert sender.sent() == [(0, 0)]
        assert receiver.received() == []
        rig.step(1)
        assert receiver.received() == [data]


@pytest.mark.parametrize("size", [4096, 8192])
def test_frames_of_both_directions_keep_their_order_across_many_wraps(size):
    """A parcel never wraps: what is left at the end of the ring is passed over."""
    with Rig(workers=2, handover=size) as rig:
        left, right = rig.vm(A), rig.vm(B, workers=(1,))
        sent = 0
        for step in range(60):
            for sender, receiver in ((left, right), (right, left)):
                receiver.post(len(receiver.to_guest.free), 1600)
                for number in range(sent, sent + 2):
                    sender.send(
                        numbered(
                            A if sender is right else B, B if sender is right else A, number, 60 + step * 12
                        )
                    )
            rig.publish()
            rig.run()
            for receiver in (left, right):
                assert [number_of(data) for data in receiver.received()] == [sent, sent + 1]
            for vm in (left, right):
                for _, _, buffers in vm.from_guest.harvest():
                    vm.memory.release(buffers[0][0], buffers[0][1])
            sent += 2
        for ring in rig.segment.rows["rings"][[1, state.MAX_WORKERS]]:
            assert int(at(int(ring), 1, state.byte_ring)[0]["head"]) > 2 * size


def test_a_full_ring_is_a_named_drop_of_the_sender_and_of_nobody_else():
    with Rig(workers=2, handover=1024) as rig:
        sender, near, far = rig.vm(A), rig.vm(B), rig.vm(C, workers=(1,))
        near.post(40)
        far.post(40)
        for number in range(20):
            sender.send(numbered(C, A, number, 100))
            sender.send(numbered(B, A, number, 100))
        rig.publish()
        rig.step(0)
        fits = 1024 // 160
        assert sender.sent_drops() == {"handover_full": 20 - fits}
        assert len(sender.sent()) == 40
        assert len(near.received()) == 20
        rig.step(1)
        assert [number_of(data) for data in far.received()] == list(range(fits))


def test_a_flood_crosses_once_for_each_receive_queue():
    with Rig(workers=2) as rig:
        wire = rig.uplink(frames=[frame(BROADCAST, D)])
        vms = [rig.vm(mac, uplink=wire, workers=(worker,)) for mac, worker in ((A, 0), (B, 1), (C, 1))]
        for vm in vms:
            vm.post(2)
        rig.publish()
        rig.run()
        assert [vm.received() for vm in vms] == [[frame(BROADCAST, D)]] * 3
        assert int(rig.lane_state()["account"]["copies"]) == 3


# --- the tables changed meanwhile ----------------------------------------------------------------------------


def crossing(rig: Rig, to: str = B) -> tuple[Vm, Vm]:
    """A frame on its way from worker 0 to worker 1, and the VMs."""
    sender, receiver = rig.vm(A), rig.vm(B, workers=(1,))
    receiver.post(2)
    sender.send(frame(to, A))
    rig.publish()
    rig.step(0)
    return sender, receiver


@pytest.mark.parametrize("to", [B, BROADCAST])
@pytest.mark.parametrize("change", ["moved", "gone", "filter", "paused"])
def test_what_is_on_its_way_is_lost_only_with_its_receive_queue(to, change):
    """A frame goes where the version said that steered it; a queue that was paused since holds nothing."""
    with Rig(workers=2) as rig:
        _, receiver = crossing(rig, to)
        if change == "moved":
            receiver.workers = (0,)
        elif change == "gone":
            receiver.present = False
        elif change == "filter":
            receiver.macs = [mac_number(C)]
        else:
            receiver.generation += 1
        rig.publish()
        rig.run()
        if change == "filter":
            assert receiver.received() == [frame(to, A)]
        else:
            assert receiver.received() == []
            assert receiver.drops() == {"handover_moved": 1}


def test_a_group_frame_is_judged_by_the_port_it_was_for():
    """The port is gone, and its queue's row is nobody's now."""
    with Rig(workers=2) as rig:
        _, receiver = crossing(rig, BROADCAST)
        receiver.present = False
        late = rig.vm(C, workers=(1,))
        rig.publish()
        rig.run()
        assert receiver.drops() == {"handover_moved": 1}
        assert late.received() == []


def test_the_other_processor_is_woken_only_when_it_sleeps():
    with Rig(workers=2) as rig:
        sender, receiver = rig.vm(A), rig.vm(B, workers=(1,))
        receiver.post(4)
        rig.publish()
        doorbell = rig.workers[1].doorbell
        for sleeping in (0, 1):
            rig.worker(1)["sleeping"] = sleeping
            sender.send(frame(B, A))
            rig.step(0)
            if sleeping:
                assert os.eventfd_read(doorbell) == 1
            else:
                with pytest.raises(BlockingIOError):
                    os.eventfd_read(doorbell)
        rig.run()


# --- sources that wait ---------------------------------------------------------------------------------------


def test_a_lossless_source_waits_for_a_receive_queue_of_another_processor():
    """Nothing is lost and nothing doubled, though ring and receive queue are full again and again."""
    with Rig(workers=2, handover=2048) as rig:
        wire = rig.uplink(frames=[numbered(B, D, number, 100) for number in range(100)], lossless=True)
        receiver = rig.vm(B, uplink=wire, workers=(1,))
        rig.publish()
        got: list[int] = []
        for _ in range(60):
            rig.step(0)
            receiver.post(2)
            rig.step(1)
            got += [number_of(data) for data in receiver.received()]
        assert got == list(range(100))
        assert receiver.drops() == {}


def test_a_receive_queue_that_waits_holds_up_no_other_behind_it():
    with Rig(workers=2) as rig:
        burst = [numbered(B if number % 3 == 0 else C, D, number) for number in range(30)]
        wire = rig.uplink(frames=burst, lossless=True)
        full, free = rig.vm(B, uplink=wire, workers=(1,)), rig.vm(C, uplink=wire, workers=(1,))
        free.post(32)
        rig.publish()
        rig.run()
        assert [number_of(data) for data in free.received()] == [n for n in range(30) if n % 3]
        full.post(4)
        rig.run()
        assert [number_of(data) for data in full.received()] == [0, 3, 6, 9]
        full.post(32)
        rig.run()
        assert [number_of(data) for data in full.received()] == list(range(12, 30, 3))


def test_guests_do_not_wait_behind_a_lossless_source():
    """A ring that is full of what waits is not the ring of those who do not."""
    with Rig(workers=2, handover=1024) as rig:
        wire = rig.uplink(frames=[numbered(B, D, number, 200) for number in range(50)], lossless=True)
        rig.vm(B, uplink=wire, workers=(1,))
        sender, receiver = rig.vm(A, uplink=wire), rig.vm(C, uplink=wire, workers=(1,))
        receiver.post(4)
        rig.publish()
        rig.run()
        sender.send(frame(C, A))
        rig.run()
        assert receiver.received() == [frame(C, A)]
        assert sender.sent_drops() == {}


def test_what_waits_is_dropped_under_a_name_when_its_queue_is_paused():
    with Rig(workers=2) as rig:
        wire = rig.uplink(frames=[numbered(B, D, number) for number in range(5)], lossless=True)
        receiver = rig.vm(B, uplink=wire, workers=(1,))
        rig.publish()
        rig.run()
        receiver.generation += 1
        rig.publish()
        rig.run()
        assert receiver.drops() == {"handover_moved": 5}
        assert rig.step(1) == 0


# --- a receive queue that moves --------------------------------------------------------------------------------


def test_a_queue_moves_under_way_without_losing_or_overtaking_a_frame():
    """On its way it is filled by nobody but its former processor, and from there only with what that was handed."""
    with Rig(workers=2) as rig:
        sender, receiver, other = rig.vm(A), rig.vm(B, workers=(1,)), rig.vm(C)
        receiver.post(40)
        other.post(40)
        rig.publish()
        for number in range(4):
            sender.send(numbered(B, A, number))
        rig.step(0)
        receiver.former, receiver.workers = 1, (0,)
        rig.publish()
        for number in range(4, 8):
            sender.send(numbered(B, A, number))
            sender.send(numbered(C, A, number))
        rig.step(0)
        assert receiver.received() == []
        assert [number_of(data) for data in other.received()] == [4, 5, 6, 7]
        rig.step(1)
        assert [number_of(data) for data in receiver.received()] == [0, 1, 2, 3]
        rig.step(0)
        assert receiver.received() == []
        receiver.former = state.NONE
        rig.publish()
        sender.send(numbered(B, A, 8))
        rig.run()
        assert [number_of(data) for data in receiver.received()] == [4, 5, 6, 7, 8]
        assert receiver.drops() == sender.sent_drops() == {}


def test_frames_for_others_pass_those_that_wait_for_a_queue_on_its_way():
    with Rig(workers=2) as rig:
        sender, moving, other = rig.vm(A), rig.vm(B, workers=(1,)), rig.vm(C, workers=(1,))
        moving.post(4)
        other.post(8)
        moving.former = 0
        rig.publish()
        for number in range(3):
            sender.send(numbered(B, A, number))
            sender.send(numbered(C, A, number))
        rig.step(0)
        rig.step(1)
        rig.step(1)
        assert [number_of(data) for data in other.received()] == [0, 1, 2]
        assert moving.received() == []
        moving.former = state.NONE
        rig.publish()
        rig.run()
        assert [number_of(data) for data in moving.received()] == [0, 1, 2]


class Wanderer:
    """Two senders and a wire, and a receive queue that wanders between two processors and the default queue."""

    def __init__(self, rig: Rig, wire: int) -> None:
        self.rig, self.sent, self.got = rig, {A: 0, C: 0}, dict[str, list[int]]()
        self.senders = {A: rig.vm(A, uplink=wire), C: rig.vm(C, uplink=wire, workers=(1,))}
        self.receiver = rig.vm(B, uplink=wire, size=512)
        self.feed()
        rig.publish()

    def feed(self) -> None:
        self.receiver.post(len(self.receiver.to_guest.free), 128)

    def step(self, worker: int) -> int:
        moved = self.rig.step(worker)
        for data in self.receiver.received():
            self.got.setdefault(data[6:12].hex(":"), []).append(number_of(data))
        self.feed()
        return moved

    def send(self) -> None:
        for mac, sender in self.senders.items():
            sender.send(numbered(B, mac, self.sent[mac]))
            self.sent[mac] += 1

    def arrive(self) -> None:
        """As control does: the former owner's rings are empty, then it has the queue no more."""
        if self.receiver.former == state.NONE:
            return
        rings = self.rig.segment.rows["rings"]
        theirs = [hold * MAX * MAX + s * MAX + self.receiver.former for hold in (0, 1) for s in (0, 1)]
        while any(parcels_waiting(int(rings[place])) for place in theirs):
            self.step(self.receiver.former)
        self.receiver.former = state.NONE
        self.rig.publish()

    def move(self) -> None:
        self.arrive()
        worker = self.receiver.workers[0]
        self.receiver.former, self.receiver.workers = worker, (1 - worker,)
        self.rig.publish()

    def share(self) -> None:
        self.arrive()
        self.receiver.shared = not self.receiver.shared
        self.rig.publish()


@interpreted
@given(steps=st.lists(st.sampled_from("sssswm01010"), min_size=5, max_size=60), lossless=st.booleans())
def test_whatever_happens_between_moves_every_frame_arrives_once_and_in_order(steps, lossless):
    with Rig(workers=2) as rig:
        wire = rig.uplink(frames=[numbered(B, D, n) for n in range(200)] if lossless else (), lossless=True)
        one = Wanderer(rig, wire)
        for step in steps:
            match step:
                case "s":
                    one.send()
                case "m":
                    one.move()
                case "w":
                    one.share()
                case _:
                    one.step(int(step))
        one.arrive()
        for _ in range(100):
            if one.step(0) + one.step(1) == 0:
                break
        assert {mac: one.got.get(mac, []) for mac in (A, C)} == {
            mac: list(range(count)) for mac, count in one.sent.items()
        }
        assert one.got.get(D, []) == list(range(200 if lossless else 0))
        assert one.receiver.drops() == {}


# --- the default queue -----------------------------------------------------------------------------------------


def test_a_vm_without_a_receive_queue_of_its_own_is_served_by_the_default_queue():
    """Its frames lie in the ring of its processor to itself first; counters and order are as ever."""
    with Rig() as rig:
        wire = rig.uplink(frames=[numbered(to, D, number) for number in range(5) for to in (A, B)])
        own, shared = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
        shared.shared = True
        for vm in (own, shared):
            vm.post(8)
        rig.publish()
        rig.run()
        for vm in (own, shared):
            assert [number_of(data) for data in vm.received()] == [0, 1, 2, 3, 4]
        ring = int(rig.segment.rows["rings"][0])
        assert int(at(ring, 1, state.byte_ring)[0]["head"]) == 5 * (48 + 64)


def test_what_lies_in_the_default_queue_goes_before_what_comes_after_a_vm_has_its_own():
    """The frames of a queue that wait keep every later one behind them, and nobody else's."""
    with Rig() as rig:
        wire = rig.uplink(frames=[numbered(B, D, number) for number in range(6)], lossless=True)
        sender, vm = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
        vm.shared = True
        rig.publish()
        rig.run()
        vm.post(2)
        rig.run()
        vm.shared = False
        rig.publish()
        rig.run()
        vm.post(10)
        rig.run()
        assert [number_of(data) for data in vm.received()] == list(range(6))
        sender.send(numbered(B, A, 77))
        rig.run()
        assert [number_of(data) for data in vm.received()] == [77]
        assert int(at(int(rig.worker()["todo"]), state.MAX_QUEUES, state.todo)[vm.first_queue]["held"]) == 0


@interpreted
@pytest.mark.parametrize("waiting", [1, state.WAITING, state.WAITING + 1])
def test_frames_that_wait_are_not_looked_at_until_their_guest_posts_buffers(waiting, monkeypatch):
    """Of as many receive queues as are remembered; of more, all are looked at each time. Nobody else waits, order is kept."""
    macs = [f"52:54:00:00:02:{number:02x}" for number in range(waiting)]
    with Rig(workers=2) as rig:
        wire = rig.uplink(frames=[numbered(to, D, n) for n in range(3) for to in (*macs, B)], lossless=True)
        slow = [rig.vm(one, uplink=wire, workers=(1,)) for one in macs]
        fast = rig.vm(B, uplink=wire, workers=(1,))
        fast.post(4)
        rig.publish()
        rig.run()
        assert [number_of(data) for data in fast.received()] == [0, 1, 2]
        looked: list[int] = []

        def looks(_t: Any, number: int, _generation: int) -> bool:
            looked.append(number)
            return True

        monkeypatch.setattr(handover, "still_there", looks)
        rig.step(1)
        assert len(looked) == (0 if waiting <= state.WAITING else 3 * waiting)
        for vm in reversed(slow):
            for count, wanted in ((2, [0, 1]), (3, [2])):
                vm.post(count)
                rig.run()
                assert [number_of(data) for data in vm.received()] == wanted


@interpreted
@pytest.mark.parametrize("own", [True, False])
@given(
    limit=st.integers(1, 5),
    posts=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 9), st.integers(0, 3)), max_size=20),
)
@example(limit=4, posts=[(0, 4, 1), (0, 9, 1), (0, 1, 1)])
@example(limit=4, posts=[(0, 8, 0), (0, 1, 1), (0, 9, 1)])
def test_frames_that_wait_arrive_in_order_however_few_a_round_takes(own, limit, posts):
    """In the ring of a processor to itself, and in one from another; what a guest has buffers for has arrived."""
    frames, posted = 40, [0, 0]
    arrived: tuple[list[int], list[int]] = ([], [])
    data = [numbered((B, C)[number % 2], A, number) for number in range(frames)]
    with Rig(workers=2) as rig:
        wire = rig.uplink(frames=[] if own else data, lossless=True)
        sender = rig.vm(A, uplink=wire)
        receivers = [rig.vm(mac, uplink=wire, workers=(0 if own else 1,)) for mac in (B, C)]
        for vm in receivers:
            vm.keep = frames
        rig.publish()
        rig.tables()["frame_limit"] = limit
        for which, count, sent in [*posts, (0, 20, frames), (1, 20, frames)]:
            for _ in range(sent if own else 0):
                if data:
                    sender.send(data.pop(0))
            count = min(count, 20 - posted[which])
            receivers[which].post(count)
            posted[which] += count
            rig.run()
            for place, vm in enumerate(receivers):
                arrived[place].extend(number_of(one) for one in vm.received())
                there = (frames - len(data)) if own else frames
                assert arrived[place] == list(range(place, there, 2))[: posted[place]]
        assert [len(one) for one in arrived] == [20, 20]


# --- the ring itself -----------------------------------------------------------------------------------------


@interpreted
@given(
    sizes=st.lists(
        st.tuples(st.integers(14, 900) | st.sampled_from((208, 464, 976)), st.booleans()), max_size=40
    ),
    takes=st.lists(st.integers(0, 6), min_size=1, max_size=40),
)
def test_the_ring_is_a_queue(sizes, takes):
    """Against a deque of frames and a count of bytes: full exactly when there is no room in one piece."""
    size = 2048
    address, length = make_ring(size)
    ring = at(address, 1, state.byte_ring)[0]
    model: deque[bytes] = deque()
    row, pieces = np.zeros(1, state.frame)[0], np.zeros(2, state.piece)
    try:
        for number, (bytes_, scattered) in enumerate(sizes):
            data = np.random.default_rng(number).integers(0, 256, bytes_).astype(np.uint8)
            head = bytes_ // 2 if scattered else bytes_
            row["address"], row["head"], row["length"] = address_of(data), head, bytes_
            row["piece_first"], row["piece_count"] = 1, int(scattered)
            pieces[1] = (address_of(data) + head, bytes_ - head)
            row["tci"], row["tagged"], row["vid"], row["source"], row["uplink"] = 5, 1, 5, 2, 3
            if push(address, row, pieces, int64(number), int64(0), int64(0)):
                model.append(data.tobytes())
            else:
                need = (48 + bytes_ + 15) // 16 * 16
                used, behind = int(ring["head"] - ring["tail"]), size - int(ring["head"]) % size
                assert used + need + (behind if behind < need else 0) > size
            for _ in range(takes[number % len(takes)]):
                assert bool(parcels_waiting(address)) == bool(model)
                if model:
                    assert take(ring) == model.popleft()
    finally:
        unmap_rings([(address, length)])


def take(ring: Any) -> bytes:
    """The oldest frame of a ring, read as its layout says."""
    tail, size = int(ring["tail"]), int(ring["size"])
    skip = int(at(int(ring["data"]) + tail % size, 1, np.int64)[0])
    tail += max(-skip, 0)
    place = int(ring["data"]) + tail % size
    header = at(place, 1, state.parcel)[0]
    ring["tail"] = tail + int(header["size"])
    assert [int(header[name]) for name in ("vid", "tci", "tagged", "source", "uplink")] == [5, 5, 1, 2, 3]
    return at(place + 48, int(header["length"]), np.uint8).tobytes()


def test_drops_of_copies_are_counted_apart_from_frames():
    """A flood that finds one ring full is forwarded, and one copy is dropped: the laws of `Rig.check`."""
    with Rig(workers=2, handover=256) as rig:
        sender = rig.vm(A)
        near, far = rig.vm(B), rig.vm(C, workers=(1,))
        for vm in (near, far):
            vm.post(8)
        for _ in range(5):
            sender.send(frame(BROADCAST, A, 150))
        rig.publish()
        rig.run()
        assert [len(vm.received()) for vm in (near, far)] == [5, 1]
        account = sender.books()["account"]
        assert [int(account[name]) for name in ("forwarded", "copies")] == [5, 10]
        assert named(account["drops"]) == {"handover_full": 4}


# --- a receive queue of which frames are bound (nic_queue.py) -------------------------------------------------


@interpreted
def test_frames_of_other_paths_wait_while_frames_are_bound_and_control_is_told_once() -> None:
    with Owned() as owned:
        owned.vm.post(4, 512)
        owned.show(state.LED)
        frames = [numbered(A, B, number) for number in range(3)]
        for data in frames:
            owned.neighbour.send(data)
            owned.rig.run()
        assert (owned.vm.received(), int(owned.row["bound"])) == ([], 4)
        assert owned.rig.events() == [(state.EVENT_WAITS, owned.vm.number, 0)]
        owned.row["bound"] = 0
        owned.show(0)
        assert owned.vm.received() == frames
        owned.neighbour.send(frames[0])
        owned.rig.run()
        assert owned.vm.received() == frames[:1]


@interpreted
def test_a_frame_that_is_too_long_for_a_guest_whose_frames_are_bound_is_dropped_and_nobody_waits() -> None:
    with Owned() as owned:
        owned.vm.frame_max = 100
        owned.vm.post(4, 512)
        owned.show(state.LED)
        owned.neighbour.send(numbered(A, B, 1, 101))
        owned.rig.run()
        assert owned.drops(reasons.TO_GUEST_TOO_LONG) == 1
        assert owned.rig.events() == []
        assert int(owned.row["waits"]) == 0
