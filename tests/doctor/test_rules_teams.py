# SPDX-License-Identifier: Apache-2.0
"""Teams: SUM or MIN; every pair of members; what fits."""

from __future__ import annotations

import pytest

from tests.doctor.hosts import EIGHT, bond, host, links, nic, only, see, statuses, vm
from vmq.doctor.facts import Facts, Link
from vmq.doctor.finding import Evidence
from vmq.doctor.rules_teams import (
    bonded,
    differing,
    miscounted,
    overlapping,
    partition,
    processors_per_member,
    teams,
    unlike,
)
from vmq.ethtool import Driver

THREE = "".join(f'[uplink.{name}]\nkind = "packet"\ndevice = "{name}"\n' for name in ("a", "b", "c"))
BOND = '[uplink.lan]\nkind = "packet"\ndevice = "bond0"\n'
SLOW, FAST = Driver("ixgbe", "1"), Driver("ice", "1")


def nics(*served: tuple[int, ...]) -> Facts:
    """Eight processors and as many NICs as given, each with one interrupt a processor that serves it."""
    irqs = {10 * place + cpu: (cpu,) for place, cpus in enumerate(served, 1) for cpu in cpus}
    own = [nic("abc"[place], *(10 * place + 10 + cpu for cpu in cpus)) for place, cpus in enumerate(served)]
    return host(*EIGHT, links=links(*own, bond("a", "b", "c"[: len(served) > 2])), irqs=irqs)


def test_three_uplinks_of_which_first_and_third_overlap() -> None:
    """KB2974384; all pairs are compared, not neighbours only."""
    found = only(overlapping(see(THREE, nics((1, 2), (3, 4), (2, 5)))))

    assert (found.subject, found.severity) == ("a and c", "warning")  # nothing is lost
    assert found.evidence[0] == Evidence("/proc/irq/{11,12}/*_affinity_list (a)", "1-2", "no processor of c")
    assert "for irq in 11 12; do echo 1-2 > /proc/irq/$irq/smp_affinity_list; done" in found.fix.command
    assert "echo 2,5 >" in found.undo


def test_disjoint_uplinks_are_clear_and_say_what_was_looked_at() -> None:
    clear = overlapping(see(THREE, nics((1, 2), (3, 4), (5, 6))))

    assert statuses(clear) == ["clear"]
    assert [entry.value for entry in clear[0].evidence] == ["1-2", "3-4", "5-6"]


def test_where_not_enough_processors_are_it_is_a_note() -> None:
    """Two uplinks and two processors: nothing could be disjoint beside the host's."""
    facts = host("0", "1", links=links(nic("a", 1), nic("b", 2)), irqs={1: (0,), 2: (0,)})
    two = '[uplink.a]\nkind = "packet"\ndevice = "a"\n[uplink.b]\nkind = "packet"\ndevice = "b"\n'

    assert only(overlapping(see(two, facts))).severity == "note"


def test_processors_of_uplinks_overlap() -> None:
    """The keys alone: no host is needed."""
    text = "".join(
        f'[uplink.{name}]\nkind = "tap"\ndevice = "{name}"\nprocessors = "{cpus}"\n'
        for name, cpus in (("a", "1-2"), ("b", "3"), ("c", "2,4"))
    )
    found = only(overlapping(see(text)))

    assert (found.subject, found.severity) == ("uplinks a and c", None)
    assert found.fix.command == 'processors = "4" in [uplink.c] of vmq.toml'
    assert statuses(overlapping(see(text.replace("2,4", "4")))) == ["clear"]


def test_interrupts_that_cannot_be_seen_are_unknown() -> None:
    facts = host(*EIGHT, links=links(nic("a", 1), nic("b")), irqs={1: (1,)})
    two = '[uplink.a]\nkind = "packet"\ndevice = "a"\n[uplink.b]\nkind = "packet"\ndevice = "b"\n'

    (said,) = overlapping(see(two, facts))

    assert (said.status, said.why) == ("unknown", "the interrupts of b cannot be seen in /proc/irq")


def test_members_of_a_bond_need_identical_processors() -> None:
    """Equal sizes but different processors; equal sets in another order."""
    found = only(differing(see(BOND, nics((1, 2), (3, 4)))))

    assert (found.subject, found.severity) == ("bond bond0", "warning")
    assert [entry.value for entry in found.evidence[:2]] == ["1-2", "3-4"]
    assert found.fix.command == "for irq in 23 24; do echo 1-2 > /proc/irq/$irq/smp_affinity_list; done  # b"
    assert statuses(differing(see(BOND, nics((1, 2), (2, 1))))) == ["clear"]
    assert statuses(differing(see(THREE, nics((1, 2), (3, 4), (5, 6))))) == ["not_applicable"]


@pytest.mark.parametrize(
    "mode",
    ["802.3ad", "balance-rr", "balance-xor", "broadcast", "active-backup", "balance-tlb", "balance-alb"],
)
def test_every_mode_of_a_bond_is_min_and_several_uplinks_are_sum(mode: str) -> None:
    """LACP and static hash; of the others one member receives at a time, and another after a failover."""
    facts = host(*EIGHT, links=links(nic("a", queues=4), nic("b", queues=8), bond("a", "b", mode=mode)))

    (team,) = teams(see(BOND, facts))
    assert (team.total, [link.name for link in team.members]) == (False, ["a", "b"])

    (team,) = teams(see(THREE, facts))
    assert team.total


def test_a_bond_below_the_bridge_of_a_tap_is_a_team() -> None:
    below = Link("bond0", master="br0", bond=bond("a").bond)
    facts = host(*EIGHT, links=links(nic("a"), below, Link("br0")))

    assert [
        team.label for team in teams(see('[uplink.lan]\nkind = "tap"\ndevice = "t"\nbridge = "br0"\n', facts))
    ] == ["bond bond0"]


def test_capacity_is_a_sum_or_the_smallest() -> None:
    """4 + 8 queues: 12 in SUM, 4 in MIN; 10 VMs."""
    facts = host(*EIGHT, links=links(nic("a", queues=4), nic("b", queues=8), bond("a", "b")))
    ten = "".join(vm(f"v{number}", f"52:54:00:00:00:{number:02}", uplink="lan") for number in range(10))

    found = only(miscounted(see(BOND + ten, facts)))
    assert found.evidence[0].value == "MIN: min(4, 8) = 4 (bond0 is a bond, mode 802.3ad)"
    assert found.evidence[1].value == "v4, v5, v6, v7, v8, v9"
    assert "add up to 12" in found.fix.command
    assert found.severity == "note"  # nobody goes without: the queues of VMs are in software

    two = '[uplink.lan]\nkind = "packet"\ndevice = "a"\n[uplink.b]\nkind = "packet"\ndevice = "b"\n'
    (clear,) = miscounted(see(two + ten, facts))
    assert (clear.status, clear.evidence[0].value) == (
        "clear",
        "SUM: 4 + 8 = 12 (each VM belongs to one uplink)",
    )


@pytest.mark.parametrize(
    ("logical", "members", "smt", "share"),
    [
        (32, 2, True, 7),
        (32, 2, False, 15),
        (128, 2, True, 16),
        (128, 2, False, 16),
        (2, 2, True, 0),
        (4, 2, False, 1),
    ],
)
def test_processors_a_member_may_have(logical: int, members: int, smt: bool, share: int) -> None:
    """With hyper-threading min((Ct − 2) / 2 / Nt, 16), without min((Ct − 1) / Nt, 16)."""
    assert processors_per_member(logical, members, smt=smt) == share


def test_a_partition_prefers_the_node_of_each_member() -> None:
    """One processor a core, none of the host's."""
    facts = host(
        "0,8", "1,9", "2,10", "3,11", "4,12", "5,13", "6,14", "7,15", nodes=("0-3,8-11", "4-7,12-15")
    )

    assert partition(facts, (nic("a", node=1), nic("b", node=0))) == {"a": (4, 5, 6), "b": (1, 2, 3)}


def test_a_bond_is_named_and_without_one_nothing_applies() -> None:
    assert only(bonded(see(BOND, nics((1,), (2,))))).subject == "bond bond0"
    assert statuses(bonded(see(THREE, nics((1,), (2,), (3,))))) == ["not_applicable"]


def test_a_member_at_another_speed() -> None:
    def members(one: Link, two: Link) -> list[str]:
        outcomes = unlike(see(BOND, host(*EIGHT, links=links(one, two, bond("a", "b")))))
        return (
            [entry.where for said in outcomes for entry in said.evidence]
            if outcomes[0].status == "found"
            else statuses(outcomes)
        )

    same = nic("a", speed=10000, driver=SLOW)
    assert members(same, nic("b", speed=1000, driver=SLOW)) == ["speed"]
    assert members(same, nic("b", speed=10000, driver=FAST, queues=8)) == ["driver", "receive queues"]
    assert members(same, nic("b", speed=10000, driver=SLOW)) == ["clear"]
    assert members(same, nic("b", driver=SLOW)) == ["unknown"]
    assert statuses(unlike(see(THREE))) == ["not_applicable"]
