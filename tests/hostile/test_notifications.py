# SPDX-License-Identifier: Apache-2.0
"""Kicks and calls as weapons (H12): garbage, storms, silence, eventfds that are full, blocking, or no eventfds."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hostile.arena import WAYS, frame, until
from tests.hostile.attack import Attack, exchange
from vmq.abi.vhost_user import U64, Request
from vmq.errors import ProtocolError
from vmq.guest.race import Flip, Race

FULL = 2**64 - 2  # an eventfd that takes no more
NAMES = ("attacker", "peer")
TO_GUEST = WAYS[2]


def fill(descriptor: int) -> None:
    """An eventfd to its limit."""
    os.eventfd_write(descriptor, 1)
    os.eventfd_read(descriptor)
    os.eventfd_write(descriptor, FULL)


@pytest.mark.parametrize("event", [0, 1, 32767, 32768, 65535])
def test_h12_1_garbage_in_used_event_harms_only_the_guests_own_calls(attack: Attack, event: int):
    """The frames are there, whether or not we are called."""
    guest = attack.guest()
    for virtqueue in guest.virtqueues:
        virtqueue.used_event[0] = event
        virtqueue.avail_event[0] = event ^ 0x5555  # the device's to write, but it lies in guest memory
    frames = [frame("attacker", "peer", number) for number in range(100)]
    attack.peer.send(frames)
    attack.frames(TO_GUEST, count=100)
    assert guest.receive(100) == frames


def test_h12_2_calls_that_are_wanted_and_not_in_turn(attack: Attack):
    """NO_INTERRUPT flips all the time, without EVENT_IDX; frames flow."""
    guest = attack.guest(event_idx=False)
    flags = [Flip(one.avail_guest, b"\0\0", b"\1\0") for one in guest.virtqueues]
    with Race(guest.memory, flags) as race:
        for number in range(20):
            frames = [frame("peer", "attacker", number), frame("peer", "attacker", number + 1)]
            guest.send(frames)
            assert attack.peer.receive(2) == frames
            attack.peer.send([frame("attacker", "peer", number)])
            assert guest.receive(1) == [frame("attacker", "peer", number)]
        assert race.rounds


@contextmanager
def storm(descriptor: int) -> Iterator[list[int]]:
    """Kicks as fast as a thread can; their number afterwards."""
    stop, kicks = threading.Event(), [0]

    def kick() -> None:
        while not stop.is_set():
            for _ in range(100):
                os.eventfd_write(descriptor, 1)
            kicks[0] += 100
            time.sleep(0.0005)  # the GIL is for others too

    thread = threading.Thread(target=kick)
    thread.start()
    try:
        yield kicks
    finally:
        stop.set()
        thread.join()


def test_h12_3_a_storm_of_kicks_is_bounded_work(attack: Attack):
    """Kicks coalesce: many kicks, few rounds; frames flow meanwhile, the neighbours' too."""
    guest = attack.guest()
    with storm(guest.virtqueue().kick_fd) as kicks:
        until(lambda: kicks[0] > 5000)
        attack.arena_neighbours.advance(50)
        exchange(guest, attack.peer, NAMES)
    attack.arena.alive()


def test_h12_4_without_a_kick_nothing_moves_and_nothing_spins(attack: Attack):
    """The processor sleeps; frames that nobody announced wait. One kick, and they are served."""
    guest, neighbours = attack.guest(), attack.arena_neighbours
    show = lambda: next(iter(attack.arena.engine.show("processors").values()))  # noqa: E731
    neighbours.hold(on=True)
    try:
        time.sleep(0.1)
        until(lambda: show()["state"] == "sleeping")
        ring = guest.virtqueue()
        place = guest.memory.store(bytes(12) + frame("peer", "attacker"))
        head = ring.write_chain([(place, 112, 0)])
        before = show()["rounds"]
        ring.push(head)
        ring.show()
        time.sleep(0.3)
        assert show()["rounds"] == before
        assert attack.moved("attacker") == {}
        ring.kick()
        assert attack.peer.receive(1) == [frame("peer", "attacker")]
    finally:
        neighbours.hold(on=False)


@pytest.mark.parametrize("event_idx", [True, False])
def test_h12_5_a_full_call_eventfd_loses_calls_and_nothing_else(attack: Attack, event_idx: bool):
    """Both directions; the guest finds its frames by looking."""
    guest = attack.guest(event_idx=event_idx)
    for virtqueue in guest.virtqueues:
        fill(virtqueue.call_fd)
    for number in range(10):
        attack.peer.send([frame("attacker", "peer", number)])
        guest.send([frame("peer", "attacker", number)])
        assert attack.peer.receive(1) == [frame("peer", "attacker", number)]
    attack.arena_neighbours.advance()
    assert guest.receive(10) == [frame("attacker", "peer", number) for number in range(10)]
    assert attack.row["state"] == "running"
    assert attack.arena.engine.show("queues")["attacker/0"]["calls_lost"] > 0


@pytest.mark.parametrize(
    "request_id", [Request.SET_VRING_CALL, Request.SET_VRING_KICK, Request.SET_VRING_ERR]
)
@pytest.mark.parametrize("kind", ["pipe", "tty", "folder", "file", "socket"])
def test_h12_6_and_h19_3_what_is_no_eventfd_is_refused(
    attack: Attack, request_id: Request, kind: str, tmp_path: Path
):
    """All else may block us, or kill us with SIGPIPE. The old descriptor stays in use, the new one is closed."""
    guest = attack.guest()
    before = attack.arena.size()
    ends = {
        "pipe": os.pipe,
        "tty": os.openpty,
        "folder": lambda: [os.open(tmp_path, os.O_RDONLY)],
        "file": lambda: [os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)],
        "socket": lambda: [os.dup(guest.frontend.wire.fileno())],
    }[kind]()
    try:
        for end in ends:
            with pytest.raises(ProtocolError, match="refused"):
                guest.frontend.tell(request_id, U64.pack(0), [end])
    finally:
        for end in ends:
            os.close(end)
    assert attack.arena.size() == before
    exchange(guest, attack.peer, NAMES)


def test_h12_6_a_kick_eventfd_given_as_call_wakes_us_and_does_no_harm(attack: Attack):
    """Each call is then a kick of our own: bounded, since a kick without buffers calls nobody."""
    guest = attack.guest()
    kick = guest.virtqueue().kick_fd
    for index in range(2):
        guest.frontend.tell(Request.SET_VRING_CALL, U64.pack(index), [kick])
    attack.peer.send([frame("attacker", "peer", number) for number in range(50)])
    until(lambda: attack.moved("attacker").get("frames_to_guest") == 50)
    attack.arena_neighbours.advance()


def block(descriptor: int) -> None:
    """An eventfd of the attacker's: full, and made blocking again behind the engine's back."""
    fill(descriptor)
    os.set_blocking(descriptor, True)


PENALTY = 10.0  # seconds: the engine's, for a front-end that made a processor wait


def is_out(attack: Attack) -> None:
    """The processor goes on, the front-end is out, in words."""
    attack.arena_neighbours.advance(20)
    row = until(lambda: attack.row["state"] == "listening" and attack.row, "the front-end to be disconnected")
    assert "eventfd blocked" in row["last_error"]["what"]
    attack.close()


def comes_in_again(attack: Attack) -> None:
    """A front-end finds the port working after the penalty."""
    deadline = time.monotonic() + 2 * PENALTY
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), attack.arena.new(attack.name):
            return
        time.sleep(0.2)
    pytest.fail("turned away for ever")


def test_h12_5_eventfds_made_blocking_behind_our_back_hold_nobody_up(attack_on):
    """O_NONBLOCK belongs to the open file that both sides share. The one of calls, and the one that tells of a fault."""
    by_call, by_err = attack_on("attacker", "peer"), attack_on("third", "learner")
    guest = by_call.guest(post=200)
    for virtqueue in guest.virtqueues:
        virtqueue.want_calls()
        block(virtqueue.call_fd)
    by_call.peer.send([frame("attacker", "peer", number) for number in range(10)])
    is_out(by_call)

    guest = by_err.guest()
    for virtqueue in guest.virtqueues:
        block(virtqueue.err_fd)
    guest.virtqueue().show(32768)
    guest.virtqueue().kick()
    is_out(by_err)

    for one in (by_call, by_err):
        comes_in_again(one)
