# SPDX-License-Identifier: Apache-2.0
"""Receive queues that go from processor to processor under traffic: sequence numbers say that nothing is lost or overtaken."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.utils import RawPcapNgReader

from tests.engine.running import PATIENCE, TWO_CPUS, Running, exchange, frame, until
from vmq.dataplane import state
from vmq.engine import mover
from vmq.engine.observed import Capture
from vmq.guest.guest import Guest
from vmq.jit import INTERPRETED, at

TURNS = 6 if INTERPRETED else 60
WINDOW = 512  # frames under way: no more than the guests have buffers for
pytestmark = pytest.mark.skipif(len(TWO_CPUS) < 2, reason="needs two processors")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path, tuple(TWO_CPUS)) as one:
        yield one


def number_of(data: bytes) -> int:
    return int.from_bytes(data[14:18], "big")


def both_ways(one: Guest, other: Guest, meanwhile: Callable[[int], None], turns: int) -> None:
    """Numbered frames in both directions while something happens; each arrives once, in its place."""
    sent = {one: 0, other: 0}
    got: dict[Guest, list[int]] = {one: [], other: []}
    stop = threading.Event()

    def talk() -> None:
        while not stop.is_set():
            for sender, receiver in ((one, other), (other, one)):
                if sent[sender] - len(got[receiver]) < WINDOW:
                    sender.send([frame(receiver.mac, sender.mac, sent[sender] + n) for n in range(8)])
                    sent[sender] += 8
                got[receiver] += [number_of(data) for data in receiver.receive(64, 0.0)]

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        for turn in range(turns):
            before = sent[one]
            meanwhile(turn)
            while sent[one] <= before + 16:
                time.sleep(0.0002)
                assert talker.is_alive()
    finally:
        stop.set()
        talker.join(PATIENCE)
    for sender, receiver in ((one, other), (other, one)):
        left = sent[sender] - len(got[receiver])
        got[receiver] += [number_of(data) for data in receiver.receive(left, PATIENCE)]
        assert got[receiver] == list(range(sent[sender]))


def test_a_queue_that_moves_under_load_loses_and_overtakes_nothing(running: Running):
    running.pair()
    vm = running.engine.vms["a"]
    with running.guest("a", size=1024) as a, running.guest("b", size=1024) as b:
        both_ways(
            a, b, lambda turn: running.do(lambda: move(running, "a", turn % 2, shared=turn % 3 == 0)), TURNS
        )
        assert running.show("vms", "a")["drops"] == running.show("vms", "b")["drops"] == {}
        until(lambda: vm.queues[0].former == state.NONE)
        exchange(a, b)
    running.configure()


def test_a_capture_has_every_frame_once_and_in_order_while_its_queue_moves(running: Running):
    """The queue has one owner at a time, and so has the ring of the capture."""
    running.pair()
    capture = running.do(Capture, running.engine.vms["a"], (0,), state.TO_GUEST | state.FROM_GUEST, 64)
    content = [capture.header]

    def turn(number: int) -> None:
        running.do(move, running, "a", number % 2)
        content.append(running.do(capture.blocks))

    with running.guest("a", size=1024) as a, running.guest("b", size=1024) as b:
        both_ways(a, b, turn, TURNS)
        assert capture.lost == 0
        running.do(capture.stop)
        while more := running.do(capture.blocks):
            content.append(more)
    read = [data for data, _ in RawPcapNgReader(io.BytesIO(b"".join(content)))]
    for mac in (a.mac, b.mac):
        numbers = [number_of(data) for data in read if data[6:12].hex(":") == mac]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > TURNS
    assert len(read) == capture.kept
    running.do(capture.close)


def move(running: Running, name: str, worker: int, *, shared: bool = False) -> None:
    running.engine.mover.move_all([mover.Move(running.engine.vms[name], 0, worker, shared)])
    running.engine.publish()


def test_control_does_not_wait_for_a_guest_that_takes_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    """Frames that wait in the old owner's ring keep the queue on its way; another order is remembered."""
    monkeypatch.setattr(mover, "PATIENCE_SECONDS", 0.001)
    running.pair()
    vm = running.engine.vms["a"]
    with running.guest("a") as a, running.guest("b") as b:
        running.do(move, running, "a", 1)
        marks = mover.Mover._marks

        def never(self: mover.Mover, *what: object) -> Iterator[mover.Mark]:
            yield from marks(self, *what)  # type: ignore[arg-type]
            yield stuck

        ring = running.engine.segment.rows["rings"][0]
        stuck = mover.Mark(int(ring), 1 << 40, "queue", vm.first_queue, hold=False)
        stuck.passed = lambda **_: False  # type: ignore[method-assign]
        monkeypatch.setattr(mover.Mover, "_marks", never)
        running.do(move, running, "a", 0)
        assert (vm.queues[0].worker, vm.queues[0].former) == (0, 1)
        running.do(move, running, "a", 1)
        assert (vm.queues[0].worker, vm.queues[0].former) == (0, 1)
        monkeypatch.setattr(mover.Mover, "_marks", marks)
        stuck.passed = lambda **_: True  # type: ignore[method-assign]
        until(lambda: vm.queues[0].worker == 1 and vm.queues[0].former == state.NONE)
        exchange(a, b)


def test_a_vm_that_goes_in_the_middle_of_its_way_takes_the_journey_with_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mover.Mark, "passed", lambda _, **__: False)
    monkeypatch.setattr(mover, "PATIENCE_SECONDS", 0.001)
    running.pair()
    with running.guest("a"):
        running.do(move, running, "a", 1 - running.engine.vms["a"].worker)
        running.configure(b=running.vm("b", 2))
        assert running.engine.mover._under_way == {}


def test_a_driver_may_stop_and_start_while_its_queue_is_on_its_way(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    """GET_VRING_BASE is answered; nobody serves a ring twice, and the next driver finds the queue where it arrived."""
    running.pair()
    vm = running.engine.vms["a"]
    passed = mover.Mark.passed
    with running.guest("a") as a, running.guest("b") as b:
        exchange(a, b)
        with monkeypatch.context() as patch:
            patch.setattr(mover.Mark, "passed", lambda _, **__: False)
            patch.setattr(mover, "PATIENCE_SECONDS", 0.001)
            goal = 1 - vm.worker
            running.do(move, running, "a", goal)
            a.stop()
            a.start()
        assert mover.Mark.passed is passed
        until(lambda: vm.queues[0].former == state.NONE)
        assert vm.worker == goal
        exchange(a, b)


def test_frames_that_wait_for_buffers_move_with_nobody_and_arrive_first(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    """overload = "hold": the queue stays on its way until its guest has taken what waits at the old processor."""
    monkeypatch.setattr(mover, "LATE_SECONDS", 60 * PATIENCE)
    running.configure(a=running.vm("a", 1, overload="hold"), b=running.vm("b", 2))
    vm = running.engine.vms["a"]
    with running.guest("a", post=0) as a, running.guest("b") as b:
        frames = [frame(a.mac, b.mac, number) for number in range(8)]
        b.send(frames[:4])
        assert b.sent(PATIENCE)
        goal = 1 - vm.worker
        running.do(move, running, "a", goal)
        assert vm.queues[0].former == 1 - goal
        b.send(frames[4:])
        assert b.sent(PATIENCE)
        a.post = 16
        assert a.receive(8, PATIENCE) == frames
        assert (vm.queues[0].worker, vm.queues[0].former) == (goal, state.NONE)
        assert running.show("vms", "a")["drops"] == {}


def test_who_has_sent_to_a_guest_that_takes_nothing_moves_all_the_same(running: Running):
    """Its frames wait for another; its own way has an end."""
    cpus = [worker.cpu for worker in running.engine.workers]
    keys = {"processor": cpus[0]}
    running.configure(
        a=running.vm("a", 1, **keys),
        b=running.vm("b", 2, overload="hold", **keys),
        c=running.vm("c", 3, **keys),
    )
    with running.guest("a") as a, running.guest("b", post=0), running.guest("c") as c:
        a.send([frame(running.engine.vms["b"].config.mac[0], a.mac, 0)])
        assert a.sent(PATIENCE)
        running.do(move, running, "a", 1)
        until(lambda: running.engine.vms["a"].queues[0].former == state.NONE)
        exchange(a, c)


def test_frames_for_a_queue_that_stays_on_its_way_do_not_fill_the_ring_of_others(running: Running):
    """They are dropped under the name of what its guest lacks; its neighbours get every frame."""
    cpus = [worker.cpu for worker in running.engine.workers]
    running.configure(
        a=running.vm("a", 1, overload="hold", processor=cpus[1]),
        b=running.vm("b", 2, processor=cpus[0]),
        c=running.vm("c", 3, processor=cpus[0], weight=0),
    )
    vm = running.engine.vms["a"]
    with (
        running.guest("a", post=0) as a,
        running.guest("b", size=256) as b,
        running.guest("c", size=256) as c,
    ):
        b.send([frame(a.mac, b.mac, number) for number in range(4)])
        assert b.sent(PATIENCE)
        running.do(move, running, "a", 0)
        until(lambda: vm.queues[0].late)
        for turn in range(120):
            b.send([frame(a.mac, b.mac, number, 1514) for number in range(16)])
            assert b.sent(PATIENCE), turn
        exchange(b, c, 20)
        assert running.show("queues", "a")["drops"] == {"to_guest_no_buffer": 120 * 16}
        a.post = 16
        assert len(a.receive(4, PATIENCE)) == 4
        until(lambda: vm.queues[0].former == state.NONE)
        assert not vm.queues[0].late


def test_only_a_guest_is_late_and_no_processor_that_goes_slowly(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mover, "LATE_ROUNDS", 1 << 60)
    running.configure(a=running.vm("a", 1, overload="hold"), b=running.vm("b", 2))
    vm = running.engine.vms["a"]
    with running.guest("a", post=0) as a, running.guest("b") as b:
        b.send([frame(a.mac, b.mac, 0)])
        assert b.sent(PATIENCE)
        running.do(move, running, "a", 1 - vm.worker)
        journey = running.engine.mover._under_way[vm.number, 0]
        for passed in (0, 60):
            assert not running.do(journey.late, time.monotonic() + passed)
        monkeypatch.setattr(mover, "LATE_ROUNDS", 0)
        until(lambda: vm.queues[0].late)
        a.post = 16
        assert len(a.receive(1, PATIENCE)) == 1
        until(lambda: vm.queues[0].former == state.NONE and not vm.queues[0].late)


def test_one_that_waits_for_its_guest_does_not_hold_up_those_that_move_with_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    """`b` goes on before control has lost its patience with `a`."""
    running.configure(a=running.vm("a", 1, overload="hold"), b=running.vm("b", 2))
    vms = [running.engine.vms[name] for name in "ab"]
    with running.guest("a", post=0) as a, running.guest("b") as b:
        b.send([frame(a.mac, b.mac, 0)])
        assert b.sent(PATIENCE)
        ends: list[tuple[str, list[int]]] = []
        end = mover.Mover._end

        def told(self: mover.Mover, journeys: list[mover.Journey], **how: int) -> None:
            end(self, journeys, **how)
            ends.append((",".join(one.vm.name for one in journeys), [vm.queues[0].former for vm in vms]))

        monkeypatch.setattr(mover, "GRACE_SECONDS", PATIENCE / 10)
        monkeypatch.setattr(mover.Mover, "_end", told)
        first = vms[0].worker
        moves = [mover.Move(vm, 0, 1 - vm.worker) for vm in vms]
        running.do(running.engine.mover.move_all, moves)
        assert ends[:2] == [("a,b", [first, state.NONE]), ("a", [first, state.NONE])]
        a.post = 16
        assert len(a.receive(1, PATIENCE)) == 1
        until(lambda: vms[0].queues[0].former == state.NONE)
        exchange(a, b)


def test_an_order_that_was_remembered_is_published_when_it_is_carried_out(running: Running):
    running.configure(a=running.vm("a", 1, overload="hold"), b=running.vm("b", 2))
    vm = running.engine.vms["a"]
    with running.guest("a", post=0) as a, running.guest("b") as b:
        frames = [frame(a.mac, b.mac, number) for number in range(4)]
        b.send(frames)
        assert b.sent(PATIENCE)
        goal = 1 - vm.worker
        running.do(move, running, "a", goal)
        running.do(lambda: move(running, "a", goal, shared=True))
        a.post = 16
        assert a.receive(4, PATIENCE) == frames
        until(lambda: vm.queues[0].former == state.NONE and vm.queues[0].shared)
        assert running.do(published, running, vm.first_queue) == (goal, state.NONE, 1)


def published(running: Running, number: int) -> tuple[int, int, int]:
    """What the workers see."""
    tables = at(int(running.engine.segment.engine["tables"]), 1, state.tables)[0]
    row = at(int(tables["queues"]), int(tables["queue_count"]), state.queue)[number]
    return int(row["worker"]), int(row["former"]), int(row["shared"])


def test_however_many_are_on_their_way_control_has_one_timer(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    """Each look is at all of them; it does not start another for each."""
    monkeypatch.setattr(mover.Mark, "passed", lambda _, **__: False)
    monkeypatch.setattr(mover, "PATIENCE_SECONDS", 0.0)
    looks: list[float] = []
    look = mover.Mover._look_soon

    def counted(self: mover.Mover) -> None:
        looks.append(time.monotonic())
        look(self)

    monkeypatch.setattr(mover.Mover, "_look_soon", counted)
    monkeypatch.setattr(mover, "SOON_SECONDS", 0.02)
    running.pair()
    with running.guest("a"), running.guest("b"):
        for name in "ab":
            running.do(move, running, name, 1 - running.engine.vms[name].worker)
        time.sleep(3 * mover.LATE_SECONDS)
        assert 2 <= len(looks) <= mover.LATE_SECONDS / 0.02 + 4
