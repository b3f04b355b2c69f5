# SPDX-License-Identifier: Apache-2.0
"""Capture files: the classic format and pcapng, both in either byte order.

Layouts are little-endian; a file in the other order is read with their `newbyteorder`.
"""

from __future__ import annotations

from vmq.abi.layout import i32, i64, packed, u16, u32

# pcap "File Header"; the magic tells byte order and unit of time
pcap_file = packed(
    24,
    ("magic", u32),
    ("major", u16),
    ("minor", u16),
    ("zone", i32),
    ("sigfigs", u32),
    ("snaplen", u32),
    ("linktype", u32),  # low half; above it the length of a frame check sequence
)
PCAP_MICROSECONDS, PCAP_NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D
PCAP_VERSION = (2, 4)
LINKTYPE_ETHERNET, LINKTYPE_MASK = 1, 0xFFFF

# pcap "Packet Record"
pcap_record = packed(16, ("seconds", u32), ("fraction", u32), ("captured", u32), ("original", u32))

# pcapng "General Block Structure": this, then the body, then the length once more
block_header = packed(8, ("type", u32), ("length", u32))
BLOCK_LEAST = 12
BLOCK_SECTION, BLOCK_INTERFACE, BLOCK_SIMPLE, BLOCK_ENHANCED = 0x0A0D0D0A, 1, 3, 6
BLOCK_OBSOLETE_PACKET = 2

# pcapng "Section Header Block"
section_body = packed(16, ("magic", u32), ("major", u16), ("minor", u16), ("length", i64))
BYTE_ORDER_MAGIC = 0x1A2B3C4D

# pcapng "Interface Description Block", its options behind it
interface_body = packed(8, ("linktype", u16), ("reserved", u16), ("snaplen", u32))
option_header = packed(4, ("code", u16), ("length", u16))
OPTION_END, OPTION_TSRESOL, OPTION_TSOFFSET = 0, 9, 14
TSRESOL_BINARY = 0x80  # the unit is a power of two, not of ten

# pcapng "Enhanced Packet Block"; the obsolete one has its interface in half the bytes
enhanced_body = packed(
    20, ("interface", u32), ("high", u32), ("low", u32), ("captured", u32), ("original", u32)
)
obsolete_body = packed(
    20, ("interface", u16), ("drops", u16), ("high", u32), ("low", u32), ("captured", u32), ("original", u32)
)

GZIP_MAGIC = b"\x1f\x8b"
