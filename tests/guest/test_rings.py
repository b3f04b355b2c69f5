# SPDX-License-Identifier: Apache-2.0
"""A virtqueue in Python's hands: slots, raw chains, indices of any kind."""

from __future__ import annotations

import os

import pytest

from vmq.abi.virtio import vring_desc
from vmq.errors import ProtocolError
from vmq.guest.driver import RING
from vmq.guest.memory import Memory, adjacent
from vmq.guest.rings import INDIRECT, NEXT, WRITE, Shape, Virtqueue, private

SIZE = 8


@pytest.fixture
def vq():
    memory = Memory(adjacent(1 << 20, 1))
    virtqueue = Virtqueue(memory, 1, SIZE, Shape(256), private(1, RING))
    yield virtqueue
    virtqueue.close()
    memory.close()


def rows(table, places):
    return [tuple(int(value) for value in table[place]) for place in places]


def test_slots_are_taken_and_given_back(vq):
    assert vq.take_slots(3) == [0, 1, 2]
    assert vq.free_slots == 5
    assert len(vq.take_slots(99)) == 5
    assert vq.take_slots(1) == []
    vq.give_slots([4, 2])
    assert vq.take_slots(9) == [2, 4]


@pytest.mark.parametrize(
    ("shape", "slots"), [(Shape(), 8), (Shape(parts=3), 2), (Shape(parts=3, indirect=True), 8)]
)
def test_shape_decides_how_many_slots_there_are(shape, slots):
    assert shape.slots(SIZE) == slots


def test_place_names_user_addresses(vq):
    place = vq.place()
    region = vq.memory.regions[0]
    assert (place.index, place.size) == (1, SIZE)
    assert place.desc - region.own == vq.desc_guest
    assert (place.desc % 16, place.avail % 2, place.used % 4) == (0, 0, 0)


def test_indirect_shape_needs_the_feature(vq):
    vq.shape = Shape(256, indirect=True)
    with pytest.raises(ProtocolError, match="Indirect"):
        vq.agree(mergeable=True, event_idx=True, indirect=False)


def test_raw_chain_is_linked_shown_and_kicked(vq):
    head = vq.raw_chain([(4096, 12, 0), (5000, 60, WRITE)])
    second = int(vq.desc["next"][head])
    assert rows(vq.desc, [head, second]) == [(4096, 12, NEXT, second), (5000, 60, WRITE, 0)]
    assert (int(vq.entries[0]), int(vq.avail["idx"][0])) == (head, 1)
    assert os.eventfd_read(vq.kick_fd) == 1


def test_chain_may_loop_or_lead_anywhere(vq):
    """A fourth number is `next`: a place in the chain, or beyond its end the very number."""
    head = vq.write_chain([(4096, 0, NEXT, 1), (4096, 1, NEXT, 0)])
    other = int(vq.desc["next"][head])
    assert int(vq.desc["next"][other]) == head
    alone = vq.write_chain([(4096, 0, NEXT, SIZE)])
    assert rows(vq.desc, [alone]) == [(4096, 0, NEXT, SIZE)]


def test_numbers_of_any_size_fit(vq):
    head = vq.write_chain([(2**64 - 1, 2**32 - 1, 65535, 65535)])
    assert rows(vq.desc, [head]) == [(2**64 - 1, 2**32 - 1, 65535, 65535)]


def test_indirect_chain_stands_in_a_table(vq):
    head = vq.write_chain([(4096, 12, 0), (5000, 60, INDIRECT)], indirect=True)
    guest, length, flags, _ = rows(vq.desc, [head])[0]
    assert (length, flags) == (32, INDIRECT)
    assert rows(vq.memory.array(guest, 2, vring_desc), [0, 1]) == [
        (4096, 12, NEXT, 1),
        (5000, 60, INDIRECT, 0),
    ]


def test_chain_longer_than_the_ring_borrows_nothing(vq):
    with pytest.raises(ValueError, match="no 9 free descriptors"):
        vq.write_chain([(4096, 1, 0)] * 9)
    assert vq.free_slots == SIZE


def test_raw_chain_comes_back_with_its_descriptors(vq):
    head = vq.raw_chain([(4096, 12, 0)] * 3)
    assert vq.free_slots == SIZE - 3
    vq.elements[0] = (head, 7)
    vq.used["idx"] = 1
    assert vq.harvest() == []
    assert vq.raw_used == [(head, 7)]
    assert vq.free_slots == SIZE
    assert vq.returned(1) == [(head, 7)]


def test_pushed_entries_and_shown_index_are_anything(vq):
    vq.push(65535, 3, 3)
    vq.show(40000)
    assert vq.entries[:3].tolist() == [65535, 3, 3]
    assert int(vq.avail["idx"][0]) == 40000
    vq.show()
    assert int(vq.avail["idx"][0]) == 3


def test_field_addresses_a_descriptor_in_guest_memory(vq):
    vq.memory.write(vq.field(5, "len"), (1234).to_bytes(4, "little"))
    assert int(vq.desc["len"][5]) == 1234


def test_calls_are_counted_one_by_one(vq):
    assert vq.drain_calls() == 0
    os.eventfd_write(vq.call_fd, 1)
    os.eventfd_write(vq.call_fd, 1)
    assert vq.drain_calls() == 2
    assert vq.calls == 2


def test_reset_begins_anew(vq):
    vq.raw_chain([(4096, 12, 0)])
    vq.submit(vq.take_slots(2))
    vq.used["idx"] = 9
    vq.reset()
    assert vq.free_slots == SIZE
    assert (int(vq.avail["idx"][0]), vq.used_index, vq.base) == (0, 0, 0)
    assert not vq.desc["addr"].any()
