# SPDX-License-Identifier: Apache-2.0
"""The words of receive filters: fields, tests, filters, and what an engine can apply.

A test compares one field of a frame. All numbers are as people read them, first byte on the wire highest, except
MAC addresses: those are the integers of vmq/abi/ethernet.py, whose lowest byte is the first on the wire.

Two rules settle what NDIS leaves open. A frame that does not have the field fails the test, whatever its kind: an
untagged frame does not pass "VLAN is not 5". And a filter of ENCAPSULATION looks at the addresses (and with them the
packet type) of the inner Ethernet frame where there is one; every other field stays the outer frame's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag, StrEnum
from ipaddress import IPv4Address

from vmq.abi.ethernet import mac_text


class Field(StrEnum):
    """ndis NDIS_MAC_HEADER_FIELD, NDIS_ARP_HEADER_FIELD and their like for IPv4, IPv6 and UDP."""

    MAC_DESTINATION = "mac_destination"
    MAC_SOURCE = "mac_source"
    ETHERTYPE = "ethertype"
    VLAN_ID = "vlan_id"
    PRIORITY = "priority"
    PACKET_TYPE = "packet_type"
    ARP_OPERATION = "arp_operation"
    ARP_SPA = "arp_spa"
    ARP_TPA = "arp_tpa"
    IPV4_PROTOCOL = "ipv4_protocol"
    IPV6_PROTOCOL = "ipv6_protocol"
    UDP_DESTINATION = "udp_destination"


BITS = {
    Field.MAC_DESTINATION: 48,
    Field.MAC_SOURCE: 48,
    Field.ETHERTYPE: 16,
    Field.VLAN_ID: 12,
    Field.PRIORITY: 3,
    Field.PACKET_TYPE: 2,
    Field.ARP_OPERATION: 16,
    Field.ARP_SPA: 32,
    Field.ARP_TPA: 32,
    Field.IPV4_PROTOCOL: 8,
    Field.IPV6_PROTOCOL: 8,
    Field.UDP_DESTINATION: 16,
}
ADDRESSES = frozenset(
    {Field.MAC_DESTINATION, Field.MAC_SOURCE, Field.PACKET_TYPE}
)  # what ENCAPSULATION moves


class PacketType(IntEnum):
    """ndis NDIS_MAC_PACKET_TYPE: follows from the destination."""

    UNICAST = 1
    MULTICAST = 2
    BROADCAST = 3


class Kind(StrEnum):
    """ndis NDIS_RECEIVE_FILTER_TEST."""

    EQUAL = "equal"
    NOT_EQUAL = "not_equal"
    MASK_EQUAL = "mask_equal"  # field & mask == value


class Flag(IntFlag):
    """The first belongs to the MAC test in NDIS, the second to the filter; both concern the filter as a whole."""

    VLAN_UNTAGGED_OR_ZERO = 1  # ndis NDIS_RECEIVE_FILTER_FIELD_MAC_HEADER_VLAN_UNTAGGED_OR_ZERO
    ENCAPSULATION = 2  # ndis NDIS_RECEIVE_FILTER_PACKET_ENCAPSULATION


NO_FLAGS = Flag(0)
ALL_FLAGS = Flag.VLAN_UNTAGGED_OR_ZERO | Flag.ENCAPSULATION


@dataclass(frozen=True)
class FieldTest:
    """One comparison; `mask` belongs to MASK_EQUAL and is 0 otherwise."""

    field: Field
    kind: Kind
    value: int
    mask: int = 0

    def passes(self, seen: int) -> bool:
        """Whether a frame passes that has the field, with the value `seen`."""
        if self.kind is Kind.EQUAL:
            return seen == self.value
        if self.kind is Kind.NOT_EQUAL:
            return seen != self.value
        return seen & self.mask == self.value

    def __str__(self) -> str:
        value = field_text(self.field, self.value)
        if self.kind is Kind.MASK_EQUAL:
            return f"{self.field} & {field_text(self.field, self.mask)} == {value}"
        return f"{self.field} {'==' if self.kind is Kind.EQUAL else '!='} {value}"


@dataclass(frozen=True)
class Filter:
    """What a frame must pass, all of it. Of two filters that match a frame, the one of higher `priority` decides."""

    tests: tuple[FieldTest, ...]
    priority: int = 0
    flags: Flag = NO_FLAGS
    reserved: int = 0  # ndis RequestedFilterIdBitCount and the FilterId beside a frame: must be 0

    def __str__(self) -> str:
        words = [str(test) for test in self.tests]
        words += [str(flag.name).lower() for flag in Flag if flag in self.flags]
        return " and ".join(words)


@dataclass(frozen=True)
class Capabilities:
    """What an engine, or an uplink that filters for it, can apply; the default is this engine's software."""

    tests: frozenset[Kind] = frozenset(Kind)
    fields: frozenset[Field] = frozenset(Field)
    flags: Flag = ALL_FLAGS
    any_vlan: bool = True  # ndis AnyVlanSupported: MAC alone, whatever the VLAN
    tests_per_filter: int = 16


def field_text(field: Field, value: int) -> str:
    """A field's value, or a mask for it, as the field's people write it."""
    if field in (Field.MAC_DESTINATION, Field.MAC_SOURCE) and 0 <= value < 1 << BITS[field]:
        return mac_text(value)
    if field in (Field.ARP_SPA, Field.ARP_TPA) and 0 <= value < 1 << BITS[field]:
        return str(IPv4Address(value))
    return f"{value:#06x}" if field is Field.ETHERTYPE else str(value)
