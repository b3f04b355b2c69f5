# SPDX-License-Identifier: Apache-2.0
"""Guest memory that is not: addresses and lengths (H3), sizes (H4), the memory table and its files (H20)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.arena import WAYS, Arena, Way, frame, until
from tests.hostile.attack import Attack, exchange
from vmq.abi.vhost_user import MEM_REG, MEMORY, MEMORY_REGION, Request
from vmq.dataplane.reasons import FAULTS, MEMORY_GONE
from vmq.errors import ProtocolError
from vmq.guest.guest import Guest
from vmq.guest.memory import PAGE
from vmq.guest.traffic import Traffic

each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
MIB = 1 << 20
HOLE = [(0, 4 * MIB), (16 * MIB, MIB)]
OUTSIDE = [64 * MIB, (1 << 63) - 64, 1 << 63, (1 << 64) - 64]


def bad(way: Way) -> str:
    return "to_guest_bad_buffer" if way.to_guest else "from_guest_bad_address"


# --- H3: addresses and lengths --------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("behind", [False, True], ids=["alone", "behind_a_good_one"])
@pytest.mark.parametrize(
    ("address", "length"),
    [
        *(pytest.param(address, 64, id=f"h3_1_unmapped_{address:#x}") for address in OUTSIDE),
        pytest.param(4 * MIB - 8, 64, id="h3_2_past_the_end"),
        pytest.param(17 * MIB - 1, 2, id="h3_2_past_the_last_end"),
        pytest.param((1 << 64) - 8, 64, id="h3_3_wraps"),
        pytest.param((1 << 64) - 1, 1, id="h3_3_ends_at_2_to_the_64"),
        pytest.param(4 * MIB - 50, 12 * MIB + 100, id="h3_5_over_a_hole"),
        *(pytest.param(address, 0, id=f"h3_6_empty_{address:#x}") for address in OUTSIDE),
        pytest.param(0, 0xFFFFFFFF, id="h4_1_longest"),
    ],
)
def test_h3_and_h4_1_what_is_not_guest_memory_is_dropped(
    attack: Attack, way: Way, address: int, length: int, behind: bool
):
    """Nothing is read or written, also where the length is 0 (H3.6)."""
    attack.on(way, regions=HOLE)
    chain = attack.buffers(way) if behind else []
    head = attack.launch(way, [*chain, (address, length, way.flags)])
    attack.dropped(way, head, bad(way))


@each_way
def test_h3_4_a_buffer_over_many_adjacent_regions_is_one_buffer(attack: Attack, way: Way):
    """Regions of 64 bytes, one behind the other: a frame of 1400 bytes spans 23 of them."""
    regions = [(0, 4 * MIB), *((4 * MIB + 64 * i, 64) for i in range(64))]
    attack.on(way, regions=regions)
    memory, packet = attack.guest().memory, attack.packet(way, 1400)
    place = 4 * MIB - 50
    if not way.to_guest:
        memory.write(place, packet)
    chain = [(place, len(packet), way.flags)]
    attack.launch(way, chain, size=1400)
    attack.accepted(way, chain, size=1400)


@each_way
@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "between", "last"])
def test_h3_7_an_empty_segment_in_guest_memory_is_accepted(attack: Attack, way: Way, place: int):
    attack.on(way)
    chain = attack.buffers(way, 12)
    chain.insert(place, (attack.guest().memory.allocate(64), 0, way.flags))
    attack.launch(way, chain)
    attack.accepted(way, chain)


# --- H4: sizes ------------------------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize(
    ("length", "count"), [(2048, 40), (17 * MIB, 256)], ids=["h4_2_above_65535", "h4_3_above_2_to_the_32"]
)
def test_h4_2_and_h4_3_the_total_of_a_chain_does_not_wrap(attack: Attack, way: Way, length: int, count: int):
    """Too long a frame from a guest is dropped; too large a receive buffer is only large."""
    attack.on(way, room=18 * MIB)
    chain = [(attack.guest().memory.allocate(length), length, way.flags)] * count
    head = attack.launch(way, chain)
    if way.to_guest:
        attack.accepted(way, chain[:1])
    else:
        attack.dropped(way, head, "from_guest_too_long")


@each_way
@pytest.mark.parametrize("size", [256, 1024])
def test_h4_4_a_chain_of_as_many_bytes_as_descriptors_is_accepted(attack: Attack, way: Way, size: int):
    """`size` descriptors of one byte each; the packet header lies in 12 of them."""
    attack.on(way, size=size, room=MIB)
    chain = attack.buffers(way, *[1] * (size - 1), size=size - 12)
    attack.launch(way, chain, size=size - 12)
    attack.accepted(way, chain, size=size - 12)


# --- H20: the memory table ------------------------------------------------------------------------------------

TOP = 1 << 63
Region = tuple[int, int, int, int]


def own_region(guest: Guest) -> Region:
    region = guest.memory.regions[0]
    return region.guest, region.size, region.own, region.offset


def table(*regions: Region) -> bytes:
    return MEMORY.pack(len(regions), 0) + b"".join(MEMORY_REGION.pack(*region) for region in regions)


def refuses(attack: Attack, request: Request, payload: bytes, fds: list[int]) -> None:
    """Class *refuse*: an error reply, no descriptor kept, and everything goes on as before."""
    guest, before = attack.guest(), attack.arena.size()
    with pytest.raises(ProtocolError, match="refused"):
        guest.frontend.tell(request, payload, fds)
    assert attack.arena.size() == before
    assert attack.row["last_error"]["what"]
    assert attack.row["state"] == "running"
    exchange(guest, attack.peer, ("attacker", "peer"))


@pytest.mark.parametrize(
    "region",
    [
        pytest.param((64 * MIB, 0, TOP // 2, 0), id="h20_4_size_0"),
        pytest.param((64 * MIB, 0x1000, TOP // 2, (1 << 64) - 0x1000), id="h20_5_offset_wraps"),
        pytest.param((64 * MIB, (1 << 64) - 1, TOP // 2, 1), id="h20_5_size_wraps"),
        pytest.param(((1 << 64) - 0x1000, 0x2000, TOP // 2, 0), id="h20_5_guest_address_wraps"),
        pytest.param((TOP, 0x1000, TOP // 2, 0), id="h20_5_guest_address_2_to_the_63"),
        pytest.param((0x1000, 0x1000, TOP // 2, 0), id="h20_6_overlaps"),
        pytest.param((64 * MIB, 64 * MIB, TOP // 2, 0), id="h20_8_larger_than_its_file"),
    ],
)
def test_h20_4_to_h20_8_regions_that_cannot_be_are_refused(attack: Attack, region: Region):
    """One more region, and a whole table with it."""
    guest = attack.guest()
    refuses(attack, Request.ADD_MEM_REG, MEM_REG.pack(0, *region), [guest.memory.fd])
    refuses(attack, Request.SET_MEM_TABLE, table(own_region(guest), region), [guest.memory.fd] * 2)


@pytest.mark.parametrize("count", [0, 9, 2**32 - 1], ids=["h20_1_none", "h20_2_nine", "h20_3_all"])
def test_h20_1_to_h20_3_tables_of_a_wrong_number_of_regions_are_refused(attack: Attack, count: int):
    """Without so many descriptors, and with as many as a message carries."""
    guest = attack.guest()
    rows = b"".join(MEMORY_REGION.pack(i << 30, 0x1000, TOP // 2, 0) for i in range(min(count, 8)))
    for fds in (0, min(count, 8)):
        refuses(attack, Request.SET_MEM_TABLE, MEMORY.pack(count, 0) + rows, [guest.memory.fd] * fds)


def test_h20_7_and_h20_10_a_region_that_is_there_may_come_again_a_thousand_times(attack: Attack):
    """H20.7, H20.10: QEMU 7.2 sends each once a queue pair; nothing grows."""
    guest = attack.guest()
    region = MEM_REG.pack(0, *own_region(guest))
    before = attack.arena.size()
    for _ in range(1000):
        guest.frontend.tell(Request.ADD_MEM_REG, region, [guest.memory.fd])
    assert attack.arena.size() == before
    guest.frontend.tell(Request.SET_MEM_TABLE, table(*[own_region(guest)] * 2), [guest.memory.fd] * 2)
    exchange(guest, attack.peer, ("attacker", "peer"))


def test_h20_11_removing_an_unknown_region_changes_nothing(attack: Attack):
    guest = attack.guest()
    before = attack.arena.size()
    for _ in range(2):
        guest.frontend.tell(Request.REM_MEM_REG, MEM_REG.pack(0, 64 * MIB, 0x1000, 64 * MIB, 0))
    assert attack.arena.size() == before
    exchange(guest, attack.peer, ("attacker", "peer"))


def test_h20_12_a_table_swapped_under_traffic_loses_nothing(attack: Attack):
    """Queues quiesce, addresses are translated anew, then they go on. As one region, and cut into three."""
    guest, peer = attack.guest(size=1024, room=MIB), attack.peer
    front, (gpa, size, own, offset) = guest.frontend, own_region(guest)
    low = guest.virtqueue(to_guest=True).buffers_guest + 5 * PAGE
    high = guest.virtqueue().buffers_guest + 5 * PAGE
    cuts = [0, low, high, size]
    parts = [(gpa + a, b - a, own + a, offset + a) for a, b in itertools.pairwise(cuts)]
    lists = [
        [frame(to, source, n) for n in range(64)]
        for to, source in (("attacker", "peer"), ("peer", "attacker"))
    ]
    with (
        Traffic(guest, *lists, rate=2000) as ours,
        Traffic(peer, *lists[::-1], rate=500, window=64) as theirs,
    ):
        for regions in [parts, [(gpa, size, own, offset)]] * 20:
            front.tell(Request.SET_MEM_TABLE, table(*regions), [guest.memory.fd] * len(regions))
        until(lambda: all(one.counters()["verified"] > 50 for one in (ours, theirs)))
    for one in (ours, theirs):
        counters = one.counters()
        assert [counters[name] for name in ("wrong", "out_of_place", "stray", "broken", "bad")] == [0] * 5
    assert ours.counters()["missing"] == 0
    assert attack.row["state"] == "running"


# --- H20.9: files that shrink ---------------------------------------------------------------------------------


@pytest.fixture
def own_attack(tmp_path: Path) -> Iterator[Attack]:
    """An engine for this test alone: what it does may end a process."""
    with Arena(tmp_path) as arena:
        one = Attack(arena)
        try:
            yield one
        finally:
            one.close()


def gone(attack: Attack) -> None:
    """The port is stopped in words, nobody else is, and a front-end that comes again finds it working."""
    attack.arena.engine.wait_for(attack.name, "faulted")
    row = until(lambda: attack.row["last_error"] and attack.row, "words for it")
    assert row["last_error"]["what"] == FAULTS[MEMORY_GONE][1]
    attack.arena_neighbours.advance(20)
    attack.arena.alive()
    attack.close()
    attack.recovered()
    attack.close()


@pytest.mark.parametrize("keep", ["nothing", "receive_rings", "all_rings"])
def test_h20_9_a_file_truncated_while_frames_flow_stops_that_port_only(own_attack: Attack, keep: str):
    """SIGBUS in the middle of both directions; contained several times in a row, and no fault of ours."""
    for _ in range(4):
        guest = own_attack.guest(size=1024, sealed=False, room=MIB)
        incoming, outgoing = guest.virtqueue(to_guest=True), guest.virtqueue()
        kept = {"nothing": 0, "receive_rings": incoming.buffers_guest, "all_rings": outgoing.buffers_guest}[
            keep
        ]
        slots = outgoing.take_slots(1024)
        for slot in slots:
            outgoing.describe(slot, outgoing.buffer(slot), 12 + 1400)
        with Traffic(
            own_attack.peer, transmit=[frame("attacker", "peer", n, 1400) for n in range(64)], poll=True
        ):
            outgoing.submit(slots[:512])
            os.ftruncate(guest.memory.fd, kept)
            if keep == "all_rings":  # ours to write still; the frames are not there any more
                outgoing.submit(slots[512:])
            own_attack.arena.engine.wait_for("attacker", "faulted")
        gone(own_attack)


def test_h20_9_a_file_truncated_before_the_rings_start_is_contained_too(own_attack: Attack):
    """The first to touch it is not a processor: the used index is read when a ring is handed over."""
    guest = own_attack.guest(start=False, sealed=False)
    front = guest.frontend
    front.connect()
    front.handshake(guest.features)
    front.set_features()
    front.set_memory(guest.memory)
    places = [virtqueue.place() for virtqueue in guest.virtqueues]
    os.ftruncate(guest.memory.fd, 0)
    for place in places:
        front.start_ring(place, 0)
        front.enable(place.index)
    gone(own_attack)


def test_h20_9_a_driver_reset_does_not_bring_lost_memory_back(own_attack: Attack):
    """Zero pages are no memory of the guest's: only a new mapping is."""
    guest = own_attack.guest(sealed=False)
    os.ftruncate(guest.memory.fd, 0)
    own_attack.arena.engine.wait_for("attacker", "faulted")
    front = guest.frontend
    for virtqueue in guest.virtqueues:
        front.stop_ring(virtqueue.index)
        front.start_ring(virtqueue.place(), 0)
        front.enable(virtqueue.index)
    gone(own_attack)
