# SPDX-License-Identifier: Apache-2.0
"""Which sources a worker goes round, sleep, and the life of a worker; the same life in both modes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane.rig import (
    NOBODY,
    A,
    B,
    D,
    Rig,
    Vm,
    frame,
    number_of,
    numbered,
)
from vmq.clock import now
from vmq.dataplane import loop, reasons, state
from vmq.dataplane.loop import POLL_WAIT_MS, prepare_sleep, sleep
from vmq.jit import at

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


# --- rounds --------------------------------------------------------------------------------------------------


def test_a_round_of_a_worker_is_one_round_of_each_of_its_sources(rig):
    wires = [rig.uplink(frames=[frame(A, D)] * 100) for _ in range(2)]
    vms = [rig.vm(A, uplink=wire) for wire in wires]
    sender = rig.vm(B, uplink=wires[0])
    for _ in range(3):
        sender.send(frame(A, B))
    rig.publish()
    rig.step()
    assert [int(rig.lane_state(wire)["frames_from_wire"]) for wire in wires] == [64, 64]
    assert [int(vm.books()["offered_to_guest"]) for vm in vms] == [67, 64]
    assert [int(rig.worker()[name]) for name in ("rounds", "bursts")] == [1, 3]


def test_a_worker_serves_its_own_receive_queues_only():
    with Rig(workers=2) as rig:
        vms = [rig.vm(mac, workers=(worker,)) for worker, mac in enumerate((A, B))]
        for vm in vms:
            vm.send(frame(NOBODY, A if vm is vms[0] else B))
        rig.publish()
        rig.step(1)
        assert [len(vm.sent()) for vm in vms] == [0, 1]


def test_a_guest_that_was_silent_is_looked_at_now_and_then_and_at_once_after_a_sleep():
    """Its first frame waits its turn, and not if it has kicked; the next ones do not wait."""
    with Rig() as rig:
        silent, other, *_ = (rig.vm(A), rig.vm(B), *(rig.vm(f"52:54:00:00:01:{n:02x}") for n in range(30)))
        other.post(40)
        rig.publish()
        for woken in (False, True):
            for _ in range(loop.QUIET_ROUNDS + 1):
                rig.step()
            silent.send(frame(B, A))
            rig.worker()["eager"] = int(woken)
            rounds = 0
            while not other.received():
                rig.step()
                rounds += 1
            assert rounds == 1 if woken else 1 <= rounds <= 2 * -(-32 // loop.QUIET_LOOKS)
            silent.send(frame(B, A))
            rig.step()
            assert len(other.received()) == 1


@given(st.lists(st.sets(st.integers(0, 11), max_size=5), min_size=1, max_size=4), st.sampled_from([0, 3, 70]))
def test_whoever_sends_is_looked_at_within_two_turns_of_the_silent_ones(senders, between):
    """Whatever others send before: a ring that wakes or falls asleep takes nobody's turn."""
    with Rig() as rig:
        addresses = [f"52:54:00:00:01:{number:02x}" for number in range(12)]
        vms = [rig.vm(address) for address in addresses]
        receiver = rig.vm(B)
        receiver.post(60)
        rig.publish()
        for _ in range(loop.QUIET_ROUNDS + 1):
            rig.step()
        for some in senders:
            for number in some:
                vms[number].send(frame(B, addresses[number]))
            rounds, left = 0, len(some)
            while left:
                rig.step()
                rounds += 1
                left -= len(arrived := receiver.received())
                receiver.post(len(arrived))
                assert rounds <= 2 * -(-13 // loop.QUIET_LOOKS)
            for _ in range(between):
                rig.step()


@pytest.mark.parametrize("count", [1, 3, 4, 40, 130])
def test_a_share_of_the_silent_guests_is_looked_at_in_each_round(count):
    """All of them in two turns, and no more in a round than their share: that is what they cost the others."""
    with Rig() as rig:
        vms = [rig.vm(f"52:54:00:00:01:{number:02x}") for number in range(count)]
        receiver = rig.vm(B, size=256)
        receiver.post(140, 128)
        rig.publish()
        for _ in range(loop.QUIET_ROUNDS + 1):
            rig.step()
        assert int(rig.worker()["awake"]) == 0
        for number, vm in enumerate(vms):
            vm.send(frame(B, f"52:54:00:00:01:{number:02x}"))
        arrived = [0]
        while sum(arrived) < count:
            rig.step()
            arrived.append(len(receiver.received()))
            assert len(arrived) <= 2 * -(-(count + 1) // loop.QUIET_LOOKS)
        assert max(arrived) <= loop.QUIET_LOOKS + (count + 1) // loop.QUIET_SHARE
        assert int(rig.worker()["awake"]) == count


# --- sleep ---------------------------------------------------------------------------------------------------


def timeout(rig: Rig, worker: int = 0) -> int:
    """What `prepare_sleep` says, in ms; -1 until something happens, 0 not at all."""
    return int(prepare_sleep(rig.tables(), rig.worker(worker)))


def test_a_worker_without_work_sleeps_until_something_happens(rig):
    vm = rig.vm(A)
    rig.publish()
    rig.step()
    assert timeout(rig) == -1
    assert int(rig.worker()["sleeping"]) == 1
    assert vm.from_guest.avail_event == vm.from_guest.index


def test_a_frame_that_came_while_kicks_were_asked_for_keeps_it_awake(rig):
    vm = rig.vm(A)
    rig.publish()
    rig.step()
    vm.send(frame(B, A))
    assert timeout(rig) == 0


def test_a_frame_that_came_before_kicks_were_asked_for_is_taken_in_the_next_round_whoever_is_silent():
    """Its driver saw no wish for a kick and gives none; another sleep would not find it, since it has been asked."""
    with Rig() as rig:
        addresses = [f"52:54:00:00:01:{number:02x}" for number in range(40)]
        vms, receiver = [rig.vm(address) for address in addresses], rig.vm(B)
        receiver.post(40)
        rig.publish()
        rig.worker()["eager"] = 1
        for vm, address in zip(vms, addresses, strict=True):  # kicks are refused from now on
            rig.step()
            assert timeout(rig) == -1
            vm.send(frame(B, address))
            rig.worker()["eager"] = 1
            for _ in range(loop.QUIET_ROUNDS + 2):
                rig.step()
            assert len(receiver.received()) == 1
            assert int(rig.worker()["awake"]) == 0
            vm.send(frame(B, address))
            sleep(rig.tables(), rig.worker())
            rig.step()
            assert len(receiver.received()) == 1
            receiver.post(2)


def test_new_tables_and_the_end_keep_it_awake(rig):
    rig.vm(A)
    rig.publish()
    rig.step()
    assert timeout(rig) == -1
    rig.publish()
    assert timeout(rig) == 0
    rig.step()
    assert timeout(rig) == -1
    rig.segment.engine["stop"] = 1
    assert timeout(rig) == 0


def test_a_frame_on_its_way_from_another_processor_keeps_it_awake():
    with Rig(workers=2) as rig:
        sender = rig.vm(A)
        rig.vm(B, workers=(1,))
        rig.publish()
        rig.run()
        assert timeout(rig, 1) == -1
        sender.send(frame(B, A))
        rig.step(0)
        assert timeout(rig, 1) == 0


def test_what_waits_for_a_full_receive_queue_is_looked_at_soon():
    """Nobody rings when a guest posts receive buffers; here and at the processor that owns the receive queue."""
    with Rig(workers=2, handover=1024) as rig:
        wire = rig.uplink(frames=[frame(B, D)] * 20, lossless=True)
        rig.vm(B, uplink=wire, workers=(1,))
        rig.publish()
        rig.run()
        assert [timeout(rig, worker) for worker in range(2)] == [1, 1]
        sender = rig.vm(A)
        rig.publish()
        rig.run()
        sender.send(frame(NOBODY, A))
        assert timeout(rig, 0) == 0


def test_a_ring_whose_front_end_does_not_kick_is_looked_at_soon(rig):
    """vhost-user SET_VRING_KICK with the bit that says there is no descriptor: the ring is polled."""
    vm = rig.vm(A)
    rig.publish()
    rig.step()
    tables = rig.tables()
    rows = at(int(tables["virtqueues"]), 2 * int(tables["queue_count"]), state.virtqueue)
    assert timeout(rig) == -1
    rows[2 * vm.first_queue + 1]["polled"] = 1
    assert timeout(rig) == POLL_WAIT_MS


def test_a_port_with_a_fault_is_not_asked_for_kicks(rig):
    """Its memory is not touched again, and its chains keep nobody awake."""
    vm = rig.vm(A)
    vm.send(frame(B, A))
    rig.publish()
    rig.segment.rows["port_state"][vm.number]["fault"] = reasons.CHAIN_LOOP
    rig.step()
    assert timeout(rig) == -1
    assert not vm.ring_state(to_guest=False)["asleep"]


def test_sleep_ends_at_once_when_there_is_work(rig):
    vm = rig.vm(A)
    rig.publish()
    rig.step()
    vm.send(frame(B, A))
    sleep(rig.tables(), rig.worker())
    assert [int(rig.worker()[name]) for name in ("sleeps", "sleeping")] == [0, 0]


def test_sleep_ends_with_a_doorbell_or_when_its_time_is_over(rig):
    """The books: sleeps, those that something ended, and where the time went."""
    wire = rig.uplink(frames=[frame(A, D)], lossless=True)
    vm = rig.vm(A, uplink=wire)
    rig.publish()
    rig.step()
    rig.worker()["woke"] = began = int(now(rig.worker()))
    sleep(rig.tables(), rig.worker())
    assert [int(rig.worker()[name]) for name in ("sleeps", "wakeups", "sleeping")] == [1, 0, 0]
    assert int(rig.worker()["woke"]) - began >= 900_000
    vm.post(1)
    rig.run()
    os.eventfd_write(rig.workers[0].doorbell, 1)
    sleep(rig.tables(), rig.worker())
    assert [int(rig.worker()[name]) for name in ("sleeps", "wakeups")] == [2, 1]
    assert int(rig.worker()["busy_ns"]) > 0


# --- the life of a worker ------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.0005)


def wait_for_frames(vm: Vm, count: int) -> None:
    """They are shown to the guest, each in one buffer: they are counted before that."""
    wait_for(lambda: vm.to_guest.used_index == count)
    assert int(vm.books()["frames_to_guest"]) == count


@pytest.fixture
def started() -> Iterator[Callable[[Rig], None]]:
    """Starts the worker threads of a rig; stops them at the end."""
    running: list[Rig] = []

    def start(rig: Rig) -> None:
        running.append(rig)
        rig.publisher.doorbells += [worker.doorbell for worker in rig.workers]
        for worker in rig.workers:
            worker.start()

    yield start
    for rig in running:
        stop(rig)
        rig.check()
        rig.close()


def stop(rig: Rig) -> None:
    rig.segment.engine["stop"] = 1
    rig.publisher.ring()
    for worker in rig.workers:
        worker.join()
        assert not worker.alive()
        assert worker.failure is None


def test_a_worker_adopts_tables_announces_them_and_leaves(started):
    rig = Rig(workers=2)
    vm = rig.vm(A)
    rig.publish()
    started(rig)
    wait_for(lambda: rig.publisher.reached() == 1)
    vm.macs = []
    rig.publish()
    rig.publisher.settle(rig.publisher.epoch)
    assert [int(row["epoch"]) for row in rig.segment.rows["workers"]] == [2, 2]
    stop(rig)
    assert [int(row["epoch"]) for row in rig.segment.rows["workers"]] == [state.EPOCH_GONE] * 2


def test_an_idle_worker_sleeps_and_a_kick_wakes_it(started):
    """The driver kicks when the device has asked for it, as a real one does."""
    rig = Rig()
    vm, receiver = rig.vm(A), rig.vm(B)
    receiver.post(64)
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    rig.workers[0].watch(kick)
    rig.publish()
    started(rig)
    for number in range(20):
        wait_for(lambda: bool(rig.worker()["sleeping"]))
        vm.send(numbered(B, A, number))
        assert vm.from_guest.avail_event == number
        os.eventfd_write(kick, 1)
        wait_for_frames(receiver, number + 1)
    assert [number_of(data) for data in receiver.received()] == list(range(20))
    row = rig.worker()
    assert min(int(row[name]) for name in ("sleeps", "wakeups")) >= 20
    assert int(row["busy_ns"]) > 0

    def still() -> bool:
        rounds = int(row["rounds"])
        time.sleep(0.05)
        return int(row["rounds"]) == rounds

    wait_for(still)  # it does not spin
    stop(rig)
    os.close(kick)


def test_a_lossless_lane_goes_on_when_buffers_come_though_nobody_kicks(started):
    rig = Rig(workers=2)
    wire = rig.uplink(frames=[numbered(B, D, number) for number in range(30)], lossless=True)
    vm = rig.vm(B, uplink=wire, workers=(1,))
    rig.publish()
    started(rig)
    got: list[int] = []
    for wanted in range(3, 31, 3):
        vm.post(3)
        wait_for_frames(vm, wanted)
        got += [number_of(data) for data in vm.received()]
    assert got == list(range(30))


def test_two_workers_pass_frames_to_each_other(started):
    """Doorbells between threads: no frame stays behind, whoever sleeps when."""
    rig = Rig(workers=2)
    left, right = rig.vm(A, size=256), rig.vm(B, workers=(1,), size=256)
    kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    for worker, kick in zip(rig.workers, kicks, strict=True):
        worker.watch(kick)
    rig.publish()
    started(rig)
    for number in range(50):
        for sender, receiver, kick, (to, source) in (
            (left, right, kicks[0], (B, A)),
            (right, left, kicks[1], (A, B)),
        ):
            receiver.post(1, 128)
            sender.send(numbered(to, source, number))
            os.eventfd_write(kick, 1)
            wait_for_frames(receiver, number + 1)
            assert receiver.received() == [numbered(to, source, number)]
    stop(rig)
    for kick in kicks:
        os.close(kick)


@pytest.mark.compiled
def test_no_python_runs_in_a_worker_between_start_and_stop(started):
    """It enters compiled code once: while frames flow and while it sleeps, its Python frame stands where it was."""
    rig = Rig()
    wire = rig.uplink(frames=[frame(A, B)] * 64, laps=0)
    rig.vm(A, uplink=wire)
    rig.publish()
    lines: list[str] = []
    known = set(threading.enumerate())

    def trace(frame_, event, _argument):
        lines.append(f"{frame_.f_code.co_name}: {event}")
        return trace

    threading.settrace(trace)
    try:
        started(rig)
    finally:
        threading.settrace(None)
    assert set(threading.enumerate()) - known
    wait_for(lambda: int(rig.worker()["rounds"]) > 100)
    before = len(lines)
    rounds = int(rig.worker()["rounds"])
    wait_for(lambda: int(rig.worker()["rounds"]) > rounds + 1000)
    assert lines[before:] == []


# --- the same in both modes ----------------------------------------------------------------------------------


@pytest.mark.compiled
@pytest.mark.parametrize("seed", [1, 2])
def test_compiled_and_interpreted_code_agree_on_memory_and_all_counters(seed):
    """H28.3: one generated trace, a process for each mode."""
    found = []
    for mode in ("0", "1"):
        environment = os.environ | {"NUMBA_DISABLE_JIT": mode}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.dataplane.trace", str(seed), "3000"],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert len(found[0]["drops"]) > 12, "the trace does not reach much"


def test_every_drop_and_fault_that_guests_and_replays_can_cause_is_caused_by_some_test():
    """The names that these files assert on; those of real wires are test_packet's, test_tap's and test_wire's."""
    here = Path(__file__).parent
    text = "".join(path.read_text() for path in here.glob("test_*.py"))
    missing = [
        name
        for name, _ in (*reasons.DROPS, *reasons.FAULTS[1:])
        if name not in text and name.upper() not in text
    ]
    assert missing == []


def test_a_processor_that_polls_never_sleeps_and_to_look_is_not_to_be_busy(started):
    """It needs no kick."""
    rig = Rig()
    vm, receiver = rig.vm(A), rig.vm(B)
    receiver.post(2)
    rig.publish()
    rig.segment.engine["polls"] = 1
    started(rig)
    before = 0  # it says that it has found work after the round in which the frame arrives
    for number in range(2):
        wait_for(lambda: int(rig.worker()["idle_since"]) > before)  # noqa: B023 - called in this turn only
        before, busy = int(rig.worker()["idle_since"]), rig.workers[0].busy_ns
        time.sleep(0.01)
        assert (int(rig.worker()["sleeps"]), rig.workers[0].busy_ns) == (0, busy)
        vm.send(numbered(B, A, number))
        wait_for_frames(receiver, number + 1)
