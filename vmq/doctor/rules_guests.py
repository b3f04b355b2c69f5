# SPDX-License-Identifier: Apache-2.0
"""D18, D20, D21, D28, D29: how the guest's device is made, by QEMU's command line and by what the driver took.

A frame needs room on its whole way: the MTU of the uplink, of the VM port and of the guest, and a receive buffer that is
free at that moment. A guest that was told more than its VM port takes sends frames into nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmq.doctor.finding import (
    RELOAD,
    Evidence,
    Fix,
    Outcome,
    Severity,
    found,
    not_applicable,
    settled,
    unknown,
)
from vmq.doctor.situation import Attached, PortView, Row, Situation
from vmq.doctor.steps import Feature, Step, edit

QEMU_ENDS = "the guest is restarted"
NO_GUEST = "no QEMU process or libvirt domain of these VM ports is seen"
TOO_LONG = ("to_guest_too_long", "from_guest_too_long", "from_wire_too_long")


def unmerged(see: Situation) -> list[Outcome]:
    """D18: the guest cannot take long frames in several buffers, or merged frames are cut again for it."""
    outcomes = [
        _unmerged(one.port, Evidence(one.machine.where, "mrg_rxbuf=off", "mrg_rxbuf=on"))
        for one in see.attached
        if not one.nic.mergeable
    ]
    told = {vm for said in outcomes for vm in said.vms}
    for port in see.ports:
        running = port.row.get("state") == "running" and port.name not in told
        if running and "net_f_mrg_rxbuf" not in (port.row.get("features") or ()):
            seen = Evidence("vmq show vms --json: features", "no net_f_mrg_rxbuf", "net_f_mrg_rxbuf")
            outcomes.append(_unmerged(port, seen))
    outcomes += [
        _cut_again(row) for row in see.rows("uplinks") or () if row.get("segmented") and _merges(see, row)
    ]
    if not outcomes and not see.attached and see.shown is None:
        return [unknown(f"{NO_GUEST}, and no engine runs")]
    return settled(outcomes, Evidence("mrg_rxbuf", f"on for {len(see.attached)} guests seen"))


def _merges(see: Situation, row: Row) -> bool:
    """Whether the device still does; what was counted before it was switched off is past."""
    link = see.facts.links.get(str(row.get("device")))
    return link is None or link.driver is None or link.driver.features.get("rx-gro", True)


def _cut_again(row: Row) -> Outcome:
    return found(
        f"uplink {row.get('name')}",
        Evidence("vmq show uplinks --json: segmented", str(row.get("segmented")), "0"),
        severity="note",
        why="The host merged TCP frames (GRO), and vmq cut them again: no guest is offered whole ones yet.",
        fix=Fix(
            f"ethtool -K {row.get('device')} gro off",
            "",
            "the host's own TCP takes more time",
            (Feature(str(row.get("device")), "rx-gro", on=False),) if row.get("device") else (),
        ),
        undo=f"ethtool -K {row.get('device')} gro on",
    )


def _unmerged(port: PortView, evidence: Evidence) -> Outcome:
    return found(
        port.label,
        evidence,
        vms=(port.name,),
        why="Without mergeable buffers every receive buffer must hold the longest frame: long frames cannot be offered.",
        fix=Fix(
            "mrg_rxbuf=on in QEMU's -device (its default), and a driver that takes it", QEMU_ENDS, port.label
        ),
    )


def bypassed(see: Situation) -> list[Outcome]:
    """D20: the guest has a device of the NIC with the same address, and sends by that."""
    if not see.ports:
        return [not_applicable("there is no VM")]
    functions = [link for link in see.facts.links.values() if link.function]
    outcomes = [
        found(
            port.label,
            Evidence(
                f"/sys/class/net/{link.name}/address", f"{link.mac}, a virtual function", "another address"
            ),
            Evidence(see.key(f"vm.{port.name}", "mac"), ", ".join(port.macs)),
            vms=(port.name,),
            confidence="likely",
            why="Frames go to the virtual function that has the VM's address; its receive queue in vmq stays empty.",
            fix=Fix(
                f"Choose one: ip link set {link.name} address OTHER, or take [vm.{port.name}] out of {see.where}"
            ),
            undo=f"ip link set {link.name} address {link.mac}",
        )
        for port in see.ports
        for link in functions
        if link.mac in port.macs
    ]
    outcomes += [
        found(
            one.port.label,
            Evidence(one.machine.where, "failover=on, and a device of the host's", "one of the two"),
            vms=(one.port.name,),
            severity="note",
            why="The guest uses the passthrough device while it is there; vmq carries its traffic during migration only.",
            fix=Fix("Nothing, if that is meant; else leave out failover=on", QEMU_ENDS),
        )
        for one in see.attached
        if one.nic.standby and one.machine.passthrough
    ]
    return settled(
        outcomes,
        Evidence("/sys/class/net/*/device/physfn", f"{len(functions)} virtual functions on the host"),
    )


def few_vcpus(see: Situation) -> list[Outcome]:
    """D21: more receive queues than vCPUs, or several but fewer."""
    if not see.attached:
        return [unknown(NO_GUEST)]
    outcomes = []
    for one in see.attached:
        queues, vcpus = one.nic.queues, one.machine.vcpus
        if queues in (1, vcpus):
            continue
        best = min(vcpus, one.port.queue_pairs)
        many = queues > vcpus
        outcomes.append(
            found(
                one.port.label,
                Evidence(one.machine.where, f"queues={queues}, {vcpus} vCPUs", f"queues={best}"),
                vms=(one.port.name,),
                severity=None if many else "note",
                why="Only as many receive queues work at once as there are vCPUs."
                if many
                else "With fewer queues than vCPUs, several vCPUs share one, which some guest drivers do badly.",
                fix=Fix(
                    f"queues={best},vectors={2 * best + 2} in QEMU, or {queues} vCPUs",
                    QEMU_ENDS,
                    one.port.label,
                ),
            )
        )
    return settled(
        outcomes, *(Evidence(one.machine.where, f"queues={one.nic.queues}") for one in see.attached)
    )


# --- D28: MTU -----------------------------------------------------------------------------------------------


def jumbo(see: Situation) -> list[Outcome]:
    """D28: somebody on the way was told a larger MTU than the next one takes."""
    if not see.ports:
        return [not_applicable("there is no VM")]
    outcomes = [said for port in see.ports for said in _beyond_uplink(see, port)]
    outcomes += [said for one in see.attached for said in _told_more(see, one)]
    outcomes += list(_beyond_bridge(see))
    for view in ("vms", "uplinks"):
        for row in see.rows(view) or ():
            outcomes += _too_long(view, str(row.get("name")), row.get("drops") or {})
    looked = (Evidence(f"MTU of {port.label}", str(see.mtu_of(port) or "its device's")) for port in see.ports)
    return settled(outcomes, *looked)


def _mismatch(
    port: PortView,
    *evidence: Evidence,
    fix: str,
    undo: str = "",
    severity: Severity | None = None,
    steps: tuple[Step, ...] = (),
) -> Outcome:
    return found(
        port.label,
        *evidence,
        vms=(port.name,),
        severity=severity,
        why="Frames that are longer than the smallest MTU on the way disappear, while short ones pass.",
        fix=Fix(fix, RELOAD, port.label, steps),
        undo=undo,
    )


def _beyond_uplink(see: Situation, port: PortView) -> Iterator[Outcome]:
    uplink = see.uplink_of(port)
    wire = uplink.mtu_in_effect if uplink else None
    if uplink is None or wire is None or port.mtu is None or port.mtu == wire:
        return
    ours, theirs = see.key(f"vm.{port.name}", "mtu"), f"MTU of {uplink.label}"
    if port.mtu > wire:
        yield _mismatch(
            port,
            Evidence(ours, str(port.mtu), f"at most {wire}"),
            Evidence(theirs, str(wire), "the smallest on the way"),
            fix=f"mtu = {wire} in [vm.{port.name}] of {see.where}, or mtu = {port.mtu} in [uplink.{uplink.name}]",
            undo=f"mtu = {port.mtu} in [vm.{port.name}]",
            steps=(edit(f"vm.{port.name}", mtu=wire),),
        )
    else:
        yield _mismatch(
            port,
            Evidence(ours, str(port.mtu), f"{wire}, as its neighbours may use"),
            Evidence(theirs, str(wire)),
            severity="note",
            fix=f"Leave mtu out of [vm.{port.name}], if the guest takes {wire}",
            undo=f"mtu = {port.mtu} in [vm.{port.name}]",
        )


def _told_more(see: Situation, one: Attached) -> Iterator[Outcome]:
    takes = see.mtu_of(one.port)
    if takes is not None and one.nic.mtu is not None and one.nic.mtu > takes:
        yield _mismatch(
            one.port,
            Evidence(one.machine.where, f"host_mtu={one.nic.mtu}", f"at most {takes}"),
            Evidence(f"MTU of {one.port.label}", str(takes), "the smallest on the way"),
            fix=f"host_mtu={takes} in QEMU's -device, or mtu = {one.nic.mtu} in [vm.{one.port.name}] and its uplink",
        )


def _beyond_bridge(see: Situation) -> Iterator[Outcome]:
    for uplink in see.uplinks.values():
        bridge = see.facts.links.get(uplink.bridge or "")
        mtu = uplink.mtu_in_effect
        if bridge is None or bridge.mtu is None or mtu is None or mtu <= bridge.mtu:
            continue
        yield found(
            uplink.label,
            Evidence(f"MTU of {uplink.label}", str(mtu), f"at most {bridge.mtu}"),
            Evidence(f"/sys/class/net/{bridge.name}/mtu", str(bridge.mtu), "the smallest on the way"),
            why=f"Frames that are longer than bridge {bridge.name} takes disappear there, while short ones pass.",
            fix=Fix(
                f"mtu = {bridge.mtu} in [uplink.{uplink.name}] of {see.where}, or ip link set {bridge.name} mtu {mtu}",
                RELOAD,
                f"the uplink is opened anew, and VMs of {uplink.name} reconnect",
                (edit(f"uplink.{uplink.name}", mtu=bridge.mtu),),
            ),
            undo=f"mtu = {mtu} in [uplink.{uplink.name}]",
        )


def _too_long(view: str, name: str, drops: dict[str, int]) -> list[Outcome]:
    lost = {cause: drops[cause] for cause in TOO_LONG if drops.get(cause)}
    if not lost:
        return []
    noun = "VM" if view == "vms" else "uplink"
    return [
        found(
            f"{noun} {name}",
            *(Evidence(f"vmq show {view}: drops, {cause}", str(count), "0") for cause, count in lost.items()),
            vms=(name,) if noun == "VM" else (),
            confidence="likely",
            why="Frames came that are longer than somebody on the way takes; they were dropped.",
            fix=Fix(
                "The same MTU on uplink, VM port and guest: mtu in [uplink.NAME] and [vm.NAME], host_mtu in QEMU"
            ),
        )
    ]


# --- D29: receive buffers -----------------------------------------------------------------------------------


def shallow(see: Situation) -> list[Outcome]:
    """D29: a burst finds no free receive buffer. A shallow ring is a note, drops a warning."""
    ring, share = see.limits.ring, see.limits.drops_per_million / 1_000_000
    outcomes = [said for row in see.rows("queues") or () for said in _ran_out(row, ring, share)]
    told = {vm for said in outcomes for vm in said.vms}
    outcomes += [
        found(
            one.port.label,
            Evidence(one.machine.where, f"rx_queue_size={one.nic.rx_queue_size}", f"rx_queue_size={ring}"),
            vms=(one.port.name,),
            severity="note",
            why="The guest has room for few frames while it is not looking: a burst may not fit.",
            fix=Fix(
                f"rx_queue_size={ring},tx_queue_size={ring} in QEMU's -device", QEMU_ENDS, one.port.label
            ),
        )
        for one in see.attached
        if one.by_socket and one.nic.rx_queue_size < ring and one.port.name not in told
    ]
    outcomes += [_overrun(see, row) for row in see.rows("uplinks") or () if row.get("lost")]
    if not outcomes and see.shown is None:
        return [unknown("no engine runs: drops are not counted" + ("" if see.attached else f"; {NO_GUEST}"))]
    return settled(
        outcomes,
        Evidence("vmq show queues: to_guest_no_buffer", f"at most {share:.2%} (drops_per_million)"),
    )


def _overrun(see: Situation, row: Row) -> Outcome:
    return found(
        f"uplink {row.get('name')}",
        Evidence("vmq show uplinks --json: lost", str(row["lost"]), "0"),
        Evidence("sysctl net.core.rmem_max", see.facts.sysctls.get("net.core.rmem_max", "not to be read")),
        why="The uplink's packet socket was full: its processor did not come in time.",
        fix=Fix(
            "More processors: processors in [engine]; or a larger socket buffer: give vmq run CAP_NET_ADMIN",
            "vmq run",
        ),
    )


def _ran_out(row: Row, ring: int, share: float) -> Iterator[Outcome]:
    drops, offered, size = row.get("drops"), row.get("offered_to_guest"), row.get("size_to_guest")
    lost = drops.get("to_guest_no_buffer", 0) if isinstance(drops, dict) else 0
    if not isinstance(offered, int) or not lost or lost <= offered * share:
        return
    vm, shallow_ring = str(row.get("vm")), isinstance(size, int) and 0 < size < ring
    yield found(
        f"VM {vm}, receive queue {row.get('queue')}",
        Evidence(
            "vmq show queues: to_guest_no_buffer",
            f"{lost} of {offered}",
            f"at most {share:.2%} (drops_per_million)",
        ),
        Evidence("vmq show queues --json: size_to_guest", str(size), str(ring)),
        vms=(vm,),
        confidence="likely" if shallow_ring else "possible",
        why="Bursts found no free receive buffer: the ring is shallow."
        if shallow_ring
        else "The ring is as deep as it can be, so the guest does not come in time to empty it.",
        fix=Fix(f"rx_queue_size={ring} in QEMU's -device", QEMU_ENDS, f"VM {vm}")
        if shallow_ring
        else Fix(
            "A vCPU with less other work, or a processor of its own for it, in the guest and on the host"
        ),
    )
