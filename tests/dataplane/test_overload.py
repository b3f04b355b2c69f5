# SPDX-License-Identifier: Apache-2.0
"""Frames that find no buffer: who waits, who is dropped, and that order and counters hold."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane.rig import A, B, C, D, Rig, Vm, interpreted, number_of, numbered
from vmq.dataplane import state
from vmq.jit import at


def numbers(vm: Vm) -> list[int]:
    return [number_of(data) for data in vm.received()]


def waits(rig: Rig, vm: Vm, worker: int = 0) -> dict[str, int]:
    row = at(int(rig.worker(worker)["todo"]), state.MAX_QUEUES, state.todo)[vm.first_queue]
    return {name: int(row[name]) for name in ("held", "kept", "excess")}


def overloaded(rig: Rig, keep: int, oldest: bool, **settings: Any) -> tuple[Vm, Vm]:
    """A sender, and a receiver without buffers that lets so many frames wait."""
    sender, receiver = rig.vm(A), rig.vm(B, **settings)
    receiver.keep, receiver.oldest = keep, oldest
    rig.publish()
    return sender, receiver


def send(rig: Rig, sender: Vm, first: int, count: int) -> None:
    for number in range(first, first + count):
        sender.send(numbered(B, A, number))
    rig.run()


@pytest.mark.parametrize(
    ("keep", "oldest", "arrive"),
    [(0, False, []), (4, False, [0, 1, 2, 3]), (4, True, [6, 7, 8, 9]), (20, False, list(range(10)))],
    ids=["drop-newest", "hold", "drop-oldest", "room for all"],
)
def test_each_policy_has_its_own_pattern_of_loss(keep: int, oldest: bool, arrive: list[int]):
    """What is lost is lost under one name, and the guest gets the rest in order when it posts buffers."""
    with Rig() as rig:
        sender, receiver = overloaded(rig, keep, oldest)
        send(rig, sender, 0, 10)
        assert receiver.received() == []
        receiver.post(16)
        rig.run()
        assert numbers(receiver) == arrive
        lost = 10 - len(arrive)
        assert receiver.drops() == ({"to_guest_no_buffer": lost} if lost else {})
        assert waits(rig, receiver) == {"held": 0, "kept": 0, "excess": 0}


def test_what_comes_while_others_wait_goes_behind_them():
    with Rig() as rig:
        sender, receiver = overloaded(rig, 8, oldest=False)
        send(rig, sender, 0, 3)
        receiver.post(2)
        send(rig, sender, 3, 2)
        assert numbers(receiver) == [0, 1]
        receiver.post(8)
        send(rig, sender, 5, 2)
        assert numbers(receiver) == [2, 3, 4, 5, 6]
        send(rig, sender, 7, 1)
        assert numbers(receiver) == [7]


def test_frames_that_wait_hold_up_nobody_else_and_no_source_that_waits_loses_one():
    with Rig() as rig:
        wire = rig.uplink(frames=[numbered(B, D, 100 + number) for number in range(6)], lossless=True)
        sender, other = rig.vm(A, uplink=wire), rig.vm(C, uplink=wire)
        receiver = rig.vm(B, uplink=wire)
        receiver.keep = 2
        other.post(8)
        rig.publish()
        for number in range(4):
            sender.send(numbered(B, A, number))
            sender.send(numbered(C, A, number))
        rig.run()
        assert numbers(other) == [0, 1, 2, 3]
        receiver.post(16)
        rig.run()
        got = numbers(receiver)
        assert [number for number in got if number >= 100] == list(range(100, 106))
        assert [number for number in got if number < 100] == [0, 1]
        assert receiver.drops() == {"to_guest_no_buffer": 2}


def test_a_ring_that_is_full_of_what_waits_drops_the_newest():
    """The bytes of a processor are shared; nothing is lost without a name."""
    with Rig(handover=1024) as rig:
        sender, receiver = overloaded(rig, 4096, oldest=True)
        send(rig, sender, 0, 20)
        fits = 1024 // 112
        assert receiver.drops() == {"to_guest_no_buffer": 20 - fits}
        receiver.post(20)
        rig.run()
        assert numbers(receiver) == list(range(fits))


def test_a_frame_from_another_processor_waits_at_its_receiver_s():
    with Rig(workers=2) as rig:
        sender, receiver = overloaded(rig, 2, oldest=True, workers=(1,))
        send(rig, sender, 0, 5)
        assert waits(rig, receiver, 1)["kept"] == 2
        receiver.post(8)
        rig.run()
        assert numbers(receiver) == [3, 4]


def test_a_driver_that_does_not_run_keeps_nothing():
    """Only buffers are waited for."""
    with Rig() as rig:
        sender, receiver = overloaded(rig, 8, oldest=False)
        receiver.to_guest.running = False
        rig.publish()
        send(rig, sender, 0, 3)
        assert receiver.drops() == {"to_guest_not_running": 3}


@interpreted
@given(
    steps=st.lists(st.sampled_from(["send", "send", "send", "post", "step"]), max_size=60),
    keep=st.integers(1, 6),
    oldest=st.booleans(),
    shared=st.booleans(),
)
def test_against_a_queue_of_so_many_frames(steps: list[str], keep: int, oldest: bool, shared: bool):
    """Own queue or default queue: what arrives is a bounded queue's, first in, first out."""
    with Rig() as rig:
        sender, receiver = overloaded(rig, keep, oldest)
        receiver.shared = shared
        rig.publish()
        model: deque[int] = deque()
        buffers, sent, lost = 0, 0, 0
        got: list[int] = []
        wanted: list[int] = []

        def serve() -> None:
            nonlocal buffers
            while model and buffers:
                wanted.append(model.popleft())
                buffers -= 1

        for step in steps:
            if step == "send":
                sender.send(numbered(B, A, sent))
                model.append(sent)
                sent += 1
            elif step == "post":
                receiver.post(1)
                buffers += 1
            rig.run()
            serve()
            if len(model) > keep:
                lost += 1
                model.popleft() if oldest else model.pop()
            got += numbers(receiver)
        assert got == wanted
        assert receiver.drops() == ({"to_guest_no_buffer": lost} if lost else {})
        assert waits(rig, receiver) == {"held": len(model), "kept": len(model), "excess": 0}


def test_a_guest_that_takes_nothing_holds_up_no_other_that_keeps_frames():
    """However many of its frames lie in front: what waits takes no place of the round."""
    with Rig(handover=1 << 20) as rig:
        sender, stuck, other = rig.vm(A), rig.vm(B), rig.vm(C)
        stuck.keep = other.keep = 256
        rig.publish()
        for number in range(256):
            send(rig, sender, number, 1)
            sender.sent()
        sender.send(numbered(C, A, 0))
        rig.run()
        other.post(16)
        sender.send(numbered(C, A, 1))
        rig.run()
        assert numbers(other) == [0, 1]


def test_another_policy_lets_nothing_overtake_what_waits():
    with Rig() as rig:
        sender, receiver = overloaded(rig, 8, oldest=False)
        send(rig, sender, 0, 4)
        receiver.keep = 0
        rig.publish()
        receiver.post(8)
        send(rig, sender, 4, 1)
        assert numbers(receiver) == [0, 1, 2, 3, 4]


def test_drop_oldest_takes_nothing_from_a_source_that_waits():
    with Rig() as rig:
        wire = rig.uplink(frames=[numbered(B, D, 100 + number) for number in range(20)], lossless=True)
        sender, receiver = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
        receiver.keep, receiver.oldest, receiver.shared = 2, True, True
        rig.publish()
        rig.run()
        for number in range(10):
            sender.send(numbered(B, A, number))
        rig.run()
        receiver.post(60)
        rig.run()
        got = numbers(receiver)
        assert [number for number in got if number >= 100] == list(range(100, 120))
        assert [number for number in got if number < 100] == [8, 9]
