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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from tests.conftest import INTERPRETED
from tests.hostile.arena import DIRECT_WAYS, MACS, PATIENCE, Attack, Way, frame
from vmq.abi.virtio import NET_HDR_F_NEEDS_CSUM
from vmq.dataplane.state import AVAIL_JUMP, CHAIN_LOOP, FAULTS, NEXT_RANGE
from vmq.guest.driver import DESC, HEADER
from vmq.guest.guest import Guest
from vmq.guest.race import Flip, Race
from vmq.guest.rings import INDIRECT, NEXT, WRITE, Virtqueue
from vmq.guest.traffic import Traffic

SECONDS = 0.25
ENOUGH = (
    100 if INTERPRETED else 2000
)  # chains that the device must have seen in this time at least, or it goes on
NOWHERE = 1 << 40

DATA = frame("peer", "attacker", 1)
SHORT = DATA[:50]


def words(value: int, other: int, size: int) -> tuple[bytes, bytes]:
    return value.to_bytes(size, "little"), other.to_bytes(size, "little")


class Churn:
    """A ring that is full again whenever the device has taken something: one chain, offered over and over."""

    def __init__(self, attack: Attack, ring: Virtqueue, head: int) -> None:
        self.attack, self.ring, self.faults, self.chains = attack, ring, set[str](), 0
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


def explained(attack: Attack, one: Churn, drops: set[str], faults: set[int]) -> None:
    """Nothing but what one value of each field allows."""
    assert one.faults <= {FAULTS[code][1] for code in faults}
    moved = attack.moved("attacker")
    assert {key for key in moved if key.startswith(("from_guest_", "to_guest_"))} <= drops | {
        "to_guest_not_running"
    }
    attack.arena_neighbours.advance()


# --- what a guest sends ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Fields that flip in a chain of (packet header, frame); what may come of it."""

    name: str
    flips: Callable[[Virtqueue, int], Sequence[tuple[int, bytes, bytes]]]  # address, two values
    drops: set[str]
    forms: tuple[bytes, ...] = (DATA,)
    faults: frozenset[int] = frozenset()


def second(ring: Virtqueue, head: int) -> int:
    return int(ring.desc[head]["next"])


SENDER_CASES = [
    Case("addr", lambda r, h: [(r.field(second(r, h), "addr"), *words(int(r.desc[second(r, h)]["addr"]), NOWHERE, 8))],
         {"from_guest_bad_address"}),
    Case("len_short", lambda r, h: [(r.field(second(r, h), "len"), *words(100, 50, 4))], set(), (DATA, SHORT)),
    Case("len_runt", lambda r, h: [(r.field(second(r, h), "len"), *words(100, 13, 4))], {"from_guest_short"}),
    Case("len_huge", lambda r, h: [(r.field(second(r, h), "len"), *words(100, 2**32 - 1, 4))],
         {"from_guest_bad_address", "from_guest_too_long"}),
    Case("flags_write", lambda r, h: [(r.field(second(r, h), "flags"), *words(0, WRITE, 2))], {"from_guest_direction"}),
    Case("flags_indirect", lambda r, h: [(r.field(second(r, h), "flags"), *words(0, INDIRECT, 2))],
         {"from_guest_indirect"}),
    Case("flags_next", lambda r, h: [(r.field(h, "flags"), *words(NEXT, 0, 2))], {"from_guest_short"}),
    Case("next_beyond", lambda r, h: [(r.field(h, "next"), *words(second(r, h), 65535, 2))], set(),
         faults=frozenset({NEXT_RANGE})),
    # A descriptor that is visited again is read again, as if it were another: some headers, then the frame.
    Case("next_loop", lambda r, h: [(r.field(h, "next"), *words(second(r, h), h, 2))],
         {"from_guest_source", "from_guest_too_long"}, faults=frozenset({CHAIN_LOOP})),
    Case("header", lambda r, h: [(int(r.desc[h]["addr"]), b"\0" * 10, bytes([NET_HDR_F_NEEDS_CSUM, 1]) + b"\xff" * 8)],
         {"from_guest_offload"}),
    Case("avail_idx", lambda r, h: [(r.avail_guest + 3, b"\0", b"\x90")], set(), faults=frozenset({AVAIL_JUMP})),
]  # fmt: skip


def race(
    attack: Attack, ring: Virtqueue, head: int, flips: Sequence[tuple[int, bytes, bytes]], forms
) -> Churn:
    """Flip, send, and look at every frame that arrives."""
    seen = set[bytes]()
    with Race(attack.guest().memory, [Flip(*one) for one in flips]) as running:
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
    one = race(attack, ring, head, case.flips(ring, head), case.forms)
    explained(attack, one, case.drops, set(case.faults))


TABLE_CASES = {
    "h8_8_table_address": (lambda ring, head, table: (table + DESC, *words(0, 0, 8)), set()),
    "table_length": (lambda ring, head, table: (ring.field(head, "len"), *words(2 * DESC, 2 * DESC + 8, 4)),
                     {"from_guest_indirect"}),
    "table_length_short": (lambda ring, head, table: (ring.field(head, "len"), *words(2 * DESC, DESC, 4)), set()),
    "table_place": (lambda ring, head, table: (ring.field(head, "addr"), *words(table, NOWHERE, 8)),
                    {"from_guest_indirect"}),
    "nested_flags": (lambda ring, head, table: (table + DESC + 12, *words(0, INDIRECT, 2)), {"from_guest_indirect"}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE_CASES)
def test_h9_and_h8_8_an_indirect_table_that_changes_is_seen_once(attack: Attack, name: str):
    """The result corresponds to one value of each word: one frame or the other (H8.8), or a named drop."""
    flip, drops = TABLE_CASES[name]
    guest = attack.guest(post=0)
    other = frame("peer", "attacker", 2)
    places = [guest.memory.store(data) for data in (bytes(HEADER), DATA, other)]
    ring = guest.virtqueue()
    table = ring.write_table([(places[0], HEADER, 0), (places[1], len(DATA), 0)])
    head = ring.write_chain([(table, 2 * DESC, INDIRECT)])
    address, *values = flip(ring, head, table)
    if name == "h8_8_table_address":
        values = list(words(places[1], places[2], 8))
    faults = {NEXT_RANGE} if name == "table_length_short" else set()
    one = race(attack, ring, head, [(address, *values)], (DATA, other))
    explained(attack, one, drops, faults)


# --- where frames go in a guest -------------------------------------------------------------------------------

RECEIVER_CASES = {
    "addr": lambda ring, h, other: (ring.field(h, "addr"), *words(int(ring.desc[h]["addr"]), other, 8)),
    "addr_nowhere": lambda ring, h, other: (
        ring.field(h, "addr"),
        *words(int(ring.desc[h]["addr"]), NOWHERE, 8),
    ),
    "len_runt": lambda ring, h, other: (ring.field(h, "len"), *words(2048, 4, 4)),
    "len_huge": lambda ring, h, other: (ring.field(h, "len"), *words(2048, 2**32 - 1, 4)),
    "flags_read": lambda ring, h, other: (ring.field(h, "flags"), *words(WRITE, 0, 2)),
    "flags_indirect": lambda ring, h, other: (ring.field(h, "flags"), *words(WRITE, INDIRECT | NEXT, 2)),
    "flags_next": lambda ring, h, other: (ring.field(h, "flags"), *words(WRITE, WRITE | NEXT, 2)),
    "avail_idx": lambda ring, h, other: (ring.avail_guest + 3, b"\0", b"\x90"),
}


@pytest.mark.parametrize("way", [way for way in DIRECT_WAYS if way.to_guest], ids=lambda way: way.name)
@pytest.mark.parametrize("name", RECEIVER_CASES)
def test_h9_a_receive_chain_that_changes_is_seen_once(attack: Attack, way: Way, name: str):
    """Only the two buffers that it may name are written to, whatever the length says meanwhile."""
    guest = attack.guest(post=0, mergeable=way.mergeable)
    ring = guest.virtqueue(to_guest=True)
    places = [guest.memory.allocate(4096) for _ in range(2)]
    head = ring.write_chain([(places[0], 2048, WRITE, 65535)])
    attack.watch(*((place, 2048) for place in places))
    with Traffic(attack.peer, transmit=[frame("attacker", "peer", 1, 1400)], poll=True):
        with Race(guest.memory, [Flip(*RECEIVER_CASES[name](ring, head, places[1]))]) as running:
            one = churn(attack, ring, head, lambda: time.sleep(0.0002))
            assert running.rounds
    drops = {"to_guest_no_buffer", "to_guest_bad_buffer", "to_guest_too_long"}
    explained(attack, one, drops, {AVAIL_JUMP, NEXT_RANGE, CHAIN_LOOP})
    for place in places:
        data = guest.memory.read(place, HEADER + 1400)
        assert data == bytes(len(data)) or data[HEADER:] == frame("attacker", "peer", 1, 1400)


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
    explained(attack, one, {"from_guest_source", "from_guest_spoofed", "from_guest_vlan"}, set())
