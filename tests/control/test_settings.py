# SPDX-License-Identifier: Apache-2.0
"""Requested, effective, why: for every setting, read back from a running engine."""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from tests.engine.running import FIRST_CPU, MACS, NO_FRAMES, Running, frame, until
from vmq.abi.ethernet import mac_number
from vmq.cli.show import COLUMNS, text
from vmq.config import Config, Doctor, Engine, Memory, Packet, Pcap, Tap, Xdp, schema
from vmq.contract import DEFAULT_QUEUE, DROP_QUEUE
from vmq.control.settings import of_uplink
from vmq.doctor import Facts, Situation, rules_queues
from vmq.errors import VmqError
from vmq.filters import Field, FieldTest, Filter, Kind
from vmq.table import cell
from vmq.topology import read
from vmq.uplink import packet, tap, xdp
from vmq.uplink.base import setting
from vmq.uplink.pcapfile import CaptureWriter

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
    assert {row["of"] for row in rows} == {"engine", "doctor", "uplink lan", "vm a", "vm b", "vm c"}
    for row in rows:
        assert set(row) == {"of", "name", "requested", "effective", "why"}
        assert row["requested"] == row["effective"] or row["why"], row
    assert len({(row["of"], row["name"]) for row in rows}) == len(rows)
    for view, of, name in (("vms", "vm", "a"), ("uplinks", "uplink", "lan")):
        told = running.show(view, name)["settings"]
        assert {one["name"]: {"of": f"{of} {name}", **one} for one in told} == found(running, f"{of} {name}")


def test_processors_are_where_the_kernel_runs_their_threads(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    """A worker that taskset has moved is not where it was asked to be."""
    assert found(running, "vm a")["processor"]["effective"] == FIRST_CPU
    thread, affinity = running.engine.workers[0].thread_id, os.sched_getaffinity
    monkeypatch.setattr(os, "sched_getaffinity", lambda one: {900, 901} if one == thread else affinity(one))
    row = found(running, "vm a")["processor"]
    assert (row["requested"], row["effective"]) == (FIRST_CPU, "900-901")
    assert row["why"] == f"something outside of vmq moved its thread: it is that of processor {FIRST_CPU}"
    row = found(running, "engine")["processors"]
    assert (row["effective"], f"moved its thread: processor {FIRST_CPU}" in row["why"]) == ("900-901", True)
    assert running.show("processors")[0]["effective"] == [900, 901]


def test_a_client_that_holds_a_receive_queue_of_an_uplink_is_named(running: Running):
    contract = running.engine.contracts["lan"]
    running.do(running.engine.queues["lan"].limit, 2)
    running.do(running.engine.queues["lan"].give_up, running.engine.vms["a"], "a test")
    numbers = [running.do(contract.allocate, "backup", {"vm": "b"}) for _ in range(2)]
    assert "backup" not in found(running, "uplink lan")["queues"]["why"]
    running.do(contract.allocation_complete, "backup", numbers[:1])
    row = found(running, "uplink lan")["queues"]
    assert row["effective"] == sum(running.engine.queues["lan"].owns(running.engine.vms[one]) for one in "ab")
    assert row["why"].endswith(f"; 1 more: queue {numbers[0]} of backup")


def test_text_and_json_say_the_same(running: Running):
    """Cell for cell: none is cut, and none is in one of them only."""
    rows = running.show("settings")
    columns = COLUMNS["settings"].split()
    assert set(columns) == set(rows[0])
    lines = text("settings", rows).splitlines()
    cells = [re.split(" {2,}", line.strip()) for line in lines]
    assert cells == [columns, *([cell(row[name]) for name in columns] for row in rows)]


# --- no key of the configuration is missing ---------------------------------------------------------------------

NO_SETTING = {  # names and paths: what they are is what they say
    ("Engine", "api"): "the socket that is asked",
    ("Engine", "group"): "whose the sockets are",
    ("Vm", "socket"): "where it is; vmq show vms has it",
    **{(kind, "kind"): "which keys the table has" for kind in ("Tap", "Packet", "Xdp", "Pcap", "Memory")},
}
OF_ANOTHER_NAME = {("Vm", "mac"): "filters"}
NODE = read().nodes.get(FIRST_CPU)  # None: this host has no nodes, and would refuse one
UPLINK = {"mtu": 2000, "link_local": "forward", "processors": (FIRST_CPU,), "numa_node": NODE, "queues": 1}
OTHER: dict[
    str, dict[str, Any]
] = {  # for each key a value that is not its default; a key that is missing here fails
    "Engine": {
        "processors": (FIRST_CPU,),
        "guard": False,
        "placement": "dynamic",
        "placement_figures": "/nowhere/placement.json",
        "idle": "poll",
    },
    "Doctor": {
        "ignore": ("D13",),
        "wake_us": 1,
        "busy_percent": 1,
        "single_percent": 1,
        "drops_per_million": 1,
        "ring": 64,
        "busy_frames": 1,
        "idle_percent": 1,
        "every": 1,
    },
    "Memory": {**UPLINK, "size": 100, "flows": 2, "count": 8, "lossless": False},
    "Pcap": {**UPLINK, "read": "wire", "write": "out", "repeat": 2, "rate": 3_000_000, "lossless": False},
    "Vm": {
        "mode": "connect",
        "uplink": "lan",
        "mac": (MACS[5], MACS[6]),
        "vlan": 7,
        "learn": ("0e:fc:00:00:00:00/24",),
        "learn_max": 3,
        "qmp": "qmp.sock",
        "qmp_nic": "net0",
        "processor": FIRST_CPU,
        "queue_pairs": 2,
        "weight": 7,
        "overload": "hold",
        "overload_frames": 9,
        "placement": "direct",
        "nic_queue": 3,
        "indications": 3_000,
        "indication_frames": 5,
        "spoof_check": False,
        "storm_limit": 11,
        "accept": ("unknown",),
        "mtu": 1300,
    },
}


def keys_of(table: str) -> list[str]:
    """The keys of a table of the configuration that are settings, from its schema."""
    return [key for key in schema()["$defs"][table]["properties"] if (table, key) not in NO_SETTING]


def test_every_table_of_the_configuration_is_judged_here():
    tables = {table for table in schema()["$defs"] if table != "Config"}
    assert tables == {*OTHER, "Tap", "Packet", "Xdp"}
    assert all(key in schema()["$defs"][table]["properties"] for table, key in NO_SETTING)


@pytest.fixture
def changed(tmp_path: Path) -> Iterator[tuple[Running, dict[str, dict[str, dict[str, Any]]]]]:
    """An engine, and its rows table by table: all keys left out (by then gone), and each with another value."""
    wire, other_wire, out, qmp = (str(tmp_path / name) for name in ("wire", "other", "out", "qmp.sock"))
    for path in (wire, other_wire):
        with contextlib.closing(CaptureWriter(path)) as made:
            made.write(frame(MACS[0], MACS[1]))
    files = {"read": other_wire, "write": out}
    with Running(tmp_path) as one:
        plain = Config(
            uplinks={"lan": Memory(count=0), "file": Pcap(read=wire)},
            vms={"v": one.vm("v", 1, queue_pairs=16)},
        )
        other = Config(
            engine=Engine(**OTHER["Engine"]),
            doctor=Doctor(**OTHER["Doctor"]),
            uplinks={"lan": Memory(**OTHER["Memory"]), "file": Pcap(**OTHER["Pcap"] | files)},
            vms={"v": one.vm("v", 1, **OTHER["Vm"] | {"qmp": qmp})},
        )
        names = {
            "Engine": "engine",
            "Doctor": "doctor",
            "Memory": "uplink lan",
            "Pcap": "uplink file",
            "Vm": "vm v",
        }
        shown: dict[str, dict[str, dict[str, Any]]] = {}
        for when, config in (("before", plain), ("after", other)):
            one.do(one.engine.reconfigure, config)
            shown |= {f"{table} {when}": found(one, of) for table, of in names.items()}
        yield one, shown


def test_every_key_that_is_changed_is_another_setting(
    changed: tuple[Running, dict[str, dict[str, dict[str, Any]]]],
):
    """From the schema: a new key is missing in OTHER, or in the view, or its row does not follow it."""
    _, shown = changed
    for table, values in OTHER.items():
        before, after = shown[f"{table} before"], shown[f"{table} after"]
        assert set(keys_of(table)) == set(values), table
        for key in keys_of(table):
            name = OF_ANOTHER_NAME.get((table, key), key)
            assert {name} <= before.keys() & after.keys(), (table, key)
            if values[key] is not None:
                assert after[name]["requested"] != before[name]["requested"], (table, key)
        rows = [*before.values(), *after.values()]
        assert [row for row in rows if row["requested"] != row["effective"] and not row["why"]] == []


def test_what_is_changed_is_in_effect_as_it_was_asked_for(
    changed: tuple[Running, dict[str, dict[str, dict[str, Any]]]],
):
    """But for what the guest decides, and what one processor, one frame or one queue cannot."""
    _, shown = changed
    differ = {
        (table, name)
        for table in OTHER
        for name, row in shown[f"{table} after"].items()
        if row["requested"] != row["effective"]
    }
    assert differ == {
        ("Engine", "placement"),
        ("Engine", "placement_figures"),
        ("Vm", "placement"),
        ("Vm", "nic_queue"),
        ("Vm", "offloads"),
        ("Vm", "queue_pairs"),
        ("Vm", "qmp_nic"),
        ("Pcap", "queues"),
    }


@pytest.mark.parametrize("kinds", [[tap], [packet], [xdp, packet]])  # an xdp uplink is a packet uplink, too
def test_no_key_of_a_device_is_missing(
    running: Running, monkeypatch: pytest.MonkeyPatch, kinds: list[ModuleType]
):
    """What its kind reads back (its own tests open one, as root) and what is said of every uplink."""
    trees = [ast.parse(inspect.getsource(kind)) for kind in kinds]
    calls = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    names = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "setting"]
    told = [setting(str(one.value), None, None) for one in names if isinstance(one, ast.Constant)]
    table = {tap: Tap, packet: Packet, xdp: Xdp}[kinds[0]]
    opened = running.engine.uplinks["lan"]._replace(config=table(device="eth0"))
    monkeypatch.setitem(running.engine.uplinks, "lan", opened)
    rows = running.do(of_uplink, running.engine, "lan", {"settings": told})
    assert set(keys_of(table.__name__)) <= {row["name"] for row in rows}


def test_what_a_device_says_without_a_reason_gets_one(running: Running):
    """It was left out, or somebody else has changed the device."""
    told = [
        setting("mtu", None, 9000),
        setting("bridge", "br0", None),
        setting("promiscuous", False, True, "it must"),
    ]
    rows = {
        row["name"]: row["why"] for row in running.do(of_uplink, running.engine, "lan", {"settings": told})
    }
    assert rows["mtu"] == "left out: it is the device's own"
    assert rows["bridge"] == "something outside of vmq changed it after vmq had set it"
    assert rows["promiscuous"] == "it must"


def test_dynamic_placement_needs_a_second_processor(running: Running):
    running.do(running.engine.reconfigure, Config(engine=Engine(placement="dynamic")))
    row = found(running, "engine")["placement"]
    assert (row["requested"], row["effective"], row["why"]) == ("dynamic", "static", "there is one processor")


def test_a_reload_that_is_refused_leaves_the_doctor_as_he_was(running: Running, tmp_path: Path):
    """All keys of the old configuration stay in force, not only those of uplinks and VMs."""
    config = msgspec.structs.replace(running.engine.config, doctor=Doctor(every=7))
    running.do(running.engine.reconfigure, config)
    bad = msgspec.structs.replace(config, uplinks={"file": Pcap(read=str(tmp_path / "nothing"))})
    with pytest.raises(VmqError):
        running.do(running.engine.reconfigure, bad)
    assert found(running, "doctor")["every"]["effective"] == 7


def test_an_address_list_that_cannot_be_followed_is_not_in_effect(running: Running, tmp_path: Path):
    """While no front-end is connected there is nothing to follow, and nothing wrong."""
    path = str(tmp_path / "nobody.qmp")
    running.configure(a=running.vm("a", 1, qmp=path, qmp_nic="net0"))
    row = found(running, "vm a")["qmp"]
    assert (row["effective"], row["why"]) == (path, "followed while a front-end is connected")
    with running.guest("a"):
        until(lambda: found(running, "vm a")["qmp"]["effective"] is None)
        assert path in found(running, "vm a")["qmp"]["why"]


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
    """Two keys, each with a row of its own."""

    def row(vm: str, name: str) -> tuple[Any, Any, str]:
        one = found(running, f"vm {vm}")[name]
        return one["requested"], one["effective"], one["why"]

    assert row("a", "indications") == (1000, 1000, "")
    assert row("a", "indication_frames") == (0, 0, "")
    assert row("b", "indications") == (1000, 0, "it has no receive queue of its own")
    assert row("b", "indication_frames") == (32, 0, "it has no receive queue of its own")
    assert row("c", "indications") == (0, 0, "")


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
