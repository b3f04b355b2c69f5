# SPDX-License-Identifier: Apache-2.0
"""Kernels of the driver's side: descriptors, indices, notifications, judged by what stands in guest memory."""

from __future__ import annotations

import os

import numpy as np
import pytest

from vmq.abi.virtio import vring_desc
from vmq.guest.driver import RING, compile_kernels
from vmq.guest.memory import Memory, adjacent
from vmq.guest.rings import INDIRECT, NEXT, WRITE, Shape, Virtqueue, private

SIZE = 8


@pytest.fixture
def make():
    """Virtqueues in memory of their own."""
    made = []

    def one(*, index: int = 1, event_idx: bool = False, **shape) -> Virtqueue:
        memory = Memory(adjacent(1 << 20, 1))
        virtqueue = Virtqueue(memory, index, SIZE, Shape(**{"buffer_bytes": 256} | shape), private(1, RING))
        virtqueue.agree(mergeable=False, event_idx=event_idx, indirect=True)
        made.append((virtqueue, memory))
        return virtqueue

    yield one
    for virtqueue, memory in made:
        virtqueue.close()
        memory.close()


def rows(table, count):
    return [tuple(int(value) for value in row) for row in table[:count]]


def use(virtqueue, *elements, index=None):
    """What the device writes: (head, length) elements, then the index."""
    for head, length in elements:
        place = int(virtqueue.used["idx"][0])
        virtqueue.elements[place % SIZE] = (head, length)
        virtqueue.used["idx"] = (place + 1) & 65535


def test_kernels_compile_before_traffic():
    compile_kernels()


def test_one_descriptor_holds_header_and_frame(make):
    vq = make()
    vq.describe(3, 5000, 112)
    assert rows(vq.desc[3:], 1) == [(5000, 112, 0, 0)]


def test_receive_chain_is_writable_and_has_its_header_apart(make):
    vq = make(index=0, parts=2)
    vq.describe(1, 5000, 256)
    assert rows(vq.desc[2:], 2) == [(5000, 12, WRITE | NEXT, 3), (5012, 244, WRITE, 0)]


def test_long_chain_is_cut_evenly_and_has_no_empty_piece(make):
    vq = make(parts=4)
    vq.describe(0, 5000, 112)
    assert rows(vq.desc, 4) == [
        (5000, 12, NEXT, 1),
        (5012, 34, NEXT, 2),
        (5046, 33, NEXT, 3),
        (5079, 33, 0, 0),
    ]
    vq.describe(1, 5000, 14)
    assert rows(vq.desc[4:], 3) == [(5000, 12, NEXT, 5), (5012, 1, NEXT, 6), (5013, 1, 0, 0)]


def test_indirect_chain_numbers_its_own_table(make):
    """virtio-1.2 §2.7.5.3 Indirect Descriptors"""
    vq = make(parts=3, indirect=True)
    vq.describe(2, 5000, 112)
    guest, length, flags, _ = rows(vq.desc[2:], 1)[0]
    table = vq.memory.array(guest, 3, vring_desc)
    assert (length, flags) == (48, INDIRECT)
    assert rows(table, 3) == [(5000, 12, NEXT, 1), (5012, 50, NEXT, 2), (5062, 50, 0, 0)]


def test_submit_shows_all_with_one_index(make):
    vq = make(parts=2)
    vq.submit([2, 0, 1])
    assert vq.entries[:3].tolist() == [4, 0, 2]
    assert int(vq.avail["idx"][0]) == 3


def test_submit_of_nothing_kicks_nobody(make):
    assert not make().submit([])


def test_indices_wrap(make):
    vq = make()
    for name in ("next_avail", "next_used", "shown"):
        vq.row[name] = 65534
    vq.used["idx"] = 65534
    vq.submit([1, 2, 3])
    use(vq, (1, 0), (2, 0), (3, 0))
    assert int(vq.avail["idx"][0]) == 1
    assert vq.harvest() == [(1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize(
    ("flags", "kicked"),
    [(0, True), (1, False)],
)
def test_kick_without_event_idx_asks_the_flag(make, flags, kicked):
    """virtio-1.2 §2.7.10 Available Buffer Notification Suppression"""
    vq = make()
    vq.used["flags"] = flags
    assert vq.submit([0]) == kicked
    assert int(vq.row["kicks"]) == kicked
    if kicked:
        assert os.eventfd_read(vq.kick_fd) == 1


@pytest.mark.parametrize(("event", "kicked"), [(0, True), (2, True), (3, False), (65535, False)])
def test_kick_with_event_idx_asks_the_event(make, event, kicked):
    vq = make(event_idx=True)
    vq.avail_event[0] = event
    vq.used["flags"] = 1  # ignored
    assert vq.submit([0, 1, 2]) == kicked


def test_calls_are_wanted_by_flag_or_event(make):
    """virtio-1.2 §2.7.7 Used Buffer Notification Suppression"""
    vq, events = make(), make(event_idx=True)
    vq.want_calls(wanted=False)
    assert int(vq.avail["flags"][0]) == 1
    vq.want_calls()
    assert int(vq.avail["flags"][0]) == 0

    events.submit([0, 1])
    use(events, (0, 0))
    assert events.want_calls(), "an element is waiting"
    events.harvest()
    assert not events.want_calls()
    assert int(events.used_event[0]) == 1
    assert int(events.avail["flags"][0]) == 0


def test_element_that_names_no_chain_of_ours_is_bad(make):
    vq = make(parts=2)
    vq.submit([0, 1])
    use(vq, (0, 0), (0, 0), (3, 0), (4, 0), (200, 0), (2**32 - 1, 0), (2, 9))
    assert vq.harvest() == [(0, 0), (1, 9)]
    assert int(vq.row["bad"]) == 5


def test_device_that_scribbles_over_the_ring_confuses_nobody(make):
    vq = make()
    vq.submit([4])
    vq.desc[:] = np.zeros((), vring_desc)
    vq.entries[:] = 65535
    use(vq, (4, 5))
    assert vq.harvest() == [(4, 5)]
