# SPDX-License-Identifier: Apache-2.0
"""A connection on a socket pair, without an event loop: everything a front-end hands over is given back."""

from __future__ import annotations

import logging
import os
import resource
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.engine.running import guest_maps, open_files
from tests.vhost.executor import BASE, R
from vmq.errors import ProtocolError
from vmq.vhost.connection import Connection
from vmq.vhost.memory import Mapping, unmap
from vmq.vhost.message import Region
from vmq.vhost.session import FEATURES, PROTOCOL_FEATURES, Offer, RingState, Session

SIZE = 1 << 20


class Owner:
    """A data plane that is only a note of what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, ...]] = []
        self.memory: set[int] = set()
        self.errors: list[ProtocolError] = []
        self.announced: list[int] = []
        self.called: list[int] = []
        self.stopped_at: dict[int, int] = {}
        self.broken: Exception | None = None

    def follow(self, session: Session, mappings: dict[Region, Mapping]) -> dict[int, int]:
        if self.broken:
            raise self.broken
        assert set(mappings) >= set(session.regions)
        gone = set(self.shown[-1] if self.shown else ()) - set(session.started)
        self.shown.append(session.started)
        return {index: self.stopped_at.get(index, 0) for index in gone}

    def mapped(self, mapping: Mapping) -> None:
        self.memory.add(mapping.address)

    def unmapping(self, mapping: Mapping) -> None:
        self.memory.remove(mapping.address)

    def call(self, descriptor: int) -> None:
        self.called.append(descriptor)
        os.eventfd_write(descriptor, 1)

    def announce(self, mac: int) -> None:
        self.announced.append(mac)

    def refused(self, error: ProtocolError) -> None:
        self.errors.append(error)


class Peer:
    """The other end: a front-end that says anything."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair()
        self.socket.settimeout(5)
        self.owner = Owner()
        self.ended = 0
        self.connection = Connection(ours, Offer(max_pairs=2), self.owner, self._closed)
        self._own: list[int] = []

    def _closed(self) -> None:
        self.ended += 1

    @property
    def open(self) -> bool:
        return self.connection.fileno() >= 0

    def keep(self, fd: int) -> int:
        """A descriptor of the front-end's."""
        self._own.append(fd)
        return fd

    def eventfd(self, value: int = 0, flags: int = 0) -> int:
        return self.keep(os.eventfd(value, flags))

    def memfd(self, size: int = SIZE) -> int:
        fd = self.keep(os.memfd_create("guest"))
        os.ftruncate(fd, size)
        return fd

    def say(self, request: int, payload: bytes = b"", *fds: int, ask: bool = False, flags: int = 1) -> Peer:
        data = struct.pack("=III", request, flags | (8 if ask else 0), len(payload)) + payload
        return self.raw(data, *fds)

    def raw(self, data: bytes, *fds: int) -> Peer:
        socket.send_fds(self.socket, [data], fds)
        self.heard()
        return self

    def heard(self) -> None:
        """The connection has taken what was said, in as many turns as it needs."""
        while self.open and select.select([self.connection.fileno()], [], [], 0)[0]:
            self.connection.readable()

    def answer(self) -> bytes:
        head = self.socket.recv(12)
        return self.socket.recv(struct.unpack("=III", head)[2])

    # --- what front-ends say ---

    def number(self, request: int, value: int) -> Peer:
        return self.say(request, struct.pack("=Q", value))

    def hello(self) -> Peer:
        self.number(R.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES).say(R.SET_OWNER)
        return self.number(R.SET_FEATURES, FEATURES)

    def table(self, *fds: int, size: int = SIZE, offset: int = 0) -> Peer:
        rows = [struct.pack("=QQQQ", i * SIZE, size, BASE + i * SIZE, offset) for i in range(len(fds))]
        return self.say(R.SET_MEM_TABLE, struct.pack("=II", len(fds), 0) + b"".join(rows), *fds)

    def add(self, fd: int, place: int = 0, size: int = SIZE, ask: bool = False) -> Peer:
        payload = struct.pack("=QQQQQ", 0, place, size, BASE + place, 0)
        return self.say(R.ADD_MEM_REG, payload, fd, ask=ask)

    def fd(self, request: int, index: int, fd: int, ask: bool = False) -> Peer:
        return self.say(request, struct.pack("=Q", index), fd, ask=ask)

    def steps(self) -> Iterator[str]:
        """A start, message by message."""
        self.number(R.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES)
        yield "protocol features"
        self.say(R.SET_OWNER)
        yield "owner"
        for index in range(4):
            self.fd(R.SET_VRING_CALL, index, self.eventfd())
            yield f"call {index}"
        self.number(R.SET_FEATURES, FEATURES)
        yield "features"
        self.table(self.memfd())
        yield "memory"
        for index in (0, 1):
            self.say(R.SET_VRING_NUM, struct.pack("=II", index, 256))
            yield f"size {index}"
            self.say(R.SET_VRING_BASE, struct.pack("=II", index, 0))
            at = BASE + index * 0x10000
            self.say(R.SET_VRING_ADDR, struct.pack("=IIQQQQ", index, 0, at, at + 0x3000, at + 0x2000, 0))
            yield f"addresses {index}"
            self.fd(R.SET_VRING_ERR, index, self.eventfd())
            yield f"err {index}"
            self.fd(R.SET_VRING_KICK, index, self.eventfd())
            yield f"kick {index}"
            self.fd(R.SET_VRING_CALL, index, self.eventfd())
            self.say(R.SET_VRING_ENABLE, struct.pack("=II", index, 1))
            yield f"enabled {index}"
        self.add(self.memfd(), SIZE)
        yield "more memory"
        self.say(R.GET_VRING_BASE, struct.pack("=II", 0, 0))
        self.answer()
        yield "one ring stopped"

    def running(self) -> Peer:
        for name in self.steps():
            if name == "enabled 1":
                break
        assert self.connection.session.started == (0, 1)
        return self

    def close(self) -> None:
        """Both ends."""
        self.socket.close()
        if self.open:
            self.connection.readable()
        while self._own:
            os.close(self._own.pop())


@pytest.fixture
def peer() -> Iterator[Peer]:
    """And when it has gone, nothing of it is left."""
    before = open_files(), guest_maps()
    one = Peer()
    yield one
    one.close()
    assert not one.open
    assert one.ended == 1
    assert one.owner.memory == set()
    assert not one.owner.shown or one.owner.shown[-1] == ()
    assert (open_files(), guest_maps()) == before


def steps() -> list[str]:
    one = Peer()
    names = list(one.steps())
    one.close()
    return names


@pytest.mark.parametrize("last", steps())
@pytest.mark.parametrize("how", ["hang up", "inside a message", "nonsense", "too many descriptors"])
def test_a_front_end_may_go_at_any_step(peer: Peer, last: str, how: str):
    """H24.6: clean teardown from every state; the fixture compares descriptors and mappings."""
    for name in peer.steps():
        if name == last:
            break

    if how == "inside a message":
        peer.raw(struct.pack("=III", R.SET_VRING_CALL, 1, 8) + bytes(3), peer.eventfd(), peer.eventfd())
    elif how == "nonsense":
        peer.raw(b"\xff" * 12, peer.eventfd())
        assert not peer.open
    elif how == "too many descriptors":
        event = peer.eventfd()
        peer.raw(struct.pack("=III", R.SET_VRING_CALL, 1, 8), *[event] * 30)
        assert not peer.open


def test_rings_run_when_all_is_there_and_stop_when_asked(peer: Peer):
    """vhost-user "Ring states": GET_VRING_BASE answers where the data plane has stopped."""
    peer.running()
    peer.owner.stopped_at = {0: 17}

    peer.say(R.GET_VRING_BASE, struct.pack("=II", 0, 0))

    assert struct.unpack("=II", peer.answer()) == (0, 17)
    assert peer.owner.shown[-1] == (1,)


def test_a_started_ring_is_called_once_so_that_no_driver_waits(peer: Peer):
    peer.running()
    assert len(peer.owner.called) >= 2


# --- messages that carry descriptors (H19) ----------------------------------------------------------------------


@pytest.mark.parametrize("request_id", range(48))
def test_h19_a_thousand_messages_of_a_kind_leave_no_descriptor(peer: Peer, request_id: int):
    """H19, CVE-2019-14818: whatever comes with whatever; the engine keeps at most what its session names."""
    peer.running()
    memory, event = peer.memfd(), peer.eventfd()
    payload = bytes(40 if request_id > 30 else 8)
    if request_id == R.SET_MEM_TABLE:
        payload = struct.pack("=IIQQQQ", 1, 0, 0, SIZE, BASE, 0)
    elif request_id in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
        payload = struct.pack("=Q", 2)
    before = len(open_files())

    for count in range(1000):
        if peer.open:
            peer.say(request_id, payload, *[memory, event][: 1 + count % 2])

    assert len(open_files()) - before <= 1
    if peer.open:
        assert peer.connection.session.fds <= {int(fd) for fd in open_files()}


@pytest.mark.parametrize("count", [0, 2, 8])
def test_h19_the_wrong_number_of_descriptors_is_refused(peer: Peer, count: int):
    """H19.1, H19.2: none where one is due, several; the session is as it was."""
    peer.running()
    before = peer.connection.session
    event = peer.eventfd()

    peer.say(R.SET_VRING_CALL, struct.pack("=Q", 0), *[event] * count, ask=True)

    assert struct.unpack("=Q", peer.answer()) == (1,)
    assert peer.connection.session == before
    assert len(peer.owner.errors) == 1


def test_h19_descriptors_beyond_what_a_message_carries_end_the_connection(peer: Peer):
    """H19.2, H19.4: 32 of them; MSG_CTRUNC means that some are lost, and nobody knows which."""
    peer.hello()
    event = peer.eventfd()

    peer.say(R.SET_VRING_CALL, struct.pack("=Q", 0), *[event] * 32)

    assert not peer.open
    assert "descriptors" in str(peer.owner.errors[0])


def test_h19_4_descriptors_that_this_process_has_no_room_for_end_the_connection(peer: Peer):
    """MSG_CTRUNC without any: the message is whole, and its descriptor is gone."""
    peer.hello()
    event = peer.eventfd()
    free = os.dup(event)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        peer.fd(R.SET_VRING_CALL, 0, event)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not peer.open
    assert "descriptors were lost" in str(peer.owner.errors[0])


@pytest.mark.parametrize("fair", [1, 100])
def test_the_last_descriptors_are_kept_for_front_ends_that_have_few(
    peer: Peer, fair: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vmq.vhost.connection.DESCRIPTORS_FAIR", fair)
    peer.running()
    event = peer.eventfd()
    free = os.dup(event)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 4, limits[1]))
    try:
        peer.fd(R.SET_VRING_CALL, 0, event)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert peer.open == (fair == 100)
    if fair == 1:
        assert "this process has few left" in str(peer.owner.errors[0])


def test_h19_nine_descriptors_are_one_too_many(peer: Peer):
    peer.hello()
    peer.say(R.SET_VRING_CALL, struct.pack("=Q", 0), *[peer.eventfd()] * 9)
    assert not peer.open


@pytest.mark.parametrize("request_id", [R.SET_VRING_CALL, R.SET_VRING_KICK, R.SET_VRING_ERR])
@pytest.mark.parametrize("kind", ["pipe", "socket", "directory", "memfd", "device"])
def test_h12_6_kick_call_and_err_are_eventfds(peer: Peer, request_id: int, kind: str):
    """H12.6, H19.3: all else may block us, or kill us with SIGPIPE."""
    peer.running()
    before = peer.connection.session
    if kind == "pipe":
        fd = [peer.keep(end) for end in os.pipe()][1]
    elif kind == "socket":
        fd = peer.keep(socket.socket(socket.AF_UNIX).detach())
    elif kind == "directory":
        fd = peer.keep(os.open("/tmp", os.O_RDONLY))
    elif kind == "memfd":
        fd = peer.memfd()
    else:
        fd = peer.keep(os.open("/dev/null", os.O_RDWR))

    peer.fd(request_id, 0, fd, ask=True)

    assert struct.unpack("=Q", peer.answer()) == (1,)
    assert peer.connection.session == before
    assert "no eventfd" in str(peer.owner.errors[0])


def test_a_call_that_could_block_is_made_not_to(peer: Peer):
    """H12.5: O_NONBLOCK belongs to the open file that both sides share."""
    event = peer.eventfd()
    assert os.get_blocking(event)

    peer.hello().fd(R.SET_VRING_CALL, 0, event)

    assert not os.get_blocking(event)


# --- memory (H20) -----------------------------------------------------------------------------------------------


def test_h20_8_a_region_larger_than_its_file_takes_the_others_back(peer: Peer):
    """One of two is sound: whole or not at all."""
    peer.hello()

    peer.table(peer.memfd(), peer.memfd(SIZE - 4096))

    assert peer.connection.mappings == {}
    assert peer.owner.memory == set()
    assert "4096 bytes too short" in str(peer.owner.errors[0])


def test_h20_10_the_same_region_a_thousand_times_grows_nothing(peer: Peer):
    """H20.10: QEMU 7.2 sends each once a queue pair."""
    peer.hello()
    memory = peer.memfd()
    peer.add(memory)
    before = len(open_files()), guest_maps()
    for _ in range(1000):
        peer.add(memory)
    assert (len(open_files()), guest_maps()) == before
    assert peer.owner.errors == []


def test_h20_12_a_table_swapped_under_running_rings_is_mapped_before_the_old_is_let_go(peer: Peer):
    """H20.12: and the driver is called, since its rings have moved."""
    peer.running()
    old = set(peer.connection.mappings)
    called = len(peer.owner.called)

    peer.table(peer.memfd())

    assert set(peer.connection.mappings).isdisjoint(old)
    assert len(peer.owner.memory) == 1
    assert peer.owner.shown[-1] == (0, 1)
    assert len(peer.owner.called) == called + 2


def test_a_table_without_its_rings_stops_them(peer: Peer):
    """Rings that no longer lie in memory must not be touched."""
    peer.running()
    peer.table(peer.memfd(0x1000), size=0x1000)
    assert peer.owner.shown[-1] == ()


def test_an_owner_that_takes_no_more_memory_refuses_the_message(peer: Peer, monkeypatch: pytest.MonkeyPatch):
    """The table of mappings is bounded, and shared by all VM ports."""

    def full(_mapping: Mapping) -> None:
        raise ProtocolError("vhost-user", "no room")

    peer.hello()
    monkeypatch.setattr(peer.owner, "mapped", full)
    monkeypatch.setattr(peer.owner, "unmapping", lambda _mapping: None)
    peer.add(peer.memfd(), ask=True)
    assert struct.unpack("=Q", peer.answer()) == (1,)
    assert peer.connection.mappings == {}


# --- the socket (H18, H24) --------------------------------------------------------------------------------------


def test_h24_8_a_thousand_connections_leave_nothing():
    """H24.8: each with memory and running rings."""
    before = open_files(), guest_maps()
    for _ in range(1000):
        one = Peer()
        one.running()
        one.close()
    assert (open_files(), guest_maps()) == before


def test_h24_9_a_front_end_that_does_not_read_its_replies_is_closed(peer: Peer):
    """H24.9: nobody waits for it."""
    peer.connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    peer.hello()
    for _ in range(2000):
        if not peer.open:
            break
        peer.say(R.GET_FEATURES)
    assert not peer.open
    assert "does not read its replies" in str(peer.owner.errors[-1])


def test_h18_5_and_6_messages_come_in_any_pieces(peer: Peer):
    """H18.5 two in one write, H18.6 byte by byte: descriptors stay with the message of their first byte."""
    call = struct.pack("=IIIQ", R.SET_VRING_CALL, 1, 8, 0)
    peer.raw(call[:1], peer.eventfd())
    for place in range(1, len(call)):
        peer.raw(call[place : place + 1])
    assert peer.connection.session.rings[0].call >= 0

    peer.raw(struct.pack("=III", R.GET_FEATURES, 1, 0) * 2)
    assert peer.answer() == peer.answer()


def test_many_messages_are_not_handled_in_one_go(peer: Peer):
    """One front-end does not keep the loop from the others."""
    question = struct.pack("=III", R.GET_FEATURES, 1, 0)
    peer.socket.send(question * 500)
    peer.connection.readable()
    answers = len(peer.socket.recv(1 << 20)) // 20
    assert 0 < answers < 100
    while answers < 500:
        peer.connection.readable()
        answers += len(peer.socket.recv(1 << 20)) // 20


def test_a_rarp_is_passed_on(peer: Peer):
    peer.hello().number(R.SEND_RARP, 0x010000005452)
    assert peer.owner.announced == [0x010000005452]


def test_closing_twice_is_once(peer: Peer):
    peer.running()
    peer.connection.close()
    peer.connection.close()
    assert peer.ended == 1


def test_who_has_hung_up_is_known_before_it_is_read(peer: Peer):
    """So that the next front-end is let in at once."""
    peer.hello()
    assert not peer.connection.gone()
    peer.socket.send(struct.pack("=III", R.GET_FEATURES, 1, 0))
    peer.socket.close()
    assert peer.connection.gone()


# --- our own faults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["protocol", "preparation", "owner"])
def test_a_fault_of_ours_closes_the_connection_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
):
    """It never reaches the event loop, and what the message brought is closed."""
    before = open_files(), guest_maps()
    peer = Peer()
    peer.running()

    def broken(*_: Any) -> None:
        raise IndexError("ours")

    with ExitStack() as stack, caplog.at_level(logging.ERROR, "vmq"):
        patch = stack.enter_context(monkeypatch.context())
        if where == "protocol":
            patch.setattr("vmq.vhost.connection.protocol.handle", broken)
        elif where == "preparation":
            patch.setattr("vmq.vhost.connection.map_region", broken)
        else:
            patch.setattr(peer.owner, "call", broken)
        if where == "owner":
            peer.fd(R.SET_VRING_CALL, 0, peer.eventfd())
        else:
            peer.add(peer.memfd(), SIZE)

    assert not peer.open
    assert [record.exc_info is not None for record in caplog.records] == [True]
    peer.close()
    assert (open_files(), guest_maps()) == before


def test_a_teardown_that_fails_is_logged_and_ends(caplog: pytest.LogCaptureFixture):
    """An engine whose processors no longer answer has nothing to give back safely."""
    peer = Peer()
    peer.running()
    peer.owner.broken = TimeoutError("a processor is stuck")

    peer.close()

    assert not peer.open
    assert "could not give everything back" in caplog.text
    peer.owner.broken = None
    for mapping in peer.connection.mappings.values():
        unmap(mapping)
        os.close(mapping.region.fd)


def test_an_owner_that_fails_at_the_end_keeps_nothing_open(caplog: pytest.LogCaptureFixture):
    before = open_files(), guest_maps()
    peer = Peer()
    peer.running()

    def broken() -> None:
        raise IndexError("ours")

    peer.connection._closed = broken
    peer.close()
    assert "its owner failed" in caplog.text
    assert (open_files(), guest_maps()) == before


def test_a_front_end_that_resets_the_connection_has_gone(peer: Peer):
    """Its end is closed with an answer unread."""
    peer.running().say(R.GET_FEATURES)
    peer.socket.close()
    peer.connection.readable()
    assert not peer.open
    assert peer.owner.errors == []


def test_a_ring_is_kicked_by_polling_when_it_has_no_kick(peer: Peer):
    """VHOST_USER_VRING_NOFD: the ring is started without an eventfd."""
    peer.running()
    peer.say(R.SET_VRING_KICK, struct.pack("=Q", 1 | 1 << 8))
    assert peer.connection.session.rings[1].kick == -1
    assert peer.connection.session.rings[1].state is RingState.STARTED
