# SPDX-License-Identifier: Apache-2.0
"""Virtqueues between protocol and kernels: where they begin, and which processor watches their kicks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.running import TWO_CPUS, Running, exchange, until
from vmq.dataplane import state
from vmq.engine.mover import Move


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path, tuple(TWO_CPUS)) as one:
        yield one


def test_a_ring_begins_where_the_guest_s_used_index_stands(running: Running):
    """What the kernels kept from the driver before is forgotten, and an indication owed to it, too."""
    running.pair()
    vm = running.engine.vms["a"]
    with running.guest("a") as a, running.guest("b") as b:
        exchange(a, b, 5)
        rows = running.engine.segment.rows["ring_state"]
        row = rows[2 * vm.first_queue]
        assert int(row["next_used"]) == 5
        a.stop()
        assert vm.rings.started == set()
        row["owed"] = row["asleep"] = 7
        a.start()
        until(lambda: vm.rings.started == {0, 1})
        assert [int(row[name]) for name in ("next_used", "shown", "owed", "first")][:3] == [5, 5, 0]
        assert int(row["region"]) == state.NONE
        exchange(a, b, 5)


@pytest.mark.skipif(len(TWO_CPUS) < 2, reason="needs two processors")
def test_kicks_are_watched_by_the_processor_that_serves_the_queue_and_by_nobody_on_its_way(running: Running):
    running.configure(a=running.vm("a", queue_pairs=2))
    vm = running.engine.vms["a"]
    with running.guest("a", queues=2):
        until(lambda: len(vm.rings._kicks) == 2)
        assert {worker for _, worker in vm.rings._kicks.values()} == {
            vm.queues[0].worker,
            vm.queues[1].worker,
        }
        goal = 1 - vm.queues[1].worker
        running.do(lambda: running.engine.mover.move_all([Move(vm, 1, goal)]))
        until(lambda: vm.queues[1].former == state.NONE)
        assert {index: worker for index, (_, worker) in vm.rings._kicks.items()} == {
            1: vm.queues[0].worker,
            3: goal,
        }
    until(lambda: vm.rings._kicks == {})
