# SPDX-License-Identifier: Apache-2.0
"""When a guest is told about its frames: at once, after a time, or when so many wait. Frames are shown at once always."""

from __future__ import annotations

from typing import Any

import pytest

from tests.dataplane.rig import MERGEABLE, A, B, Rig, Vm, frame, interpreted
from vmq.clock import now
from vmq.dataplane import state
from vmq.dataplane.loop import prepare_sleep
from vmq.dataplane.moderate import WAIT_NS, bin_of
from vmq.jit import int64

LONG = 10**13  # ns: no test takes so long


@interpreted
@pytest.mark.parametrize(
    ("frames", "index"),
    [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (63, 5), (64, 6), (127, 6), (128, 7), (9999, 7)],
)
def test_a_batch_falls_into_the_bin_of_its_power_of_two(frames, index):
    assert int(bin_of(int64(frames))) == index


def moderated(rig: Rig, gap: int, gather: int) -> tuple[Vm, Vm]:
    """A sender, and a receiver whose last indication was right now."""
    sender, receiver = rig.vm(A), rig.vm(B, features=MERGEABLE)
    receiver.gap, receiver.gather = gap, gather
    receiver.post(60)
    rig.publish()
    receiver.ring_state(True)["indicated"] = int(now(rig.worker()))
    return sender, receiver


def send(rig: Rig, sender: Vm, count: int) -> None:
    for _ in range(count):
        sender.send(frame(B, A))
    rig.run()


def counts(vm: Vm) -> list[int]:
    return [int(vm.books()[name]) for name in ("indications", "put_off", "suppressed")]


def batches(vm: Vm) -> list[int]:
    return [int(one) for one in vm.books()["batches"][:4]]


def test_an_indication_waits_for_its_time_and_then_stands_for_all_frames_since():
    with Rig() as rig:
        sender, receiver = moderated(rig, LONG, 0)
        for _ in range(3):
            send(rig, sender, 1)
        assert len(receiver.received()) == 3
        assert receiver.to_guest.called() == 0
        assert counts(receiver) == [0, 3, 0]
        receiver.ring_state(True)["indicated"] -= LONG
        rig.step()
        assert receiver.to_guest.called() == 1
        assert counts(receiver) == [1, 3, 0]
        assert batches(receiver) == [0, 1, 0, 0]
        rig.step()
        assert receiver.to_guest.called() == 0


def test_a_batch_that_finds_the_time_come_indicates_at_once():
    with Rig() as rig:
        sender, receiver = moderated(rig, LONG, 0)
        send(rig, sender, 1)
        receiver.ring_state(True)["indicated"] -= LONG
        sender.send(frame(B, A))
        rig.step()
        assert counts(receiver) == [1, 1, 0]
        assert receiver.to_guest.called() == 1


def test_so_many_frames_are_indicated_before_their_time():
    with Rig() as rig:
        sender, receiver = moderated(rig, LONG, 4)
        send(rig, sender, 3)
        assert counts(receiver) == [0, 1, 0]
        send(rig, sender, 2)
        assert counts(receiver) == [1, 1, 0]
        assert batches(receiver) == [0, 0, 1, 0]
        send(rig, sender, 3)
        assert counts(receiver) == [1, 2, 0]


def test_frames_that_are_fewer_wait_no_longer_than_a_moment():
    """With a number of frames alone: the driver hears of the last ones, too."""
    with Rig() as rig:
        sender, receiver = moderated(rig, 0, 32)
        receiver.ring_state(True)["indicated"] += LONG
        send(rig, sender, 1)
        assert counts(receiver) == [0, 1, 0]
        receiver.ring_state(True)["indicated"] -= LONG + WAIT_NS
        rig.step()
        assert counts(receiver) == [1, 1, 0]


def test_a_driver_that_wants_no_call_is_owed_none():
    with Rig() as rig:
        sender, receiver = moderated(rig, LONG, 0)
        receiver.to_guest.set_flags(1)
        send(rig, sender, 2)
        assert counts(receiver) == [0, 0, 1]
        assert int(receiver.ring_state(True)["owed"]) == 0


@pytest.mark.parametrize("stopped", [False, True])
def test_a_sleeping_processor_looks_after_what_it_owes(stopped: bool):
    """It sleeps a millisecond at most; for a ring that was stopped since, nothing is owed."""

    def timeout() -> Any:
        return int(prepare_sleep(rig.tables(), rig.worker()))

    with Rig() as rig:
        sender, receiver = moderated(rig, LONG, 0)
        rig.step()
        assert timeout() == -1
        send(rig, sender, 1)
        assert timeout() == 1
        if stopped:
            receiver.to_guest.running = False
            receiver.ring_state(True)["indicated"] -= LONG
            rig.publish()
            rig.step()
        assert counts(receiver)[0] == 0


def test_a_queue_on_its_way_is_reminded_by_nobody():
    with Rig(workers=2) as rig:
        sender, receiver = moderated(rig, LONG, 0)
        send(rig, sender, 1)
        receiver.former, receiver.workers = 0, (1,)
        receiver.ring_state(True)["indicated"] -= LONG
        rig.publish()
        rig.run()
        assert counts(receiver)[0] == 0
        receiver.former = state.NONE
        rig.publish()
        rig.step(1)
        assert counts(receiver)[0] == 1


def test_what_is_owed_when_the_limits_go_is_indicated_with_the_next_batch():
    with Rig() as rig:
        sender, receiver = moderated(rig, LONG, 0)
        send(rig, sender, 2)
        receiver.gap = 0
        rig.publish()
        receiver.to_guest.set_flags(1)
        send(rig, sender, 1)
        assert receiver.to_guest.called() == 1
        assert batches(receiver) == [0, 1, 0, 0]
