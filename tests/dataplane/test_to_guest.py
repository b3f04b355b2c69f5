# SPDX-License-Identifier: Apache-2.0
"""Frames into guest memory: whole or not at all, in order, one indication a batch, every drop with its name."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.dataplane.rig import (
    ALL_FEATURES,
    EVENT_IDX,
    HEADER,
    INDIRECT,
    INDIRECT_TABLES,
    MERGEABLE,
    NEXT,
    WRITE,
    A,
    B,
    C,
    Rig,
    frame,
    interpreted,
    numbered,
)
from vmq.dataplane import state
from vmq.dataplane.split import read_ahead
from vmq.dataplane.to_guest import DELIVERED, place, place_at_once
from vmq.jit import address_of, at

PLAIN = EVENT_IDX | INDIRECT_TABLES
REGION_END = 0x10000 + (1 << 18)


@pytest.mark.parametrize("features", [PLAIN, ALL_FEATURES], ids=["plain", "mergeable"])
def test_a_frame_lies_behind_an_empty_header_in_one_buffer(features):
    """virtio-1.2 §5.1.6.4 Processing of Incoming Packets: num_buffers is 1 without mergeable buffers too."""
    with Rig() as rig:
        sizes = [14, 59, 60, 1000, 1514]
        wire = rig.uplink(frames=[frame(A, B, size) for size in sizes])
        vm = rig.vm(A, uplink=wire, features=features)
        vm.post(8)
        rig.publish()
        rig.step()
        assert vm.received() == [frame(A, B, size) for size in sizes]
        assert vm.num_buffers == [1] * len(sizes)
        assert int(vm.books()["bytes_to_guest"]) == sum(sizes)


@pytest.mark.parametrize("size", [13, 64, 100, 500, 511, 512, 600])
def test_a_frame_spans_as_many_mergeable_buffers_as_it_needs(size):
    """All but the last are filled completely; the header says how many."""
    with Rig() as rig:
        frames = [frame(A, B, length) for length in (60, 512 - HEADER, 513 - HEADER, 700)]
        wire = rig.uplink(frames=frames)
        vm = rig.vm(A, uplink=wire, size=256)
        vm.post(200, size)
        rig.publish()
        rig.step()
        assert vm.received() == frames
        assert vm.num_buffers == [-(-(len(data) + HEADER) // size) for data in frames]


@given(
    chains=st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=20), min_size=1, max_size=6),
    sizes=st.lists(st.integers(14, 400), min_size=1, max_size=5),
    tags=st.lists(st.booleans(), min_size=5, max_size=5),
    mergeable=st.booleans(),
    indirect=st.booleans(),
)
def test_bytes_arrive_however_the_buffers_are_cut(chains, sizes, tags, mergeable, indirect):
    """Against a model of chains and bytes: what fits arrives byte for byte, tag included; what does not is dropped."""
    frames = [frame(A, B, size, vlan=0x4000 if tag else None) for size, tag in zip(sizes, tags, strict=False)]
    with Rig() as rig:
        wire = rig.uplink(frames=frames)
        features = PLAIN | (MERGEABLE if mergeable else 0)
        vm = rig.vm(A, uplink=wire, size=128, features=features)
        for parts in chains:
            buffers = [(vm.memory.allocate(max(part, 1)), part) for part in parts]
            vm.to_guest.chain(buffers, vm.memory.allocate(16 * len(parts)) if indirect else None)
        rig.publish()
        rig.step()
        rooms = [sum(parts) for parts in chains]
        wanted, wanted_drops = [], {"to_guest_no_buffer": 0, "to_guest_too_long": 0}
        for data in frames:
            need, taken = len(data) + HEADER, 0
            while (
                taken < len(rooms)
                and need > 0
                and (taken == 0 or mergeable)
                and (taken == 0 or rooms[0] >= HEADER)
            ):
                need -= rooms[taken]
                taken += 1
            if need <= 0:
                wanted.append(data)
                rooms = rooms[taken:]
            elif taken == len(rooms) and (not rooms or (mergeable and rooms[0] >= HEADER)):
                wanted_drops["to_guest_no_buffer"] += 1
            else:
                wanted_drops["to_guest_too_long"] += 1
        assert vm.received() == wanted
        assert vm.drops() == {name: count for name, count in wanted_drops.items() if count}


@pytest.mark.parametrize("features", [PLAIN, ALL_FEATURES], ids=["plain", "mergeable"])
@pytest.mark.parametrize("size", range(1, HEADER))
def test_buffers_shorter_than_a_header_cost_one_look_a_frame(features, size):
    """H7.1: the frame is dropped, the buffer stays, nothing is tried again."""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, B)] * 3)
        vm = rig.vm(A, uplink=wire, features=features)
        vm.post(64, size)
        rig.publish()
        rig.step()
        assert vm.drops() == {"to_guest_too_long": 3}
        assert vm.to_guest.used_index == 0


def test_a_frame_too_long_for_all_mergeable_buffers_leaves_no_trace():
    """H7.2: some are missing; H7.3: not even the whole ring would do."""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, B, 1500), frame(A, B, 60)])
        vm = rig.vm(A, uplink=wire, size=16)
        vm.post(15, 64)
        rig.publish()
        rig.step()
        assert vm.drops() == {"to_guest_no_buffer": 1}
        assert vm.received() == [frame(A, B, 60)]
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, B, 1500)])
        vm = rig.vm(A, uplink=wire, size=16)
        vm.post(16, 64)
        rig.publish()
        rig.step()
        assert vm.drops() == {"to_guest_too_long": 1}
        assert vm.to_guest.used_index == 0


def test_one_frame_claims_a_bounded_number_of_buffers():
    """CLAIMS bounds the work for a frame, however small the buffers are."""
    with Rig() as rig:
        size = 12
        longest = state.CLAIMS * size - HEADER
        wire = rig.uplink(frames=[frame(A, B, longest + 1), frame(A, B, longest)])
        vm = rig.vm(A, uplink=wire, size=512, frame_max=65535)
        vm.post(400, size)
        rig.publish()
        rig.step()
        assert vm.drops() == {"to_guest_too_long": 1}
        assert vm.received() == [frame(A, B, longest)]
        assert vm.num_buffers == [state.CLAIMS]


def test_what_is_longer_than_the_mtu_of_the_port_is_dropped_and_a_tag_does_not_count():
    """H15.3, H15.4: 1514 bytes and 1518 with a tag are in, one more is not."""
    with Rig() as rig:
        wire = rig.uplink(
            frames=[frame(A, B, 1514), frame(A, B, 1514, vlan=0x2000), frame(A, B, 1515), frame(A, B, 9018)]
        )
        vm = rig.vm(A, uplink=wire)
        vm.post(8, 16384)
        rig.publish()
        rig.step()
        assert vm.received() == [frame(A, B, 1514), frame(A, B, 1514, vlan=0x2000)]
        assert vm.drops() == {"to_guest_too_long": 2}


def test_a_full_guest_drops_for_itself_alone_and_takes_one_more_for_each_buffer():
    """H13.1, H13.2: a starved ring takes what fits; its neighbour takes everything."""
    with Rig() as rig:
        wire = rig.uplink(frames=[numbered(to, C, number) for number in range(10) for to in (A, B)])
        slow, fast = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
        slow.post(1)
        fast.post(16)
        rig.publish()
        rig.step()
        assert slow.received() == [numbered(A, C, 0)]
        assert slow.drops() == {"to_guest_no_buffer": 9}
        assert fast.received() == [numbered(B, C, number) for number in range(10)]
        assert fast.drops() == {}


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_receive_queue_that_is_not_started_or_disabled_takes_nothing(running, enabled):
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, B)])
        vm = rig.vm(A, uplink=wire)
        vm.to_guest.running, vm.to_guest.enabled = running, enabled
        vm.post(1)
        rig.publish()
        rig.step()
        if running and enabled:
            assert vm.received() == [frame(A, B)]
        else:
            assert vm.drops() == {"to_guest_not_running": 1}
            assert vm.to_guest.used_index == 0


def test_after_a_fault_in_the_middle_of_a_batch_what_was_delivered_is_shown_and_the_rest_is_dropped():
    with Rig() as rig:
        wire = rig.uplink(frames=[numbered(A, B, number) for number in range(5)])
        vm = rig.vm(A, uplink=wire)
        vm.post(2)
        vm.to_guest.offer(999)
        rig.publish()
        rig.step()
        assert vm.fault == "head_range"
        assert vm.received() == [numbered(A, B, 0), numbered(A, B, 1)]
        assert vm.drops() == {"to_guest_not_running": 3}


def test_an_unusable_chain_among_mergeable_buffers_takes_those_before_it_back_unused():
    """The frame is dropped, all claimed chains come back with length 0, the next frame fits behind them."""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, B, 300), frame(A, B, 400)])
        vm = rig.vm(A, uplink=wire)
        vm.post(2, 64)
        vm.to_guest.describe(60, 1 << 50, 64, WRITE)
        vm.to_guest.offer(60)
        vm.post(1, 2048)
        rig.publish()
        rig.step()
        assert [length for _, length, _ in vm.to_guest.harvest()] == [0, 0, 0, 400 + HEADER]
        assert vm.drops() == {"to_guest_bad_buffer": 1}


def test_a_batch_is_one_indication_and_falls_into_its_bin():
    """Filter hits of one burst: one publish, one call. Bins are 1, 2-3, 4-7, …"""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, B)] * 64, laps=0)
        vm = rig.vm(A, uplink=wire, features=MERGEABLE, size=128)
        rig.publish()
        for batch in (1, 2, 3, 4, 7, 8, 64):
            vm.post(batch, 128)
            rig.step()
            assert len(vm.received()) == batch
            assert vm.to_guest.called() == 1
        assert vm.books()["batches"].tolist() == [1, 2, 2, 1, 0, 0, 1, 0]
        assert int(vm.books()["indications"]) == 7


def test_a_suppressed_indication_is_counted_and_nothing_is_called():
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, B)] * 3)
        vm = rig.vm(A, uplink=wire, features=MERGEABLE)
        vm.to_guest.set_flags(1)
        vm.post(4)
        rig.publish()
        rig.step()
        assert len(vm.received()) == 3
        assert vm.to_guest.called() == 0
        assert [int(vm.books()[name]) for name in ("indications", "suppressed")] == [0, 1]


def test_a_round_without_a_delivered_frame_indicates_and_suppresses_nothing():
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, B)] * 3)
        vm = rig.vm(A, uplink=wire)
        rig.publish()
        rig.step()
        assert [int(vm.books()[name]) for name in ("indications", "suppressed")] == [0, 0]
        assert int(vm.books()["batches"].sum()) == 0


def test_scattered_frames_of_a_guest_are_put_together_for_its_neighbour():
    """Pieces on both sides, cut at different places."""
    with Rig() as rig:
        sender, receiver = rig.vm(A), rig.vm(B)
        cuts = [5, 12, 13, 40, 90, 91, 200, 500]
        data = frame(B, A, 900, vlan=0x2000)
        sender.send(data, cuts=cuts)
        sender.send(data, cuts=cuts, indirect=True)
        sizes = (1, 10, 1, 13, 4, 70, 301, 900)
        for _ in range(2):
            receiver.to_guest.chain([(receiver.memory.allocate(size), size) for size in sizes])
        rig.publish()
        rig.step()
        assert receiver.received() == [data, data]


def test_the_packet_header_may_not_begin_before_the_frame_is_sure_to_fit():
    """Nothing is written into buffers that are claimed and then found too few: their bytes stay as they were."""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, B, 1000)])
        vm = rig.vm(A, uplink=wire)
        vm.post(3, 100)
        rig.publish()
        rig.step()
        for _, buffers in vm.to_guest.chains.values():
            for address, size in buffers:
                vm.memory.allow(address, size, allowed=False)
        assert vm.drops() == {"to_guest_no_buffer": 1}


def test_a_descriptor_that_the_device_may_only_read_is_never_written():
    """H5.2: as the second half of a receive chain."""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, B, 100)])
        vm = rig.vm(A, uplink=wire)
        place = vm.memory.allocate(256)
        vm.to_guest.describe(0, place, 20, WRITE | NEXT, 1)
        vm.to_guest.describe(1, place + 20, 200)
        vm.to_guest.offer(0)
        rig.publish()
        rig.step()
        assert vm.drops() == {"to_guest_bad_buffer": 1}
        head, length = struct.unpack("<II", vm.memory.read(vm.to_guest.used + 4, 8))
        assert (head, length) == (0, 0)


# --- the common case -------------------------------------------------------------------------------------------------


@interpreted
@example(0, WRITE, 0x20000, 0xFFFFFFFF, 60, False, 0)
@example(0, WRITE, REGION_END - 100, 101, 60, False, 0)
@example(0, WRITE, REGION_END - 100, 100, 60, False, 0)
@given(
    head=st.sampled_from([0, 0, 0, 15, 16, 0xFFFF]),
    flags=st.sampled_from([WRITE, WRITE, 0, WRITE | NEXT, INDIRECT, WRITE | INDIRECT, WRITE | 8]),
    where=st.sampled_from([0x20000, 0x10000, REGION_END - 100, REGION_END - 1, REGION_END, 0, 1 << 63]),
    room=st.integers(0, 300) | st.just(0xFFFFFFFF),
    size=st.integers(14, 300),
    tagged=st.booleans(),
    pieces=st.integers(0, 2),
)
def test_what_is_placed_at_once_is_placed_as_always_and_the_rest_is_left_alone(
    head, flags, where, room, size, tagged, pieces
):
    """The plain way is the model: the same bytes, used element and indices; or nothing has been touched."""
    memories, outcomes = [], []
    for at_once in (True, False):
        with Rig() as rig:
            vm = rig.vm(A, size=16, frame_max=250)
            vm.to_guest.describe(head % 16, where & (1 << 64) - 1, room, flags, 1)
            vm.to_guest.offer(head)
            rig.publish()
            vm.memory.allow(0x10000, 1 << 18)
            before = vm.memory.contents()
            tables, worker, port, vq, ring = rig.rows(vm, to_guest=True)
            data = np.frombuffer(frame(A, B, size), np.uint8)
            row = np.zeros(1, state.frame)[0]
            row["address"], row["length"], row["head"] = address_of(data), size, size
            row["tagged"], row["tci"], row["piece_count"] = tagged, 5, pieces
            row["head"] = size - pieces
            parts = at(worker["pieces"], 2, state.piece)
            parts["address"], parts["length"] = address_of(data) + size - pieces + np.arange(2), 1
            if at_once:
                ahead = np.zeros(1, state.chain)
                read_ahead(tables, port, vq, ring, WRITE, ahead, 1)
                outcomes.append(bool(place_at_once(worker, port, vq, ring, row, ahead[0])))
                moved = (int(ring["next_used"]), int(ring["next_avail"])) != (0, 0)
                untouched = before == vm.memory.contents() and not moved
            else:
                worker["steps_left"] = state.STEPS
                outcomes.append(int(place(tables, worker, port, vq, ring, row)) == DELIVERED)
            memories.append((vm.memory.contents(), int(ring["next_used"]), int(ring["next_avail"])))
    placed, always = outcomes
    assert placed == (always and not tagged and pieces < 2 and flags == WRITE)
    assert memories[0] == memories[1] if placed else untouched
