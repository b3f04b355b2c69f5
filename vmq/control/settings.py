# SPDX-License-Identifier: Apache-2.0
"""What was asked for, what is in effect, and why the two differ: for every setting there is.

VMQ's critics name one thing above all: "enabled" does not mean "in effect". So no view has a setting without the three,
and `why` is empty only where they agree. A row has the name of its key in the configuration. Three have none:

    filters          the addresses of `mac`, and those that a VM has learned or follows
    receive_queue    what `weight` is for
    offloads         what the guest may do without

Effective is read where it is in force: from the kernel, the front-end, the lane or the next version of the tables. What
clients of the API have beside the configuration has rows of its own (owned.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from vmq.abi.ethernet import mac_text
from vmq.config import Memory, Pcap, Tap, cpu_text
from vmq.contract import CONFIG
from vmq.control.filtered import taken
from vmq.control.owned import of_owners
from vmq.doctor.finding import listed
from vmq.engine.changes import OpenedUplink
from vmq.engine.engine import Engine
from vmq.engine.tier import LED
from vmq.engine.vm import DEFAULT_MTU, Vm
from vmq.uplink.base import setting
from vmq.worker import Worker

Row = dict[str, Any]
UNTAGGED = "untagged"
LEFT_OUT = "left out: it is the device's own"
CHANGED = "something outside of vmq changed it after vmq had set it"
MOVED = "something outside of vmq moved its thread"
NO_OFFLOADS = "not offered in this version: checksums and segments are finished before a guest gets them"
NO_QUEUE = "it has no receive queue of its own"


def settings(engine: Engine) -> list[Row]:
    """Every setting of a running engine, the engine's own first, those of clients last."""
    found = [{"of": "engine", **row} for row in _of_engine(engine)]
    found += [{"of": "doctor", **row} for row in _of_doctor(engine)]
    for name, opened in engine.uplinks.items():
        told = opened.uplink.status()
        found += [{"of": f"uplink {name}", **row} for row in of_uplink(engine, name, told)]
    found += [{"of": f"vm {vm.name}", **row} for vm in engine.vms.values() for row in of_vm(vm)]
    return [*found, *_missing(engine), *of_owners(engine)]


def _missing(engine: Engine) -> Iterator[Row]:
    """Tables of the configuration that are not in force any more."""
    for subject, why in engine.changes.missing.items():
        yield {"of": subject, **setting("table", f"[{subject.replace(' ', '.', 1)}]", None, why)}


def _of_engine(engine: Engine) -> Iterator[Row]:
    asked = engine.config.engine
    cpus = sorted({cpu for worker in engine.workers for cpu in runs_on(worker) or [worker.cpu]})
    moved = [f"{MOVED}: processor {worker.cpu}" for worker in engine.workers if _is_moved(worker)]
    wanted = cpu_text(asked.processors) if asked.processors else None
    yield setting("processors", wanted, cpu_text(cpus), "; ".join([engine.why, *moved]))
    if asked.placement == "dynamic" and len(engine.workers) == 1:
        yield setting("placement", asked.placement, "static", "there is one processor")
    else:
        yield setting("placement", asked.placement, asked.placement)
    known, named = engine.directing.known, asked.placement_figures
    known.look(time.monotonic(), named)
    if known.why:
        yield setting("placement_figures", named, None, known.why)
    else:
        yield setting("placement_figures", named, str(known.path), known.band.words())
    yield setting("idle", asked.idle, "poll" if engine.segment.engine["polls"] else "sleep")
    fallen = [vm.name for vm in engine.vms.values() if engine.guarding.fallen(vm)]
    words = f"on the default queue because of it: {', '.join(fallen)}" if fallen else ""
    yield setting("guard", asked.guard, asked.guard, words)


def runs_on(worker: Worker) -> list[int]:
    """Where the thread of a processor may run, as the kernel has it; nowhere, if it does not run."""
    return sorted(os.sched_getaffinity(worker.thread_id)) if worker.alive() and worker.thread_id else []


def _is_moved(worker: Worker) -> bool:
    return runs_on(worker) not in ([], [worker.cpu])


def _of_doctor(engine: Engine) -> Iterator[Row]:
    """Its rules read them from the record itself."""
    for key, value in msgspec.to_builtins(engine.config.doctor).items():
        yield setting(key, value, value)


# --- uplinks -----------------------------------------------------------------------------------------------------


def of_uplink(engine: Engine, name: str, told: Mapping[str, Any]) -> list[Row]:
    """Every setting of one uplink; `told` is its status: what its kind reads back."""
    opened = engine.uplinks[name]
    config, reach = opened.config, engine.changes.uplink_reaches[name]
    words = reach.why or "all of the engine's"
    asked = cpu_text(config.processors) if config.processors else None
    forwards = "forward" if opened.uplink.lanes[0]["forward_link_local"] else "drop"
    found = [
        _receive_queues(engine, name),
        setting("processors", asked, cpu_text(reach.cpus), words),
        setting("numa_node", config.numa_node, config.numa_node),
        setting("link_local", config.link_local, forwards),
        *_of_kind(opened),
        *map(_explained, told.get("settings", ())),
    ]
    if not any(row["name"] == "mtu" for row in found):
        why = "" if config.mtu == opened.uplink.mtu else "left out: that of its longest frame, or the default"
        found.append(setting("mtu", config.mtu, opened.uplink.mtu, why))
    return found


def _explained(row: Row) -> Row:
    """What a device says without a reason has one of two."""
    if row["why"] or row["requested"] == row["effective"]:
        return row
    return row | {"why": LEFT_OUT if row["requested"] is None else CHANGED}


def _receive_queues(engine: Engine, uplink: str) -> Row:
    """How many VMs of an uplink have a receive queue of their own."""
    vms = [vm for vm in engine.vms.values() if vm.config.uplink == uplink]
    have = sum(vm.home.owns(vm) for vm in vms)
    limit = engine.uplinks[uplink].config.queues
    why = "" if have == len(vms) else f"{len(vms)} VMs; the others are served by the default queue"
    why = why or ("as many as there are VMs" if limit != have else "")
    every = engine.queues[uplink].contract.enum_queues(None)
    others = [one for one in every if one["effective"] and one["owner"] != CONFIG]
    clients = listed([f"queue {one['queue']} of {one['owner']}" for one in others])
    return setting("queues", limit, have, f"{why}; {len(others)} more: {clients}" if others else why)


def _of_kind(opened: OpenedUplink) -> Iterator[Row]:
    """What only its kind has, and the kind itself does not read back."""
    config, lane = opened.config, opened.uplink.lanes[0]
    if isinstance(config, Tap):  # what they say happens once, when it is opened and when it is closed
        yield setting("create", config.create, config.create)
        yield setting("persist", config.persist, config.persist)
    if isinstance(config, Pcap | Memory):
        yield setting("lossless", config.lossless, bool(lane["lossless"]))
    if isinstance(config, Pcap):
        yield setting("read", config.read, config.read)
        yield setting("repeat", _laps(config.repeat), _laps(int(lane["laps"])))
        yield setting("rate", config.rate, config.rate if lane["gap"] else None)
    if isinstance(config, Memory):
        frames, laps = int(lane["source_count"]), int(lane["laps"])
        yield setting("size", config.size, config.size)
        yield setting("count", config.count, None if frames and not laps else frames * laps)


def _laps(laps: int) -> int | str:
    return laps or "no end"


# --- VM ports ----------------------------------------------------------------------------------------------------


def of_vm(vm: Vm) -> list[Row]:
    """Every setting of one VM port."""
    return [
        _own_queue(vm),
        _weight(vm),
        setting("uplink", vm.config.uplink, vm.home.effects.uplink),
        setting("mode", vm.config.mode, vm.port.mode),
        _filters(vm),
        *_followed(vm),
        _processor(vm),
        _written_by(vm),
        _nic_queue(vm),
        _queue_pairs(vm),
        _mtu(vm),
        setting("offloads", "all that the guest can do", "none", NO_OFFLOADS),
        *_moderation(vm),
        *_overload(vm),
        *_checks(vm),
        _accept(vm),
    ]


def _own_queue(vm: Vm) -> Row:
    asked = "own" if vm.config.weight else "default"
    effective = "default" if vm.queues[0].shared else "own"
    return setting("receive_queue", asked, effective, "" if asked == effective else _why_shared(vm))


def _filters(vm: Vm) -> Row:
    """Its addresses, and what filters of higher priority leave of them."""
    found = list(taken(vm))
    lost = {one.mac: one.whole for one in found}  # of several filters to one address the last is the widest
    left = [mac_text(mac) + " in part" * (mac in lost) for mac in vm.macs if not lost.get(mac)]
    return setting("filters", [mac_text(mac) for mac in vm.macs], left, "; ".join(one.why for one in found))


def _why_shared(vm: Vm) -> str:
    if not vm.home.owns(vm):
        return vm.lack
    if vm.engine.proving.busy == vm.name:
        return "it is being measured both ways"
    return vm.engine.guarding.fallen(vm)


def _processor(vm: Vm) -> Row:
    worker = vm.engine.workers[vm.worker]
    effective: int | str = worker.cpu
    why = vm.engine.places[vm.name].why
    if _is_moved(worker):
        effective, why = cpu_text(runs_on(worker)), f"{MOVED}: it is that of processor {worker.cpu}"
    elif vm.queues[0].shared:
        why = "the processor of the default queue"
    elif vm.queues[0].former >= 0:
        why = "it is on its way there"
    return setting("processor", vm.config.processor, effective, why)


def _written_by(vm: Vm) -> Row:
    """Who writes the payload: the word of the glossary is placement."""
    if vm.queues[0].shared:
        return setting(
            "placement", vm.config.placement, "switched twice", "its frames go through the default queue"
        )
    directing, asked = vm.engine.directing, vm.config.placement
    stage = directing.stage(vm)
    if stage == LED:
        return setting("placement", asked, "direct", directing.words(vm))
    why = directing.obstacle(vm) or directing.whys.get(vm.name, "") or f"on its way: {stage}"
    return setting("placement", asked, "switched", why if asked != "switched" else "")


def _nic_queue(vm: Vm) -> Row:
    """The queue of the NIC that is its alone."""
    asked = vm.config.nic_queue
    if asked is None:
        return setting("nic_queue", None, None)
    if vm.queues[0].nic:
        return setting("nic_queue", asked, asked, vm.engine.directing.nic_queues.rules(vm))
    why = vm.engine.directing.nic_queues.refused(vm)
    if not why and vm.config.placement == "switched":
        why = "its frames are to be switched, and come as they do without it"
    return setting("nic_queue", asked, None, why or vm.engine.directing.obstacle(vm) or "on its way")


def _queue_pairs(vm: Vm) -> Row:
    asked, running = vm.config.queue_pairs, len(vm.running)
    why = "" if running == asked else vm.obstacle or f"the guest has enabled {running}"
    return setting("queue_pairs", asked, running, why)


def _mtu(vm: Vm) -> Row:
    uplink = vm.engine.uplink_of(vm)
    asked, effective = vm.config.mtu, vm.mtu
    if effective == asked:
        why = ""
    elif effective == vm.session.mtu:
        why = "the guest was told so by its front-end"
    else:
        why = f"the MTU of {vm.config.uplink}" if uplink else f"the default, {DEFAULT_MTU}"
    return setting("mtu", asked, effective, why)


def _accept(vm: Vm) -> Row:
    asked = ", ".join(vm.config.accept) or "nothing"
    uplink = vm.engine.uplinks.get(vm.config.uplink or "")
    taken = uplink.uplink.status().get("membership", "promiscuous") if uplink else "promiscuous"
    if "unknown" not in vm.config.accept or taken == "promiscuous":
        return setting("accept", asked, asked)
    why = f"{vm.config.uplink} asks its device for the addresses of its VMs only: set its promiscuous"
    return setting("accept", asked, f"{asked} from other VMs", why)


def _moderation(vm: Vm) -> Iterator[Row]:
    """When the guest is told; 0: every batch."""
    asked, first = vm.config, vm.queues[0]
    # A gap is a whole number of nanoseconds: what was asked for may be the number that it came from.
    indications = 10**9 // first.gap if first.gap else 0
    if asked.indications and 10**9 // asked.indications == first.gap:
        indications = asked.indications
    why = "" if vm.home.owns(vm) else NO_QUEUE
    yield setting("indications", asked.indications, indications, why if asked.indications else "")
    yield setting(
        "indication_frames", asked.indication_frames, first.gather, why if asked.indication_frames else ""
    )


def _overload(vm: Vm) -> Iterator[Row]:
    """What becomes of frames that find no buffer."""
    asked, first = vm.config, vm.queues[0]
    waits = "drop-oldest" if first.oldest else "hold"
    yield setting("overload", asked.overload, waits if first.keep else "drop-newest")
    frames = asked.overload_frames if asked.overload != "drop-newest" else None
    yield setting("overload_frames", frames, first.keep or None)


def _checks(vm: Vm) -> Iterator[Row]:
    """What its guest may send, as it stands in the next version of the tables."""
    entry, asked = vm.entry(), vm.config
    yield setting("vlan", asked.vlan or UNTAGGED, entry.vlan or UNTAGGED)
    yield setting("spoof_check", asked.spoof_check, entry.spoof_check)
    yield setting("storm_limit", asked.storm_limit, entry.storm_limit)
    yield setting("learn", list(asked.learn), list(asked.learn) if entry.learn else [])
    beside = len(vm.learned) + len(vm.following.addresses)
    words = f"{beside} learned or followed, room for {vm.room}" if entry.learn or asked.qmp else ""
    yield setting("learn_max", asked.learn_max, beside + vm.room, words)


def _weight(vm: Vm) -> Row:
    asked = vm.home.contract.queue_parameters(None, vm.queue_id)["requested"]
    return setting("weight", vm.config.weight, asked["weight"])


def _followed(vm: Vm) -> Iterator[Row]:
    """Whose list of addresses is followed."""
    row, trouble, nic = vm.following.row(), vm.following.trouble, vm.config.qmp_nic
    if row is None:
        yield setting("qmp", None, None)
        yield setting("qmp_nic", nic, None)
        return
    waits = "followed while a front-end is connected" if row["state"] == "off" else ""
    yield setting("qmp", row["path"], None if trouble else row["path"], trouble[0] if trouble else waits)
    words = (
        "" if row["nic"] == nic else "told by its addresses" if nic is None else "QEMU has not named it yet"
    )
    yield setting("qmp_nic", nic, row["nic"], words)
