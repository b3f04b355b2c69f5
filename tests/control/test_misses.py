# SPDX-License-Identifier: Apache-2.0
"""Near misses, in words: each kind with its count and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.running import MACS, NO_FRAMES, Running, frame, until
from vmq.abi.ethernet import mac_number
from vmq.control.explain import explain
from vmq.control.misses import misses, of_vm
from vmq.dataplane import state
from vmq.engine.queues import address_filter

NOBODY = "52:54:00:00:00:99"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path) as one:
        one.configure(
            {"lan": NO_FRAMES}, a=one.vm("a", 1), b=one.vm("b", 2, vlan=7), c=one.vm("c", 3, uplink="lan")
        )
        yield one


def test_each_kind_of_miss_has_a_row_with_its_remedy(running: Running) -> None:
    with running.guest("a") as a:
        a.send([frame(MACS[1], a.mac)] * 2 + [frame(NOBODY, a.mac)] * 3 + [frame(MACS[1], NOBODY)])
        assert a.sent()
        until(lambda: running.show("vms", "a")["drops"] == {"no_filter": 5, "from_guest_spoofed": 1})
    rows = {row["kind"]: row for row in running.do(misses, running.engine)}
    assert rows["wrong_vlan"] == {
        "kind": "wrong_vlan", "vm": "b", "uplink": None, "mac": MACS[1], "vlan": None, "count": 2, "filters": [],
        "remedy": "leave vlan out of [vm.b], or send in VLAN 7",
    }  # fmt: skip
    assert (rows["unknown_mac"]["mac"], rows["unknown_mac"]["count"], rows["unknown_mac"]["vm"]) == (
        NOBODY,
        3,
        None,
    )
    assert (rows["spoofed_source"]["vm"], rows["spoofed_source"]["mac"], rows["spoofed_source"]["count"]) == (
        "a",
        NOBODY,
        1,
    )
    assert "duplicate_mac" not in rows


def test_an_address_of_a_client_s_filter_in_another_vlan_is_no_stranger(running: Running) -> None:
    """The row is that of the VM whose receive queue it leads to; the remedy names the filter and its receive queue."""
    running.configure(a=running.vm("a", 1), b=running.vm("b", 2, queue_pairs=2), d=running.vm("d", 4, vlan=9))
    contract = running.engine.contracts[""]
    queue = running.do(contract.allocate, "x", {"vm": "b"})
    number = running.do(contract.set_filter, "x", queue, address_filter(mac_number(NOBODY), 7))
    running.do(contract.allocation_complete, "x", [queue])
    rows = running.engine.workers[0].strangers
    rows[0] = (mac_number(NOBODY), 7, state.NONE, 5)  # from before that filter was set
    words = f"filter {number} of x, receive queue {queue}, waits for {NOBODY} in VLAN 7"
    with running.guest("a") as a, running.guest("d") as d:
        a.send([frame(NOBODY, a.mac)] * 3)
        until(lambda: running.show("vms", "a")["drops"] == {"no_filter": 3})
        assert running.do(misses, running.engine) == [
            {
                "kind": "filter_vlan", "vm": "b", "uplink": None, "mac": NOBODY, "vlan": None, "count": 3,
                "filters": [words], "remedy": f"set that filter untagged: {words}",
            }
        ]  # fmt: skip
        d.send([frame(NOBODY, d.mac)])
        until(lambda: running.show("vms", "d")["drops"] == {"no_filter": 1})
    told = running.do(explain, running.engine, {"mac": NOBODY, "source": "a"})
    assert f"near miss: {words}" in told["steps"]
    (row,) = running.do(misses, running.engine)
    assert (row["kind"], row["mac"], row["vlan"], row["filters"]) == ("wrong_vlan", MACS[1], 9, [words])
    assert (
        row["remedy"] == f"set vlan = 9 for [vm.b], or send untagged; or set that filter in VLAN 9: {words}"
    )


def test_a_remedy_that_holds_already_is_none(running: Running) -> None:
    """The filter whose frames came untagged is gone, and the VM's own addresses wait for untagged frames."""
    running.configure(a=running.vm("a", 1), b=running.vm("b", 2, queue_pairs=2))
    contract = running.engine.contracts[""]
    queue = running.do(contract.allocate, "x", {"vm": "b"})
    number = running.do(contract.set_filter, "x", queue, address_filter(mac_number(NOBODY), 7))
    running.do(contract.allocation_complete, "x", [queue])
    with running.guest("a") as a:
        a.send([frame(NOBODY, a.mac)])
        until(lambda: [row["kind"] for row in running.do(misses, running.engine)] == ["filter_vlan"])
        running.do(contract.clear_filter, "x", number)
        assert running.do(misses, running.engine) == []


def test_counts_of_all_processors_are_added_up_and_the_last_vlan_is_of_the_one_that_saw_most(
    running: Running,
) -> None:
    vm = running.engine.vms["c"]
    row = running.engine.workers[0].misses[vm.number]
    row["wrong_vlan"], row["seen_vlan"], row["duplicate"] = 4, 12, 9
    assert of_vm(vm) == (4, 12, 9)
    rows = {one["kind"]: one for one in running.do(misses, running.engine)}
    assert rows["wrong_vlan"]["remedy"] == "set vlan = 12 for [vm.c], or send untagged"
    assert (rows["duplicate_mac"]["count"], rows["duplicate_mac"]["uplink"]) == (9, "lan")


def test_explain_uses_them(running: Running) -> None:
    """Why does my VM get nothing."""
    vm = running.engine.vms["c"]
    row = running.engine.workers[0].misses[vm.number]
    row["wrong_vlan"], row["seen_vlan"], row["duplicate"] = 4, 12, 9
    told = running.do(explain, running.engine, {"mac": MACS[2], "vlan": 12, "uplink": "lan"})
    assert "so far 4 frames to c came so, the last in VLAN 12" in told["steps"]
    told = running.do(explain, running.engine, {"mac": MACS[2], "uplink": "lan"})
    assert "VM c: somebody on the wire sends from its address, 9 frames so far" in told["steps"]


def test_an_address_that_somebody_has_by_now_or_whose_uplink_is_gone_is_no_stranger(running: Running) -> None:
    rows = running.engine.workers[0].strangers
    number = running.engine.uplink_number("lan")
    rows[0] = (mac_number(NOBODY), 0, number, 7)
    rows[1] = (mac_number(MACS[2]), 0, number, 9)
    assert [(row["mac"], row["count"]) for row in running.do(misses, running.engine)] == [(NOBODY, 7)]
    running.configure(a=running.vm("a", 1))
    assert running.do(misses, running.engine) == []


def test_a_new_vm_begins_without_misses(running: Running) -> None:
    vm = running.engine.vms["c"]
    running.engine.workers[0].misses[vm.number]["wrong_vlan"] = 4
    running.configure({"lan": NO_FRAMES}, a=running.vm("a", 1))
    running.configure({"lan": NO_FRAMES}, a=running.vm("a", 1), c=running.vm("c", 3, uplink="lan"))
    assert of_vm(running.engine.vms["c"]) == (0, 0, 0)
