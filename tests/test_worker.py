# SPDX-License-Identifier: Apache-2.0
"""A processor: pinned, in compiled code from start to stop, and never dead in silence."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.running import FIRST_CPU, open_files, until
from vmq.dataplane import state
from vmq.jit import at
from vmq.publisher import Publisher, Segment
from vmq.worker import Worker, compile_loop, link_rings, make_ring, unmap_rings


class Processors:
    """Workers on a segment, with nothing to do."""

    def __init__(self, *cpus: int) -> None:
        compile_loop()
        self.segment = Segment(len(cpus))
        self.rings = link_rings(self.segment)
        self.workers = [Worker(self.segment, index, cpu) for index, cpu in enumerate(cpus)]
        self.publisher = Publisher(self.segment)
        self.publisher.publish([], [])
        self.publisher.doorbells = [one.doorbell for one in self.workers]

    def close(self) -> None:
        self.segment.engine["stop"] = 1
        self.publisher.ring()
        for one in self.workers:
            one.join()
            assert not one.alive()
            one.close()
        unmap_rings(self.rings)
        self.segment.close()


@pytest.fixture
def processors() -> Iterator[Processors]:
    before = open_files()
    one = Processors(FIRST_CPU)
    yield one
    one.close()
    assert open_files() == before


def test_its_thread_runs_where_it_is_pinned(processors: Processors):
    """Read back from the kernel."""
    (one,) = processors.workers
    one.start()
    until(lambda: one.thread_id)
    assert os.sched_getaffinity(one.thread_id) == {FIRST_CPU}


def test_it_adopts_each_version_and_sleeps_in_between(processors: Processors):
    (one,) = processors.workers
    one.start()
    for _ in range(20):
        processors.publisher.settle(processors.publisher.publish([], []))
    until(lambda: one.row["sleeping"])
    slept = int(one.row["sleeps"])
    time.sleep(0.05)
    assert int(one.row["sleeps"]) <= slept + 1  # nothing wakes it


def test_a_descriptor_wakes_it_until_it_is_forgotten(processors: Processors):
    """Edge-triggered: nobody has to read a kick."""
    (one,) = processors.workers
    one.start()
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    until(lambda: one.row["sleeping"])
    one.watch(kick)
    before = int(one.row["wakeups"])
    os.eventfd_write(kick, 1)
    until(lambda: one.row["wakeups"] > before)
    until(lambda: one.row["sleeping"])
    one.forget(kick)
    one.forget(kick)  # twice is once
    before = int(one.row["wakeups"])
    os.eventfd_write(kick, 1)
    time.sleep(0.05)
    assert int(one.row["wakeups"]) == before
    os.close(kick)


def test_a_worker_that_dies_is_heard_and_nobody_waits_for_it(
    processors: Processors, monkeypatch: pytest.MonkeyPatch
):
    """H28.5: the failure is kept, control woken, the epoch announced as gone."""

    def broken(_address: int) -> None:
        raise RuntimeError("in a kernel")

    monkeypatch.setattr("vmq.worker.loop.run", broken)
    (one,) = processors.workers
    one.start()
    one.join()

    assert str(one.failure) == "in a kernel"
    assert os.eventfd_read(processors.segment.control_fd) == 1
    processors.publisher.settle(processors.publisher.publish([], []))


def test_a_processor_that_does_not_exist_is_a_failure(processors: Processors):
    (one,) = processors.workers
    one.cpu = 4095
    one.start()
    one.join()
    assert isinstance(one.failure, OSError)


def write_events(one: Worker, first: int, count: int) -> None:
    """As a kernel does."""
    rows = at(int(one.row["events"]), state.EVENTS, state.event)
    for number in range(first, first + count):
        rows[number % state.EVENTS] = (state.EVENT_LEARN, 3, number)
        one.row["event_head"] = number + 1


def test_events_are_read_once_and_in_order(processors: Processors):
    (one,) = processors.workers
    write_events(one, 0, 3)
    assert one.events() == [(state.EVENT_LEARN, 3, number) for number in range(3)]
    assert one.events() == []
    write_events(one, 3, 1)
    assert one.events() == [(state.EVENT_LEARN, 3, 3)]


def test_events_that_were_overwritten_are_lost_not_mixed_up(processors: Processors):
    """A flood of events costs events; the row that may be half written is not read."""
    (one,) = processors.workers
    write_events(one, 0, state.EVENTS + 500)
    values = [value for _, _, value in one.events()]
    assert values == list(range(501, state.EVENTS + 500))


def test_every_pair_of_processors_has_its_rings():
    """One for sources that wait, one for those that drop."""
    segment = Segment(3)
    made = link_rings(segment)
    addresses = segment.rows["rings"][segment.rows["rings"] != 0]
    assert len(made) == len(set(addresses.tolist())) == 2 * 3 * 3
    unmap_rings(made)
    segment.close()


def test_a_ring_is_empty_and_has_its_size():
    address, length = make_ring(4096)
    ring = at(address, 1, state.byte_ring)[0]
    assert (ring["head"], ring["tail"], ring["size"]) == (0, 0, 4096)
    assert ring["data"] + 4096 == address + length
    del ring
    unmap_rings([(address, length)])


@pytest.mark.compiled
def test_no_python_runs_in_a_worker_between_start_and_stop(processors: Processors):
    """design §6: a worker enters compiled code once. Every line that its thread runs is counted."""
    lines: list[str] = []

    def trace(frame: Any, _event: str, _argument: Any) -> Any:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return trace

    (one,) = processors.workers
    threading.settrace(trace)
    try:
        one.start()
    finally:
        threading.settrace(None)
    until(lambda: one.row["sleeping"])
    before = len(lines)
    assert before > 0
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    one.watch(kick)
    for _ in range(50):
        os.eventfd_write(kick, 1)
        processors.publisher.settle(processors.publisher.publish([], []))
    assert lines[before:] == []
    one.forget(kick)
    os.close(kick)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_two_processors_stop_together():
    one = Processors(*sorted(os.sched_getaffinity(0))[:2])
    for each in one.workers:
        each.start()
    one.publisher.settle(one.publisher.publish([], []))
    one.close()
