# SPDX-License-Identifier: Apache-2.0
"""One hostile VM port and good ones on the same processor: guests that do not drain (H13), attacks without pause (H26).

Each class of attack is repeated as fast as possible. Meanwhile the neighbours exchange numbered frames, and lose none;
the log says each thing once; memory does not grow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest

from tests.hostile.arena import DIRECT_WAYS, WAYS, Way, frame, until, until_equal
from tests.hostile.attack import Attack, exchange
from vmq.abi.vhost_user import U64, Request
from vmq.guest.rings import INDIRECT, NEXT, WRITE, Descriptor, Shape, Virtqueue
from vmq.guest.traffic import Traffic

SECONDS = 0.4
NOWHERE = 1 << 40
LINES = 8  # of one VM port in the log, at most: the engine's own limit a minute


@pytest.fixture(autouse=True)
def _neighbours_go_on(attack: Attack):
    """O3, O5, O7: a good number of frames between the neighbours, few lines, no memory."""
    attack.guest()
    attack.guests.pop("attacker").close()
    lines, before = len(attack.arena.lines("attacker")), attack.arena.resident()
    verified = attack.arena_neighbours.verified()
    yield
    attack.arena_neighbours.advance(50)
    for now, then in zip(attack.arena_neighbours.verified(), verified, strict=True):
        assert now - then >= 50
    assert len(attack.arena.lines("attacker")) - lines <= LINES
    assert attack.arena.resident() - before < 4 << 20


# --- H13: guests that do not drain ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", [WAYS[2], WAYS[3]], ids=lambda way: way.name)
def test_h13_1_a_guest_that_does_not_drain_loses_its_own_frames_only(attack: Attack, way: Way):
    """Flooded at full speed with all its buffers used up: dropped there and counted; nothing is kept for it."""
    guest = attack.guest(mergeable=way.mergeable)
    with Traffic(
        attack.peer, transmit=[frame("attacker", "peer", n) for n in range(64)], poll=True, limit=200_000
    ) as t:
        deadline = time.monotonic() + SECONDS
        until(lambda: t.counters()["returned"] > 1000 and time.monotonic() > deadline)
    returned = t.counters()["returned"]
    until(lambda: attack.moved("peer").get("forwarded", 0) >= returned)
    moved = attack.moved("attacker")
    assert moved["frames_to_guest"] == 256
    assert moved["to_guest_no_buffer"] == moved["offered_to_guest"] - 256
    assert len(guest.receive(256)) == 256


@pytest.mark.parametrize("way", [WAYS[2], WAYS[3]], ids=lambda way: way.name)
def test_h13_2_a_ring_of_one_buffer_takes_one_frame_at_a_time(attack: Attack, way: Way):
    """What fits is accepted, what does not is dropped."""
    guest = attack.guest(post=1, mergeable=way.mergeable)
    for lap in range(1, 6):
        attack.peer.send([frame("attacker", "peer", number) for number in range(3)])
        counts = {"offered_to_guest": 3 * lap, "frames_to_guest": lap, "to_guest_no_buffer": 2 * lap}
        until_equal(partial(attack.moved, "attacker"), counts)
        assert guest.receive(3, 0) == [frame("attacker", "peer", 0)]


# --- H26: attacks without pause -------------------------------------------------------------------------------


def for_some_time(step: Callable[[], object]) -> int:
    """Again and again; how often."""
    end, count = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        step()
        count += 1
    return count


def refill(ring: Virtqueue, pause: float = 0) -> None:
    """Every entry of the ring is available again."""
    time.sleep(pause)
    ring.avail["idx"] = (ring.used_index + ring.size) & 0xFFFF
    ring.kick()


def bad_chain(attack: Attack, way: Way, kind: str) -> list[Descriptor]:
    """One that is dropped."""
    memory, flags = attack.guest().memory, way.flags
    place = memory.allocate(4096)
    chains: dict[str, list[Descriptor]] = {
        "h3_unmapped": [(NOWHERE, 64, flags)],
        "h4_huge": [(place, 2**32 - 1, flags)],
        "h5_direction": [(place, 64, flags ^ WRITE)],
        "h6_h7_runt": [(place, 5, flags)],
        "h8_nested": [(memory.allocate(16, 16), 16, INDIRECT)],
        "h8_outside": [(NOWHERE, 160, INDIRECT)],
        "long_chain_of_nothing": [*[(place, 0, flags)] * 255, (NOWHERE, 1, flags)],
    }
    return chains[kind]


KINDS = [
    "h3_unmapped",
    "h4_huge",
    "h5_direction",
    "h6_h7_runt",
    "h8_nested",
    "h8_outside",
    "long_chain_of_nothing",
]


@pytest.mark.parametrize("way", DIRECT_WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("kind", KINDS)
def test_h26_bad_chains_without_pause_cost_the_neighbours_nothing(attack: Attack, way: Way, kind: str):
    """To a guest: also the collusion of two, one with useless buffers and one that floods it (CVE-2019-3900)."""
    ring = attack.on(way)
    chain = bad_chain(attack, way, kind)
    if kind == "h8_nested":
        table = chain[0][0]
        attack.guest().memory.array(table, 16, "u1")[12] = INDIRECT
    ring.entries[:] = ring.write_chain(chain)
    if not way.to_guest:
        for_some_time(lambda: refill(ring))
        until(lambda: attack.moved("attacker").get("frames_from_guest", 0) >= 256)
        assert "forwarded" not in attack.moved("attacker")
        return
    with Traffic(attack.peer, transmit=[frame("attacker", "peer")], poll=True):
        for_some_time(partial(refill, ring, pause=0.0005))
        until(lambda: attack.moved("attacker").get("offered_to_guest", 0) >= 256)
    assert "frames_to_guest" not in attack.moved("attacker")


@pytest.mark.parametrize("way", DIRECT_WAYS, ids=lambda way: way.name)
def test_h26_the_longest_chains_of_nothing_cost_the_neighbours_nothing(attack: Attack, way: Way):
    """The largest ring, one chain of all its descriptors, each empty, in every entry: the work of a round is bounded."""
    ring = attack.on(way, size=32768)
    place = attack.guest().memory.allocate(64)
    ring.entries[:] = ring.write_chain([(place, 0, way.flags)] * 32768)
    if not way.to_guest:
        for_some_time(partial(refill, ring))
        until(lambda: attack.moved("attacker").get("from_guest_too_long", 0) >= 10)
        return
    with Traffic(attack.peer, transmit=[frame("attacker", "peer")], poll=True):
        for_some_time(partial(refill, ring, pause=0.0005))
        until(lambda: attack.moved("attacker").get("to_guest_bad_buffer", 0) >= 10)


@pytest.mark.parametrize("kind", ["h1_loop", "h2_next", "h2_head", "h2_index"])
def test_h26_faults_without_pause_cost_the_neighbours_nothing(attack: Attack, kind: str):
    """Stop, driver reset, stop: each of them, the log says it once."""
    guest = attack.guest(post=0)
    ring = guest.virtqueue()
    place = guest.memory.allocate(64)

    def stop_and_start() -> None:
        if kind == "h1_loop":
            ring.raw_chain([(place, 4, NEXT, 0)])
        elif kind == "h2_next":
            ring.raw_chain([(place, 4, NEXT, 65535)])
        elif kind == "h2_head":
            ring.push(65535)
            ring.show()
        else:
            ring.show(32768)
        ring.kick()
        attack.arena.engine.wait_for("attacker", "faulted")
        guest.stop()
        guest.reset()
        guest.start()

    assert for_some_time(stop_and_start) >= 3


def test_h26_frames_of_every_bad_kind_without_pause(attack: Attack):
    """H15 as fast as a guest can send."""
    bad = [
        frame("peer", "attacker", size=10),
        frame("peer", "peer"),
        frame("peer", "ff:ff:ff:ff:ff:ff"),
        frame("peer", "attacker")[:12] + b"\x81\0\0\7" + bytes(60),
        frame("peer", "attacker")[:12] + b"\x81\0",
        frame("attacker", "attacker"),
        frame("01:80:c2:00:00:00", "attacker"),
        frame("02:00:00:00:00:99", "attacker"),
    ]
    with Traffic(attack.guest(transmit_shape=Shape(2048)), transmit=bad, poll=True) as flood:
        time.sleep(SECONDS)
        until(lambda: flood.counters()["returned"] > 1000)
    returned = flood.counters()["returned"]
    until(lambda: attack.moved("attacker").get("frames_from_guest", 0) >= returned)
    moved = attack.moved("attacker")
    assert "forwarded" not in moved
    assert set(moved) == {
        "frames_from_guest", "from_guest_short", "from_guest_spoofed", "from_guest_source", "from_guest_vlan",
        "vlan_truncated", "own_address", "link_local", "no_filter",
    }  # fmt: skip


def test_h26_two_guests_that_flood_each_other_leave_room_for_the_neighbours(attack: Attack):
    """Good frames, as many as fit: a burst at a time, then the next guest's turn."""
    pair = [frame("peer", "attacker")], [frame("attacker", "peer")]
    with (
        Traffic(attack.guest(), transmit=pair[0], poll=True) as one,
        Traffic(attack.peer, transmit=pair[1], poll=True),
    ):
        time.sleep(SECONDS)
        attack.arena_neighbours.advance(50)
        assert one.counters()["frames"]


def test_h26_messages_without_pause_cost_the_neighbours_nothing(attack: Attack):
    """Refused ones, unknown ones and table changes; each epoch is adopted between two bursts."""
    front = attack.guest().frontend
    call = attack.guest().virtqueue().call_fd

    def messages() -> None:
        for _ in range(16):
            front.send(99, b"what", [call])
            front.send(Request.SET_VRING_NUM, b"short")
            front.send(Request.SET_VRING_CALL, U64.pack(1), [call])
        front.barrier()

    assert for_some_time(messages)
    exchange(attack.guest(), attack.peer, ("attacker", "peer"))


def test_h26_connections_without_pause_cost_the_neighbours_nothing(attack: Attack):
    """Memory, rings, frames, and away in the middle of it."""

    def come_and_go() -> None:
        with attack.arena.new("attacker", size=16, room=1 << 14) as guest:
            guest.send([frame("peer", "attacker")] * 8)

    assert for_some_time(come_and_go)
