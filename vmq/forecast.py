# SPDX-License-Identifier: Apache-2.0
"""What `vmq plan` says of a plan: a row for each VM and processor, the capacity with its numbers, who shares and why.

The words are those of `vmq show`, so that the two can be compared: a VM's `processors`, a processor's `vms` and
`why`. Placement has what was requested, what will be in effect and why.

A note is a finding that needs no running engine. Its code is that of the same misconfiguration in NDIS VMQ:

    D03  capacity added up although sets of processors overlap     D08  more VMs than processors: some share
    D04  a worker on the processor of the host's interrupts         D14  a processor far from the NIC, or from what
    D05  two workers on threads of one core                              nobody can know yet: the guest's memory

Receive queues of their own are scarce where an uplink's `queues` says so; else what is scarce is turns of a
processor. In each round a worker takes one burst from every queue pair that a guest runs: its share is counted in
queue pairs. docs/processors.md tells it with examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from vmq.config import Config, Vm, cpu_text
from vmq.dynamic import first_holders
from vmq.placement import Plan, Reach, free_cores, node_of, reach_of
from vmq.topology import Topology

Row = dict[str, Any]

# Why a note matters: vmq doctor says the same of the same, in these words.
DIRECT = ("xdp", "tap")  # kinds of uplinks with a way for each VM
OVERLAP = "each takes time from the other, unpredictably"
HOSTS_CORE = "a worker that is busy takes the processor away from the host's own work, and waits for it"
ONE_CORE = "two workers on one physical core have the speed of little more than one"
FAR_NIC = "every frame crosses between NUMA nodes on its way from the NIC to the worker"
TOO_FEW = (
    "fewer VMs can have a receive queue of their own than ask for one: the default queue serves the others"
)


@dataclass(frozen=True, slots=True)
class Note:
    """Something that works and could work better, or that nobody can see from here."""

    code: str
    subject: str
    what: str
    remedy: str


def forecast(config: Config, topology: Topology, plan: Plan) -> dict[str, list[Row]]:
    """Everything that `vmq plan` prints."""
    return {
        "vms": [vm_row(name, config, plan) for name in config.vms],
        "processors": [processor_row(cpu, topology, plan) for cpu in plan.choice.cpus],
        "left_out": [{"processors": list(left.cpus), "why": left.why} for left in plan.choice.left],
        "capacity": list(capacity(config, topology, plan)),
        "notes": [asdict(note) for note in notes(config, topology, plan)],
    }


def vm_row(name: str, config: Config, plan: Plan) -> Row:
    """One VM port."""
    vm, place = config.vms[name], plan.places[name]
    return {
        "name": name,
        "mac": list(vm.mac),
        "vlan": vm.vlan,
        "uplink": vm.uplink,
        "queue_pairs": vm.queue_pairs,
        "processors": [place.cpu],
        "placement": placement(config, vm),
        "shares_with": plan.neighbours(name),
        "why": place.why,
    }


def placement(config: Config, vm: Vm) -> Row:
    """Who is to write the payload to guest memory; whether the kernel can is seen when it runs."""
    asked = vm.placement
    kind = config.uplinks[vm.uplink].kind if vm.uplink is not None else None
    if kind is None:
        why = "its frames come from other VMs, so the engine writes them"
    elif asked == "switched":
        why = "the engine writes the frames: nothing else is asked for"
    elif kind in DIRECT:
        why = "the kernel writes the frames where nothing is in the way: vmq show settings says what is"
        return {"requested": asked, "effective": asked, "why": why}
    else:
        why = f"an uplink of kind {kind} has no way for each VM, so the engine writes the frames"
    return {"requested": asked, "effective": "switched", "why": why}


def processor_row(cpu: int, topology: Topology, plan: Plan) -> Row:
    """One processor of the engine."""
    names = plan.on(cpu)
    return {
        "cpu": cpu,
        "node": topology.nodes.get(cpu),
        "core": list(topology.core(cpu)),
        "vms": len(names),
        "names": names,
        "why": plan.choice.why,
    }


# --- capacity ----------------------------------------------------------------------------------------------------


def capacity(config: Config, topology: Topology, plan: Plan) -> Iterator[Row]:
    """How many VMs can have a processor of their own: all of them, and of an uplink where it may not use all."""
    count = len(plan.choice.cpus)
    why = plan.choice.why
    yield {"of": "engine", "processors": count, "vms": len(config.vms), "why": why}
    for name, reach in _narrow(config, topology, plan).items():
        vms = sum(vm.uplink == name for vm in config.vms.values())
        why = f"{cpu_text(reach.cpus)}: {reach.why}"
        yield {"of": f"uplink {name}", "processors": len(reach.cpus), "vms": vms, "why": why}


def _narrow(config: Config, topology: Topology, plan: Plan) -> dict[str, Reach]:
    """The uplinks whose VMs may not use all processors of the engine."""
    cpus = plan.choice.cpus
    reaches = {name: reach_of(name, config, cpus, topology) for name in config.uplinks}
    return {name: reach for name, reach in reaches.items() if len(reach.cpus) < len(cpus)}


# --- notes -------------------------------------------------------------------------------------------------------


def notes(config: Config, topology: Topology, plan: Plan) -> Iterator[Note]:
    """Who shares or waits, and why; what could be better; what is unknown."""
    yield from _overlaps(config, topology, plan)
    yield from _on_the_hosts_core(topology, plan)
    yield from _on_one_core(topology, plan)
    yield from _shared(config, topology, plan)
    yield from _without_queue(config)
    yield from _far(config, topology, plan)
    if topology.several_nodes and config.vms:
        yield Note(
            "D14",
            "guest memory",
            "its node is unknown before the guest has touched it",
            "bind it to the node of the VM's processor: host-nodes=NODE,policy=bind on QEMU's memory backend",
        )


def _overlaps(config: Config, topology: Topology, plan: Plan) -> Iterator[Note]:
    for (one, first), (two, second) in combinations(_narrow(config, topology, plan).items(), 2):
        both = set(first.cpus) & set(second.cpus)
        if both:
            total = len(set(first.cpus) | set(second.cpus))
            yield Note(
                "D03",
                f"uplinks {one} and {two}",
                f"{cpu_text(first.cpus)} and {cpu_text(second.cpus)} overlap in {cpu_text(both)}: "
                f"together {total} processors, not {len(first.cpus) + len(second.cpus)}; {OVERLAP}",
                "name sets without a common processor, if neither is to wait for the other",
            )


def _on_the_hosts_core(topology: Topology, plan: Plan) -> Iterator[Note]:
    spare = [cpu for cpu in free_cores(topology)[0] if 0 not in topology.core(cpu)]
    for cpu in plan.choice.cpus:
        if 0 in topology.core(cpu):
            is_it = "it" if cpu == 0 else "processor 0, on the same core,"
            others = f"name others in processors of [engine]: {cpu_text(spare)}"
            yield Note(
                "D04",
                f"processor {cpu}",
                f"{is_it} serves interrupts of the host as well: {HOSTS_CORE}",
                others if spare else "none: this host has no other core for vmq",
            )


def _on_one_core(topology: Topology, plan: Plan) -> Iterator[Note]:
    cpus = plan.choice.cpus
    cores = {topology.core(cpu): [one for one in cpus if one in topology.core(cpu)] for cpu in cpus}
    for together in cores.values():
        if len(together) > 1:
            yield Note(
                "D05",
                f"processors {cpu_text(together)}",
                f"they are threads of one core: {ONE_CORE}",
                f"keep one of them in processors of [engine], such as {together[0]}",
            )


def _shared(config: Config, topology: Topology, plan: Plan) -> Iterator[Note]:
    for cpu in plan.choice.cpus:
        names = plan.on(cpu)
        if len(names) < 2:
            continue
        pairs = {name: config.vms[name].queue_pairs for name in names}
        total, least = sum(pairs.values()), min(pairs.values())
        if least == max(pairs.values()):
            share = f"each gets 1 burst of {len(names)}"
        else:
            weak = [name for name in names if pairs[name] == least]
            whoever = weak[0] if len(weak) == 1 else f"each of {', '.join(weak)}"
            share = f"{whoever} gets {least} {'burst' if least == 1 else 'bursts'} of {total}"
        yield Note(
            "D08",
            f"processor {cpu}",
            f"{', '.join(names)} share it: when all are busy in all their queue pairs, {share}",
            _roomier(cpu, config, topology, plan),
        )


def _roomier(cpu: int, config: Config, topology: Topology, plan: Plan) -> str:
    """What would give the VMs of a processor more of one."""
    names, cpus = plan.on(cpu), plan.choice.cpus
    idle = [one for one in cpus if not plan.on(one)]
    if idle:
        named = [name for name in names if config.vms[name].processor is not None]
        if len(named) > 1:
            return f"processor {cpu_text(idle)} has no VM: leave out processor of [vm.{named[-1]}]"
        uplinks = sorted({config.vms[name].uplink or "" for name in names} & set(config.uplinks))
        wider = f"name it in processors of {', '.join(f'[uplink.{name}]' for name in uplinks)}"
        nodes = any(config.uplinks[name].numa_node is not None for name in uplinks)
        return f"processor {cpu_text(idle)} has no VM: {wider}{', without numa_node' if nodes else ''}"
    taken = {thread for one in cpus for thread in topology.core(one)}
    spare = [one for one in free_cores(topology)[0] if one not in taken]
    if spare:
        return f'set processors = "{cpu_text((*cpus, *spare))}" in [engine]'
    return "none: this host has no other core for vmq"


def _without_queue(config: Config) -> Iterator[Note]:
    for name, uplink in config.uplinks.items():
        weights = {vm: one.weight for vm, one in config.vms.items() if one.uplink == name and one.weight}
        holders = first_holders(weights, uplink.queues)
        without = [vm for vm in weights if vm not in holders]
        if without:
            yield Note(
                "D08",
                f"uplink {name}",
                f"{TOO_FEW}. {uplink.queues} of {len(weights)} VMs at a time; without traffic {', '.join(without)} "
                f"{'has' if len(without) == 1 else 'have'} none, by weight and then by order",
                f"set queues = {len(weights)} in [uplink.{name}], or leave it out",
            )


def _far(config: Config, topology: Topology, plan: Plan) -> Iterator[Note]:
    for name, vm in config.vms.items():
        cpu = plan.places[name].cpu
        node, own = node_of(config.uplinks.get(vm.uplink or ""), topology), topology.nodes.get(cpu)
        if node is None or own is None or node == own:
            continue
        near = [one for one in topology.allowed if topology.nodes.get(one) == node]
        key = "processors of [engine]" if vm.processor is None else f"processor of [vm.{name}]"
        yield Note(
            "D14",
            f"vm {name}",
            f"processor {cpu} is on node {own}, and the frames of uplink {vm.uplink} come from node {node}: "
            f"{FAR_NIC}",
            f"name in {key} one of {cpu_text(near)}" if near else f"none: vmq may use nothing of node {node}",
        )
