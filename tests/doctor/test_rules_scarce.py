# SPDX-License-Identifier: Apache-2.0
"""Who has a receive queue of its own: one ranking, and each cause has one rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.doctor.hosts import DB, LAN, host, links, nic, only, see, statuses, vm
from vmq.dataplane.state import MAX_QUEUES, MAX_VPORTS
from vmq.doctor.finding import Outcome
from vmq.doctor.rules_queues import not_in_effect
from vmq.doctor.rules_scarce import disabled, held_idle, left_without, shares, stale_ids, swallowed, too_many
from vmq.doctor.situation import PortView, Situation
from vmq.doctor.steps import edit
from vmq.ethtool import Driver
from vmq.placement import QUEUES_MAX, VMS_MAX

RULES = {"D06": not_in_effect, "D08": too_many, "D10": left_without, "D11": held_idle}
MACS = {name: f"52:54:00:00:01:{number:02}" for number, name in enumerate(("web", "db", "ci", "old"))}


def row(name: str, frames: int, *, own: bool, why: str = "all 2 receive queues are taken") -> dict[str, Any]:
    """A row of `vmq show queues`."""
    return {"vm": name, "queue": 0, "own": own, "offered_to_guest": frames, "why": "" if own else why}


def scarce(queues: int | None, *rows: dict[str, Any], **weights: int) -> Situation:
    """VMs of one uplink with so many receive queues for them; as they run, unless there are no rows."""
    names = [one["vm"] for one in rows] or list(weights)
    text = LAN + ("" if queues is None else f"queues = {queues}\n")
    text += "".join(vm(name, MACS[name], uplink="lan", weight=weights.get(name, 100)) for name in names)
    running = [{"name": name, "state": "running"} for name in names]
    return see(text, None, vms=running, queues=list(rows), uplinks=[], processors=[]) if rows else see(text)


def codes(situation: Situation) -> list[tuple[str, str]]:
    """Which rules find something, and about whom."""
    return [
        (code, one.subject)
        for code, rule in RULES.items()
        for one in rule(situation)
        if one.status == "found"
    ]


def ports(count: int, pairs: int) -> Situation:
    made = Situation()
    made.__dict__["ports"] = tuple(
        PortView(f"v{number}", "", "listen", None, (), None, pairs, None, None) for number in range(count)
    )
    return made


def test_more_receive_queues_than_an_engine_has() -> None:
    """1024 VMs with 16 are exactly all."""
    assert (QUEUES_MAX, VMS_MAX) == (MAX_QUEUES, MAX_VPORTS)
    found = only(too_many(ports(1026, 16)))

    assert found.evidence[2].value == "v1024, v1025"
    assert found.fix.command == "queue_pairs = 15 in each [vm.NAME] of vmq.toml"
    assert statuses(too_many(ports(1024, 16))) == ["clear"]
    assert statuses(too_many(ports(2049, 1))) == ["found"]
    assert statuses(too_many(ports(0, 1))) == ["not_applicable"]


def test_more_vms_than_receive_queues_of_their_own() -> None:
    """Given out by weight, then in the order of the file."""
    planned = scarce(2, web=10, db=100, ci=10, old=0)

    found = only(too_many(planned))
    assert found.subject == "uplink lan"
    assert [entry.value for entry in found.evidence] == ["2", "ci"]
    assert found.fix.steps == (edit("uplink.lan", queues=3),)
    assert statuses(too_many(scarce(3, web=10, db=100, ci=10, old=0))) == ["clear"]
    assert statuses(too_many(scarce(None, web=10, db=100))) == ["clear"]


def test_the_busiest_started_last_is_d08_where_nobody_is_idle() -> None:
    """Who goes without is ranked by its traffic on the default queue."""
    busy = [row("web", 5000, own=True), row("db", 4000, own=True), row("ci", 9000, own=False)]
    situation = scarce(2, *busy)

    assert codes(situation) == [("D08", "uplink lan")]
    (said,) = too_many(situation)
    assert (said.severity, said.vms, said.evidence[1].value) == (None, ("ci",), "9000 frames")


def test_a_queue_held_in_vain_is_d11_and_d08_only_a_note() -> None:
    idle = [row("web", 5000, own=True), row("db", 10, own=True), row("ci", 9000, own=False)]
    situation = scarce(2, *idle)

    assert codes(situation) == [("D08", "uplink lan"), ("D11", "VM ci")]
    assert too_many(situation)[0].severity == "note"
    found = only(held_idle(situation))
    assert (found.vms, found.confidence) == (("ci", "db"), "likely")
    assert found.fix.steps == (edit("vm.db", weight=1),)
    assert "weight = 100 in [vm.db]" in found.undo


def test_idle_queues_beside_a_cold_default_queue_are_none() -> None:
    """Nobody waits for them. That it asked and has none is still said."""
    cold = [row("web", 5000, own=True), row("db", 0, own=True), row("ci", 5, own=False)]

    assert codes(scarce(2, *cold)) == [("D06", "VM ci"), ("D08", "uplink lan")]
    assert {one.severity for one in too_many(scarce(2, *cold))} == {"note"}


def test_weight_0_on_a_busy_vm_is_d10_alone() -> None:
    why = "weight 0 asks for no receive queue of its own"
    situation = scarce(None, row("web", 5000, own=False, why=why), row("db", 10, own=True), web=0)

    assert codes(situation) == [("D10", "VM web")]
    found = only(left_without(situation))
    assert (found.evidence[1].value, found.confidence) == (f"no: {why}", "likely")
    assert found.fix.steps == (edit("vm.web", weight=100),)


def test_weight_0_of_a_vm_that_was_measured_to_be_slower_is_none() -> None:
    """D22 has said so, and its fix is weight 0."""
    situation = scarce(None, row("web", 5000, own=False), row("db", 10, own=True), web=0)
    shown = {**(situation.shown or {}), "vms": [{"name": "web", "proved": {"answer": "slower"}}]}

    assert statuses(left_without(replace(situation, shown=shown))) == ["clear"]


def test_weight_0_on_an_idle_vm_is_none() -> None:
    situation = scarce(None, row("web", 5, own=False), row("db", 9000, own=True), web=0)

    assert codes(situation) == []


def test_the_first_receive_queue_is_the_vms_own_or_not() -> None:
    """Others belong to owners of the API, or to nobody; the weight in force is the engine's word."""
    rows = [row("web", 5000, own=False) | {"weight": 0}, row("web", 70, own=True) | {"queue": 1}]

    (share,) = shares(see("", None, vms=[{"name": "web"}], queues=rows)) or []
    assert (share.own, share.frames, share.weight) == (False, 5070, 0)


def test_what_is_busy_and_idle_are_keys() -> None:
    rows = [row("web", 50, own=False), row("db", 20, own=True)]
    text = LAN + vm("web", MACS["web"], uplink="lan") + vm("db", MACS["db"], uplink="lan")
    keys = "[doctor]\nbusy_frames = 50\nidle_percent = 50\n"

    assert statuses(held_idle(see(text + keys, None, queues=rows))) == ["found"]
    assert statuses(held_idle(see(text, None, queues=rows))) == ["clear"]


def test_an_engine_that_does_not_say_whose_queues_they_are() -> None:
    """One without scarce queues, and none at all."""
    for rule in (left_without, held_idle):
        assert statuses(rule(see(LAN))) == ["unknown"]
        assert statuses(rule(see("", None, queues=[{"vm": "web", "queue": 0}]))) == ["unknown"]


# --- D07, D17, D34 ------------------------------------------------------------------------------------------


def wire(got: int, sent: int, neighbour: int = 70, *, more: str = "") -> list[Outcome]:
    text = LAN + more + vm("web", MACS["web"], uplink="lan") + vm("db", DB, uplink="lan")
    rows = [
        {"vm": "web", "queue": 0, "offered_to_guest": got, "forwarded": sent},
        {"vm": "db", "queue": 0, "offered_to_guest": neighbour, "forwarded": 3},
    ]
    driver = Driver("b57", "16.2", "ffv1")
    return swallowed(see(text, host("0", links=links(nic("eth0", driver=driver))), queues=rows))


def test_a_nic_that_swallows_one_address() -> None:
    """The driver's version stands in the evidence; and nobody may have answered."""
    found = only(wire(0, 5000))
    assert (found.subject, found.confidence, found.severity) == (
        "VM web on uplink lan",
        "possible",
        "warning",
    )
    assert found.evidence[2].value == "b57 16.2, firmware ffv1"
    assert found.fix.steps == (edit("uplink.lan", promiscuous=True),)


@pytest.mark.parametrize(("got", "sent", "neighbour"), [(1, 5000, 70), (0, 10, 70), (0, 5000, 0)])
def test_a_vm_that_gets_something_or_is_quiet_or_a_wire_that_is_silent(
    got: int, sent: int, neighbour: int
) -> None:
    assert statuses(wire(got, sent, neighbour)) == ["clear"]


def test_a_nic_that_is_asked_for_everything_swallows_no_address() -> None:
    assert statuses(wire(0, 5000, more="promiscuous = true\n")) == ["not_applicable"]
    assert statuses(swallowed(see(LAN))) == ["unknown"]


@pytest.mark.parametrize(("told", "status"), [(0, "clear"), (2, "found"), ({"queues": 0, "filters": 0}, "clear"),
                                              ({"queues": 0, "filters": 7}, "found")])  # fmt: skip
def test_stale_ids_are_counted(told: object, status: str) -> None:
    """Where the engine tells them; each was refused."""
    assert statuses(stale_ids(see("", None, uplinks=[{"name": "lan", "stale_ids": told}]))) == [status]
    assert statuses(stale_ids(see("", None, uplinks=[{"name": "lan"}]))) == ["unknown"]


def test_switched_off_for_all_is_said() -> None:
    """Some VMs without a queue of their own are nobody's mistake."""
    off = only(disabled(scarce(0, web=100)))
    assert off.evidence[0].where == "vmq.toml: [uplink.lan] queues"
    assert only(disabled(scarce(None, web=0, db=0))).evidence[0].value == "0 for all 2 VMs"
    assert statuses(disabled(scarce(None, web=0, db=100))) == ["clear"]
    assert statuses(disabled(see())) == ["not_applicable"]
