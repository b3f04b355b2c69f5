# SPDX-License-Identifier: Apache-2.0
"""Normal form of what comes in, parts of what goes out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataplane.harness_wire import Round, aligned, plain
from vmq.abi.linux import UIO_MAXIOV, iovec
from vmq.dataplane import state, wire
from vmq.jit import address_of, at

VLAN = b"\x81\x00\x60\x07"


def arrived(frame: bytes, frame_max: int = 1514, cut: bool = False) -> tuple[Round, np.void, list[bytes]]:
    """A frame brought into normal form and admitted, as a lane does it."""
    worker, lane = Round(), np.zeros(1, state.lane)[0]
    lane["frame_max"] = frame_max
    memory = aligned(max(len(frame), 1) + 64)
    memory[: len(frame)] = np.frombuffer(frame, np.uint8)
    row, books = worker.frames[0], worker.state_of(lane)
    if wire.normalise(books, row, address_of(memory), len(frame)):
        wire.admit(worker.w, lane, books, row, cut)
    return worker, lane, worker.received()


@pytest.mark.parametrize("length", range(14))
def test_less_than_an_ethernet_header_is_a_runt(length: int) -> None:
    worker, lane, frames = arrived(plain(1)[:length])

    assert (frames, worker.drops(lane)) == ([], {"runt": 1})


@pytest.mark.parametrize("length", [14, 15, 59, 60, 1514])
def test_a_frame_is_kept(length: int) -> None:
    worker, lane, frames = arrived(plain(1, length))

    assert (frames, worker.drops(lane)) == ([plain(1, length)], {})
    assert worker.state_of(lane)["bytes_from_wire"] == length


@pytest.mark.parametrize("length", range(14, 18))
def test_a_frame_that_ends_inside_its_tag_is_named(length: int) -> None:
    worker, lane, frames = arrived((plain(1)[:12] + VLAN)[:length].ljust(length, b"\0"))

    assert (frames, worker.drops(lane)) == ([], {"vlan_truncated": 1})


def test_a_tag_lies_beside_its_frame() -> None:
    worker, _, frames = arrived(plain(1, 1514)[:12] + VLAN + plain(1, 1514)[12:])

    assert frames == [plain(1, 1514)[:12] + VLAN + plain(1, 1514)[12:]]
    row = worker.frames[0]
    assert (row["length"], row["tci"], row["vid"], row["tagged"]) == (1514, 0x6007, 7, 1)


@pytest.mark.parametrize(("length", "cut"), [(1515, False), (60, True)])
def test_too_long_or_cut_is_named(length: int, cut: bool) -> None:
    worker, lane, frames = arrived(plain(1, length), cut=cut)

    assert (frames, worker.drops(lane)) == ([], {"from_wire_too_long": 1})
    assert worker.state_of(lane)["frames_from_wire"] == 1


@settings(max_examples=60)
@given(
    st.lists(st.integers(14, 599), max_size=30, unique=True),
    st.none() | st.integers(0, 0xFFFF),
    st.integers(4, 40),
)
def test_the_parts_of_a_frame_are_the_frame(cuts: list[int], tci: int | None, room: int) -> None:
    """Whatever pieces a frame lies in, its parts are header, frame and tag in order, and no more than there is room."""
    worker, frame = Round(), plain(1, 600)
    header = aligned(64)
    header[:12] = 0xAA
    guard = 7
    vector = np.full(UIO_MAXIOV * 2, guard, np.uint64)
    worker.put(frame, tci, tuple(sorted(cuts)))

    count = int(
        wire.frame_vector(worker.w, worker.frames[0], address_of(vector), room, address_of(header), 12)
    )

    parts = at(address_of(vector), count, iovec)
    data = b"".join(bytes(at(int(part["base"]), int(part["len"]), np.uint8)) for part in parts)
    tag = b"" if tci is None else b"\x81\x00" + tci.to_bytes(2, "big")
    assert data == b"\xaa" * 12 + frame[:12] + tag + frame[12:]
    assert count <= room
    assert set(vector[2 * count :]) == {guard}
