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
    number_of,
    numbered,
)
from vmq.dataplane import state
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
