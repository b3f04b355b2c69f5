# SPDX-License-Identifier: Apache-2.0
"""D22: what a measurement said decides, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.doctor.hosts import DB, LAN, only, see, statuses, vm
from vmq.doctor.rules_proved import slower
from vmq.doctor.situation import Situation

SAID = "own 90 ± 1 ns a frame, plain 40 ± 1"


def measured(*answers: str, weight: int = 100, way: str = "own", why: str = "", more: str = "") -> Situation:
    """VMs web and db, with the verdict on each; "" for none."""
    text = more + LAN + vm("web", uplink="lan", weight=weight) + vm("db", DB, uplink="lan")
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "own_queue": True,
            "settings": [{"name": "receive_queue", "requested": "own", "effective": way, "why": why}],
            "proved": {"answer": answer, "why": SAID} if answer else None,
        }
        for name, answer in zip(("web", "db"), answers, strict=False)
    ]
    return see(text, None, vms=rows)


def test_slower_is_found_with_its_numbers_and_the_way_back() -> None:
    found = only(slower(measured("slower", "not slower")))

    assert (found.subject, found.vms, found.confidence, found.severity) == (
        "VM web",
        ("web",),
        "likely",
        None,
    )
    assert [entry.value for entry in found.evidence] == [SAID, "own"]
    assert found.fix.command.startswith("weight = 0 in [vm.web]")
    assert found.fix.steps == ()
    assert found.undo == "weight = 100 in [vm.web]"


def test_where_the_guard_has_acted_it_is_a_note() -> None:
    """What is in effect is the faster way."""
    why = "the guard: own 90, plain 40"
    found = only(slower(measured("slower", "not slower", way="default", why=why)))

    assert (found.severity, found.evidence[1].value) == ("note", f"default: {why}")
    assert "has it served by the default queue" in found.why


def test_the_plain_half_of_a_measurement_is_not_the_guards_doing() -> None:
    why = "it is being measured both ways"
    found = only(slower(measured("slower", "not slower", way="default", why=why)))

    assert (found.severity, found.evidence[1].value) == (None, f"default: {why}")
    assert "acts on what it measures itself" in found.why


def test_a_guard_is_offered_where_there_is_none() -> None:
    """It is there unless it was switched off."""
    assert "guard = true" not in only(slower(measured("slower", "not slower"))).fix.command
    found = only(slower(measured("slower", "not slower", more="[engine]\nguard = false\n")))
    assert "or guard = true in [engine]" in found.fix.command
    assert "guard" not in found.why


def test_a_vm_of_weight_0_has_none_that_could_make_it_slower() -> None:
    assert statuses(slower(measured("slower", "not slower", weight=0))) == ["clear"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("not slower", "not slower"), ["clear"]),
        (("not slower", ""), ["unknown"]),
        (("cannot tell", "not slower"), ["unknown"]),
        (("slower", ""), ["found", "unknown"]),
        (("", ""), ["unknown"]),
        ((), ["unknown"]),
    ],
)
def test_what_was_not_measured_is_unknown(answers: tuple[str, ...], expected: list[str]) -> None:
    assert statuses(slower(measured(*answers))) == expected


def test_an_engine_that_tells_no_verdicts_or_something_else() -> None:
    """One of another version, or none."""
    for see_it in (see(LAN), see("", None, vms=[{"name": "web"}, {"name": "db", "proved": "yes"}])):
        assert statuses(slower(see_it)) == ["unknown"]
