# SPDX-License-Identifier: Apache-2.0
"""Ethernet inside IP: VXLAN and NVGRE. Numbers on the wire are big-endian."""

from __future__ import annotations

from vmq.abi.layout import packed, u8, u16, u32

# rfc-7348 §5 VXLAN Frame Format
VXLAN_PORT = 4789
vxlan = packed(8, ("flags", u8), ("reserved", u8, (3,)), ("vni", u32))  # the lowest byte is reserved, too
VXLAN_HAS_VNI = 0x08  # the flag I: without it there is no valid VXLAN header

# rfc-7637 §3.2 NVGRE Frame Format: a GRE header with a key, and neither checksum nor sequence number
IPPROTO_GRE = 47
gre = packed(8, ("flags", u16), ("protocol", u16), ("key", u32))
GRE_KEY_PRESENT = 0x2000
ETH_P_TEB = 0x6558  # an Ethernet frame follows
