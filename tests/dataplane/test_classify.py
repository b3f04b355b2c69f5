# SPDX-License-Identifier: Apache-2.0
"""Which receive queue a frame is for, or where else it goes; against dictionaries and the truth table of VLANs."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.dataplane.rig import (
    BROADCAST,
    LINK_LOCAL,
    MULTICAST,
    NOBODY,
    A,
    B,
    C,
    D,
    Rig,
    frame,
    named,
)
from vmq.abi.ethernet import MAC_BROADCAST, mac_number, mac_text
from vmq.dataplane import state
from vmq.dataplane.classify import lookup, mac_at, slot_of
from vmq.jit import address_of, at, int64
from vmq.publisher import PortEntry, Publisher, Segment, UplinkEntry

SMALL = [(0x10000, 1 << 13)]


def test_a_mac_is_read_as_it_is_written():
    data = np.frombuffer(bytes.fromhex("0102030405ff") + bytes(2), np.uint8)
    assert int(mac_at(address_of(data))) == mac_number("01:02:03:04:05:ff")


def test_the_search_begins_inside_the_table_for_any_key():
    """No key, uplink or size makes a product that wraps, or a slot outside the table."""
    for key in (0, MAC_BROADCAST, (4095 << state.VID_SHIFT) | MAC_BROADCAST, 1 << 59):
        for uplink in (state.NONE, 0, 1, 1023):
            for mask in (7, 1023, (1 << 20) - 1):
                assert 0 <= int(slot_of(int64(key), int64(uplink), int64(mask))) <= mask


@pytest.mark.parametrize("count", [0, 1, 3, 60, 700])
def test_filters_are_found_and_nothing_else_is(count):
    """Against a dictionary: (MAC, VLAN id, uplink) → VM port, with many keys that differ in one part only."""
    rng = random.Random(count)
    macs = [rng.getrandbits(48) & ~1 for _ in range(max(count // 4, 1))]
    keys = {(rng.choice(macs), rng.choice((0, 1, 2, 4094)), rng.choice((-1, 0, 1))) for _ in range(count)}
    ports, model = [], {}
    for number, (mac, vlan, uplink) in enumerate(sorted(keys)):
        model[mac, vlan, uplink] = number
        ports.append(PortEntry(number, number, (0,), uplink, vlan, (mac,), 1514))
    uplinks = [UplinkEntry(number, (np.zeros(1, state.lane)[0],)) for number in range(2)]
    segment = Segment(1)
    try:
        publisher = Publisher(segment)
        publisher.publish(ports, uplinks)
        tables = at(int(segment.engine["tables"]), 1, state.tables)[0]
        for mac in macs:
            for vlan in (0, 1, 2, 3, 4094):
                for uplink in (-1, 0, 1, 2):
                    got = lookup(tables, int64(mac), int64(vlan), int64(uplink))
                    assert int(got) == model.get((mac, vlan, uplink), state.NONE)
        groups = {(vlan, uplink) for _, vlan, uplink in keys}
        found = [int(lookup(tables, int64(MAC_BROADCAST), int64(vlan), int64(up))) for vlan, up in groups]
        assert sorted(found) == list(range(len(groups)))
    finally:
        segment.close()


# --- the truth table of VLANs (vmq-semantics §5.2) -----------------------------------------------------------

TAGS = {"untagged": None, "priority": 0x6000, "VID 10": 0x600A, "VID 20": 0x0014}
REACHES = {0: {"untagged", "priority"}, 10: {"VID 10"}}


@pytest.mark.parametrize("vlan", REACHES)
@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("to", [A, BROADCAST, MULTICAST])
def test_a_frame_from_the_wire_reaches_the_port_of_its_vlan_only(vlan, tag, to):
    """With a VLAN the guest sees untagged frames; without one it sees a priority tag as it is."""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(to, B, vlan=TAGS[tag])])
        vm = rig.vm(A, uplink=wire, vlan=vlan)
        vm.post(2)
        rig.publish()
        rig.run()
        if tag in REACHES[vlan]:
            assert vm.received() == [frame(to, B, vlan=None if vlan else TAGS[tag])]
            assert rig.wire_drops() == {}
        else:
            assert vm.received() == []
            assert rig.wire_drops() == {"default_queue": 1}


@pytest.mark.parametrize("vlan", [0, 10])
@pytest.mark.parametrize("tag", TAGS)
def test_a_frame_from_a_guest_stays_in_the_vlan_of_its_port(vlan, tag):
    """Untagged and priority-tagged frames are in; a tag of the guest's own choice is not. The wire sees the VLAN."""
    with Rig() as rig:
        wire = rig.uplink(sink=1 << 12)
        sender = rig.vm(A, uplink=wire, vlan=vlan)
        neighbours = {
            number: rig.vm(mac, uplink=wire, vlan=number) for number, mac in ((0, B), (10, C), (20, D))
        }
        for one in neighbours.values():
            one.post(4)
        for to in (B, C, D, BROADCAST):
            sender.send(frame(to, A, vlan=TAGS[tag]))
        rig.publish()
        rig.run()
        if tag.startswith("VID"):
            assert sender.sent_drops() == {"from_guest_vlan": 4}
            assert rig.left() == []
            return
        priority = TAGS[tag] or 0
        inside = None if vlan else TAGS[tag]
        outside = priority | vlan if vlan else TAGS[tag]
        own = {0: B, 10: C}[vlan]
        assert neighbours[vlan].received() == [frame(to, A, vlan=inside) for to in (own, BROADCAST)]
        assert rig.left() == [frame(to, A, vlan=outside) for to in (B, C, D, BROADCAST) if to != own]
        assert all(one.received() == [] for number, one in neighbours.items() if number != vlan)


# --- where frames go -----------------------------------------------------------------------------------------


def test_unicast_reaches_the_one_port_that_its_filter_names():
    """Several filters a port; equal addresses on two uplinks are two filters."""
    with Rig() as rig:
        wires = [rig.uplink(frames=[frame(to, D) for to in (A, B, C, NOBODY)]) for _ in range(2)]
        first, second = rig.vm(A, B, uplink=wires[0]), rig.vm(A, uplink=wires[1])
        for vm in (first, second):
            vm.post(8)
        rig.publish()
        rig.run()
        assert first.received() == [frame(A, D), frame(B, D)]
        assert second.received() == [frame(A, D)]
        assert [rig.wire_drops(wire) for wire in wires] == [{"default_queue": 2}, {"default_queue": 3}]


@pytest.mark.parametrize("to", [BROADCAST, MULTICAST])
def test_a_flood_reaches_every_port_of_the_segment_but_its_sender(to):
    """A segment is an uplink and a VLAN; the frame goes to the wire as well, and is one frame in the books."""
    with Rig() as rig:
        wire, other = rig.uplink(sink=1 << 12), rig.uplink(sink=1 << 12)
        sender = rig.vm(A, uplink=wire)
        members = [rig.vm(B, uplink=wire), rig.vm(C, uplink=wire)]
        strangers = [rig.vm(B, uplink=wire, vlan=5), rig.vm(C, uplink=other), rig.vm(D)]
        for vm in [sender, *members, *strangers]:
            vm.post(2)
        sender.send(frame(to, A))
        rig.publish()
        rig.run()
        assert [vm.received() for vm in members] == [[frame(to, A)]] * 2
        assert [vm.received() for vm in [sender, *strangers]] == [[]] * 4
        assert (rig.left(wire), rig.left(other)) == ([frame(to, A)], [])
        assert [int(sender.books()["account"][name]) for name in ("forwarded", "copies")] == [1, 2]


def test_a_group_frame_without_members_is_a_named_drop():
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(BROADCAST, B)])
        alone = rig.vm(A)
        alone.send(frame(BROADCAST, A))
        rig.publish()
        rig.run()
        assert rig.wire_drops(wire) == {"default_queue": 1}
        assert alone.sent_drops() == {"no_filter": 1}


def test_unknown_unicast_of_a_guest_leaves_through_its_uplink_or_is_dropped():
    with Rig() as rig:
        wire = rig.uplink(sink=1 << 12)
        on_wire, inside = rig.vm(A, uplink=wire), rig.vm(B)
        on_wire.send(frame(NOBODY, A))
        inside.send(frame(NOBODY, B))
        rig.publish()
        rig.run()
        assert rig.left() == [frame(NOBODY, A)]
        assert inside.sent_drops() == {"no_filter": 1}
        assert [int(rig.lane_state()[name]) for name in ("frames_to_wire", "bytes_to_wire")] == [1, 60]


def test_a_neighbour_is_reached_without_the_wire_and_oneself_never():
    with Rig() as rig:
        wire = rig.uplink(sink=1 << 12)
        sender, neighbour = rig.vm(A, B, uplink=wire), rig.vm(C, uplink=wire)
        neighbour.post(2)
        sender.post(2)
        for to in (C, A, B):
            sender.send(frame(to, A))
        rig.publish()
        rig.run()
        assert neighbour.received() == [frame(C, A)]
        assert sender.received() == rig.left() == []
        assert sender.sent_drops() == {"own_address": 2}


@pytest.mark.parametrize("forward", [False, True])
def test_link_local_frames_cross_where_the_uplink_says_so(forward):
    """ieee-802.1Q §8.6.3: 01:80:c2:00:00:00 to 0f; 10 and above are ordinary groups."""
    groups = [f"01:80:c2:00:00:{last:02x}" for last in (0, 0xF)]
    with Rig() as rig:
        wire = rig.uplink(
            frames=[frame(to, D) for to in [*groups, "01:80:c2:00:00:10"]],
            sink=1 << 12,
            forward_link_local=forward,
        )
        sender, inside, member = rig.vm(A, uplink=wire), rig.vm(B), rig.vm(C, uplink=wire)
        rig.vm(D)
        member.post(8)
        sender.send(frame(LINK_LOCAL, A))
        inside.send(frame(LINK_LOCAL, B))
        rig.publish()
        rig.run()
        assert inside.sent_drops() == {"link_local": 1}
        if forward:
            assert member.received() == [frame(to, D) for to in [*groups, "01:80:c2:00:00:10"]] + [
                frame(LINK_LOCAL, A)
            ]
            assert rig.left() == [frame(LINK_LOCAL, A)]
        else:
            assert member.received() == [frame("01:80:c2:00:00:10", D)]
            assert rig.left() == []
            assert rig.wire_drops() == {"link_local": 2}
            assert sender.sent_drops() == {"link_local": 1}


def test_a_round_takes_no_more_frames_than_its_floods_have_room_for():
    """DELIVERIES bounds (frame, receive queue) pairs: with many members a round takes fewer frames."""
    members = 140
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(BROADCAST, D)] * 64)
        for number in range(members):
            rig.vm(mac_text(0x10 + (number << 16)), uplink=wire, regions=SMALL, size=4)
        rig.publish()
        rig.step()
        taken = state.DELIVERIES // members
        assert int(rig.lane_state()["frames_from_wire"]) == taken < state.BURST
        assert int(rig.lane_state()["account"]["copies"]) == taken * members
        assert all(named(vm.books()["to_guest_drops"]) == {"to_guest_no_buffer": taken} for vm in rig.vms)


def test_deliveries_of_one_queue_are_in_the_order_of_the_burst():
    """Whatever stands between them for other queues."""
    with Rig() as rig:
        burst = [
            frame(to, D, 60 + place) for place, to in enumerate([A, B, BROADCAST, B, A, A, BROADCAST, B] * 4)
        ]
        wire = rig.uplink(frames=burst)
        vms = {mac: rig.vm(mac, uplink=wire) for mac in (A, B)}
        for vm in vms.values():
            vm.post(40)
        rig.publish()
        rig.step()
        for mac, vm in vms.items():
            wanted = (bytes.fromhex(mac.replace(":", "")), b"\xff" * 6)
            assert vm.received() == [data for data in burst if data[:6] in wanted]
            assert int(vm.books()["indications"]) == 1


# --- near misses -------------------------------------------------------------------------------------------------


def test_the_right_address_in_the_wrong_vlan_is_counted_at_its_port_with_the_vlan_seen():
    """From the wire and from a neighbour; a frame that arrives is no miss."""
    with Rig() as rig:
        wire = rig.uplink(
            frames=[frame(A, D, vlan=5), frame(A, D, vlan=7), frame(A, D), frame(A, D, vlan=9)], laps=1
        )
        vm = rig.vm(A, uplink=wire, vlan=9)
        vm.post(4, 128)
        lonely, other = rig.vm(B), rig.vm(C, vlan=3)
        rig.publish()
        lonely.send(frame(C, B))
        rig.step()
        rig.step()
        missed = rig.workers[0].misses
        assert [int(missed[vm.number][name]) for name in ("wrong_vlan", "seen_vlan")] == [3, 0]
        assert [int(missed[other.number][name]) for name in ("wrong_vlan", "seen_vlan")] == [1, 0]
        assert not missed[lonely.number]["wrong_vlan"]
        assert len(vm.received()) == 1
        assert not rig.workers[0].strangers["count"].any()


def test_addresses_that_nobody_has_are_kept_by_how_often_they_are_seen():
    """Few rows: a new one takes the place of the rarest, so whoever is frequent stays."""
    rare = [mac_text(0x0200_0000_0000 + (number << 8)) for number in range(40)]
    frames = [frame(to, D) for number in range(40) for to in (NOBODY, rare[number], NOBODY)]
    with Rig() as rig:
        rig.uplink(frames=frames, laps=1)
        rig.publish()
        for _ in range(3):
            rig.step()
        rows = rig.workers[0].strangers
        counts = {int(row["mac"]): int(row["count"]) for row in rows}
        assert len(counts) == state.STRANGERS
        assert counts[mac_number(NOBODY)] == 80
        assert sum(counts.values()) == 120


def test_a_station_that_sends_from_the_address_of_a_vm_is_counted():
    """Broadcast and multicast only: those every station sends, and they cost no other frame a search."""
    with Rig() as rig:
        wire = rig.uplink(
            frames=[frame(BROADCAST, A), frame(MULTICAST, A), frame(BROADCAST, D), frame(B, A)], laps=1
        )
        vm, other = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
        for one in (vm, other):
            one.post(8, 128)
        rig.publish()
        vm.send(frame(BROADCAST, A))
        rig.step()
        rig.step()
        assert [int(rig.workers[0].misses[one.number]["duplicate"]) for one in (vm, other)] == [2, 0]
