# SPDX-License-Identifier: Apache-2.0
"""D12, D13, D15, D16, D32: addresses and VLANs that do not meet the frames.

All but D13 share the near-miss table (`vmq show misses`), and each row is one rule's alone:

    wrong_vlan                                            D12
    duplicate_mac                                         D15   a station on the wire has the VM's address
    spoofed_source, which is another VM's address         D15
    spoofed_source of a VM none of whose frames passed    D16   its address changed, or was never the configured one
    spoofed_source of any other VM                        D32   it has one more address: nested guests, VRRP
    unknown_mac                                           none: an address without a filter is usually another host's

Before anything runs, QEMU's command line and the host's devices say part of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations

from vmq.doctor.facts import Link
from vmq.doctor.finding import RELOAD, Evidence, Fix, Outcome, clear, found, not_applicable, settled, unknown
from vmq.doctor.situation import PortView, Row, Situation, UplinkView, ports_on
from vmq.doctor.steps import Command, Feature, edit, words

MISSES = "vmq show misses"
NO_ENGINE = "no engine runs, or it does not tell near misses"


def blame(see: Situation, row: Row) -> str:
    """The rule that a near miss belongs to."""
    kind = row.get("kind")
    if kind == "spoofed_source":
        if _owners(see, row):
            return "D15"
        return "D32" if _passed(see, str(row.get("vm"))) else "D16"
    return {"wrong_vlan": "D12", "filter_vlan": "D12", "duplicate_mac": "D15"}.get(str(kind), "")


def _owners(see: Situation, row: Row) -> list[PortView]:
    """Other VMs of the same segment whose address a VM sends from."""
    sender = next((port for port in see.ports if port.name == row.get("vm")), None)
    return [
        port
        for port in see.ports
        if sender is not None
        and port is not sender
        and port.segment == sender.segment
        and row.get("mac") in port.macs
    ]


def _passed(see: Situation, vm: str) -> int:
    """Frames from a VM that were let through."""
    return sum(row.get("forwarded") or 0 for row in see.rows("queues") or () if row.get("vm") == vm)


def _misses(see: Situation, code: str) -> list[Row]:
    return [row for row in see.rows("misses") or () if blame(see, row) == code]


def _seen(row: Row, expected: str) -> Evidence:
    vlan = f"VLAN {row['vlan']}" if row.get("vlan") else "untagged"
    return Evidence(
        MISSES, f"{row.get('kind')} {row.get('mac')}, {vlan}, {row.get('count')} frames", expected
    )


def _looked(see: Situation, outcomes: list[Outcome], *looked: Evidence) -> list[Outcome]:
    """Clear only with an engine's near misses; what the configuration alone shows is not everything."""
    if outcomes:
        return outcomes
    if see.rows("misses") is None:
        return [unknown(f"{NO_ENGINE}; the configuration shows no mistake", "", *looked)]
    return [clear(Evidence(MISSES, f"{len(see.rows('misses') or ())} rows, none of this kind"), *looked)]


# --- D12, D13: VLANs ----------------------------------------------------------------------------------------


def wrong_vlan(see: Situation) -> list[Outcome]:
    """D12: a VM's filter waits in a VLAN in which its frames do not come."""
    outcomes = [_seen_elsewhere(see, row) for row in _misses(see, "D12")]
    for uplink in see.uplinks.values():
        tagged = [port for port in ports_on(see, uplink.name) if port.vlan]
        if tagged:
            outcomes += _taken_off(see, uplink, tagged)
            outcomes += _filtered(see, uplink, tagged)
    return _looked(see, outcomes, Evidence(see.where, "no VLAN device below an uplink of tagged VMs"))


def _seen_elsewhere(see: Situation, row: Row) -> Outcome:
    vm, vlan = str(row.get("vm")), row.get("vlan")
    if row.get("filters"):  # theirs, or one of two: which is for people to say
        return found(
            f"VM {vm}",
            _seen(row, "the VLAN of its receive filter"),
            vms=(vm,),
            confidence="likely",
            why="Frames to its address, or to that of a client's filter, come in a VLAN in which nothing waits for them.",
            fix=Fix(str(row.get("remedy"))),
        )
    own = next((port.vlan for port in see.ports if port.name == vm), None)
    ours = f"vlan = {vlan} in [vm.{vm}]" if vlan else f"leave vlan out of [vm.{vm}]"
    return found(
        f"VM {vm}",
        _seen(row, f"VLAN {own}" if own else "untagged"),
        vms=(vm,),
        confidence="likely",
        why="Frames to its address come in another VLAN than its filter waits in, and do not reach it.",
        fix=Fix(
            f"{ours} of {see.where}; or send {f'in VLAN {own}' if own else 'untagged'}",
            RELOAD,
            "that VM only",
            (edit(f"vm.{vm}", vlan=vlan or None),),
        ),
        undo=f"vlan = {own} in [vm.{vm}]" if own else f"leave vlan out of [vm.{vm}]",
    )


def _taken_off(see: Situation, uplink: UplinkView, tagged: list[PortView]) -> Iterator[Outcome]:
    """A VLAN device gives frames without the tag of its VLAN, as an access port does."""
    if uplink.link is None or uplink.link.vlan is None:
        return
    outer, below = uplink.link.vlan
    for port in tagged:
        same = port.vlan == outer
        yield found(
            port.label,
            Evidence(
                "/proc/net/vlan/config", f"{uplink.device} is VLAN {outer} of {below}", f"{below}, with tags"
            ),
            Evidence(
                see.key(f"vm.{port.name}", "vlan"),
                str(port.vlan),
                "no vlan" if same else f"a tag inside VLAN {outer}",
            ),
            vms=(port.name,),
            confidence="certain" if same else "possible",
            severity=None if same else "warning",
            why="The VLAN device takes the tag off before vmq sees the frame, and the VM's filter waits for it.",
            fix=Fix(
                f"Leave vlan out of [vm.{port.name}] of {see.where}, or let the uplink be {below}",
                RELOAD,
                "that VM only",
                (edit(f"vm.{port.name}", vlan=None),) if same else (),
            ),
            undo=f"vlan = {port.vlan} in [vm.{port.name}]",
        )


def _filtered(see: Situation, uplink: UplinkView, tagged: list[PortView]) -> Iterator[Outcome]:
    """Whoever stands before vmq and lets only VLANs pass that he was told."""
    link, device = uplink.link, uplink.device
    features = link.driver.features if link and link.driver else {}
    known = {one.vlan[0] for one in see.facts.links.values() if one.vlan and one.vlan[1] == device}
    stopped = [port for port in tagged if port.vlan not in known]
    if (
        uplink.kind in ("packet", "xdp")
        and features.get("rx-vlan-filter")
        and not uplink.promiscuous
        and stopped
    ):
        yield found(
            uplink.label,
            Evidence(f"ethtool -k {device}: rx-vlan-filter", "on", "off, or a VLAN device for each VLAN"),
            *(Evidence(see.key(f"vm.{port.name}", "vlan"), str(port.vlan)) for port in stopped),
            vms=tuple(port.name for port in stopped),
            confidence="likely",
            why="The NIC drops frames of VLANs that no VLAN device of the host has asked for.",
            fix=Fix(
                f"ethtool -K {device} rx-vlan-filter off, or promiscuous = true in [uplink.{uplink.name}]",
                "",
                "frames of all VLANs reach the host",
                (Feature(str(device), "rx-vlan-filter", on=False),),
            ),
            undo=f"ethtool -K {device} rx-vlan-filter on",
        )
    bridge = see.facts.links.get(uplink.bridge or "")
    if bridge is not None and bridge.vlan_filtering:
        vlans = ", ".join(sorted({str(port.vlan) for port in tagged}))
        yield unknown(
            f"bridge {bridge.name} filters VLANs, and which ones it lets pass to {device} cannot be read in files: "
            f"see bridge vlan show dev {device}; VLANs needed: {vlans}",
            uplink.label,
            Evidence(f"/sys/class/net/{bridge.name}/bridge/vlan_filtering", "1"),
            vms=tuple(port.name for port in tagged),
        )


def tags_in_software(see: Situation) -> list[Outcome]:
    """D13: the NIC does not take tags off. vmq does, in software: no tag reaches a guest."""
    outcomes: list[Outcome] = []
    looked: list[Evidence] = []
    for uplink in see.uplinks.values():
        tagged = [port for port in ports_on(see, uplink.name) if port.vlan]
        if uplink.kind != "packet" or not tagged:  # an XDP program needs tags in the frames
            continue
        driver = uplink.link.driver if uplink.link else None
        on = driver.features.get("rx-vlan-hw-parse") if driver else None
        where = f"ethtool -k {uplink.device}: rx-vlan-offload"
        if on is None:
            outcomes.append(unknown(f"{where} cannot be read", uplink.label))
        elif on:
            looked.append(Evidence(where, "on"))
        else:
            outcomes.append(
                found(
                    uplink.label,
                    Evidence(where, "off", "on, where the NIC can"),
                    vms=tuple(port.name for port in tagged),
                    severity="note",
                    why="The NIC leaves tags in the frames; vmq takes them off, which costs a copy of the header.",
                    fix=Fix(
                        f"ethtool -K {uplink.device} rxvlan on",
                        "",
                        "some NICs stop for a moment",
                        (Feature(str(uplink.device), "rx-vlan-hw-parse", on=True),),
                    ),
                    undo=f"ethtool -K {uplink.device} rxvlan off",
                )
            )
    if not outcomes and not looked:
        return [not_applicable("no VM of a packet uplink has a vlan")]
    return settled(outcomes, *looked)


# --- D15, D16, D32: addresses -------------------------------------------------------------------------------


def duplicates(see: Situation) -> list[Outcome]:
    """D15: one address, two owners."""
    outcomes = [*_same_bridge(see), *_same_on_host(see), *_same_in_qemu(see)]
    outcomes += [_used_twice(see, row) for row in _misses(see, "D15")]
    return _looked(
        see, outcomes, Evidence("addresses", f"{sum(len(port.macs) for port in see.ports)} of VMs")
    )


def _another(see: Situation, mac: str) -> str:
    """A locally administered address that nobody known has."""
    taken = {one for port in see.ports for one in port.macs} | {link.mac for link in see.facts.links.values()}
    taken |= {nic.mac for machine in see.machines for nic in machine.nics if nic.mac}
    tail = int(mac[9:].replace(":", ""), 16)
    tried = (f"52:54:00:{(tail + step) % (1 << 24):06x}" for step in range(1, len(taken) + 2))
    spelled = (f"{one[:9]}{one[9:11]}:{one[11:13]}:{one[13:]}" for one in tried)
    return next(one for one in spelled if one not in taken)


def _renamed(see: Situation, vm: str, mac: str) -> Fix:
    command = (
        f'mac = "{_another(see, mac)}" in [vm.{vm}] of {see.where}, and the same for the guest\'s device'
    )
    return Fix(command, RELOAD, "the guest is restarted for its new address")


def _network(see: Situation, port: PortView) -> tuple[str, int | None] | None:
    """What a VM port's frames come into beside its uplink: the bridge, if there is one, and the VLAN."""
    uplink = see.uplink_of(port)
    name = (uplink.bridge or (uplink.link.master if uplink.link else None)) if uplink else None
    return (name, port.vlan) if name else None


def _same_bridge(see: Situation) -> Iterator[Outcome]:
    """Two uplinks of one bridge are one network. (On one uplink the configuration is refused.)"""
    for one, two in combinations(see.ports, 2):
        both = set(one.macs) & set(two.macs)
        if both and one.uplink != two.uplink and _network(see, one) == _network(see, two) is not None:
            mac = min(both)
            yield found(
                f"{one.label} and {two.label}",
                Evidence(see.key(f"vm.{one.name}", "mac"), mac, "an address of its own"),
                Evidence(see.key(f"vm.{two.name}", "mac"), mac, "an address of its own"),
                Evidence("bridge of both uplinks", str((_network(see, one) or ("",))[0])),
                vms=(one.name, two.name),
                why="The bridge learns the address now on one uplink, now on the other: both VMs lose frames.",
                fix=_renamed(see, two.name, mac),
                undo=f'mac = "{mac}" in [vm.{two.name}]',
            )


def _same_on_host(see: Situation) -> Iterator[Outcome]:
    """The host's own end of a network has the VM's address: often a TAP that was given the guest's."""
    for port in see.ports:
        for link in see.facts.links.values():
            uplink = see.uplink_of(port)
            near = uplink is not None and (
                link.name in (uplink.device, uplink.bridge)
                or (link.master or "-") in (uplink.device, uplink.bridge)
            )
            if near and link.mac in port.macs:
                yield found(
                    f"{port.label} and device {link.name}",
                    Evidence(
                        f"/sys/class/net/{link.name}/address", link.mac, "another address than the VM's"
                    ),
                    Evidence(see.key(f"vm.{port.name}", "mac"), link.mac),
                    vms=(port.name,),
                    why="The host takes frames to this address for its own, so the VM does not get them all.",
                    fix=_readdressed(link, _another(see, link.mac)),
                    undo=f"ip link set {link.name} address {link.mac}",
                )


def _readdressed(link: Link, mac: str) -> Fix:
    command = ("ip", "link", "set", link.name, "address")
    step = Command((*command, mac), (*command, link.mac))
    return Fix(words(step), "", "neighbours must learn the address", (step,))


def _same_in_qemu(see: Situation) -> Iterator[Outcome]:
    """Another guest of this host has the address, on vmq or on some bridge."""
    ours = {(id(one.machine), id(one.nic)): one.port for one in see.attached if one.by_socket}
    nics = [(machine, nic) for machine in see.machines for nic in machine.nics if nic.mac]
    for (machine, nic), (other, twin) in combinations(nics, 2):
        ports = [ours.get((id(machine), id(nic))), ours.get((id(other), id(twin)))]
        known = [port for port in ports if port is not None]
        # A guest that runs, and whose domain was named, too.
        same_guest = machine is not other and machine.name == other.name
        if nic.mac != twin.mac or same_guest or not known:
            continue
        if len(known) == 2 and known[0].segment != known[1].segment:
            continue
        yield found(
            f"{machine.name} and {other.name}",
            Evidence(machine.where, f"mac={nic.mac}", "an address of its own"),
            Evidence(other.where, f"mac={twin.mac}", "an address of its own"),
            vms=tuple(port.name for port in known),
            confidence="certain" if len(known) == 2 else "likely",
            why="Two running guests have one address: a network delivers to whoever sent last.",
            fix=_renamed(see, known[-1].name, str(nic.mac)),
            undo=f'mac = "{nic.mac}" in [vm.{known[-1].name}]',
        )


def _used_twice(see: Situation, row: Row) -> Outcome:
    vm, mac = str(row.get("vm")), str(row.get("mac"))
    owners = _owners(see, row)
    other = owners[0].label if owners else f"a station on uplink {row.get('uplink')}"
    return found(
        f"VM {vm} and {other}",
        _seen(row, "sent by one of them only"),
        vms=(vm, *(port.name for port in owners)),
        confidence="certain" if owners else "possible",
        why="Two senders have one address, so answers go to the wrong one."
        + ("" if owners else " Or the network sends the VM's own frames back: look for a loop."),
        fix=_renamed(see, vm, mac)
        if owners or row.get("kind") == "duplicate_mac"
        else Fix(str(row.get("remedy"))),
    )


def stale_filter(see: Situation) -> list[Outcome]:
    """D16: the guest's address is not the one its filter has."""
    outcomes = []
    for one in see.attached:
        if one.by_socket and one.nic.mac and one.nic.mac not in one.port.macs:
            name, was = one.port.name, json.dumps(one.port.macs)
            outcomes.append(
                found(
                    one.port.label,
                    Evidence(one.machine.where, f"mac={one.nic.mac}", f"mac={', or '.join(one.port.macs)}"),
                    Evidence(see.key(f"vm.{name}", "mac"), was, one.nic.mac),
                    vms=(name,),
                    why="QEMU gives the guest another address than the filter has: what is sent to it goes elsewhere.",
                    fix=Fix(
                        f'mac = "{one.nic.mac}" in [vm.{name}] of {see.where}',
                        RELOAD,
                        "that VM only",
                        (edit(f"vm.{name}", mac=one.nic.mac),),
                    ),
                    undo=f"mac = {was} in [vm.{name}]",
                )
            )
    told = {vm for said in outcomes for vm in said.vms}
    outcomes += [_other_source(see, row, "D16") for row in _misses(see, "D16") if row.get("vm") not in told]
    return _looked(
        see, outcomes, Evidence("QEMU's addresses", f"{sum(one.by_socket for one in see.attached)} compared")
    )


def second_address(see: Situation) -> list[Outcome]:
    """D32: the guest sends from one more address, as nested guests and VRRP do."""
    if see.rows("misses") is None:
        return [unknown(NO_ENGINE)]
    return _looked(see, [_other_source(see, row, "D32") for row in _misses(see, "D32")])


def _other_source(see: Situation, row: Row, code: str) -> Outcome:
    vm, mac = str(row.get("vm")), str(row.get("mac"))
    own = next((port.macs for port in see.ports if port.name == vm), ())
    changed = "All its frames come from an address that is not the configured one, and are dropped."
    nested = "It also sends from an address that is not its own; those frames are dropped, and answers cannot reach it."
    add = f'mac = "{mac}" in' if code == "D16" else f'Add "{mac}" to mac, or a prefix of it to learn, of'
    return found(
        f"VM {vm}",
        _seen(row, ", ".join(own)),
        Evidence("vmq show queues: forwarded", str(_passed(see, vm))),
        vms=(vm,),
        confidence="likely",
        why=changed if code == "D16" else nested,
        fix=Fix(f"{add} [vm.{vm}] of {see.where}, if the guest may have it", RELOAD, "that VM only"),
        undo=f"mac = {json.dumps(own)} in [vm.{vm}]",
    )
