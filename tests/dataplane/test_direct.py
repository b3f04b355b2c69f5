# SPDX-License-Identifier: Apache-2.0
"""Buffers that a guest posts, in the kernel's rings and back: against a kernel of the test's own that takes them in order.

What the real kernel makes of them: tests/direct/test_socket.py.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Any, Self
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.dataplane.rig import FAULT, GUARD, HEADER, NEXT, WRITE, A, Rig, interpreted, numbered
from tests.dataplane.test_xdp import Ring
from vmq.abi import xdp
from vmq.dataplane import direct, reasons, state
from vmq.dataplane.direct import LEAD, begun, book_lost, exchange, harvest, poll_pair, post
from vmq.dataplane.split import available, give_back, head_at, publish
from vmq.jit import address_of, load_once

pytestmark = interpreted
SIZE, CHUNK, LEAST = 8, 2048, 200  # as tests/dataplane/test_xdp.py has rings
REGION = (0x10000, 1 << 18)


class Placed:
    """A VM whose receive queue is direct; the kernel's memory is its region, guards and all."""

    def __init__(self, start: int = 0, *, size: int = 16) -> None:
        self.rig = Rig()
        self.vm = self.rig.vm(A, size=size, regions=[REGION])
        self.rig.publish()
        _, _, _, self.vq, self.ring = self.rig.rows(self.vm, to_guest=True)
        self.row = np.zeros(1, state.direct_queue)[0]
        self.receive, self.fill = Ring(xdp.desc, start), Ring(np.dtype(np.uint64), start)
        for name, ring in (("receive", self.receive), ("fill", self.fill)):
            row = np.zeros(1, state.xdp_ring)[0]
            row["producer"], row["consumer"], row["flags"], row["entries"], row["size"] = ring.row()
            self.row[name] = row
        (_, length, host) = self.vm.memory.table()[0]
        self.row["memory"], self.row["size"] = host - GUARD, length + 2 * GUARD
        self.row["chunk"], self.row["least"] = CHUNK, LEAST
        self.spans = np.array([(*REGION, GUARD)], state.span)
        self.row["spans"], self.row["span_count"] = address_of(self.spans), 1
        self.lists = np.zeros((2, SIZE), np.int64)
        self.row["heads"], self.row["places"] = (address_of(self.lists[which]) for which in range(2))
        self.books = self.vm.books()
        self.row["first"] = start  # numbers grow for ever; a ring of the kernel's has 32 bits of them

    def post(self) -> int:
        return int(post(self.vq, self.ring, self.row))

    def begun(self) -> bool:
        return bool(begun(self.vq, self.ring, self.row))

    def switched(self, data: bytes) -> bool:
        """The engine fills the next chain itself; False where there is none."""
        if available(self.vq, self.ring) <= 0:
            return False
        head = int(head_at(self.vq, self.ring, 0))
        ((address, _),) = self.vm.to_guest.chains[head][1]
        self.vm.memory.write(address, bytes(10) + b"\1\0" + data)
        give_back(self.vq, self.ring, head, HEADER + len(data))
        return True

    def harvest(self) -> int:
        count = int(harvest(self.vq, self.ring, self.row, self.books))
        publish(self.vq, self.ring)
        return count

    def place(self, data: bytes, *, wrong: int = 0) -> bool:
        """The kernel: a frame into the next buffer; False where it has none."""
        if self.fill.consumer[0] == self.fill.producer[0]:
            return False
        base = int(self.fill.entries[int(self.fill.consumer[0]) % SIZE])
        self.fill.consumer[0] = (int(self.fill.consumer[0]) + 1) & state.M32
        guest = REGION[0] + base + LEAD - GUARD + HEADER
        shadow = self.vm.memory
        shadow.write(guest, data)
        self.receive.produce((base + wrong | xdp.XDP_PACKET_HEADROOM << 48, len(data), 0))
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.rig.close()


@pytest.mark.parametrize("start", [0, (1 << 32) - 3])
def test_frames_reach_the_guest_in_order_whatever_the_indices(start: int) -> None:
    with Placed(start) as placed:
        number = 0
        for lap in range(6):
            placed.vm.post(5, 512)
            assert placed.post() == 5
            frames = [numbered(A, A, number + index, 60 + index) for index in range(5)]
            number += 5
            assert all(placed.place(data) for data in frames)
            assert placed.harvest() == 5
            assert placed.vm.received() == frames
            assert placed.vm.num_buffers[-5:] == [1] * 5
            assert (int(placed.row["posted"]), int(placed.books["frames_to_guest"])) == (0, 5 * (lap + 1))
        volume = 6 * sum(60 + index for index in range(5))
        assert [int(placed.books[name]) for name in ("bytes_to_guest", "bytes_placed")] == [volume] * 2
        assert [int(placed.books[name]) for name in ("frames_to_guest", "frames_placed")] == [30] * 2
        assert placed.harvest() == 0
        placed.vm.memory.check()


def test_no_more_is_posted_than_a_ring_holds() -> None:
    with Placed() as placed:
        placed.vm.post(SIZE + 4, 512)
        assert (placed.post(), placed.post()) == (SIZE, 0)
        assert placed.place(numbered(A, A, 1))
        assert placed.post() == 0  # the kernel has room, and we still have to give one back
        assert placed.harvest() == 1
        assert placed.post() == 1


@pytest.mark.parametrize(("burst", "taken"), [(64, 8), (3, 8), (2, 8), (1, 4)])
def test_a_turn_gives_back_several_bursts_and_has_others_posted(burst: int, taken: int) -> None:
    """As many as the kernel brings in one, and more: else those that stand in its ring would never become fewer."""
    with Placed() as placed, patch.object(direct, "BURST", burst):
        placed.vm.post(2 * SIZE, 512)
        assert placed.begun()
        frames = [numbered(A, A, number) for number in range(SIZE)]
        assert all(placed.place(data) for data in frames)
        got, wanted = exchange(placed.vq, placed.ring, placed.row, placed.books, True)
        publish(placed.vq, placed.ring)
        assert (got, wanted) == (taken, taken)  # it had few
        assert placed.vm.received() == frames[:taken]
        assert int(placed.row["posted"]) == SIZE


def test_a_queue_that_is_not_led_any_more_gives_back_and_posts_nothing() -> None:
    with Placed() as placed:
        placed.vm.post(4, 512)
        assert placed.begun()
        assert placed.place(numbered(A, A, 1))
        assert exchange(placed.vq, placed.ring, placed.row, placed.books, False) == (1, 0)
        assert int(placed.row["posted"]) == 3


def test_a_fault_in_a_later_burst_takes_nothing_back() -> None:
    with Placed() as placed, patch.object(direct, "BURST", 1):
        placed.vm.post(SIZE, 512)
        assert placed.begun()
        assert placed.place(numbered(A, A, 1))
        assert placed.place(numbered(A, A, 2), wrong=2048)
        got = exchange(placed.vq, placed.ring, placed.row, placed.books, True)
        assert got == (1, -1 - reasons.FAULT_BASE - FAULT["direct_order"])


def test_to_poll_is_one_call_that_never_waits() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        row = np.zeros(1, state.direct_queue)[0]
        row["poll"] = state.NONE
        theirs.send(b"one")
        poll_pair(row)
        assert ours.recv(3, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b"one"
        row["poll"] = ours.fileno()
        for _ in range(2):
            poll_pair(row)
        with pytest.raises(BlockingIOError):
            ours.recv(3, socket.MSG_DONTWAIT)


def offer(placed: Placed, address: int, length: int, flags: int = WRITE, head: int = 0) -> None:
    placed.vm.to_guest.describe(head, address, length, flags, 1)
    placed.vm.to_guest.offer(head)


FIRST, END = REGION[0], REGION[0] + REGION[1]
UNFIT = {
    "too short": (FIRST + 0x8000, LEAST - 1, WRITE, 0),
    "readable": (FIRST + 0x8000, 512, 0, 0),
    "a chain": (FIRST + 0x8000, 512, WRITE | NEXT, 0),
    "indirect": (FIRST + 0x8000, 512, WRITE | 4, 0),
    "outside": (END + 0x100000, 512, WRITE, 0),
    "before": (0, 512, WRITE, 0),
    "over the end": (END - 300, 512, WRITE, 0),
    "negative": ((1 << 64) - 256, 512, WRITE, 0),
    "long": (FIRST + 0x8000, 0xFFFFFFFF, WRITE, 0),
    "beyond the table": (FIRST + 0x8000, 512, WRITE, 0xFFFF),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_is_no_buffer_for_the_kernel_is_never_posted(what: str) -> None:
    """Nothing of it stands in the fill ring, and what is behind it waits: the queue has to be switched."""
    address, length, flags, head = UNFIT[what]
    with Placed() as placed:
        placed.vm.post(2, 512)
        if head:
            placed.vm.to_guest.offer(head)
        else:
            offer(placed, address, length, flags, 5)
        placed.vm.post(1, 512)
        assert placed.post() == 2
        assert (int(placed.row["unfit"]), int(placed.row["posted"])) == (1, 2)
        assert placed.post() == 0
        assert len(placed.fill.consume()) == 2


def test_a_chunk_that_would_leave_the_kernels_memory_is_not_posted() -> None:
    """Without guards a buffer in the first bytes, or too near to the end, cannot be named to the kernel."""
    with Placed() as placed:
        placed.row["memory"] += GUARD
        placed.spans["place"] = 0
        placed.row["size"] -= 2 * GUARD
        for address, fits in (
            (FIRST + LEAD - 1, False),
            (FIRST + LEAD, True),
            (END - CHUNK + LEAD, True),
            (END - CHUNK + LEAD + 1, False),
        ):
            placed.row["unfit"] = 0
            offer(placed, address, LEAST)
            assert placed.post() == int(fits)
            if not fits:
                placed.ring["next_avail"] += 1  # a switched queue has taken it
            else:
                (base,) = placed.fill.consume()
                assert 0 <= base <= int(placed.row["size"]) - CHUNK
                placed.row["posted"], placed.ring["next_avail"] = 0, int(placed.ring["next_avail"]) + 1


def test_an_index_that_jumps_is_a_fault() -> None:
    with Placed() as placed:
        placed.vm.to_guest.show(17)
        assert placed.post() == -1 - reasons.FAULT_BASE - FAULT["avail_jump"]
        assert placed.fill.consume() == []


def test_another_order_than_that_of_posting_is_a_fault_and_gives_nothing_to_the_guest() -> None:
    with Placed() as placed:
        placed.vm.post(2, 512)
        assert placed.post() == 2
        assert placed.place(numbered(A, A, 1), wrong=2048)
        assert placed.harvest() == -1 - reasons.FAULT_BASE - FAULT["direct_order"]
    with Placed() as placed:  # a frame in a buffer that nobody posted
        placed.receive.produce((0x8000 | 256 << 48, 60, 0))
        assert placed.harvest() == -1 - reasons.FAULT_BASE - FAULT["direct_order"]


def test_until_the_kernel_has_buffers_the_engine_fills_them_and_afterwards_none_is_used_twice() -> None:
    """A queue that is led begins with the chains that are next then, not with those that were."""
    with Placed() as placed:
        assert not placed.begun()  # the guest has posted none
        placed.vm.post(6, 512)
        assert [placed.switched(numbered(A, A, number)) for number in range(2)] == [True, True]
        assert placed.begun()
        assert (int(placed.row["posted"]), int(placed.row["begun"])) == (4, 1)
        assert placed.place(numbered(A, A, 2))
        assert placed.harvest() == 1
        assert placed.vm.received() == [numbered(A, A, number) for number in range(3)]


def test_a_queue_whose_first_buffer_is_none_for_the_kernel_stays_the_engines() -> None:
    with Placed() as placed:
        offer(placed, *UNFIT["a chain"][:3])
        assert not placed.begun()
        assert (int(placed.row["posted"]), int(placed.row["unfit"])) == (0, 1)
        assert placed.fill.consume() == []


def test_what_was_lost_is_counted_once_by_where_it_was_lost() -> None:
    with Placed() as placed:
        placed.row["lost"][:] = (3, 2, 1)
        for _ in range(2):
            book_lost(placed.row, placed.books)
        placed.row["lost"][0] += 5
        book_lost(placed.row, placed.books)
        assert int(placed.books["offered_to_guest"]) == 11
        drops = [
            int(placed.books["to_guest_drops"][code])
            for code in (reasons.TO_GUEST_NO_BUFFER, reasons.TO_GUEST_TOO_LONG)
        ]
        assert [*drops, int(placed.books["to_guest_drops"][reasons.TO_GUEST_PAIR])] == [8, 2, 1]


def test_what_the_guest_changes_after_posting_changes_nothing() -> None:
    with Placed() as placed:
        placed.vm.post(2, 512)
        assert placed.post() == 2
        ring = placed.vm.to_guest
        places = [buffers[0] for _, buffers in ring.chains.values()]
        ring.describe(0, END + 4096, 4, 0)
        ring.memory.write(ring.avail + 4, b"\xff\xff\xff\xff")
        assert placed.place(numbered(A, A, 7))
        assert placed.harvest() == 1
        used = ring.memory.read(ring.used + 4, 8)
        assert used == (0).to_bytes(4, "little") + (HEADER + 60).to_bytes(4, "little")
        assert ring.memory.read(places[0][0] + HEADER, 60) == numbered(A, A, 7)


class Lifecycle(RuleBasedStateMachine):
    """Posting, frames, leaving and entering again, in any order: the guest gets each frame once, in buffers it posted."""

    def __init__(self) -> None:
        super().__init__()
        self.placed = Placed(start=(1 << 32) - 7, size=32)
        self.led, self.number = True, 0
        self.sent: deque[bytes] = deque()

    @rule(count=st.integers(1, 6), size=st.sampled_from([LEAST, 512]))
    def offers(self, count: int, size: int) -> None:
        self.placed.vm.post(min(count, len(self.placed.vm.to_guest.free)), size)

    @rule()
    def posts(self) -> None:
        if self.led and self.placed.begun():
            assert self.placed.post() >= 0

    @precondition(lambda self: not self.led)
    @rule()
    def is_switched(self) -> None:
        data = numbered(A, A, self.number)
        if self.placed.switched(data):
            self.sent.append(data)
        self.number += 1

    @precondition(lambda self: self.led and self.placed.begun())
    @rule(count=st.integers(1, 5))
    def frames(self, count: int) -> None:
        for _ in range(count):
            data = numbered(A, A, self.number, 60 + self.number % 100)
            if self._place(data):
                self.sent.append(data)
            self.number += 1

    def _place(self, data: bytes) -> bool:
        """The kernel passes over entries that name nowhere."""
        fill = self.placed.fill
        while (
            fill.consumer[0] != fill.producer[0]
            and int(fill.entries[int(fill.consumer[0]) % SIZE]) == 1 << 47
        ):
            fill.consumer[0] = (int(fill.consumer[0]) + 1) & state.M32
        return self.placed.place(data)

    @rule()
    def harvests(self) -> None:
        before = len(self.sent)
        count = self.placed.harvest() if self.led else before
        publish(self.placed.vq, self.placed.ring)
        assert [self.sent.popleft() for _ in range(count)] == self.placed.vm.received()

    @precondition(lambda self: self.led)
    @rule()
    def leaves(self) -> None:
        """As `GuestSocket.leave`, when all that was placed has been given back."""
        self.harvests()
        assert not self.sent
        row, fill = self.placed.row, self.placed.fill
        stands = (int(fill.producer[0]) - int(fill.consumer[0])) & state.M32
        row["posted"], row["unfit"], row["stale"], row["begun"] = 0, 0, stands, 0
        for index in range(stands):
            fill.entries[(int(fill.consumer[0]) + index) % SIZE] = 1 << 47
        self.led = False

    @precondition(lambda self: not self.led)
    @rule()
    def is_led_again(self) -> None:
        self.harvests()
        self.led = True

    @invariant()
    def every_chain_is_somewhere_once(self) -> None:
        """Posted chains are the next ones of the available ring, and the kernel has no other."""
        placed = self.placed
        ready = (placed.vm.to_guest.index - int(placed.ring["next_avail"])) & 0xFFFF
        assert 0 <= int(placed.row["posted"]) <= min(ready, SIZE)
        fill = placed.fill
        count = (int(fill.producer[0]) - int(fill.consumer[0])) & state.M32
        named = [int(fill.entries[(int(fill.consumer[0]) + n) % SIZE]) for n in range(count)]
        mine = [one for one in named if one != 1 << 47]
        assert len(mine) == len(set(mine)) == int(placed.row["posted"]) - self.led * len(self.sent)

    def teardown(self) -> None:
        self.placed.vm.memory.check()
        self.placed.rig.close()


TestLifecycle = pytest.mark.interpreted(Lifecycle.TestCase)
TestLifecycle.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@st.composite
def memories(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int]]]:
    """Bytes that the kernel has, and regions (guest address, bytes, place) in them; the last may end where addresses do."""
    size = draw(st.integers(1, 2 * CHUNK) | st.integers(CHUNK, 1 << 44))
    places = draw(st.lists(st.just(0) | st.integers(0, size - 1), min_size=1, max_size=3))
    lengths = [draw(st.just(size - place) | st.integers(1, size - place)) for place in places]
    gaps = [draw(st.just(0) | st.integers(0, 1 << 40)) for _ in places]
    guest = draw(st.sampled_from([0, (1 << 63) - sum(lengths) - sum(gaps)]))
    regions = []
    for place, length, gap in zip(places, lengths, gaps, strict=True):
        regions.append((guest + gap, length, place))
        guest += gap + length
    return size, draw(st.permutations(regions))


@st.composite
def descriptors(
    draw: st.DrawFn, size: int, regions: list[tuple[int, int, int]], least: int
) -> dict[str, int]:
    """Near the edges of a region, of the kernel's memory, of what a buffer has to have, and of what a field can say."""
    guest, length, place = draw(st.sampled_from(regions))
    first, last = guest - place + LEAD, guest - place + size - CHUNK + LEAD
    edge = draw(st.sampled_from([first, last, guest, guest + length, 0, 1 << 63]))
    address = draw(st.integers(edge - 2, edge + 2) | st.integers(guest, guest + length)) % (1 << 64)
    about = draw(st.sampled_from([least, guest + length - address, 0]))
    bytes_ = draw(st.integers(about - 1, about + 1)) % (1 << 32)
    flags = draw(st.just(WRITE) | st.sampled_from([0, NEXT, WRITE | NEXT, WRITE | 4, 0x8002]))
    return {"addr": address, "len": bytes_, "flags": flags}


def taken(one: dict[str, int], regions: list[tuple[int, int, int]], size: int, least: int) -> int | None:
    """The entry for a buffer, None where the kernel would pass over it, or a frame would leave buffer or region."""
    end = one["addr"] + one["len"]
    for guest, length, place in regions:
        if guest <= one["addr"] and end <= guest + length and one["flags"] == WRITE and one["len"] >= least:
            base = place + (one["addr"] - guest) + HEADER - xdp.XDP_PACKET_HEADROOM
            return base if base >= 0 and base + CHUNK <= size else None
    return None


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_whatever_stands_in_the_fill_ring_is_taken_by_the_kernel(data: st.DataObject) -> None:
    """af-xdp: an entry is valid if its chunk lies in the memory. The guest changes its descriptors after each read."""
    (size, regions), least = data.draw(memories()), data.draw(st.sampled_from([HEADER + 14, 1530]))
    some = descriptors(size, regions, least)
    reads: list[tuple[str, int]] = []

    def changing(row: Any, field: str) -> Any:
        value = load_once(row, field)
        reads.append((field, int(value)))
        for name, other in data.draw(st.just({}) | some).items():
            row[name] = other
        return value

    with Placed() as placed, patch.object(direct, "load_once", changing):
        placed.row["size"], placed.row["least"] = size, least
        placed.spans = np.array(regions, state.span)
        placed.row["spans"], placed.row["span_count"] = address_of(placed.spans), len(regions)
        for head in range(3):
            one = data.draw(some)
            placed.vm.to_guest.describe(head, one["addr"], one["len"], one["flags"], 0)
            placed.vm.to_guest.offer(head)
        posted, entries = placed.post(), placed.fill.consume()
    seen = [dict(reads[start : start + 3]) for start in range(0, len(reads), 3)]
    assert all(one.keys() == {"addr", "len", "flags"} for one in seen)  # each is read once
    wanted = [taken(one, regions, size, least) for one in seen]
    assert entries == [base for base in wanted if base is not None] == wanted[:posted]
    assert (int(placed.row["unfit"]), posted) == (
        int(None in wanted),
        3 - (None in wanted) * (4 - len(wanted)),
    )
