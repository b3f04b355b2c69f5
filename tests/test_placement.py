# SPDX-License-Identifier: Apache-2.0
"""Which processors get workers and which serves which VM, on the hosts that people have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.config import AnyUplink, Config, Engine, Memory, Packet, Tap, Vm
from vmq.dataplane import state
from vmq.errors import ConfigError, HostError
from vmq.placement import (
    LANES_MAX,
    QUEUES_MAX,
    VMS_MAX,
    WORKERS_MAX,
    choose,
    devices,
    place,
    plan,
    vm_reaches,
)
from vmq.topology import Topology

TWO = Topology((0, 1), {0: (0,), 1: (1,)}, {0: 0, 1: 0})
ONE_CORE = Topology((0, 1), {0: (0, 1), 1: (0, 1)})
ADJACENT = Topology(
    tuple(range(8)), {cpu: (cpu & ~1, cpu | 1) for cpu in range(8)}, dict.fromkeys(range(8), 0)
)
DISTANT = Topology(tuple(range(16)), {cpu: (cpu % 8, cpu % 8 + 8) for cpu in range(16)})
UNKNOWN = Topology(tuple(range(16)))
NODES = Topology(
    tuple(range(16)),
    {cpu: (cpu,) for cpu in range(16)},
    {cpu: cpu // 8 for cpu in range(16)},
    nics={"eth0": 0, "eth1": 1},
)


def vm(number: int = 1, **keys: Any) -> Vm:
    return Vm(mac=(f"52:54:00:00:00:{number:02x}",), **keys)


def vms(*names: str, **keys: Any) -> dict[str, Vm]:
    return {name: vm(number, **keys) for number, name in enumerate(names)}


def config(
    uplinks: Mapping[str, AnyUplink] | None = None, processors: tuple[int, ...] | None = None, **ports: Vm
) -> Config:
    return Config(engine=Engine(processors=processors), uplinks=uplinks or {}, vms=ports)


def cpus(of: Config, topology: Topology, now: Mapping[str, int] | None = None) -> dict[str, int]:
    """Where the VMs are placed."""
    among = choose(of, topology).cpus
    return {name: one.cpu for name, one in place(of, among, topology, now).items()}


# --- processors of the engine -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "chosen", "why"),
    [
        (Topology((0,)), (0,), "chosen from 1 allowed"),
        (TWO, (1,), "chosen from 2 allowed: 2 - 1 left to the host = 1"),
        (ONE_CORE, (1,), "chosen from 2 allowed: 2 - 1 left to the host = 1"),
        (Topology((2, 3, 4)), (3, 4), "chosen from 3 allowed: 3 - 1 left to the host = 2"),
        (
            ADJACENT,
            (2, 4, 6),
            "chosen from 8 allowed: 8 - 2 left to the host - 3 second threads of a core = 3",
        ),
        (
            DISTANT,
            (1, 2, 3, 4),
            (
                "chosen from 16 allowed: 16 - 2 left to the host - 7 second threads of a core "
                "- 3 above 4, the most without processors in [engine] = 4"
            ),
        ),
        (
            UNKNOWN,
            (1, 2, 3, 4),
            "chosen from 16 allowed: 16 - 1 left to the host - 11 above 4, the most without processors in [engine] = 4",
        ),
    ],
)
def test_one_thread_a_core_and_not_the_hosts_core(topology: Topology, chosen: tuple[int, ...], why: str):
    """Processor 0 serves interrupts: never, unless there is no other."""
    found = choose(Config(), topology)
    assert (found.cpus, found.why) == (chosen, why)


@given(
    st.sets(st.integers(0, 31), min_size=1),
    st.sampled_from([1, 2, 4]),
    st.sets(st.integers(0, 31)),
    st.sampled_from([(), ("eth0",), ("eth1",), ("eth0", "eth1")]),
)
def test_the_formula_adds_up_and_no_core_is_taken_twice(
    allowed: set[int], threads: int, isolated: set[int], nics: tuple[str, ...]
):
    """Every allowed processor is chosen or left out for one reason, on any host."""
    step = 32 // threads
    topology = Topology(
        tuple(sorted(allowed)),
        {cpu: tuple(range(cpu % step, 32, step)) for cpu in allowed},
        {cpu: cpu // 16 for cpu in range(32)},
        frozenset(isolated),
        {"eth0": 0, "eth1": 1},
    )
    found = choose(config({device: Packet(device=device) for device in nics}), topology)
    left = [cpu for one in found.left for cpu in one.cpus]
    assert sorted((*found.cpus, *left)) == sorted(allowed)
    assert 1 <= len(found.cpus) <= 4
    assert len({topology.core(cpu) for cpu in found.cpus}) == len(found.cpus)
    assert found.why.endswith(f"= {len(found.cpus)}") or not found.left


def test_isolated_processors_come_first():
    """Who isolates processors and allows them to vmq means it to have them."""
    topology = Topology(tuple(range(16)), isolated=frozenset({10, 11, 40}))
    found = choose(Config(), topology)
    assert found.cpus == (10, 11)
    assert [(len(one.cpus), one.why) for one in found.left] == [
        (1, "left to the host"),
        (13, "not isolated, as others are"),
    ]


@pytest.mark.parametrize(
    ("uplinks", "chosen"),
    [
        ({"lan": Packet(device="eth0")}, (1, 2, 3, 4)),
        ({"lan": Packet(device="eth1")}, (8, 9, 10, 11)),
        ({"lan": Packet(device="eth0"), "san": Packet(device="eth1")}, (1, 2, 8, 9)),
        ({"lan": Packet(device="eth7")}, (1, 2, 3, 4)),
        ({"lan": Packet(device="eth0", numa_node=1)}, (8, 9, 10, 11)),
        ({"lan": Tap(device="t0", numa_node=1)}, (8, 9, 10, 11)),
    ],
)
def test_processors_are_chosen_near_the_nics(uplinks: dict[str, AnyUplink], chosen: tuple[int, ...]):
    """As numa_node says, else where the kernel says that the NIC is; each node in turn."""
    assert choose(config(uplinks), NODES).cpus == chosen


def test_a_nic_that_nothing_allowed_is_near_changes_nothing():
    topology = Topology(tuple(range(4)), nodes=NODES.nodes, nics=NODES.nics)
    assert choose(config({"lan": Packet(device="eth1")}), topology).cpus == (1, 2, 3)


def test_what_is_named_is_taken():
    """Of [engine], else of VMs and uplinks; the host's and second threads too, if the operator says so."""
    lan = {"lan": Memory(processors=(2, 3))}
    assert choose(config(lan, processors=(0, 1)), ADJACENT).cpus == (0, 1)
    assert choose(config(lan, a=vm(processor=0)), ADJACENT).cpus == (0, 2, 3)
    assert choose(config(lan), ADJACENT).why == "the processors that uplinks ask for"
    assert (
        choose(config(lan, a=vm(processor=0)), ADJACENT).why == "the processors that VMs and uplinks ask for"
    )
    assert choose(config(a=vm(processor=7)), ADJACENT).why == "the processors that VMs ask for"


def test_devices_are_those_whose_node_the_kernel_may_know():
    assert devices(config({"a": Packet(device="eth0"), "b": Tap(device="t0"), "c": Memory()})) == {
        "eth0",
        "t0",
    }


# --- processors of the VMs --------------------------------------------------------------------------------------


def test_vms_are_spread_evenly_in_the_order_of_the_file():
    of = config(None, None, **vms("a", "b", "c", "d", "e", "f", "g"))
    assert cpus(of, ADJACENT) == {"a": 2, "b": 4, "c": 6, "d": 2, "e": 4, "f": 6, "g": 2}


def test_who_has_the_least_choice_is_placed_first():
    """A VM that may go anywhere does not take the place of one that may not."""
    of = config(
        {"lan": Memory(processors=(4,))}, (2, 4), a=vm(1), b=vm(2, uplink="lan"), c=vm(3, processor=2)
    )
    assert cpus(of, ADJACENT) == {"a": 2, "b": 4, "c": 2}
    assert {name: one.why for name, one in place(of, (2, 4), ADJACENT).items()} == {
        "a": "the fewest VMs of 2,4",
        "b": "the only one, processors of [uplink.lan]",
        "c": "processor of [vm.c]",
    }


def test_a_vm_that_is_served_stays_where_it_is_while_it_may():
    """A reload moves nobody without need."""
    of = config(None, (2, 4), **vms("a", "b", "c"))
    assert cpus(of, ADJACENT, {"a": 4, "b": 4}) == {"a": 4, "b": 4, "c": 2}
    assert place(of, (2, 4), ADJACENT, {"a": 4})["a"].why == "it is served there already"
    assert cpus(of, ADJACENT, {"a": 6}) == {"a": 2, "b": 4, "c": 2}
    pinned = config({"lan": Memory(processors=(2,))}, (2, 4), a=vm(1, processor=2), b=vm(2, uplink="lan"))
    assert cpus(pinned, ADJACENT, {"a": 4, "b": 4}) == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("uplink", "expected", "why"),
    [
        (Packet(device="eth0"), 3, "the only one, on node 0 as eth0 is"),
        (Packet(device="eth1"), 9, "the fewest VMs of 9-10, on node 1 as eth1 is"),
        (Packet(device="eth7"), 3, "the fewest VMs of 3,9-10"),
        (
            Packet(device="eth0", numa_node=1),
            9,
            "the fewest VMs of 9-10, on node 1 as numa_node of [uplink.u] says",
        ),
        (Packet(device="eth1", processors=(3, 10)), 3, "the fewest VMs of 3,10, processors of [uplink.u]"),
        (
            Packet(device="eth0", processors=(3, 10), numa_node=1),
            10,
            "the only one, processors of [uplink.u], on node 1 as numa_node of [uplink.u] says",
        ),
    ],
)
def test_a_vm_is_served_near_its_uplink(uplink: AnyUplink, expected: int, why: str):
    """What the operator names goes before what the kernel says."""
    found = place(config({"u": uplink}, a=vm(uplink="u")), (3, 9, 10), NODES)
    assert (found["a"].cpu, found["a"].why) == (expected, why)


def test_a_vm_far_from_its_nic_is_served_all_the_same():
    found = place(config({"u": Packet(device="eth1")}, a=vm(uplink="u")), (3, 4), NODES)
    assert found["a"].cpu == 3


def test_on_one_node_nobody_speaks_of_nodes():
    topology = Topology((0, 1, 2), nodes={0: 0, 1: 0, 2: 0}, nics={"eth0": 0})
    of = config({"u": Packet(device="eth0")}, a=vm(uplink="u"))
    assert plan(of, topology).places["a"].why == "the fewest VMs of 1-2"
    assert "node" not in plan(of, topology).choice.why


# --- refusals ---------------------------------------------------------------------------------------------------


def test_processors_that_the_engine_does_not_have_are_refused():
    """A reload cannot add a worker."""
    with pytest.raises(ConfigError, match=r"^f: \[vm.a\] processor: 7 is not one of the engine's, 1-2"):
        place(config(a=vm(processor=7)), (1, 2), ADJACENT, where="f")
    uplinks = {"lan": Memory(processors=(2, 5, 6))}
    with pytest.raises(ConfigError, match=r"^\[uplink.lan\] processors: 5-6 is not among the engine's, 1-2"):
        place(config(uplinks), (1, 2), ADJACENT)


def test_a_node_without_processors_is_refused_with_those_that_there_are():
    of = config({"u": Memory(numa_node=3)}, (1, 2))
    with pytest.raises(HostError) as refused:
        plan(of, NODES, "f")
    assert str(refused.value) == (
        "f: [uplink.u] numa_node: none of the processors 1-2 is on node 3. "
        "Remedy: set numa_node to 0, or name processors of that node in [engine]"
    )
    with pytest.raises(HostError, match="leave numa_node out: the kernel names no nodes"):
        plan(of, UNKNOWN)


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (
            config(None, tuple(range(65))),
            r"\[engine\] processors: 65 processors, and an engine has at most 64",
        ),
        (config(None, (1,), **vms(*map(str, range(2049)), queue_pairs=1)), r"\[vm\]: too many VMs: 2049"),
        (config(None, (1,), **vms(*map(str, range(1025)))), r"\[vm\]: too many receive queues: 16400"),
        (
            config({str(number): Memory() for number in range(17)}, tuple(range(64))),
            r"\[uplink\]: too many lanes: 1088",
        ),
    ],
)
def test_an_engine_has_room_for_so_much(of: Config, words: str):
    """Said before anything starts, not when the last one is added."""
    with pytest.raises(ConfigError, match=words):
        plan(of, Topology(tuple(range(100))))


def test_the_room_is_that_of_the_rows():
    assert (WORKERS_MAX, VMS_MAX, QUEUES_MAX, LANES_MAX) == (
        state.MAX_WORKERS,
        state.MAX_VPORTS,
        state.MAX_QUEUES,
        state.MAX_LANES,
    )


# --- plans ------------------------------------------------------------------------------------------------------


def test_a_plan_says_who_shares_with_whom():
    found = plan(config(None, (2, 4), **vms("a", "b", "c")), ADJACENT)
    assert found.neighbours("a") == ["c"]
    assert found.neighbours("b") == []
    assert found.on(2) == ["a", "c"]


@given(st.lists(st.tuples(st.sampled_from([None, 2, 4, 6]), st.sampled_from([None, "x", "y"])), max_size=12))
def test_no_free_processor_is_passed_over(ports: list[tuple[int | None, str | None]]):
    """Where nobody is bound, the fullest processor has at most one VM more than the emptiest."""
    of = config(
        {"x": Memory(), "y": Memory()},
        (2, 4, 6),
        **{f"v{n}": vm(n, processor=cpu, uplink=uplink) for n, (cpu, uplink) in enumerate(ports)},
    )
    found = plan(of, ADJACENT)
    bound = {cpu: sum(one.processor == cpu for one in of.vms.values()) for cpu in (2, 4, 6)}
    load = {cpu: len(found.on(cpu)) for cpu in (2, 4, 6)}
    assert all(load[cpu] <= max(bound[cpu], min(load.values()) + 1) for cpu in load)
    assert list(found.places) == list(of.vms)


def test_a_vm_is_placed_where_it_may_be_and_may_go():
    """What moves VMs later asks the same function: the processors of a VM, and why only these."""
    of = config(
        {"lan": Packet(device="eth0", processors=(2, 3)), "wan": Packet(device="eth1")},
        tuple(range(16)),
        a=vm(1, uplink="lan"),
        b=vm(2, uplink="wan"),
        c=vm(3),
        d=vm(4, uplink="lan", processor=3),
    )
    reaches = vm_reaches(of, tuple(range(16)), NODES)

    assert {name: (reach.cpus, reach.why) for name, reach in reaches.items()} == {
        "a": ((2, 3), "processors of [uplink.lan]"),
        "b": (tuple(range(8, 16)), "on node 1 as eth1 is"),
        "c": (tuple(range(16)), ""),
        "d": ((3,), "processor of [vm.d]"),
    }
    assert all(cpu in reaches[name].cpus for name, cpu in cpus(of, NODES).items())
