# SPDX-License-Identifier: Apache-2.0
"""The shapes of frames that a filter can tell apart, and a frame of each with given values.

    with or without tag  ×  ARP, anything else, IPv4 or IPv6  ×  plain, UDP, VXLAN, NVGRE (the last three in IP only)

In one shape every field is either absent or has one place, a *column*: addresses have two in a tunnel, outer and
inner. A frame that is built here has no payload, and no checksum: it is shown to people, and read by filters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from itertools import product
from typing import Any

import numpy as np

from vmq.abi.arp import ARP_HARDWARE_ETHERNET, ARP_LENGTHS, ETH_P_ARP, arp
from vmq.abi.ethernet import ETH_ALEN, ETH_P_8021Q, VLAN_PCP_SHIFT
from vmq.abi.inet import ETH_P_IP, ETH_P_IPV6, IPPROTO_UDP, ipv4, ipv6, udp
from vmq.abi.tunnel import ETH_P_TEB, GRE_KEY_PRESENT, IPPROTO_GRE, VXLAN_HAS_VNI, VXLAN_PORT, gre, vxlan
from vmq.filters.model import Field, FieldTest, Kind

Column = tuple[Field, bool]  # of the inner Ethernet header?
Demand = tuple[Column, FieldTest]
PLAIN_IPV4 = 4 * 16 + ipv4.itemsize // 4  # version, and length in words
HOPS = 64


class Transport(Enum):
    """What follows an IP header."""

    PLAIN = auto()
    UDP = auto()
    VXLAN = auto()
    NVGRE = auto()


PROTOCOL_FIELDS = {ETH_P_IP: Field.IPV4_PROTOCOL, ETH_P_IPV6: Field.IPV6_PROTOCOL}
PROTOCOLS = {
    Transport.UDP: IPPROTO_UDP,
    Transport.VXLAN: IPPROTO_UDP,
    Transport.NVGRE: IPPROTO_GRE,
}


def equal(field: Field, value: int) -> FieldTest:
    return FieldTest(field, Kind.EQUAL, value)


def unequal(field: Field, value: int) -> FieldTest:
    return FieldTest(field, Kind.NOT_EQUAL, value)


@dataclass(frozen=True)
class Shape:
    """`network` is the EtherType, None for any that filters do not look behind."""

    tagged: bool
    network: int | None
    transport: Transport

    @property
    def tunnel(self) -> bool:
        return self.transport in (Transport.VXLAN, Transport.NVGRE)

    def has(self, field: Field) -> bool:
        """Whether frames of this shape have the field."""
        if field in (Field.VLAN_ID, Field.PRIORITY):
            return self.tagged
        if field in (Field.ARP_OPERATION, Field.ARP_SPA, Field.ARP_TPA):
            return self.network == ETH_P_ARP
        if field in PROTOCOL_FIELDS.values():
            return self.network is not None and PROTOCOL_FIELDS.get(self.network) == field
        if field is Field.UDP_DESTINATION:
            return self.transport in (Transport.UDP, Transport.VXLAN)
        return True

    def demands(self) -> Iterator[Demand]:
        """What makes a frame one of this shape and no other."""
        for test in self._tests():
            yield (test.field, False), test

    def _tests(self) -> Iterator[FieldTest]:
        if self.network is None:
            for known in (ETH_P_ARP, ETH_P_IP, ETH_P_IPV6):
                yield unequal(Field.ETHERTYPE, known)
            if not self.tagged:  # such a frame would be tagged
                yield unequal(Field.ETHERTYPE, ETH_P_8021Q)
            return
        yield equal(Field.ETHERTYPE, self.network)
        if self.network == ETH_P_ARP:
            return
        field = PROTOCOL_FIELDS[self.network]
        if self.transport is Transport.PLAIN:
            yield unequal(field, IPPROTO_UDP)
            yield unequal(field, IPPROTO_GRE)
            return
        yield equal(field, PROTOCOLS[self.transport])
        if self.transport is Transport.UDP:
            yield unequal(Field.UDP_DESTINATION, VXLAN_PORT)
        elif self.transport is Transport.VXLAN:
            yield equal(Field.UDP_DESTINATION, VXLAN_PORT)


SHAPES = tuple(
    Shape(tagged, network, transport)
    for tagged, network, transport in product(
        (False, True), (None, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6), Transport
    )
    if transport is Transport.PLAIN or network in PROTOCOL_FIELDS
)


def tag(values: Mapping[Column, int]) -> tuple[int, int]:
    """VLAN id and TCI of a tagged frame; zeros of an untagged one, whose fields have no values."""
    vid = values.get((Field.VLAN_ID, False), 0)
    return vid, values.get((Field.PRIORITY, False), 0) << VLAN_PCP_SHIFT | vid


def build(shape: Shape, values: Mapping[Column, int]) -> bytes:
    """A frame of this shape, without tag; columns without a value are 0."""

    def value(field: Field) -> int:
        return values.get((field, False), 0)

    frame = _addresses(values, inner=False) + value(Field.ETHERTYPE).to_bytes(2, "big")
    if shape.network == ETH_P_ARP:
        return frame + _header(
            arp,
            hardware=ARP_HARDWARE_ETHERNET,
            protocol=ETH_P_IP,
            hardware_length=ARP_LENGTHS >> 8,
            protocol_length=ARP_LENGTHS & 255,
            operation=value(Field.ARP_OPERATION),
            sender_address=value(Field.ARP_SPA),
            target_address=value(Field.ARP_TPA),
        )
    if shape.network is None:
        return frame
    payload = _transport(shape.transport, values)
    protocol = value(PROTOCOL_FIELDS[shape.network])
    if shape.network == ETH_P_IPV6:
        return (
            frame
            + _header(ipv6, flow=6 << 28, payload_length=len(payload), next_header=protocol, hop_limit=HOPS)
            + payload
        )
    return (
        frame
        + _header(
            ipv4,
            version_ihl=PLAIN_IPV4,
            total_length=ipv4.itemsize + len(payload),
            ttl=HOPS,
            protocol=protocol,
        )
        + payload
    )


def _transport(transport: Transport, values: Mapping[Column, int]) -> bytes:
    """What follows the IP header."""
    carried = _addresses(values, inner=True) + bytes(2)
    if transport is Transport.NVGRE:
        return _header(gre, flags=GRE_KEY_PRESENT, protocol=ETH_P_TEB) + carried
    if transport is Transport.PLAIN:
        return b""
    payload = _header(vxlan, flags=VXLAN_HAS_VNI) + carried if transport is Transport.VXLAN else b""
    port = values.get((Field.UDP_DESTINATION, False), 0)
    return _header(udp, destination=port, length=udp.itemsize + len(payload)) + payload


def _addresses(values: Mapping[Column, int], *, inner: bool) -> bytes:
    return b"".join(
        values.get((field, inner), 0).to_bytes(ETH_ALEN, "little")
        for field in (Field.MAC_DESTINATION, Field.MAC_SOURCE)
    )


def _header(layout: np.dtype[Any], **values: int) -> bytes:
    row = np.zeros(1, layout.newbyteorder(">"))
    for name, value in values.items():
        row[name] = value
    return row.tobytes()
