# SPDX-License-Identifier: Apache-2.0
"""Capture files: the classic format and pcapng, both in either byte order.

Layouts are little-endian; a file in the other order is read with their `newbyteorder`.
"""

from __future__ import annotations

from vmq.abi.layout import i32, i64, layout, packed, u16, u32

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
BLOCK_STATISTICS = 5

# pcapng "Section Header Block"
section_body = packed(16, ("magic", u32), ("major", u16), ("minor", u16), ("length", i64))
BYTE_ORDER_MAGIC = 0x1A2B3C4D

# pcapng "Interface Description Block", its options behind it
interface_body = packed(8, ("linktype", u16), ("reserved", u16), ("snaplen", u32))
option_header = packed(4, ("code", u16), ("length", u16))
OPTION_END, OPTION_COMMENT, OPTION_TSRESOL, OPTION_TSOFFSET = 0, 1, 9, 14
OPTION_IF_NAME, OPTION_IF_DESCRIPTION, OPTION_USER_APPLICATION = 2, 3, 4
NANOSECONDS = 9  # of OPTION_TSRESOL: 10^-9 s
TSRESOL_BINARY = 0x80  # the unit is a power of two, not of ten

# pcapng "Enhanced Packet Block"; the obsolete one has its interface in half the bytes
enhanced_body = packed(
    20, ("interface", u32), ("high", u32), ("low", u32), ("captured", u32), ("original", u32)
)
# pcapng "Enhanced Packet Block" as vmq writes it: this, the packet, then its direction and the length once more
enhanced_block = layout(
    28,
    ("type", u32), ("length", u32),
    ("interface", u32), ("high", u32), ("low", u32), ("captured", u32), ("original", u32),
)  # fmt: skip
enhanced_tail = layout(16, ("code", u16), ("code_length", u16), ("flags", u32), ("end", u32), ("length", u32))
OPTION_EPB_FLAGS = 2
INBOUND, OUTBOUND = 1, 2
obsolete_body = packed(
    20, ("interface", u16), ("drops", u16), ("high", u32), ("low", u32), ("captured", u32), ("original", u32)
)

# pcapng "Interface Statistics Block", its options behind it
statistics_body = packed(12, ("interface", u32), ("high", u32), ("low", u32))
OPTION_ISB_START, OPTION_ISB_END, OPTION_ISB_RECEIVED, OPTION_ISB_DROPPED = 2, 3, 4, 5

GZIP_MAGIC = b"\x1f\x8b"
