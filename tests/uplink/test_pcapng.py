# SPDX-License-Identifier: Apache-2.0
"""Blocks of a pcapng file, as scapy and our own reader understand them."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from scapy.utils import RawPcapNgReader

from vmq.uplink import pcapng
from vmq.uplink.pcapfile import read_capture

NAMES = ["web:0", "web:15"]


def packet(number: int, data: bytes, time: int) -> bytes:
    """pcapng "Enhanced Packet Block", written here."""
    padded = data + bytes(-len(data) % 4)
    length = 32 + len(padded)
    head = struct.pack("<7I", 6, length, number, time >> 32, time & 0xFFFFFFFF, len(data), len(data))
    return head + padded + struct.pack("<I", length)


@pytest.fixture
def content() -> bytes:
    parts = [pcapng.section("vmq 1")]
    parts += [pcapng.interface(name, "a receive queue", "inbound: to the guest", 96) for name in NAMES]
    parts += [packet(number, bytes([number]) * (60 + number), 10**18 + number) for number in (0, 1)]
    parts += [pcapng.statistics(number, 10**18, 2 * 10**18, 7, number) for number in (0, 1)]
    return b"".join(parts)


def test_scapy_reads_names_lengths_and_nanoseconds(content: bytes):
    read = list(RawPcapNgReader(io.BytesIO(content)))
    assert [data for data, _ in read] == [bytes(60), b"\1" * 61]
    assert [meta.ifname.decode() for _, meta in read] == NAMES
    assert [(meta.tshigh << 32) | meta.tslow for _, meta in read] == [10**18, 10**18 + 1]
    assert {meta.tsresol for _, meta in read} == {10**9}


def test_our_own_reader_agrees(content: bytes, tmp_path: Path):
    path = tmp_path / "a.pcapng"
    path.write_bytes(content)
    assert [(one.time_ns, len(one.data)) for one in read_capture(str(path))] == [
        (10**18, 60),
        (10**18 + 1, 61),
    ]


def test_every_block_says_its_length_twice_and_is_whole_words(content: bytes):
    """Cut between any two blocks, what is left is blocks."""
    kinds = []
    while content:
        kind, length = struct.unpack("<II", content[:8])
        assert length % 4 == 0
        assert struct.unpack("<I", content[length - 4 : length]) == (length,)
        kinds.append(kind)
        content = content[length:]
    assert kinds == [0x0A0D0D0A, 1, 1, 6, 6, 5, 5]


def test_statistics_name_what_was_lost():
    """pcapng "Interface Statistics Block": isb_ifrecv 4, isb_ifdrop 5."""
    block = pcapng.statistics(3, 1 << 40, 1 << 41, 1000, 9)
    assert struct.unpack("<III", block[8:20]) == (3, (1 << 41) >> 32, 0)
    options, place = {}, 20
    while place < len(block) - 4:
        code, length = struct.unpack("<HH", block[place : place + 4])
        options[code] = block[place + 4 : place + 4 + length]
        place += 4 + length + -length % 4
    assert struct.unpack("<Q", options[4]) == (1000,)
    assert struct.unpack("<Q", options[5]) == (9,)
    assert list(options) == [2, 3, 4, 5, 0]
