# SPDX-License-Identifier: Apache-2.0
"""The rings of an AF_XDP lane against a kernel of the test's own, with indices about to overflow and lies in completions.

What a real kernel makes of them: tests/uplink/test_xdp.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.dataplane.harness_wire import Round, aligned, plain
from vmq.abi import xdp
from vmq.dataplane import state
from vmq.jit import address_of, at
from vmq.uplink.packet import prepare_lane

SIZE, CHUNK = 8, 2048
INDICES = {"producer": 0, "consumer": 64, "flags": 128, "entries": 192}


class Ring:
    """A ring as both sides see it; indices begin at `start`."""

    def __init__(self, entry: np.dtype, start: int) -> None:
        self.memory = aligned(192 + SIZE * entry.itemsize)
        self.base = address_of(self.memory)
        self.entries = at(self.base + 192, SIZE, entry)
        self.producer, self.consumer, self.flags = (
            at(self.base + place, 1, np.uint32) for place in (0, 64, 128)
        )
        self.producer[0] = self.consumer[0] = start

    def row(self) -> tuple[int, ...]:
        return (*tuple(self.base + place for place in INDICES.values()), SIZE)

    def produce(self, *entries: object) -> None:
        for entry in entries:
            self.entries[int(self.producer[0]) % SIZE] = entry
            self.producer[0] = (int(self.producer[0]) + 1) & state.M32

    def consume(self) -> list[Any]:
        taken: list[Any] = []
        while self.consumer[0] != self.producer[0]:
            taken.append(self.entries[int(self.consumer[0]) % SIZE].item())
            self.consumer[0] = (int(self.consumer[0]) + 1) & state.M32
        return taken


class Kernel:
    """The other side: chunks 0 to SIZE - 1 are for receiving, the others for sending."""

    def __init__(self, start: int = 0) -> None:
        self.umem = aligned(2 * SIZE * CHUNK)
        self._kept: list[Any] = []
        self.lane = np.zeros(1, state.lane)[0]
        self.lane["fd"], self.lane["frame_max"] = -1, 1514
        prepare_lane(self.lane, self.memory)
        self.lane["kind"] = state.LANE_XDP
        self.lane["xdp"] = self.memory(state.xdp_socket.itemsize)
        self.row = at(int(self.lane["xdp"]), 1, state.xdp_socket)[0]
        self.receive, self.transmit = Ring(xdp.desc, start), Ring(xdp.desc, start)
        self.fill, self.completion = (Ring(np.dtype(np.uint64), start) for _ in range(2))
        for name in ("receive", "transmit", "fill", "completion"):
            ring = np.zeros(1, state.xdp_ring)[0]
            for field, value in zip(INDICES.keys(), getattr(self, name).row(), strict=False):
                ring[field] = value
            ring["size"] = SIZE
            self.row[name] = ring
        self.row["fd"], self.row["umem"], self.row["chunk"] = -1, address_of(self.umem), CHUNK
        self.spare = at(self.memory(8 * SIZE), SIZE, np.int64)
        self.spare[:] = np.arange(SIZE, 2 * SIZE) * CHUNK
        self.row["spare"], self.row["spare_count"] = address_of(self.spare), SIZE
        self.row["lengths"], self.row["counted"] = self.memory(8 * SIZE), start
        self.fill.produce(*(np.arange(SIZE) * CHUNK))
        self.free = self.fill.consume()

    def memory(self, size: int) -> int:
        self._kept.append(aligned(size))
        return address_of(self._kept[-1])

    def deliver(self, *frames: bytes) -> None:
        for frame in frames:
            place = int(self.free.pop(0)) + xdp.XDP_PACKET_HEADROOM
            self.umem[place : place + len(frame)] = np.frombuffer(frame, np.uint8)
            self.receive.produce((place, len(frame), 0))

    def sent(self, *, wrong_bit: int = 0) -> list[bytes]:
        frames = []
        for place, length, options in self.transmit.consume():
            assert options == 0
            frames.append(self.umem[place : place + length].tobytes())
            self.completion.produce(place | wrong_bit)
        return frames


@pytest.mark.parametrize("start", [0, (1 << 32) - 5])
def test_chunks_go_round_whatever_the_indices(start: int):
    """A chunk is the kernel's again with the round after its frame's, and each is somewhere exactly once."""
    kernel, worker = Kernel(start), Round()
    for lap in range(5):
        burst = [plain(lap * 10 + number, 60 + number) for number in range(SIZE - 1)]
        kernel.deliver(*burst)
        assert worker.receive(kernel.lane) == len(burst)
        assert worker.received() == burst
        assert kernel.fill.consume() == []
        assert worker.receive(kernel.lane) == 0
        kernel.free += kernel.fill.consume()
        assert sorted(kernel.free) == [number * CHUNK for number in range(SIZE)]
        assert kernel.receive.consumer[0] == kernel.receive.producer[0]


def test_a_frame_that_is_refused_gives_its_chunk_back_too():
    kernel, worker = Kernel(), Round()
    cut = plain(1)[:12] + b"\x81\0\0"
    kernel.deliver(plain(1)[:13], cut, plain(2, 1515), plain(3))
    assert worker.receive(kernel.lane) == 4
    assert worker.received() == [plain(3)]
    assert worker.drops(kernel.lane) == {"runt": 1, "vlan_truncated": 1, "from_wire_too_long": 1}
    worker.receive(kernel.lane)
    assert len(kernel.fill.consume()) == 4


@pytest.mark.parametrize("start", [0, (1 << 32) - 3])
@pytest.mark.parametrize("wrong_bit", [0, 1])
def test_chunks_to_send_from_come_back_even_with_a_wrong_lowest_bit(start: int, wrong_bit: int):
    kernel, worker = Kernel(start), Round()
    for lap in range(4):
        worker.begin()
        frames = [plain(lap * 10 + number, 60 + number) for number in range(SIZE)]
        for frame in frames:
            worker.put(frame)
        worker.transmit(kernel.lane)
        assert kernel.row["spare_count"] == 0
        assert kernel.sent(wrong_bit=wrong_bit) == frames
    worker.begin()
    worker.transmit(kernel.lane)
    assert sorted(kernel.spare.tolist()) == [number * CHUNK for number in range(SIZE, 2 * SIZE)]
    assert worker.drops(kernel.lane) == {}


def test_a_frame_is_laid_down_whole_with_its_tag():
    kernel, worker = Kernel(), Round()
    worker.put(plain(1, 1514), tci=0x6007, cuts=(14, 60, 700))
    worker.put(plain(2, 61))
    worker.transmit(kernel.lane)
    one, other = kernel.sent()
    worker.receive(kernel.lane)
    assert worker.state_of(kernel.lane)["bytes_to_wire"] == 1514 + 61  # as everywhere: without the tag
    assert one == plain(1, 1514)[:12] + b"\x81\0\x60\x07" + plain(1, 1514)[12:]
    assert other == plain(2, 61)


def test_what_finds_no_chunk_or_is_too_long_is_named():
    kernel, worker = Kernel(), Round()
    worker.put(plain(1, 1515))
    for number in range(SIZE + 2):
        worker.put(plain(number))
    worker.transmit(kernel.lane)
    assert worker.drops(kernel.lane) == {"to_wire_error": 1, "to_wire_full": 2}
    assert worker.state_of(kernel.lane)["frames_to_wire"] == 0  # the kernel has not looked yet
    assert len(kernel.sent()) == SIZE
    worker.receive(kernel.lane)
    counted = worker.state_of(kernel.lane)
    assert (counted["frames_to_wire"], counted["bytes_to_wire"]) == (SIZE, SIZE * len(plain(0)))


def test_the_kernel_is_called_when_it_wants_to_be_and_a_refusal_is_named():
    """There is no socket behind the lane: every call is refused."""
    kernel, worker = Kernel(), Round()
    worker.put(plain(1))
    worker.transmit(kernel.lane)
    shown = worker.state_of(kernel.lane)
    assert (kernel.row["kicks"], shown["refused"]) == (0, 0)
    kernel.transmit.flags[0] = xdp.XDP_RING_NEED_WAKEUP
    for _ in range(2):
        worker.begin()
        worker.put(plain(2))
        worker.transmit(kernel.lane)
    assert kernel.row["kicks"] == 3
    assert shown["refused"] < 0
    assert worker.drops(kernel.lane) == {"to_wire_error": 1}  # the first of the two was in the ring already
    assert (shown["pending"], shown["frames_to_wire"]) == (2, 0)
    assert worker.receive(kernel.lane) == 0
    assert kernel.row["kicks"] == 3  # not for what waits
    assert kernel.sent() == [plain(1), plain(2)]
    worker.receive(kernel.lane)
    assert shown["frames_to_wire"] == 2
