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
from vmq.filters import Field, FieldTest, Filter, Kind

TO_NOBODY = FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, mac_number(MACS[90]))
SOME = FieldTest(Field.ETHERTYPE, Kind.EQUAL, 0x9000)
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
    mine = running.do(contract.set_filter, "x", number, Filter((TO_NOBODY,), 7))
    here = running.do(contract.set_filter, "y", DEFAULT_QUEUE, Filter((TO_NOBODY, SOME), 8))
    away = running.do(contract.set_filter, "y", DROP_QUEUE, Filter((TO_NOBODY, SOME), 9))

    asked, effective, why = rows(running, f"filter {mine} of x, uplink lan")["filter"]
    assert asked.endswith(f", priority 7: receive queue {number}")
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
