# SPDX-License-Identifier: Apache-2.0
"""Who looks at a VM port's frames: only the rings of those are marked, and what was linked is taken out again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.running import Running, frame, until
from vmq.dataplane import state
from vmq.engine.observed import Capture, Observed
from vmq.guest.guest import Guest
from vmq.publisher import RingEntry

RINGS = {0: (RingEntry(features=1), RingEntry(features=2)), 1: (RingEntry(), RingEntry())}


def features(running: Running) -> dict[int, tuple[int, int]]:
    """What the rings of a look like to a worker."""
    marked = running.engine.vms["a"].observed.marked(RINGS)
    return {pair: (to_guest.features, from_guest.features) for pair, (to_guest, from_guest) in marked.items()}


def send(one: Guest, other: Guest, count: int) -> None:
    one.send([frame(other.mac, one.mac, number) for number in range(count)])
    assert len(other.receive(count, 10.0)) == count


def test_only_rings_that_somebody_looks_at_are_marked(tmp_path: Path):
    look = state.RING_OBSERVED
    with Running(tmp_path) as running:
        running.configure(a=running.vm("a", 1, queue_pairs=2))
        vm = running.engine.vms["a"]
        assert vm.observed.marked(RINGS) is RINGS
        capture = running.do(Capture, vm, (0,), state.FROM_GUEST, 64)
        assert features(running) == {0: (1, 2 | look), 1: (0, 0)}
        running.do(lambda: vm.observed.measure(on=True))
        assert features(running) == {0: (1 | look, 2 | look), 1: (look, 0)}
        assert int(running.engine.segment.engine["measured"]) == 1
        running.do(capture.close)
        running.do(lambda: vm.observed.measure(on=False))
        assert vm.observed.marked(RINGS) is RINGS
        assert int(running.engine.segment.engine["measured"]) == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_captures_end_in_any_order(tmp_path: Path, order: tuple[int, ...]):
    """Those that are left go on; closing twice does nothing."""
    with Running(tmp_path) as running:
        running.pair()
        with running.guest("a") as one, running.guest("b") as other:
            captures = [
                running.do(Capture, running.engine.vms["b"], (0,), state.TO_GUEST, 64) for _ in range(3)
            ]
            for place, number in enumerate(order):
                send(one, other, 2)
                left = [captures[index] for index in order[place:]]
                for capture in left:
                    until_kept(capture, 2 * (place + 1))
                running.do(captures[number].close)
                running.do(captures[number].close)
            send(one, other, 1)


def until_kept(capture: Capture, count: int) -> None:
    """It is counted after the guest was told."""
    until(lambda: capture.kept == count)


def until_measured(observed: Observed, count: int) -> None:
    until(lambda: int(observed.latencies()["bins"].sum()) == count)


def test_memory_is_given_back(tmp_path: Path):
    with Running(tmp_path) as running:
        running.pair()
        before = Path("/proc/self/maps").read_text().count("\n")
        for _ in range(30):
            capture = running.do(Capture, running.engine.vms["a"], (0,), state.TO_GUEST, 64)
            running.do(capture.close)
        assert Path("/proc/self/maps").read_text().count("\n") < before + 20


def test_a_measurement_that_begins_anew_begins_at_nothing(tmp_path: Path):
    """What another one, or another VM in the same row, has counted is not in it."""
    with Running(tmp_path) as running:
        running.pair()
        with running.guest("a") as one, running.guest("b") as other:
            observed = running.engine.vms["b"].observed
            assert int(observed.latencies()["bins"].sum()) == 0
            for count in (3, 2):
                running.do(lambda: observed.measure(on=True))
                send(one, other, count)
                until_measured(observed, count)
            running.do(lambda: observed.measure(on=False))
            send(one, other, 1)
            assert int(observed.latencies()["bins"].sum()) == 2
        running.configure(a=running.vm("a", 1))
        running.pair()
        assert int(running.engine.vms["b"].observed.latencies()["bins"].sum()) == 0
