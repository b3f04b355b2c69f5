# SPDX-License-Identifier: Apache-2.0
"""Guest addresses against unbounded integers; pieces against bytes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane.rig import A, B, C, Rig, frame
from vmq.dataplane import state
from vmq.dataplane.memory import append, drain, fetch, pour, translate
from vmq.jit import address_of, int64

LIMIT = 1 << 63  # vhost/protocol.py lets no region beyond it
EDGES = sorted(
    {
        edge + step
        for edge in (0, 1 << 12, 1 << 31, 1 << 32, LIMIT, (1 << 64) - 1)
        for step in (-1, 0, 1)
        if 0 <= edge + step < 1 << 64
    }
)
HOST = 1


def as_loaded(value: int) -> Any:
    """What a kernel makes of 64 bits of a descriptor."""
    return np.uint64(value).view(np.int64)


class Regions:
    """Rows of one VM port, with nothing behind them: only numbers are asked for."""

    def __init__(self, regions: list[tuple[int, int]], hint: int) -> None:
        self.regions = regions
        self.table = np.zeros(len(regions) + 2, state.region)  # the first and the last belong to neighbours
        self.table[0] = self.table[-1] = (0, LIMIT - 1, 7, 9)
        for row, (guest, size) in zip(self.table[1:-1], regions, strict=True):
            row["guest"], row["size"], row["host"] = guest, size, HOST
        self.tables = np.zeros(1, state.tables)[0]
        self.tables["regions"], self.tables["region_count"] = address_of(self.table), len(self.table)
        self.port = np.zeros(1, state.vport)[0]
        self.port["region_first"], self.port["region_count"] = 1, len(regions)
        self.ring = np.zeros(1, state.ring_state)[0]
        self.ring["region"] = hint

    def model(self, address: int) -> tuple[int, int]:
        for guest, size in self.regions:
            if guest <= address < guest + size:
                return HOST + address - guest, guest + size - address
        return 0, 0

    def model_pieces(self, address: int, length: int, room: int) -> list[tuple[int, int]] | None:
        """The buffer as pieces, None where it is not memory or there is no room for them."""
        pieces: list[tuple[int, int]] = []
        while True:
            host, behind = self.model(address)
            if behind == 0 or len(pieces) == room:
                return None
            if length > 0:
                part = min(length, behind)
                pieces.append((host, part))
                address, length = address + part, length - part
            if length == 0:
                return pieces


@st.composite
def regions(draw: st.DrawFn) -> Regions:
    """Regions between edges: adjacent or with holes, up to 2^63."""
    cuts = [edge for edge in EDGES if edge <= LIMIT]
    borders = sorted(draw(st.sets(st.sampled_from(cuts), min_size=2, max_size=7)))
    pairs = [(low, high - low) for low, high in itertools.pairwise(borders)]
    kept = draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    chosen = [pair for pair, keep in zip(pairs, kept, strict=True) if keep and pair[1] < LIMIT]
    return Regions(chosen, draw(st.integers(-1, 9)))


@given(where=regions(), address=st.sampled_from(EDGES))
def test_translation_agrees_with_unbounded_integers(where, address):
    """hostile-inputs N1, N2: an address of 2^63 or more is negative to a kernel, and no sum may wrap into memory."""
    for _ in range(2):  # the second time with a hint of the first
        got = translate(where.tables, where.port, where.ring, as_loaded(address))
        assert tuple(int(value) for value in got) == where.model(address)


@given(
    where=regions(), address=st.sampled_from(EDGES), length=st.sampled_from([e for e in EDGES if e < LIMIT])
)
def test_buffers_become_pieces_as_unbounded_integers_say(where, address, length):
    """A buffer is memory when each of its bytes is; across adjacent regions it has several pieces."""
    pieces = np.zeros(3, state.piece)
    with np.errstate(over="ignore"):  # past a region that ends at 2^63: negative, and so outside
        got = append(
            where.tables, where.port, where.ring, pieces, int64(0), as_loaded(address), int64(length)
        )
    expected = where.model_pieces(address, length, len(pieces))
    assert int(got) == (state.NONE if expected is None else len(expected))
    if expected is not None:
        assert [(int(one["address"]), int(one["length"])) for one in pieces[: int(got)]] == expected


def blocks(sizes: list[int], fill: int = 0) -> tuple[Any, list[Any]]:
    """Pieces over arrays of these sizes."""
    arrays = [np.full(size, fill, np.uint8) for size in sizes]
    pieces = np.zeros(len(sizes), state.piece)
    for row, array in zip(pieces, arrays, strict=True):
        row["address"], row["length"] = address_of(array), len(array)
    return pieces, arrays


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(sizes=SIZES, counts=st.lists(st.integers(0, 20), max_size=5))
def test_drained_bytes_are_the_first_and_the_rest_stays(sizes, counts):
    pieces, arrays = blocks(sizes)
    whole = bytes(range(1, sum(sizes) + 1))
    place = 0
    for array in arrays:
        array[:] = np.frombuffer(whole[place : place + len(array)], np.uint8)
        place += len(array)
    first, taken = int64(0), 0
    for count in counts:
        target = np.zeros(max(count, 1), np.uint8)
        first = drain(pieces, first, int64(len(sizes)), address_of(target), int64(count))
        got = whole[taken : taken + count]
        assert target.tobytes()[:count] == got + bytes(count - len(got))
        taken = min(taken + count, len(whole))
        assert sum(int(row["length"]) for row in pieces[int(first) :]) == len(whole) - taken


@given(sizes=SIZES, counts=st.lists(st.integers(0, 9), max_size=8))
def test_poured_bytes_fill_pieces_in_order(sizes, counts):
    pieces, arrays = blocks(sizes, fill=0xEE)
    room = sum(sizes)
    place, used, poured = int64(0), int64(0), b""
    for count in counts:
        if len(poured) + count > room:
            break
        source = np.arange(len(poured) + 1, len(poured) + count + 1).astype(np.uint8)
        place, used = pour(pieces, int64(place), int64(used), address_of(source), int64(count))
        poured += source.tobytes()
    assert b"".join(array.tobytes() for array in arrays) == poured + b"\xee" * (room - len(poured))


def test_contiguous_bytes_are_fetched_in_place_and_others_gathered():
    """A descriptor of an indirect table may lie across two adjacent regions (H8.7)."""
    with Rig() as rig:
        vm = rig.vm(A, regions=[(0x10000, 0x8000), (0x18000, 0x1000), (0x20000, 0x1000)])
        rig.publish()
        tables, _, port, _, ring = rig.rows(vm, to_guest=False)
        pieces = np.zeros(8, state.piece)
        scratch = np.zeros(16, np.uint8)
        vm.memory.write(0x17FF8, bytes(range(16)))

        def get(address: int, room: int = 8) -> int:
            rest = pieces[:room]
            return int(
                fetch(
                    tables,
                    port,
                    ring,
                    rest,
                    int64(0),
                    int64(address),
                    int64(16),
                    address_of(scratch),
                )
            )

        assert get(0x10000) == vm.memory.host(0x10000)
        assert get(0x17FF8) == address_of(scratch)
        assert scratch.tobytes() == bytes(range(16))
        assert get(0x18FF8) == 0, "a hole follows"
        assert get(0x30000) == 0
        assert get(0x17FF8, room=1) == 0, "no room for the parts"


def test_frames_cross_adjacent_regions_and_nothing_else():
    """H3.4 a buffer across two adjacent regions works, byte for byte; H3.5 one across a hole is refused."""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, B, 1000), frame(A, B, 900)], sink=1 << 12)
        vm = rig.vm(A, uplink=wire, regions=[(0x10000, 0x8000), (0x18000, 0x8000), (0x40000, 0x8000)])
        vm.to_guest.chain([(0x18000 - 500, 1100)])
        rig.publish()
        vm.to_guest.describe(63, 0x20000 - 500, 1100, 2)
        vm.to_guest.offer(63)
        rig.run()
        assert vm.received() == [frame(A, B, 1000)]
        assert vm.drops() == {"to_guest_bad_buffer": 1}

        vm.memory.write(0x18000 - 30, bytes(12) + frame(C, A, 400))
        vm.from_guest.chain([(0x18000 - 30, 412)])
        vm.from_guest.chain([(0x20000 - 30, 412)])
        rig.run()
        assert vm.sent_drops() == {"from_guest_bad_address": 1}
        assert rig.left() == [frame(C, A, 400)]
        assert [length for _, length in vm.sent()] == [0, 0]
