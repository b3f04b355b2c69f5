# SPDX-License-Identifier: Apache-2.0
"""Checksums and segments against scapy, which computes them on its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from tests.dataplane.harness_wire import aligned
from vmq.abi.virtio import NET_HDR_GSO_TCPV4, NET_HDR_GSO_TCPV6, NET_HDR_GSO_UDP, NET_HDR_GSO_UDP_L4
from vmq.dataplane import offload, state
from vmq.jit import address_of

ETHER = Ether(dst="52:54:00:00:00:01", src="52:54:00:00:00:02")
V4 = IP(src="10.0.0.1", dst="10.0.0.2", id=65534)
V6 = IPv6(src="fd00::1", dst="fd00::2")


def payload(length: int) -> bytes:
    return bytes(np.random.default_rng(length).integers(0, 256, length, np.uint8))


def held(frame: bytes, kind: int, size: int) -> tuple[Any, Any]:
    """The row of a super-frame, and the memory it points to."""
    memory = aligned(len(frame))
    memory[:] = np.frombuffer(frame, np.uint8)
    big = np.zeros(1, state.super_frame)[0]
    big["address"], big["length"], big["kind"], big["size"] = address_of(memory), len(frame), kind, size
    return big, memory


def cut(frame: bytes, kind: int, size: int) -> list[bytes]:
    """All segments of a super-frame; each is watched for bytes written beyond its end."""
    big, _memory = held(frame, kind, size)
    assert offload.plan(big)
    segments = []
    while big["next"] < big["count"]:
        room = aligned(len(frame) + 16)
        room[:] = 0xEE
        told = int(offload.segment_length(big))
        length = int(offload.segment(big, address_of(room)))
        assert length == told
        assert set(room[length:]) == {0xEE}
        segments.append(bytes(room[:length]))
    return segments


def accepted(frame: bytes, kind: int, size: int = 1000) -> bool:
    big, _memory = held(frame, kind, size)
    return bool(offload.plan(big))


@settings(max_examples=60)
@given(st.binary(min_size=16, max_size=80), st.integers(14, 70), st.integers(0, 70))
def test_a_checksum_is_finished_over_the_rest_of_the_frame(data: bytes, start: int, offset: int) -> None:
    """virtio-1.2 §5.1.6.2 Packet Transmission: the checksum covers csum_start to the end of the packet."""
    memory = aligned(len(data))
    memory[:] = np.frombuffer(data, np.uint8)

    done = bool(offload.finish_checksum(address_of(memory), len(data), start, offset))

    assert done == (start + offset + 2 <= len(data))
    expected = bytearray(data)
    if done:
        value = checksum(data[start:]) or 0xFFFF
        expected[start + offset : start + offset + 2] = value.to_bytes(2, "big")
    assert bytes(memory) == bytes(expected)


@pytest.mark.parametrize(
    ("start", "offset"), [(0, 6), (13, 16), (-4, 6), (20, -2), (65535, 65535), (60, 3), (64, 0)]
)
def test_a_checksum_that_does_not_fit_its_frame_is_refused(start: int, offset: int) -> None:
    memory = aligned(64)
    memory[:] = 7

    assert not offload.finish_checksum(address_of(memory), 64, start, offset)
    assert set(memory) == {7}


def test_a_checksum_of_zero_is_sent_as_all_ones() -> None:
    """rfc-768 "Fields": an all zero transmitted checksum means that the transmitter generated none."""
    memory = aligned(18)
    memory[14:16] = 0xFF

    assert offload.finish_checksum(address_of(memory), 18, 14, 2)
    assert bytes(memory[14:]) == b"\xff\xff\xff\xff"


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_words_are_summed_as_scapy_does(data: bytes) -> None:
    memory = aligned(len(data) or 1)
    memory[: len(data)] = np.frombuffer(data, np.uint8)

    total = int(offload.fold(offload.sum_words(address_of(memory), len(data)))) ^ 0xFFFF

    assert total == int.from_bytes(checksum(data).to_bytes(2, "big"), "little")


SHAPES: dict[str, tuple[Packet, int]] = {
    "v4": (ETHER / V4 / TCP(sport=1, dport=2, seq=2**32 - 1500, flags="FPAC"), NET_HDR_GSO_TCPV4),
    "v4 options": (
        ETHER
        / IP(src="10.0.0.1", dst="10.0.0.2", id=9, options=[IPOption_Router_Alert()])
        / TCP(
            sport=1, dport=2, seq=7, flags="PA", options=[("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)]
        ),
        NET_HDR_GSO_TCPV4,
    ),
    "v6": (ETHER / V6 / TCP(sport=1, dport=2, seq=7, flags="PAC"), NET_HDR_GSO_TCPV6),
    "v6 options": (
        ETHER / V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / TCP(sport=1, dport=2, seq=7, flags="PA"),
        NET_HDR_GSO_TCPV6,
    ),
    "two tags": (
        ETHER / Dot1AD(vlan=5) / Dot1Q(vlan=6) / V4 / TCP(sport=1, dport=2, seq=7, flags="A"),
        NET_HDR_GSO_TCPV4,
    ),
    "udp v4": (ETHER / V4 / UDP(sport=1, dport=2), NET_HDR_GSO_UDP_L4),
    "udp v6": (ETHER / V6 / UDP(sport=1, dport=2), NET_HDR_GSO_UDP_L4),
}


def sent_alone(head: Packet, data: bytes, number: int, size: int) -> bytes:
    """Segment `number` of `data`, as a sender without offloads builds it."""
    packet = head.copy()
    last = (number + 1) * size >= len(data)
    if IP in packet:
        packet[IP].id = (head[IP].id + number) & 0xFFFF
    if TCP in packet:
        packet[TCP].seq = (head[TCP].seq + size * number) & 0xFFFFFFFF
        absent = ("C" if number else "") + ("" if last else "FP")
        packet[TCP].flags = "".join(flag for flag in str(head[TCP].flags) if flag not in absent)
    return bytes(packet / Raw(data[size * number : size * (number + 1)]))


@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 2000, 4567])
@pytest.mark.parametrize("shape", SHAPES)
def test_segments_are_what_the_sender_would_have_sent(shape: str, length: int) -> None:
    """rfc-9293 §3.1 Header Format, rfc-791 §3.1 Internet Header Format: every field, by scapy's own arithmetic."""
    head, kind = SHAPES[shape]
    data = payload(length)

    segments = cut(bytes(head / Raw(data)), kind, 1000)

    assert segments == [sent_alone(head, data, number, 1000) for number in range(-(-length // 1000))]


def test_a_length_left_to_the_segmenter_is_filled_in() -> None:
    whole = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2", len=0) / TCP() / Raw(payload(1500)))

    assert [len(segment) for segment in cut(whole, NET_HDR_GSO_TCPV4, 1000)] == [1054, 554]


TCP4 = ETHER / V4 / TCP() / Raw(payload(3000))
TCP6 = ETHER / V6 / TCP() / Raw(payload(3000))
UDP4 = ETHER / V4 / UDP() / Raw(payload(3000))


def changed(packet: Packet, place: int, *values: int) -> bytes:
    data = bytearray(bytes(packet))
    data[place : place + len(values)] = bytes(values)
    return bytes(data)


LIES: dict[str, tuple[bytes, int]] = {
    "v4 as v6": (bytes(TCP4), NET_HDR_GSO_TCPV6),
    "v6 as v4": (bytes(TCP6), NET_HDR_GSO_TCPV4),
    "tcp as udp": (bytes(TCP4), NET_HDR_GSO_UDP_L4),
    "udp as tcp": (bytes(UDP4), NET_HDR_GSO_TCPV4),
    "udp fragmentation": (bytes(UDP4), NET_HDR_GSO_UDP),
    "unknown kind": (bytes(TCP4), 0x7F),
    "another version": (changed(TCP4, 14, 0x65), NET_HDR_GSO_TCPV4),
    "short internet header": (changed(TCP4, 14, 0x44), NET_HDR_GSO_TCPV4),
    "internet header beyond the end": (bytes(TCP4)[:40], NET_HDR_GSO_TCPV4),
    "total length too large": (changed(TCP4, 16, 0xFF, 0xFF), NET_HDR_GSO_TCPV4),
    "total length too small": (changed(TCP4, 16, 0, 40), NET_HDR_GSO_TCPV4),
    "a fragment": (changed(TCP4, 20, 0x20, 0), NET_HDR_GSO_TCPV4),
    "a later fragment": (changed(TCP4, 20, 0, 9), NET_HDR_GSO_TCPV4),
    "another protocol": (bytes(ETHER / V4 / ICMP() / Raw(payload(3000))), NET_HDR_GSO_TCPV4),
    "short tcp header": (changed(TCP4, 46, 0x40), NET_HDR_GSO_TCPV4),
    "no payload": (bytes(ETHER / V4 / TCP()), NET_HDR_GSO_TCPV4),
    "no datagram": (bytes(ETHER / V4 / UDP()), NET_HDR_GSO_UDP_L4),
    "payload length lies": (changed(TCP6, 18, 0xFF, 0xFF), NET_HDR_GSO_TCPV6),
    "version of v6": (changed(TCP6, 14, 0x40), NET_HDR_GSO_TCPV6),
    "routing header": (
        bytes(ETHER / V6 / IPv6ExtHdrRouting(addresses=["fd00::9"]) / TCP() / Raw(payload(3000))),
        NET_HDR_GSO_TCPV6,
    ),
    "fragment header": (
        bytes(ETHER / V6 / IPv6ExtHdrFragment() / TCP() / Raw(payload(3000))),
        NET_HDR_GSO_TCPV6,
    ),
    "options without end": (changed(ETHER / V6 / Raw(bytes(3000)), 20, 0), NET_HDR_GSO_TCPV6),
    "options beyond the end": (changed(ETHER / V6 / Raw(b"\0\xff" * 20), 20, 0), NET_HDR_GSO_TCPV6),
    "no internet protocol": (bytes(ETHER / Raw(bytes(3000))), NET_HDR_GSO_TCPV4),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_super_frame_that_is_none_is_refused(lie: str) -> None:
    """What the frame says of itself is checked against its bytes before one of them is used."""
    frame, kind = LIES[lie]

    assert not accepted(frame, kind)


def test_a_segment_size_of_zero_is_refused() -> None:
    assert accepted(bytes(TCP4), NET_HDR_GSO_TCPV4, 1)
    assert not accepted(bytes(TCP4), NET_HDR_GSO_TCPV4, 0)


@settings(max_examples=80)
@given(st.integers(0, 130), st.sampled_from(["v4 options", "v6 options", "two tags", "udp v4"]))
def test_no_byte_beyond_a_truncated_frame_decides(length: int, shape: str) -> None:
    """Whatever stands behind the frame in memory, it is judged the same."""
    head, kind = SHAPES[shape]
    whole = bytes(head / Raw(payload(300)))
    answers = set()
    for filler in (0, 0x45, 0xFF):
        memory = aligned(len(whole) + 64)
        memory[:] = filler
        memory[:length] = np.frombuffer(whole[:length], np.uint8)
        big = np.zeros(1, state.super_frame)[0]
        big["address"], big["length"], big["kind"], big["size"] = address_of(memory), length, kind, 100
        answers.add(bool(offload.plan(big)))

    assert len(answers) == 1


@settings(max_examples=150)
@given(st.data())
def test_damaged_super_frames_are_refused_or_cut_within_bounds(data: st.DataObject) -> None:
    """Any bytes may change on a wire; memory beyond a segment does not."""
    head, kind = SHAPES[data.draw(st.sampled_from(sorted(SHAPES)))]
    frame = bytearray(bytes(head / Raw(payload(300))))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(12, 110))] = data.draw(st.integers(0, 255))
    size = data.draw(st.sampled_from([1, 7, 100, 65535]))

    if accepted(bytes(frame), kind, size):
        segments = cut(bytes(frame), kind, size)
        assert 1 <= len(segments) <= len(frame)
