# SPDX-License-Identifier: Apache-2.0
"""D06, D08, D09, D24, D33: what was asked for is not what is in effect.

The oldest complaint about VMQ is that it says "enabled" and does nothing. Here a receive queue that a VM asked for and
does not have is always found, with the engine's own reason, and so is every setting whose effective value is not the
requested one. What the engine would refuse at its start is found before it: too many queues, a socket that QEMU looks for
elsewhere, both sides waiting for the other to call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vmq.doctor.finding import (
    Evidence,
    Fix,
    Outcome,
    Severity,
    clear,
    found,
    not_applicable,
    settled,
    unknown,
)
from vmq.doctor.situation import Attached, Row, Situation
from vmq.placement import QUEUES_MAX, VMS_MAX

VIEWS_WITH_SETTINGS = ("vms", "queues", "uplinks", "processors")
QEMU_ENDS = "the guest is restarted"
RELOAD = "nothing: on SIGHUP vmq run reads its file again"


# --- D06: asked for, not in effect --------------------------------------------------------------------------


def not_in_effect(see: Situation) -> list[Outcome]:
    """D06: a VM has no receive queue, or a setting has another value than was asked for."""
    outcomes = [said for one in see.attached for said in _unreachable(one)]
    if see.shown is None:
        return outcomes or [unknown("no engine runs: what is in effect is not known")]
    outcomes += [said for row in see.rows("vms") or () for said in _without_queue(row)]
    for view in VIEWS_WITH_SETTINGS:
        for row in see.rows(view) or ():
            outcomes += [said for one in _settings(row) for said in _setting(view, row, one)]
    moved = (_moved(row) for row in see.rows("processors") or ())
    outcomes += [said for said in moved if said is not None]
    return settled(
        outcomes, Evidence("vmq show", f"{len(see.rows('vms') or ())} VMs: every setting as requested")
    )


def _without_queue(row: Row) -> Iterator[Outcome]:
    """A front-end is connected and its guest has no running receive queue, or the engine names an obstacle."""
    error, state = row.get("last_error"), row.get("state")
    if state not in ("connected", "faulted", "running") or (state == "running" and not error):
        return
    said = error if isinstance(error, dict) else {}
    if "is not one of its addresses" in str(said.get("what")):  # D16 or D32 says more about it
        return
    lost = {name: count for name, count in (row.get("drops") or {}).items() if name.startswith("to_guest_")}
    severity: Severity = "error" if lost or state == "faulted" else "note"
    name = str(row.get("name"))
    drops = ", ".join(f"{count} {cause}" for cause, count in lost.items())
    yield found(
        f"VM {name}",
        Evidence("vmq show vms: state", f"{state}, queues_running {row.get('queues_running')}", "running"),
        Evidence(
            "vmq show vms: last_error", str(said.get("what") or "none: the guest's driver has not started")
        ),
        *((Evidence("vmq show vms: drops", drops, "none"),) if drops else ()),
        vms=(name,),
        severity=severity,
        why="The VM asked for a receive queue, and it is not in effect for the reason above.",
        fix=Fix(str(said.get("remedy") or "start the guest's driver: nothing else is missing")),
    )


def _settings(row: Row) -> Iterator[Row]:
    """What a row tells as requested, effective and why: a list of settings, and fields of that form."""
    yield from row.get("settings") or ()
    for name, value in row.items():
        if isinstance(value, Mapping) and {"requested", "effective"} <= set(value):
            yield {"name": name, **value}


def _setting(view: str, row: Row, setting: Row) -> Iterator[Outcome]:
    """One setting with requested, effective and why. What nobody asked for has no requested value."""
    asked, effective, why = setting.get("requested"), setting.get("effective"), str(setting.get("why") or "")
    if asked is None or asked == effective:
        return
    name, key = str(row.get("name") or row.get("vm") or row.get("cpu")), str(setting.get("name"))
    noun = {"vms": "VM", "queues": "VM", "uplinks": "uplink", "processors": "processor"}[view]
    yield found(
        f"{noun} {name}",
        Evidence(f"vmq show {view} --json: settings, {key}", f"effective {effective}", f"requested {asked}"),
        vms=(name,) if noun == "VM" else (),
        why=why or "Something outside of vmq changed it after vmq had set it.",
        fix=Fix(_override(key, effective, why)),
    )


def _override(key: str, effective: Any, why: str) -> str:
    """The command that brings about what was asked for, or accepts what is."""
    if "rmem_max" in why:
        return "Give vmq run CAP_NET_ADMIN, or: sysctl -w net.core.rmem_max=BYTES; then restart vmq run"
    return f"Correct what the reason names and restart vmq run; or accept it: set {key} to {effective}"


def _moved(row: Row) -> Outcome | None:
    """A worker whose thread somebody else has moved."""
    cpu, effective = row.get("cpu"), row.get("effective")
    if not effective or effective == [cpu]:
        return None
    return found(
        f"processor {cpu}",
        Evidence("vmq show processors --json: effective", str(effective), f"[{cpu}]"),
        why="Something outside of vmq moved the worker: taskset, a cpuset, the service manager.",
        fix=Fix(f"taskset -pc {cpu} {row.get('thread')}", "", "nothing"),
    )


def _unreachable(one: Attached) -> Iterator[Outcome]:
    """QEMU will not reach the VM port, or shares no memory with it."""
    port, nic, where = one.port, one.nic, one.machine.where

    def said(evidence: Evidence, why: str, fix: str) -> Outcome:
        return found(
            port.label,
            evidence,
            vms=(port.name,),
            severity="error",
            why=why,
            fix=Fix(fix, QEMU_ENDS, port.label),
        )

    if not one.by_socket:
        yield said(
            Evidence(where, f"path={nic.socket}", f"path={port.socket}"),
            "QEMU has the VM's address, and calls at a socket that is not vmq's.",
            f'vmq snippet qemu {port.name}: its -chardev line; or socket = "{nic.socket}" in [vm.{port.name}]',
        )
    elif nic.server == (port.mode == "listen"):
        side = "listen" if nic.server else "connect"
        yield said(
            Evidence(where, f"QEMU {side}s too", f"one of the two {'connects' if nic.server else 'listens'}"),
            f"vmq and QEMU both {side}, so they never meet.",
            f'mode = "{"connect" if nic.server else "listen"}" in [vm.{port.name}], or server={"off" if nic.server else "on"}',
        )
    if one.by_socket and one.machine.shared is False:
        yield said(
            Evidence(where, "guest memory is private", "a shared memory backend"),
            "vmq sees an empty copy of guest memory: the socket connects and no frame moves.",
            "QEMU: -object memory-backend-memfd,id=m,size=SIZE,share=on -machine memory-backend=m; "
            "libvirt: <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
        )


# --- D08, D09, D24, D33 -------------------------------------------------------------------------------------


def too_many(see: Situation) -> list[Outcome]:
    """D08: VMs ask for more receive queues, or there are more of them, than an engine has."""
    if not see.ports:
        return [not_applicable("there is no VM")]
    asked = sum(port.queue_pairs for port in see.ports)
    looked = (
        Evidence("sum of queue_pairs", str(asked), f"at most {QUEUES_MAX}"),
        Evidence("VMs", str(len(see.ports)), f"at most {VMS_MAX}"),
    )
    if asked <= QUEUES_MAX and len(see.ports) <= VMS_MAX:
        return [clear(*looked)]
    enough = max(QUEUES_MAX // len(see.ports), 1)
    starved, left = [], QUEUES_MAX
    for port in see.ports:
        left -= port.queue_pairs
        if left < 0:
            starved.append(port.name)
    return [
        found(
            "engine",
            *looked,
            Evidence("VMs that would have none", ", ".join(starved[:8]) + (", …" if starved[8:] else "")),
            why="Receive queues are taken in the order of the configuration, and the engine refuses what is too many.",
            fix=Fix(f"queue_pairs = {enough} in each [vm.NAME] of {see.where}", RELOAD),
        )
    ]


def refused(see: Situation) -> list[Outcome]:
    """D09: the host refused something to a running uplink. At the start a refusal ends vmq run, in words."""
    rows = see.rows("uplinks")
    if rows is None:
        return [unknown("no engine runs: nothing was asked of the host yet")]
    outcomes = []
    for row in rows:
        name = str(row.get("name"))
        gone = row.get("state") in ("gone", "down")
        words = [str(one.get("why")) for one in row.get("settings") or () if "refused" in str(one.get("why"))]
        if gone or words:
            outcomes.append(
                found(
                    f"uplink {name}",
                    *((Evidence("vmq show uplinks: state", str(row.get("state")), "up"),) if gone else ()),
                    *(Evidence("vmq show uplinks --json: settings", one) for one in words),
                    severity=None if gone else "warning",
                    why="The device of this uplink does not do what vmq asked of it.",
                    fix=Fix(
                        f"ip link set {row.get('device')} up; if it is gone, restart vmq run once it is back"
                        if gone
                        else f"promiscuous = true in [uplink.{name}] of {see.where}: then nothing is asked of the device",
                        "" if gone else "vmq run",
                    ),
                )
            )
    return settled(
        outcomes,
        *(Evidence("vmq show uplinks: state", f"{row.get('name')}: {row.get('state')}") for row in rows),
    )


def queues_unused(see: Situation) -> list[Outcome]:
    """D24: QEMU asks for several receive queues, and something it needs for them is missing."""
    several = [one for one in see.attached if one.by_socket and one.nic.queues > 1]
    if not several:
        return [not_applicable("no QEMU or libvirt guest of these VM ports asks for several receive queues")]
    outcomes = []
    for one in several:
        queues, port = one.nic.queues, one.port
        missing = tuple(_missing(one))
        if missing:
            fit = min(queues, port.queue_pairs)
            fix = f"queues={fit},mq=on,vectors={2 * fit + 2} in QEMU; in a Linux guest: ethtool -L DEVICE combined {fit}"
            why = "The guest was given several receive queues and cannot use them all."
            fixed = Fix(fix, QEMU_ENDS, port.label)
            outcomes.append(found(port.label, *missing, vms=(port.name,), why=why, fix=fixed))
    said = (f"queues={one.nic.queues}, vectors={one.nic.vectors or 'chosen by QEMU'}" for one in several)
    return settled(
        outcomes, *(Evidence(one.machine.where, text) for one, text in zip(several, said, strict=True))
    )


def _missing(one: Attached) -> Iterator[Evidence]:
    """What stands in the way of several queues; only where nothing does, what the driver made of them."""
    nic, port, where = one.nic, one.port, one.machine.where
    needed = 2 * nic.queues + 2
    wrong = (
        (not nic.multiqueue, Evidence(where, "mq=off", "mq=on")),
        (
            nic.vectors is not None and nic.vectors < needed,
            Evidence(where, f"vectors={nic.vectors}", f"vectors={needed}"),
        ),
        (
            nic.queues > port.queue_pairs,
            Evidence(where, f"queues={nic.queues}", f"at most {port.queue_pairs}: queue_pairs"),
        ),
    )
    yield from (evidence for holds, evidence in wrong if holds)
    running = port.row.get("queues_running")
    if not any(holds for holds, _ in wrong) and port.row.get("state") == "running" and running is not None:
        if running < nic.queues:
            yield Evidence("vmq show vms: queues_running", str(running), str(nic.queues))


def inspected(see: Situation) -> list[Outcome]:
    """D33: the host's firewall looks at every frame of a bridge below vmq. Policies of vmq itself cost no placement."""
    names = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")
    on = [name for name in names if see.facts.sysctls.get(name) == "1"]
    bridged = [uplink for uplink in see.uplinks.values() if uplink.bridge]
    if not bridged:
        return [
            not_applicable(
                "every receive queue has placement switched in this version: no policy takes a better one away; "
                "and no uplink joins a bridge"
            )
        ]
    outcomes = [
        found(
            uplink.label,
            *(Evidence(f"sysctl {name}", "1", "0") for name in on),
            why=f"The host's firewall sees every frame of bridge {uplink.bridge} before vmq does.",
            fix=Fix(
                "; ".join(f"sysctl -w {name}=0" for name in on), "", "rules that filter bridged frames end"
            ),
            undo="; ".join(f"sysctl -w {name}=1" for name in on),
        )
        for uplink in bridged
        if on
    ]
    return settled(
        outcomes, *(Evidence(f"sysctl {name}", see.facts.sysctls.get(name, "not there")) for name in names)
    )
