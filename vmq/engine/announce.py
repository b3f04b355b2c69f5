# SPDX-License-Identifier: Apache-2.0
"""The frame that tells a network where an address is now: a RARP request, as QEMU sends for guests that cannot.

rfc-903 Packet Format: hardware type 1, protocol 0x0800, lengths 6 and 4, operation 3; both hardware addresses are the
VM's, both protocol addresses zero. Padded to 60 bytes.
"""

from __future__ import annotations

import struct

from vmq.abi.ethernet import ETH_ALEN, ETH_P_8021Q, ETH_P_RARP, ETH_ZLEN

_RARP = struct.Struct("!HHBBH6s4s6s4s")
_ETHERNET, _IPV4, _REQUEST_REVERSE = 1, 2048, 3


def rarp(mac: int, vlan: int) -> bytes:
    """The announcement of `mac`, tagged if `vlan` is not 0."""
    address = int(mac).to_bytes(ETH_ALEN, "little")
    tag = struct.pack("!HH", ETH_P_8021Q, vlan) if vlan else b""
    body = _RARP.pack(_ETHERNET, _IPV4, ETH_ALEN, 4, _REQUEST_REVERSE, address, bytes(4), address, bytes(4))
    frame = b"\xff" * ETH_ALEN + address + tag + struct.pack("!H", ETH_P_RARP) + body
    return frame.ljust(ETH_ZLEN + len(tag), b"\0")
