# SPDX-License-Identifier: Apache-2.0
"""Frames that the kernel puts into a guest's own buffers: where they land, in which order, and how the buffers come back."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
import pytest

from tests.dataplane.harness_wire import plain
from vmq.abi import bpf
from vmq.abi.ethernet import mac_number
from vmq.bpf.link import Link
from vmq.bpf.maps import counters, hash_map, socket_map
from vmq.bpf.program import Program
from vmq.dataplane.direct import HEADER, LEAD
from vmq.dataplane.state import direct_queue
from vmq.direct.pair import Apart, Pair
from vmq.direct.program import MARKED, PLACED, VERDICTS, landing, mark
from vmq.direct.socket import CHUNK, SIZE, GuestSocket
from vmq.jit import address_of, at

pytestmark = pytest.mark.root
VM = mac_number("52:54:00:00:00:01")  # whom `plain` addresses
LONGEST, MEMORY, PATIENCE = 1514, 16 << 20, 20
CANARY = 0xEE


class Landing:
    """A pair, the program at its far end, and a socket on memory full of canaries; the test posts and harvests by hand."""

    def __init__(self) -> None:
        self.far = Apart()
        self.pair = Pair(self.far, 0, 1500)
        self.block = np.full(MEMORY + 8192, CANARY, np.uint8)
        base = (address_of(self.block) + 4095) & -4096
        self.memory = at(base, MEMORY, np.uint8)
        self.row = np.zeros(1, direct_queue)[0]
        self.socket = self.far.call(lambda: GuestSocket(self.pair.far_index, base, MEMORY, LONGEST, self.row))
        self.filters, self.sockets = hash_map("filters", 8, 8, 4), socket_map("sockets", 1)
        self.filters.update(VM.to_bytes(8, "little"), bytes(4))
        self.counted = counters("verdicts", len(VERDICTS))
        code = landing(self.filters, self.sockets, self.counted, LONGEST, strip=False)
        self.program = Program(bpf.BPF_PROG_TYPE_XDP, "landing", code)
        index = self.pair.far_index
        self.link = self.far.call(lambda: Link(self.program, index, flags=bpf.XDP_FLAGS_DRV_MODE))
        self.near = self.far.call(self._station)
        self.lead()

    def _station(self) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind((self.pair.name, 3))
        return made

    def lead(self) -> None:
        self.sockets.update(bytes(4), self.socket.fileno().to_bytes(4, "little"))

    def post(self, *places: int) -> None:
        """As the kernel of the data plane does, without a guest: over old entries first."""
        fill = self.row["fill"]
        producer = at(int(fill["producer"]), 1, np.uint32)
        slots = at(int(fill["entries"]), SIZE, np.uint64)
        for place in places:
            slots[(int(producer[0]) - int(self.row["stale"])) % SIZE] = (place - LEAD) % (1 << 64)
            if self.row["stale"]:
                self.row["stale"] -= 1
            else:
                producer[0] += 1

    def harvest(self, count: int) -> list[tuple[int, bytes]]:
        """(place, frame) of the next ones."""
        ring = self.row["receive"]
        producer, consumer = (at(int(ring[name]), 1, np.uint32) for name in ("producer", "consumer"))
        entries = at(int(ring["entries"]), SIZE, direct_entry)
        self.until(lambda: int(producer[0]) - int(consumer[0]) >= count)
        found = []
        for _ in range(count):
            entry = entries[int(consumer[0]) % SIZE]
            address, length = int(entry["addr"]), int(entry["len"])
            place = (address & ((1 << 48) - 1)) + (address >> 48) - HEADER
            found.append((place, self.memory[place + HEADER : place + HEADER + length].tobytes()))
            consumer[0] += 1
        return found

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def drained(self) -> int:
        """Send a mark, and wait until it has been through: frames that were placed by then."""
        before = self.counted.total(MARKED)
        self.near.send(mark())
        self.until(lambda: self.counted.total(MARKED) > before)
        return self.counted.total(PLACED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (
            self.near,
            self.link,
            self.program,
            self.filters,
            self.sockets,
            self.counted,
            self.socket,
        ):
            one.close()
        self.pair.close()
        self.far.close()


from vmq.abi.xdp import desc as direct_entry  # noqa: E402


@pytest.fixture
def landed() -> Iterator[Landing]:
    with Landing() as made:
        yield made


def test_frames_land_behind_the_header_at_any_byte_and_nothing_else_is_touched(landed: Landing) -> None:
    places = [LEAD, LEAD + 2049, 0x100FF3, 0x102001, 0x104FFF, MEMORY - CHUNK + LEAD]
    frames = [plain(number, size) for number, size in enumerate((60, 61, LONGEST, 1000, LONGEST, 333))]
    expected = landed.memory.copy()
    landed.post(*places)
    for place, data in zip(places, frames, strict=True):
        landed.near.send(data)
        expected[place + HEADER : place + HEADER + len(data)] = np.frombuffer(data, np.uint8)
    assert landed.harvest(len(frames)) == list(zip(places, frames, strict=True))
    assert np.array_equal(landed.memory, expected)


@pytest.mark.parametrize("place", [LEAD - 1, MEMORY - CHUNK + LEAD + 1])
def test_an_entry_one_byte_off_is_passed_over_and_nothing_is_written(landed: Landing, place: int) -> None:
    """No counter moves either: nobody would know. The places beside them are taken, as the test above shows."""
    expected = landed.memory.copy()
    landed.post(place, 0x10000)
    landed.near.send(plain(1))
    assert landed.harvest(1) == [(0x10000, plain(1))]
    expected[0x10000 + HEADER :][: len(plain(1))] = np.frombuffer(plain(1), np.uint8)
    assert np.array_equal(landed.memory, expected)
    assert (landed.socket.lost(), landed.socket.stands()) == (0, 0)


def test_buffers_are_used_in_the_order_in_which_they_were_posted_lap_after_lap(landed: Landing) -> None:
    places = [0x10000 + 2100 * number for number in range(100)]
    landed.post(*places)
    for lap in range(2 * SIZE // 100):
        frames = [plain(lap * 100 + number, 60 + number) for number in range(100)]
        for data in frames:
            landed.near.send(data)
        assert landed.harvest(100) == list(zip(places, frames, strict=True))
        landed.post(*places)
    assert landed.socket.lost() == 0


def test_without_a_buffer_a_frame_is_lost_by_name_and_nothing_is_written(landed: Landing) -> None:
    landed.post(0x10000)
    before = landed.memory.copy()
    for number in range(4):
        landed.near.send(plain(number))
    assert landed.harvest(1) == [(0x10000, plain(0))]
    assert landed.drained() == 4
    landed.until(lambda: landed.socket.lost() == 3)
    before[0x10000 + HEADER : 0x10000 + HEADER + len(plain(0))] = np.frombuffer(plain(0), np.uint8)
    assert np.array_equal(landed.memory, before)


def test_leaving_gives_back_what_is_posted_and_entering_takes_other_buffers(landed: Landing) -> None:
    """None is lost, none is used twice; old entries are written over, or name nowhere."""
    old, new = [0x100000 + 4096 * n for n in range(20)], [0x200000 + 4096 * n for n in range(30)]
    landed.post(*old)
    for number in range(5):
        landed.near.send(plain(number))
    assert landed.drained() == 5
    landed.until(lambda: landed.socket.received() == 5)
    landed.sockets.delete(bytes(4))
    assert [place for place, _ in landed.harvest(5)] == old[:5]
    landed.socket.leave()
    assert (int(landed.row["stale"]), landed.socket.stands()) == (15, 15)
    for count in (8, 15, 30):  # fewer than old entries, as many, more
        before = landed.memory.copy()
        landed.near.send(plain(99))
        assert landed.drained() == 0 + landed.counted.total(PLACED)
        assert np.array_equal(landed.memory, before)
        landed.post(*new[:count])
        landed.lead()
        for number in range(count):
            landed.near.send(plain(number, 100 + number))
        assert landed.harvest(count) == [(new[n], plain(n, 100 + n)) for n in range(count)]
        assert landed.drained() == landed.counted.total(PLACED)
        landed.sockets.delete(bytes(4))
        landed.socket.leave()
        landed.post()


def test_a_queue_that_has_a_socket_already_is_refused_in_words(landed: Landing) -> None:
    row, base = np.zeros(1, direct_queue)[0], address_of(landed.memory)
    with pytest.raises(OSError, match="busy"):
        landed.far.call(lambda: GuestSocket(landed.pair.far_index, base, MEMORY, LONGEST, row))


def test_memory_that_is_no_whole_number_of_pages_is_refused(landed: Landing) -> None:
    row, base = np.zeros(1, direct_queue)[0], address_of(landed.memory)
    with pytest.raises(OSError, match="Invalid argument"):
        landed.far.call(lambda: GuestSocket(landed.pair.far_index, base + 1, MEMORY, LONGEST, row))
