# SPDX-License-Identifier: Apache-2.0
"""D04, D05, D14, D30, D31: which processors serve, what else they serve, and how fast they wake.

Core 0 is where the host does what it must: timers, interrupts nobody placed, its own daemons. Two logical processors of
one core share its units, so a worker beside another, or beside a guest's vCPU, has half a core. Memory of another NUMA
node is farther away. A processor that sleeps deeply or runs slowly wakes late.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations

from vmq.config.forms import cpu_text
from vmq.doctor.facts import Cpu, Facts
from vmq.doctor.finding import Evidence, Fix, Outcome, clear, found, sentence, settled, unknown
from vmq.doctor.machines import Machine
from vmq.doctor.situation import Attached, Row, Situation, UplinkView
from vmq.doctor.steps import Write, edit, writes
from vmq.forecast import FAR_NIC, HOSTS_CORE, ONE_CORE
from vmq.placement import free_cores

OPEN = "neither a configuration nor a running engine says which processors are used"
TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
RESTART = "vmq run"


def housekeeping(facts: Facts) -> set[int]:
    """Processors of the host: what is not isolated; where nothing is, the core of processor 0."""
    if facts.topology is None or not facts.topology.isolated:
        return set(facts.cpus[0].siblings) if 0 in facts.cpus else {0}
    return set(facts.cpus) - facts.topology.isolated


def one_a_core(facts: Facts, count: int) -> tuple[int, ...]:
    """The first `count` processors with a core to themselves, none of the host's."""
    if facts.topology is None:
        return ()
    kept, _ = free_cores(replace(facts.topology, allowed=tuple(sorted(facts.cpus))))
    ours = housekeeping(facts)
    return tuple(cpu for cpu in kept if cpu not in ours)[:count]


def _set(see: Situation, cpus: tuple[int, ...]) -> Fix:
    """The engine's processors. Where a VM or an uplink names its own, somebody has to choose those, too."""
    where = f'processors = "{cpu_text(cpus)}" in [engine] of {see.where}; processor of a VM, if set, likewise'
    named = see.config is not None and (
        any(vm.processor is not None for vm in see.config.vms.values())
        or any(uplink.processors is not None for uplink in see.config.uplinks.values())
    )
    steps = () if named else (edit("engine", processors=cpu_text(cpus)),)
    return Fix(where, RESTART, "guests wait until it runs again, and reconnect", steps)


def on_core_0(see: Situation) -> list[Outcome]:
    """D04: a worker, or an uplink's interrupts, on a processor that the host needs."""
    if not see.facts.cpus:
        return [unknown("/sys/devices/system/cpu cannot be read")]
    ours = housekeeping(see.facts)
    others = set(see.facts.cpus) - ours
    outcomes = list(_workers_on(see, ours, others)) + list(_interrupts_on(see, ours, others))
    if not outcomes and not see.processors:
        return [unknown(OPEN)]
    kept = Evidence("the host's", cpu_text(ours))
    return settled(outcomes, Evidence(see.says, cpu_text(see.processors)), kept)


def _workers_on(see: Situation, ours: set[int], others: set[int]) -> Iterator[Outcome]:
    taken = sorted(set(see.processors) & ours)
    if not taken:
        return
    better = one_a_core(see.facts, len(see.processors)) or tuple(sorted(others))[: len(see.processors)]
    yield found(
        f"processor {cpu_text(taken)}",
        Evidence(see.says, cpu_text(see.processors), f"none of {cpu_text(ours)}: the host works there"),
        why=sentence(HOSTS_CORE),
        fix=_set(see, better) if better else Fix("Nothing: this host has no other processor"),
        undo=f'processors = "{cpu_text(see.processors)}"' if better else "",
        severity=None if better else "note",
    )


def _interrupts_on(see: Situation, ours: set[int], others: set[int]) -> Iterator[Outcome]:
    for uplink in see.uplinks.values():
        irqs = uplink.link.irqs if uplink.link else ()
        there = [irq for irq in irqs if set(see.facts.irqs.get(irq, ())) & ours]
        if there and others:
            listed, free = " ".join(map(str, there)), cpu_text(sorted(others)[:1])
            command = f"for irq in {listed}; do echo {{}} > /proc/irq/$irq/smp_affinity_list; done"
            before = cpu_text(cpu for irq in there for cpu in see.facts.irqs[irq])
            yield found(
                uplink.label,
                Evidence(f"/proc/irq/{there[0]}/*_affinity_list", before, f"none of {cpu_text(ours)}"),
                why="Frames of this uplink come in on the processor of the host's own work.",
                fix=Fix(
                    command.format(free),
                    "",
                    "irqbalance, if it runs, moves them back unless it is told not to",
                    writes(tuple(f"/proc/irq/{irq}/smp_affinity_list" for irq in there), free),
                ),
                undo=command.format(before),
                severity="note",
            )


def on_siblings(see: Situation) -> list[Outcome]:
    """D05: two workers on one core, or a worker on the core of a guest's pinned vCPU."""
    cpus = see.facts.cpus
    if not cpus:
        return [unknown("/sys/devices/system/cpu cannot be read")]
    if not see.processors:
        return [unknown(OPEN)]
    missing = [cpu for cpu in see.processors if cpu not in cpus]
    if missing:
        return [unknown(f"the topology of processor {cpu_text(missing)} cannot be read")]
    outcomes = [
        _share_a_core(see, one, two)
        for one, two in combinations((cpus[number] for number in see.processors), 2)
        if two.number in one.siblings
    ]
    outcomes += [
        _beside_vcpu(see, number, machine, allowed)
        for machine in see.machines
        for allowed in machine.pinned
        for number in see.processors
        if allowed and set(allowed) <= set(cpus[number].siblings)
    ]
    looked = [Evidence(TOPOLOGY.format(cpu), cpu_text(cpus[cpu].siblings)) for cpu in see.processors]
    return settled(outcomes, *looked)


def _share_a_core(see: Situation, one: Cpu, two: Cpu) -> Outcome:
    better = one_a_core(see.facts, len(see.processors))
    return found(
        f"processors {one.number} and {two.number}",
        Evidence(TOPOLOGY.format(one.number), cpu_text(one.siblings), "no other worker's processor"),
        Evidence(
            see.says, cpu_text(see.processors), f"one of a core, as {cpu_text(better)}" if better else ""
        ),
        why=sentence(ONE_CORE),
        fix=_set(see, better)
        if better
        else Fix(f"Leave {two.number} out of processors of [engine]", RESTART),
        undo=f'processors = "{cpu_text(see.processors)}"',
    )


def _beside_vcpu(see: Situation, number: int, machine: Machine, allowed: tuple[int, ...]) -> Outcome:
    return found(
        f"processor {number}",
        Evidence(
            f"vCPU thread of {machine.name}, {machine.where}: Cpus_allowed_list",
            cpu_text(allowed),
            "another core",
        ),
        Evidence(TOPOLOGY.format(number), cpu_text(see.facts.cpus[number].siblings)),
        why="The worker shares a core with a vCPU: each slows the other down.",
        fix=Fix(
            f"Pin the vCPU to another core: taskset -pc CPU TID, or virsh vcpupin {machine.name} VCPU CPU"
        ),
    )


def far_memory(see: Situation) -> list[Outcome]:
    """D14: the worker's NUMA node is not the NIC's, or not that of the guest's memory."""
    if not see.facts.nodes:
        return [unknown("NUMA nodes of processors cannot be read in /sys/devices/system/cpu")]
    if len(see.facts.nodes) == 1:
        return [clear(Evidence("/sys/devices/system/cpu/cpu*/node*", "one node"))]
    outcomes = [said for uplink in see.uplinks.values() for said in _far_nic(see, uplink)]
    outcomes += [said for one in see.attached for said in _far_guest(see, one)]
    if not outcomes and not see.processors:
        return [unknown(OPEN)]
    return settled(outcomes, Evidence(see.says, cpu_text(see.processors)))


def _near(see: Situation, node: int) -> Fix:
    near = tuple(
        cpu for cpu in one_a_core(see.facts, len(see.facts.cpus)) if see.facts.cpus[cpu].node == node
    )
    if not near:
        return Fix(f"Move the device or the guest: no free processor is on node {node}")
    return _set(see, near[: max(len(see.processors), 1)])


def _far_nic(see: Situation, uplink: UplinkView) -> Iterator[Outcome]:
    link = uplink.link
    if link is None or not link.hardware:
        return
    where = f"/sys/class/net/{link.name}/device/numa_node"
    if link.node is None:
        yield unknown(f"{where}: the host does not say the node", uplink.label)
        return
    far = [cpu for cpu in see.processors if cpu in see.facts.cpus and see.facts.cpus[cpu].node != link.node]
    if far:
        yield found(
            uplink.label,
            Evidence(where, str(link.node), "the node of the workers"),
            *(
                Evidence(f"/sys/devices/system/cpu/cpu{cpu}", f"node {see.facts.cpus[cpu].node}")
                for cpu in far
            ),
            why=sentence(FAR_NIC),
            fix=_near(see, link.node),
            undo=f'processors = "{cpu_text(see.processors)}"',
        )


def _far_guest(see: Situation, one: Attached) -> Iterator[Outcome]:
    pages, port = one.machine.nodes, one.port
    if not pages:
        yield unknown(f"{one.machine.where}: numa_maps cannot be read", port.label, vms=(port.name,))
        return
    cpu = see.facts.cpus.get(port.processor) if port.processor is not None else None
    home = max(pages, key=lambda node: pages[node])
    if cpu is None or cpu.node is None or cpu.node == home:
        return
    uplink = see.uplink_of(port)
    nic = uplink.link.node if uplink and uplink.link else None
    choice = (
        ""
        if nic in (None, home)
        else (
            f" The NIC is on node {nic}: the guest's node costs less, since a copy reads a frame across once, but writing "
            "across fetches each line first and sends it back."
        )
    )
    yield found(
        port.label,
        Evidence(
            f"{one.machine.where}: numa_maps", f"{pages[home]} pages on node {home}", "the worker's node"
        ),
        Evidence(f"/sys/devices/system/cpu/cpu{cpu.number}", f"node {cpu.node}"),
        vms=(port.name,),
        why="Every frame is copied into memory of another NUMA node." + choice,
        fix=_near(see, home),
        undo=f"processor = {cpu.number} in [vm.{port.name}]",
    )


def asleep(see: Situation) -> list[Outcome]:
    """D30: the workers' processors run slowly to save power, or sleep deeper than a frame can wait."""
    if not see.processors:
        return [unknown(OPEN)]
    cpus = [see.facts.cpus[number] for number in see.processors if number in see.facts.cpus]
    outcomes = [said for cpu in cpus for said in _slow(cpu, see.limits.wake_us)]
    hidden = [cpu.number for cpu in cpus if cpu.governor is None and cpu.wake_us is None]
    if not outcomes and (hidden or not cpus):
        listed = cpu_text(hidden or see.processors)
        return [
            unknown(f"the host hides governor and sleep states of processor {listed}, as virtual machines do")
        ]
    return settled(outcomes, *(Evidence(f"processor {cpu.number}", _power(cpu)) for cpu in cpus))


def _power(cpu: Cpu) -> str:
    wake = "hidden" if cpu.wake_us is None else f"wakes in {cpu.wake_us} µs at most"
    return f"governor {cpu.governor or 'hidden'}, {wake}"


def _slow(cpu: Cpu, limit: int) -> Iterator[Outcome]:
    place = f"/sys/devices/system/cpu/cpu{cpu.number}"
    governor = f"echo {{}} > {place}/cpufreq/scaling_governor"
    if cpu.governor not in (None, "performance"):
        yield found(
            f"processor {cpu.number}",
            Evidence(f"{place}/cpufreq/scaling_governor", str(cpu.governor), "performance"),
            why="The processor is slow when a burst begins, and faster only after it.",
            fix=Fix(
                governor.format("performance"),
                "",
                "it takes more power",
                (Write(f"{place}/cpufreq/scaling_governor", "performance"),),
            ),
            undo=governor.format(cpu.governor),
        )
    deep = tuple(f"{place}/cpuidle/state{number}/disable" for number, delay in cpu.sleeps if delay > limit)
    if deep:
        idle = f"for s in {' '.join(deep)}; do echo {{}} > $s; done"
        yield found(
            f"processor {cpu.number}",
            Evidence(f"{place}/cpuidle/state*/latency", f"{cpu.wake_us} µs", f"at most {limit} µs (wake_us)"),
            why="After a pause the first frame waits until the processor has woken up.",
            fix=Fix(idle.format(1), "", "it takes more power", writes(deep, "1")),
            undo=idle.format(0),
        )


def moderated(see: Situation) -> list[Outcome]:
    """D31: one indication a frame on a processor that has no time for it; or indications held back that gather nothing."""
    rows, queues = see.rows("processors"), see.rows("queues")
    if rows is None or queues is None:
        return [unknown("no engine runs: indications are not counted")]
    busy = {row.get("cpu"): row.get("busy_ratio") or 0.0 for row in rows}
    full, alone = see.limits.busy_percent / 100, see.limits.single_percent / 100
    outcomes = []
    for row in queues:
        bins = row.get("batches") or [0]
        share = bins[0] / sum(bins) if sum(bins) else 0.0
        load, held = busy.get(row.get("processor"), 0.0), _held_back(row)
        if share >= alone and (held or load >= full):
            seen = Evidence(
                "vmq show queues --json: batches",
                f"{share:.0%} of one frame",
                f"below {alone:.0%} (single_percent)",
            )
            limit = f"below {full:.2f} (busy_percent)"
            loaded = Evidence("vmq show processors: busy_ratio", f"{load:.2f}", limit)
            outcomes.append(_too_strong(row, seen, held) if held else _too_weak(see, row, seen, loaded))
    looked = Evidence("vmq show queues: batches", f"{len(queues)} receive queues")
    return settled(outcomes, looked)


def _held_back(row: Row) -> Mapping[str, int]:
    """What a receive queue was told to wait for; empty if its indications are not held back."""
    asked = row.get("requested")
    said = asked.get("moderation") if isinstance(asked, Mapping) else None
    return {name: count for name, count in said.items() if count} if isinstance(said, Mapping) else {}


def _too_weak(see: Situation, row: Row, *evidence: Evidence) -> Outcome:
    vm = str(row.get("vm"))
    return found(
        f"VM {vm}, receive queue {row.get('queue')}",
        *evidence,
        vms=(vm,),
        confidence="possible",
        why="The processor is busy, yet frames go to the guest one at a time, each with its own interrupt.",
        fix=Fix(
            f"Another processor for it: processor = N in [vm.{vm}] of {see.where}; or fewer indications a second: "
            "vmq queue set QUEUE --indications N",
            RESTART,
        ),
    )


def _too_strong(row: Row, seen: Evidence, held: Mapping[str, int]) -> Outcome:
    vm = str(row.get("vm"))
    limits = ", ".join(f"{name} {count}" for name, count in held.items())
    return found(
        f"VM {vm}, receive queue {row.get('queue')}",
        Evidence("vmq show queues --json: requested, moderation", limits, "0, where nothing gathers"),
        seen,
        vms=(vm,),
        confidence="possible",
        why="Indications are held back, and yet each is for one frame: it waits, and no interrupt is saved.",
        fix=Fix("vmq queue set QUEUE --indications 0 --frames 0"),
    )


def overloaded(see: Situation) -> list[Outcome]:
    """D19: a worker is saturated by several flows of one receive queue."""
    rows = see.rows("processors")
    if rows is None:
        return [unknown("no engine runs: the load of its processors is not known")]
    limit = see.limits.busy_percent / 100
    full = [row for row in rows if (row.get("busy_ratio") or 0.0) >= limit]
    if full:
        listed = cpu_text(row["cpu"] for row in full)
        return [
            unknown(
                f"processor {listed} is saturated, but flows are not counted: one cannot be told from several"
            )
        ]
    return [clear(Evidence("vmq show processors: busy_ratio", f"below {limit:.2f} on each (busy_percent)"))]
