# SPDX-License-Identifier: Apache-2.0
"""Frames that prove where they went, and capture files read and written in plain words.

A frame carries its number and bytes that follow from it, so that a wrong byte, place or order shows. The capture
files are what testpmd's net_pcap driver reads and writes; nothing of vmq takes part in reading them.

Sizes are bytes of a frame without its check sequence: the 1518 of a test plan is 1514 here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

SIZES = (60, 64, 128, 256, 512, 1024, 1514)
BROADCAST, MULTICAST = "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:fb"
EXPERIMENT = 0x88B5  # ieee-802, "local experimental EtherType 1"
TPID = 0x8100
_NANOSECONDS, _MICROSECONDS, _ETHERNET = 0xA1B23C4D, 0xA1B2C3D4, 1


def mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def frame(to: str, source: str, size: int, number: int, vlan: int | None = None) -> bytes:
    """A frame of `size` bytes, its tag included."""
    tag = b"" if vlan is None else struct.pack(">HH", TPID, vlan)
    head = mac_bytes(to) + mac_bytes(source) + tag + struct.pack(">HI", EXPERIMENT, number)
    pattern = bytes((number + place) % 251 for place in range(64))
    return (head + pattern * (size // 64 + 1))[:size]


def series(to: str, source: str, count: int, sizes: Sequence[int] = SIZES, first: int = 0) -> list[bytes]:
    """Frames of each size in turn, numbered from `first`."""
    return [frame(to, source, sizes[index % len(sizes)], first + index) for index in range(count)]


def write_capture(path: Path, frames: Sequence[bytes]) -> Path:
    """A capture of these frames."""
    head = struct.pack("<IHHiIII", _MICROSECONDS, 2, 4, 0, 0, 1 << 16, _ETHERNET)
    records = (struct.pack("<IIII", 0, 0, len(one), len(one)) + one for one in frames)
    path.write_bytes(head + b"".join(records))
    return path


def read_capture(path: Path) -> list[bytes]:
    """The frames of a whole capture, in order."""
    return list(_records(path.read_bytes()))


def _records(data: bytes) -> Iterator[bytes]:
    magic, *_, link = struct.unpack_from("<IHHiIII", data)
    if magic not in (_NANOSECONDS, _MICROSECONDS) or link != _ETHERNET:
        raise ValueError(f"no capture of Ethernet frames: magic {magic:#x}, link type {link}")
    place = struct.calcsize("<IHHiIII")
    while place < len(data):
        _, _, kept, length = struct.unpack_from("<IIII", data, place)
        place += struct.calcsize("<IIII")
        if kept != length or place + kept > len(data):
            raise ValueError(f"the capture is cut at byte {place}")
        yield data[place : place + kept]
        place += kept


def difference(got: Sequence[bytes], wanted: Sequence[bytes]) -> str:
    """The first difference between two series of frames in words; empty if there is none."""
    for index, (one, other) in enumerate(zip(got, wanted, strict=False)):
        if one != other:
            return f"frame {index} is {one[:32].hex()}… ({len(one)}), not {other[:32].hex()}… ({len(other)})"
    return "" if len(got) == len(wanted) else f"{len(got)} frames, not {len(wanted)}"
