# SPDX-License-Identifier: Apache-2.0
"""Frames in normal form, given or made."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from vmq.abi.ethernet import mac_number
from vmq.jit import at
from vmq.uplink.recording import BYTES_MAX, ROWS_MAX, WORKING_SET, Recording, generate, record, rows_for

PLAIN = bytes(range(12)) + b"\x08\x00" + bytes(46)
TAGGED = PLAIN[:12] + b"\x81\x00\x60\x07" + PLAIN[12:]
TARGETS = [(mac_number("52:54:00:00:00:01"), 0), (mac_number("52:54:00:00:00:02"), 7)]


def frames_of(recording: Recording) -> list[bytes]:
    return [bytes(at(int(row["address"]), int(row["length"]), np.uint8)) for row in recording.rows]


def test_frames_are_kept_in_order_without_their_tags() -> None:
    inner = TAGGED[:12] + b"\x81\x00\x00\x01" + TAGGED[12:]
    recording = record((frame, len(frame)) for frame in (PLAIN, TAGGED, inner))

    assert frames_of(recording) == [PLAIN, PLAIN, TAGGED]
    assert [(int(row["tci"]), int(row["tagged"])) for row in recording.rows] == [(0, 0), (0x6007, 1), (1, 1)]
    assert {int(row["address"]) % 64 for row in recording.rows} == {0}
    assert recording.longest == len(TAGGED)
    assert recording.refused == {}


def test_what_is_no_frame_is_refused_and_counted() -> None:
    frames = [(PLAIN[:length], length) for length in range(14)]
    frames += [(PLAIN[:60], 61), (TAGGED[:17], 17), (bytes(65550), 65550), (PLAIN, 60), (bytes(65549), 65549)]

    recording = record(frames)

    assert recording.refused == {
        "shorter than an Ethernet header": 14,
        "cut short when it was captured": 1,
        "ends inside its VLAN tag": 1,
        "longer than any frame": 1,
    }
    assert frames_of(recording) == [PLAIN, bytes(65549)]


def test_nothing_is_a_recording_too() -> None:
    assert record([]).longest == 0
    assert len(generate(64, 1, 0, []).rows) == 0


@pytest.mark.parametrize("size", [60, 64, 65, 1514])
def test_made_frames_are_datagrams_that_scapy_understands(size: int) -> None:
    recording = generate(size, 130, 130, TARGETS)

    seen = set()
    for data, row in zip(frames_of(recording), recording.rows, strict=True):
        packet = Ether(data)
        assert len(data) == size
        assert packet[IP].len == size - 14
        assert packet[UDP].len == size - 34
        told = packet[IP].chksum
        del packet[IP].chksum
        assert Ether(bytes(packet))[IP].chksum == told
        assert (packet.dst, int(row["tci"]), int(row["tagged"])) in {
            ("52:54:00:00:00:01", 0, 0),
            ("52:54:00:00:00:02", 7, 1),
        }
        seen.add((packet.src, packet[IP].src, packet[UDP].sport, packet.dst))
    assert len(seen) == 130
    assert len({(source, port) for _, source, port, _ in seen}) == 130


def test_targets_are_served_in_equal_parts_and_in_no_pattern() -> None:
    recording = generate(64, 4096, 8192, TARGETS)
    to = [frame[5] for frame in frames_of(recording)]

    assert to.count(1) == to.count(2) == 4096
    assert 3800 < sum(1 for one, other in itertools.pairwise(to) if one != other) < 4400
    assert frames_of(recording) == frames_of(generate(64, 4096, 8192, TARGETS))


def test_frames_to_nobody_have_an_address_that_is_nobody_s() -> None:
    assert {frame[:6] for frame in frames_of(generate(64, 2, 4, []))} == {b"\x02\0\0\0\0\0"}


@pytest.mark.parametrize("size", [60, 1514, 9014, 65535])
@pytest.mark.parametrize("flows", [1, 3, 4096, 10_000])
def test_a_recording_reaches_past_the_caches_and_has_a_bound(size: int, flows: int) -> None:
    found = rows_for(size, flows, None)

    assert found is not None
    rows, laps = found
    assert laps == 0
    assert rows % flows == 0
    assert rows * size >= WORKING_SET * 0.9
    assert rows <= ROWS_MAX
    assert rows * size <= BYTES_MAX


@pytest.mark.parametrize("count", [0, 1, 1000, 131072, 1_000_000, 10_000_000, 3 * 2**20])
def test_a_limited_number_of_frames_is_kept_exactly(count: int) -> None:
    found = rows_for(64, 8, count)

    assert found is not None
    rows, laps = found
    assert rows * laps == count


def test_what_cannot_be_is_not_made() -> None:
    assert rows_for(65535, 1048576, None) is None
    assert rows_for(64, 4096, 1_000_003) == (1_000_003, 1)
    assert rows_for(64, 4096, 10_000_019) is None  # a prime number
