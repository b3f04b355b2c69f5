# SPDX-License-Identifier: Apache-2.0
"""Which processors get a worker, and which of them serves the receive queues of which VM: rules, and no I/O.

    configuration ─┐            choose: the engine's processors        place: the one of each VM port
                   ├──► plan ── those that are named, or one thread ── its own `processor`, or among those that its
    topology ──────┘            a core, not the host's, near the NICs  uplink allows the one with the fewest VMs

The engine does what is decided here, and `vmq plan` prints it without an engine: the same functions, so the same
answer. Every choice carries its reason in words; what was left out carries one too, and the counts of all reasons
add up: that sum is the formula of capacity.

VMs with the least choice are placed first, so that one with more does not take their place. A VM that is served
already stays where it is while it may. What the operator names is done or refused, never bent; what the kernel
says (the node of a NIC) is preferred, and given up where no processor of the engine is near.

All receive queues of a VM port are served by one processor. (Who writes the payload, which the glossary calls
placement, is another question; forecast.py answers it.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from vmq.config import AnyUplink, Config, Packet, Tap, Vm, cpu_text
from vmq.errors import ConfigError, HostError
from vmq.topology import Topology

BY_DEFAULT = (
    4  # processors that vmq takes unasked: for politeness, not measured; processors of [engine] says more
)
# What an engine has room for: MAX_… of dataplane/state.py, which the command line has no time to import.
WORKERS_MAX, VMS_MAX, QUEUES_MAX, LANES_MAX = 64, 2048, 16384, 1024


@dataclass(frozen=True, slots=True)
class Left:
    """Processors that get no worker, and why."""

    cpus: tuple[int, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The processors of the workers, why these, and why no others."""

    cpus: tuple[int, ...]
    why: str
    left: tuple[Left, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """The processor of a VM port, and why this one."""

    cpu: int
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Who will be where."""

    choice: Choice
    places: Mapping[str, Place]

    def neighbours(self, name: str) -> list[str]:
        """The VMs that share the processor of a VM."""
        cpu = self.places[name].cpu
        return [other for other in self.on(cpu) if other != name]

    def on(self, cpu: int) -> list[str]:
        """The VMs of a processor."""
        return [name for name, place in self.places.items() if place.cpu == cpu]


def plan(config: Config, topology: Topology, where: str = "") -> Plan:
    """What an engine that starts with this configuration on this host does. ConfigError: it would refuse."""
    choice = choose(config, topology, where)
    return Plan(choice, place(config, choice.cpus, topology, where=where))


# --- processors of the engine ------------------------------------------------------------------------------------


def choose(config: Config, topology: Topology, where: str = "") -> Choice:
    """The processors that get a worker: those that are named, else as many as are good for the uplinks."""
    if config.engine.processors is not None:
        _check_workers(config.engine.processors, where)
        return Choice(config.engine.processors, "processors in the configuration")
    by_vms = {vm.processor for vm in config.vms.values() if vm.processor is not None}
    by_uplinks = {cpu for uplink in config.uplinks.values() for cpu in uplink.processors or ()}
    if by_vms or by_uplinks:
        _check_workers(by_vms | by_uplinks, where)
        who = " and ".join(noun for noun, named in (("VMs", by_vms), ("uplinks", by_uplinks)) if named)
        return Choice(tuple(sorted(by_vms | by_uplinks)), f"the processors that {who} ask for")
    return _among_allowed(config, topology)


def _check_workers(cpus: Collection[int], where: str) -> None:
    if len(cpus) > WORKERS_MAX:
        raise ConfigError(
            f"{_prefix(where)}[engine] processors",
            f"{len(cpus)} processors, and an engine has at most {WORKERS_MAX}",
            "name fewer, or run a second engine for some of the VMs",
        )


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""


def devices(config: Config) -> set[str]:
    """The network devices of the uplinks, whose nodes matter."""
    return {uplink.device for uplink in config.uplinks.values() if isinstance(uplink, Tap | Packet)}


def free_cores(topology: Topology) -> tuple[tuple[int, ...], tuple[Left, ...]]:
    """One processor of each core that is not the host's, and those left out.

    The first core is the host's: interrupts come there unless somebody moved them, and vmq's control thread and
    whatever else runs needs a place that no worker is pinned to. Two threads of a core share its execution units:
    a second worker there takes from the first what it gains.
    """
    first = topology.allowed[0]
    host = [cpu for cpu in topology.allowed if cpu in topology.core(first)]
    if len(host) == len(topology.allowed):
        host = [first] if len(host) > 1 else []
    rest = [cpu for cpu in topology.allowed if cpu not in host]
    ahead = {cpu: min(set(topology.core(cpu)) & set(rest)) for cpu in rest}
    kept = tuple(cpu for cpu in rest if ahead[cpu] == cpu)
    left = (
        Left(tuple(host), "left to the host"),
        Left(tuple(cpu for cpu in rest if ahead[cpu] != cpu), "second threads of a core"),
    )
    return kept, left


def _among_allowed(config: Config, topology: Topology) -> Choice:
    kept, left = free_cores(topology)
    quiet = tuple(cpu for cpu in kept if cpu in topology.isolated) or kept
    wanted = {node for uplink in config.uplinks.values() if (node := node_of(uplink, topology)) is not None}
    near = tuple(cpu for cpu in quiet if topology.nodes.get(cpu) in wanted)
    most = max(BY_DEFAULT, len(wanted))
    chosen = _spread(near, topology, most) if near else quiet[:most]
    nodes = cpu_text(wanted)
    left += (
        Left(_without(kept, quiet), "not isolated, as others are"),
        Left(_without(quiet, near or quiet), f"far from node {nodes} of the uplinks"),
        Left(_without(near or quiet, chosen), f"above {most}, the most without processors in [engine]"),
    )
    left = tuple(one for one in left if one.cpus)
    less = "".join(f" - {len(one.cpus)} {one.why}" for one in left)
    why = f"chosen from {len(topology.allowed)} allowed"
    return Choice(chosen, f"{why}: {len(topology.allowed)}{less} = {len(chosen)}" if left else why, left)


def _spread(cpus: tuple[int, ...], topology: Topology, most: int) -> tuple[int, ...]:
    """At most so many, the nodes in turn."""
    turns: dict[int, int] = {}
    seen: dict[int, int] = {}
    for cpu in cpus:
        node = topology.nodes[cpu]
        turns[cpu] = seen[node] = seen.get(node, -1) + 1
    return tuple(sorted(sorted(cpus, key=lambda cpu: (turns[cpu], cpu))[:most]))


def _without(cpus: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(cpu for cpu in cpus if cpu not in others)


def node_of(uplink: AnyUplink | None, topology: Topology) -> int | None:
    """The node that the frames of an uplink come from: as configured, else where its NIC stands; None if unknown."""
    if uplink is None:
        return None
    if uplink.numa_node is not None:
        return uplink.numa_node
    return topology.nics.get(getattr(uplink, "device", ""))


# --- processors of the VMs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reach:
    """The processors that may serve a VM, and why only these; empty words: all of the engine's."""

    cpus: tuple[int, ...]
    why: str = ""


def place(
    config: Config,
    cpus: tuple[int, ...],
    topology: Topology,
    now: Mapping[str, int] | None = None,
    where: str = "",
) -> dict[str, Place]:
    """The processor of every VM of a configuration, among the engine's `cpus`; in the order of the file.

    `now` are the processors of VMs that are served already. ConfigError names its key behind `where`.
    """
    _check_room(config, cpus, _prefix(where))
    reaches = vm_reaches(config, cpus, topology, where)
    load = dict.fromkeys(cpus, 0)
    found: dict[str, Place] = {}
    open_: list[tuple[str, Reach]] = []
    for name, vm in config.vms.items():
        reach, stays = reaches[name], (now or {}).get(name)
        if vm.processor is not None:
            found[name] = Place(vm.processor, reach.why)
        elif stays in reach.cpus:
            found[name] = Place(stays, "it is served there already")
        else:
            open_.append((name, reach))
            continue
        load[found[name].cpu] += 1
    for name, reach in sorted(open_, key=lambda one: len(one[1].cpus)):
        cpu = min(reach.cpus, key=lambda cpu: (load[cpu], cpu))
        found[name] = Place(cpu, _reason(reach))
        load[cpu] += 1
    return {name: found[name] for name in config.vms}


def vm_reaches(
    config: Config, cpus: tuple[int, ...], topology: Topology, where: str = ""
) -> dict[str, Reach]:
    """The processors that may serve each VM: the one that it names, else those of its uplink, else all."""
    prefix = _prefix(where)
    of_uplink = {name: reach_of(name, config, cpus, topology, prefix) for name in config.uplinks}
    reaches = {name: of_uplink.get(vm.uplink or "", Reach(cpus)) for name, vm in config.vms.items()}
    for name, vm in config.vms.items():
        if vm.processor is not None:
            _check_processor(name, vm, cpus, prefix)
            reaches[name] = Reach((vm.processor,), f"processor of [vm.{name}]")
    return reaches


def _check_room(config: Config, cpus: tuple[int, ...], prefix: str) -> None:
    """What an engine has room for, before anything is changed."""
    asked = (
        ("[vm]", "VMs", len(config.vms), VMS_MAX, "run a second engine for some of them"),
        (
            "[vm]",
            "receive queues",
            sum(vm.queue_pairs for vm in config.vms.values()),
            QUEUES_MAX,
            "lower queue_pairs of VMs to what their guests use",
        ),
        ("[uplink]", "lanes", len(config.uplinks) * len(cpus), LANES_MAX, "name fewer processors or uplinks"),
    )
    for place, noun, count, most, remedy in asked:
        if count > most:
            raise ConfigError(
                f"{prefix}{place}", f"too many {noun}: {count}", f"at most {most} are served: {remedy}"
            )


def _reason(reach: Reach) -> str:
    fewest = "the only one" if len(reach.cpus) == 1 else f"the fewest VMs of {cpu_text(reach.cpus)}"
    return f"{fewest}, {reach.why}" if reach.why else fewest


def _check_processor(name: str, vm: Vm, cpus: tuple[int, ...], prefix: str) -> None:
    if vm.processor not in cpus:
        raise ConfigError(
            f"{prefix}[vm.{name}] processor",
            f"{vm.processor} is not one of the engine's, {cpu_text(cpus)}",
            "name one of those, or restart vmq",
        )


def reach_of(name: str, config: Config, cpus: tuple[int, ...], topology: Topology, prefix: str = "") -> Reach:
    """Those of the engine's `cpus` that may serve the VMs of an uplink."""
    uplink, reach, words = config.uplinks[name], cpus, list[str]()
    if uplink.processors is not None:
        foreign = _without(uplink.processors, cpus)
        if foreign:
            raise ConfigError(
                f"{prefix}[uplink.{name}] processors",
                f"{cpu_text(foreign)} is not among the engine's, {cpu_text(cpus)}",
                "name some of those, or restart vmq",
            )
        reach = uplink.processors
        words.append(f"processors of [uplink.{name}]")
    node = node_of(uplink, topology)
    near = tuple(cpu for cpu in reach if node is not None and topology.nodes.get(cpu) == node)
    if uplink.numa_node is not None:
        if not near:
            raise HostError(
                f"{prefix}[uplink.{name}] numa_node",
                f"none of the processors {cpu_text(reach)} is on node {node}",
                _nodes_there_are(reach, topology),
            )
        words.append(f"on node {node} as numa_node of [uplink.{name}] says")
    elif uplink.processors is None and near and topology.several_nodes:
        words.append(f"on node {node} as {getattr(uplink, 'device', '')} is")
    else:
        near = reach
    return Reach(near, ", ".join(words))


def _nodes_there_are(cpus: tuple[int, ...], topology: Topology) -> str:
    known = {topology.nodes[cpu] for cpu in cpus if cpu in topology.nodes}
    if not known:
        return "leave numa_node out: the kernel names no nodes"
    return f"set numa_node to {cpu_text(known)}, or name processors of that node in [engine]"
