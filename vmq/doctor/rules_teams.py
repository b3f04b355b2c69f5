# SPDX-License-Identifier: Apache-2.0
"""D01, D02, D03, D25, D26: several network devices that carry the same VMs, and whose queues are counted together.

Two kinds of teams exist here:

    several uplinks of one engine   each VM belongs to one of them: queues add up (SUM), processor sets are disjoint
    a bond below an uplink          any member may receive for any VM: the smallest member counts (MIN), sets are identical

In Linux's words: LACP and static are 802.3ad, balance-rr, balance-xor and broadcast, which hash. active-backup,
balance-tlb and balance-alb are switch-independent, but what is addressed to a VM comes in on the active member, and after
a failover on another. No mode of a bond gives each VM a member of its own, so none is SUM.

A member's processor set is where the interrupts of its receive queues are served, and of an uplink those that serve its
VMs. Devices without interrupts (TAP, veth) have none of the first kind: their frames come on the processor of whoever
sends. Sets of interrupts overlap or differ wherever nobody has set them, and no frame is lost by it: that is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

from vmq.config.forms import cpu_text
from vmq.doctor.facts import Facts, Link
from vmq.doctor.finding import Evidence, Fix, Outcome, clear, found, not_applicable, settled, unknown
from vmq.doctor.rules_processors import one_a_core
from vmq.doctor.situation import Situation, UplinkView, ports_on
from vmq.doctor.steps import Write, edit, writes
from vmq.forecast import OVERLAP

MEMBER_PROCESSORS_MAX = 16
IRQBALANCE = "irqbalance, if it runs, moves them back unless it is told not to"
NO_TEAM = "no bond lies below an uplink, and at most one uplink is a NIC"


@dataclass(frozen=True)
class Team:
    """`total`: queues add up (SUM); else the smallest member counts (MIN)."""

    label: str
    total: bool
    why: str
    members: tuple[Link, ...]
    uplinks: tuple[str, ...]


def processors_per_member(logical: int, members: int, *, smt: bool) -> int:
    """How many processors a member may have, one left to the host: `Ct` logical processors, `Nt` members."""
    share = (logical - 2) / 2 / members if smt else (logical - 1) / members
    return max(min(int(share), MEMBER_PROCESSORS_MAX), 0)


def capacity(team: Team) -> int:
    """Receive queues of the team."""
    counts = [member.receive_queues for member in team.members]
    return sum(counts) if team.total else min(counts, default=0)


def bonds(see: Situation, uplink: UplinkView) -> Iterator[Link]:
    """Bonds below an uplink: its device, or a port of the bridge that its TAP joins."""
    for link in see.facts.links.values():
        below = link is uplink.link or (uplink.bridge is not None and link.master == uplink.bridge)
        if below and link.bond is not None:
            yield link


def teams(see: Situation) -> list[Team]:
    made = []
    for uplink in see.uplinks.values():
        for link in bonds(see, uplink):
            names = link.bond.members if link.bond else ()
            members = tuple(see.facts.links[name] for name in names if name in see.facts.links)
            why = f"{link.name} is a bond, mode {link.bond.mode if link.bond else ''}"
            made.append(
                Team(f"bond {link.name}", total=False, why=why, members=members, uplinks=(uplink.name,))
            )
    own = [one for one in see.uplinks.values() if one.link is not None and one.link.hardware]
    if len(own) > 1:
        links, names = tuple(one.link for one in own if one.link), tuple(one.name for one in own)
        why = "each VM belongs to one uplink"
        made.append(Team(f"uplinks {', '.join(names)}", total=True, why=why, members=links, uplinks=names))
    return made


def served(facts: Facts, link: Link) -> frozenset[int]:
    """Where a device's interrupts are served; empty if that cannot be seen."""
    return frozenset(cpu for irq in link.irqs for cpu in facts.irqs.get(irq, ()))


def partition(facts: Facts, members: Sequence[Link]) -> dict[str, tuple[int, ...]]:
    """Disjoint processors for the members, one a core, of the member's node where there are any; not core 0."""
    cpus = facts.cpus
    smt = any(len(cpu.siblings) > 1 for cpu in cpus.values())
    size = processors_per_member(len(cpus), len(members), smt=smt)
    free = list(one_a_core(facts, len(cpus)))
    parts: dict[str, tuple[int, ...]] = {}
    for member in members:
        near = sorted(free, key=partial(_distance, facts, member))[:size]
        free = [number for number in free if number not in near]
        parts[member.name] = tuple(sorted(near))
    return parts


def _distance(facts: Facts, member: Link, cpu: int) -> tuple[bool, int]:
    return facts.cpus[cpu].node != member.node, cpu


def _bind(link: Link, cpus: str) -> str:
    irqs = " ".join(map(str, link.irqs))
    return f"for irq in {irqs}; do echo {cpus} > /proc/irq/$irq/smp_affinity_list; done  # {link.name}"


def _bound(link: Link, cpus: str) -> tuple[Write, ...]:
    return writes(tuple(f"/proc/irq/{irq}/smp_affinity_list" for irq in link.irqs), cpus)


def _evidence(facts: Facts, link: Link, expected: str) -> Evidence:
    where = f"/proc/irq/{{{','.join(map(str, link.irqs))}}}/*_affinity_list ({link.name})"
    return Evidence(where, cpu_text(served(facts, link)) or "not to be seen", expected)


def _blind(see: Situation, team: Team) -> Outcome | None:
    """Unknown, where a member's interrupts cannot be seen."""
    hidden = [one.name for one in team.members if not served(see.facts, one)]
    if hidden:
        return unknown(f"the interrupts of {', '.join(hidden)} cannot be seen in /proc/irq", team.label)
    return None


def _judged(see: Situation, *, total: bool) -> tuple[list[Team], list[Outcome]]:
    """The teams of a mode whose members can be compared, and what is said of the others."""
    of_mode = [team for team in teams(see) if team.total == total]
    blind = {id(team): _blind(see, team) for team in of_mode}
    return [team for team in of_mode if blind[id(team)] is None], [said for said in blind.values() if said]


def overlapping(see: Situation) -> list[Outcome]:
    """D01: members of a SUM team share a processor. Every pair is compared."""
    judged, said = _judged(see, total=True)
    named = [uplink for uplink in see.uplinks.values() if uplink.processors]
    if not judged and not said and len(named) < 2:
        return [not_applicable("no two uplinks are NICs, and no two were given processors of their own")]
    said += [
        _named_twice(see, one, two)
        for one, two in combinations(named, 2)
        if set(one.processors or ()) & set(two.processors or ())
    ]
    for team in judged:
        parts = partition(see.facts, team.members)
        for one, two in combinations(team.members, 2):
            both = served(see.facts, one) & served(see.facts, two)
            if both:
                said.append(_overlap(see, team, (one, two), cpu_text(both), parts))
    looked = [_evidence(see.facts, one, "") for team in judged for one in team.members]
    own = (
        Evidence(see.key(f"uplink.{one.name}", "processors"), cpu_text(one.processors or ())) for one in named
    )
    return settled(said, *looked, *own)


def _named_twice(see: Situation, one: UplinkView, two: UplinkView) -> Outcome:
    """Two uplinks were given processors, and both were given the same one."""
    mine, theirs = set(one.processors or ()), set(two.processors or ())
    where = [see.key(f"uplink.{name}", "processors") for name in (one.name, two.name)]
    rest = cpu_text(theirs - mine)
    return found(
        f"uplinks {one.name} and {two.name}",
        Evidence(where[0], cpu_text(mine), f"none of {cpu_text(theirs)}"),
        Evidence(where[1], cpu_text(theirs), f"none of {cpu_text(mine)}"),
        Evidence("mode", "SUM: each VM belongs to one uplink", "disjoint sets"),
        why=f"Processor {cpu_text(mine & theirs)} serves VMs of both uplinks: {OVERLAP}.",
        fix=Fix(
            f'processors = "{rest}" in [uplink.{two.name}] of {see.where}'
            if rest
            else f"Give [uplink.{two.name}] of {see.where} processors of its own, and [engine] with it",
            "vmq run, if [engine] changes; else nothing: it reads its file again on SIGHUP",
            "VMs of that uplink move to another processor",
            (edit(f"uplink.{two.name}", processors=rest),) if rest else (),
        ),
        undo=f'processors = "{cpu_text(theirs)}" in [uplink.{two.name}]',
    )


def _overlap(
    see: Situation, team: Team, pair: tuple[Link, Link], both: str, parts: dict[str, tuple[int, ...]]
) -> Outcome:
    one, two = pair
    fits = all(parts.values())
    commands = "; ".join(_bind(link, cpu_text(parts[link.name])) for link in pair)
    undo = "; ".join(_bind(link, cpu_text(served(see.facts, link))) for link in pair)
    return found(
        f"{one.name} and {two.name}",
        _evidence(see.facts, one, f"no processor of {two.name}"),
        _evidence(see.facts, two, f"no processor of {one.name}"),
        Evidence("mode", f"SUM: {team.why}", "disjoint sets"),
        why=f"Both devices are served on processor {both}: {OVERLAP}.",
        fix=Fix(
            commands if fits else "Use one uplink less, or a host with more processors",
            "",
            IRQBALANCE,
            tuple(write for link in pair for write in _bound(link, cpu_text(parts[link.name])))
            if fits
            else (),
        ),
        undo=undo if fits else "",
        severity="warning" if fits else "note",
    )


def differing(see: Situation) -> list[Outcome]:
    """D02: members of a MIN team are served by different processors."""
    judged, said = _judged(see, total=False)
    if not judged and not said:
        return [not_applicable("no bond lies below an uplink")]
    for team in judged:
        sets = {one.name: served(see.facts, one) for one in team.members}
        if len(set(sets.values())) > 1:
            common = cpu_text(sets[team.members[0].name])
            others = [one for one in team.members if sets[one.name] != sets[team.members[0].name]]
            said.append(
                found(
                    team.label,
                    *(_evidence(see.facts, one, common) for one in team.members),
                    Evidence("mode", f"MIN: {team.why}", "identical sets"),
                    why="Any member may receive for any VM, so a VM's frames move to other processors with the member.",
                    fix=Fix(
                        "; ".join(_bind(one, common) for one in others),
                        "",
                        IRQBALANCE,
                        tuple(write for one in others for write in _bound(one, common)),
                    ),
                    undo="; ".join(_bind(one, cpu_text(sets[one.name])) for one in others),
                    severity="warning",
                )
            )
    return settled(said, *(_evidence(see.facts, one, "") for team in judged for one in team.members))


def miscounted(see: Situation) -> list[Outcome]:
    """D03: more VMs than the team has receive queues, counted as its mode counts them."""
    made = teams(see)
    if not made:
        return [not_applicable(NO_TEAM)]
    outcomes, looked = [], []
    for team in made:
        vms = tuple(port.name for name in team.uplinks for port in ports_on(see, name))
        counts = [member.receive_queues for member in team.members]
        formula = f"{' + '.join(map(str, counts))}" if team.total else f"min({', '.join(map(str, counts))})"
        has = Evidence(
            f"/sys/class/net/{{{','.join(one.name for one in team.members)}}}/queues",
            f"{'SUM' if team.total else 'MIN'}: {formula} = {capacity(team)} ({team.why})",
            f"at least {len(vms)}, one for each VM",
        )
        looked.append(has)
        if len(vms) > capacity(team):
            other = "several uplinks instead of the bond would add up to " + str(sum(counts))
            outcomes.append(
                found(
                    team.label,
                    has,
                    Evidence("VMs without one", ", ".join(vms[capacity(team) :])),
                    vms=vms,
                    why="The NICs have fewer receive queues than there are VMs. No VM goes without its receive queue: "
                    "vmq's are in software; but the NICs cannot keep the VMs apart.",
                    fix=Fix(
                        f"ethtool -L DEVICE combined N; {other}"
                        if not team.total
                        else "ethtool -L DEVICE combined N"
                    ),
                    severity="note",
                )
            )
    return settled(outcomes, *looked)


def bonded(see: Situation) -> list[Outcome]:
    """D25: a bond below vmq, where several uplinks in vmq would keep a queue for each VM."""
    below = [team for team in teams(see) if not team.total]
    if not below:
        return [not_applicable("no bond lies below an uplink; Linux has no second kind of team to prefer")]
    return [
        found(
            team.label,
            Evidence(
                f"/sys/class/net/{team.label.removeprefix('bond ')}/bonding/mode", team.why, "several uplinks"
            ),
            why="Below a bond, queues count as MIN; with several uplinks each VM has one device and queues add up.",
            fix=Fix(
                f'An [uplink.NAME] with kind = "packet" for each of {", ".join(one.name for one in team.members)}, where '
                "the switch allows it",
                "vmq run",
                "the bond's failover is lost",
            ),
        )
        for team in below
    ]


def unlike(see: Situation) -> list[Outcome]:
    """D26: members of a bond differ in speed, driver or queues."""
    below = [team for team in teams(see) if not team.total]
    if not below:
        return [not_applicable("no bond lies below an uplink")]
    outcomes: list[Outcome] = []
    for team in below:
        differ = [what for what in TRAITS if len({TRAITS[what](one) for one in team.members} - {"None"}) > 1]
        if differ:
            outcomes.append(_unlike(team, differ))
        elif not all(one.speed and one.driver for one in team.members):
            outcomes.append(unknown("speed or driver of a member cannot be read", team.label))
    return outcomes or [
        clear(Evidence("members", ", ".join(one.name for team in below for one in team.members)))
    ]


TRAITS: dict[str, Callable[[Link], str]] = {
    "speed": lambda link: str(link.speed),
    "driver": lambda link: str(link.driver and link.driver.name),
    "driver version": lambda link: str(link.driver and link.driver.version),
    "receive queues": lambda link: str(link.receive_queues),
}


def _unlike(team: Team, differ: list[str]) -> Outcome:
    evidence = (
        Evidence(
            what, ", ".join(f"{one.name} {TRAITS[what](one)}" for one in team.members), "the same on all"
        )
        for what in differ
    )
    return found(
        team.label,
        *evidence,
        why="Members that differ share the load unevenly, and the weakest decides what all may do.",
        fix=Fix(
            "ethtool -L DEVICE combined N, for equal queues; else NICs of one kind",
            "",
            "ethtool -L stops the device for a moment",
        ),
    )
