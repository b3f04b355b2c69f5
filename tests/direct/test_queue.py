# SPDX-License-Identifier: Apache-2.0
"""A receive queue that is direct, without its engine: frames through the pair, marks, and what is lost by where it was."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

from tests.dataplane.harness_wire import plain
from vmq.abi.ethernet import mac_number
from vmq.dataplane import state
from vmq.dataplane.direct import LEAD
from vmq.direct.memory import GuestMemory
from vmq.direct.pair import Apart
from vmq.direct.queue import DirectQueue
from vmq.jit import at
from vmq.uplink import link
from vmq.vhost.message import Region

pytestmark = pytest.mark.root
VM, OTHER = (
    mac_number(f"52:54:00:00:00:0{number}") for number in (1, 2)
)  # whom `plain` addresses; somebody else
MEMORY, PATIENCE = 4 << 20, 20
HEADER = bytes(10)


@pytest.fixture
def queue() -> Iterator[DirectQueue]:
    far, descriptor = Apart(), os.memfd_create("guest")
    os.ftruncate(descriptor, MEMORY)
    memory = GuestMemory((Region(0, MEMORY, 0, 0, descriptor),))
    made = DirectQueue(far, 3, memory, 1500, 3000, strip=False)
    made.follow({(VM, 0)})
    yield made
    made.close()
    made.close()
    far.close()
    memory.close()
    os.close(descriptor)


def post(queue: DirectQueue, *places: int) -> None:
    """As a processor does."""
    fill = queue.row["fill"]
    producer = at(int(fill["producer"]), 1, np.uint32)
    slots = at(int(fill["entries"]), int(fill["size"]), np.uint64)
    for place in places:
        slots[int(producer[0]) % int(fill["size"])] = place - LEAD
        producer[0] += 1


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_mark_has_passed_when_all_before_it_has_landed_or_is_lost(queue: DirectQueue) -> None:
    post(queue, 0x10000, 0x20000)
    queue.open()
    for number in range(5):
        queue.near.send(HEADER + plain(number))
    marks = queue.mark()
    until(lambda: queue.passed(marks))
    assert (queue.socket.received(), queue.socket.lost()) == (2, 3)
    whole = at(queue.memory.address, MEMORY, np.uint8)
    assert bytes(whole[0x10000 + 12 :][: len(plain(0))]) == plain(0)
    assert bytes(whole[0x20000 + 12 :][: len(plain(1))]) == plain(1)
    assert not queue.passed(marks + 1)


def test_what_is_lost_is_told_to_the_processor_by_where_it_was(queue: DirectQueue) -> None:
    queue.open()
    for data in (plain(0), b"\x52\x54\0\0\0\x02" + plain(2)[6:]):
        queue.near.send(HEADER + data)
    marks = queue.mark()
    until(lambda: queue.passed(marks))
    queue.count_lost(queue._far.devices())
    assert int(queue.row["lost"][state.LOST_NO_BUFFER]) == 1
    assert int(queue.row["lost"][state.LOST_PAIR]) == 1
    assert not queue.lost_are_booked()
    queue.row["booked"][:] = queue.row["lost"]
    assert queue.lost_are_booked()


def test_all_that_a_nic_leads_there_is_counted_at_the_far_end(queue: DirectQueue) -> None:
    """Frames of the widest, with a tag; longer ones no NIC of that MTU lets through."""
    post(queue, 0x10000)
    queue.open()
    before = at(queue.memory.address, MEMORY, np.uint8).copy()
    for size in (1519, 3014, 3018):
        queue.near.send(HEADER + plain(0)[:12] + b"\x81\0" + bytes(size - 14))
    until(partial(queue.passed, queue.mark()))
    assert queue.verdicts()["too_long"] == 3
    assert np.array_equal(before, at(queue.memory.address, MEMORY, np.uint8))


def test_before_it_is_opened_and_after_it_is_shut_nothing_is_let_through(queue: DirectQueue) -> None:
    post(queue, 0x10000)
    before = at(queue.memory.address, MEMORY, np.uint8).copy()
    for opened in (False, True):
        if opened:
            queue.open()
            queue.shut()
        queue.near.send(HEADER + plain(1))
        until(partial(queue.passed, queue.mark()))
    assert queue.verdicts()["no_socket"] == 2
    assert np.array_equal(before, at(queue.memory.address, MEMORY, np.uint8))


def test_a_mark_that_finds_no_room_is_sent_later(queue: DirectQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not as if nothing were on its way."""
    queue.open()
    with monkeypatch.context() as full:
        full.setattr(queue, "mark", no_room)
        assert not queue.drained()
    until(queue.drained)
    assert queue.verdicts()["mark"] == 1


def no_room() -> int:
    raise BlockingIOError


def test_filters_are_those_of_the_last_word(queue: DirectQueue) -> None:
    queue.open()
    queue.follow({(OTHER, 0)})
    queue.near.send(HEADER + plain(1))
    marks = queue.mark()
    until(lambda: queue.passed(marks))
    assert (queue.verdicts()["foreign"], queue.filters_now) == (1, {(OTHER, 0)})


def test_a_pair_that_cannot_be_made_leaves_nothing() -> None:
    far, descriptor = Apart(), os.memfd_create("guest")
    os.ftruncate(descriptor, MEMORY)
    memory = GuestMemory((Region(0, MEMORY, 0, 0, descriptor),))
    first = DirectQueue(far, 3, memory, 1500, 3000, strip=False)
    with pytest.raises(OSError, match="exists"):
        DirectQueue(far, 3, memory, 1500, 3000, strip=False)
    assert far.call(lambda: link.index_of("far3")) == first.pair.far_index
    first.close()
    assert far.call(lambda: link.index_of("far3")) == 0
    far.close()
    memory.close()
    os.close(descriptor)
