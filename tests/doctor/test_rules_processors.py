# SPDX-License-Identifier: Apache-2.0
"""Processors on recorded topologies: what they serve beside a receive queue, and how they are shared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.doctor.hosts import EIGHT, LAN, WEB, host, links, nic, only, qemu, see, statuses, vm
from vmq.doctor.facts import Facts
from vmq.doctor.finding import Outcome
from vmq.doctor.rules_processors import (
    asleep,
    far_memory,
    moderated,
    on_core_0,
    on_siblings,
    one_a_core,
    overloaded,
)
from vmq.doctor.steps import Write

SMT = ("0-1", "2-3", "4-5", "6-7")  # siblings beside each other
FAR = ("0,4", "1,5", "2,6", "3,7")  # siblings far apart


def on(cpus: str) -> str:
    return f'[engine]\nprocessors = "{cpus}"\n'


def test_a_worker_on_processor_0_with_eight_and_with_one() -> None:
    """A note only, where there is no other processor."""
    found = only(on_core_0(see(on("0,3"), host(*EIGHT))))
    assert (found.severity, found.subject) == (None, "processor 0")
    assert found.fix.command.startswith('processors = "1-2" in [engine] of vmq.toml')
    assert found.undo == 'processors = "0,3"'

    assert only(on_core_0(see(on("0"), host("0-1")))).severity == "note"
    assert only(on_core_0(see(on("0"), host("0", "1")))).severity is None
    assert statuses(on_core_0(see(on("1"), host("0", "1")))) == ["clear"]


def test_the_sibling_of_processor_0_is_the_hosts_too() -> None:
    assert only(on_core_0(see(on("4"), host(*FAR)))).subject == "processor 4"
    assert statuses(on_core_0(see(on("1"), host(*FAR)))) == ["clear"]


def test_where_processors_are_isolated_the_others_are_the_hosts() -> None:
    facts = host(*EIGHT, isolated="4-7")

    assert only(on_core_0(see(on("3"), facts))).fix.command.startswith('processors = "4"')
    assert statuses(on_core_0(see(on("4"), facts))) == ["clear"]


def test_interrupts_of_an_uplink_on_processor_0_are_a_note() -> None:
    facts = host(*EIGHT, links=links(nic("eth0", 30, 31)), irqs={30: (0,), 31: (2,)})

    found = only(on_core_0(see(on("1") + LAN, facts)))
    assert (found.severity, found.subject) == ("note", "uplink lan")
    assert "for irq in 30; do echo 1 >" in found.fix.command
    assert statuses(on_core_0(see(on("1") + LAN, replace(facts, irqs={30: (3,), 31: (2,)})))) == ["clear"]


def test_a_worker_that_somebody_moved_counts_where_it_is() -> None:
    """Effective, not requested."""
    shown = {"processors": [{"cpu": 3, "effective": [0]}]}

    assert only(on_core_0(see("", host(*EIGHT), **shown))).evidence[0].where == "vmq show processors"


def test_without_topology_or_processors_nothing_is_said() -> None:
    assert statuses(on_core_0(see(on("1")))) == ["unknown"]
    assert statuses(on_core_0(see("", host(*EIGHT)))) == ["unknown"]
    assert statuses(on_siblings(see(on("1")))) == ["unknown"]
    assert statuses(on_siblings(see("", host(*EIGHT)))) == ["unknown"]
    assert statuses(on_siblings(see(on("9"), host(*EIGHT)))) == ["unknown"]


def test_processors_that_are_left_open_are_those_that_would_be_chosen() -> None:
    """The planner of the engine decides, so a healthy choice is clear before anything runs."""
    (clear,) = on_core_0(see(vm("web"), host(*SMT)))

    assert (clear.status, clear.evidence[0].value) == ("clear", "2,4,6")


@pytest.mark.parametrize(
    ("cores", "cpus", "pair"),
    [(SMT, "2-3", "processors 2 and 3"), (FAR, "1,5", "processors 1 and 5")],
)
def test_two_workers_on_one_core(cores: tuple[str, ...], cpus: str, pair: str) -> None:
    """Adjacent siblings, distant siblings."""
    found = only(on_siblings(see(on(cpus), host(*cores))))

    assert found.subject == pair
    assert "one of a core" in found.evidence[1].expected


@pytest.mark.parametrize(("cores", "cpus"), [(SMT, "2,4"), (FAR, "1,2"), (EIGHT, "1-7")])
def test_one_worker_a_core_is_clear(cores: tuple[str, ...], cpus: str) -> None:
    assert statuses(on_siblings(see(on(cpus), host(*cores)))) == ["clear"]


def test_a_worker_beside_a_pinned_vcpu() -> None:
    """A vCPU that may run on several cores is nobody's neighbour."""
    guest = qemu()

    found = only(on_siblings(see(on("2"), host(*SMT), replace(guest, pinned=((3,),)))))
    assert "taskset -pc" in found.fix.command
    assert statuses(on_siblings(see(on("2"), host(*SMT), replace(guest, pinned=((2, 3, 4),))))) == ["clear"]


def test_one_processor_a_core_leaves_the_hosts_out() -> None:
    assert one_a_core(host(*SMT), 8) == (2, 4, 6)
    assert one_a_core(host(*FAR), 2) == (1, 2)
    assert one_a_core(Facts(), 2) == ()


# --- nodes --------------------------------------------------------------------------------------------------


def two_nodes(node: int | None) -> Facts:
    return host(*EIGHT, nodes=("0-3", "4-7"), links=links(nic("eth0", node=node)))


def test_a_nic_on_another_node_than_the_workers() -> None:
    found = only(far_memory(see(on("1-2") + LAN, two_nodes(1))))

    assert found.subject == "uplink lan"
    assert found.fix.command.startswith('processors = "4-5" in [engine]')
    assert statuses(far_memory(see(on("1-2") + LAN, two_nodes(0)))) == ["clear"]


def test_an_unknown_node_is_unknown_unless_there_is_only_one() -> None:
    """−1 in the file is None here."""
    assert statuses(far_memory(see(on("1") + LAN, two_nodes(None)))) == ["unknown"]
    one = host(*EIGHT, nodes=("0-7",), links=links(nic("eth0")))
    assert statuses(far_memory(see(on("1") + LAN, one))) == ["clear"]
    assert statuses(far_memory(see(on("1") + LAN, host(*EIGHT)))) == ["unknown"]


def test_guest_memory_on_another_node_than_its_worker() -> None:
    """Where NIC and guest differ, it says which costs less, and why."""
    text = on("1") + LAN + vm("web", uplink="lan", processor=1, socket="/run/vmq/web.sock")
    guest = replace(qemu(), nodes={0: 10, 1: 1000})

    found = only(far_memory(see(text, two_nodes(0), guest)))
    assert found.vms == ("web",)
    assert "The NIC is on node 0: the guest's node costs less" in found.why
    near = replace(guest, nodes={0: 1000, 1: 10})
    assert statuses(far_memory(see(text, two_nodes(0), near))) == ["clear"]
    assert statuses(far_memory(see(text, two_nodes(0), qemu()))) == ["unknown"]


# --- power, moderation, load --------------------------------------------------------------------------------


def power(governor: str | None, wake_us: int | None) -> Facts:
    facts, sleeps = host("0", "1"), () if wake_us is None else ((0, 1), (2, wake_us))
    return replace(
        facts, cpus={1: replace(facts.cpus[1], governor=governor, sleeps=sleeps), 0: facts.cpus[0]}
    )


def test_a_slow_governor_and_deep_sleep_of_the_workers_processor() -> None:
    found = only(asleep(see(on("1"), power("powersave", 10))))
    assert found.fix.command == "echo performance > /sys/devices/system/cpu/cpu1/cpufreq/scaling_governor"
    assert found.undo == "echo powersave > /sys/devices/system/cpu/cpu1/cpufreq/scaling_governor"
    deep = only(asleep(see(on("1"), power("performance", 101))))
    assert (deep.evidence[0].value, deep.evidence[0].expected) == ("101 µs", "at most 100 µs (wake_us)")
    state = "/sys/devices/system/cpu/cpu1/cpuidle/state2/disable"
    assert deep.fix.command == f"for s in {state}; do echo 1 > $s; done"
    assert deep.fix.steps == (Write(state, "1"),)


def test_thresholds_are_keys_of_the_configuration() -> None:
    """[doctor] of the file; without one, the defaults."""
    kind = on("1") + "[doctor]\nwake_us = 200\nbusy_percent = 50\nsingle_percent = 20\n"

    assert statuses(asleep(see(kind, power("performance", 101)))) == ["clear"]
    assert statuses(moderated(see(kind, None, **busy(0.6, 30, 70)))) == ["found"]
    assert statuses(overloaded(see(kind, None, **busy(0.6)))) == ["unknown"]
    assert statuses(overloaded(see(kind, None, **busy(0.4)))) == ["clear"]


def test_power_is_clear_or_hidden() -> None:
    """Unknown in a VM that hides both; another processor's governor is nobody's business."""
    assert statuses(asleep(see(on("1"), power("performance", 100)))) == ["clear"]
    assert statuses(asleep(see(on("1"), power(None, None)))) == ["unknown"]
    assert statuses(asleep(see(on("0"), power("powersave", 999)))) == ["unknown"]


def busy(ratio: float, *batches: int) -> dict[str, list[dict[str, object]]]:
    queue = {"vm": "web", "queue": 0, "processor": 1, "batches": list(batches)}
    return {
        "processors": [{"cpu": 1, "busy_ratio": ratio}],
        "queues": [queue],
        "vms": [{"name": "web", "mac": [WEB]}],
    }


def test_one_frame_an_indication_on_a_busy_processor() -> None:
    assert only(moderated(see("", None, **busy(0.95, 95, 5)))).confidence == "possible"
    assert statuses(moderated(see("", None, **busy(0.5, 95, 5)))) == ["clear"]  # it has time
    assert statuses(moderated(see("", None, **busy(0.95, 50, 50)))) == ["clear"]
    assert statuses(moderated(see("", None, **busy(0.95)))) == ["clear"]
    assert statuses(moderated(see(on("1")))) == ["unknown"]


def test_indications_that_are_held_back_and_gather_nothing() -> None:
    """The processor has time: frames wait for no reason."""

    def held(*batches: int, **moderation: int) -> list[Outcome]:
        rows = busy(0.1, *batches)
        rows["queues"][0]["requested"] = {"moderation": moderation}
        return moderated(see("", None, **rows))

    found = only(held(95, 5, indications=1000, frames=0))
    assert (found.evidence[0].value, found.confidence) == ("indications 1000", "possible")
    assert found.fix.command == "vmq queue set QUEUE --indications 0 --frames 0"
    assert statuses(held(50, 50, indications=1000)) == ["clear"]
    assert statuses(held(95, 5, indications=0, frames=0)) == ["clear"]


def test_a_saturated_processor_is_not_blamed_on_flows_that_nobody_counts() -> None:
    assert statuses(overloaded(see("", None, **busy(0.95)))) == ["unknown"]
    assert statuses(overloaded(see("", None, **busy(0.5)))) == ["clear"]
    assert statuses(overloaded(see(on("1")))) == ["unknown"]
