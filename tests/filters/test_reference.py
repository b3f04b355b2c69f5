# SPDX-License-Identifier: Apache-2.0
"""What filters match, on frames that scapy built."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from scapy.layers.inet import IP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, GRE, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from tests.filters.strategies import EVERYBODY, GROUP, INNER, NVGRE, V4, V6, A, B, C, filters, frames, tags
from vmq.abi.ethernet import mac_number
from vmq.filters.model import NO_FLAGS, Field, FieldTest, Filter, Flag, Kind
from vmq.filters.reference import matches, read

ETHER = Ether(dst=A, src=B)
MAC_A, MAC_B, MAC_C = (mac_number(text) for text in (A, B, C))
TO_A = FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, MAC_A)
TO_B = FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, MAC_B)
IN_VLAN_5 = FieldTest(Field.VLAN_ID, Kind.EQUAL, 5)
PLAIN = bytes(ETHER / V4 / UDP(dport=53))
INSIDE = Flag.ENCAPSULATION

UNTAGGED, PRIORITY_TAG, VLAN_5, VLAN_6 = (0, 0, False), (0, 0xE000, True), (5, 0x6005, True), (6, 6, True)


@pytest.mark.parametrize(("tests", "flags", "answers"), [
    ((TO_A, IN_VLAN_5), NO_FLAGS, (False, False, True, False)),
    ((TO_A,), Flag.VLAN_UNTAGGED_OR_ZERO, (True, True, False, False)),
    ((TO_A,), NO_FLAGS, (True, True, True, True)),
])  # fmt: skip
def test_the_vlan_truth_table(
    tests: tuple[FieldTest, ...], flags: Flag, answers: tuple[bool, bool, bool, bool]
) -> None:
    """Untagged, priority-tagged, the VLAN of the filter, another one; the tests in any order."""
    for order in permutations(tests):
        wanted = Filter(order, flags=flags)
        found = [matches(wanted, PLAIN, *tag) for tag in (UNTAGGED, PRIORITY_TAG, VLAN_5, VLAN_6)]
        assert tuple(found) == answers


def fields(packet: Packet | bytes, tag: tuple[int, int, bool] = UNTAGGED) -> dict[Field, int]:
    """The outer fields behind the addresses."""
    seen = read(bytes(packet), *tag).outer
    addresses = (Field.MAC_DESTINATION, Field.MAC_SOURCE, Field.PACKET_TYPE)
    return {field: value for field, value in seen.items() if field not in addresses}


@pytest.mark.parametrize(("destination", "kind"), [(A, 1), (GROUP, 2), (EVERYBODY, 3)])
def test_addresses_and_the_packet_type_that_follows(destination: str, kind: int) -> None:
    seen = read(bytes(Ether(dst=destination, src=C, type=0x8906)), *UNTAGGED).outer

    assert seen == {
        Field.MAC_DESTINATION: mac_number(destination),
        Field.MAC_SOURCE: MAC_C,
        Field.PACKET_TYPE: kind,
        Field.ETHERTYPE: 0x8906,
    }


def test_vlan_and_priority_are_fields_of_tagged_frames_alone() -> None:
    assert fields(PLAIN, VLAN_5).items() >= {Field.VLAN_ID: 5, Field.PRIORITY: 3}.items()
    assert not {Field.VLAN_ID, Field.PRIORITY} & set(fields(PLAIN))


@pytest.mark.parametrize("field", [Field.VLAN_ID, Field.PRIORITY, Field.ARP_OPERATION, Field.IPV6_PROTOCOL])
def test_a_field_that_the_frame_lacks_fails_every_test(field: Field) -> None:
    """Not even NOT_EQUAL passes: an untagged frame is in no VLAN that differs from 5."""
    for kind, mask in ((Kind.EQUAL, 0), (Kind.NOT_EQUAL, 0), (Kind.MASK_EQUAL, 1)):
        assert not matches(Filter((TO_A, FieldTest(field, kind, 0, mask))), PLAIN, *UNTAGGED)


def test_arp_for_ipv4_on_ethernet() -> None:
    packet = ARP(op=2, psrc="10.0.0.1", pdst="10.0.0.2")

    assert fields(ETHER / packet) == {
        Field.ETHERTYPE: 0x0806,
        Field.ARP_OPERATION: 2,
        Field.ARP_SPA: 10 << 24 | 1,
        Field.ARP_TPA: 10 << 24 | 2,
    }
    for other in (ARP(hwtype=6), ARP(ptype=0x86DD), ARP(hwlen=8), ARP(plen=16)):
        assert set(fields(bytes(ETHER / other))) == {Field.ETHERTYPE}


@pytest.mark.parametrize(("packet", "expected"), [
    (V4 / UDP(dport=53), {Field.IPV4_PROTOCOL: 17, Field.UDP_DESTINATION: 53}),
    (IP(options=[IPOption_Router_Alert()]) / UDP(dport=53),
     {Field.IPV4_PROTOCOL: 17, Field.UDP_DESTINATION: 53}),
    (IP(flags="MF") / UDP(dport=53), {Field.IPV4_PROTOCOL: 17, Field.UDP_DESTINATION: 53}),
    (IP(frag=1, proto=17) / (b"\0\0\0\x35" * 4), {Field.IPV4_PROTOCOL: 17}),
    (IP(proto=6) / (b"\0\0\0\x35" * 4), {Field.IPV4_PROTOCOL: 6}),
    (IP(version=6) / UDP(dport=53), {}),
    (IP(ihl=4) / UDP(dport=53), {}),
    (V6 / UDP(dport=53), {Field.IPV6_PROTOCOL: 17, Field.UDP_DESTINATION: 53}),
    (V6 / IPv6ExtHdrHopByHop() / UDP(dport=53), {Field.IPV6_PROTOCOL: 0}),
    (IPv6(version=4) / UDP(dport=53), {}),
])  # fmt: skip
def test_headers_behind_ethernet(packet: Packet, expected: dict[Field, int]) -> None:
    kind = 0x0800 if isinstance(packet, IP) else 0x86DD

    found = fields(Ether(dst=A, src=B, type=kind) / packet)

    assert found == {Field.ETHERTYPE: kind, **expected}


TUNNELS = {
    "vxlan": V4 / UDP(dport=4789) / VXLAN(flags=8, vni=1) / INNER,
    "vxlan on v6": V6 / UDP(dport=4789) / VXLAN(flags=8, vni=1) / INNER,
    "nvgre": V4 / NVGRE / INNER,
    "nvgre on v6": V6 / NVGRE / INNER,
}
NO_TUNNELS = {
    "another port": V4 / UDP(dport=4788) / VXLAN(flags=8, vni=1) / INNER,
    "no network identifier": V4 / UDP(dport=4789) / VXLAN(flags=0, vni=1) / INNER,
    "gre without key": V4 / GRE(proto=0x6558) / INNER,
    "gre with sequence number": V4 / GRE(key_present=1, seqnum_present=1, proto=0x6558) / INNER,
    "gre of ip": V4 / GRE(key_present=1, proto=0x0800) / V4,
    "a later fragment": IP(frag=1, proto=17) / UDP(dport=4789) / VXLAN(flags=8) / INNER,
    "ip alone": V4 / UDP(dport=53),
    "arp": ARP(),
}


@pytest.mark.parametrize("tunnel", TUNNELS)
def test_an_encapsulation_filter_matches_the_inner_address(tunnel: str) -> None:
    """The inner Ethernet header decides; without the flag, the outer one."""
    frame = bytes(ETHER / TUNNELS[tunnel])

    assert [matches(Filter((test,), flags=INSIDE), frame, *UNTAGGED) for test in (TO_A, TO_B)] == [
        False,
        True,
    ]
    assert [matches(Filter((test,)), frame, *UNTAGGED) for test in (TO_A, TO_B)] == [True, False]


@pytest.mark.parametrize("tunnel", NO_TUNNELS)
def test_without_an_inner_ethernet_header_the_outer_one_decides(tunnel: str) -> None:
    frame = bytes(ETHER / NO_TUNNELS[tunnel])

    assert [matches(Filter((test,), flags=INSIDE), frame, *UNTAGGED) for test in (TO_A, TO_B)] == [
        True,
        False,
    ]


def test_an_encapsulation_filter_takes_all_but_addresses_from_the_outer_frame() -> None:
    frame = bytes(ETHER / TUNNELS["vxlan"])
    tests = (
        TO_B,
        FieldTest(Field.MAC_SOURCE, Kind.EQUAL, MAC_C),
        FieldTest(Field.ETHERTYPE, Kind.EQUAL, 0x0800),
        FieldTest(Field.UDP_DESTINATION, Kind.EQUAL, 4789),
        IN_VLAN_5,
    )

    assert matches(Filter(tests, flags=INSIDE), frame, *VLAN_5)


@pytest.mark.parametrize("tunnel", TUNNELS)
def test_a_tunnel_that_is_cut_short_matches_no_encapsulation_filter(tunnel: str) -> None:
    """Which header would decide is not known, from the IP header to the inner Ethernet header."""
    frame = bytes(ETHER / TUNNELS[tunnel])

    found = [
        [matches(Filter((test,), flags=INSIDE), frame[:length], *UNTAGGED) for test in (TO_A, TO_B)]
        for length in range(14, len(frame) + 1)
    ]

    assert found == [[False, False]] * (len(found) - 1) + [[False, True]]


@given(frames(), filters(), tags())
def test_a_runt_matches_nothing(frame: bytes, wanted: Filter, tag: tuple[int, int, bool]) -> None:
    assert not matches(wanted, frame[:13], *tag)
