# SPDX-License-Identifier: Apache-2.0
"""What a plan says: rows in the words of `vmq show`, capacity with its numbers, who shares and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.test_placement import ADJACENT, NODES, ONE_CORE, UNKNOWN, config, vm, vms
from vmq.cli.show import COLUMNS
from vmq.config import AnyUplink, Config, Memory, Packet, Tap, Vm, Xdp
from vmq.forecast import FAR_NIC, OVERLAP, TOO_FEW, forecast
from vmq.placement import plan
from vmq.topology import Topology


def told(of: Config, topology: Topology) -> dict[str, Any]:
    return forecast(of, topology, plan(of, topology))


def notes(of: Config, topology: Topology) -> list[tuple[str, str]]:
    """Code and subject of every note."""
    return [(note["code"], note["subject"]) for note in told(of, topology)["notes"]]


def note(of: Config, topology: Topology, code: str) -> dict[str, str]:
    """The first note of a code."""
    found: dict[str, str] = next(one for one in told(of, topology)["notes"] if one["code"] == code)
    return found


def test_a_row_has_the_words_of_show_and_says_why():
    of = config({"lan": Memory()}, (2, 4), a=vm(1, uplink="lan", vlan=7), b=vm(2, queue_pairs=1), c=vm(3))
    found = told(of, ADJACENT)
    assert found["vms"][0] == {
        "name": "a",
        "mac": ["52:54:00:00:00:01"],
        "vlan": 7,
        "uplink": "lan",
        "queue_pairs": 16,
        "processors": [2],
        "placement": {
            "requested": "switched",
            "effective": "switched",
            "why": "the engine writes the frames: nothing else is asked for",
        },
        "shares_with": ["c"],
        "why": "the fewest VMs of 2,4",
    }
    assert found["vms"][1]["placement"]["why"] == "its frames come from other VMs, so the engine writes them"
    assert found["processors"] == [
        {
            "cpu": 2,
            "node": 0,
            "core": [2, 3],
            "vms": 2,
            "names": ["a", "c"],
            "why": "processors in the configuration",
        },
        {
            "cpu": 4,
            "node": 0,
            "core": [4, 5],
            "vms": 1,
            "names": ["b"],
            "why": "processors in the configuration",
        },
    ]
    assert {"name", "mac", "vlan", "uplink", "processors"} <= set(COLUMNS["vms"].split()) & set(
        found["vms"][0]
    )
    assert {"cpu", "vms", "why"} <= set(COLUMNS["processors"].split()) & set(found["processors"][0])
    assert json.loads(json.dumps(found)) == found


def test_capacity_is_a_formula_with_its_numbers():
    """And of an uplink, where its VMs may not use all."""
    of = config(
        {"lan": Memory(processors=(2,)), "san": Memory()}, (2, 4), **vms("a", "b", uplink="lan"), c=vm(9)
    )
    assert told(of, ADJACENT)["capacity"] == [
        {"of": "engine", "processors": 2, "vms": 3, "why": "processors in the configuration"},
        {"of": "uplink lan", "processors": 1, "vms": 2, "why": "2: processors of [uplink.lan]"},
    ]
    found = told(Config(), ADJACENT)
    assert found["capacity"][0]["why"] == (
        "chosen from 8 allowed: 8 - 2 left to the host - 3 second threads of a core = 3"
    )
    assert found["left_out"] == [
        {"processors": [0, 1], "why": "left to the host"},
        {"processors": [3, 5, 7], "why": "second threads of a core"},
    ]


def test_d03_sets_that_overlap_are_not_added_up():
    """4 + 8 are 12 where they are apart, and less where they are not."""
    four, eight = tuple(range(1, 5)), tuple(range(4, 12))
    of = config({"a": Memory(processors=four), "b": Memory(processors=eight)}, tuple(range(1, 16)))
    assert note(of, UNKNOWN, "D03")["what"] == (
        f"1-4 and 4-11 overlap in 4: together 11 processors, not 12; {OVERLAP}"
    )
    apart = config({"a": Memory(processors=four), "b": Memory(processors=eight[1:])}, tuple(range(1, 16)))
    assert notes(apart, UNKNOWN) == []


@pytest.mark.parametrize(
    ("topology", "asked", "found", "remedy"),
    [
        (ADJACENT, (0, 2), [("D04", "processor 0")], "name others in processors of [engine]: 2,4,6"),
        (ADJACENT, (1, 2), [("D04", "processor 1")], "name others in processors of [engine]: 2,4,6"),
        (Topology((0,)), None, [("D04", "processor 0")], "none: this host has no other core for vmq"),
        (ONE_CORE, None, [("D04", "processor 1")], "none: this host has no other core for vmq"),
        (ADJACENT, None, [], ""),
        (Topology((4, 5, 6)), None, [], ""),
    ],
)
def test_d04_a_worker_beside_the_hosts_interrupts(
    topology: Topology, asked: tuple[int, ...] | None, found: list[tuple[str, str]], remedy: str
):
    of = config(None, asked)
    assert notes(of, topology) == found
    if found:
        assert note(of, topology, "D04")["remedy"] == remedy


def test_d05_two_workers_on_one_core():
    """By the kernel's lists, not by odd and even."""
    of = config(None, (2, 3, 4))
    assert notes(of, ADJACENT) == [("D05", "processors 2-3")]
    assert notes(of, UNKNOWN) == []


@pytest.mark.parametrize(
    ("ports", "share"),
    [
        (vms("a", "b"), "each gets 1 burst of 2"),
        ({"a": vm(1), "b": vm(2, queue_pairs=1)}, "b gets 1 burst of 17"),
        (
            {"a": vm(1), "b": vm(2, queue_pairs=4), "c": vm(3, queue_pairs=4)},
            "each of b, c gets 4 bursts of 24",
        ),
    ],
)
def test_d08_who_shares_a_processor_and_what_is_left_for_each(ports: dict[str, Vm], share: str):
    """A round takes one burst from every queue pair that a guest runs."""
    found = note(config(None, (2,), **ports), ADJACENT, "D08")
    assert found["subject"] == "processor 2"
    assert found["what"] == (
        f"{', '.join(ports)} share it: when all are busy in all their queue pairs, {share}"
    )


LAN = {"lan": Memory(processors=(2,))}
BOUND = {"a": vm(1, processor=2), "b": vm(2, processor=2)}


@pytest.mark.parametrize(
    ("uplinks", "asked", "ports", "remedy"),
    [
        ({}, (2,), vms("a", "b"), 'set processors = "2,4,6" in [engine]'),
        ({}, None, vms("a", "b", "c", "d"), "none: this host has no other core for vmq"),
        (
            LAN,
            (2, 4),
            vms("a", "b", uplink="lan"),
            "processor 4 has no VM: name it in processors of [uplink.lan]",
        ),
        ({}, (2, 4), BOUND, "processor 4 has no VM: leave out processor of [vm.b]"),
    ],
)
def test_d08_the_remedy_is_one_that_helps(
    uplinks: Mapping[str, AnyUplink], asked: tuple[int, ...] | None, ports: dict[str, Vm], remedy: str
):
    """Idle processors first, then free cores, then none."""
    assert note(config(uplinks, asked, **ports), ADJACENT, "D08")["remedy"] == remedy


def test_d08_an_idle_processor_of_another_node_needs_other_keys():
    of = config({"u": Memory(numa_node=0)}, (2, 9), **vms("a", "b", uplink="u"))
    remedy = "processor 9 has no VM: name it in processors of [uplink.u], without numa_node"
    assert note(of, NODES, "D08")["remedy"] == remedy


@pytest.mark.parametrize(
    ("asked", "port", "remedy"),
    [
        ((2, 3), vm(uplink="u"), "name in processors of [engine] one of 8-15"),
        ((2, 9), vm(uplink="u", processor=2), "name in processor of [vm.a] one of 8-15"),
    ],
)
def test_d14_a_processor_far_from_the_nic(asked: tuple[int, ...], port: Vm, remedy: str):
    of = config({"u": Packet(device="eth1")}, asked, a=port)
    found = note(of, NODES, "D14")
    assert (
        found["what"] == "processor 2 is on node 0, and the frames of uplink u come from node 1: " + FAR_NIC
    )
    assert found["remedy"] == remedy


def test_d14_what_nobody_can_know_is_said():
    """On one node there is no near and far; a NIC of an unknown node is no finding."""
    near = config({"u": Packet(device="eth1")}, (8,), a=vm(uplink="u"))
    assert notes(near, NODES) == [("D14", "guest memory")]
    assert notes(config({"u": Packet(device="eth7")}, (2,), a=vm(uplink="u")), NODES) == [
        ("D14", "guest memory")
    ]
    assert notes(config(None, (2,), a=vm()), ADJACENT) == []
    allowed_elsewhere = Topology((0, 1), nodes=NODES.nodes, nics=NODES.nics)
    of = config({"u": Packet(device="eth1")}, (1,), a=vm(uplink="u"))
    assert note(of, allowed_elsewhere, "D14")["remedy"] == "none: vmq may use nothing of node 1"


def test_who_goes_without_a_receive_queue_is_named():
    """By weight, then in the order of the file; weight 0 asks for none, and other uplinks have their own."""
    ports = {
        "a": vm(1, uplink="lan", weight=10),
        "b": vm(2, uplink="lan"),
        "c": vm(3, uplink="lan"),
        "d": vm(4, uplink="lan", weight=0),
        "e": vm(5, uplink="wan"),
    }
    of = config({"lan": Memory(queues=2), "wan": Memory()}, tuple(range(5)), **ports)
    assert [one for one in told(of, UNKNOWN)["notes"] if one["subject"].startswith("uplink")] == [
        {
            "code": "D08",
            "subject": "uplink lan",
            "what": (
                f"{TOO_FEW}. 2 of 3 VMs at a time; without traffic a has none, by weight and then by order"
            ),
            "remedy": "set queues = 3 in [uplink.lan], or leave it out",
        }
    ]
    enough = config({"lan": Memory(queues=3), "wan": Memory()}, tuple(range(5)), **ports)
    assert not [one for one in told(enough, UNKNOWN)["notes"] if one["subject"].startswith("uplink")]


@pytest.mark.parametrize(
    ("uplink", "asked", "effective", "why"),
    [
        (Xdp(device="eth1"), "direct", "direct", "nothing is in the way"),
        (Tap(device="tap1"), "auto", "auto", "nothing is in the way"),
        (Xdp(device="eth1"), "switched", "switched", "nothing else is asked for"),
        (Memory(), "direct", "switched", "kind memory has no way"),
    ],
)
def test_who_is_to_write_frames_is_told(uplink: AnyUplink, asked: str, effective: str, why: str) -> None:
    of = config({"lan": uplink}, (2, 4), a=vm(1, uplink="lan", placement=asked))
    found = told(of, ADJACENT)["vms"][0]["placement"]
    assert (found["requested"], found["effective"]) == (asked, effective)
    assert why in found["why"]
