# SPDX-License-Identifier: Apache-2.0
"""The order in which a change reaches the data plane, and the events that tell of it."""

from __future__ import annotations

import pytest

from tests.contract.double import Bench, filter_of
from vmq.contract import DEFAULT_QUEUE, DROP_QUEUE, Operation
from vmq.errors import ApiError


def test_a_receive_queue_is_ready_before_its_filters_point_there():
    bench = Bench()
    name = bench.queue("a", filter_of(1), complete=False)
    assert bench.double.told == []

    bench.contract.allocation_complete("a", [name])

    assert bench.double.told == [("acquire", name, 1, 256), ("start", [name]), ("install", {name: [1]})]


def test_a_batch_reaches_the_data_plane_in_one_publication():
    bench = Bench()
    names = [bench.queue("a", filter_of(last), complete=False) for last in (1, 2)]
    bench.contract.allocation_complete("a", names)
    installed = [told for told in bench.double.told if told[0] == "install"]
    assert installed == [("install", {names[0]: [1], names[1]: [2]})]


def test_a_receive_queue_pauses_after_nothing_points_there_and_no_dma_stopped_is_sent():
    """vmq-semantics.md §4.3: after the last filter is cleared nothing is indicated, and it is not freed."""
    bench = Bench()
    name = bench.queue("a", filter_of(1))
    bench.forget()

    bench.contract.clear_filter("a", 1)

    assert bench.double.told == [("install", {name: []}), ("pause", [name])]
    assert [event["event"] for event in bench.events] == ["queue_state"]
    assert bench.step(name) == "Paused"


def test_a_moved_filter_is_in_one_place_or_the_other():
    """MOVE_FILTER: removed and set simultaneously."""
    bench = Bench()
    old, new = bench.queue("a", filter_of(1)), bench.queue("a")
    bench.forget()

    bench.contract.move_filter("a", 1, new)

    assert bench.double.told == [("start", [new]), ("install", {old: [], new: [1]}), ("pause", [old])]
    assert (bench.step(old), bench.step(new)) == ("Paused", "Running")


def test_filters_of_a_receive_queue_that_is_not_complete_steer_nothing():
    """vmq-semantics.md finding 5: its frames go to the default queue."""
    bench = Bench()
    name = bench.queue("a", filter_of(1), complete=False)
    assert bench.step(name) == "Set"
    assert bench.double.filters == {}


def test_a_filter_that_moves_to_a_receive_queue_that_is_not_complete_steers_nothing():
    bench = Bench()
    old, new = bench.queue("a", filter_of(1)), bench.queue("a", complete=False)
    bench.contract.move_filter("a", 1, new)
    assert bench.double.filters == {}
    assert (bench.step(old), bench.step(new)) == ("Paused", "Set")


def test_a_filter_of_the_configuration_is_changed_there():
    """Who asks for it over the API is told so, as with its receive queues; of anybody else's nothing is said."""
    bench = Bench()
    for owner, last in (("config", 1), ("b", 2)):
        bench.queue(owner, filter_of(last))
    for name, remedy in ((1, "SIGHUP"), (2, "vmq filter list"), (99, "vmq filter list")):
        for operation in (Operation.CLEAR_FILTER, Operation.MOVE_FILTER):
            with pytest.raises(ApiError) as refused:
                bench.contract._registry.filter(operation, "a", name)
            assert remedy in refused.value.remedy
            assert refused.value.wrong.endswith("no such filter of yours")


def test_events_have_a_running_number_and_the_words_of_the_table():
    bench = Bench()
    name = bench.queue("a", filter_of(1))
    bench.contract.clear_filter("a", 1)
    bench.contract.free("a", name)
    assert [event["number"] for event in bench.events] == list(range(1, len(bench.events) + 1))
    assert [(event["event"], event["state"], event["step"]) for event in bench.events] == [
        ("queue_state", "Paused", "Allocated"),
        ("queue_state", "Paused", "Set"),
        ("queue_state", "Running", "Running"),
        ("queue_state", "Paused", "Paused"),
        ("queue_state", "Paused", "StopDMA"),
        ("dma_stopped", "DmaStopped", "Freeing"),
        ("queue_state", "Undefined", "Undefined"),
    ]
    assert {(event["queue"], event["owner"]) for event in bench.events} == {(name, "a")}


def test_freeing_goes_on_as_far_as_the_data_plane_has_got():
    """Asked too early or too often, it changes nothing."""
    bench = Bench()
    name = bench.queue()
    bench.double.busy, bench.double.out = {name}, {name: 1}
    assert bench.contract.free("a", name) == "PENDING"
    steps = [bench.step(name)]
    for _ in range(2):
        bench.contract.progress(name)
    steps.append(bench.step(name))
    bench.double.busy.clear()
    for _ in range(2):
        bench.contract.progress(name)
    steps.append(bench.step(name))
    bench.double.out.clear()
    for _ in range(2):
        bench.contract.progress(name)
    steps.append(bench.step(name))
    assert steps == ["StopDMA", "StopDMA", "Freeing", "Undefined"]
    assert [event["event"] for event in bench.events].count("dma_stopped") == 1
    assert bench.contract.stale_ids == {"queues": 1, "filters": 0}


def test_progress_of_a_receive_queue_that_runs_is_nothing():
    """A buffer that comes back is everyday life."""
    bench = Bench()
    name = bench.queue("a", filter_of(1))
    bench.forget()
    bench.contract.progress(name)
    bench.contract.progress(DEFAULT_QUEUE)
    bench.contract.progress(12345)
    assert (bench.events, bench.double.told) == ([], [])
    assert bench.contract.stale_ids == {"queues": 0, "filters": 0}


def test_a_receive_queue_that_never_had_anything_has_nothing_to_wait_for():
    """The engine does not know it, and is not asked."""
    bench = Bench()
    name = bench.queue(complete=False)
    assert bench.contract.free("a", name) == "SUCCESS"
    assert bench.double.told == []
    assert [event["step"] for event in bench.events] == ["Allocated", "StopDMA", "Freeing", "Undefined"]


def test_a_restart_empties_every_receive_queue_before_one_is_filled_again():
    """S13."""
    bench = Bench()
    name = bench.queue("a", filter_of(1))
    bench.contract.set_filter("b", DEFAULT_QUEUE, filter_of(9))
    paused = bench.queue("a")
    bench.forget()

    bench.contract.reset()

    assert bench.double.told == [
        ("install", {DEFAULT_QUEUE: [], DROP_QUEUE: [], name: []}),
        ("pause", [DEFAULT_QUEUE, DROP_QUEUE, name]),
        ("discard", [DEFAULT_QUEUE, DROP_QUEUE, name]),
        ("clear_counters", DEFAULT_QUEUE),
        ("clear_counters", DROP_QUEUE),
        ("clear_counters", name),
        ("clear_counters", paused),
        ("start", [DEFAULT_QUEUE, DROP_QUEUE, name]),
        ("install", {DEFAULT_QUEUE: [2], DROP_QUEUE: [], name: [1]}),
    ]
    assert [event["event"] for event in bench.events] == ["reset"]
