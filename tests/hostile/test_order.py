# SPDX-License-Identifier: Apache-2.0
"""A hostile front-end's rings (H21), and the order of what it says (H24), on a real socket.

What each message does to a session is tested in test_messages.py. After each attack the port's socket serves the
next front-end, and as much is open and mapped as before.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

import pytest

from tests.conftest import INTERPRETED
from tests.hostile.arena import PATIENCE, WAYS, frame, until, until_equal
from tests.hostile.attack import Attack, connected, exchange, raw, refuses
from vmq.abi.vhost_user import (
    U64,
    VRING_ADDR,
    VRING_STATE,
    Request,
)
from vmq.dataplane.reasons import AVAIL_JUMP
from vmq.guest.frontend import Frontend, Ring
from vmq.guest.guest import Guest

NAMES = ("attacker", "peer")


# --- H21: rings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [65536, 65537, 255, 4, 1 << 31, 2**32 - 1])
def test_h21_1_to_h21_3_rings_that_do_not_exist_are_refused(attack: Attack, front: Frontend, index: int):
    """All 32 bits of the index count; 3 is the last."""
    for request in (Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ENABLE):
        refuses(front, request, VRING_STATE.pack(index, 1))
    refuses(front, Request.SET_VRING_ADDR, VRING_ADDR.pack(index, 0, 0, 0, 0, 0))
    front.send(Request.GET_VRING_BASE, VRING_STATE.pack(index, 0))
    assert front.reply(Request.GET_VRING_BASE) == b""
    front.tell(Request.SET_VRING_NUM, VRING_STATE.pack(3, 256))


@pytest.mark.parametrize("size", [0, 3, 300, 32769, 65536, 2**32 - 1])
def test_h21_4_to_h21_7_ring_sizes_that_cannot_be_are_refused(attack: Attack, front: Frontend, size: int):
    """And any size at all while the ring runs (H21.7)."""
    refuses(front, Request.SET_VRING_NUM, VRING_STATE.pack(0, size))
    if attack.row["state"] == "running":
        refuses(front, Request.SET_VRING_NUM, VRING_STATE.pack(0, 128))
        refuses(front, Request.SET_VRING_BASE, VRING_STATE.pack(0, 0))


def addresses(ring: Ring, **changes: int) -> bytes:
    places = {"desc": ring.desc, "used": ring.used, "avail": ring.avail}
    places = {name: places[name] + changes.get(name, 0) for name in places}
    return VRING_ADDR.pack(ring.index, 0, places["desc"], places["used"], places["avail"], 0)


@pytest.mark.parametrize(
    "changes",
    [
        *(pytest.param({"desc": step}, id=f"h21_8_desc_{step}") for step in (1, 8)),
        pytest.param({"avail": 1}, id="h21_8_avail"),
        *(pytest.param({"used": step}, id=f"h21_8_used_{step}") for step in (1, 2)),
        pytest.param({"desc": 1 << 40}, id="h21_9_desc_in_a_hole"),
        pytest.param({"used": 1 << 62}, id="h21_9_used_in_a_hole"),
        pytest.param({"avail": -(1 << 32)}, id="h21_9_avail_in_a_hole"),
    ],
)
def test_h21_8_and_h21_9_ring_addresses_that_cannot_be_are_refused(attack: Attack, changes: dict[str, int]):
    """While the ring runs, and before; then it is refused when it is kicked at the latest."""
    guest = attack.guest()
    refuses(guest.frontend, Request.SET_VRING_ADDR, addresses(guest.virtqueue().place(), **changes))
    exchange(guest, attack.peer, NAMES)
    place, wrong = guest.virtqueue().place(), addresses(guest.virtqueue().place(), **changes)
    guest.stop()
    if max(abs(step) for step in changes.values()) < 16:  # the alignment is known at once
        refuses(guest.frontend, Request.SET_VRING_ADDR, wrong)
    else:
        guest.frontend.tell(Request.SET_VRING_ADDR, wrong)
        refuses(guest.frontend, Request.SET_VRING_KICK, U64.pack(1), [place.kick])


@pytest.mark.parametrize("part", ["avail", "used"])
def test_h21_10_parts_that_overlap_are_refused(attack: Attack, part: str):
    guest = attack.guest()
    place = guest.virtqueue().place()
    onto = place.desc + 16 - (place.avail if part == "avail" else place.used)
    refuses(guest.frontend, Request.SET_VRING_ADDR, addresses(place, **{part: onto}))
    exchange(guest, attack.peer, NAMES)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[2], WAYS[3]], ids=lambda way: way.name)
@pytest.mark.parametrize("base", [257, 1000, 40000, 65000])
def test_h21_11_a_base_far_from_the_ring_stops_the_port(attack: Attack, way, base: int):
    """Whatever is ahead of it by more than the queue size is no ring of ours."""
    guest = attack.guest(start=False, mergeable=way.mergeable, post=0)
    guest.virtqueue(to_guest=way.to_guest).base = base
    guest.start()
    guest.virtqueue(to_guest=way.to_guest).kick()
    if way.to_guest:
        attack.send(way)
    attack.stopped(way, AVAIL_JUMP, told=way.to_guest)  # the other ring runs before its err eventfd comes


# --- H24: order -----------------------------------------------------------------------------------------------

PARTS = ("num", "base", "addr", "kick", "call", "enable", "memory", "features")


def steps(guest: Guest, index: int) -> dict[str, Callable[[], None]]:
    front, ring = guest.frontend, guest.virtqueues[index].place()
    return {
        "num": lambda: front.tell(Request.SET_VRING_NUM, VRING_STATE.pack(index, ring.size)),
        "base": lambda: front.tell(Request.SET_VRING_BASE, VRING_STATE.pack(index, 0)),
        "addr": lambda: front.tell(Request.SET_VRING_ADDR, addresses(ring)),
        "kick": lambda: front.tell(Request.SET_VRING_KICK, U64.pack(index), [ring.kick]),
        "call": lambda: front.tell(Request.SET_VRING_CALL, U64.pack(index), [ring.call]),
        "enable": lambda: front.enable(index),
        "memory": lambda: front.set_memory(guest.memory),
        "features": front.set_features,
    }


ORDERS = {
    "h24_1_kick_first": ("kick", "call", "addr", "num", "base", "memory", "features", "enable"),
    "h24_1_memory_last": ("features", "enable", "num", "base", "addr", "call", "kick", "memory"),
    "h24_1_features_last": ("memory", "addr", "kick", "base", "num", "call", "enable", "features"),
    "h24_2_enable_first": ("enable", "features", "memory", "num", "base", "addr", "call", "kick"),
    "h24_2_enable_often": (
        "enable",
        "enable",
        "features",
        "memory",
        "num",
        "base",
        "enable",
        "addr",
        "kick",
        "call",
    ),
    "backwards": PARTS[::-1],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_h24_1_and_h24_2_the_parts_of_a_ring_may_come_in_any_order(attack: Attack, order: tuple[str, ...]):
    """It starts when it is complete (QEMU 7.2 enables before it sets features, and repeats it)."""
    guest = attack.guest(start=False)
    guest.frontend.connect()
    guest.frontend.handshake(guest.features)
    for virtqueue in guest.virtqueues:
        virtqueue.agree(mergeable=True, event_idx=True, indirect=True)
        virtqueue.want_calls()
        guest._post(virtqueue)
    both = [steps(guest, index) for index in range(2)]
    for name in order:
        for one in both:
            one[name]()
    guest.pairs = 1
    exchange(guest, attack.peer, NAMES)


def test_h24_3_the_base_of_a_ring_that_never_was_is_0(attack: Attack):
    front = connected(attack).frontend
    assert [front.stop_ring(index) for index in range(4)] == [0] * 4


def test_h24_4_an_owner_twice_is_a_new_owner(attack: Attack):
    """The rings of the old one stop, its memory is let go; the new one sets up anew."""
    guest = attack.guest()
    guest.frontend.send(Request.SET_OWNER)
    guest.frontend.send(Request.SET_OWNER)
    guest.frontend.barrier()
    until(lambda: attack.row["state"] == "connected")
    guest.frontend._sent_regions = ()
    guest.reset()
    guest.start()
    exchange(guest, attack.peer, NAMES)


def test_h24_5_reset_owner_under_traffic_stops_the_rings(attack: Attack):
    """They take and discard until they are enabled again; the state survives it."""
    guest = attack.guest()
    exchange(guest, attack.peer, NAMES)
    guest.frontend.send(Request.RESET_OWNER)
    guest.frontend.barrier()
    guest.send([frame("peer", "attacker")])
    until(lambda: attack.moved("attacker").get("from_guest_disabled") == 1)
    for index in range(2):
        guest.frontend.enable(index)
    exchange(guest, attack.peer, NAMES)


def test_h24_6_a_disconnect_at_each_step_leaves_nothing(attack: Attack):
    """Clean teardown from every state: as many descriptors and mappings as before, and the port listens."""
    attack.peer  # noqa: B018 - it has its descriptors before we count
    until(lambda: attack.row["state"] == "listening")
    before = attack.arena.size()
    for count in range(2 * len(PARTS) + 3):
        guest = attack.arena.new("attacker")
        front = guest.frontend
        front.connect()
        doing: list[Callable[[], None]] = [partial(front.handshake, guest.features)]
        doing += [*steps(guest, 0).values(), *steps(guest, 1).values()]
        for step in doing[:count]:
            step()
        guest.close()
        until_equal(attack.arena.size, before)
    assert attack.row["state"] == "listening"


@pytest.mark.parametrize(
    "options",
    [
        {"mergeable": False},
        {"event_idx": False, "indirect": False},
        {"queues": 2},
        {"regions": 5},
        {"size": 64},
    ],
    ids="_".join,
)
def test_h24_7_a_front_end_that_comes_back_changed_is_a_new_device(attack: Attack, options: dict):
    for one in (options, {}, options):
        guest = attack.guest(**one)
        exchange(guest, attack.peer, NAMES)
        attack.guests.pop("attacker").close()


def test_h24_8_a_thousand_connections_leave_nothing(attack: Attack):
    """Half-way to a start and all the way, with memory, rings and frames; O7."""
    attack.peer  # noqa: B018
    until(lambda: attack.row["state"] == "listening")
    sizes, resident = attack.arena.size(), 0
    rounds = 100 if INTERPRETED else 1000
    for count in range(rounds):
        if count == rounds // 5:  # pools are warm
            resident = attack.arena.resident()
        guest = attack.arena.new("attacker", size=16, room=1 << 14)
        try:
            if count % 4 == 0:
                guest.start()
                guest.send([frame("peer", "attacker", count)])
                assert attack.peer.receive(1, PATIENCE) == [frame("peer", "attacker", count)]
            else:
                guest.frontend.connect()
                guest.frontend.handshake(guest.features)
        finally:
            guest.close()
    until_equal(attack.arena.size, sizes)
    assert attack.arena.resident() - resident < 1 << 20


def test_h24_9_a_peer_that_does_not_read_its_replies_is_disconnected(attack: Attack):
    """The engine never waits for it."""
    front = connected(attack).frontend
    front.wire.setblocking(False)
    question = raw(Request.GET_FEATURES) * 64

    def hear_nothing() -> bool:
        try:
            while True:
                front.wire.send(question)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            return True

    until(hear_nothing, "the engine to hang up")
    attack.arena_neighbours.advance()
    until(lambda: attack.row["state"] == "listening")
    assert "does not read its replies" in attack.row["last_error"]["what"]


def test_h24_10_a_channel_to_ask_the_front_end_is_not_offered(front: Frontend, attack: Attack):
    """Nothing of ours can wait for its answer."""
    before = attack.arena.size()
    ours, theirs = socket.socketpair()
    refuses(front, Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
    ours.close()
    theirs.close()
    assert attack.arena.size() == before
