# SPDX-License-Identifier: Apache-2.0
"""A hostile front-end on a real socket: features (H16), framing (H18), descriptors (H19), rings (H21), order (H24).

What each message does to a session is tested in test_messages.py; here bytes and descriptors go to an engine that
serves others at the same time. After each attack the port's socket serves the next front-end.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import INTERPRETED
from tests.hostile.arena import PATIENCE, WAYS, Attack, exchange, frame, until, until_equal
from vmq.abi.vhost_user import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    FLAG_VERSION,
    HEADER,
    MEM_REG,
    MEMORY,
    MEMORY_REGION,
    U64,
    VRING_ADDR,
    VRING_STATE,
    Request,
)
from vmq.abi.virtio import VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MQ
from vmq.dataplane.state import AVAIL_JUMP
from vmq.errors import ProtocolError
from vmq.guest.frontend import Frontend, Ring
from vmq.guest.guest import Guest

NAMES = ("attacker", "peer")
ASK = FLAG_VERSION | FLAG_NEED_REPLY
MANY = 1000 if INTERPRETED else 10_000


def raw(request: int, payload: bytes = b"", flags: int = FLAG_VERSION, size: int | None = None) -> bytes:
    return HEADER.pack(request, flags, len(payload) if size is None else size) + payload


@pytest.fixture(params=["fresh", "running"])
def front(request: pytest.FixtureRequest, attack: Attack) -> Frontend:
    """A front-end that has just said hello, and one whose rings run."""
    return connected(attack).frontend if request.param == "fresh" else attack.guest().frontend


def connected(attack: Attack, **options) -> Guest:
    """A guest whose front-end has handed over memory, and no ring."""
    guest = attack.guest(start=False, **options)
    guest.frontend.connect()
    guest.frontend.handshake(guest.features)
    guest.frontend.set_features()
    guest.frontend.set_memory(guest.memory)
    return guest


def hung_up(attack: Attack, front: Frontend) -> None:
    """Class *refuse, close*: the connection is gone, the port says why and has kept nothing."""
    until(lambda: not front.connected, "the engine to close the connection")
    until(lambda: attack.row["state"] == "listening")
    assert attack.row["last_error"]["what"].startswith("vhost-user")
    after = attack.arena.size()
    attack.arena.new("attacker").start().close()
    until_equal(attack.arena.size, after)


def refuses(front: Frontend, request: Request, payload: bytes, fds: list[int] | None = None) -> None:
    with pytest.raises(ProtocolError, match="refused"):
        front.tell(request, payload, fds or [])


# --- H16: features --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0, 5, 7, 11, 17, 26, 34, 35, 36, 40, 63])
def test_h16_1_features_that_were_not_offered_are_refused(attack: Attack, bit: int):
    """No ring runs until the driver makes an acceptable choice."""
    guest = attack.guest(start=False)
    front = guest.frontend
    front.connect()
    front.handshake(guest.features)
    assert not front.offered >> bit & 1
    refuses(front, Request.SET_FEATURES, U64.pack(front.features | 1 << bit))
    assert f"[{bit}]" in attack.row["last_error"]["what"]
    guest.start()
    exchange(guest, attack.peer, NAMES)


def test_h16_2_a_legacy_driver_is_refused_in_words_and_a_modern_one_runs(attack: Attack):
    guest = attack.guest(start=False)
    front = guest.frontend
    front.connect()
    front.handshake(guest.features)
    refuses(front, Request.SET_FEATURES, U64.pack(front.features & ~(1 << VIRTIO_F_VERSION_1)))
    assert "legacy" in attack.row["last_error"]["what"]
    assert "disable-legacy=on" in attack.row["last_error"]["remedy"]
    guest.start()
    exchange(guest, attack.peer, NAMES)


def test_h16_3_without_protocol_features_rings_run_without_being_enabled(attack: Attack):
    guest = attack.guest(start=False)
    guest.features &= ~(1 << VHOST_USER_F_PROTOCOL_FEATURES | 1 << VIRTIO_NET_F_MQ)
    guest.start()
    exchange(guest, attack.peer, NAMES)


@pytest.mark.parametrize("index", [4, 5, 32, 254, 255])
def test_h16_4_and_h21_2_rings_beyond_the_offered_pairs_are_refused(attack: Attack, index: int):
    """The VM port has two queue pairs."""
    front = connected(attack).frontend
    refuses(front, Request.SET_VRING_NUM, VRING_STATE.pack(index, 256))
    refuses(front, Request.SET_VRING_ENABLE, VRING_STATE.pack(index, 1))
    refuses(front, Request.SET_VRING_KICK, U64.pack(index), [attack.guest().virtqueue().kick_fd])


# --- H18: framing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, 11, 15])
def test_h18_1_a_stream_that_ends_inside_a_message_is_refused(attack: Attack, front: Frontend, length: int):
    front.wire.sendall(raw(Request.SET_VRING_NUM, bytes(8))[:length])
    front.wire.shutdown(socket.SHUT_WR)
    hung_up(attack, front)


@pytest.mark.parametrize("size", [4097, 1 << 20, 1 << 31, 2**32 - 1])
def test_h18_2_a_payload_longer_than_any_message_is_refused(attack: Attack, front: Frontend, size: int):
    """It is not waited for."""
    front.wire.sendall(raw(Request.SET_VRING_NUM, bytes(8), size=size))
    hung_up(attack, front)


@pytest.mark.parametrize("size", [0, 1, 7, 9, 39, 41])
def test_h18_3_and_h18_4_payloads_of_a_wrong_size_are_refused(attack: Attack, front: Frontend, size: int):
    """The stream is in order: the connection stays."""
    for request in (
        Request.SET_VRING_NUM,
        Request.SET_FEATURES,
        Request.SET_VRING_ADDR,
        Request.SET_VRING_KICK,
    ):
        refuses(front, request, bytes(size))
    front.barrier()


def test_h18_5_messages_in_one_write_are_answered_in_order(front: Frontend):
    front.wire.sendall(raw(Request.GET_FEATURES) + raw(99, b"?", ASK) + raw(Request.GET_QUEUE_NUM))
    assert U64.unpack(front.reply(Request.GET_FEATURES)) == (front.offered,)
    assert U64.unpack(front.reply(99)) == (1,)
    assert U64.unpack(front.reply(Request.GET_QUEUE_NUM)) == (2,)


def test_h18_6_messages_may_come_byte_by_byte(attack: Attack, front: Frontend):
    """The descriptor comes with the first byte."""
    message = raw(Request.SET_VRING_CALL, U64.pack(0), ASK) + raw(Request.GET_FEATURES)
    socket.send_fds(front.wire, [message[:1]], [attack.guest().virtqueue().call_fd])
    for place in range(1, len(message)):
        front.wire.send(message[place : place + 1])
    assert U64.unpack(front.reply(Request.SET_VRING_CALL)) == (0,)
    assert U64.unpack(front.reply(Request.GET_FEATURES)) == (front.offered,)


@pytest.mark.parametrize("request_id", [0, 44, 99, 2**32 - 1])
def test_h18_7_unknown_requests_are_ignored_and_answered_if_asked(front: Frontend, request_id: int):
    front.wire.sendall(raw(request_id, b"what") + raw(request_id, b"what", ASK))
    assert U64.unpack(front.reply(request_id)) == (1,)
    front.barrier()


@pytest.mark.parametrize("flags", [0, 2, 3, FLAG_VERSION | FLAG_REPLY])
def test_h18_8_and_h18_9_wrong_versions_and_replies_are_refused(attack: Attack, front: Frontend, flags: int):
    """H18.8, H18.9: who speaks another protocol is not listened to."""
    front.wire.sendall(raw(Request.GET_FEATURES, flags=flags))
    hung_up(attack, front)


# --- H19: descriptors -----------------------------------------------------------------------------------------

FILES: dict[str, Callable[[Path], Sequence[int]]] = {
    "pipe": lambda _place: os.pipe(),
    "tty": lambda _place: os.openpty(),
    "folder": lambda place: [os.open(place, os.O_RDONLY)],
    "read_only": lambda place: read_only(place / "memory"),
    "short": lambda _place: memfd(0x800),
    "empty": lambda _place: memfd(0),
    "eventfd": lambda _place: [os.eventfd(0)],
    "sealed_against_writing": lambda _place: memfd(0x2000, fcntl.F_SEAL_WRITE),
}


def memfd(size: int, seals: int = 0) -> list[int]:
    descriptor = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return [descriptor]


def read_only(path: Path) -> list[int]:
    path.write_bytes(bytes(0x2000))
    return [os.open(path, os.O_RDONLY)]


@pytest.mark.parametrize("kind", FILES)
def test_h19_3_memory_that_is_no_memory_is_refused(
    attack: Attack, front: Frontend, kind: str, tmp_path: Path
):
    """By ADD_MEM_REG and in a table; the descriptor is closed, what was there stays."""
    descriptors = FILES[kind](tmp_path)
    before = attack.arena.size()
    region = (1 << 40, 0x1000, 1 << 40, 0)
    try:
        for one in descriptors:
            refuses(front, Request.ADD_MEM_REG, MEM_REG.pack(0, *region), [one])
            refuses(front, Request.SET_MEM_TABLE, MEMORY.pack(1, 0) + MEMORY_REGION.pack(*region), [one])
    finally:
        for one in descriptors:
            os.close(one)
    assert attack.arena.size() == before


def test_h19_1_messages_without_their_descriptor_are_refused(attack: Attack, front: Frontend):
    before = attack.arena.size()
    for request in (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR):
        refuses(front, request, U64.pack(0))
    region = (1 << 40, 0x1000, 1 << 40, 0)
    refuses(front, Request.ADD_MEM_REG, MEM_REG.pack(0, *region))
    refuses(front, Request.SET_MEM_TABLE, MEMORY.pack(1, 0) + MEMORY_REGION.pack(*region))
    assert attack.arena.size() == before


@pytest.mark.parametrize("count", [9, 32, 100, 253])
def test_h19_2_and_h19_4_too_many_descriptors_end_the_connection(attack: Attack, front: Frontend, count: int):
    """One too many, and so many that the kernel cuts them off (MSG_CTRUNC): all are closed."""
    socket.send_fds(
        front.wire, [raw(Request.SET_VRING_CALL, U64.pack(0), ASK)], [attack.peer.memory.fd] * count
    )
    hung_up(attack, front)
    assert attack.arena.size()["fd /memfd"] < 9


def test_h19_5_descriptors_nobody_asked_for_are_closed(attack: Attack, front: Frontend):
    before = attack.arena.size()
    for request in (99, Request.GET_FEATURES):
        front.send(request, b"", [attack.peer.memory.fd] * 8)
    front.reply(Request.GET_FEATURES)
    assert attack.arena.size() == before


KINDS: dict[str, tuple[Request | int, bytes]] = {
    "call": (Request.SET_VRING_CALL, U64.pack(0)),
    "kick": (Request.SET_VRING_KICK, U64.pack(0)),
    "err": (Request.SET_VRING_ERR, U64.pack(0)),
    "call_of_no_ring": (Request.SET_VRING_CALL, U64.pack(77)),
    "unknown": (99, b"what"),
    "features": (Request.GET_QUEUE_NUM, b"?"),
    "short_region": (Request.ADD_MEM_REG, bytes(39)),
    "region_of_an_eventfd": (Request.ADD_MEM_REG, MEM_REG.pack(0, 1 << 40, 0x1000, 1 << 40, 0)),
    "log": (Request.SET_LOG_BASE, bytes(16)),
    "inflight": (Request.SET_INFLIGHT_FD, bytes(20)),
    "backend_request": (Request.SET_BACKEND_REQ_FD, b""),
}
BATCH = 50


@pytest.mark.parametrize("kind", KINDS)
def test_h19_ten_thousand_messages_of_a_kind_leave_no_descriptor(attack: Attack, kind: str):
    """O7, with need_reply set: exactly one answer each (H18.10)."""
    guest = connected(attack)
    front, descriptor = guest.frontend, guest.virtqueue().call_fd
    request, payload = KINDS[kind]
    message = raw(request, payload, ASK)

    def send(count: int) -> None:
        for _ in range(count):
            socket.send_fds(front.wire, [message], [descriptor])
        for _ in range(count):
            front.reply(request)

    send(1)
    before = attack.arena.size()
    for _ in range(MANY // BATCH):
        send(BATCH)
    front.barrier()
    assert attack.arena.size() == before


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
