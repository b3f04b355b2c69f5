# SPDX-License-Identifier: Apache-2.0
"""D06, D09, D24, D33: what was asked for is not what is in effect.

The oldest complaint about VMQ is that it says "enabled" and does nothing. Here a receive queue that a VM asked for and
does not have is always found, with the engine's own reason, and so is every setting that somebody asked for and whose
effective value is another, and a file that is not in force. What the engine would refuse at its start is found before it: too many queues, a socket
that QEMU looks for elsewhere, both sides waiting for the other to call.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from vmq.config import tables
from vmq.config.forms import cpu_text
from vmq.doctor.finding import (
    RELOAD,
    Evidence,
    Fix,
    Outcome,
    Severity,
    found,
    listed,
    not_applicable,
    settled,
    unknown,
)
from vmq.doctor.rules_scarce import shares
from vmq.doctor.situation import Attached, Row, Situation
from vmq.doctor.steps import Command, Step, edit, words, writes

VIEWS_WITH_SETTINGS = ("vms", "queues", "uplinks", "processors")
QEMU_ENDS = "the guest is restarted"
DIFFERENCES = 8  # keys that are named
FIXED = ("api", "processors", "group")  # keys of [engine] with which SIGHUP is refused
# Settings with a rule of their own: D08, D10 and D11 say who has no receive queue of its own, D21 and D24 how many run.
# What hinders following a list of addresses is the VM's last error, which D06 tells anyway.
OTHERS = frozenset({"receive_queue", "queues", "queue_pairs", "qmp", "qmp_nic"})
# What is asked for by default, or as a hint, and what no key brings about: `vmq show settings` says why they differ.
SAID = frozenset({"placement", "offloads", "flows", "suggested_buffers"})


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
    outcomes += [said for row in see.rows("queues") or () for said in _not_enabled(row)]
    outcomes += _without_own(see)
    outcomes += [said for row in see.rows("configuration") or () for said in _not_taken(see, row)]
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


def _without_own(see: Situation) -> Iterator[Outcome]:
    """A VM asked for a receive queue of its own and has none; of a busy one D08, D10 and D11 say more."""
    for share in shares(see) or ():
        if not share.own and share.weight and share.frames < see.limits.busy_frames:
            yield found(
                share.port.label,
                Evidence("vmq show queues: own", f"no: {share.why or 'the engine gives no reason'}", "yes"),
                vms=(share.vm,),
                why="The default queue serves it together with others; with few frames that costs nothing.",
                fix=Fix(
                    f"None, while it is idle; else a higher weight in [vm.{share.vm}] of {see.where}", RELOAD
                ),
            )


def _not_enabled(row: Row) -> Iterator[Outcome]:
    """A receive queue in effect, on a queue pair that the guest does not run: what its filters match is lost."""
    why, name, pair = str(row.get("why") or ""), str(row.get("vm")), row.get("queue") or 0
    if row.get("queue_id") is None or row.get("life") != "Running" or "has not enabled queue pair" not in why:
        return
    lost = (row.get("drops") or {}).get("to_guest_not_running", 0)
    yield found(
        f"VM {name}",
        Evidence(f"vmq show queues: state of queue {pair}", str(row.get("state")), "running"),
        Evidence("vmq show queues: drops", f"{lost} to_guest_not_running", "none"),
        vms=(name,),
        severity="error" if lost else None,
        why=f"Receive queue {row['queue_id']} of {row.get('owner')} is in effect; its guest has not enabled it.",
        fix=Fix(f"In the guest: ethtool -L DEVICE combined {pair + 1}; or free the receive queue"),
    )


def _not_taken(see: Situation, row: Row) -> Iterator[Outcome]:
    """The file is not what is in force: the engine has refused it, or nobody has told it to read the file again."""
    read = see.config is not None and not see.in_force
    same_file = read and row.get("file") == os.path.abspath(see.where)
    differ = list(_differing(see, row.get("in_force") or {})) if same_file else []
    if not differ and (same_file or not row.get("refused")):  # what was refused is in the file no more
        return
    fixed = [key for key in FIXED if any(one.where == see.key("engine", key) for one in differ)]
    if row.get("refused") and not row.get("corrected"):
        why = "The engine has refused the file; the configuration from before it stays in force."
        fix = "Correct what the refusal names; then SIGHUP to vmq run"
    else:
        why = "The file was changed, and the engine was not told: what was in it before stays in force."
        fix = "SIGHUP to vmq run, which reads it again"
    if row.get("refused") and row.get("corrected"):
        why = f"An earlier version of the file was refused. {why}"
    if fixed:
        fix = f"Restart vmq run: it cannot change {listed(fixed)} of [engine] while it runs"
    refusal = (Evidence("vmq show configuration: refused", str(row.get("refused")), "none"),)
    yield found(
        f"configuration {row.get('file')}",
        *(refusal if row.get("refused") and not (differ and row.get("corrected")) else ()),
        *differ[:DIFFERENCES],
        severity="warning",
        why=why,
        fix=Fix(fix, "vmq run" if fixed else RELOAD),
    )


def _differing(see: Situation, in_force: Mapping[str, Any]) -> Iterator[Evidence]:
    """Keys with another value in the file than in force. A key that one of the two does not know is no difference."""
    asked = tables(see.config) if see.config else {}
    for table in sorted(asked.keys() | in_force.keys()):
        ours, theirs = asked.get(table), in_force.get(table)
        if ours is None or theirs is None:
            seen = "is not there" if ours is None else "is there"
            yield Evidence(f"{see.where}: [{table}]", seen, "in force" if ours is None else "not in force")
            continue
        for key in sorted(ours.keys() & theirs.keys()):
            if ours[key] != theirs[key]:
                yield Evidence(see.key(table, key), str(ours[key]), f"{theirs[key]}, which is in force")


def _settings(row: Row) -> Iterator[Row]:
    """What a row tells as requested, effective and why: a list of settings, fields of that form, or two tables."""
    yield from row.get("settings") or ()
    asked, got = row.get("requested"), row.get("effective")
    if isinstance(asked, Mapping) and isinstance(got, Mapping):
        why = row.get("difference") or {}
        for name, value in got.items():
            reason = why.get(name) or row.get("why")
            yield {"name": name, "requested": asked.get(name), "effective": value, "why": reason}
    for name, value in row.items():
        if isinstance(value, Mapping) and {"requested", "effective"} <= set(value):
            yield {"name": name, **value}


def _setting(view: str, row: Row, setting: Row) -> Iterator[Outcome]:
    """One setting with requested, effective and why. What nobody asked for has no requested value."""
    asked, effective, why = setting.get("requested"), setting.get("effective"), str(setting.get("why") or "")
    name, key = str(row.get("name") or row.get("vm") or row.get("cpu")), str(setting.get("name"))
    if asked is None or asked == effective or key in OTHERS | SAID:
        return
    if key == "processor" and "moved its thread" in why:  # `_moved` says more about it
        return
    if row.get("own_queue") is False and view == "vms" and key != "filters":  # what follows is said with it
        return
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
    if key == "filters":
        return "vmq filter clear FILTER, if it shall not; else take the address from mac of the VM"
    if "rmem_max" in why:
        return "Give vmq run CAP_NET_ADMIN, or: sysctl -w net.core.rmem_max=BYTES; then restart vmq run"
    return f"Correct what the reason names and restart vmq run; or accept it: set {key} to {effective}"


def _moved(row: Row) -> Outcome | None:
    """A worker whose thread somebody else has moved."""
    cpu, effective, thread = row.get("cpu"), row.get("effective"), row.get("thread")
    if not effective or effective == [cpu]:
        return None
    step = Command(
        ("taskset", "-pc", str(cpu), str(thread)), ("taskset", "-pc", cpu_text(effective), str(thread))
    )
    return found(
        f"processor {cpu}",
        Evidence("vmq show processors --json: effective", str(effective), f"[{cpu}]"),
        why="Something outside of vmq moved the worker: taskset, a cpuset, the service manager.",
        fix=Fix(words(step), "", "nothing", (step,) if thread else ()),
        undo=words(Command(step.back, step.argv)),
    )


def _unreachable(one: Attached) -> Iterator[Outcome]:
    """QEMU will not reach the VM port, or shares no memory with it."""
    port, nic, where = one.port, one.nic, one.machine.where

    def said(evidence: Evidence, why: str, fix: str, step: Step | None = None) -> Outcome:
        return found(
            port.label,
            evidence,
            vms=(port.name,),
            severity="error",
            why=why,
            fix=Fix(fix, RELOAD, port.label, (step,)) if step else Fix(fix, QEMU_ENDS, port.label),
        )

    if not one.by_socket:
        yield said(
            Evidence(where, f"path={nic.socket}", f"path={port.socket}"),
            "QEMU has the VM's address, and calls at a socket that is not vmq's.",
            f'vmq snippet qemu {port.name}: its -chardev line; or socket = "{nic.socket}" in [vm.{port.name}]',
        )
    elif nic.server == (port.mode == "listen"):
        side, other = ("listen", "connect") if nic.server else ("connect", "listen")
        yield said(
            Evidence(where, f"QEMU {side}s too", f"one of the two {other}s"),
            f"vmq and QEMU both {side}, so they never meet.",
            f'mode = "{other}" in [vm.{port.name}], or server={"off" if nic.server else "on"}',
            edit(f"vm.{port.name}", mode=other),
        )
    if one.by_socket and one.machine.shared is False:
        yield said(
            Evidence(where, "guest memory is private", "a shared memory backend"),
            "vmq sees an empty copy of guest memory: the socket connects and no frame moves.",
            "QEMU: -object memory-backend-memfd,id=m,size=SIZE,share=on -machine memory-backend=m; "
            "libvirt: <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
        )


# --- D09, D24, D33 -------------------------------------------------------------------------------------


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
                    fix=_answered(see, row),
                )
            )
    return settled(
        outcomes,
        *(Evidence("vmq show uplinks: state", f"{row.get('name')}: {row.get('state')}") for row in rows),
    )


def _answered(see: Situation, row: Row) -> Fix:
    """A device that is down is set up; one that refuses addresses is asked for all frames instead."""
    name, device = row.get("name"), str(row.get("device"))
    if row.get("state") not in ("gone", "down"):
        asked_less = (
            f"promiscuous = true in [uplink.{name}] of {see.where}: then nothing is asked of the device"
        )
        disturbs = f"the uplink is opened anew, and VMs of {name} reconnect"
        return Fix(asked_less, RELOAD, disturbs, (edit(f"uplink.{name}", promiscuous=True),))
    step = Command(("ip", "link", "set", device, "up"), ("ip", "link", "set", device, "down"))
    there = device in see.facts.links
    return Fix(
        f"{words(step)}; if it is gone, restart vmq run once it is back", "", "", (step,) if there else ()
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
                "no uplink joins a bridge; what of vmq keeps a VM from direct placement, vmq show settings says "
                "of its placement"
            )
        ]
    outcomes = [
        found(
            uplink.label,
            *(Evidence(f"sysctl {name}", "1", "0") for name in on),
            why=f"The host's firewall sees every frame of bridge {uplink.bridge} before vmq does.",
            fix=Fix(
                "; ".join(f"sysctl -w {name}=0" for name in on),
                "",
                "rules that filter bridged frames end",
                writes(tuple(f"/proc/sys/{name.replace('.', '/')}" for name in on), "0"),
            ),
            undo="; ".join(f"sysctl -w {name}=1" for name in on),
        )
        for uplink in bridged
        if on
    ]
    return settled(
        outcomes, *(Evidence(f"sysctl {name}", see.facts.sysctls.get(name, "not there")) for name in names)
    )
