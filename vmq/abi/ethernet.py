# SPDX-License-Identifier: Apache-2.0
"""Ethernet and 802.1Q: sizes, offsets, addresses.

A MAC address is an integer whose lowest byte is the first on the wire: that is what a little-endian load of
the frame's first six bytes gives, so a filter compares with no byte swapped. Bit 0 is then the group bit.
"""

from __future__ import annotations

from functools import lru_cache

ETH_ALEN = 6
ETH_HLEN = 14
ETH_TYPE_OFFSET = 12
VLAN_HLEN = 4  # ieee-802.1Q §9.6 VLAN Tag Control Information
ETH_P_8021Q = 0x8100
ETH_P_RARP = 0x8035
ETH_ZLEN = 60  # the shortest frame, without its check sequence
TPID_8021Q_LE = 0x0081  # the same as a little-endian load sees it
TPID_8021AD_LE = 0xA888  # ieee-802.1Q §9.5 Tag Protocol Identification: the service tag, 88a8
VLAN_VID_MASK = 0x0FFF
VLAN_VID_MAX = 4094
VLAN_PCP_SHIFT = 13  # ieee-802.1Q §9.6 VLAN Tag Control Information: priority is its three highest bits
MTU_MIN, MTU_MAX = 68, 65535  # rfc-791 §3.2 Discussion; virtio-1.2 §5.1.4 Device configuration layout

MAC_MASK = (1 << 48) - 1
MAC_GROUP_BIT = 1
MAC_BROADCAST = MAC_MASK
# ieee-802.1Q §8.6.3 Frame filtering: 01:80:c2:00:00:00 to 0f never cross a bridge
LINK_LOCAL_MASK = 0xF0FF_FFFF_FFFF
LINK_LOCAL_VALUE = 0x0000_00C2_8001


@lru_cache(maxsize=1 << 16)  # one for each address of a large configuration
def mac_number(text: str) -> int:
    """`52:54:00:00:00:01` as the integer described above; ValueError when it is none."""
    parts = text.split(":")
    if len(parts) != ETH_ALEN or any(len(part) != 2 for part in parts):
        raise ValueError(f"{text!r} is not a MAC address")
    return int.from_bytes(bytes(int(part, 16) for part in parts), "little")


def mac_text(number: int) -> str:
    """The integer of a MAC address as text, lower case with colons."""
    return ":".join(f"{byte:02x}" for byte in int(number).to_bytes(ETH_ALEN, "little"))
