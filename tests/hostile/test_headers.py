# SPDX-License-Identifier: Apache-2.0
"""Chains of the wrong kind: direction flags (H5), where the packet header lies (H6), runt receive buffers (H7)."""

from __future__ import annotations

import pytest

from tests.hostile.arena import DIRECT_WAYS, WAYS, Way, frame, until
from tests.hostile.attack import Attack
from vmq.abi.virtio import NET_HDR_F_NEEDS_CSUM, NET_HDR_GSO_TCPV4, NET_HDR_GSO_UDP
from vmq.guest.driver import HEADER
from vmq.guest.rings import WRITE, Shape

each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
to_guest_ways = pytest.mark.parametrize(
    "way", [way for way in WAYS if way.to_guest], ids=lambda way: way.name
)
from_guest_ways = pytest.mark.parametrize(
    "way", [w for w in WAYS if not w.to_guest], ids=lambda way: way.name
)
merging = pytest.mark.parametrize(
    "way", [way for way in DIRECT_WAYS if way.to_guest], ids=lambda way: way.name
)

# --- H5: direction flags --------------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param((0, 1, 2), id="h5_1_h5_2_h5_4_all"),
        pytest.param((0,), id="h5_3_first"),
        pytest.param((1,), id="h5_3_between"),
        pytest.param((2,), id="h5_3_last"),
    ],
)
def test_h5_buffers_of_the_wrong_direction_are_dropped(attack: Attack, way: Way, wrong: tuple[int, ...]):
    """Device-writable ones in a transmit chain, readable ones in a receive chain (never written to), and mixtures."""
    attack.on(way)
    chain = attack.buffers(way, 12, 40)
    chain = [
        (place, size, flags ^ WRITE if index in wrong else flags)
        for index, (place, size, flags, *_) in enumerate(chain)
    ]
    head = attack.launch(way, chain)
    attack.dropped(way, head, "to_guest_bad_buffer" if way.to_guest else "from_guest_direction")


# --- H6: where the packet header lies -------------------------------------------------------------------------


@from_guest_ways
@pytest.mark.parametrize(
    "size", [0, 1, 9, 10, 11, 12], ids=lambda size: f"h6_{'2' if size == 12 else '1'}_{size}_bytes"
)
@pytest.mark.parametrize("pieces", [1, 2])
def test_h6_1_and_h6_2_chains_without_a_frame_are_dropped(attack: Attack, way: Way, size: int, pieces: int):
    """Shorter than a packet header (H6.1), or exactly one (H6.2)."""
    attack.on(way)
    place = attack.guest().memory.allocate(64)
    chain = [(place, size // 2, 0), (place, size - size // 2, 0)] if pieces == 2 else [(place, size, 0)]
    head = attack.launch(way, chain)
    attack.dropped(way, head, "from_guest_short")


@each_way
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1,) * 12, id="h6_3_twelve_pieces"),
        pytest.param((4, 4, 4), id="h6_4_three_pieces"),
        pytest.param((10, 2), id="h6_4_before_num_buffers"),
        pytest.param((5, 5, 30), id="h6_4_header_and_frame_in_one_piece"),
        pytest.param((12, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), id="ethernet_header_in_pieces"),
    ],
)
def test_h6_3_and_h6_4_a_header_in_pieces_is_legal(attack: Attack, way: Way, sizes: tuple[int, ...]):
    """virtio-1.2 §2.7.4 Message Framing: no assumption about it."""
    attack.on(way)
    chain = attack.buffers(way, *sizes)
    attack.launch(way, chain)
    attack.accepted(way, chain)


@from_guest_ways
@pytest.mark.parametrize(
    "header",
    [
        pytest.param(bytes([NET_HDR_F_NEEDS_CSUM]), id="checksum"),
        pytest.param(bytes([0, NET_HDR_GSO_TCPV4, 54, 0, 1, 0]), id="tso"),
        pytest.param(bytes([0, NET_HDR_GSO_UDP, 0, 0, 255, 255]), id="ufo"),
        pytest.param(bytes([0, 0xFF]), id="unknown"),
        pytest.param(bytes([0, 0x80]), id="ecn_only"),
    ],
)
def test_h10_15_offloads_that_were_not_negotiated_are_dropped(attack: Attack, way: Way, header: bytes):
    attack.on(way)
    data = header.ljust(HEADER, b"\0") + attack.packet(way)[HEADER:]
    place = attack.guest().memory.store(data)
    head = attack.launch(way, [(place, 12, 0), (place + 12, len(data) - 12, 0)])
    attack.dropped(way, head, "from_guest_offload")


@from_guest_ways
def test_h10_4_a_header_length_that_lies_is_only_a_hint(attack: Attack, way: Way):
    """hdr_len, csum_start and num_buffers of a packet that asks for nothing."""
    attack.on(way)
    place = attack.guest().memory.store(b"\0\0" + b"\xff" * 10 + attack.packet(way)[HEADER:])
    chain = [(place, len(attack.packet(way)), 0)]
    attack.launch(way, chain)
    attack.accepted(way, chain)


# --- H7: runt receive buffers ---------------------------------------------------------------------------------


@to_guest_ways
@pytest.mark.parametrize("size", range(12), ids=lambda size: f"{size}_bytes")
def test_h7_1_buffers_shorter_than_a_header_take_no_frame(attack: Attack, way: Way, size: int):
    """Every posted buffer is a runt: the frame is dropped after a bounded look, the buffers stay where they are."""
    ring = attack.on(way, size=64)
    place = attack.guest().memory.allocate(64)
    head = ring.write_chain([(place, size, WRITE)], indirect=way.indirect)
    ring.push(*[head] * 64)
    ring.show()
    attack.watch()
    for _ in range(10):
        attack.send(way)
    attack.frames(way, "to_guest_too_long", count=10)
    assert ring.used_index == 0
    assert attack.row["state"] == "running"


@merging
@pytest.mark.parametrize("posted", [1, 3])
def test_h7_2_a_frame_that_does_not_fit_leaves_no_trace(attack: Attack, way: Way, posted: int):
    """Buffers of 100 bytes for a frame of 1000: no part of it is written, not even into those that are there."""
    ring = attack.on(way)
    memory = attack.guest().memory
    for _ in range(posted):
        head = ring.write_chain([(memory.allocate(128), 100, WRITE)])
        ring.push(head)
    ring.show()
    attack.watch()
    attack.send(way, size=1000)
    attack.frames(way, "to_guest_no_buffer" if way.mergeable else "to_guest_too_long")
    assert ring.used_index == 0


@merging
@pytest.mark.parametrize(("size", "buffer"), [(16, 64), (1024, 5)])
def test_h7_3_a_frame_that_needs_more_buffers_than_there_can_be_is_dropped(
    attack: Attack, way: Way, size: int, buffer: int
):
    """More than the ring has, or none that takes a header: bounded work, nothing visible."""
    guest = attack.guest(
        mergeable=way.mergeable, size=size, receive_shape=Shape(buffer), transmit_shape=Shape(64)
    )
    ring = guest.virtqueue(to_guest=True)
    ring.describe(0, ring.buffer(0), buffer)
    attack.watch()
    for _ in range(3):
        attack.send(way, size=size * buffer if size == 16 else 1500)
    attack.frames(way, "to_guest_too_long", count=3)
    assert ring.used_index == 0


def test_h7_3_a_frame_may_not_span_more_than_our_limit_of_buffers(attack_on):
    """Hundreds of buffers of 13 bytes are there, more than one frame may span: dropped, nothing visible."""
    attack = attack_on("giant", "giantpeer")
    attack.guest("giantpeer", transmit_shape=Shape(9100))
    guest = attack.guest(size=1024, receive_shape=Shape(13))
    attack.watch()
    attack.peer.send([frame("giant", "giantpeer", size=9000)])
    attack.frames(WAYS[2], "to_guest_too_long")
    assert guest.virtqueue(to_guest=True).used_index == 0


@merging
def test_h7_a_frame_that_just_fits_is_delivered(attack: Attack, way: Way):
    """The bounds from the other side: the last byte of the last buffer is used."""
    ring = attack.on(way)
    memory = attack.guest().memory
    sizes = (50, 12, 50) if way.mergeable else (112,)
    places = [memory.allocate(128) for _ in sizes]
    for place, size in zip(places, sizes, strict=True):
        ring.push(ring.write_chain([(place, size, WRITE)]))
    ring.show()
    attack.watch(*zip(places, sizes, strict=True))
    attack.send(way)
    attack.frames(way)
    until(lambda: ring.used_index == len(sizes))
    assert [length for _, length in ring.returned(len(sizes))] == list(sizes)
    data = b"".join(memory.read(place, size) for place, size in zip(places, sizes, strict=True))
    assert data[HEADER:] == frame("attacker", "peer", 1)
    assert data[10] == len(sizes)
