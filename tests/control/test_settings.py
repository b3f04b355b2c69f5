# SPDX-License-Identifier: Apache-2.0
"""Requested, effective, why: for every setting, read back from a running engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.engine.running import FIRST_CPU, MACS, NO_FRAMES, Running, until
from vmq.abi.ethernet import mac_number
from vmq.contract import DEFAULT_QUEUE, DROP_QUEUE
from vmq.doctor import Facts, Situation, rules_queues
from vmq.filters import Field, FieldTest, Filter, Kind

LAN = msgspec.structs.replace(NO_FRAMES, queues=1, mtu=1400)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path) as one:
        one.configure(
            {"lan": LAN},
            a=one.vm("a", 1, uplink="lan", indications=1000, processor=FIRST_CPU),
            b=one.vm("b", 2, uplink="lan", indications=1000, indication_frames=32, queue_pairs=2),
            c=one.vm("c", 3, weight=0, mtu=9000),
        )
        yield one


def found(running: Running, of: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in running.show("settings") if row["of"] == of}


def test_no_setting_goes_without_the_three_and_what_differs_has_a_reason(running: Running):
    rows = running.show("settings")
    assert {row["of"] for row in rows} == {"engine", "uplink lan", "vm a", "vm b", "vm c"}
    for row in rows:
        assert set(row) == {"of", "name", "requested", "effective", "why"}
        assert row["requested"] == row["effective"] or row["why"], row
    keys = {
        "receive_queue",
        "filters",
        "processor",
        "placement",
        "queue_pairs",
        "mtu",
        "offloads",
        "moderation",
        "overload",
        "accept",
    }
    assert set(found(running, "vm a")) == keys
    assert [one["name"] for one in running.show("vms", "a")["settings"]] == list(found(running, "vm a"))


def test_a_receive_queue_that_a_vm_has_not_is_said_with_its_reason(running: Running):
    a, b, c = (found(running, f"vm {name}") for name in "abc")
    assert (a["receive_queue"]["effective"], a["receive_queue"]["why"]) == ("own", "")
    assert b["receive_queue"]["effective"] == "default"
    assert b["receive_queue"]["why"] == "all 1 receive queues are taken"
    assert (c["receive_queue"]["requested"], c["receive_queue"]["effective"]) == ("default", "default")
    assert (a["placement"]["effective"], b["placement"]["effective"]) == ("switched", "switched twice")
    assert b["processor"]["why"] == "the processor of the default queue"
    assert a["processor"]["why"] == "processor of [vm.a]"
    uplink = found(running, "uplink lan")["queues"]
    assert (uplink["requested"], uplink["effective"]) == (1, 1)
    assert uplink["why"] == "2 VMs; the others are served by the default queue"


def test_an_address_that_a_filter_takes_away_is_not_in_effect(running: Running):
    """All frames, some, or, of a filter of lower priority, none: and an owner's own receive queue takes nothing."""
    assert found(running, "vm b")["filters"] == {
        "of": "vm b",
        "name": "filters",
        "requested": [MACS[1]],
        "effective": [MACS[1]],
        "why": "",
    }
    contract = running.engine.contracts["lan"]

    def drop(*tests: FieldTest, priority: int, queue: int = DROP_QUEUE) -> int:
        return running.do(contract.set_filter, "x", queue, Filter(tests, priority))

    to_b = FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, mac_number(MACS[1]))
    some = FieldTest(Field.ETHERTYPE, Kind.EQUAL, 0x9000)
    drop(to_b, priority=-1)
    drop(to_b, FieldTest(Field.VLAN_ID, Kind.EQUAL, 5), priority=9)
    mine = running.do(contract.allocate, "x", {"vm": "b"})
    running.do(contract.allocation_complete, "x", [mine])
    assert found(running, "vm b")["filters"]["why"] == ""
    part = drop(to_b, some, priority=7)
    row = found(running, "vm b")["filters"]
    assert row["effective"] == [f"{MACS[1]} in part"]
    assert row["why"] == f"filter {part} of owner x (priority 7) takes some frames to {MACS[1]}"
    whole = drop(to_b, priority=6)
    row = found(running, "vm b")["filters"]
    assert row["effective"] == []
    assert row["why"].endswith(f"; filter {whole} of owner x (priority 6) takes all frames to {MACS[1]}")
    assert found(running, "vm a")["filters"]["effective"] == [MACS[0]]
    drop(to_b, priority=8, queue=DEFAULT_QUEUE)
    assert found(running, "vm b")["filters"]["why"] == ""


def test_moderation_is_in_effect_where_a_vm_has_its_own_queue(running: Running):
    a, b, c = (found(running, f"vm {name}")["moderation"] for name in "abc")
    assert (a["requested"], a["effective"]) == ("1000 a second", "1000 a second")
    assert (b["requested"], b["effective"]) == ("1000 a second or every 32 frames", "every batch")
    assert b["why"] == "it has no receive queue of its own"
    assert (c["requested"], c["effective"], c["why"]) == ("every batch", "every batch", "")


def test_the_mtu_and_the_queue_pairs_of_a_guest_are_what_it_has(running: Running):
    with running.guest("b", mtu=1300):
        until(lambda: running.show("vms", "b")["state"] == "running")
        b = found(running, "vm b")
        assert (b["mtu"]["requested"], b["mtu"]["effective"]) == (None, 1300)
        assert b["mtu"]["why"] == "the guest was told so by its front-end"
        assert (b["queue_pairs"]["requested"], b["queue_pairs"]["effective"]) == (2, 1)
        assert b["queue_pairs"]["why"] == "the guest has enabled 1"
    a, c = (found(running, f"vm {name}")["mtu"] for name in "ac")
    assert (a["effective"], a["why"]) == (1400, "the MTU of lan")
    assert (c["requested"], c["effective"], c["why"]) == (9000, 9000, "")


def test_unknown_frames_come_from_other_vms_only_where_the_device_chooses(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    """A device that was asked for the VMs' addresses shows the engine no other; a VM without uplink has none to ask."""
    running.configure(
        {"lan": LAN},
        a=running.vm("a", 1, uplink="lan", accept=("broadcast", "unknown")),
        b=running.vm("b", 2, uplink="lan", accept=()),
        c=running.vm("c", 3, accept=("unknown",)),
    )
    assert [found(running, f"vm {name}")["accept"]["effective"] for name in "abc"] == [
        "broadcast, unknown",
        "nothing",
        "unknown",
    ]
    uplink = running.engine.uplinks["lan"].uplink
    told = uplink.status()
    monkeypatch.setattr(uplink, "status", lambda: told | {"membership": ["52:54:00:00:00:01"]})
    a, b, c = (found(running, f"vm {name}")["accept"] for name in "abc")
    assert (a["requested"], a["effective"]) == ("broadcast, unknown", "broadcast, unknown from other VMs")
    assert a["why"] == "lan asks its device for the addresses of its VMs only: set its promiscuous"
    assert (b["why"], c["why"]) == ("", "")


def test_the_doctor_finds_nothing_where_nothing_is_wrong_and_an_address_that_is_taken(running: Running):
    """Defaults and hints that are not in effect are settings, and no findings."""
    running.configure(
        {"lan": NO_FRAMES}, a=running.vm("a", 1, uplink="lan"), b=running.vm("b", 2, queue_pairs=2)
    )
    contract = running.engine.contracts[""]
    mine = running.do(contract.allocate, "x", {"vm": "b", "moderation": {"indications": 7001}})
    running.do(contract.allocation_complete, "x", [mine])

    def not_in_effect() -> list[str]:
        shown = {view: running.show(view) for view in ("vms", "queues", "uplinks", "processors")}
        outcomes = rules_queues.not_in_effect(Situation(Facts(), None, shown))
        return [one.why for one in outcomes if one.status == "found"]

    with running.guest("a"), running.guest("b", queues=2):
        until(lambda: [row["queues_running"] for row in running.show("vms")] == [1, 2])
        assert not_in_effect() == []
        to_a = FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, mac_number(MACS[0]))
        number = running.do(running.engine.contracts["lan"].set_filter, "x", DROP_QUEUE, Filter((to_a,), 5))
        assert not_in_effect() == [f"filter {number} of owner x (priority 5) takes all frames to {MACS[0]}"]
