# SPDX-License-Identifier: Apache-2.0
"""A VM's traffic both ways in turns: what is measured, and that no frame is lost or overtaken by it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.running import PATIENCE, Running, frame, until
from vmq.dynamic import Answer
from vmq.dynamic import Path as Way
from vmq.dynamic.guard import FRAMES_MIN
from vmq.engine import proving
from vmq.errors import ApiError
from vmq.guest.guest import Guest
from vmq.jit import INTERPRETED

# Of a sample: those of several rounds, as the time of one is known only when it is over.
FRAMES = 300 if INTERPRETED else 1200


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path) as one:
        yield one


@contextmanager
def talking(sender: Guest, receiver: Guest) -> Iterator[list[int]]:
    """Numbered frames all the while; what arrived, complete at the end."""
    got, stop, sent = list[int](), threading.Event(), [0]

    def talk() -> None:
        while not stop.is_set():
            if sent[0] - len(got) < 128:
                sender.send([frame(receiver.mac, sender.mac, sent[0] + n) for n in range(16)])
                sent[0] += 16
            got.extend(int.from_bytes(data[14:18], "big") for data in receiver.receive(64, 0.0))

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        yield got
    finally:
        stop.set()
        talker.join(PATIENCE)
        got += [int.from_bytes(data[14:18], "big") for data in receiver.receive(sent[0] - len(got), PATIENCE)]
        assert got == list(range(sent[0]))


def test_both_ways_are_measured_in_turns_and_the_own_one_is_in_force_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    """Own costs less than the default queue, which copies every frame once more; each sample has its frames."""
    monkeypatch.setattr(proving, "FRAMES", FRAMES)
    monkeypatch.setattr(proving, "SLICE_SECONDS", PATIENCE)
    running.configure(a=running.vm("a", 1), b=running.vm("b", 2))
    vm = running.engine.vms["a"]
    with running.guest("a", size=256) as a, running.guest("b", size=256) as b, talking(b, a):
        running.do(running.engine.proving.start, "a", 4)
        with pytest.raises(ApiError, match="a is being measured"):
            running.do(running.engine.proving.start, "b")
        proof = running.engine.proving.proof
        assert proof is not None
        until(lambda: proof.record()["running"] is False, "measured", 8 * PATIENCE)
        assert [sample.path for sample in proof.samples] == [*proving.ORDER, *proving.ORDER]
        assert all(sample.frames >= FRAMES and sample.nanoseconds > 0 for sample in proof.samples)
        assert proof.verdict is not None
        assert (proof.verdict.pairs, proof.wrong) == (4 if FRAMES >= FRAMES_MIN else 0, "")
        assert FRAMES < FRAMES_MIN or 0 < proof.verdict.own < 1e6
        assert running.engine.publisher.timed is False
        assert running.show("vms", "a")["proved"] == proof.verdict.record()
        assert running.show("vms", "b")["proved"] is None
        until(lambda: not vm.queues[0].shared)


@pytest.mark.parametrize(
    ("keys", "why"),
    [({"weight": 0}, "a has no receive queue of its own: weight 0"), ({}, "a has no guest that receives")],
)
def test_what_cannot_be_measured_is_refused_in_words(running: Running, keys: dict[str, int], why: str):
    running.configure(a=running.vm("a", **keys))
    with pytest.raises(ApiError, match=why):
        running.do(running.engine.proving.start, "a")
    with pytest.raises(ApiError, match="no VM 'x'"):
        running.do(running.engine.proving.start, "x")


def test_without_traffic_it_cannot_be_told(running: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(proving, "SLICE_SECONDS", 0.01)
    running.pair()
    with running.guest("a"):
        proof = running.do(running.engine.proving.start, "a", 2)
        until(lambda: proof.verdict is not None)
        assert proof.verdict is not None
        assert proof.verdict.answer is Answer.UNKNOWN


def test_a_vm_that_goes_in_the_middle_ends_the_measurement(running: Running):
    running.pair()
    with running.guest("a"):
        proof = running.do(running.engine.proving.start, "a")
        running.configure(b=running.vm("b", 2))
        until(lambda: proof.wrong)
        assert proof.wrong == "a went away in the middle"
        until(lambda: running.engine.proving.busy is None)
        assert running.engine.publisher.timed is False


def test_a_measurement_under_way_does_not_outlive_the_engine(tmp_path: Path):
    with Running(tmp_path) as running:
        running.pair()
        with running.guest("a"):
            running.do(running.engine.proving.start, "a")
            assert running.engine.proving.busy == "a"
            assert Way.OWN in proving.ORDER


def test_a_guest_that_takes_nothing_ends_a_measurement_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(proving, "SWITCH_SECONDS", 0.1)
    cpus = tuple(sorted(os.sched_getaffinity(0))[:2])
    if len(cpus) < 2:
        pytest.skip("needs two processors")
    with Running(tmp_path, cpus) as running:
        running.configure(a=running.vm("a", 1, overload="hold", processor=cpus[1]), b=running.vm("b", 2))
        with running.guest("a", post=0) as a, running.guest("b") as b:
            b.send([frame(a.mac, b.mac, number) for number in range(4)])
            assert b.sent(PATIENCE)
            proof = running.do(running.engine.proving.start, "a", 1)
            until(lambda: proof.wrong)
            assert proof.wrong == "frames of a wait for its guest, which posts no buffers"
            until(lambda: running.engine.proving.busy is None)
            assert running.engine.publisher.timed is False
