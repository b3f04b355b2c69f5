# SPDX-License-Identifier: Apache-2.0
"""IPv4, IPv6, TCP and UDP headers as far as checksums and segmentation reach into them.

Numbers on the wire are big-endian; a layout says where a field is and how wide, not its byte order.
"""

from __future__ import annotations

from vmq.abi.layout import packed, u8, u16, u32

ETH_P_IP, ETH_P_IPV6, ETH_P_8021AD = 0x0800, 0x86DD, 0x88A8
ETH_P_IP_LE = 0x0008  # the same as a little-endian load sees it

# rfc-791 §3.1 Internet Header Format
ipv4 = packed(
    20,
    ("version_ihl", u8),  # header length in words of four bytes: the low half
    ("tos", u8),
    ("total_length", u16),
    ("id", u16),
    ("fragment", u16),
    ("ttl", u8),
    ("protocol", u8),
    ("checksum", u16),
    ("source", u32),
    ("destination", u32),
)
IPV4_PLAIN = 0x45  # version_ihl of a header without options
IPV4_FRAGMENT_MASK = 0x3FFF  # more fragments, and the offset
IPV4_OFFSET_MASK = 0x1FFF  # the offset alone

# rfc-8200 §3 IPv6 Header Format
ipv6 = packed(
    40,
    ("flow", u32),
    ("payload_length", u16),
    ("next_header", u8),
    ("hop_limit", u8),
    ("source", u8, (16,)),
    ("destination", u8, (16,)),
)
# rfc-8200 §4 IPv6 Extension Headers: both begin with next header, and length in units of eight bytes less one
IPPROTO_HOPOPTS, IPPROTO_DSTOPTS = 0, 60
IPPROTO_TCP, IPPROTO_UDP = 6, 17

# rfc-9293 §3.1 Header Format
tcp = packed(
    20,
    ("source", u16),
    ("destination", u16),
    ("sequence", u32),
    ("acknowledgement", u32),
    ("data_offset", u8),  # header length in words of four bytes: the high half
    ("flags", u8),
    ("window", u16),
    ("checksum", u16),
    ("urgent", u16),
)
TCP_FIN, TCP_PSH, TCP_CWR = 0x01, 0x08, 0x80

# rfc-768 "Format"
udp = packed(8, ("source", u16), ("destination", u16), ("length", u16), ("checksum", u16))
