# SPDX-License-Identifier: Apache-2.0
"""vmq queue: what it asks, the table with what was requested and why it is not so, exit codes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vmq.cli import queues

ASKED = {
    "processor": None,
    "suggested_buffers": 256,
    "weight": 50,
    "moderation": {"indications": 9, "frames": 4},
}
ROW: dict[str, Any] = {
    "queue": 3, "owner": "a", "name": "x", "vm": "web", "state": "Running", "step": "Running", "why": "",
    "filters": 2, "requested": ASKED, "effective": {"processor": 1, "suggested_buffers": 128},
    "difference": {"processor": "none was named", "suggested_buffers": "locked memory is scarce"},
}  # fmt: skip
WAITS = {
    **ROW, "queue": 65540, "name": "", "state": "Paused", "filters": 0, "effective": {}, "difference": {},
    "why": "its allocation is not complete",
}  # fmt: skip
TABLE = """\
queue  owner  name  vm   state    filters  processor  buffers  weight
    3  a      x     web  Running        2          1      128      50
    processor: requested any, effective 1: none was named
    suggested_buffers: requested 256, effective 128: locked memory is scarce
65540  a      -     web  Paused         0          -        -      50
    why: its allocation is not complete
"""


def asked(engine: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(one["method"], one["params"]) for one in engine.asked]


def test_the_list_says_what_is_in_force_and_why_it_is_not_what_was_asked_for(vmq, engine) -> None:
    engine.answer([ROW, WAITS])

    assert vmq("queue", "list", "--owner", "a", "--uplink", "") == (0, TABLE, "")
    assert asked(engine) == [("enum_queues", {"uplink": "", "owner": "a"})]
    assert json.loads(vmq("q", "l", "-j")[1]) == [ROW, WAITS]
    assert queues.text([]) == "no receive queues"


def test_allocate_completes_at_once(vmq, engine) -> None:
    done = {"queue": 3, "status": "SUCCESS", "why": ""}
    engine.answer({"queue": 3}, [done])

    words = (
        "--vm",
        "web",
        "--processor",
        "1",
        "--weight",
        "50",
        "--name",
        "x",
        "--buffers",
        "8",
        "--frames",
        "4",
    )
    assert vmq("queue", "allocate", *words) == (0, "receive queue 3: SUCCESS\n", "")
    parameters = {
        "vm": "web",
        "name": "x",
        "weight": 50,
        "suggested_buffers": 8,
        "processor": 1,
        "moderation": {"frames": 4},
    }
    assert asked(engine) == [
        ("allocate_queue", {"owner": "cli", "parameters": parameters}),
        ("queue_allocation_complete", {"owner": "cli", "queues": [3]}),
    ]
    engine.answer({"queue": 3}, [done])
    assert json.loads(vmq("queue", "allocate", "--vm", "web", "--json")[1]) == done


def test_a_receive_queue_that_got_nothing_is_freed_again_and_the_reason_said(vmq, engine) -> None:
    """A command that fails leaves nothing behind."""
    lacks = {"queue": 3, "status": "RESOURCES", "why": "all are taken"}
    engine.answer({"queue": 3}, [lacks], {"status": "SUCCESS"})
    out = "receive queue 3: RESOURCES: all are taken\nreceive queue 3: freed again; --incomplete keeps it\n"
    assert vmq("queue", "allocate", "--vm", "web", "--owner", "b", "--uplink", "") == (1, out, "")
    assert asked(engine)[2] == ("free_queue", {"uplink": "", "owner": "b", "queue": 3})
    engine.answer({"queue": 3}, [lacks], {"status": "SUCCESS"})
    code, out, _ = vmq("queue", "allocate", "--vm", "web", "--json")
    assert (code, json.loads(out)) == (1, {**lacks, "freed": True})


def test_allocate_may_leave_it_incomplete(vmq, engine) -> None:
    """For a batch that is completed together."""
    engine.answer({"queue": 3})
    assert vmq("q", "a", "--vm", "web", "--incomplete", "--owner", "b")[:2] == (
        0,
        "receive queue 3: allocated\n",
    )
    assert asked(engine) == [("allocate_queue", {"owner": "b", "parameters": {"vm": "web"}})]
    assert json.loads(vmq("q", "a", "--vm", "web", "--incomplete", "--json")[1]) == {"queue": 3}


def test_a_batch_is_completed_together(vmq, engine) -> None:
    """The exit code is 1 if one of them got nothing."""
    engine.answer(
        [{"queue": 3, "status": "SUCCESS", "why": ""}, {"queue": 4, "status": "RESOURCES", "why": "no room"}]
    )
    out = "receive queue 3: SUCCESS\nreceive queue 4: RESOURCES: no room\n"
    assert vmq("queue", "complete", "3", "4") == (1, out, "")
    assert asked(engine)[0][1]["queues"] == [3, 4]


def test_set_sends_what_is_named_and_nothing_else(vmq, engine) -> None:
    """`any` is a value: no processor in particular."""
    engine.answer({"status": "SUCCESS"})
    assert vmq("queue", "set", "3", "--processor", "any", "--name", "") == (
        0,
        "receive queue 3: changed\n",
        "",
    )
    assert asked(engine) == [
        ("set_queue_parameters", {"owner": "cli", "queue": 3, "parameters": {"name": "", "processor": None}})
    ]


def test_one_half_of_moderation_is_sent_alone(vmq, engine) -> None:
    """The engine leaves the other as it is."""
    engine.answer({"status": "SUCCESS"})
    assert vmq("queue", "set", "3", "--frames", "0")[0] == 0
    (only,) = asked(engine)
    assert only[1]["parameters"] == {"moderation": {"frames": 0}}


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("set", "3"), "vmq queue set: nothing is to be changed"),
        (("set", "three", "--name", "x"), "three is no receive queue"),
        (("set", "3", "--processor", "-1"), "argument --processor"),
        (("set", "3", "--processor", "all"), "all is no processor"),
        (("set", "3", "--weight", "x"), "argument --weight"),
        (("allocate",), "required: --vm"),
        (("complete",), "required: QUEUE"),
    ],
)
def test_words_that_are_wrong_reach_no_engine(vmq, engine, words: tuple[str, ...], wrong: str) -> None:
    code, out, err = vmq("queue", *words)

    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert wrong in err
    assert engine.asked == []


def test_free_says_whether_buffers_are_out(vmq, engine) -> None:
    engine.answer({"status": "SUCCESS"}, {"status": "PENDING"})
    assert vmq("queue", "free", "3") == (0, "receive queue 3: freed\n", "")
    code, out, _ = vmq("queue", "free", "3")
    assert (code, out.startswith("receive queue 3: PENDING: ")) == (0, True)


def test_statistics_begin_anew_in_nobody_s_name(vmq, engine) -> None:
    """The administrator's: also of the default queue."""
    engine.answer({"status": "SUCCESS"})
    assert vmq("queue", "reset-statistics", "default")[0] == 0
    assert asked(engine) == [("reset_statistics", {"queue": 0})]


def test_a_reset_says_what_it_does_and_asks_nothing(vmq, engine) -> None:
    """Of one uplink, and of nobody's receive queues in particular."""
    engine.answer(*[{"status": "SUCCESS"}] * 3)
    words = "all counters begin anew, frames that waited are discarded; receive queues and filters stay\n"
    assert vmq("queue", "reset") == (0, words, "")
    assert vmq("queue", "reset", "--uplink", "lan") == (0, f"uplink lan: {words}", "")
    assert json.loads(vmq("queue", "reset", "--uplink", "", "--json")[1]) == {"status": "SUCCESS"}
    assert asked(engine) == [("reset", {}), ("reset", {"uplink": "lan"}), ("reset", {"uplink": ""})]


def test_a_refusal_is_one_line_with_its_exit_code(vmq, engine) -> None:
    engine.refuse(
        status="INVALID_PARAMETER", message="FREE_QUEUE: receive queue 3 has 1 filters", remedy="clear"
    )
    assert vmq("queue", "free", "3") == (
        2,
        "",
        "FREE_QUEUE: receive queue 3 has 1 filters. Remedy: clear\n",
    )
