# SPDX-License-Identifier: Apache-2.0
"""Records for people: requested, effective, why."""

from __future__ import annotations

import json

from tests.contract.double import Bench, filter_of
from vmq.contract.budget import Budget


def test_a_receive_queue_says_what_was_asked_for_and_what_is_in_force():
    """B2: a difference is never without its reason."""
    bench = Bench(Budget(queues=4, processors={1: 2, 2: 2}, locked_memory=300 * 2048))
    name = bench.queue("a", filter_of(1), name="web-0", vm="web", suggested_buffers=400)

    row = json.loads(json.dumps(bench.contract.queue_parameters("a", name)))

    assert (row["queue"], row["owner"], row["name"], row["vm"]) == (name, "a", "web-0", "web")
    assert (row["state"], row["step"], row["why"], row["filters"]) == ("Running", "Running", "", 1)
    assert row["requested"]["suggested_buffers"] == 400
    assert row["effective"] == {"processor": 1, "suggested_buffers": 300}
    assert set(row["difference"]) == {"processor", "suggested_buffers"}


def test_nothing_differs_where_everything_was_granted():
    bench = Bench()
    name = bench.queue("a", processor=2, suggested_buffers=10)
    row = bench.contract.queue_parameters("a", name)
    assert row["effective"] == {"processor": 2, "suggested_buffers": 10}
    assert row["difference"] == {}


def test_a_receive_queue_that_does_not_run_says_why():
    """Each state that receives nothing, and the reason that completion gave."""
    bench = Bench(Budget(queues=0, processors={1: 2}, locked_memory=300 * 2048))
    name = bench.queue("a", filter_of(1), complete=False)
    assert "default queue" in bench.contract.queue_parameters("a", name)["why"]
    bench.contract.allocation_complete("a", [name])
    assert bench.contract.queue_parameters("a", name)["why"] == "all 0 receive queues are taken"


def test_a_filter_says_whether_it_is_in_effect():
    """Filters of a receive queue that is not complete steer nothing."""
    bench = Bench()
    waiting = bench.queue("a", filter_of(1, 10, priority=3), complete=False)
    row = json.loads(json.dumps(bench.contract.enum_filters("a", waiting)[0]))
    assert (row["filter"], row["owner"], row["queue"], row["in_effect"]) == (1, "a", waiting, False)
    assert (row["priority"], row["flags"]) == (3, [])
    assert [test["field"] for test in row["tests"]] == ["mac_destination", "vlan_id"]
    assert row["text"] == "mac_destination == 52:54:00:00:00:01 and vlan_id == 10"

    bench.contract.allocation_complete("a", [waiting])
    assert bench.contract.filter_parameters("a", 1)["in_effect"] is True
