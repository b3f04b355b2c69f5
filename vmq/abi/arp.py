# SPDX-License-Identifier: Apache-2.0
"""Address resolution for IPv4 on Ethernet. Numbers on the wire are big-endian."""

from __future__ import annotations

from vmq.abi.layout import packed, u8, u16, u32

ETH_P_ARP = 0x0806

# rfc-826 "Packet format"
arp = packed(
    28,
    ("hardware", u16),
    ("protocol", u16),
    ("hardware_length", u8),
    ("protocol_length", u8),
    ("operation", u16),
    ("sender_mac", u8, (6,)),
    ("sender_address", u32),
    ("target_mac", u8, (6,)),
    ("target_address", u32),
)
ARP_HARDWARE_ETHERNET = 1
ARP_LENGTHS = 0x0604  # of a MAC and an IPv4 address, both bytes as one number
