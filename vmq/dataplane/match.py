# SPDX-License-Identifier: Apache-2.0
"""Generic receive filters, for frames of segments that have one: read the headers once, then test row after row.

    rows     [test │ test │ last test, target] [last test, target] [test │ last test, target]
              filter 0: first in order          filter 1            filter 2

A row is one test, a line of the cache; a filter is a run of rows, in the order of priority. `parse` turns the
headers into columns of numbers, each present or not; a column that is not present fails every test. What a filter
says in words (encapsulation, untagged frames) is a column of its own, so the loop of `match` knows no cases.

What a frame's columns are is defined by vmq/filters/reference.py, in Python that shares nothing with this file.
Only the first part of a frame is read, `head` bytes: the rest of a guest's frame is still the guest's to change.
"""

from __future__ import annotations

from typing import Any

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
from vmq.abi.layout import i64, offset, rows
from vmq.abi.tunnel import ETH_P_TEB, GRE_KEY_PRESENT, IPPROTO_GRE, VXLAN_HAS_VNI, VXLAN_PORT, gre, vxlan
from vmq.dataplane.classify import mac_at
from vmq.dataplane.offload import byte_at, word_at
from vmq.dataplane.state import M16, NONE
from vmq.jit import at, int64, kernel

COLUMNS = (
    "mac_destination",
    "mac_source",
    "packet_type",
    "inner_mac_destination",  # these three: of the outer frame where there is no inner one
    "inner_mac_source",
    "inner_packet_type",
    "ethertype",
    "vlan_id",
    "priority",
    "vlan_or_zero",  # 0 for an untagged frame
    "arp_operation",
    "arp_spa",
    "arp_tpa",
    "ipv4_protocol",
    "ipv6_protocol",
    "udp_destination",
)
(
    MAC_DESTINATION,
    MAC_SOURCE,
    PACKET_TYPE,
    INNER_MAC_DESTINATION,
    INNER_MAC_SOURCE,
    INNER_PACKET_TYPE,
    ETHERTYPE,
    VLAN_ID,
    PRIORITY,
    VLAN_OR_ZERO,
    ARP_OPERATION,
    ARP_SPA,
    ARP_TPA,
    IPV4_PROTOCOL,
    IPV6_PROTOCOL,
    UDP_DESTINATION,
) = range(len(COLUMNS))
UNICAST, MULTICAST, BROADCAST = 1, 2, 3  # ndis NDIS_MAC_PACKET_TYPE

field_test = rows(  # control, before publication
    ("column", i64),
    ("mask", i64),
    ("value", i64),
    ("negated", i64),
    ("target", i64),  # of the filter, in its last row; NONE before
    ("next", i64),  # the first row of the next filter
)
columns = rows(("present", i64), ("value", i64, (len(COLUMNS),)))  # a worker's scratch: one frame

CUT = -1  # a header ends behind the head
ARP_PROTOCOL, ARP_SIZES = offset(arp, "protocol"), offset(arp, "hardware_length")
ARP_CODE = offset(arp, "operation")
ARP_SENDER, ARP_TARGET = offset(arp, "sender_address"), offset(arp, "target_address")
ARP_HEADER = arp.itemsize
IPV4_FRAGMENT, IPV4_NEXT = offset(ipv4, "fragment"), offset(ipv4, "protocol")
IPV6_NEXT = offset(ipv6, "next_header")
IPV4_HEADER, IPV6_HEADER = ipv4.itemsize, ipv6.itemsize
UDP_PORT, UDP_HEADER = offset(udp, "destination"), udp.itemsize
VXLAN_HEADER = vxlan.itemsize
GRE_PROTOCOL, GRE_HEADER = offset(gre, "protocol"), gre.itemsize


@kernel
def put(fields: Any, column: int, value: int) -> None:
    fields["value"][column] = value
    fields["present"] |= int64(1) << column


@kernel
def long_at(address: int) -> int:
    """A 32-bit number of the wire."""
    return (word_at(address) << 16) | word_at(address + 2)


@kernel
def put_addresses(fields: Any, ethernet: int, first: int) -> None:
    """The addresses of an Ethernet header into three columns from `first` on."""
    mac = mac_at(ethernet)
    put(fields, first, mac)
    put(fields, first + 1, mac_at(ethernet + ETH_ALEN))
    if mac == MAC_BROADCAST:
        put(fields, first + 2, BROADCAST)
    elif mac & MAC_GROUP_BIT:
        put(fields, first + 2, MULTICAST)
    else:
        put(fields, first + 2, UNICAST)


@kernel
def parse_arp(fields: Any, place: int, end: int) -> None:
    """A whole ARP packet for IPv4 on Ethernet; nothing of any other."""
    if place + ARP_HEADER > end or word_at(place) != ARP_HARDWARE_ETHERNET:
        return
    if word_at(place + ARP_PROTOCOL) != ETH_P_IP or word_at(place + ARP_SIZES) != ARP_LENGTHS:
        return
    put(fields, ARP_OPERATION, word_at(place + ARP_CODE))
    put(fields, ARP_SPA, long_at(place + ARP_SENDER))
    put(fields, ARP_TPA, long_at(place + ARP_TARGET))


@kernel
def parse_transport(fields: Any, protocol: int, place: int, end: int) -> int:
    """What follows an IP header: address of the inner Ethernet header, 0 without, or CUT."""
    if protocol == IPPROTO_UDP:
        if place + UDP_HEADER > end:
            return CUT
        port = word_at(place + UDP_PORT)
        put(fields, UDP_DESTINATION, port)
        if port != VXLAN_PORT:
            return 0
        place += UDP_HEADER
        if place + VXLAN_HEADER > end:
            return CUT
        if not byte_at(place) & VXLAN_HAS_VNI:
            return 0
        place += VXLAN_HEADER
    elif protocol == IPPROTO_GRE:
        if place + GRE_HEADER > end:
            return CUT
        if word_at(place) != GRE_KEY_PRESENT or word_at(place + GRE_PROTOCOL) != ETH_P_TEB:
            return 0
        place += GRE_HEADER
    else:
        return 0
    return place if place + ETH_HLEN <= end else CUT


@kernel
def parse_ipv4(fields: Any, place: int, end: int) -> int:
    """The same for an IPv4 packet. The later fragments of a datagram have no header behind their own."""
    if place + IPV4_HEADER > end:
        return CUT
    size = (byte_at(place) & 15) * 4
    if byte_at(place) >> 4 != 4 or size < IPV4_HEADER:
        return 0
    if place + size > end:
        return CUT
    protocol = byte_at(place + IPV4_NEXT)
    put(fields, IPV4_PROTOCOL, protocol)
    if word_at(place + IPV4_FRAGMENT) & IPV4_OFFSET_MASK:
        return 0
    return parse_transport(fields, protocol, place + size, end)


@kernel
def parse_ipv6(fields: Any, place: int, end: int) -> int:
    """The same for an IPv6 packet; extension headers are a protocol like any other."""
    if place + IPV6_HEADER > end:
        return CUT
    if byte_at(place) >> 4 != 6:
        return 0
    protocol = byte_at(place + IPV6_NEXT)
    put(fields, IPV6_PROTOCOL, protocol)
    return parse_transport(fields, protocol, place + IPV6_HEADER, end)


@kernel
def parse(row: Any, fields: Any) -> None:
    """Read the columns of a frame in normal form, from its first part and the tag beside it."""
    fields["present"] = 0
    ethernet = int64(row["address"])
    end = ethernet + int64(row["head"])
    if row["head"] < ETH_HLEN:
        return
    put_addresses(fields, ethernet, MAC_DESTINATION)
    kind = word_at(ethernet + ETH_TYPE_OFFSET)
    put(fields, ETHERTYPE, kind)
    put(fields, VLAN_OR_ZERO, 0)
    if row["tagged"]:
        put(fields, VLAN_ID, int64(row["vid"]))
        put(fields, VLAN_OR_ZERO, int64(row["vid"]))
        put(fields, PRIORITY, (int64(row["tci"]) & M16) >> VLAN_PCP_SHIFT)
    inner = int64(0)
    if kind == ETH_P_IP:
        inner = parse_ipv4(fields, ethernet + ETH_HLEN, end)
    elif kind == ETH_P_IPV6:
        inner = parse_ipv6(fields, ethernet + ETH_HLEN, end)
    elif kind == ETH_P_ARP:
        parse_arp(fields, ethernet + ETH_HLEN, end)
    if inner != CUT:
        put_addresses(fields, inner if inner else ethernet, INNER_MAC_DESTINATION)


@kernel
def match(table: int, count: int, fields: Any) -> int:
    """The target of the first filter that the parsed frame passes, or NONE; `count` rows begin at `table`."""
    tests = at(table, count, field_test)
    present, values = int64(fields["present"]), fields["value"]
    index = int64(0)
    while index < count:
        row = tests[index]
        column = int64(row["column"])
        equal = (int64(values[column]) & int64(row["mask"])) == int64(row["value"])
        if (present >> column) & 1 and equal != (row["negated"] != 0):
            if row["target"] != NONE:
                return int64(row["target"])
            index += 1
        else:
            index = int64(row["next"])
    return NONE
