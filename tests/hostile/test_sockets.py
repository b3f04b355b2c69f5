# SPDX-License-Identifier: Apache-2.0
"""A hostile front-end on a real socket: features (H16), framing (H18), descriptors (H19).

What each message does to a session is tested in test_messages.py; here bytes and descriptors go to an engine that
serves others at the same time. After each attack the port's socket serves the next front-end.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import INTERPRETED
from tests.hostile.arena import until, until_equal
from tests.hostile.attack import Attack, connected, exchange, raw, refuses
from vmq.abi.vhost_user import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    FLAG_VERSION,
    MEM_REG,
    MEMORY,
    MEMORY_REGION,
    U64,
    VRING_STATE,
    Request,
)
from vmq.abi.virtio import VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MQ
from vmq.guest.frontend import Frontend

NAMES = ("attacker", "peer")
ASK = FLAG_VERSION | FLAG_NEED_REPLY
MANY = 1000 if INTERPRETED else 10_000


def hung_up(attack: Attack, front: Frontend) -> None:
    """Class *refuse, close*: the connection is gone, the port says why and has kept nothing."""
    until(lambda: not front.connected, "the engine to close the connection")
    until(lambda: attack.row["state"] == "listening")
    assert attack.row["last_error"]["what"].startswith("vhost-user")
    after = attack.arena.size()
    attack.arena.new("attacker").start().close()
    until_equal(attack.arena.size, after)


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
