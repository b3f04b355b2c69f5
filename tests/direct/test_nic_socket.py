# SPDX-License-Identifier: Apache-2.0
"""What the kernel makes of entries that are written anew while frames come: a veth that chooses queues stands for the NIC.

Each of these is a claim that dataplane/nic_queue.py stands on (docs/adr/0014).
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.dataplane.harness_wire import plain
from tests.direct.harness_nic import QUEUES, Nic
from tests.vm.lab.netns import Namespace
from vmq import linux
from vmq.abi import bpf, xdp
from vmq.abi.ethernet import mac_number
from vmq.bpf.assembler import R1, R2, R6, Code
from vmq.bpf.link import Link
from vmq.bpf.maps import counters, socket_map
from vmq.bpf.program import Program
from vmq.dataplane.state import M32
from vmq.dataplane.xdp import offset_of
from vmq.direct.memory import GuestMemory
from vmq.direct.nic_socket import BESIDE, SIZE, NicSocket
from vmq.direct.socket import CHUNK
from vmq.jit import at
from vmq.uplink.xdp_program import count, redirect
from vmq.vhost.message import Region

pytestmark = pytest.mark.root
VM = mac_number("52:54:00:00:00:01")  # whom `plain` addresses
QUEUE, LONGEST, ROOM, PATIENCE = 2, 1514, 4 << 20, 20
CANARY = 0xEE
ON_THE_WIRE = 128  # frames: a veth holds 256 for a processor that is busy


class Owned:
    """A socket on one queue of a NIC; the test writes and reads its rings by hand."""

    def __init__(self, nic: Nic, region: Region) -> None:
        self.nic = nic
        self.memory = GuestMemory([region], BESIDE)
        self.bytes = at(self.memory.address, self.memory.whole, np.uint8)
        self.socket = nic.host.call(lambda: NicSocket(nic.index, QUEUE, self.memory, LONGEST))
        self.row: Any = self.socket.row
        self.slots = at(int(self.row["fill"]["entries"]), SIZE, np.uint64)
        self.entries = at(int(self.row["receive"]["entries"]), SIZE, xdp.desc)
        self.taken = 0
        self._stack = contextlib.ExitStack()
        sockets = self._stack.enter_context(socket_map("sockets", QUEUES))
        counted = self._stack.enter_context(counters("verdicts", 2))
        code = Code()
        code.copy(R6, R1)
        code.load_field(R2, R6, bpf.xdp_md, "rx_queue_index")
        redirect(code, sockets, 0, bpf.XDP_PASS, 1)
        count(code, counted)
        program = self._stack.enter_context(Program(bpf.BPF_PROG_TYPE_XDP, "queues", code))
        self._stack.enter_context(
            nic.host.call(lambda: Link(program, nic.index, flags=bpf.XDP_FLAGS_DRV_MODE))
        )
        sockets.update(QUEUE.to_bytes(4, "little"), self.socket.fileno().to_bytes(4, "little"))
        nic.rule(VM, QUEUE)

    def ours(self, number: int) -> int:
        """The entry of frame `number` that names a chunk of ours."""
        return self.memory.size + number % SIZE * CHUNK

    def guests(self, number: int) -> int:
        """One that names the guest's memory: at odd bytes, one behind the other."""
        return 4096 + number % SIZE * 2111

    def name(self, where: Callable[[int], int]) -> None:
        """Write all entries that nobody has taken a frame of anew."""
        for number in range(self.taken, self.taken + SIZE):
            self.slots[number % SIZE] = where(number)

    def take(self, where: Callable[[int], int]) -> list[tuple[bool, bytes]]:
        """(whether it landed in the guest's memory, frame) of those that have come; their entries name this anew."""
        begin, end, found = self.taken, self.socket.received(), []
        while self.taken != end:
            entry = self.entries[self.taken % SIZE]
            place, length = offset_of(int(entry["addr"])), int(entry["len"])
            base = place - xdp.XDP_PACKET_HEADROOM
            assert base in (self.ours(self.taken), self.guests(self.taken)), self.taken
            found.append((base == self.guests(self.taken), self.bytes[place : place + length].tobytes()))
            self.taken += 1
        at(int(self.row["receive"]["consumer"]), 1, np.uint32)[0] = self.taken & M32
        for number in range(begin + SIZE, self.taken + SIZE):
            self.slots[number % SIZE] = where(number)
        at(int(self.row["fill"]["producer"]), 1, np.uint32)[0] = (self.taken + SIZE) & M32
        return found

    def gets(self, frames: list[bytes], where: Callable[[int], int]) -> list[bool]:
        """These come, in order; which of them have landed in the guest's memory."""
        found, deadline = list[tuple[bool, bytes]](), time.monotonic() + PATIENCE
        while len(found) < len(frames):
            assert time.monotonic() < deadline, len(found)
            found += self.take(where)
        assert [data for _, data in found] == frames
        return [guests for guests, _ in found]

    def close(self) -> None:
        self._stack.close()
        self.socket.close()
        self.memory.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def owned() -> Iterator[Owned]:
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, ROOM)
    with Namespace("nic") as host, Namespace("far") as far:
        for end in (host, far):
            end.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        with Nic(host, far) as nic, contextlib.closing(Owned(nic, Region(0, ROOM, 0, 0, descriptor))) as made:
            yield made
    os.close(descriptor)


def test_all_entries_are_ours_when_it_is_made_and_nothing_lands_in_the_guest(owned: Owned) -> None:
    frames = [plain(number, 60 + number) for number in range(100)]
    before = owned.bytes[: owned.memory.size].copy()
    owned.nic.send(*frames)
    assert owned.gets(frames, owned.ours) == [False] * 100
    assert np.array_equal(owned.bytes[: owned.memory.size], before)


def test_entries_written_anew_are_where_frames_land_and_nothing_else_is_touched(owned: Owned) -> None:
    frames = [plain(number, 60 + number) for number in range(100)]
    owned.bytes[:] = CANARY
    expected = owned.bytes.copy()
    owned.name(owned.guests)
    owned.nic.send(*frames)
    assert owned.gets(frames, owned.ours) == [True] * 100
    for number, data in enumerate(frames):
        place = owned.guests(number) + xdp.XDP_PACKET_HEADROOM
        expected[place : place + len(data)] = np.frombuffer(data, np.uint8)
    assert np.array_equal(owned.bytes, expected)
    owned.name(owned.ours)
    owned.nic.send(*frames)
    assert owned.gets(frames, owned.ours) == [False] * 100


def test_frame_n_comes_by_entry_n_lap_after_lap_and_none_is_lost_while_they_are_written_anew(
    owned: Owned,
) -> None:
    """From a thread, while this one goes there and back: after a grace period nothing lands in the guest any more."""
    sent, stop, draw = list[bytes](), threading.Event(), random.Random(1)

    def send() -> None:
        while not stop.is_set():
            if len(sent) - owned.taken >= ON_THE_WIRE:
                stop.wait(0.0002)
                continue
            sent.append(plain(len(sent) % (1 << 16), draw.randrange(60, LONGEST)))
            owned.nic.send(sent[-1])

    thread = threading.Thread(target=send)
    thread.start()
    got, in_place = 0, 0
    try:
        for _ in range(40):
            for where, rounds in ((owned.guests, draw.randrange(1, 20)), (owned.ours, 0)):
                owned.name(where)
                for _ in range(rounds):
                    time.sleep(0.0005)
                    got, in_place = checked(owned, where, sent, got, in_place)
            linux.grace_period()
            until = owned.socket.received()
            while owned.taken < until:
                got, in_place = checked(owned, owned.ours, sent, got, in_place)
            owned.bytes[: owned.memory.size] = CANARY
            for _ in range(draw.randrange(1, 5)):
                time.sleep(0.0005)
                got, _ = checked(owned, owned.ours, sent, got, 0)
            assert (owned.bytes[: owned.memory.size] == CANARY).all()
    finally:
        stop.set()
        thread.join()
    assert in_place > 100
    assert got - in_place > 100
    assert set(owned.socket.statistics().values()) == {0}


def checked(
    owned: Owned, where: Callable[[int], int], sent: list[bytes], got: int, in_place: int
) -> tuple[int, int]:
    """What has come are the next ones that were sent; how many by now, and of those in the guest's memory."""
    for guests, data in owned.take(where):
        assert data == sent[got]
        got, in_place = got + 1, in_place + guests
    return got, in_place


def has_received(owned: Owned, count: int) -> bool:
    return owned.socket.received() == count


def test_when_nobody_takes_frames_further_ones_are_lost_by_name(owned: Owned) -> None:
    frames = [plain(number) for number in range(SIZE)]
    for first in range(0, SIZE, ON_THE_WIRE):
        owned.nic.send(*frames[first : first + ON_THE_WIRE])
        until(partial(has_received, owned, first + ON_THE_WIRE))
    owned.nic.send(*frames[:7])
    until(lambda: owned.socket.statistics()["rx_dropped"] == 7)
    assert owned.gets(frames, owned.ours) == [False] * SIZE
    owned.nic.send(plain(9))
    assert owned.gets([plain(9)], owned.ours) == [False]


def test_a_queue_that_has_a_socket_already_is_refused_in_words(owned: Owned) -> None:
    with pytest.raises(OSError, match="busy"):
        owned.nic.host.call(lambda: NicSocket(owned.nic.index, QUEUE, owned.memory, LONGEST))
    with pytest.raises(OSError, match="Invalid argument"):
        owned.nic.host.call(lambda: NicSocket(owned.nic.index, QUEUES, owned.memory, LONGEST))
