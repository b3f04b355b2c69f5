# SPDX-License-Identifier: Apache-2.0
"""Ring contents of every kind, good and bad, in each direction, with a neighbour who must not notice.

Names H1.1 … H8.8 are those of the list of hostile inputs. *Stop*: the VM port is stopped with a fault, and its rings
are left alone. *Drop*: one named drop, the chain comes back with length 0, and the next one works.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.dataplane.rig import (
    ALL_FEATURES,
    EVENT_IDX,
    FAULT,
    HEADER,
    INDIRECT,
    INDIRECT_TABLES,
    MERGEABLE,
    NEXT,
    WRITE,
    A,
    B,
    C,
    Rig,
    Virtqueue,
    Vm,
    frame,
    interpreted,
)
from vmq.dataplane import reasons, state
from vmq.dataplane.split import ask_for_kicks, available, give_back, publish, read_ahead, refuse_kicks, walk
from vmq.jit import int64

UNMAPPED = 1 << 40
REGION_END = 0x10000 + (1 << 18)  # of a VM's own region, if nothing else is said
REGIONS = [
    (0x10000, 0x20000),
    (0x30000, 0x8000),
    (0x40000, 0x20000),
]  # the first two are adjacent, then a hole
SIZE = 64
PATHS = ["from_guest", "to_guest", "to_guest_mergeable"]


class Attack:
    """One VM port with raw rings, its neighbour, and a wire that sends to both."""

    def __init__(self, path: str) -> None:
        self.to_guest = path != "from_guest"
        features = ALL_FEATURES if path != "to_guest" else EVENT_IDX | INDIRECT_TABLES
        self.rig = Rig()
        wire = self.rig.uplink(frames=[frame(A, C, 200), frame(B, C, 200)], laps=0)
        self.vm = self.rig.vm(A, uplink=wire, features=features, regions=REGIONS, size=SIZE)
        self.neighbour = self.rig.vm(B, uplink=wire, regions=[(0x10000, 1 << 17)], size=256)
        self.neighbour.post(96, 256)
        self.ring: Virtqueue = self.vm.to_guest if self.to_guest else self.vm.from_guest
        self.own = WRITE if self.to_guest else 0
        self.buffer = self.vm.memory.allocate(4096)
        self.vm.memory.write(self.buffer, bytes(HEADER) + frame(B, A, 200))
        self.vm.memory.allow(self.buffer, 4096, allowed=self.to_guest)
        self.table = self.vm.memory.allocate(4096)
        self.rig.publish()

    def entry(self, place: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        """A descriptor of the direct table."""
        self.ring.describe(place, address, length, flags | self.own, following)

    def nested(self, place: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        """A descriptor of the indirect table."""
        row = struct.pack("<QIHH", address, length, flags | self.own, following)
        self.vm.memory.write(self.table + 16 * place, row)

    def indirect(self, length: int, flags: int = 0, table: int | None = None) -> None:
        self.ring.describe(0, self.table if table is None else table, length, INDIRECT | flags)

    def step(self) -> None:
        """One round; the neighbour gets its frames, whatever is in the ring."""
        before = int(self.neighbour.books()["frames_to_guest"])
        self.neighbour.received()
        self.neighbour.post(self.neighbour.to_guest.size - len(self.neighbour.to_guest.chains), 256)
        self.rig.step()
        assert int(self.neighbour.books()["frames_to_guest"]) >= before + 32
        assert self.neighbour.fault == "none"

    def drops(self) -> dict[str, int]:
        return self.vm.drops() if self.to_guest else self.vm.sent_drops()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.rig.__exit__(kind, *_)


def looped(address_length: int, length: int) -> Callable[[Attack], None]:
    """H1: a cycle of `length` descriptors of `address_length` bytes."""

    def write(attack: Attack) -> None:
        for place in range(length):
            attack.entry(place, attack.buffer, address_length, NEXT, (place + 1) % length)
        attack.ring.offer(0)

    return write


def looped_table(attack: Attack) -> None:
    """H1 in an indirect table."""
    attack.nested(0, attack.buffer, 1, NEXT, 1)
    attack.nested(1, attack.buffer, 1, NEXT, 0)
    attack.indirect(32)
    attack.ring.offer(0)


def beyond(attack: Attack) -> None:
    attack.entry(0, attack.buffer, 12, NEXT, SIZE)
    attack.ring.offer(0)


def beyond_the_indirect_table(attack: Attack) -> None:
    attack.nested(0, attack.buffer, 12, NEXT, 2)
    attack.indirect(32)
    attack.ring.offer(0)


STOPS: dict[str, tuple[Callable[[Attack], None], str]] = {
    "H1.1 itself, empty": (looped(0, 1), "chain_loop"),
    "H1.2 itself": (looped(1, 1), "chain_loop"),
    "H1.3 two, empty": (looped(0, 2), "chain_loop"),
    "H1.3 two": (looped(1, 2), "chain_loop"),
    "H1.4 the whole ring, empty": (looped(0, SIZE), "chain_loop"),
    "H1.4 the whole ring": (looped(1, SIZE), "chain_loop"),
    "H1 in an indirect table": (looped_table, "chain_loop"),
    "H2.1 next beyond the table": (beyond, "next_range"),
    "H2.1 next beyond the indirect table": (beyond_the_indirect_table, "next_range"),
    "H2.2 head just beyond the table": (lambda attack: attack.ring.offer(SIZE), "head_range"),
    "H2.2 head far beyond": (lambda attack: attack.ring.offer(0xFFFF), "head_range"),
    "H2.3 index jumps": (lambda attack: attack.ring.show(SIZE + 1), "avail_jump"),
    "H2.4 index goes backwards": (lambda attack: attack.ring.show(0xFFFF), "avail_jump"),
    "H2.6 more heads than places": (lambda attack: attack.ring.show(2 * SIZE), "avail_jump"),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", STOPS)
def test_a_ring_that_cannot_be_trusted_stops_its_port_alone(path, case):
    write, fault = STOPS[case]
    with Attack(path) as attack:
        write(attack)
        attack.step()
        assert attack.vm.fault == fault
        assert attack.ring.errors() == 1
        assert attack.rig.events() == [(state.EVENT_FAULT, attack.vm.number, FAULT[fault])]
        before = attack.vm.memory.contents()
        attack.ring.show(attack.ring.index + 1)  # whatever the driver does now
        shown = attack.vm.memory.contents()
        attack.step()
        assert attack.vm.memory.contents() == shown != before
        assert attack.rig.events() == []
        assert attack.ring.errors() == 0


def one(address: Callable[[Attack], int], length: int, flags: int = 0) -> Callable[[Attack], None]:
    """A chain of one descriptor."""

    def write(attack: Attack) -> None:
        attack.entry(0, address(attack), length, flags)

    return write


def good(attack: Attack) -> int:
    return attack.buffer


def chain_of(*buffers: tuple[int, int, int]) -> Callable[[Attack], None]:
    """A direct chain of (address, length, flags); address 0 stands for a good one."""

    def write(attack: Attack) -> None:
        for place, (address, length, flags) in enumerate(buffers):
            last = place == len(buffers) - 1
            attack.entry(place, address or attack.buffer, length, flags | (0 if last else NEXT), place + 1)

    return write


def table_of(
    length: int, *entries: tuple[int, int, int], flags: int = 0, table: int | None = None
) -> Callable[[Attack], None]:
    """A chain in an indirect table of `length` bytes."""

    def write(attack: Attack) -> None:
        for place, (address, size, own) in enumerate(entries):
            attack.nested(place, address or attack.buffer, size, own, place + 1)
        attack.indirect(length, flags, table)

    return write


BAD_ADDRESS = {
    "H3.1 unmapped": one(lambda _: UNMAPPED, 64),
    "H3.1 the first address beyond 2^63": one(lambda _: 1 << 63, 64),
    "H3.1 the last address": one(lambda _: (1 << 64) - 1, 64),
    "H3.2 past the end of the region": one(lambda _: 0x60000 - 63, 64),
    "H3.3 wraps 2^64": one(lambda _: (1 << 64) - 32, 64),
    "H3.5 across a hole": one(lambda _: 0x38000 - 32, 64),
    "H3.6 empty, at a bad address": chain_of((0, 100, 0), (UNMAPPED, 0, 0)),
    "H4.1 the greatest length": one(good, 0xFFFFFFFF),
    "H4.3 total beyond 2^32": chain_of((0, 64, 0), (0, 0xFFFFFFFF, 0), (0, 0xFFFFFFFF, 0)),
    "a table of one bad entry": table_of(16, (UNMAPPED, 64, 0)),
}
BAD_TABLE = {
    "H8.1 empty table": table_of(0, (0, 64, 0)),
    "H8.2 not whole entries": table_of(24, (0, 64, 0)),
    "H8.2 less than one": table_of(15, (0, 64, 0)),
    "H8.3 more than 65536": table_of(16 * 65537, (0, 64, 0)),
    "H8.3 the greatest": table_of(0xFFFFFFF0, (0, 64, 0)),
    "H8.4 nested": table_of(16, (0, 64, INDIRECT)),
    "H8.5 with NEXT": table_of(16, (0, 64, 0), flags=NEXT),
    "H8.6 outside guest memory": table_of(16, table=UNMAPPED),
    "H8.6 beyond 2^63": table_of(16, table=(1 << 64) - 16),
    "H8.7 across a hole": table_of(16, table=0x38000 - 8),
}


def turned(attack: Attack) -> None:
    attack.ring.describe(0, attack.buffer, 64, attack.own ^ WRITE)


def mixed(attack: Attack) -> None:
    attack.ring.describe(0, attack.buffer, 64, attack.own | NEXT, 1)
    attack.ring.describe(1, attack.buffer, 64, attack.own ^ WRITE)


DIRECTION = {"H5.1, H5.2, H5.4 the other direction": turned, "H5.3 mixed": mixed}
DROPS = {
    **{case: (write, "from_guest_bad_address") for case, write in BAD_ADDRESS.items()},
    **{case: (write, "from_guest_indirect") for case, write in BAD_TABLE.items()},
    **{case: (write, "from_guest_direction") for case, write in DIRECTION.items()},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", DROPS)
def test_an_unusable_chain_is_one_drop_and_comes_back_empty(path, case):
    write, name = DROPS[case]
    with Attack(path) as attack:
        write(attack)
        attack.ring.offer(0)
        attack.step()
        assert attack.vm.fault == "none"
        expected = "to_guest_bad_buffer" if attack.to_guest else name
        drops = attack.drops()
        assert drops.pop(expected) == 1
        assert set(drops) <= {"to_guest_no_buffer"}
        assert [(head, length) for head, length, _ in attack.ring.harvest()] == [(0, 0)]
        works_again(attack)


def works_again(attack: Attack) -> None:
    """The port goes on: one good chain is one frame."""
    attack.entry(0, attack.buffer, 212 if not attack.to_guest else 2048)
    attack.ring.offer(0)
    attack.step()
    ((head, length, _),) = attack.ring.harvest()
    assert (head, length) == (0, 212 if attack.to_guest else 0)


@pytest.mark.parametrize("path", PATHS)
def test_indirect_tables_are_refused_when_they_were_not_negotiated(path):
    with Attack(path) as attack:
        attack.ring.features &= ~INDIRECT_TABLES
        attack.rig.publish()
        table_of(16, (0, 2048, 0))(attack)
        attack.ring.offer(0)
        attack.step()
        assert ("to_guest_bad_buffer" if attack.to_guest else "from_guest_indirect") in attack.drops()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "table", [None, 0x30000 - 8], ids=["within a region", "across adjacent regions (H8.7)"]
)
@pytest.mark.parametrize("ahead", [0, 1], ids=["alone", "after normal descriptors"])
def test_indirect_tables_work(path, table, ahead):
    """virtio-1.2 §2.7.5.3.1: also behind normal descriptors of the same chain."""
    with Attack(path) as attack:
        attack.table = table or attack.table
        lengths = [150, 200] if attack.to_guest else [100, 112]
        places = [attack.buffer, attack.buffer + lengths[0]]
        start = ahead
        if ahead:
            attack.entry(0, places[0], lengths[0], NEXT, 1)
        for place, (address, length) in enumerate(list(zip(places, lengths, strict=True))[ahead:]):
            attack.nested(place, address, length, NEXT if ahead + place == 0 else 0, place + 1)
        attack.ring.describe(start, attack.table, 16 * (2 - ahead), INDIRECT)
        attack.ring.offer(0)
        before = int(attack.neighbour.books()["frames_to_guest"])
        attack.step()
        assert [(head, length) for head, length, _ in attack.ring.harvest()] == [
            (0, 212 if attack.to_guest else 0)
        ]
        if attack.to_guest:
            assert attack.vm.memory.read(attack.buffer, 212)[HEADER:] == frame(A, C, 200)
        else:
            assert int(attack.neighbour.books()["frames_to_guest"]) == before + 33
            assert frame(B, A, 200) in attack.neighbour.received()


@pytest.mark.parametrize("path", PATHS)
def test_an_empty_buffer_at_a_good_address_is_legal(path):
    """H3.7."""
    with Attack(path) as attack:
        length = 1000 if attack.to_guest else 200
        chain_of((0, 0, 0), (0, 12, 0), (0, 0, 0))(attack)
        attack.entry(2, attack.buffer, 0, NEXT, 3)
        attack.entry(3, attack.buffer + 12, length)
        attack.ring.offer(0)
        attack.step()
        assert [(head, length) for head, length, _ in attack.ring.harvest()] == [
            (0, 212 if attack.to_guest else 0)
        ]
        assert set(attack.drops()) <= {"to_guest_no_buffer"}


@pytest.mark.parametrize("path", PATHS)
def test_one_head_offered_twice_is_two_chains(path):
    """H2.5."""
    with Attack(path) as attack:
        attack.entry(0, attack.buffer, 2048 if attack.to_guest else 212)
        attack.ring.offer(0)
        attack.ring.offer(0)
        attack.step()
        assert [head for head, _, _ in attack.ring.harvest()] == [0, 0]
        assert attack.vm.fault == "none"


@pytest.mark.parametrize("path", PATHS)
def test_a_chain_of_as_many_bytes_as_descriptors_works(path):
    """H4.4: one byte a descriptor, as many as the ring has."""
    with Attack(path) as attack:
        attack.vm.memory.write(attack.buffer, bytes(HEADER) + frame(B, A, SIZE - HEADER))
        for place in range(SIZE):
            attack.entry(place, attack.buffer + place, 1, NEXT if place < SIZE - 1 else 0, place + 1)
        attack.ring.offer(0)
        attack.step()
        if attack.to_guest:
            assert attack.drops() == {
                "to_guest_no_buffer" if path.endswith("mergeable") else "to_guest_too_long": 32
            }
        else:
            assert frame(B, A, SIZE - HEADER) in attack.neighbour.received()


@pytest.mark.parametrize("count", [8191, 8192])
def test_more_pieces_than_a_round_has_are_a_named_drop(count):
    """A direct chain is bounded by the queue size, and by PIECES."""
    with Rig() as rig:
        vm = rig.vm(A, size=16384, regions=[(0x10000, 1 << 21)], frame_max=65535)
        start = vm.memory.allocate(16384)
        vm.memory.write(start, bytes(HEADER) + frame(B, A, 9000))
        vm.from_guest.chain([(start + place, 1) for place in range(count)])
        rig.publish()
        rig.step()
        assert vm.sent_drops() == {"from_guest_too_long" if count > 8190 else "no_filter": 1}
        assert vm.sent() == [(0, 0)]


# --- indices and notifications -------------------------------------------------------------------------------


@pytest.fixture
def idle() -> Any:
    """A VM with empty rings."""
    with Rig() as rig:
        yield rig, lambda features=ALL_FEATURES: started(rig, features)


def started(rig: Rig, features: int) -> Vm:
    vm = rig.vm(A, features=features)
    rig.publish()
    return vm


@pytest.mark.parametrize("begin", [0, 1, 100, 65535 - SIZE, 65530, 65535])
@pytest.mark.parametrize("ahead", [0, 1, SIZE - 1, SIZE, SIZE + 1, 65535])
def test_available_counts_modulo_65536(idle, begin, ahead):
    rig, start = idle
    vm = start()
    _, _, _, vq, ring = rig.rows(vm, to_guest=False)
    ring["next_avail"] = begin
    vm.from_guest.show(begin + ahead)
    expected = ahead if ahead <= SIZE else -1 - reasons.FAULT_BASE - reasons.AVAIL_JUMP
    assert int(available(vq, ring)) == expected


U16 = st.integers(0, 0xFFFF)


def need_event(event: int, new: int, old: int) -> bool:
    """virtio-1.2 §2.7.7.1 in unbounded integers: is `event` among old … new - 1?"""
    return any((old + step) & 0xFFFF == event for step in range((new - old) & 0xFFFF))


@given(
    old=U16,
    count=st.integers(0, SIZE),
    event=st.one_of(st.integers(-2, SIZE + 2), U16),
    relative=st.booleans(),
)
def test_with_event_idx_the_driver_is_called_when_its_event_was_passed(old, count, event, relative):
    with Rig() as rig:
        vm = started(rig, EVENT_IDX)
        _, _, _, vq, ring = rig.rows(vm, to_guest=False)
        ring["next_used"] = ring["shown"] = ring["next_avail"] = old
        wanted = (old + event if relative else event) & 0xFFFF
        vm.from_guest.set_used_event(wanted)
        vm.from_guest.set_flags(1)  # without a meaning here
        for index in range(count):
            give_back(vq, ring, int64(index), int64(index))
        new = (old + count) & 0xFFFF
        assert bool(publish(vq, ring)) == need_event(wanted, new, old)
        assert vm.from_guest.used_index == (new if count else 0)
        assert int(ring["shown"]) == int(ring["next_used"]) == int(ring["next_avail"]) == new


@pytest.mark.parametrize(("flags", "called"), [(0, True), (1, False), (0xFFFE, True), (0xFFFF, False)])
def test_without_event_idx_the_driver_is_called_unless_its_flag_is_set(idle, flags, called):
    rig, start = idle
    vm = start(MERGEABLE)
    _, _, _, vq, ring = rig.rows(vm, to_guest=False)
    vm.from_guest.set_flags(flags)
    vm.from_guest.set_used_event(5)
    assert not publish(vq, ring), "nothing to show"
    give_back(vq, ring, int64(0), int64(0))
    assert bool(publish(vq, ring)) == called
    assert not publish(vq, ring), "once"


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_the_first_indication_of_a_ring_is_sent_in_any_case(idle, features):
    """The driver may have set what suppresses it for the device before us."""
    rig, start = idle
    vm = start(features)
    _, _, _, vq, ring = rig.rows(vm, to_guest=False)
    vm.from_guest.set_flags(1)
    vm.from_guest.set_used_event(0x8000)
    ring["first"] = 1
    for expected in (True, False):
        give_back(vq, ring, int64(0), int64(0))
        assert bool(publish(vq, ring)) == expected


def test_kicks_are_asked_for_and_refused_by_event_index(idle):
    """virtio-1.2 §2.7.10: avail_event is what we look for next; a buffer that came meanwhile is noticed."""
    rig, start = idle
    vm = start(EVENT_IDX)
    _, _, _, vq, ring = rig.rows(vm, to_guest=False)
    ring["next_avail"] = 65535
    vm.from_guest.show(65535)
    assert not ask_for_kicks(vq, ring)
    assert vm.from_guest.avail_event == 65535
    assert int(ring["asleep"]) == 1
    refuse_kicks(vq, ring)
    assert int(ring["asleep"]) == 0
    assert vm.from_guest.used_flags == 0
    vm.from_guest.show(0)
    assert ask_for_kicks(vq, ring)


def test_kicks_are_asked_for_and_refused_by_flag(idle):
    rig, start = idle
    vm = start(MERGEABLE)
    _, _, _, vq, ring = rig.rows(vm, to_guest=False)
    refuse_kicks(vq, ring)
    assert vm.from_guest.used_flags == 1
    assert not ask_for_kicks(vq, ring)
    assert vm.from_guest.used_flags == 0


@pytest.mark.parametrize("begin", [0, 65500, 65535])
def test_used_elements_stand_where_the_driver_looks(begin):
    """virtio-1.2 §2.7.8: heads and lengths in the order of completion, across the wrap of index and of ring."""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, B, 60 + n) for n in range(40)], laps=3)
        vm = rig.vm(A, uplink=wire)
        vm.to_guest.reset(begin)
        vm.from_guest.reset(begin)
        vm.begin()
        rig.publish()
        lengths = []
        for _ in range(3):
            vm.post(len(vm.to_guest.free), 128)
            rig.step()
            lengths += [len(data) for data in vm.received()]
        assert lengths == [(60 + n % 40) for n in range(120)]
        assert vm.to_guest.used_index == (begin + 120) & 0xFFFF


@interpreted
@example([(0, 0, REGION_END - 100, 101)], 0)
@example([(0, 0, REGION_END - 100, 100)], 0)
@example([(0, WRITE, REGION_END - 100, 100), (1, WRITE, 0x10000, 64)], 0xFFFF)
@given(
    offered=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 15, 16, 0xFFFF]),
            st.sampled_from([0, 0, WRITE, WRITE, NEXT, INDIRECT, 8]),
            st.sampled_from([0x20000, 0x10000, REGION_END - 100, REGION_END - 1, REGION_END, 0, 1 << 63]),
            st.sampled_from([0, 1, 100, 1514, 0xFFFFFFFF]),
        ),
        max_size=16,
    ),
    index=st.sampled_from([0, 9, 0xFFFF]),
)
def test_what_is_read_ahead_is_what_a_walk_finds(offered, index):
    """A chain that counts as simple is one piece to `walk`, the same; nothing is taken."""
    for to_guest in (True, False):
        with Rig() as rig:
            vm = rig.vm(A, size=16)
            virtqueue = vm.to_guest if to_guest else vm.from_guest
            virtqueue.reset(index)
            vm.begin()
            for head, flags, where, length in offered:
                virtqueue.describe(head % 16, where, length, flags, 1)
                virtqueue.offer(head)
            rig.publish()
            tables, worker, port, vq, ring = rig.rows(vm, to_guest=to_guest)
            own, chains = WRITE if to_guest else 0, np.zeros(16, state.chain)
            read_ahead(tables, port, vq, ring, own, chains, len(offered))
            assert int(ring["next_avail"]) == index
            for place, (head, *_) in enumerate(offered):
                pieces = np.zeros(8, state.piece)
                worker["steps_left"] = 100
                count = int(walk(tables, worker, port, vq, ring, head, int(to_guest), pieces, 0))
                found = [(int(chains[place]["address"]), int(chains[place]["length"]))]
                simple = count == 1 and struct.unpack(
                    "<H", vm.memory.read(virtqueue.desc + 16 * head + 12, 2)
                ) == (own,)
                assert int(chains[place]["head"]) == head
                assert found == pieces[:1].tolist() if simple else found[0][0] == 0
