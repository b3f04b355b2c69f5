# SPDX-License-Identifier: Apache-2.0
"""Who works for a pair: the kernel where frames come from, or whoever polls its far end; on real pairs."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.dataplane.harness_wire import plain
from vmq.abi.ethernet import mac_number
from vmq.dataplane import state
from vmq.dataplane.direct import LEAD
from vmq.direct import polling
from vmq.direct.memory import GuestMemory
from vmq.direct.pair import Apart
from vmq.direct.polling import Polling, greeting
from vmq.direct.queue import DirectQueue
from vmq.jit import at
from vmq.uplink import netdev
from vmq.vhost.message import Region

VM = mac_number("52:54:00:00:00:01")  # whom `plain` addresses
MEMORY, PATIENCE = 4 << 20, 20
HEADER = bytes(10)
LONG = (1 << 32) - 1  # ns: as long as the request has bits for


def test_a_greeting_is_a_datagram_from_nobody_to_everybody() -> None:
    """Field by field, by the standards alone."""
    data = greeting()
    assert data[:14] == bytes(12) + b"\x08\0"
    version, _, length, _, fragment, _, protocol, _, source, to = struct.unpack_from(
        ">BBHHHBBH4s4s", data, 14
    )
    assert (version, length, fragment, protocol) == (0x45, 28, 0, 17)
    assert (source, to) == (bytes(4), b"\xff" * 4)
    total = sum(struct.unpack_from(">10H", data, 14))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    assert struct.unpack_from(">HHHH", data, 34) == (9, 9, 8, 0)
    assert len(data) == 60


@pytest.fixture
def make() -> Iterator[Callable[[], DirectQueue]]:
    far, descriptor = Apart(), os.memfd_create("guest")
    os.ftruncate(descriptor, MEMORY)
    memory = GuestMemory((Region(0, MEMORY, 0, 0, descriptor),))
    made: list[DirectQueue] = []

    def make() -> DirectQueue:
        queue = DirectQueue(far, 3, memory, 1500, 1500, strip=False)
        made.append(queue)
        queue.follow({(VM, 0)})
        fill = queue.row["fill"]
        slots = at(int(fill["entries"]), int(fill["size"]), np.uint64)
        slots[:8] = np.arange(8, dtype=np.uint64) * np.uint64(4096) + np.uint64(0x10000 - LEAD)
        at(int(fill["producer"]), 1, np.uint32)[0] = 8
        queue.open()
        return queue

    yield make
    for queue in made:
        queue.close()
    far.close()
    memory.close()
    os.close(descriptor)


def poll(queue: DirectQueue) -> None:
    """As its processor does, with the call of Python's own library."""
    with socket.socket(fileno=os.dup(int(queue.row["poll"]))) as one, pytest.raises(BlockingIOError):
        one.recv(1)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.root
def test_while_it_is_polled_frames_land_when_they_are_asked_for(
    make: Callable[[], DirectQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would look itself after some seconds. The first frame wakes it where that is sent, once more."""
    monkeypatch.setattr(polling, "WAIT_NS", LONG)
    queue = make()
    queue.poll(on=True)
    assert queue.is_polled()
    poll(queue)
    queue.near.send(HEADER + plain(0))
    until(lambda: queue.socket.received() == 1)
    for number in range(1, 5):
        queue.near.send(HEADER + plain(number))
    assert queue.socket.received() == 1
    poll(queue)
    assert queue.socket.received() == 5
    whole = at(queue.memory.address, MEMORY, np.uint8)
    for number in range(5):
        landed = bytes(whole[0x10000 + 4096 * number + 12 :][: len(plain(number))])
        assert landed == plain(number)


@pytest.mark.root
def test_who_does_not_come_again_is_not_waited_for(make: Callable[[], DirectQueue]) -> None:
    queue = make()
    queue.poll(on=True)
    for number in range(4):
        poll(queue)
        queue.near.send(HEADER + plain(number))
        until(lambda number=number: queue.socket.received() == number + 1)  # type: ignore[misc]


@pytest.mark.root
def test_a_queue_that_is_not_polled_any_more_is_worked_for_where_frames_come_from(
    make: Callable[[], DirectQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the kernel has looked itself; marks go the same way."""
    monkeypatch.setattr(polling, "WAIT_NS", 1_000_000)
    queue = make()
    queue.near.send(HEADER + plain(0))
    until(lambda: queue.socket.received() == 1)
    for _ in range(3):
        queue.poll(on=True)
        poll(queue)
        queue.near.send(HEADER + plain(1))
        queue.poll(on=False)
        assert (queue.is_polled(), int(queue.row["poll"])) == (False, state.NONE)
        marks = queue.mark()
        until(lambda: queue.passed(marks))  # noqa: B023 - at once
    assert queue.socket.received() == 4


@pytest.mark.root
def test_it_is_polled_while_frames_are_many(make: Callable[[], DirectQueue]) -> None:
    queue = make()
    frames = 0
    for second, more, polled in (
        (0.0, 0, False),
        (1.0, polling.MANY - 1, False),
        (1.001, polling.MANY, False),  # of so short a time nothing is concluded
        (2.0, polling.MANY, True),
        (3.0, polling.FEW, True),
        (4.0, polling.FEW - 1, False),
        (5.0, polling.MANY - 1, False),
        (6.0, polling.MANY, True),
        (7.0, 0, False),
    ):
        frames += more
        queue.look(second, frames)
        assert queue.is_polled() == polled, second


@pytest.mark.root
@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL])
def test_a_kernel_that_cannot_be_asked_works_where_frames_come_from(
    make: Callable[[], DirectQueue], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(netdev.Family, "defer", refuse)
    queue = make()
    queue.look(0.0, 0)
    queue.look(1.0, 10 * polling.MANY)
    assert (queue.is_polled(), int(queue.row["poll"])) == (False, state.NONE)
    assert os.strerror(code) in queue.why_not_polled
    queue.near.send(HEADER + plain(0))
    until(lambda: queue.socket.received() == 1)


@pytest.mark.root
def test_a_kernel_that_refuses_later_is_not_asked_again(
    make: Callable[[], DirectQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, asked = make(), list[object]()

    def refuse(*what: object) -> None:
        asked.append(what)
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(netdev.Family, "defer", refuse)
    for second in range(4):
        queue.look(float(second), second * polling.MANY)
    assert (queue.is_polled(), len(asked)) == (False, 1)
    assert "refuses it now" in queue.why_not_polled


@pytest.mark.root
def test_a_kernel_that_does_not_tell_who_works_is_not_waited_for_long(
    make: Callable[[], DirectQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "TOLD_SECONDS", 0.01)
    monkeypatch.setattr(polling, "greeting", lambda: bytes(60))
    queue = make()
    assert not queue.is_polled()
    assert "who works" in queue.why_not_polled


@pytest.mark.root
def test_a_greeting_that_is_lost_is_sent_again(
    make: Callable[[], DirectQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that has just come up has nowhere to put it for a while; none of them counts as a frame that was lost."""
    said = [bytes(60), bytes(60), greeting(), greeting()]
    monkeypatch.setattr(polling, "greeting", lambda: said.pop(0))
    queue = make()
    assert (queue.why_not_polled, len(said)) == ("", 1)
    queue.poll(on=True)
    assert queue.is_polled()
    queue.count_lost(queue._far.devices())
    assert not queue.row["lost"].any()


@pytest.mark.root
def test_a_device_that_is_not_there_leaves_no_socket(make: Callable[[], DirectQueue]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No such device"):
        Polling("nosuch", lambda _: None)
    assert len(os.listdir("/proc/self/fd")) == before
