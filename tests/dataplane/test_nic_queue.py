# SPDX-License-Identifier: Apache-2.0
"""Frames that are bound to a guest's chains, against a kernel of the test's own that reads an entry and fills it later.

What the real kernel makes of entries: tests/direct/test_nic_socket.py.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.dataplane.rig import FAULT, GUARD, HEADER, NEXT, WRITE, A, B, Rig, interpreted, numbered
from tests.dataplane.test_xdp import Ring
from vmq.abi import xdp
from vmq.dataplane import reasons, state
from vmq.dataplane.direct import LEAD
from vmq.dataplane.nic_queue import bind, let_go, lose, place_frames, take, waiting, withdraw
from vmq.dataplane.split import available, give_back, head_at, publish
from vmq.dataplane.xdp import offset_of
from vmq.jit import address_of

pytestmark = interpreted
SIZE, CHUNK, LEAST = 8, 2048, 200  # as tests/dataplane/test_xdp.py has rings
FIRST, ROOM = 0x10000, 1 << 18
OURS = FIRST + ROOM - SIZE * CHUNK  # the end of the region stands for what lies behind a guest's memory
ORDER = -1 - reasons.FAULT_BASE - FAULT["direct_order"]


class Owned:
    """A VM with a NIC queue of its own; `begins` and `lands` are the kernel."""

    def __init__(self, start: int = 0, *, size: int = 16) -> None:
        self.rig = Rig()
        wire = self.rig.uplink(kind=0, receives=True)
        self.vm = self.rig.vm(A, size=size, regions=[(FIRST, ROOM)], uplink=wire)
        self.neighbour = self.rig.vm(B, uplink=wire)
        self.rig.publish()
        _, _, _, self.vq, self.ring = self.rig.rows(self.vm, to_guest=True)
        self.block = np.zeros(1, state.nic_queue)
        self.row = self.block[0]
        self.receive, self.fill = Ring(xdp.desc, start), Ring(np.dtype(np.uint64), start)
        for name, ring in (("receive", self.receive), ("fill", self.fill)):
            row = np.zeros(1, state.xdp_ring)[0]
            row["producer"], row["consumer"], row["flags"], row["entries"], row["size"] = ring.row()
            self.row[name] = row
        (_, length, host) = self.vm.memory.table()[0]
        self.row["memory"], self.row["size"] = host - GUARD, length + 2 * GUARD
        self.row["bounce"], self.row["chunk"] = GUARD + OURS - FIRST, CHUNK
        self.row["least"], self.row["longest"] = LEAST, LEAST - HEADER - 4
        self.spans = np.array([(FIRST, OURS - FIRST, GUARD)], state.span)
        self.row["spans"], self.row["span_count"] = address_of(self.spans), 1
        self.lists = np.zeros((2, SIZE), np.int64)
        self.row["heads"], self.row["places"] = (address_of(self.lists[which]) for which in range(2))
        self.row["until"] = state.NONE
        self.books, self.lane = self.vm.books(), np.zeros(1, state.lane_state)[0]
        self.under_way: deque[tuple[int, bytes]] = deque()  # entries that the kernel has read and not filled
        self.vm.memory.allow(OURS, SIZE * CHUNK)
        for number in range(SIZE):
            entry = int(self.row["bounce"]) + (start + number) % SIZE * CHUNK
            self.fill.produce(entry)

    # --- the kernel --------------------------------------------------------------------------------------------

    def begins(self, data: bytes) -> int | None:
        """It reads the next entry for a frame; where that will land, None if there is no entry."""
        if self.fill.consumer[0] == self.fill.producer[0]:
            return None
        base = int(self.fill.entries[int(self.fill.consumer[0]) % SIZE])
        self.fill.consumer[0] = (int(self.fill.consumer[0]) + 1) & state.M32
        self.under_way.append((base, data))
        return base

    def lands(self) -> None:
        """It fills and shows the oldest one."""
        base, data = self.under_way.popleft()
        self.vm.memory.write(FIRST + base - GUARD + LEAD + HEADER, data)
        self.receive.produce((base | xdp.XDP_PACKET_HEADROOM << 48, len(data), 0))

    def arrives(self, data: bytes) -> int | None:
        base = self.begins(data)
        while self.under_way:
            self.lands()
        return base

    # --- us ----------------------------------------------------------------------------------------------------

    def round(self, leaving: int = 0) -> int:
        count = int(place_frames(self.vq, self.ring, self.row, self.lane, self.books, leaving))
        publish(self.vq, self.ring)
        return count

    def show(self, led: int) -> None:
        """In the next version of the tables it is led, or leaving, or switched; its processor goes round."""
        self.vm.nic, self.vm.led = address_of(self.block), led
        self.rig.publish()
        self.rig.run()

    def ours(self, base: int | None) -> bool:
        return base is not None and base >= self.row["bounce"]

    def switched(self, data: bytes) -> bool:
        """The engine fills the next chain itself; False where there is none."""
        if available(self.vq, self.ring) <= 0:
            return False
        head = int(head_at(self.vq, self.ring, 0))
        ((address, _),) = self.vm.to_guest.chains[head][1]
        self.vm.memory.write(address, bytes(10) + b"\1\0" + data)
        give_back(self.vq, self.ring, head, HEADER + len(data))
        publish(self.vq, self.ring)
        return True

    def drops(self, code: int) -> int:
        return int(self.books["to_guest_drops"][code])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.rig.close()


@pytest.fixture
def owned() -> Any:
    with Owned() as made:
        yield made


@pytest.mark.parametrize("start", [0, (1 << 32) - 3])
def test_frames_land_in_the_guests_buffers_and_come_in_order_whatever_the_indices(start: int) -> None:
    with Owned(start) as owned:
        for lap in range(6):
            owned.vm.post(5, 512)
            assert owned.round() == 0
            frames = [numbered(A, A, 5 * lap + index, 60 + index) for index in range(5)]
            assert not any(owned.ours(owned.arrives(data)) for data in frames)
            assert owned.round() == 5
            assert owned.vm.received() == frames
            assert owned.vm.num_buffers[-5:] == [1] * 5
        volume = 6 * sum(60 + index for index in range(5))
        assert [int(owned.books[name]) for name in ("bytes_to_guest", "bytes_placed")] == [volume] * 2
        assert [
            int(owned.books[name]) for name in ("frames_to_guest", "frames_placed", "offered_to_guest")
        ] == [30] * 3
        assert (int(owned.lane["frames_from_wire"]), int(owned.lane["account"]["forwarded"])) == (30, 30)
        assert int(owned.lane["bytes_from_wire"]) == volume
        owned.vm.memory.check()


def test_what_came_to_memory_of_ours_is_copied_on_and_counted_as_copied(owned: Owned) -> None:
    frames = [numbered(A, A, number, 100) for number in range(3)]
    assert all(owned.ours(owned.arrives(data)) for data in frames)
    owned.vm.post(3, 512)
    assert owned.round() == 3
    assert owned.vm.received() == frames
    assert [int(owned.books[name]) for name in ("frames_to_guest", "frames_placed", "bytes_placed")] == [
        3,
        0,
        0,
    ]
    owned.vm.memory.check()


def test_a_frame_whose_entry_was_read_before_it_was_written_anew_goes_to_its_chain_all_the_same(
    owned: Owned,
) -> None:
    frames = [numbered(A, A, number) for number in range(4)]
    assert all(owned.ours(owned.begins(data)) for data in frames[:2])
    owned.vm.post(6, 512)
    assert owned.round() == 0
    assert not any(owned.ours(owned.begins(data)) for data in frames[2:])
    while owned.under_way:
        owned.lands()
    assert owned.round() == 4
    assert owned.vm.received() == frames
    assert int(owned.books["frames_placed"]) == 2


def test_without_a_chain_a_frame_is_dropped_by_name_and_the_next_buffer_takes_the_next_frame(
    owned: Owned,
) -> None:
    owned.vm.post(1, 512)
    owned.round()
    for number in range(4):
        owned.arrives(numbered(A, A, number))
    assert owned.round() == 4
    assert owned.vm.received() == [numbered(A, A, 0)]
    assert owned.drops(reasons.TO_GUEST_NO_BUFFER) == 3
    owned.vm.post(1, 512)
    owned.round()
    assert not owned.ours(owned.arrives(numbered(A, A, 9)))
    assert owned.round() == 1
    assert owned.vm.received() == [numbered(A, A, 9)]
    assert int(owned.books["offered_to_guest"]) == 5


def test_no_more_is_bound_than_a_ring_holds(owned: Owned) -> None:
    owned.vm.post(SIZE + 4, 512)
    owned.round()
    assert (int(owned.row["bound"]), int(bind(owned.vq, owned.ring, owned.row, 0))) == (SIZE, 0)
    owned.arrives(numbered(A, A, 1))
    assert owned.round() == 1
    assert int(owned.row["bound"]) == SIZE


def test_leaving_frames_are_copied_on_and_nothing_is_bound_when_none_can_land_in_a_buffer_any_more(
    owned: Owned,
) -> None:
    owned.vm.post(8, 512)
    owned.round()
    frames = [numbered(A, A, number) for number in range(5)]
    assert not owned.ours(owned.begins(frames[0]))  # the kernel has read this entry
    withdraw(owned.row)
    assert int(owned.row["withdrawn"]) == 1
    assert owned.ours(owned.begins(frames[1]))
    let_go(owned.row)
    assert int(owned.row["free"]) == 0
    while owned.under_way:  # a grace period
        owned.lands()
    owned.row["until"] = int(owned.receive.producer[0])
    let_go(owned.row)
    assert int(owned.row["free"]) == 0  # they are not given back yet
    assert owned.ours(owned.begins(frames[2]))
    owned.lands()
    assert owned.round(1) == 3
    let_go(owned.row)
    assert (int(owned.row["free"]), int(owned.row["bound"])) == (1, 0)
    assert owned.vm.received() == frames[:3]
    assert owned.switched(frames[3])  # the next chain is the engine's
    assert owned.vm.received() == frames[3:4]
    owned.vm.memory.check()


@pytest.mark.parametrize(
    ("producer", "until", "free"), [(5, 5, 1), (5, 6, 0), (2, (1 << 32) - 2, 1), ((1 << 32) - 2, 2, 0)]
)
def test_it_is_free_from_the_frame_on_that_control_names_whatever_the_indices(
    producer: int, until: int, free: int
) -> None:
    with Owned(producer) as owned:
        owned.row["until"] = until
        let_go(owned.row)
        assert int(owned.row["free"]) == free


def test_a_chain_of_two_buffers_stops_what_is_behind_it_and_frames_wait(owned: Owned) -> None:
    owned.vm.post(2, 512)
    place = owned.vm.memory.allocate(1024)
    owned.vm.to_guest.chain([(place, 512), (place + 512, 512)], flags=WRITE)
    owned.vm.post(2, 512)
    owned.round()
    assert (int(owned.row["bound"]), int(owned.row["unfit"])) == (2, 1)
    for number in range(4):
        owned.arrives(numbered(A, A, number))
    assert owned.round() == 2
    assert (owned.round(), int(waiting(owned.row)), owned.drops(reasons.TO_GUEST_NO_BUFFER)) == (0, 2, 0)


def test_buffers_that_are_none_for_the_kernel_are_never_named_to_it(owned: Owned) -> None:
    """As where it fills them through a pair (test_direct.py); memory of ours is none of the guest's, either."""
    for address, length, flags in ((FIRST + 4096, LEAST - 1, WRITE), (FIRST + 4096, 512, 0), (FIRST + 4096, 512, WRITE | NEXT), (OURS, 512, WRITE)):  # fmt: skip
        owned.row["unfit"] = 0
        owned.vm.to_guest.describe(0, address, length, flags, 1)
        owned.vm.to_guest.offer(0)
        assert (owned.round(), int(owned.row["bound"]), int(owned.row["unfit"])) == (0, 0, 1)
        owned.ring["next_avail"] += 1  # a switched queue has taken it
    assert all(int(entry) >= int(owned.row["bounce"]) for entry in owned.fill.entries)


def test_an_index_that_jumps_is_a_fault(owned: Owned) -> None:
    owned.vm.to_guest.show(17)
    assert owned.round() == -1 - reasons.FAULT_BASE - FAULT["avail_jump"]


@pytest.mark.parametrize(
    ("base", "length"), [(GUARD + 0x8000, 60), (None, LEAST)], ids=["another buffer", "too long"]
)
def test_a_frame_that_the_kernel_cannot_have_placed_is_a_fault(
    owned: Owned, base: int | None, length: int
) -> None:
    owned.vm.post(1, 512)
    owned.round()
    place = int(owned.row["bounce"]) if base is None else base
    owned.receive.produce((place | xdp.XDP_PACKET_HEADROOM << 48, length, 0))
    assert owned.round() == ORDER
    assert owned.vm.received() == []


def test_frames_of_a_port_with_a_fault_are_dropped_and_its_rings_are_left_alone(owned: Owned) -> None:
    owned.vm.post(3, 512)
    owned.round()
    for number in range(2):
        owned.arrives(numbered(A, A, number))
    assert int(lose(owned.row, owned.lane, owned.books)) == 2
    assert (int(owned.row["bound"]), owned.drops(reasons.TO_GUEST_NOT_RUNNING)) == (1, 2)
    assert (int(owned.ring["next_avail"]), int(owned.ring["next_used"])) == (0, 0)


class Lifecycle(RuleBasedStateMachine):
    """There and back in any order, frames under way at any time: the guest gets each once, in order, in buffers that it posted."""

    def __init__(self) -> None:
        super().__init__()
        self.owned = Owned(start=(1 << 32) - 7, size=32)
        self.stage, self.number = "switched", 0
        self.sent: deque[bytes] = deque()  # that the kernel has read an entry for
        self.others: list[bytes] = []  # that the engine has put in between, while switched
        self.got: list[bytes] = []

    @rule(count=st.integers(1, 6), size=st.sampled_from([LEAST, 512]))
    def offers(self, count: int, size: int) -> None:
        self.owned.vm.post(min(count, len(self.owned.vm.to_guest.free)), size)

    @rule(count=st.integers(1, 5))
    def begin(self, count: int) -> None:
        for _ in range(count):
            data = numbered(A, A, self.number, 60 + self.number % 100)
            base = self.owned.begins(data)
            if base is None:
                return
            self.number += 1
            self.sent.append(data)
            assert self.owned.ours(base) or self.stage == "led"

    @rule(count=st.integers(1, 5))
    def land(self, count: int) -> None:
        for _ in range(min(count, len(self.owned.under_way))):
            self.owned.lands()

    @precondition(lambda self: self.stage != "switched")
    @rule()
    def go_round(self) -> None:
        drops = self.owned.drops(reasons.TO_GUEST_NO_BUFFER)
        count = self.owned.round(int(self.stage == "leaving"))
        assert count >= 0
        lost = self.owned.drops(reasons.TO_GUEST_NO_BUFFER) - drops
        given = [self.sent.popleft() for _ in range(count)]
        assert self.owned.vm.received() == given[: count - lost]
        if self.stage == "leaving":
            let_go(self.owned.row)
            if self.owned.row["free"]:
                self.stage = "switched"

    @precondition(lambda self: self.stage == "switched")
    @rule()
    def deliver(self) -> None:
        """What a lane does with them."""
        owned = self.owned
        count, first = int(waiting(owned.row)), int(owned.receive.consumer[0])
        for index in range(count):
            entry = owned.receive.entries[(first + index) % SIZE]
            place = offset_of(int(entry["addr"]))
            assert place >= owned.row["bounce"]
            data = owned.vm.memory.read(FIRST + place - GUARD, int(entry["len"]))
            assert data == self.sent.popleft()
            if owned.switched(data):
                assert owned.vm.received() == [data]
        take(owned.row, count)

    @precondition(lambda self: self.stage == "switched")
    @rule()
    def other_path(self) -> None:
        data = numbered(A, A, 1 << 20)
        if self.owned.switched(data):
            assert self.owned.vm.received() == [data]

    @precondition(lambda self: self.stage == "switched")
    @rule()
    def lead(self) -> None:
        for name in ("bound", "withdrawn", "free", "waits", "unfit"):
            self.owned.row[name] = 0
        self.owned.row["until"] = state.NONE
        self.stage = "led"

    @precondition(lambda self: self.stage == "led")
    @rule()
    def leave(self) -> None:
        withdraw(self.owned.row)
        self.stage = "leaving"

    @precondition(lambda self: self.stage == "leaving" and self.owned.row["until"] == state.NONE)
    @rule()
    def grace_period(self) -> None:
        """What the kernel had begun by now it has ended."""
        while self.owned.under_way:
            self.owned.lands()
        self.owned.row["until"] = int(self.owned.receive.producer[0])

    @invariant()
    def nothing_else_is_written_and_entries_are_bound_or_ours(self) -> None:
        owned = self.owned
        owned.vm.memory.check()
        bound, first = int(owned.row["bound"]), int(owned.receive.consumer[0])
        assert (int(owned.fill.producer[0]) - first) & state.M32 == SIZE
        assert bound <= available(owned.vq, owned.ring)
        for index in range(SIZE):
            number = (first + index) % SIZE
            ours = owned.ours(int(owned.fill.entries[number]))
            assert ours if index >= bound or self.stage != "led" else not ours
        assert self.stage != "switched" or bound == 0

    def teardown(self) -> None:
        self.owned.rig.close()


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
