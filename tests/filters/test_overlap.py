# SPDX-License-Identifier: Apache-2.0
"""The verdict on two filters against a search through all frames there are, where there are few."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN

from tests.filters.strategies import EVERYBODY, GROUP, NVGRE, A, B, filters, frames, tags
from vmq.abi.ethernet import MAC_BROADCAST, mac_number, mac_text
from vmq.filters.model import NO_FLAGS, Field, FieldTest, Filter, Flag, Kind
from vmq.filters.overlap import overlap, solve, witness
from vmq.filters.reference import Seen, matches, passes, read

EQUAL, NOT_EQUAL, MASK_EQUAL = Kind
FLAGS = [NO_FLAGS, *Flag, Flag(3)]


# --- one field of four bits


@st.composite
def small_tests(draw: st.DrawFn) -> FieldTest:
    kind, value = draw(st.sampled_from(list(Kind))), draw(st.integers(0, 15))
    return FieldTest(Field.PRIORITY, kind, value, draw(st.integers(0, 15)) if kind is MASK_EQUAL else 0)


@settings(max_examples=500)
@given(st.lists(small_tests(), max_size=12))
def test_the_lowest_value_that_passes_all_tests_is_found(tests: list[FieldTest]) -> None:
    """Masks with values outside them among the tests: nothing passes those."""
    passing = [value for value in range(16) if all(test.passes(value) for test in tests)]

    assert solve(tests, 4) in passing if passing else solve(tests, 4) is None


def test_every_value_forbidden_leaves_none() -> None:
    every = [FieldTest(Field.PRIORITY, NOT_EQUAL, value) for value in range(8)]

    assert solve(every, 3) is None
    assert solve(every[:5] + every[6:], 3) == 5


# --- all frames, of few addresses, VLANs, protocols and ports
# Tests below name the values 0 and 1 of a field, or its lowest bit; so frames with 0 to 3 stand for all there are,
# and where single values are named (types, protocols, ports), one that is not named stands for all others.

NEAR = [0, 1, 2, 3, MAC_BROADCAST]
KINDS = [0x0800, 0x0806, 0x86DD, 0x8906]
NAMED = {
    Field.ETHERTYPE: KINDS,
    Field.ARP_OPERATION: [1, 2],
    Field.IPV4_PROTOCOL: [6, 17, 47],
    Field.IPV6_PROTOCOL: [17, 47],
    Field.UDP_DESTINATION: [53, 4789],
    Field.PACKET_TYPE: [1, 2, 3],
}
NUMBERED = {Field.MAC_DESTINATION: [0, 1, MAC_BROADCAST], Field.VLAN_ID: [0, 1], Field.PRIORITY: [0, 1]}


@st.composite
def named_filters(draw: st.DrawFn) -> Filter:
    def test_of(field: Field) -> FieldTest:
        if field in NAMED:
            return FieldTest(
                field, draw(st.sampled_from([EQUAL, NOT_EQUAL])), draw(st.sampled_from(NAMED[field]))
            )
        kind = draw(st.sampled_from(list(Kind)))
        if kind is MASK_EQUAL:
            return FieldTest(field, kind, draw(st.integers(0, 1)), 1)
        return FieldTest(field, kind, draw(st.sampled_from(NUMBERED[field])))

    names = st.sampled_from([*NAMED, *NUMBERED])
    tests = [test_of(field) for field in draw(st.lists(names, min_size=1, max_size=4))]
    return Filter(tuple(tests), flags=draw(st.sampled_from(FLAGS)))


@cache
def all_frames() -> tuple[Seen, ...]:
    inner = [Ether(dst=mac_text(mac), type=1) for mac in NEAR]
    vxlan = [UDP(dport=4789) / VXLAN(flags=8) / frame for frame in inner]
    carried = [UDP(dport=53), UDP(dport=9), *vxlan, *(NVGRE / frame for frame in inner)]
    packets = [
        *(bytes(Ether(type=kind)) for kind in (0x8906, 0x1234)),
        *(bytes(Ether(type=0x0806) / ARP(op=code, hwdst=A, psrc="10.0.0.1")) for code in (1, 2, 3)),
        *(bytes(Ether(type=0x0800) / IP(proto=number)) for number in (6, 99)),
        *(bytes(Ether(type=0x0800) / IP() / packet) for packet in carried),
        bytes(Ether(type=0x86DD) / IPv6(nh=99)),
        *(bytes(Ether(type=0x86DD) / IPv6() / packet) for packet in carried),
    ]
    tagged = [(0, 0, False), *((vid, pcp << 13 | vid, True) for vid, pcp in product(range(4), range(4)))]
    return tuple(
        read(mac.to_bytes(6, "little") + packet[6:], *tag)
        for packet, mac, tag in product(packets, NEAR, tagged)
    )


@settings(max_examples=400)
@given(named_filters(), named_filters())
def test_the_verdict_is_that_of_a_search_through_all_frames(a: Filter, b: Filter) -> None:
    found = any(passes(a, seen) and passes(b, seen) for seen in all_frames())

    assert overlap(a, b) is found


# --- any filters


def frame_of(shown: dict) -> tuple[bytes, int, int, bool]:
    return bytes.fromhex(shown["frame"]), shown["vid"], shown["tci"], shown["tagged"]


@settings(max_examples=300)
@given(filters(), filters())
def test_the_frame_that_is_shown_matches_both(a: Filter, b: Filter) -> None:
    """No error about an overlap without a proof that anyone can check."""
    shown = witness(a, b)

    assert overlap(a, b) is overlap(b, a) is (shown is not None)
    if shown is not None:
        assert matches(a, *frame_of(shown))
        assert matches(b, *frame_of(shown))


@settings(max_examples=300)
@given(filters(), filters(), frames(), tags())
def test_no_frame_at_all_matches_both_where_there_is_no_overlap(
    a: Filter, b: Filter, frame: bytes, tag: tuple[int, int, bool]
) -> None:
    """Damaged and truncated frames are not in the list of shapes, and need not be."""
    if matches(a, frame, *tag) and matches(b, frame, *tag):
        assert overlap(a, b)


def a_filter(
    *tests: tuple[Field, Kind, int] | tuple[Field, Kind, int, int], flags: Flag = NO_FLAGS
) -> Filter:
    return Filter(tuple(FieldTest(*test) for test in tests), flags=flags)


TO_A, TO_B, TO_ALL, TO_GROUP = (
    (Field.MAC_DESTINATION, EQUAL, mac_number(text)) for text in (A, B, EVERYBODY, GROUP)
)
UNTAGGED, INSIDE = Flag.VLAN_UNTAGGED_OR_ZERO, Flag.ENCAPSULATION
VLAN_5, VLAN_6 = (Field.VLAN_ID, EQUAL, 5), (Field.VLAN_ID, EQUAL, 6)
PORT_53, VXLAN_PORT = (Field.UDP_DESTINATION, EQUAL, 53), (Field.UDP_DESTINATION, EQUAL, 4789)

CASES = {
    "one address": (a_filter(TO_A), a_filter(TO_A), True),
    "two addresses": (a_filter(TO_A), a_filter(TO_B), False),
    "one address in two VLANs": (a_filter(TO_A, VLAN_5), a_filter(TO_A, VLAN_6), False),
    "in a VLAN and in any": (a_filter(TO_A, VLAN_5), a_filter(TO_A), True),
    "in a VLAN and in none": (a_filter(TO_A, VLAN_5), a_filter(TO_A, flags=UNTAGGED), False),
    "in none and not in 0": (
        a_filter(TO_A, flags=UNTAGGED), a_filter(TO_A, (Field.VLAN_ID, NOT_EQUAL, 0)), False,
    ),
    "not in a VLAN and in none": (
        a_filter(TO_A, (Field.VLAN_ID, NOT_EQUAL, 5)), a_filter(TO_A, flags=UNTAGGED), True,
    ),  # a priority tag
    "an address and all but it": (
        a_filter(TO_A), a_filter((Field.MAC_DESTINATION, NOT_EQUAL, mac_number(A))), False,
    ),
    "a block and an address in it": (
        a_filter((Field.MAC_DESTINATION, MASK_EQUAL, mac_number("52:54:00:00:00:00"), (1 << 40) - 1)),
        a_filter(TO_A), True,
    ),
    "two blocks": (
        a_filter((Field.MAC_DESTINATION, MASK_EQUAL, 2, 3)), a_filter((Field.MAC_DESTINATION, MASK_EQUAL, 4, 6)),
        False,
    ),
    "broadcast by type and by address": (a_filter(TO_ALL), a_filter((Field.PACKET_TYPE, EQUAL, 3)), True),
    "broadcast is not multicast": (a_filter(TO_ALL), a_filter((Field.PACKET_TYPE, EQUAL, 2)), False),
    "multicast by type and by address": (a_filter(TO_GROUP), a_filter((Field.PACKET_TYPE, EQUAL, 2)), True),
    "UDP and ARP": (a_filter(TO_A, PORT_53), a_filter(TO_A, (Field.ARP_OPERATION, EQUAL, 1)), False),
    "UDP on IPv4 or on IPv6": (
        a_filter(TO_A, PORT_53), a_filter(TO_A, (Field.IPV6_PROTOCOL, NOT_EQUAL, 6)), True,
    ),
    "UDP and TCP": (a_filter(TO_A, PORT_53), a_filter(TO_A, (Field.IPV4_PROTOCOL, EQUAL, 6)), False),
    "an address outside and another inside": (a_filter(TO_A), a_filter(TO_B, flags=INSIDE), True),
    "two addresses inside": (a_filter(TO_A, flags=INSIDE), a_filter(TO_B, flags=INSIDE), False),
    "inside what is no tunnel": (a_filter(TO_A, PORT_53), a_filter(TO_B, flags=INSIDE), False),
    "inside VXLAN": (a_filter(TO_A, VXLAN_PORT), a_filter(TO_B, flags=INSIDE), True),
    "outside and inside VXLAN": (a_filter(TO_A, VXLAN_PORT, flags=INSIDE), a_filter(TO_A), True),
    "outside and inside UDP": (
        a_filter(TO_A, (Field.IPV4_PROTOCOL, EQUAL, 17), flags=INSIDE), a_filter(TO_A), True,
    ),
    "outside and inside GRE": (
        a_filter(TO_A, (Field.IPV6_PROTOCOL, EQUAL, 47), flags=INSIDE), a_filter(TO_A), True,
    ),
    "outside and inside IP": (
        a_filter(TO_A, (Field.ETHERTYPE, EQUAL, 0x0800), flags=INSIDE), a_filter(TO_A), True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_filters_that_share_a_frame_and_filters_that_do_not(case: str) -> None:
    a, b, expected = CASES[case]

    assert (overlap(a, b), overlap(b, a)) == (expected, expected)
    for shown in (witness(a, b), witness(b, a)):
        assert (shown is not None) is expected
        assert shown is None or (matches(a, *frame_of(shown)) and matches(b, *frame_of(shown)))


def test_a_witness_names_what_was_tested() -> None:
    shown = witness(a_filter(TO_A, VXLAN_PORT), a_filter(TO_B, (Field.VLAN_ID, NOT_EQUAL, 0), flags=INSIDE))

    assert shown is not None
    assert (shown["vid"], shown["tci"], shown["tagged"]) == (1, 1, True)
    assert shown["fields"] == {
        "mac_destination": A,
        "udp_destination": "4789",
        "inner mac_destination": B,
        "vlan_id": "1",
    }
