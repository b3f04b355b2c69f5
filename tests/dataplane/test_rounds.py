# SPDX-License-Identifier: Apache-2.0
"""One round of a source: a ring that is disabled or hostile, notifications, indices that wrap again and again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.dataplane.rig import (
    ALL_FEATURES,
    BROADCAST,
    EVENT_IDX,
    MERGEABLE,
    NOBODY,
    A,
    B,
    D,
    Rig,
    Vm,
    frame,
    interpreted,
    number_of,
    numbered,
)
from tests.dataplane.test_nic_queue import Owned
from vmq.dataplane import reasons, state
from vmq.dataplane.loop import prepare_sleep
from vmq.jit import INTERPRETED

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


def test_each_queue_pair_of_a_port_sends_and_the_first_receives():
    with Rig(workers=2) as rig:
        vm, receiver = rig.vm(A, workers=(0, 1), regions=[(0x10000, 1 << 18)]), rig.vm(B, workers=(1,))
        receiver.post(4)
        vm.from_guest = vm.queues[1][1]
        vm.send(frame(B, A))
        vm.to_guest.chain([(vm.memory.allocate(256), 256)])
        receiver.send(frame(A, B))
        rig.publish()
        rig.run()
        assert receiver.received() == [frame(B, A)]
        assert vm.received() == [frame(A, B)]
        assert [int(vm.books(queue)["frames_from_guest"]) for queue in range(2)] == [0, 1]


@pytest.mark.parametrize("head", [0, 5000])
def test_a_disabled_ring_takes_and_throws_away(rig, head):
    """vhost-user "Ring states": started and disabled, it processes and discards; nothing of a chain is looked at."""
    vm, receiver = rig.vm(A), rig.vm(B)
    receiver.post(4)
    vm.from_guest.enabled = False
    vm.send(frame(B, A))
    for _ in range(2):
        vm.from_guest.offer(head)
    rig.publish()
    rig.step()
    assert receiver.received() == []
    assert vm.sent_drops() == {"from_guest_disabled": 3}
    assert vm.sent() == [(0, 0), (head, 0), (head, 0)]
    assert vm.fault == "none"
    vm.from_guest.enabled = True
    vm.send(frame(B, A))
    rig.publish()
    rig.step()
    assert receiver.received() == [frame(B, A)]


def test_a_ring_that_does_not_run_is_not_looked_at(rig):
    vm = rig.vm(A)
    vm.send(frame(B, A))
    vm.from_guest.running = False
    rig.publish()
    assert rig.step() == 0
    assert vm.sent() == []


def test_chains_come_back_when_their_frames_were_delivered_with_one_call(rig):
    vm, receiver = rig.vm(A, features=MERGEABLE), rig.vm(B)
    receiver.post(10)
    for number in range(10):
        vm.send(numbered(B, A, number))
    rig.publish()
    rig.step()
    assert vm.from_guest.called() == 1
    assert [number_of(data) for data in receiver.received()] == list(range(10))
    assert len(vm.sent()) == 10


def test_kicks_are_refused_again_when_frames_come(rig):
    vm = rig.vm(A, features=MERGEABLE)
    rig.publish()
    rig.step()
    assert int(prepare_sleep(rig.tables(), rig.worker())) == -1
    assert (vm.from_guest.used_flags, int(vm.ring_state(False)["asleep"])) == (0, 1)
    vm.send(frame(NOBODY, A))
    rig.step()
    assert (vm.from_guest.used_flags, int(vm.ring_state(False)["asleep"])) == (1, 0)


# --- a guest can stop only itself ----------------------------------------------------------------------------


def test_whatever_a_guest_writes_its_neighbours_get_every_frame(rig):
    """H12.1, H12.2, H14.1: rings of noise and of zeros; each driver starts anew, and everything works again."""
    random = np.random.default_rng(1)
    wire = rig.uplink(frames=[numbered(to, D, number) for number in range(16) for to in (A, B)], laps=0)
    hostile, neighbour = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
    rig.publish()
    got = 0
    for turn in range(40):
        for ring in (hostile.to_guest, hostile.from_guest):
            noise = random.integers(0, 256, 16 * 64, np.uint8).tobytes() if turn % 3 else bytes(16 * 64)
            hostile.memory.write(ring.desc, noise)
            hostile.memory.write(ring.avail, noise[: 6 + 2 * 64])
            ring.show(ring.used_index + turn)
        neighbour.post(len(neighbour.to_guest.free), 128)
        rig.step()
        frames = neighbour.received()
        got += len(frames)
        assert [number_of(data) for data in frames] == [number % 16 for number in range(32)]
        assert neighbour.fault == "none"
        for ring in (hostile.to_guest, hostile.from_guest):
            hostile.memory.accept(ring.used, 6 + 8 * 64)
            ring.reset()
        hostile.begin()
    assert got == 40 * 32
    hostile.post(64, 128)
    rig.step()
    assert len(hostile.received()) == 32


def test_a_storm_of_broadcasts_takes_a_burst_a_round_and_leaves_the_others_theirs(rig):
    """H15.13."""
    wire = rig.uplink(frames=[numbered(B, D, number) for number in range(64)], laps=0)
    storm, neighbour = rig.vm(A, uplink=wire, size=512), rig.vm(B, uplink=wire, size=256)
    for _ in range(400):
        storm.send(frame(BROADCAST, A))
    rig.publish()
    for _ in range(5):
        neighbour.post(len(neighbour.to_guest.free), 128)
        rig.step()
        assert [number_of(data) for data in neighbour.received()[:64]] == list(range(64))
    assert int(storm.books()["frames_from_guest"]) == 5 * state.BURST


# --- indices wrap --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [MERGEABLE, ALL_FEATURES, EVENT_IDX])
def test_frames_and_notifications_survive_many_wraps_of_the_indices(rig, features):
    """16-bit indices of both rings pass 65535 again and again: no frame is lost, doubled or out of order, and a driver
    that sets its event behind what it has seen is called for each batch.
    """
    near_the_end = 65536 - 100
    most = (
        600 if INTERPRETED else 65536 + 400
    )  # compiled: twice by itself; interpreted, the drivers begin anew
    sender, receiver = rig.vm(A, size=128, features=features), rig.vm(B, size=128, features=features)
    burst = [numbered(B, A, number) for number in range(64)]
    for vm in (sender, receiver):
        rings = (vm.to_guest, vm.from_guest)
        for ring in rings:
            ring.reset(near_the_end)
        vm.begin()
    receiver.post(128, 128)
    rig.publish()
    calls = frames = 0
    while frames < most:
        for data in burst:
            sender.send(data)
        sender.from_guest.set_used_event(sender.from_guest.seen)
        receiver.to_guest.set_used_event(receiver.to_guest.seen)
        rig.step()
        calls += receiver.to_guest.called() + sender.from_guest.called()
        assert [number_of(data) for data in receiver.received()] == list(range(64))
        receiver.post(64, 128)
        for _, _, buffers in sender.from_guest.harvest():
            sender.memory.release(buffers[0][0], buffers[0][1])
        frames += 64
        if INTERPRETED and frames % 192 == 0:
            jump(rig, (sender, receiver))
    assert calls == 2 * (frames // 64)
    assert int(receiver.books()["frames_to_guest"]) == int(sender.books()["frames_from_guest"]) == frames
    assert receiver.drops() == {}


def jump(rig: Rig, vms: tuple[Vm, Vm]) -> None:
    """The drivers start anew just before the wrap."""
    for vm in vms:
        for _, buffers in vm.to_guest.chains.values():
            for address, size in buffers:
                vm.memory.allow(address, size, allowed=False)
                vm.memory.release(address, size)
        for ring in (vm.to_guest, vm.from_guest):
            ring.reset(65536 - 100)
        vm.begin()
    vms[1].post(128, 128)
    rig.publish()


# --- a queue of the NIC for one receive queue (nic_queue.py) ---------------------------------------------------


@interpreted
def test_switched_its_frames_go_as_those_of_a_lane_and_led_into_the_guests_buffers() -> None:
    with Owned() as owned:
        owned.vm.post(8, 512)
        frames = [numbered(A, B, number) for number in range(6)]
        for led, placed in ((0, 0), (state.LED, 2), (0, 2)):
            owned.show(led)
            landed = [owned.ours(owned.arrives(data)) for data in frames[:2]]
            assert landed == [not led] * 2
            owned.rig.run()
            assert owned.vm.received() == frames[:2]
            assert int(owned.books["frames_placed"]) == placed
            frames = frames[2:]
            if led:
                leave(owned)
        lane = owned.rig.lane_state()
        assert (int(lane["frames_from_wire"]), int(lane["account"]["forwarded"])) == (6, 6)
        assert int(owned.books["offered_to_guest"]) == int(owned.books["frames_to_guest"]) == 6
        owned.vm.memory.check()


def leave(owned: Owned) -> None:
    """As control does it; no frame is under way."""
    owned.show(state.LEAVING)
    assert int(owned.row["withdrawn"]) == 1
    owned.row["until"] = int(owned.receive.producer[0])
    owned.rig.run()
    assert int(owned.row["free"]) == 1


@interpreted
def test_frames_that_come_when_nothing_is_bound_any_more_keep_their_place() -> None:
    """Between the last chain that was given back and the version in which it is switched."""
    with Owned() as owned:
        owned.vm.post(8, 512)
        owned.show(state.LED)
        leave(owned)
        frames = [numbered(A, B, number) for number in range(4)]
        for data in frames[:2]:
            owned.arrives(data)
            owned.rig.run()
        assert owned.vm.received() == []
        owned.arrives(frames[2])
        owned.show(0)
        owned.arrives(frames[3])
        owned.rig.run()
        assert owned.vm.received() == frames


@interpreted
def test_frames_behind_a_buffer_that_is_none_for_the_kernel_wait_with_the_others() -> None:
    with Owned() as owned:
        place = owned.vm.memory.allocate(1024)
        owned.vm.post(1, 512)
        owned.vm.to_guest.chain([(place, 512), (place + 512, 512)])
        owned.show(state.LED)
        frames = [numbered(A, B, number) for number in range(2)]
        for data in frames:
            owned.arrives(data)
        owned.rig.run()
        assert owned.vm.received() == frames[:1]
        assert owned.rig.events() == [(state.EVENT_WAITS, owned.vm.number, 0)]
        leave(owned)
        owned.show(0)
        assert owned.vm.received() == frames[1:]


@interpreted
def test_frames_for_a_ring_that_does_not_run_are_dropped_and_nothing_of_it_is_read() -> None:
    """Also while it leaves: its addresses may be nobody's any more."""
    with Owned() as owned:
        owned.vm.post(4, 512)
        owned.show(state.LED)
        vq = owned.rig.rows(owned.vm, to_guest=True)[3]
        vq["running"], vq["avail"], vq["desc"], vq["used"] = 0, 0, 0, 0
        owned.arrives(numbered(A, B, 1))
        owned.rig.run()
        assert owned.rig.events() == []
        assert int(owned.books["to_guest_drops"][reasons.TO_GUEST_NOT_RUNNING]) == 1


@interpreted
def test_frames_of_a_port_with_a_fault_are_dropped_and_it_leaves_all_the_same() -> None:
    with Owned() as owned:
        owned.vm.post(4, 512)
        owned.show(state.LED)
        owned.vm.to_guest.show(100)
        owned.arrives(numbered(A, B, 1))
        owned.rig.run()
        assert owned.rig.events()[0][0] == state.EVENT_FAULT
        owned.arrives(numbered(A, B, 2))
        owned.rig.run()
        leave(owned)
        assert owned.vm.received() == []
        assert int(owned.books["to_guest_drops"][reasons.TO_GUEST_NOT_RUNNING]) == 2
