# SPDX-License-Identifier: Apache-2.0
"""What a filter means: the fields that a frame has, read header by header, and the tests that they pass.

    Ethernet ─┬─ ARP                                       ┌─ UDP to 4789 ── VXLAN ─┐
              └─ IPv4 with options, IPv6 without extension ┤                        ├─ inner Ethernet
                                                           └─ GRE with key ─ NVGRE ─┘

A frame is in normal form, as vmq/dataplane/classify.py describes it: untagged, its 802.1Q tag beside it. A header
that is cut short has no fields at all. Where the cut hides whether there is an inner Ethernet frame, a filter of
ENCAPSULATION matches nothing; where there is none, it looks at the outer one.

Of an IPv4 datagram in fragments, only the first has what follows its header. Lengths inside headers are not
compared with the frame's, and no checksum is computed: a filter chooses who reads the frame, and does not judge it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmq.abi.arp import ARP_HARDWARE_ETHERNET, ARP_LENGTHS, ETH_P_ARP, arp
from vmq.abi.ethernet import (
    ETH_ALEN,
    ETH_HLEN,
    ETH_TYPE_OFFSET,
    MAC_BROADCAST,
    MAC_GROUP_BIT,
    VLAN_PCP_SHIFT,
)
from vmq.abi.inet import ETH_P_IP, ETH_P_IPV6, IPPROTO_UDP, IPV4_OFFSET_MASK, ipv4, ipv6, udp
from vmq.abi.tunnel import ETH_P_TEB, GRE_KEY_PRESENT, IPPROTO_GRE, VXLAN_HAS_VNI, VXLAN_PORT, gre, vxlan
from vmq.filters.model import Field, Filter, Flag, PacketType


@dataclass(frozen=True)
class Seen:
    """The fields of one frame: of the outer one, and as a filter of ENCAPSULATION sees them."""

    outer: Mapping[Field, int]
    inner: Mapping[Field, int]


class CutShort(Exception):
    """The frame ends inside a header behind which there may be an inner frame."""


def matches(this: Filter, frame: bytes, vid: int, tci: int, tagged: bool) -> bool:
    """Whether the frame passes every test of the filter."""
    return passes(this, read(frame, vid, tci, tagged))


def passes(this: Filter, seen: Seen) -> bool:
    """The same for a frame that was read before."""
    fields = seen.inner if Flag.ENCAPSULATION in this.flags else seen.outer
    if Flag.VLAN_UNTAGGED_OR_ZERO in this.flags and fields.get(Field.VLAN_ID, 0) != 0:
        return False
    return all(test.field in fields and test.passes(fields[test.field]) for test in this.tests)


def read(frame: bytes, vid: int, tci: int, tagged: bool) -> Seen:
    """The fields of a frame whose tag, if it is `tagged`, is `tci`, of VLAN `vid`."""
    if len(frame) < ETH_HLEN:
        return Seen({}, {})
    ethertype = int.from_bytes(frame[ETH_TYPE_OFFSET:ETH_HLEN], "big")
    outer = _addresses(frame) | {Field.ETHERTYPE: ethertype}
    if tagged:
        outer |= {Field.VLAN_ID: vid, Field.PRIORITY: tci >> VLAN_PCP_SHIFT}
    readers = {ETH_P_ARP: _arp, ETH_P_IP: _ipv4, ETH_P_IPV6: _ipv6}
    if ethertype not in readers:
        return Seen(outer, outer)
    try:
        carried = readers[ethertype](outer, frame[ETH_HLEN:])
    except CutShort:
        return Seen(outer, {})
    return Seen(outer, outer | _addresses(carried) if carried else outer)


def _header(data: bytes, layout: np.dtype[Any]) -> tuple[Any, bytes]:
    """A header of the wire, and what follows it."""
    if len(data) < layout.itemsize:
        raise CutShort
    return np.frombuffer(data, layout.newbyteorder(">"), 1)[0], data[layout.itemsize :]


def _addresses(ethernet: bytes) -> dict[Field, int]:
    destination = int.from_bytes(ethernet[:ETH_ALEN], "little")
    if destination == MAC_BROADCAST:
        kind = PacketType.BROADCAST
    else:
        kind = PacketType.MULTICAST if destination & MAC_GROUP_BIT else PacketType.UNICAST
    return {
        Field.MAC_DESTINATION: destination,
        Field.MAC_SOURCE: int.from_bytes(ethernet[ETH_ALEN : 2 * ETH_ALEN], "little"),
        Field.PACKET_TYPE: int(kind),
    }


def _arp(fields: dict[Field, int], data: bytes) -> bytes:
    """Fields of a whole ARP packet for IPv4 on Ethernet, none of any other. Nothing is carried in it."""
    if len(data) < arp.itemsize:
        return b""
    packet, _ = _header(data, arp)
    lengths = int(packet["hardware_length"]) << 8 | int(packet["protocol_length"])
    if (packet["hardware"], packet["protocol"], lengths) == (ARP_HARDWARE_ETHERNET, ETH_P_IP, ARP_LENGTHS):
        fields[Field.ARP_OPERATION] = int(packet["operation"])
        fields[Field.ARP_SPA] = int(packet["sender_address"])
        fields[Field.ARP_TPA] = int(packet["target_address"])
    return b""


def _ipv4(fields: dict[Field, int], data: bytes) -> bytes:
    """Add the fields of an IPv4 packet; the inner Ethernet frame, empty where there is none."""
    packet, payload = _header(data, ipv4)
    version, words = divmod(int(packet["version_ihl"]), 16)
    options = 4 * words - ipv4.itemsize
    if version != 4 or options < 0:
        return b""
    if len(payload) < options:
        raise CutShort
    fields[Field.IPV4_PROTOCOL] = int(packet["protocol"])
    if int(packet["fragment"]) & IPV4_OFFSET_MASK:
        return b""
    return _transport(fields, int(packet["protocol"]), payload[options:])


def _ipv6(fields: dict[Field, int], data: bytes) -> bytes:
    """The same of an IPv6 packet."""
    packet, payload = _header(data, ipv6)
    if data[0] // 16 != 6:
        return b""
    fields[Field.IPV6_PROTOCOL] = int(packet["next_header"])
    return _transport(fields, int(packet["next_header"]), payload)


def _transport(fields: dict[Field, int], protocol: int, data: bytes) -> bytes:
    """The same of what follows an IP header."""
    if protocol == IPPROTO_UDP:
        datagram, data = _header(data, udp)
        fields[Field.UDP_DESTINATION] = int(datagram["destination"])
        if datagram["destination"] != VXLAN_PORT:
            return b""
        tunnel, carried = _header(data, vxlan)
        if not tunnel["flags"] & VXLAN_HAS_VNI:
            return b""
    elif protocol == IPPROTO_GRE:
        tunnel, carried = _header(data, gre)
        if (tunnel["flags"], tunnel["protocol"]) != (GRE_KEY_PRESENT, ETH_P_TEB):
            return b""
    else:
        return b""
    if len(carried) < ETH_HLEN:
        raise CutShort
    return carried
