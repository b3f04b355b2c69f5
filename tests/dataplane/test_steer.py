# SPDX-License-Identifier: Apache-2.0
"""Where frames go: the truth table of VLANs, floods, neighbours, the wire, and what generic filters take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
from vmq.abi.ethernet import mac_number, mac_text
from vmq.dataplane import state
from vmq.filters import Field, FieldTest, Filter, Kind
from vmq.filters.compiled import rows
from vmq.publisher import FilterEntry

SMALL = [(0x10000, 1 << 13)]


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


@pytest.mark.parametrize(
    ("kind", "to"), [("broadcast", BROADCAST), ("multicast", MULTICAST), ("unknown", NOBODY)]
)
def test_a_round_takes_no_more_frames_than_its_floods_have_room_for(kind, to):
    """DELIVERIES bounds (frame, receive queue) pairs: with many members a round takes fewer frames."""
    members = 300
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(to, D)] * 64)
        for number in range(members):
            rig.vm(mac_text(0x10 + (number << 16)), uplink=wire, regions=SMALL, size=4, accept=(kind,))
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


# --- who accepts what ----------------------------------------------------------------------------------------

ALL = ("broadcast", "multicast", "unknown")


@pytest.mark.parametrize("accept", [(), *((kind,) for kind in ALL), ("multicast", "unknown"), ALL])
def test_a_port_gets_beside_its_filters_what_it_accepts(accept):
    """Each frame once; what only others accept is theirs alone."""
    burst = [frame(to, D) for to in (A, BROADCAST, MULTICAST, NOBODY)]
    with Rig() as rig:
        wire = rig.uplink(frames=burst)
        vm, usual = rig.vm(A, uplink=wire, accept=accept), rig.vm(B, uplink=wire)
        for one in (vm, usual):
            one.post(8)
        rig.publish()
        rig.run()
        wanted = [data for kind, data in zip(ALL, burst[1:], strict=True) if kind in accept]
        assert vm.received() == [burst[0], *wanted]
        assert usual.received() == burst[1:3]
        assert rig.wire_drops() == ({} if "unknown" in accept else {"default_queue": 1})


def test_a_group_frame_that_nobody_accepts_is_a_named_drop():
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(BROADCAST, D), frame(MULTICAST, D)])
        deaf, sender, alone = rig.vm(A, uplink=wire, accept=()), rig.vm(B), rig.vm(C, accept=("multicast",))
        sender.send(frame(BROADCAST, B))
        rig.publish()
        rig.run()
        assert deaf.received() == alone.received() == []
        assert rig.wire_drops() == {"default_queue": 2}
        assert sender.sent_drops() == {"no_filter": 1}


def test_an_unknown_frame_of_a_guest_is_copied_beside_what_leaves_and_never_comes_back():
    """In its segment alone; what a filter names is nobody else's."""
    with Rig() as rig:
        wire = rig.uplink(sink=1 << 12)
        sender, monitor = (rig.vm(mac, uplink=wire, accept=ALL) for mac in (A, B))
        strangers = [rig.vm(C, uplink=wire, vlan=5, accept=ALL), rig.vm(C, accept=ALL)]
        neighbour = rig.vm(D, uplink=wire)
        for vm in (sender, monitor, neighbour, *strangers):
            vm.post(4)
        for to in (NOBODY, D, A):
            sender.send(frame(to, A))
        rig.publish()
        rig.run()
        assert monitor.received() == rig.left() == [frame(NOBODY, A)]
        assert neighbour.received() == [frame(D, A)]
        assert [vm.received() for vm in (sender, *strangers)] == [[]] * 3
        assert [int(sender.books()["account"][name]) for name in ("forwarded", "copies")] == [2, 2]
        assert sender.sent_drops() == {"own_address": 1}


def test_an_unknown_frame_that_somebody_accepts_is_a_near_miss_all_the_same():
    with Rig() as rig:
        sender, monitor, other = rig.vm(A), rig.vm(B, accept=("unknown",)), rig.vm(C, vlan=7)
        monitor.post(4)
        for to in (C, NOBODY, BROADCAST):
            sender.send(frame(to, A))
        rig.publish()
        rig.run()
        assert monitor.received() == [frame(C, A), frame(NOBODY, A)]
        assert sender.sent_drops() == {"no_filter": 1}
        assert int(rig.segment.rows["misses"][other.number]["wrong_vlan"]) == 1
        seen = rig.segment.rows["strangers"]
        assert [mac_text(row["mac"]) for row in seen if row["count"]] == [NOBODY]


@pytest.mark.parametrize("to", ["01:00:00:00:00:00", "03:00:00:00:00:00"])
def test_frames_to_the_addresses_under_which_groups_stand_are_multicast(to):
    """They find those who accept multicast, whatever stands there."""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(to, D)])
        vms = [rig.vm(mac, uplink=wire, accept=(kind,)) for mac, kind in zip((A, B, C), ALL, strict=True)]
        for vm in vms:
            vm.post(2)
        rig.publish()
        rig.run()
        assert [len(vm.received()) for vm in vms] == [0, 1, 0]


# --- generic filters -----------------------------------------------------------------------------------------


def words(*tests: tuple[Field, Kind, Any]) -> Filter:
    return Filter(tuple(FieldTest(field, kind, value) for field, kind, value in tests))


def on(uplink: int, *filters: tuple[Filter, int], plain: Sequence[tuple[str, int, int]] = ()) -> FilterEntry:
    """Filters of an uplink: generic ones, in order, and plain ones."""
    return FilterEntry(uplink, {(mac_number(mac), vlan): q for mac, vlan, q in plain}, rows(filters))


ARP = words((Field.ETHERTYPE, Kind.EQUAL, 0x0806))


def test_a_generic_filter_takes_a_frame_from_the_addresses_it_names_and_from_its_segment():
    """Whatever the destination: nobody else gets it, and every other frame goes where it went."""
    burst = [frame(to, D, kind=kind) for to in (A, B, BROADCAST, NOBODY) for kind in (0x0806, 0x0800)]
    with Rig() as rig:
        wire = rig.uplink(frames=burst)
        one, other = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
        for vm in (one, other):
            vm.post(8)
        rig.filters = [on(wire, (ARP, other.first_queue))]
        rig.publish()
        rig.run()
        assert one.received() == [burst[1], burst[5]]
        assert other.received() == [burst[0], *burst[2:7]]
        assert rig.wire_drops() == {"default_queue": 1}
        assert int(rig.lane_state()["account"]["forwarded"]) == 7


def test_an_address_that_somebody_else_has_is_seen_though_a_generic_filter_takes_the_frame():
    """ARP says so first, and a filter for ARP is not rare."""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(BROADCAST, A, kind=0x0806)])
        owner, other = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
        other.post()
        rig.filters = [on(wire, (ARP, other.first_queue))]
        rig.publish()
        rig.run()
        assert [int(rig.workers[0].misses[vm.number]["duplicate"]) for vm in (owner, other)] == [1, 0]
        assert len(other.received()) == 1


def test_filters_of_one_uplink_are_nothing_to_frames_of_another():
    with Rig() as rig:
        wires = [rig.uplink(frames=[frame(A, D, kind=0x0806)]) for _ in range(2)]
        vms = [rig.vm(A, uplink=wire) for wire in wires]
        lonely = rig.vm(B, uplink=state.NONE)
        taker = rig.vm(C, uplink=wires[1])
        inner = rig.vm(D, uplink=state.NONE)
        for vm in (*vms, lonely, taker, inner):
            vm.post(4)
        rig.filters = [on(wires[1], (ARP, taker.first_queue)), on(state.NONE, (ARP, lonely.first_queue))]
        lonely.send(frame(D, B, kind=0x0800))
        inner.send(frame(NOBODY, D, kind=0x0806))
        rig.publish()
        rig.run()
        assert [len(vm.received()) for vm in (*vms, taker)] == [1, 0, 1]
        assert inner.received() == [frame(D, B, kind=0x0800)]
        assert lonely.received() == [frame(NOBODY, D, kind=0x0806)]


def test_the_drop_queue_is_a_named_drop_of_the_source_and_writes_nothing():
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, D, kind=0x0806), frame(A, D)])
        vm, sender = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
        vm.post(4)
        rig.filters = [on(wire, (ARP, state.TO_DROP_QUEUE))]
        sender.send(frame(A, B, kind=0x0806))
        rig.publish()
        rig.run()
        assert vm.received() == [frame(A, D)]
        assert rig.wire_drops() == {"drop_queue": 1}
        assert sender.sent_drops() == {"drop_queue": 1}


def test_a_filter_of_the_default_queue_leaves_a_frame_to_addresses():
    """What stands behind it never takes the frame."""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, D, kind=0x0806)])
        vm, other = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
        vm.post(4)
        rig.filters = [on(wire, (ARP, state.TO_DEFAULT_QUEUE), (ARP, other.first_queue))]
        rig.publish()
        rig.run()
        assert vm.received() == [frame(A, D, kind=0x0806)]


def test_what_a_vm_sends_is_not_for_its_own_filters():
    """A receive filter is about what is received."""
    with Rig() as rig:
        wire = rig.uplink(sink=1 << 12)
        sender, other = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
        for vm in (sender, other):
            vm.post(4)
        rig.filters = [on(wire, (ARP, sender.first_queue))]
        sender.send(frame(B, A, kind=0x0806))
        sender.send(frame(NOBODY, A, kind=0x0806))
        other.send(frame(BROADCAST, B, kind=0x0806))
        rig.publish()
        rig.run()
        assert other.received() == [frame(B, A, kind=0x0806)]
        assert rig.left(wire) == [frame(NOBODY, A, kind=0x0806)]
        assert sender.received() == [frame(BROADCAST, B, kind=0x0806)]


def test_link_local_frames_are_dropped_before_any_filter():
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(LINK_LOCAL, D)])
        vm = rig.vm(A, uplink=wire)
        vm.post(1)
        rig.filters = [on(wire, (words((Field.MAC_SOURCE, Kind.EQUAL, mac_number(D))), vm.first_queue))]
        rig.publish()
        rig.run()
        assert vm.received() == []
        assert rig.wire_drops() == {"link_local": 1}


def test_a_plain_filter_leads_to_a_second_receive_queue_of_a_vm():
    """Its address is the VM's: the VM may send from it, and gets nothing that it sends there itself."""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, D), frame(C, D)])
        vm = rig.vm(A, uplink=wire, workers=(0, 0))
        other = rig.vm(B, uplink=wire)
        for index in range(2):
            vm.queues[index][0].chain([(vm.memory.allocate(256), 256)])
        other.post(2)
        rig.filters = [on(wire, plain=[(C, 0, vm.first_queue + 1)])]
        vm.send(frame(B, C))
        vm.send(frame(C, A))
        rig.publish()
        rig.run()
        assert [int(vm.books(index)["frames_to_guest"]) for index in range(2)] == [1, 1]
        assert other.received() == [frame(B, C)]
        assert vm.sent_drops() == {"own_address": 1}


def test_a_filter_names_a_group_address_for_a_port_that_accepts_no_other():
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(to, D) for to in (MULTICAST, "01:00:5e:00:00:02")])
        vm = rig.vm(A, uplink=wire, accept=())
        vm.post(4)
        one = words((Field.MAC_DESTINATION, Kind.EQUAL, mac_number(MULTICAST)))
        rig.filters = [on(wire, (one, vm.first_queue))]
        rig.publish()
        rig.run()
        assert vm.received() == [frame(MULTICAST, D)]
        assert rig.wire_drops() == {"default_queue": 1}
