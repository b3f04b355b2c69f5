# SPDX-License-Identifier: Apache-2.0
"""Filters that are refused, each with its status, whatever the order of its tests."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.filters.strategies import A, B, filters
from vmq.abi.ethernet import mac_number
from vmq.errors import ApiError
from vmq.filters.judge import check
from vmq.filters.model import NO_FLAGS, Capabilities, Field, FieldTest, Filter, Flag, Kind
from vmq.filters.overlap import overlap

ALL = Capabilities()
EQUAL, NOT_EQUAL, MASK_EQUAL = Kind
UNTAGGED, INSIDE = Flag.VLAN_UNTAGGED_OR_ZERO, Flag.ENCAPSULATION
TO_A = FieldTest(Field.MAC_DESTINATION, EQUAL, mac_number(A))
TO_B = FieldTest(Field.MAC_DESTINATION, EQUAL, mac_number(B))
VLAN_5 = FieldTest(Field.VLAN_ID, EQUAL, 5)


def verdict(wanted: Filter, capabilities: Capabilities = ALL) -> tuple[str, str]:
    """Status and words of the refusal; SUCCESS without any."""
    try:
        check(wanted, capabilities)
    except ApiError as error:
        return error.status, str(error)
    return "SUCCESS", ""


ADMITTED = {
    "an address": Filter((TO_A,)),
    "an address in a VLAN": Filter((TO_A, VLAN_5)),
    "an address in none": Filter((TO_A,), flags=UNTAGGED),
    "an address inside": Filter((TO_A,), flags=INSIDE),
    "a block": Filter((FieldTest(Field.MAC_DESTINATION, MASK_EQUAL, 2, 3),)),
    "all but one": Filter((FieldTest(Field.MAC_DESTINATION, NOT_EQUAL, mac_number(A)),)),
    "the same twice": Filter((TO_A, TO_A)),
    "any VLAN but none": Filter((TO_A, FieldTest(Field.VLAN_ID, NOT_EQUAL, 0))),
    "a priority without VLAN": Filter((TO_A, FieldTest(Field.PRIORITY, EQUAL, 3)), flags=UNTAGGED),
    "every kind of field of one frame": Filter((
        TO_A, FieldTest(Field.MAC_SOURCE, EQUAL, mac_number(B)), FieldTest(Field.ETHERTYPE, EQUAL, 0x0800), VLAN_5,
        FieldTest(Field.PRIORITY, EQUAL, 3), FieldTest(Field.PACKET_TYPE, EQUAL, 1),
        FieldTest(Field.IPV4_PROTOCOL, EQUAL, 17), FieldTest(Field.UDP_DESTINATION, EQUAL, 53),
    )),
}  # fmt: skip

INVALID = {
    "no test": Filter(()),
    "a flag alone": Filter((), flags=UNTAGGED),
    "a reserved member": Filter((TO_A,), reserved=1),
    "an unknown flag": Filter((TO_A,), flags=Flag(4)),
    "a VLAN without address": Filter((VLAN_5,)),
    "a source without destination": Filter((FieldTest(Field.MAC_SOURCE, EQUAL, 2),)),
    "a VLAN and none": Filter((TO_A, VLAN_5), flags=UNTAGGED),
    "all VLANs but one and none": Filter(
        (TO_A, FieldTest(Field.VLAN_ID, NOT_EQUAL, 5)), flags=UNTAGGED
    ),
    "VLAN 0": Filter((TO_A, FieldTest(Field.VLAN_ID, EQUAL, 0))),
    "VLAN 4095": Filter((TO_A, FieldTest(Field.VLAN_ID, EQUAL, 4095))),
    "a value too wide": Filter((TO_A, FieldTest(Field.PRIORITY, EQUAL, 8))),
    "a negative value": Filter((TO_A, FieldTest(Field.PRIORITY, NOT_EQUAL, -1))),
    "an address too wide": Filter((FieldTest(Field.MAC_DESTINATION, EQUAL, 1 << 48),)),
    "a mask too wide": Filter((TO_A, FieldTest(Field.PRIORITY, MASK_EQUAL, 1, 9))),
    "a negative mask": Filter((TO_A, FieldTest(Field.PRIORITY, MASK_EQUAL, 0, -1))),
    "a mask of nothing": Filter((TO_A, FieldTest(Field.PRIORITY, MASK_EQUAL, 0, 0))),
    "only a mask of nothing": Filter((FieldTest(Field.MAC_DESTINATION, MASK_EQUAL, 0, 0),)),
    "a value outside its mask": Filter((TO_A, FieldTest(Field.PRIORITY, MASK_EQUAL, 3, 1))),
    "a mask that is reserved": Filter((TO_A, FieldTest(Field.PRIORITY, EQUAL, 3, 7))),
    "two addresses": Filter((TO_A, TO_B)),
    "an address and not it": Filter((TO_A, FieldTest(Field.MAC_DESTINATION, NOT_EQUAL, mac_number(A)))),
    "a station that is a group": Filter((TO_A, FieldTest(Field.PACKET_TYPE, EQUAL, 3))),
    "no such packet type": Filter((TO_A, FieldTest(Field.PACKET_TYPE, EQUAL, 0))),
    "ARP with a port": Filter((
        TO_A, FieldTest(Field.ARP_OPERATION, EQUAL, 1), FieldTest(Field.UDP_DESTINATION, EQUAL, 53),
    )),
    "another type with a protocol": Filter((
        TO_A, FieldTest(Field.ETHERTYPE, EQUAL, 0x8906), FieldTest(Field.IPV4_PROTOCOL, EQUAL, 6),
    )),
}  # fmt: skip

FEWER = {
    "kind": (
        Capabilities(tests=frozenset({EQUAL})),
        Filter((FieldTest(Field.MAC_DESTINATION, NOT_EQUAL, 2),)),
    ),
    "field": (Capabilities(fields=frozenset({Field.MAC_DESTINATION})), Filter((TO_A, VLAN_5))),
    "flag": (Capabilities(flags=NO_FLAGS), Filter((TO_A,), flags=INSIDE)),
    "any VLAN": (Capabilities(any_vlan=False), Filter((TO_A,))),
    "number of tests": (Capabilities(tests_per_filter=1), Filter((TO_A, VLAN_5))),
}


@pytest.mark.parametrize("case", ADMITTED)
def test_filters_that_can_be_set(case: str) -> None:
    assert verdict(ADMITTED[case]) == ("SUCCESS", "")


@pytest.mark.parametrize("case", INVALID)
def test_what_is_no_filter_is_an_invalid_parameter_in_any_order(case: str) -> None:
    """ndis OID_RECEIVE_FILTER_SET_FILTER; a driver that looked at the first test only would accept some orders."""
    wanted = INVALID[case]
    found = {
        verdict(Filter(order, wanted.priority, wanted.flags, wanted.reserved))[0]
        for order in permutations(wanted.tests)
    }

    assert found == {"INVALID_PARAMETER"}


@pytest.mark.parametrize("case", FEWER)
def test_what_cannot_be_applied_is_not_supported(case: str) -> None:
    capabilities, wanted = FEWER[case]

    assert verdict(wanted)[0] == "SUCCESS"
    assert verdict(wanted, capabilities)[0] == "NOT_SUPPORTED"


def test_without_any_vlan_a_filter_of_one_vlan_or_of_none_is_possible() -> None:
    """ndis AnyVlanSupported; before NDIS 6.30 there was nothing else."""
    narrow = Capabilities(any_vlan=False)

    assert verdict(Filter((TO_A, VLAN_5)), narrow)[0] == "SUCCESS"
    assert verdict(Filter((TO_A,), flags=UNTAGGED), narrow)[0] == "SUCCESS"


def test_a_refusal_names_the_test_and_the_remedy() -> None:
    _, words = verdict(Filter((TO_A, FieldTest(Field.PRIORITY, MASK_EQUAL, 3, 1))))

    assert words == ("priority: the value 3 has bits outside the mask 1, so nothing equals it. Remedy: use 1")
    assert "no frame can pass mac_destination == 52:54:00:00:00:01 and" in verdict(Filter((TO_A, TO_B)))[1]


@settings(max_examples=200)
@given(filters(), st.randoms())
def test_the_order_of_tests_changes_nothing(wanted: Filter, random) -> None:
    tests = list(wanted.tests)
    random.shuffle(tests)

    assert verdict(wanted)[0] == verdict(Filter(tuple(tests), wanted.priority, wanted.flags))[0]


@settings(max_examples=200)
@given(filters())
def test_an_admitted_filter_can_match(wanted: Filter) -> None:
    if verdict(wanted)[0] == "SUCCESS":
        assert overlap(wanted, wanted)
