# SPDX-License-Identifier: Apache-2.0
"""Receive queues and filters of clients of the API, as settings: what they asked for, what they have, why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.running import FIRST_CPU, MACS, NO_FRAMES, Running, until
from vmq.abi.ethernet import mac_number
from vmq.contract import CONFIG, DEFAULT_QUEUE, DROP_QUEUE
from vmq.contract.parameters import Parameters
from vmq.filters import Field, FieldTest, Filter, Flag, Kind

TO_NOBODY = FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, mac_number(MACS[90]))
SOME, OTHERS = (FieldTest(Field.ETHERTYPE, Kind.EQUAL, number) for number in (0x9000, 0x9001))
ASKED = {"vm": "b", "name": "x", "weight": 40, "moderation": {"indications": 3000, "frames": 8}}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path) as one:
        one.configure({"lan": NO_FRAMES}, b=one.vm("b", 2, uplink="lan", queue_pairs=3), c=one.vm("c", 3))
        yield one


def rows(running: Running, of: str) -> dict[str, tuple[Any, Any, str]]:
    """Name → requested, effective, why."""
    return {
        row["name"]: (row["requested"], row["effective"], row["why"])
        for row in running.show("settings")
        if row["of"] == of
    }


def allocate(running: Running, owner: str = "x", uplink: str = "lan", **asked: Any) -> int:
    return running.do(running.engine.contracts[uplink].allocate, owner, asked or ASKED)


def owned(running: Running) -> set[str]:
    """What has rows and is not the configuration's."""
    return {row["of"] for row in running.show("settings") if row["of"].split()[0] in {"queue", "filter"}}


def test_the_configuration_has_no_rows_here(running: Running):
    """Its receive queues and filters are settings of VMs."""
    owners = {row["owner"] for row in running.do(running.engine.contracts["lan"].enum_queues, None)}
    assert owners == {"", CONFIG}
    assert owned(running) == set()


def test_a_receive_queue_has_each_member_of_its_parameters(running: Running):
    """Until it is complete nothing is in effect, for one reason; then what differs has its own."""
    number = allocate(running)
    of = f"queue {number} of x, uplink lan"
    lack = "its allocation is not complete"
    before = rows(running, of)
    halves = {"indications", "indication_frames"}
    known = set(Parameters.__struct_fields__) - {"name", "moderation", "lookahead_split", "lookahead_size"}
    assert set(before) == {"state", *known, *halves}
    assert before["state"] == ("Running", "Paused", lack)
    assert before["weight"] == (40, None, lack)
    assert before["processor"] == (None, None, "")

    running.do(running.engine.contracts["lan"].allocation_complete, "x", [number])
    after = rows(running, of)
    assert after["state"] == ("Running", "Paused", "it has no filter")
    assert (after["vm"], after["weight"]) == (("b", "b", ""), (40, 40, ""))
    assert (after["indications"], after["indication_frames"]) == ((3000, 3000, ""), (8, 8, ""))
    assert after["processor"][:2] == (None, FIRST_CPU)
    assert after["processor"][2].startswith("none was named")
    assert after["suggested_buffers"][1:] == (None, "the guest's ring decides")

    running.do(running.engine.contracts["lan"].set_filter, "x", number, Filter((TO_NOBODY,)))
    assert rows(running, of)["state"] == ("Running", "Running", "")
    with running.guest("b", queues=2):
        until(lambda: running.show("vms", "b")["queues_running"] == 2)
        assert rows(running, of)["suggested_buffers"][1] == 64


def test_a_filter_is_in_effect_once_its_receive_queue_runs(running: Running):
    """Those on the default and the drop queue always are; each says where its frames are to go."""
    contract = running.engine.contracts["lan"]
    number = allocate(running)
    mine = running.do(contract.set_filter, "x", number, Filter((TO_NOBODY,), 10))
    here = running.do(contract.set_filter, "y", DEFAULT_QUEUE, Filter((TO_NOBODY, SOME), 8))
    away = running.do(contract.set_filter, "y", DROP_QUEUE, Filter((TO_NOBODY, OTHERS), 9))

    asked, effective, why = rows(running, f"filter {mine} of x, uplink lan")["filter"]
    assert asked.endswith(f", priority 10: receive queue {number}")
    assert (effective, why.startswith("its allocation is not complete")) == (None, True)
    for one, place in ((here, "the default queue"), (away, "the drop queue")):
        asked, effective, why = rows(running, f"filter {one} of y, uplink lan")["filter"]
        assert (asked, why, asked.endswith(place)) == (effective, "", True)

    running.do(contract.allocation_complete, "x", [number])
    asked, effective, why = rows(running, f"filter {mine} of x, uplink lan")["filter"]
    assert (asked, why) == (effective, "")


def test_each_uplink_has_its_own_and_what_is_gone_is_gone(running: Running):
    """Ids are of one uplink: the place says which."""
    first, second = allocate(running), allocate(running, uplink="", vm="c")
    assert owned(running) == {f"queue {first} of x, uplink lan", f"queue {second} of x"}
    for contract in running.engine.contracts.values():
        running.do(contract.release_owner, "x")
    assert owned(running) == set()


def complete(running: Running, *filters: Filter, owner: str = "x", **asked: Any) -> tuple[int, list[int]]:
    """A receive queue with filters, and their ids."""
    contract = running.engine.contracts["lan"]
    number = allocate(running, owner, **asked)
    found = [running.do(contract.set_filter, owner, number, one) for one in filters]
    (done,) = running.do(contract.allocation_complete, owner, [number])
    assert done.status == "SUCCESS", done.why
    return number, found


OWN = FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, mac_number(MACS[1]))  # b's
ZERO = Flag.VLAN_UNTAGGED_OR_ZERO


@pytest.mark.parametrize(
    ("one", "in_effect", "whose"),
    [
        (Filter((OWN,), -1, ZERO), "", "b's address (priority 0) takes all of its frames: mac_destination"),
        (Filter((OWN, SOME), -1, ZERO), "", "b's address (priority 0) takes all of its frames"),
        (Filter((OWN,), -1), " in part", "b's address (priority 0) takes some of its frames"),
        (Filter((OWN, FieldTest(Field.VLAN_ID, Kind.EQUAL, 7)), -1), "all", ""),
        (Filter((OWN,), 1), "all", ""),
        (Filter((TO_NOBODY,), 8), "", "of owner y (priority 9) takes all of its frames"),
        (Filter((TO_NOBODY, SOME), 8), "", "of owner y (priority 9) takes all of its frames"),
        (Filter((FieldTest(Field.MAC_DESTINATION, Kind.MASK_EQUAL, 0, 1),), 8), " in part", "takes some"),
    ],
)
def test_a_filter_whose_frames_others_take_is_not_in_effect(
    running: Running, one: Filter, in_effect: str, whose: str
):
    """Its receive queue runs, and still it gets nothing: who is asked before it is named."""
    complete(running, Filter((TO_NOBODY,), 9), owner="y")
    number, (mine,) = complete(running, one)
    asked, effective, why = rows(running, f"filter {mine} of x, uplink lan")["filter"]
    assert effective == (asked if in_effect == "all" else asked + in_effect if in_effect else None)
    assert (whose in why, bool(why)) == (True, bool(whose))
    assert asked.endswith(f": receive queue {number}")


def test_what_takes_nothing_is_not_named(running: Running):
    """A filter of the same receive queue, or of the default queue that leaves a plain filter its frames."""
    contract = running.engine.contracts["lan"]
    running.do(contract.set_filter, "y", DEFAULT_QUEUE, Filter((TO_NOBODY,), 9))
    _, (_, plain, generic) = complete(
        running, Filter((TO_NOBODY, SOME), 8), Filter((TO_NOBODY,), 7, ZERO), Filter((TO_NOBODY, SOME), 6)
    )
    assert rows(running, f"filter {plain} of x, uplink lan")["filter"][2] == ""
    asked, effective, why = rows(running, f"filter {generic} of x, uplink lan")["filter"]
    assert (effective, why.startswith("filter ")) == (None, True)
    here = running.do(contract.set_filter, "y", DEFAULT_QUEUE, Filter((TO_NOBODY, SOME), 5))
    asked, effective, why = rows(running, f"filter {here} of y, uplink lan")["filter"]
    assert (effective, why) == (asked, "")


def test_a_receive_queue_that_its_guest_has_not_enabled_says_what_becomes_of_its_frames(running: Running):
    number, _ = complete(running, Filter((TO_NOBODY,)))
    of = f"queue {number} of x, uplink lan"
    with running.guest("b", queues=1):
        until(lambda: running.show("vms", "b")["queues_running"] == 1)
        asked, effective, why = rows(running, of)["state"]
        assert (asked, effective) == ("Running", "Running, and not enabled")
        assert why.startswith("the guest has not enabled queue pair 1: frames for it are dropped")
    until(lambda: running.show("vms", "b")["state"] == "listening")
    assert rows(running, of)["state"] == ("Running", "Running", "")


def test_a_weight_counts_when_the_receive_queue_is_completed(running: Running):
    """One that keeps its place with another weight says so; the view of receive queues says the same."""
    number, _ = complete(running, Filter((TO_NOBODY,)))
    running.do(running.engine.contracts["lan"].set_parameters, "x", number, {"weight": 0})
    asked, effective, why = rows(running, f"queue {number} of x, uplink lan")["weight"]
    assert (asked, effective, why.startswith("it counts when")) == (0, 40, True)
    (row,) = [one for one in running.show("queues") if one["queue_id"] == number and one["vm"] == "b"]
    assert (row["effective"]["weight"], row["difference"]["weight"]) == (40, why)
