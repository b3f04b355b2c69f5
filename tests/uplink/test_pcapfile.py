# SPDX-License-Identifier: Apache-2.0
"""Captures written by scapy and by hand, read by us; written by us, read by scapy."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, PcapReader, PcapWriter

from vmq.errors import ConfigError
from vmq.uplink.pcapfile import Captured, CaptureWriter, read_capture

FRAMES = [bytes(range(60)), bytes(range(14)), b"\x01" * 1514]


def classic(order: str, nanoseconds: bool, frames: list[bytes] = FRAMES, linktype: int = 1) -> bytes:
    """pcap "File Header", pcap "Packet Record"."""
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, linktype)
    for number, frame in enumerate(frames):
        data += struct.pack(order + "IIII", 100 + number, 7, len(frame), len(frame)) + frame
    return data


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(order + "II", kind, len(body) + 12) + body + struct.pack(order + "I", len(body) + 12)


def section(order: str, linktype: int = 1, options: bytes = b"") -> bytes:
    head = block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    return head + block(order, 1, struct.pack(order + "HHI", linktype, 0, 0) + options)


def enhanced(order: str, frame: bytes, ticks: int = 0, interface: int = 0) -> bytes:
    head = struct.pack(order + "IIIII", interface, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame))
    return block(order, 6, head + frame)


def read(tmp_path: Path, data: bytes) -> list[Captured]:
    path = tmp_path / "capture"
    path.write_bytes(data)
    return list(read_capture(str(path)))


def refusal(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, data)
    return str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nanoseconds", [True, False])
def test_the_classic_format_is_read_in_both_orders_and_units(
    tmp_path: Path, order: str, nanoseconds: bool
) -> None:
    packets = read(tmp_path, classic(order, nanoseconds))

    assert [packet.data for packet in packets] == FRAMES
    fraction = 7 if nanoseconds else 7000
    assert [packet.time_ns for packet in packets] == [(100 + n) * 10**9 + fraction for n in range(3)]
    assert [packet.original for packet in packets] == [60, 14, 1514]


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_is_read_in_both_orders(tmp_path: Path, order: str) -> None:
    """Each section has a byte order of its own, and its own interfaces."""
    other = "<" if order == ">" else ">"
    simple = block(order, 3, struct.pack(order + "I", 60) + FRAMES[0])
    old = block(order, 2, struct.pack(order + "HHIIII", 0, 0, 0, 9, 14, 14) + FRAMES[1])
    data = section(order) + block(order, 5, bytes(12)) + enhanced(order, FRAMES[2], 5) + simple + old
    data += section(other) + enhanced(other, FRAMES[1], 1 << 40)

    packets = read(tmp_path, data)

    assert [packet.data for packet in packets] == [FRAMES[2], FRAMES[0], FRAMES[1], FRAMES[1]]
    assert [packet.time_ns for packet in packets] == [5000, 0, 9000, (1 << 40) * 1000]


@pytest.mark.parametrize(
    ("options", "ticks", "time_ns"),
    [
        (struct.pack("<HHB3x", 9, 1, 9), 5, 5),
        (struct.pack("<HHB3x", 9, 1, 0x80 | 10), 1024, 10**9),
        (struct.pack("<HHq", 14, 8, 3), 5, 3 * 10**9 + 5000),
        (struct.pack("<HH4s", 2, 3, b"eth") + struct.pack("<HHB3x", 9, 1, 9), 5, 5),
        (struct.pack("<HH", 0, 0) + struct.pack("<HHB3x", 9, 1, 9), 5, 5000),
    ],
)
def test_the_unit_of_time_is_an_option(tmp_path: Path, options: bytes, ticks: int, time_ns: int) -> None:
    """pcapng "Interface Description Block": if_tsresol and if_tsoffset."""
    packets = read(tmp_path, section("<", options=options) + enhanced("<", FRAMES[0], ticks))

    assert [packet.time_ns for packet in packets] == [time_ns]


@pytest.mark.parametrize("writer", [PcapWriter, PcapNgWriter])
def test_what_scapy_writes_is_read(tmp_path: Path, writer: type) -> None:
    path = str(tmp_path / "capture")
    with writer(path) as file:
        for frame in FRAMES:
            file.write(Ether(frame))

    assert [packet.data for packet in read_capture(path)] == FRAMES


def test_what_is_written_scapy_and_we_read(tmp_path: Path) -> None:
    path = str(tmp_path / "capture")
    with CaptureWriter(path) as file:
        for number, frame in enumerate(FRAMES):
            file.write(frame, 10**9 * number + 123456789)
        file.flush()
        assert [packet.data for packet in read_capture(path)] == FRAMES

    assert [packet.time_ns for packet in read_capture(path)] == [10**9 * n + 123456789 for n in range(3)]
    with PcapReader(path) as reader:
        packets = list(reader)
    assert [bytes(packet) for packet in packets] == FRAMES
    assert [int(packet.time * 10**9) for packet in packets] == [10**9 * n + 123456789 for n in range(3)]


@pytest.mark.parametrize("cut", [1, 2, 23, 24 + 1, 24 + 15, 24 + 16, 24 + 16 + 59, 24 + 16 + 60 + 3])
def test_a_classic_capture_that_ends_early_is_an_error_with_the_byte(tmp_path: Path, cut: int) -> None:
    told = refusal(tmp_path, classic("<", False)[:cut])

    assert f"at byte {cut}" in told or "neither pcap nor pcapng" in told
    if cut == 24 + 16 + 59:
        assert "ends at byte 99, inside a packet that begins at byte 40. Remedy: Capture it again" in told


def test_a_pcapng_capture_that_ends_early_is_an_error_with_the_byte(tmp_path: Path) -> None:
    whole = section("<") + enhanced("<", FRAMES[0])
    start = len(section("<"))
    for cut in range(start + 1, len(whole)):
        assert f"ends at byte {cut}, inside a" in refusal(tmp_path, whole[:cut])
    for cut in range(4, 24):
        assert "ends at byte" in refusal(tmp_path, whole[:cut])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"hello, world", "neither pcap nor pcapng"),
        (b"\x1f\x8b" + bytes(30), "it is compressed. Remedy: Uncompress it: gunzip"),
        (classic("<", False, linktype=113), "its link type is 113, not Ethernet (1)"),
        (section("<", linktype=113) + enhanced("<", FRAMES[0]), "its link type is 113"),
        (section("<") + enhanced("<", FRAMES[0], interface=1), "of interface 1, which the section does not"),
        (struct.pack("<II", 0x0A0D0D0A, 28) + bytes(20), "the section at byte 0 has no byte order"),
        (section("<") + struct.pack("<III", 6, 11, 11), "a block of 11 bytes at byte 48 cannot be"),
        (section("<") + struct.pack("<III", 6, 14, 14), "a block of 14 bytes at byte 48 cannot be"),
        (
            classic("<", False, []) + struct.pack("<IIII", 0, 0, 0x7FFFFFFF, 0x7FFFFFFF),
            "a packet of 2147483647 bytes at byte 40 cannot be",
        ),
        (
            section("<") + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 61, 61) + FRAMES[0]),
            "inside a packet that begins at byte 76",
        ),
    ],
)
def test_what_is_no_capture_is_refused_in_words(tmp_path: Path, data: bytes, words: str) -> None:
    assert words in refusal(tmp_path, data)


def test_a_link_type_that_no_packet_has_is_passed_over(tmp_path: Path) -> None:
    other = block("<", 1, struct.pack("<HHI", 113, 0, 0))
    data = section("<") + other + enhanced("<", FRAMES[0])

    assert [packet.data for packet in read(tmp_path, data)] == [FRAMES[0]]


def datas(path: Path) -> list[bytes]:
    return [packet.data for packet in read_capture(str(path))]


def test_a_file_that_was_there_is_not_touched_before_the_capture_begins(tmp_path: Path) -> None:
    """Then it is emptied: who has it open reads along."""
    path = tmp_path / "capture"
    path.write_bytes(b"mine" * 100)
    with path.open("rb") as reader:
        writer = CaptureWriter(str(path))
        assert path.read_bytes() == b"mine" * 100
        writer.begin()
        writer.flush()
        assert len(path.read_bytes()) == 24
        writer.begin()
        writer.write(FRAMES[0])
        writer.close()
        assert reader.read() == path.read_bytes()
    assert datas(path) == FRAMES[:1]


def test_what_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    """No descriptor and no file; one that was there, whole. What has begun is a capture."""
    path, before = tmp_path / "capture", os.listdir("/proc/self/fd")
    CaptureWriter(str(path)).discard()
    assert not path.exists()
    path.write_bytes(b"mine")
    CaptureWriter(str(path)).discard()
    assert path.read_bytes() == b"mine"
    begun = CaptureWriter(str(tmp_path / "begun"))
    begun.begin()
    begun.discard()
    assert datas(tmp_path / "begun") == []
    assert os.listdir("/proc/self/fd") == before


def test_a_capture_without_packets_is_one(tmp_path: Path) -> None:
    with CaptureWriter(str(tmp_path / "capture")):
        pass
    assert datas(tmp_path / "capture") == []


def test_a_capture_goes_on_where_it_was(tmp_path: Path) -> None:
    """Only one of our own: what else is in the file goes."""
    path = tmp_path / "capture"
    for number in range(2):
        with CaptureWriter(str(path)) as file:
            file.begin(again=True)
            file.write(FRAMES[number])
    assert datas(path) == FRAMES[:2]
    for other in (classic("<", False), b"mine", b""):
        path.write_bytes(other)
        with CaptureWriter(str(path)) as file:
            file.begin(again=True)
            file.write(FRAMES[2])
        assert datas(path) == FRAMES[2:]


def test_a_pipe_is_written_like_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    for again in (False, True):
        with CaptureWriter(str(path)) as file:
            file.begin(again)
            file.write(FRAMES[0])
        assert read(tmp_path, os.read(descriptor, 4096))[0].data == FRAMES[0]
    os.close(descriptor)


def test_files_that_may_not_be_used_name_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^\[uplink.a\] read: cannot read /nosuch: No such file"):
        list(read_capture("/nosuch", "[uplink.a] read"))
    with pytest.raises(ConfigError, match="cannot read"):
        list(read_capture(str(tmp_path)))
    with pytest.raises(ConfigError, match=r"^\[uplink.a\] write: cannot write /nosuch/x: No such file"):
        CaptureWriter("/nosuch/x", "[uplink.a] write")
