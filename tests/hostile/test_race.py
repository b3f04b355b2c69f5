# SPDX-License-Identifier: Apache-2.0
"""Time of check, time of use (H9): a thread flips what the device reads, as fast as a processor can, while data flows.

Every outcome must follow from one value of each field. So a frame arrives in one of the forms that the values allow,
or is dropped by a name that they allow, or the port stops for a fault that they allow, and is started anew.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import pytest

from tests.conftest import INTERPRETED
from tests.hostile.arena import COUNTED, DIRECT_WAYS, MACS, PATIENCE, Way, frame
from tests.hostile.attack import Attack
from vmq.abi.layout import offset
from vmq.abi.virtio import NET_HDR_F_NEEDS_CSUM, vring_desc
from vmq.dataplane.reasons import AVAIL_JUMP, CHAIN_LOOP, FAULTS, NEXT_RANGE
from vmq.guest.driver import DESC, HEADER
from vmq.guest.guest import Guest
from vmq.guest.race import Flip, Race
from vmq.guest.rings import INDIRECT, NEXT, WRITE, Virtqueue
from vmq.guest.traffic import Traffic

SECONDS = 0.2
ENOUGH = (
    100 if INTERPRETED else 2000
)  # chains that the device must have seen in this time at least, or it goes on
NOWHERE = 1 << 40

DATA = frame("peer", "attacker", 1)
SHORT = DATA[:50]
OTHER = frame("peer", "attacker", 2)


class Churn:
    """A ring that is full again whenever the device has taken something: one chain, offered over and over."""

    def __init__(self, attack: Attack, ring: Virtqueue, head: int) -> None:
        self.attack, self.ring, self.chains = attack, ring, 0
        self.faults: set[str] = set()
        ring.entries[:] = head

    def step(self) -> None:
        """Offer what has come back; start anew what has stopped."""
        ring = self.ring
        before = int(ring.avail["idx"][0])
        after = (ring.used_index + ring.size) & 0xFFFF
        ring.avail["idx"] = after
        self.chains += (after - before) & 0xFFFF
        ring.kick()
        if select.select([ring.err_fd], [], [], 0)[0]:
            self._revive()

    def _revive(self) -> None:
        guest = self.attack.guest()
        os.eventfd_read(self.ring.err_fd)
        self.attack.arena.engine.wait_for("attacker", "faulted")
        deadline = time.monotonic() + PATIENCE
        while (row := self.attack.row)["last_error"] is None and time.monotonic() < deadline:
            time.sleep(0.001)
        self.faults.add(row["last_error"]["what"])
        guest.stop()
        for one in guest.virtqueues:
            one.base = one.used_index
            one.avail["idx"] = one.used_index
        guest.start()


def churn(attack: Attack, ring: Virtqueue, head: int, look: Callable[[], None] = lambda: None) -> Churn:
    """Offer for some time, and until the device has seen enough."""
    one = Churn(attack, ring, head)
    end, latest = time.monotonic() + SECONDS, time.monotonic() + PATIENCE
    while (time.monotonic() < end or one.chains < ENOUGH) and time.monotonic() < latest:
        one.step()
        look()
    assert one.chains >= ENOUGH
    return one


def explained(attack: Attack, one: Churn, drops: Collection[str], faults: Collection[int]) -> None:
    """Nothing but what one value of each field allows."""
    assert one.faults <= {FAULTS[code][1] for code in faults}
    moved = attack.moved("attacker")
    assert {key for key in moved if key not in COUNTED} <= {*drops, "to_guest_not_running"}
    attack.arena_neighbours.advance()


# --- what a guest sends ---------------------------------------------------------------------------------------


SELF = -1  # the head of the chain


def flip(ring: Virtqueue, head: int, which: int, field: str, other: int) -> Flip:
    """Let a field of the first or second descriptor of a chain change between its value and another."""
    index = int(ring.desc[head]["next"]) if which else head
    size = ring.desc.dtype[field].itemsize
    values = (int(ring.desc[index][field]), head if other == SELF else other)
    first, second = (value.to_bytes(size, "little") for value in values)
    return Flip(ring.field(index, field), first, second)


def flip_index(ring: Virtqueue) -> Flip:
    """The upper half of the available index."""
    return Flip(ring.avail_guest + 3, b"\0", b"\x90")


@dataclass(frozen=True)
class Case:
    """A field that flips in a chain of (packet header, frame), and its other value; what may come of it."""

    name: str
    which: int
    field: str
    other: int
    drops: frozenset[str] = frozenset()
    forms: tuple[bytes, ...] = (DATA,)
    faults: frozenset[int] = frozenset()


SENDER_CASES = [
    Case("addr", 1, "addr", NOWHERE, frozenset({"from_guest_bad_address"})),
    Case("len_short", 1, "len", 50, forms=(DATA, SHORT)),
    Case("len_runt", 1, "len", 13, frozenset({"from_guest_short"})),
    Case("len_huge", 1, "len", 2**32 - 1, frozenset({"from_guest_bad_address", "from_guest_too_long"})),
    Case("flags_write", 1, "flags", WRITE, frozenset({"from_guest_direction"})),
    Case("flags_indirect", 1, "flags", INDIRECT, frozenset({"from_guest_indirect"})),
    Case("flags_next", 0, "flags", 0, frozenset({"from_guest_short"})),
    Case("next_beyond", 0, "next", 65535, faults=frozenset({NEXT_RANGE})),
    # A descriptor that is visited again is read again, as if it were another: some headers, then the frame.
    Case(
        "next_loop", 0, "next", SELF, frozenset({"from_guest_source", "from_guest_too_long"}),
        faults=frozenset({CHAIN_LOOP}),
    ),
    Case("packet_header", 0, "", 0, frozenset({"from_guest_offload"})),
    Case("avail_idx", 0, "idx", 0, faults=frozenset({AVAIL_JUMP})),
]  # fmt: skip


def race(attack: Attack, ring: Virtqueue, head: int, flipped: Flip, forms: Collection[bytes]) -> Churn:
    """Flip, send, and look at every frame that arrives."""
    seen: set[bytes] = set()
    with Race(attack.guest().memory, [flipped]) as running:
        one = churn(attack, ring, head, lambda: seen.update(attack.peer.receive(1 << 16, 0)))
        assert running.rounds
    seen.update(attack.peer.receive(1 << 16, 0.05))
    assert seen <= set(forms)
    return one


@pytest.mark.parametrize("case", SENDER_CASES, ids=lambda case: case.name)
def test_h9_a_transmit_chain_that_changes_is_seen_once(attack: Attack, case: Case):
    guest = attack.guest(post=0)
    place = guest.memory.store(bytes(HEADER))
    ring = guest.virtqueue()
    head = ring.write_chain([(place, HEADER, 0), (guest.memory.store(DATA), len(DATA), 0)])
    if case.name == "packet_header":
        flipped = Flip(place, bytes(10), bytes([NET_HDR_F_NEEDS_CSUM, 1]) + b"\xff" * 8)
    else:
        flipped = (
            flip_index(ring) if case.field == "idx" else flip(ring, head, case.which, case.field, case.other)
        )
    one = race(attack, ring, head, flipped, case.forms)
    explained(attack, one, case.drops, case.faults)


INDIRECT_DROP = frozenset({"from_guest_indirect"})
TABLE_CASES = [
    Case("length_and_a_half", 0, "len", 2 * DESC + 8, INDIRECT_DROP),
    Case("length_short", 0, "len", DESC, faults=frozenset({NEXT_RANGE})),
    Case("place", 0, "addr", NOWHERE, INDIRECT_DROP),
    Case("flags", 0, "flags", INDIRECT | NEXT, INDIRECT_DROP),
]


def sender_with_table(attack: Attack) -> tuple[Virtqueue, int, int, list[int]]:
    """A chain in a table: ring, head, table, and the places of two frames, of which the table names the first."""
    guest = attack.guest(post=0)
    places = [guest.memory.store(data) for data in (bytes(HEADER), DATA, OTHER)]
    ring = guest.virtqueue()
    table = ring.write_table([(places[0], HEADER, 0), (places[1], len(DATA), 0)])
    return ring, ring.write_chain([(table, 2 * DESC, INDIRECT)]), table, places[1:]


@pytest.mark.parametrize("case", TABLE_CASES, ids=lambda case: case.name)
def test_h9_an_indirect_descriptor_that_changes_is_seen_once(attack: Attack, case: Case):
    ring, head, _, _ = sender_with_table(attack)
    one = race(attack, ring, head, flip(ring, head, case.which, case.field, case.other), case.forms)
    explained(attack, one, case.drops, case.faults)


def test_h8_8_a_table_that_is_rewritten_gives_one_frame_or_the_other(attack: Attack):
    """The result corresponds to one snapshot of the table."""
    ring, head, table, (first, second) = sender_with_table(attack)
    flipped = Flip(table + DESC, first.to_bytes(8, "little"), second.to_bytes(8, "little"))
    explained(attack, race(attack, ring, head, flipped, (DATA, OTHER)), (), ())


def test_h8_8_and_h8_4_a_table_that_becomes_nested_gives_the_frame_or_a_drop(attack: Attack):
    ring, head, table, _ = sender_with_table(attack)
    flipped = Flip(table + DESC + offset(vring_desc, "flags"), b"\0\0", INDIRECT.to_bytes(2, "little"))
    explained(attack, race(attack, ring, head, flipped, (DATA,)), INDIRECT_DROP, ())


# --- where frames go in a guest -------------------------------------------------------------------------------

RECEIVER_CASES = [
    Case("addr", 0, "addr", SELF),
    Case("addr_nowhere", 0, "addr", NOWHERE),
    Case("len_runt", 0, "len", 4),
    Case("len_huge", 0, "len", 2**32 - 1),
    Case("flags_read", 0, "flags", 0),
    Case("flags_indirect", 0, "flags", INDIRECT | NEXT),
    Case("flags_next", 0, "flags", WRITE | NEXT),
    Case("avail_idx", 0, "idx", 0),
]
RECEIVER_DROPS = ("to_guest_no_buffer", "to_guest_bad_buffer", "to_guest_too_long")


@pytest.mark.parametrize("way", [way for way in DIRECT_WAYS if way.to_guest], ids=lambda way: way.name)
@pytest.mark.parametrize("case", RECEIVER_CASES, ids=lambda case: case.name)
def test_h9_a_receive_chain_that_changes_is_seen_once(attack: Attack, way: Way, case: Case):
    """Only the two buffers that it may name are written to, whatever the length says meanwhile."""
    guest = attack.guest(post=0, mergeable=way.mergeable)
    ring = guest.virtqueue(to_guest=True)
    places = [guest.memory.allocate(4096) for _ in range(2)]
    head = ring.write_chain([(places[0], 2048, WRITE, 65535)])
    attack.watch(*((place, 2048) for place in places))
    other = places[1] if case.other == SELF else case.other
    flipped = flip_index(ring) if case.field == "idx" else flip(ring, head, 0, case.field, other)
    data = frame("attacker", "peer", 1, 1400)
    with Traffic(attack.peer, transmit=[data], poll=True), Race(guest.memory, [flipped]) as running:
        one = churn(attack, ring, head, lambda: time.sleep(0.0002))
        assert running.rounds
    explained(attack, one, RECEIVER_DROPS, (AVAIL_JUMP, NEXT_RANGE))
    for place in places:
        assert guest.memory.read(place, HEADER + 1400)[HEADER:] in (bytes(1400), data)


# --- the headers of frames ------------------------------------------------------------------------------------


class Receiver:
    """Looks at every frame that a guest gets: is it one that its filters and the spoof check let through?"""

    def __init__(self, guest: Guest, name: str) -> None:
        self.guest, self.own, self.frames = guest, bytes.fromhex(MACS[name].replace(":", "")), 0

    def look(self) -> None:
        for data in self.guest.receive(1 << 16, 0):
            self.frames += 1
            assert data[:6] == self.own, data[:20].hex()
            assert data[6:12] == SOURCE, data[:20].hex()
            kind, tci = struct.unpack(">HH", data[12:16])
            assert kind != 0x8100 or not tci & 0xFFF, data[:20].hex()


SOURCE = bytes.fromhex(MACS["attacker"].replace(":", ""))


def mac(name: str) -> bytes:
    return bytes.fromhex(MACS.get(name, name).replace(":", ""))


HEADER_FLIPS = {
    "destination": [(0, mac("peer"), mac("third"))],
    "destination_in_another_vlan": [(0, mac("peer"), mac("left"))],
    "source": [(6, SOURCE, mac("peer"))],
    "source_group": [(6, SOURCE[:1], b"\xff")],
    "vlan_tag": [(14, b"\0\0", b"\0\7")],
    "ethertype": [(12, b"\x81\0", b"\x08\0")],
    "ip_length": [(16, b"\0\x56", b"\xff\xff")],
    "all": [
        (0, mac("peer"), mac("third")),
        (6, SOURCE, mac("left")),
        (12, b"\x81\0", b"\x08\0"),
        (14, b"\0\0", b"\0\7"),
        (16, b"\0\x56", b"\xff\xff"),
    ],
}


HEADER_DROPS = ("from_guest_source", "from_guest_spoofed", "from_guest_vlan", "no_filter")


@pytest.mark.parametrize("layout", ["one_piece", "header_apart", "indirect"])
@pytest.mark.parametrize("name", HEADER_FLIPS)
def test_h9_no_receiver_sees_a_header_that_was_not_checked(attack: Attack, name: str, layout: str):
    """What is checked is what is delivered: destination, source, tag, EtherType; the rest is payload."""
    guest, receivers = attack.guest(post=0), [Receiver(attack.peer, "peer")]
    receivers.append(Receiver(attack.guest("third"), "third"))
    data = mac("peer") + SOURCE + b"\x81\0\0\0" + b"\0\x56" + bytes(82)
    place = guest.memory.store(bytes(HEADER) + data)
    body = place + HEADER
    ring = guest.virtqueue()
    if layout == "one_piece":
        head = ring.write_chain([(place, HEADER + len(data), 0)])
    else:
        chain = [(place, HEADER, 0), (body, 3, 0), (body + 3, 10, 0), (body + 13, len(data) - 13, 0)]
        head = ring.write_chain(chain, indirect=layout == "indirect")
    flips = [Flip(body + offset, *values) for offset, *values in HEADER_FLIPS[name]]

    def look() -> None:
        for one in receivers:
            one.look()

    with Race(guest.memory, flips) as running:
        one = churn(attack, ring, head, look)
        assert running.rounds
    time.sleep(0.02)
    look()
    assert receivers[0].frames
    explained(attack, one, HEADER_DROPS, ())
