# SPDX-License-Identifier: Apache-2.0
"""Rings that lie: chains that loop (H1), indices (H2), indirect tables (H8), memory that vanishes (H14)."""

from __future__ import annotations

import pytest

from tests.hostile.arena import DIRECT_WAYS, WAYS, Way, frame
from tests.hostile.attack import Attack
from vmq.dataplane.reasons import AVAIL_JUMP, CHAIN_LOOP, HEAD_RANGE, NEXT_RANGE
from vmq.dataplane.state import CHAIN_MAX
from vmq.guest.driver import DESC
from vmq.guest.rings import INDIRECT, NEXT, WRITE, Descriptor

each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
each_direct_way = pytest.mark.parametrize("way", DIRECT_WAYS, ids=lambda way: way.name)
each_length = pytest.mark.parametrize("length", [0, 4])


def loop(attack: Attack, way: Way, length: int, links: int) -> list[Descriptor]:
    """Descriptors of `length` bytes in a circle of `links`."""
    attack.on(way)
    place = attack.guest().memory.allocate(64)
    return [(place, length, NEXT | way.flags, (step + 1) % links) for step in range(links)]


# --- H1: chains that loop -------------------------------------------------------------------------------------


@each_way
@each_length
def test_h1_1_and_h1_2_a_descriptor_that_follows_itself_stops_the_port(attack: Attack, way: Way, length: int):
    """virtio-1.2 §2.7.5.2 Driver Requirements: no loops. H1.1 is length 0, H1.2 the other."""
    attack.launch(way, loop(attack, way, length, 1))
    attack.stopped(way, CHAIN_LOOP)
    attack.restarts()


@each_way
@each_length
def test_h1_3_a_cycle_of_two_stops_the_port(attack: Attack, way: Way, length: int):
    attack.launch(way, loop(attack, way, length, 2))
    attack.stopped(way, CHAIN_LOOP)


@each_way
@each_length
def test_h1_4_a_cycle_through_the_whole_ring_stops_the_port(attack: Attack, way: Way, length: int):
    """The walk is bounded by the queue size, an indirect table's by its entries."""
    attack.launch(way, loop(attack, way, length, 256))
    attack.stopped(way, CHAIN_LOOP)


# --- H2: indices ----------------------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("beyond", ["size", "last"])
def test_h2_1_next_beyond_the_table_stops_the_port(attack: Attack, way: Way, beyond: str):
    attack.on(way)
    entries = 1 if way.indirect else 256
    link = entries if beyond == "size" else 65535
    chain = [(attack.guest().memory.allocate(64), 4, NEXT | way.flags, link)]
    attack.launch(way, chain)
    attack.stopped(way, NEXT_RANGE)


@each_direct_way
@pytest.mark.parametrize("head", [256, 65535])
def test_h2_2_a_head_beyond_the_table_stops_the_port(attack: Attack, way: Way, head: int):
    ring = attack.on(way)
    ring.push(head)
    ring.show()
    ring.kick()
    if way.to_guest:
        attack.send(way)
    attack.stopped(way, HEAD_RANGE)


@each_direct_way
@pytest.mark.parametrize("ahead", [257, 32768, 65535], ids=["by_one", "by_half", "backwards"])
def test_h2_3_and_h2_4_an_index_that_jumps_or_goes_back_stops_the_port(attack: Attack, way: Way, ahead: int):
    """More than the queue size ahead (H2.3), or one back (H2.4). 257 is also H2.6: one more in flight than fit."""
    ring = attack.on(way)
    ring.show(ahead)
    ring.kick()
    if way.to_guest:
        attack.send(way)
    attack.stopped(way, AVAIL_JUMP)
    attack.restarts()


@each_direct_way
def test_h2_5_a_head_published_twice_is_two_chains(attack: Attack, way: Way):
    """Each publication is handled as if new, never more than the queue size in flight."""
    ring = attack.on(way)
    chain = attack.buffers(way)
    head = ring.write_chain(chain)
    ring.push(head, head)
    ring.show()
    ring.kick()
    if way.to_guest:
        attack.send(way)
        attack.send(way)
    else:
        expected = frame("peer", "attacker", 1)
        assert attack.peer.receive(2) == [expected] * 2
    attack.frames(way, count=2)
    assert [head for head, _ in ring.returned(2)] == [head, head]


@each_direct_way
def test_h2_6_more_heads_in_flight_than_fit_stop_the_port(attack: Attack, way: Way):
    """A full ring, and one more on top before the device has seen any."""
    ring = attack.on(way)
    head = ring.write_chain(attack.buffers(way))
    ring.push(*[head] * 257)
    ring.show()
    ring.kick()
    if way.to_guest:
        attack.send(way)
    attack.stopped(way, AVAIL_JUMP)


# --- H8: indirect tables --------------------------------------------------------------------------------------


def refused(way: Way) -> str:
    return "to_guest_bad_buffer" if way.to_guest else "from_guest_indirect"


def table(attack: Attack, way: Way, extra_flags: int = 0, size: int = 0) -> list[Descriptor]:
    """One descriptor that names a sound table of the packet, but for its flags or its size."""
    ring = attack.on(way)
    chain = attack.buffers(way)
    return [(ring.write_table(chain), size or len(chain) * DESC, INDIRECT | extra_flags)]


@each_direct_way
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(0, id="h8_1_empty"),
        pytest.param(1, id="h8_2_one_byte"),
        pytest.param(DESC - 1, id="h8_2_short"),
        pytest.param(DESC + 8, id="h8_2_and_a_half"),
        pytest.param(DESC * (CHAIN_MAX + 1), id="h8_3_above_our_limit"),
        pytest.param(DESC * 65537, id="h8_3_longer_than_any_ring"),
        pytest.param(0xFFFFFFF0, id="h8_3_huge"),
    ],
)
def test_h8_1_to_h8_3_tables_of_a_wrong_size_are_dropped(attack: Attack, way: Way, size: int):
    """Nothing is allocated for them: the table is read where it is."""
    [(place, _, flags, *_)] = table(attack, way)
    head = attack.launch(way, [(place, size, flags)])
    attack.dropped(way, head, refused(way))


@each_direct_way
def test_h8_4_a_table_in_a_table_is_dropped(attack: Attack, way: Way):
    """virtio-1.2 §2.7.5.3.1 Driver Requirements: Indirect Descriptors: one level."""
    inner = table(attack, way)
    outer = attack.on(way).write_table(inner)
    head = attack.launch(way, [(outer, DESC, INDIRECT)])
    attack.dropped(way, head, refused(way))


@each_direct_way
def test_h8_5_indirect_together_with_next_is_dropped(attack: Attack, way: Way):
    first = table(attack, way)
    head = attack.launch(way, [*first, (attack.guest().memory.allocate(64), 64, way.flags)])
    attack.dropped(way, head, refused(way))


@each_direct_way
@pytest.mark.parametrize("place", [1 << 40, (1 << 63) - DESC, 1 << 63, (1 << 64) - DESC, 0xFFFF_FFFF])
def test_h8_6_a_table_outside_guest_memory_is_dropped(attack: Attack, way: Way, place: int):
    attack.on(way)
    head = attack.launch(way, [(place, DESC, INDIRECT)])
    attack.dropped(way, head, refused(way))


@each_direct_way
def test_h8_7_a_table_over_two_adjacent_regions_is_read(attack: Attack, way: Way):
    """A descriptor of it lies half in one region, half in the next."""
    ring = attack.on(way, regions=4)
    border = attack.guest().memory.regions[3].guest
    chain = attack.buffers(way, 12)
    place = border - DESC - 8
    ring.memory.write(place, ring.memory.read(ring.write_table(chain), len(chain) * DESC))
    attack.launch(way, [(place, len(chain) * DESC, INDIRECT)])
    attack.accepted(way, chain)


@each_direct_way
def test_h8_7_a_table_over_a_hole_is_dropped(attack: Attack, way: Way):
    ring = attack.on(way, regions=[(0, 3 << 20), (16 << 20, 1 << 20)])
    chain = attack.buffers(way, 12)
    data = ring.memory.read(ring.write_table(chain), len(chain) * DESC)
    place = (3 << 20) - DESC
    ring.memory.write(place, data[:DESC])
    head = attack.launch(way, [(place, len(chain) * DESC, INDIRECT)])
    attack.dropped(way, head, refused(way))


@each_direct_way
@pytest.mark.parametrize("flags", [0, WRITE])
def test_h8_the_write_flag_of_a_table_is_ignored(attack: Attack, way: Way, flags: int):
    """virtio-1.2 §2.7.5.3.2 Device Requirements: Indirect Descriptors."""
    ring = attack.on(way)
    chain = attack.buffers(way, 12, 50)
    attack.launch(way, [(ring.write_table(chain), len(chain) * DESC, INDIRECT | flags)])
    attack.accepted(way, chain)


@each_direct_way
def test_h8_tables_that_were_not_negotiated_are_dropped(attack: Attack, way: Way):
    attack.on(way, indirect=False)
    head = attack.launch(way, table(attack, way))
    attack.dropped(way, head, refused(way))


# --- H14: memory that vanishes --------------------------------------------------------------------------------


@each_direct_way
def test_h14_1_a_ring_that_is_zeroed_under_traffic_works_after_the_driver_starts_anew(
    attack: Attack, way: Way
):
    """An index that falls back to 0 stops the port, or looks like an empty ring; both end with a driver reset."""
    guest = attack.guest(mergeable=way.mergeable)
    for _ in range(20):
        guest.send([frame("peer", "attacker")] * 8)
        attack.peer.send([frame("attacker", "peer")] * 8)
    ring = guest.virtqueue(to_guest=way.to_guest)
    base = ring.desc_guest
    guest.memory.array(base, ring.used_guest - base, "u1")[:] = 0
    attack.peer.send([frame("attacker", "peer")] * 8)
    ring.kick()
    attack.arena_neighbours.advance()
    attack.peer.receive(1 << 16, 0.1)
    attack.restarts()


def test_h14_2_a_driver_that_comes_back_with_fewer_queues_leaves_the_others_behind(attack: Attack):
    """Only rings configured since the last stop run; what lies where the old ones were is not looked at."""
    guest = attack.guest(queues=2)
    guest.send([frame("peer", "attacker", 1)], queue=1)
    assert attack.peer.receive(1) == [frame("peer", "attacker", 1)]
    guest.stop()
    guest.reset()
    guest.start(pairs=1)
    for index in (2, 3):
        guest.virtqueues[index].show(32768)
        guest.virtqueues[index].kick()
    guest.send([frame("peer", "attacker", 2)])
    assert attack.peer.receive(1) == [frame("peer", "attacker", 2)]
    assert attack.row["state"] == "running"
    assert attack.row["queues_running"] == 1
