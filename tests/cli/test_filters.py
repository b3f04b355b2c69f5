# SPDX-License-Identifier: Apache-2.0
"""vmq filter: tests as people write them, the words that go to the engine, the table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vmq.cli.filters import test as written_test
from vmq.cli.filters import text

ROW: dict[str, Any] = {
    "filter": 2, "owner": "a", "queue": 3, "in_effect": True, "priority": 7, "flags": [], "tests": [],
    "text": "mac_destination == 52:54:00:00:00:01 and vlan_id == 5",
}  # fmt: skip
TABLE = """\
filter  owner  queue  in_effect  priority  text
     2  a          3        yes         7  mac_destination == 52:54:00:00:00:01 and vlan_id == 5
"""


def asked(engine: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(one["method"], one["params"]) for one in engine.asked]


def test_the_list_is_of_one_receive_queue_or_of_all(vmq, engine) -> None:
    engine.answer([ROW])

    assert vmq("filter", "list") == (0, TABLE, "")
    assert json.loads(vmq("f", "l", "default", "--owner", "a", "-j")[1]) == [ROW]
    assert asked(engine) == [("enum_filters", {}), ("enum_filters", {"queue": 0, "owner": "a"})]
    assert text([]) == "no filters"


def test_a_filter_is_set_in_readable_words(vmq, engine) -> None:
    engine.answer({"filter": 2}, ROW)

    words = ("3", "mac_destination==52:54:00:00:00:01", "vlan_id != 5", "arp_tpa & 255.255.255.0 == 10.0.0.0")
    options = ("--priority", "-7", "--encapsulation", "--untagged-or-zero", "--owner", "b", "--uplink", "lan")
    said = "filter 2: its frames belong to receive queue 3\n"
    assert vmq("filter", "set", *words, *options) == (0, said, "")
    tests = [
        {"field": "mac_destination", "kind": "equal", "value": "52:54:00:00:00:01"},
        {"field": "vlan_id", "kind": "not_equal", "value": "5"},
        {"field": "arp_tpa", "kind": "mask_equal", "value": "10.0.0.0", "mask": "255.255.255.0"},
    ]
    flags = ["vlan_untagged_or_zero", "encapsulation"]
    made = {"tests": tests, "flags": flags, "priority": -7}
    assert asked(engine) == [
        ("set_filter", {"uplink": "lan", "owner": "b", "queue": 3, "filter": made}),
        ("filter_parameters", {"uplink": "lan", "filter": 2}),
    ]


def test_frames_can_be_dropped_by_a_filter(vmq, engine) -> None:
    """The drop queue has a word."""
    engine.answer({"filter": 2})
    assert vmq("f", "s", "drop", "mac_destination==52:54:00:00:00:01", "--json")[:2] == (0, '{"filter": 2}\n')
    assert asked(engine)[0][1]["queue"] == 65535


@pytest.mark.parametrize(
    "written",
    [
        "vlan_id",
        "vlan_id=5",
        "vlan_id==",
        "==5",
        "vlan_id==5==6",
        "vlan_id&1!=1",
        "vlan_id&==1",
        "a b==1",
        "",
    ],
)
def test_what_is_no_test_is_refused_with_the_form_of_one(vmq, engine, written: str) -> None:
    code, _, err = vmq("filter", "set", "3", written)
    assert (code, engine.asked) == (2, [])
    assert err == (
        f'vmq filter set: "{written}" is no test. Remedy: Write it as vlan_id==5, vlan_id!=5 or '
        "'arp_tpa & 255.255.255.0 == 10.0.0.0'\n"
    )


def test_spaces_mean_nothing() -> None:
    said = {"field": "vlan_id", "kind": "mask_equal", "value": "0x1", "mask": "0xf"}
    assert written_test("vlan_id&0xf==0x1") == written_test("  vlan_id & 0xf  ==  0x1 ") == said


def test_clear_and_move_name_their_filter(vmq, engine) -> None:
    engine.answer({"status": "SUCCESS"}, {"status": "SUCCESS"}, {**ROW, "queue": 0})
    assert vmq("filter", "clear", "2") == (0, "filter 2: cleared\n", "")
    assert vmq("filter", "move", "2", "default")[:2] == (
        0,
        "filter 2: its frames belong to the default queue\n",
    )
    assert asked(engine) == [
        ("clear_filter", {"owner": "cli", "filter": 2}),
        ("move_filter", {"owner": "cli", "filter": 2, "queue": 0}),
        ("filter_parameters", {"filter": 2}),
    ]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, "its frames belong to receive queue 3"),
        ({"queue": 65535}, "its frames are dropped, by the drop queue"),
        ({"in_effect": False}, "not in effect until the allocation of receive queue 3 is complete"),
    ],
)
def test_where_its_frames_go_is_what_the_record_says(vmq, engine, record: dict[str, Any], said: str) -> None:
    """A filter of a receive queue that is not complete steers nothing."""
    for words, made in ((("set", "3", "vlan_id==5"), {"filter": 2}), (("move", "2", "3"), {})):
        engine.answer(made, {**ROW, **record})
        assert vmq("filter", *words) == (0, f"filter 2: {said}\n", "")
