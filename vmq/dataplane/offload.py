# SPDX-License-Identifier: Apache-2.0
"""What a NIC's offloads left undone, done in software: checksums, and segments of super-frames.

        super-frame   [Ethernet | IP | TCP or UDP | payload ........................................]
        segment 0     [Ethernet | IP'| TCP'         size bytes ]
        segment 1     [Ethernet | IP'| TCP'                     size bytes ]            … the last one is shorter

`plan` finds the headers and checks every length against the frame, once; `segment` then makes one segment after the
other, when there is room for it, so that one super-frame may take several rounds and no round more than its share.

A sum of 16-bit words does not depend on the byte order (rfc-1071 §2 Calculating the Checksum), so words are loaded
and the result stored as the host reads them. Nothing here trusts `hdr_len`, the IP length or a checksum already in
the frame. What cannot be cut without deeper knowledge (fragments, routing headers, tunnels) is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import ETH_HLEN, ETH_P_8021Q, ETH_TYPE_OFFSET, VLAN_HLEN
from vmq.abi.inet import (
    ETH_P_8021AD,
    ETH_P_IP,
    ETH_P_IPV6,
    IPPROTO_DSTOPTS,
    IPPROTO_HOPOPTS,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPV4_FRAGMENT_MASK,
    TCP_CWR,
    TCP_FIN,
    TCP_PSH,
    ipv4,
    ipv6,
    tcp,
    udp,
)
from vmq.abi.layout import offset as place_of
from vmq.abi.virtio import NET_HDR_GSO_TCPV4, NET_HDR_GSO_TCPV6, NET_HDR_GSO_UDP_L4
from vmq.dataplane.state import M16, M32
from vmq.jit import copy, int64, kernel, peek, poke

IPV4_LENGTH, IPV4_ID = place_of(ipv4, "total_length"), place_of(ipv4, "id")
IPV4_FRAGMENT, IPV4_PROTOCOL = place_of(ipv4, "fragment"), place_of(ipv4, "protocol")
IPV4_CHECKSUM, IPV4_ADDRESSES = place_of(ipv4, "checksum"), place_of(ipv4, "source")
IPV6_LENGTH, IPV6_NEXT = place_of(ipv6, "payload_length"), place_of(ipv6, "next_header")
IPV6_ADDRESSES = place_of(ipv6, "source")
TCP_SEQUENCE, TCP_OFFSET = place_of(tcp, "sequence"), place_of(tcp, "data_offset")
TCP_FLAGS, TCP_CHECKSUM = place_of(tcp, "flags"), place_of(tcp, "checksum")
UDP_LENGTH, UDP_CHECKSUM = place_of(udp, "length"), place_of(udp, "checksum")
IPV4_HEADER, IPV6_HEADER = ipv4.itemsize, ipv6.itemsize
TCP_HEADER, UDP_HEADER = tcp.itemsize, udp.itemsize

TAGS_MAX = 2  # tags in front of IP that are skipped
EXTENSIONS_MAX = 8  # IPv6 extension headers that are skipped
EXTENSION_UNIT = 8


@kernel
def swap16(value: int) -> int:
    """A 16-bit number in the other byte order."""
    return ((value & 255) << 8) | ((value >> 8) & 255)


@kernel
def byte_at(address: int) -> int:
    return int64(peek(address, np.uint8))


@kernel
def word_at(address: int) -> int:
    """A 16-bit number of the wire."""
    return swap16(int64(peek(address, np.uint16)))


@kernel
def put_word(address: int, value: int) -> None:
    poke(address, np.uint16, np.uint16(swap16(value)))


@kernel
def sum_words(address: int, length: int) -> int:
    """Sum of 16-bit words as the host reads them, not folded; an odd last byte is followed by a zero."""
    total = int64(0)
    for index in range(0, length - 3, 4):
        total += int64(peek(address + index, np.uint32))
    rest = length & ~3
    if length & 2:
        total += int64(peek(address + rest, np.uint16))
        rest += 2
    if length & 1:
        total += int64(peek(address + rest, np.uint8))
    return total


@kernel
def fold(total: int) -> int:
    """A sum as one 16-bit word, end-around carry."""
    while total > M16:
        total = (total & M16) + (total >> 16)
    return total


@kernel
def put_checksum(address: int, total: int) -> None:
    """Store the checksum of a TCP or UDP sum. Zero would mean "none": rfc-768 "Fields"."""
    value = fold(total) ^ M16
    poke(address, np.uint16, np.uint16(value if value else M16))


@kernel
def finish_checksum(address: int, length: int, start: int, offset: int) -> bool:
    """Complete a checksum in place: bytes `start` to the end, result at `start + offset`, where the sum of the
    pseudo-header is already; False, and nothing done, if that does not lie behind the frame's Ethernet header.
    """
    if start < ETH_HLEN or offset < 0 or start > length or offset > length - start - 2:
        return False
    put_checksum(address + start + offset, sum_words(address + start, length - start))
    return True


@kernel
def over_ipv4(address: int, length: int, network: int) -> tuple[int, int]:
    """Where the header behind an IPv4 header begins, and its protocol; (0, 0) if the header does not fit."""
    if network + IPV4_HEADER > length:
        return int64(0), int64(0)
    place = address + network
    size = (byte_at(place) & 15) * 4
    claimed = word_at(place + IPV4_LENGTH)
    if byte_at(place) >> 4 != 4 or size < IPV4_HEADER or network + size > length:
        return int64(0), int64(0)
    # Some senders leave the length of a super-frame to whoever cuts it.
    if claimed != 0 and claimed != length - network:
        return int64(0), int64(0)
    if word_at(place + IPV4_FRAGMENT) & IPV4_FRAGMENT_MASK:
        return int64(0), int64(0)
    return network + size, byte_at(place + IPV4_PROTOCOL)


@kernel
def over_ipv6(address: int, length: int, network: int) -> tuple[int, int]:
    """The same for IPv6; options are skipped, a routing or fragment header is no transport."""
    transport = network + IPV6_HEADER
    if transport > length or byte_at(address + network) >> 4 != 6:
        return int64(0), int64(0)
    claimed = word_at(address + network + IPV6_LENGTH)
    if claimed != 0 and claimed != length - transport:
        return int64(0), int64(0)
    protocol = byte_at(address + network + IPV6_NEXT)
    for _ in range(EXTENSIONS_MAX):
        if protocol != IPPROTO_HOPOPTS and protocol != IPPROTO_DSTOPTS:
            break
        if transport + EXTENSION_UNIT > length:
            return int64(0), int64(0)
        protocol = byte_at(address + transport)
        transport += EXTENSION_UNIT * (1 + byte_at(address + transport + 1))
    return transport, protocol


@kernel
def over_ethernet(address: int, length: int) -> tuple[int, int]:
    """Where the header behind Ethernet and its tags begins, and its EtherType; at most `length`."""
    network = int64(ETH_HLEN)
    kind = word_at(address + ETH_TYPE_OFFSET)
    for _ in range(TAGS_MAX):
        if (kind != ETH_P_8021Q and kind != ETH_P_8021AD) or network + VLAN_HLEN > length:
            break
        network += VLAN_HLEN
        kind = word_at(address + network - 2)
    return network, kind


@kernel
def plan(big: Any) -> bool:
    """Find the headers of a super-frame (`address`, `length`, `kind`, `size` are set); False if it is none."""
    address, length, kind = int64(big["address"]), int64(big["length"]), int64(big["kind"])
    size = int64(big["size"])
    if length < ETH_HLEN or size <= 0:
        return False
    network, ethertype = over_ethernet(address, length)
    if ethertype == ETH_P_IP and kind != NET_HDR_GSO_TCPV6:
        transport, protocol = over_ipv4(address, length, network)
    elif ethertype == ETH_P_IPV6 and kind != NET_HDR_GSO_TCPV4:
        transport, protocol = over_ipv6(address, length, network)
    else:
        return False
    if kind == NET_HDR_GSO_UDP_L4:
        if protocol != IPPROTO_UDP or transport == 0:
            return False
        payload = transport + UDP_HEADER
    elif kind in (NET_HDR_GSO_TCPV4, NET_HDR_GSO_TCPV6):
        if protocol != IPPROTO_TCP or transport == 0 or transport + TCP_HEADER > length:
            return False
        header = (byte_at(address + transport + TCP_OFFSET) >> 4) * 4
        if header < TCP_HEADER:
            return False
        payload = transport + header
    else:
        return False
    if payload >= length:
        return False
    big["network"] = network
    big["transport"] = transport
    big["payload"] = payload
    big["next"] = 0
    big["count"] = (length - payload + size - 1) // size
    return True


@kernel
def checksum_offset(big: Any) -> int:
    """Where the checksum lies in the transport header of a planned super-frame."""
    return UDP_CHECKSUM if big["kind"] == NET_HDR_GSO_UDP_L4 else TCP_CHECKSUM


@kernel
def segment_length(big: Any) -> int:
    """Bytes of the next segment."""
    payload, size = int64(big["payload"]), int64(big["size"])
    return payload + min(size, int64(big["length"]) - payload - int64(big["next"]) * size)


@kernel
def fix_network(ip: int, length: int, number: int, transport: int) -> int:
    """Length, identification and header checksum of an IP header; the sum of its pseudo-header addresses.

    `length` counts from `ip`, and so does `transport`.
    """
    if byte_at(ip) >> 4 == 6:
        put_word(ip + IPV6_LENGTH, length - IPV6_HEADER)
        return sum_words(ip + IPV6_ADDRESSES, IPV6_HEADER - IPV6_ADDRESSES)
    put_word(ip + IPV4_LENGTH, length)
    put_word(ip + IPV4_ID, (word_at(ip + IPV4_ID) + number) & M16)
    put_word(ip + IPV4_CHECKSUM, 0)
    poke(ip + IPV4_CHECKSUM, np.uint16, np.uint16(fold(sum_words(ip, transport)) ^ M16))
    return sum_words(ip + IPV4_ADDRESSES, IPV4_HEADER - IPV4_ADDRESSES)


@kernel
def fix_tcp(place: int, ahead: int, last: bool) -> None:
    """Sequence number and flags of a segment that begins `ahead` bytes into the payload.

    FIN and PSH belong to the last segment, CWR to the first. rfc-9293 §3.1 Header Format
    """
    high, low = word_at(place + TCP_SEQUENCE), word_at(place + TCP_SEQUENCE + 2)
    sequence = ((high << 16 | low) + ahead) & M32
    put_word(place + TCP_SEQUENCE, sequence >> 16)
    put_word(place + TCP_SEQUENCE + 2, sequence & M16)
    flags = byte_at(place + TCP_FLAGS)
    if not last:
        flags &= ~(TCP_FIN | TCP_PSH)
    if ahead > 0:
        flags &= ~TCP_CWR
    poke(place + TCP_FLAGS, np.uint8, np.uint8(flags))


@kernel
def segment(big: Any, to: int) -> int:
    """Make the next segment of a planned super-frame at `to`; its length, which is `segment_length`."""
    source, payload = int64(big["address"]), int64(big["payload"])
    network, transport = int64(big["network"]), int64(big["transport"])
    number = int64(big["next"])
    ahead = number * int64(big["size"])
    length = segment_length(big)
    copy(to, source, payload)
    copy(to + payload, source + payload + ahead, length - payload)
    big["next"] = number + 1
    total = fix_network(to + network, length - network, number, transport - network)
    place, rest = to + transport, length - transport
    if big["kind"] == NET_HDR_GSO_UDP_L4:
        put_word(place + UDP_LENGTH, rest)
        total += swap16(IPPROTO_UDP)
    else:
        fix_tcp(place, ahead, big["next"] == big["count"])
        total += swap16(IPPROTO_TCP)
    put_word(place + checksum_offset(big), 0)
    put_checksum(place + checksum_offset(big), total + swap16(rest) + sum_words(place, rest))
    return length
