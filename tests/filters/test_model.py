# SPDX-License-Identifier: Apache-2.0
"""One test against one value, and the words for both."""

from __future__ import annotations

import pytest

from vmq.abi.ethernet import mac_number
from vmq.filters.model import BITS, Field, FieldTest, Filter, Flag, Kind, PacketType, field_text

MAC = mac_number("52:54:00:12:34:56")


@pytest.mark.parametrize(("kind", "mask", "passing"), [
    (Kind.EQUAL, 0, [5]), (Kind.NOT_EQUAL, 0, [0, 1, 2, 3, 4, 6, 7]), (Kind.MASK_EQUAL, 5, [5, 7]),
])  # fmt: skip
def test_a_test_passes_what_ndis_says(kind: Kind, mask: int, passing: list[int]) -> None:
    """ndis NDIS_RECEIVE_FILTER_FIELD_PARAMETERS: equal, not equal, field & mask == value."""
    test = FieldTest(Field.PRIORITY, kind, 5, mask)

    assert [seen for seen in range(8) if test.passes(seen)] == passing


def test_every_field_has_a_width() -> None:
    assert set(BITS) == set(Field)


def test_packet_types_are_those_of_ndis() -> None:
    assert [(kind.name, kind.value) for kind in PacketType] == [
        ("UNICAST", 1),
        ("MULTICAST", 2),
        ("BROADCAST", 3),
    ]


@pytest.mark.parametrize(("field", "value", "text"), [
    (Field.MAC_DESTINATION, MAC, "52:54:00:12:34:56"), (Field.ARP_TPA, 10 << 24 | 2, "10.0.0.2"),
    (Field.ETHERTYPE, 0x806, "0x0806"), (Field.VLAN_ID, 5, "5"),
    (Field.MAC_SOURCE, 1 << 48, str(1 << 48)), (Field.ARP_SPA, -1, "-1"),
])  # fmt: skip
def test_a_value_reads_as_its_people_write_it(field: Field, value: int, text: str) -> None:
    """A value that does not fit is quoted in errors, too."""
    assert field_text(field, value) == text


def test_a_filter_reads_as_a_condition() -> None:
    tests = (
        FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, MAC),
        FieldTest(Field.PRIORITY, Kind.NOT_EQUAL, 3),
        FieldTest(Field.UDP_DESTINATION, Kind.MASK_EQUAL, 256, 65280),
    )

    text = str(Filter(tests, flags=Flag.VLAN_UNTAGGED_OR_ZERO | Flag.ENCAPSULATION))

    assert text == (
        "mac_destination == 52:54:00:12:34:56 and priority != 3 and udp_destination & 65280 == 256"
        " and vlan_untagged_or_zero and encapsulation"
    )
