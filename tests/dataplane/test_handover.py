# SPDX-License-Identifier: Apache-2.0
"""Frames from processor to processor: against a deque, across the end of the ring, full, moved, waiting."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane.rig import BROADCAST, A, B, C, D, Rig, Vm, frame, interpreted, named, number_of, numbered
from vmq.abi.ethernet import mac_number
from vmq.dataplane import state
from vmq.dataplane.handover import parcels_waiting, push
from vmq.jit import address_of, at, int64
from vmq.worker import make_ring, unmap_rings


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
@pytest.mark.parametrize("change", ["moved", "gone", "filter", "vlan"])
def test_what_the_reader_would_not_steer_there_is_dropped(to, change):
    """No filter change is overtaken: the reader judges by its own version of the tables."""
    with Rig(workers=2) as rig:
        _, receiver = crossing(rig, to)
        if change == "moved":
            receiver.workers = (0,)
        elif change == "gone":
            receiver.present = False
        elif change == "filter":
            receiver.macs = [mac_number(C)]
        else:
            receiver.vlan = 9
        rig.publish()
        rig.run()
        if (to, change) == (BROADCAST, "filter"):
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


def test_what_waits_is_dropped_under_a_name_when_its_filter_goes():
    with Rig(workers=2) as rig:
        wire = rig.uplink(frames=[numbered(B, D, number) for number in range(5)], lossless=True)
        receiver = rig.vm(B, uplink=wire, workers=(1,))
        rig.publish()
        rig.run()
        receiver.macs = [mac_number(C)]
        rig.publish()
        rig.run()
        assert receiver.drops() == {"handover_moved": 5}
        assert rig.step(1) == 0


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
            if push(address, row, pieces, int64(number)):
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
