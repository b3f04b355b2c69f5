# SPDX-License-Identifier: Apache-2.0
"""The catalogue: 34 ways to set up a virtual machine queue so that it does nothing, or harm, and the rule for each.

    plan    decidable from configuration and topology: vmq check runs these, too
    live    needs what a running engine counts
    probe   would send or wait for traffic            prove   needs a measurement

`examine` runs every rule; a code is never missing from the answer. A rule that cannot apply here, or cannot look yet,
says why in its row. A rule that fails is reported and hides no other: what engines and hosts say may have any shape.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from vmq.doctor import (
    rules_filters,
    rules_guests,
    rules_processors,
    rules_proved,
    rules_queues,
    rules_scarce,
    rules_teams,
)
from vmq.doctor.finding import Evidence, Finding, Outcome, Severity, clear, not_applicable, unknown
from vmq.doctor.situation import Rule, Situation


@dataclass(frozen=True)
class Entry:
    """One way to get it wrong. `kinds`: plan, live, probe, prove."""

    code: str
    title: str
    kinds: str
    severity: Severity
    source: str
    rule: Rule


@dataclass(frozen=True)
class Report:
    """All findings, and the codes of rules that could not be run."""

    findings: tuple[Finding, ...]
    failed: tuple[str, ...] = ()

    @property
    def found(self) -> tuple[Finding, ...]:
        """What is wrong and not accepted."""
        return tuple(one for one in self.findings if one.status == "found" and not one.accepted)

    @property
    def accepted(self) -> tuple[Finding, ...]:
        """What is there, and may stay: `ignore` of [doctor]."""
        return tuple(one for one in self.findings if one.accepted)

    @property
    def wrong(self) -> bool:
        """Whether traffic is lost or goes to the wrong place, or a rule could not be run."""
        return bool(self.failed) or any(one.severity == "error" for one in self.found)


def _says(outcome: Outcome, _: Situation) -> list[Outcome]:
    return [outcome]


def never(why: str) -> Rule:
    """A mistake that cannot be made here."""
    return partial(_says, not_applicable(why))


_TABLE = "a VM has one active receive queue in this version, so there is no indirection table to be uneven"
_DRIVER_VERSION = "placement switched asks nothing of a driver; what direct placement misses, vmq show settings says of the VM's placement"

CATALOGUE = (
    Entry("D01", "Members of a team add up their queues, but share processors", "plan", "error",
          "KB2974384", rules_teams.overlapping),
    Entry("D02", "Members of a team may replace each other, but have different processors", "plan", "error",
          "KB2974384", rules_teams.differing),
    Entry("D03", "Queues of a team counted wrongly: sum or smallest", "plan", "warning",
          "Windows Server: NIC Teaming", rules_teams.miscounted),
    Entry("D04", "A receive queue is served on processor 0", "plan live", "warning",
          "Windows Server: Switch Embedded Teaming", rules_processors.on_core_0),
    Entry("D05", "Two receive queues on one physical core", "plan", "warning",
          "KB2974384", rules_processors.on_siblings),
    # Of a VM: no running receive queue, none of its own though idle, one on a queue pair that its guest does not enable;
    # QEMU that does not meet it, or shares no memory. Of anything: a setting with another value, filters among them; a
    # worker that was moved; a configuration file that is not the one in force, as it was refused or not read again.
    Entry("D06", "Asked for, and not in effect", "plan live", "note",
          "Windows Server: plan the use of vRSS", rules_queues.not_in_effect),
    Entry("D07", "A NIC driver known to be bad", "live", "error", "KB2986895", rules_scarce.swallowed),
    Entry("D08", "More virtual NICs than receive queues", "plan live", "warning",
          "KB3001783", rules_scarce.too_many),
    Entry("D09", "The host refuses what vmq asks of it", "live", "error",
          "KB3001783", rules_queues.refused),
    Entry("D10", "A busy VM was left without a receive queue", "live", "warning",
          "PowerShell: Set-VMNetworkAdapter", rules_scarce.left_without),
    Entry("D11", "Idle VMs hold receive queues", "live", "warning", "KB3001783",
          rules_scarce.held_idle),
    Entry("D12", "A filter waits in the wrong VLAN", "plan live", "error",
          "Windows drivers: setting a VMQ filter", rules_filters.wrong_vlan),
    Entry("D13", "The NIC does not take VLAN tags off", "plan", "warning",
          "Windows drivers: setting a VMQ filter", rules_filters.tags_in_software),
    Entry("D14", "A receive queue is served on another NUMA node", "plan", "warning",
          "PowerShell: Set-NetAdapterVmq", rules_processors.far_memory),
    Entry("D15", "Two VMs with one MAC address", "plan live", "error", "KB968703", rules_filters.duplicates),
    Entry("D16", "The filter has an address that the guest no longer has", "plan live", "error",
          "confusedamused.com", rules_filters.stale_filter),
    Entry("D17", "A buffer is given back under a stale queue id", "live", "note", "KB2887595",
          rules_scarce.stale_ids),
    Entry("D18", "Offloads are lost on the way to the guest", "plan live", "warning",
          "Windows Server: RSC in the vSwitch", rules_guests.unmerged),
    Entry("D19", "One processor is saturated by a VM with one receive queue", "live", "warning",
          "Windows drivers: INF keywords for VMQ", rules_processors.overloaded),
    Entry("D20", "A virtual function carries the VM's traffic", "plan", "warning",
          "Windows Server: plan the use of vRSS", rules_guests.bypassed),
    Entry("D21", "Receive queues and vCPUs do not match", "plan", "warning",
          "Windows Server: plan the use of vRSS", rules_guests.few_vcpus),
    Entry("D22", "More receive queues made it slower", "prove", "warning",
          "virtio-win issue 237", rules_proved.slower),
    Entry("D23", "An indirection table leads to one processor", "live", "warning",
          "Validate-HypvRssVMQ.ps1", never(_TABLE)),
    Entry("D24", "Several receive queues asked for, and something they need is missing", "plan live", "warning",
          "Windows Server: resolve vRSS issues", rules_queues.queues_unused),
    Entry("D25", "A bond below vmq instead of several uplinks", "plan", "note",
          "Windows Server: Switch Embedded Teaming", rules_teams.bonded),
    Entry("D26", "Unlike members in a team", "plan", "warning", "Validate-HypvRssVMQ.ps1", rules_teams.unlike),
    Entry("D27", "A driver that lacks features", "plan", "note",
          "Azure Local: host network requirements", never(_DRIVER_VERSION)),
    Entry("D28", "MTUs do not match", "plan live", "error",
          "Intel 82599: specification clarification 14", rules_guests.jumbo),
    Entry("D29", "Too few receive buffers", "plan live", "warning",
          "virtio-win issues 1012 and 1028", rules_guests.shallow),
    Entry("D30", "A processor saves power", "plan", "note", "Palo Alto: VNF tuning", rules_processors.asleep),
    Entry("D31", "Interrupts are moderated too much or too little", "live", "note",
          "Windows Server: hardware-only features", rules_processors.moderated),
    Entry("D32", "A guest needs one more MAC address", "live", "warning",
          "Performance tuning, Windows Server 2012 R2: MAC spoofing", rules_filters.second_address),
    Entry("D33", "A policy that looks at every frame costs the fast way", "plan", "note",
          "by analogy with SR-IOV", rules_queues.inspected),
    Entry("D34", '"Disable VMQ", said without a measurement', "plan prove", "note",
          "public scripts", rules_scarce.disabled),
)  # fmt: skip
BY_CODE = {entry.code: entry for entry in CATALOGUE}
UNRUNNABLE = (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def examine(see: Situation, codes: Collection[str] = (), vm: str | None = None, kind: str = "") -> Report:
    """Run the rules, all or those of `codes` or `kind`; keep what concerns `vm`, if one is named."""
    findings: list[Finding] = []
    failed = []
    for entry in CATALOGUE:
        if (codes and entry.code not in codes) or (kind and kind not in entry.kinds.split()):
            continue
        try:
            outcomes = entry.rule(see)
        except UNRUNNABLE as problem:
            failed.append(entry.code)
            outcomes = [unknown(f"the rule could not be run: {type(problem).__name__}: {problem}")]
        ignored = entry.code in see.limits.ignore
        findings += [_finding(entry, said, ignored=ignored) for said in _about(see, outcomes, vm)]
    return Report(tuple(findings), tuple(failed))


def _about(see: Situation, outcomes: list[Outcome], vm: str | None) -> list[Outcome]:
    """What concerns a VM: itself, its uplink, the processors and the host."""
    port = next((one for one in see.ports if one.name == vm), None)
    if port is None:
        return outcomes
    elsewhere = {uplink.label for name, uplink in see.uplinks.items() if name != port.uplink}
    kept = [
        said for said in outcomes if (port.name in said.vms or not said.vms) and said.subject not in elsewhere
    ]
    return kept or [clear(Evidence("what was found", f"concerns other VMs: {len(outcomes)}"))]


def _finding(entry: Entry, said: Outcome, *, ignored: bool) -> Finding:
    return Finding(
        code=entry.code,
        title=entry.title,
        status=said.status,
        severity=said.severity or entry.severity,
        confidence=said.confidence,
        subject=said.subject,
        evidence=said.evidence,
        why=said.why,
        fix=said.fix,
        undo=said.undo,
        source=entry.source,
        accepted=ignored and said.status == "found",
    )
