# SPDX-License-Identifier: Apache-2.0
"""Filters as people write them: every form of a value, and no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.abi.ethernet import mac_text
from vmq.control.requests import SetFilter, understood
from vmq.control.words import FieldTestWords, FilterWords, FlagName, filter_of, number_of
from vmq.errors import ApiError
from vmq.filters import Field, FieldTest, Filter, Flag, Kind
from vmq.filters.model import BITS, field_text


@pytest.mark.parametrize(
    ("field", "written", "number"),
    [
        (Field.MAC_DESTINATION, "52:54:00:00:00:01", 0x010000005452),
        (Field.MAC_SOURCE, "52-54-00-00-00-AA", 0xAA0000005452),
        (Field.MAC_SOURCE, 0x010000005452, 0x010000005452),
        (Field.ETHERTYPE, "0x0800", 0x800),
        (Field.ETHERTYPE, "2048", 2048),
        (Field.VLAN_ID, " 5 ", 5),
        (Field.ARP_TPA, "10.0.0.1", 0x0A000001),
        (Field.ARP_SPA, "0x0A000001", 0x0A000001),
        (Field.PACKET_TYPE, "Multicast", 2),
        (Field.PACKET_TYPE, "3", 3),
        (Field.VLAN_ID, -1, -1),
    ],
)
def test_a_value_is_a_number_or_a_word_of_the_field_s_people(field: Field, written: int | str, number: int):
    """What is beyond the field is not judged here."""
    assert number_of(field, written) == number


@pytest.mark.parametrize(
    ("field", "written", "form"),
    [
        (Field.MAC_DESTINATION, "0x525400000001", "write a MAC address, as 52:54:00:00:00:01"),
        (Field.MAC_DESTINATION, "52:54:00:00:00", "52:54:00:00:00:01"),
        (Field.MAC_DESTINATION, "52:54-00:00:00:01", "52:54:00:00:00:01"),
        (Field.MAC_DESTINATION, "+2:54:00:00:00:01", "52:54:00:00:00:01"),
        (Field.ARP_TPA, "10.0.0", "10.0.0.1"),
        (Field.ARP_TPA, "10.0.0.256", "10.0.0.1"),
        (Field.ETHERTYPE, "ipv4", "0x0fff"),
        (Field.VLAN_ID, "10.0.0.1", "a number"),
        (Field.VLAN_ID, "", "a number"),
        (Field.VLAN_ID, "٥", "a number"),
        (Field.VLAN_ID, "9" * 5000, "a number"),
        (Field.VLAN_ID, "0x", "a number"),
        (Field.PACKET_TYPE, "anycast", "unicast, multicast, broadcast"),
    ],
)
def test_what_is_no_value_is_refused_with_the_form_of_one(field: Field, written: str, form: str):
    with pytest.raises(ApiError) as refused:
        number_of(field, written)
    assert refused.value.status == "INVALID_PARAMETER"
    assert form in refused.value.remedy


@given(st.data())
def test_what_a_filter_s_text_says_is_understood(data: st.DataObject):
    """The other way round: field_text."""
    field = data.draw(st.sampled_from(list(Field)))
    number = data.draw(st.integers(0, (1 << BITS[field]) - 1))
    assert number_of(field, field_text(field, number)) == number


def test_a_filter_is_its_tests_its_priority_and_its_flags():
    words = FilterWords(
        tests=[
            FieldTestWords(field=Field.MAC_DESTINATION, value="52:54:00:00:00:01"),
            FieldTestWords(field=Field.ARP_TPA, kind=Kind.MASK_EQUAL, value="10.0.0.0", mask="255.255.255.0"),
        ],
        priority=7,
        flags=[FlagName.ENCAPSULATION, FlagName.ENCAPSULATION, FlagName.VLAN_UNTAGGED_OR_ZERO],
    )
    made = filter_of(words)
    assert made == Filter(
        (
            FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, 0x010000005452),
            FieldTest(Field.ARP_TPA, Kind.MASK_EQUAL, 0x0A000000, 0xFFFFFF00),
        ),
        priority=7,
        flags=Flag.ENCAPSULATION | Flag.VLAN_UNTAGGED_OR_ZERO,
    )
    assert mac_text(made.tests[0].value) == "52:54:00:00:00:01"


@pytest.mark.parametrize(
    ("field", "value", "mask", "fits"),
    [
        (Field.MAC_DESTINATION, "52:54:00:00:00:01", "ff:ff:ff:00:00:00", "52:54:00:00:00:00"),
        (Field.ARP_TPA, "10.0.0.1", "255.255.255.0", "10.0.0.0"),
        (Field.VLAN_ID, "0x123", "0x0f0", "0x20"),
        (Field.VLAN_ID, "5", "4", "4"),
    ],
)
def test_a_value_outside_its_mask_is_refused_with_the_one_inside(
    field: Field, value: str, mask: str, fits: str
):
    """In the words that it was written in."""
    test = FieldTestWords(field=field, kind=Kind.MASK_EQUAL, value=value, mask=mask)
    with pytest.raises(ApiError) as refused:
        filter_of(FilterWords(tests=[test]))
    wrong = f"{field}: {value} has bits outside the mask {mask}, so nothing equals it"
    assert (refused.value.status, refused.value.wrong) == ("INVALID_PARAMETER", wrong)
    assert refused.value.remedy == f"use {fits}"
    inside = FieldTestWords(field=field, kind=Kind.MASK_EQUAL, value=fits, mask=mask)
    assert filter_of(FilterWords(tests=[inside])).tests[0].value == number_of(field, fits)


def test_the_names_of_flags_are_the_flags_names():
    assert [name.name for name in FlagName] == [flag.name for flag in Flag]
    assert [name.value for name in FlagName] == [str(flag.name).lower() for flag in Flag]


@pytest.mark.parametrize(
    "spoiled",
    [
        {"tests": [], "reserved": 1},
        {"tests": [{"field": "mac", "value": 1}]},
        {"tests": [{"field": "vlan_id", "kind": "less", "value": 1}]},
        {"tests": [{"field": "vlan_id", "value": 1.5}]},
        {"tests": [{"field": "vlan_id"}]},
        {"tests": [], "flags": ["encapsulated"]},
        {"tests": [], "priority": 1 << 31},
        {},
    ],
)
def test_what_is_no_filter_by_its_form_is_refused(spoiled: dict[str, object]):
    with pytest.raises(ApiError, match=r"^set_filter: ") as refused:
        understood("set_filter", SetFilter, {"queue": 1, "filter": spoiled})
    assert refused.value.status == "INVALID_PARAMETER"
