# SPDX-License-Identifier: Apache-2.0
"""What `vmq show` shows: rows of plain values, read from the counters while the kernels count on.

A row says what is in effect, not what the configuration asked for: the processor is read back from the thread, the
uplink's settings from the kernel, features and sizes from the front-end. Every counter is one 64-bit word with one
writer, so a reader never sees half of it; sums of several are as consistent as the moment allows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from vmq.abi import virtio
from vmq.abi.ethernet import mac_text
from vmq.config import tables
from vmq.contract import CONFIG, DEFAULT_QUEUE, DROP_QUEUE
from vmq.control.histograms import histogram_row
from vmq.control.misses import misses
from vmq.control.owned import not_enabled, parameters
from vmq.control.settings import of_uplink, of_vm, runs_on, settings
from vmq.dataplane import reasons
from vmq.engine.engine import Engine
from vmq.engine.queues import UplinkQueues
from vmq.engine.vm import Vm
from vmq.errors import ApiError
from vmq.vhost.message import MEMORY_REMEDY
from vmq.worker import Worker

Row = dict[str, Any]
UNUSED = "no filter leads here: the guest may send on it"
ANY_VLAN = "any"
_FEATURES = {
    value: name.removeprefix("VIRTIO_").lower()
    for name, value in vars(virtio).items()
    if name.startswith(("VIRTIO_F_", "VIRTIO_NET_F_", "VIRTIO_RING_F_"))
}


def drops(*counters: Any) -> dict[str, int]:
    """Named drops that happened, summed over rows of counters."""
    total = sum(np.asarray(one, np.int64).reshape(-1, reasons.DROP_COUNT).sum(axis=0) for one in counters)
    return {name: int(total[code]) for code, (name, _) in enumerate(reasons.DROPS) if total[code]}


def _ratio(frames: Any, indications: Any) -> float | None:
    return round(int(frames) / int(indications), 1) if indications else None


def _placed(rows: Any) -> Row:
    """What the kernel wrote into guest memory, and what was left for the engine to write."""
    volume = int(rows["bytes_placed"].sum())
    return {
        "frames_placed": int(rows["frames_placed"].sum()),
        "bytes_placed": volume,
        "bytes_copied": int(rows["bytes_to_guest"].sum()) - volume,
    }


def last_error(vm: Vm) -> Row | None:
    """What stands in a VM's way, and the remedy."""
    if vm.error is not None:
        return {"what": vm.error[0], "remedy": vm.error[1]}
    if vm.spoofed:
        mac = mac_text(vm.spoofed)
        remedy = f'add "{mac}" to mac, a prefix of it to learn, or set spoof_check = false'
        return {"what": f"it sends from {mac}, which is not one of its addresses", "remedy": remedy}
    if vm.port.connection is not None and vm.obstacle:
        return {"what": vm.obstacle, "remedy": vm.remedy}
    if vm.unseen:
        what = "guest memory is not shared: nothing that the guest's driver writes arrives in the file we were given"
        return {"what": what, "remedy": MEMORY_REMEDY}
    if vm.following.trouble is not None:
        return {"what": vm.following.trouble[0], "remedy": vm.following.trouble[1]}
    if vm.session.mtu > vm.mtu:
        what = f"the guest was told an MTU of {vm.session.mtu}, and the VM port's is {vm.mtu}: longer frames are dropped"
        remedy = f"QEMU: host_mtu={vm.mtu} on the device; or raise mtu of [vm.{vm.name}] and its uplink"
        return {"what": what, "remedy": remedy}
    return None


def _features(vm: Vm) -> list[str]:
    word = vm.session.features or 0
    return [name for bit, name in sorted(_FEATURES.items()) if word >> bit & 1]


def vm_row(vm: Vm) -> Row:
    """One VM port."""
    rows = vm.queue_rows()
    worker = vm.engine.workers[vm.worker]
    return {
        "name": vm.name,
        "state": vm.state,
        "mode": vm.config.mode,
        "socket": vm.config.socket,
        "uplink": vm.config.uplink,
        "mac": list(vm.config.mac),
        "vlan": vm.config.vlan,
        "learned": [mac_text(mac) for mac in vm.learned],
        "following": vm.following.row(),
        "processors": [worker.cpu],
        "why": vm.engine.places[vm.name].why if vm.home.owns(vm) else f"default queue: {vm.lack}",
        "own_queue": vm.home.owns(vm),
        "proved": vm.verdict.record() if vm.verdict else None,
        "settings": of_vm(vm),
        "queue_pairs": vm.config.queue_pairs,
        "queues_running": len(vm.running),
        "mtu": vm.mtu,
        "features": _features(vm),
        "frames_to_guest": int(rows["frames_to_guest"].sum()),
        "bytes_to_guest": int(rows["bytes_to_guest"].sum()),
        **_placed(rows),
        "frames_from_guest": int(rows["frames_from_guest"].sum()),
        "bytes_from_guest": int(rows["bytes_from_guest"].sum()),
        "indications": int(rows["indications"].sum()),
        "frames_per_indication": _ratio(rows["frames_to_guest"].sum(), rows["indications"].sum()),
        "drops": drops(rows["to_guest_drops"], rows["account"]["drops"]),
        "connects": vm.connects,
        "last_error": last_error(vm),
        "spoofed_mac": mac_text(vm.spoofed) if vm.spoofed else None,
    }


def queue_row(vm: Vm, index: int) -> Row:
    """One receive queue that the guest has set up."""
    row, entry = vm.queue_rows()[index], vm.queues[index]
    number = vm.home.id_of(vm, index)
    asked = vm.home.contract.queue_parameters(None, number) if number is not None else {}
    indications, frames = int(row["indications"]), int(row["frames_to_guest"])
    ring = vm.session.rings
    return {
        "vm": vm.name,
        "queue": index,
        "processor": vm.engine.workers[entry.worker].cpu,
        "state": "running" if index in vm.running else "stopped",
        "queue_id": number,
        "owner": asked.get("owner"),
        "life": asked.get("state"),
        "own": not entry.shared if asked else None,
        "weight": asked["requested"]["weight"] if asked else None,
        "why": asked["why"] or not_enabled(vm, index) if asked else UNUSED,
        **parameters(vm, index, asked),
        "size_to_guest": ring[2 * index].size,
        "size_from_guest": ring[2 * index + 1].size,
        "frames_to_guest": frames,
        "bytes_to_guest": int(row["bytes_to_guest"]),
        **_placed(row),
        "frames_from_guest": int(row["frames_from_guest"]),
        "bytes_from_guest": int(row["bytes_from_guest"]),
        "offered_to_guest": int(row["offered_to_guest"]),
        "forwarded": int(row["account"]["forwarded"]),
        "copies": int(row["account"]["copies"]),
        "indications": indications,
        "suppressed": int(row["suppressed"]),
        "put_off": int(row["put_off"]),
        "calls_lost": int(row["call_lost"]),
        "frames_per_indication": _ratio(frames, indications),
        "batches": [int(count) for count in row["batches"]],
        "drops": drops(row["to_guest_drops"], row["account"]["drops"]),
    }


def filter_rows(engine: Engine) -> Iterable[Row]:
    """Every receive filter: which address in which VLAN leads to which receive queue."""
    for vm in engine.vms.values():
        for mac in vm.macs:
            yield {
                "mac": mac_text(mac),
                "vlan": vm.config.vlan,
                "uplink": vm.config.uplink,
                "vm": vm.name,
                "queue": 0,
                "source": vm.source(mac),
                "filter": str(vm.filters[mac][1]) if mac in vm.filters else "",
                "priority": 0,
                "in_effect": True,
            }
    for name, queues in engine.queues.items():
        yield from _filters_of_owners(name, queues)


def _filters_of_owners(uplink: str | None, queues: UplinkQueues) -> Iterable[Row]:
    """Filters that nobody's configuration set."""
    for number in (*queues.effects.bound, DEFAULT_QUEUE, DROP_QUEUE):
        bound = queues.effects.bound.get(number)
        for row in queues.contract.enum_filters(None, number):
            if row["owner"] != CONFIG:
                yield {
                    "mac": None,
                    "vlan": _vlan(row),
                    "uplink": uplink,
                    "vm": bound.vm.name if bound else None,
                    "queue": bound.pair if bound else {DEFAULT_QUEUE: "default", DROP_QUEUE: "drop"}[number],
                    "source": row["owner"],
                    "filter": row["text"],
                    "priority": row["priority"],
                    "in_effect": row["in_effect"],
                }


def _vlan(row: Row) -> int | str | None:
    """The VLAN whose frames a filter takes; None: untagged ones."""
    named = [one["value"] for one in row["tests"] if (one["field"], one["kind"]) == ("vlan_id", "equal")]
    untagged = "vlan_untagged_or_zero" in row["flags"]
    return named[0] if named else None if untagged else ANY_VLAN


def uplink_row(engine: Engine, name: str) -> Row:
    """One uplink: the sum of its lanes, and what the kernel says of it."""
    uplink, rows = engine.uplinks[name].uplink, engine.queues[name].effects.lanes.rows()
    row = {
        "name": name,
        "lanes": len(rows),
        "queues": engine.uplinks[name].config.queues,
        "stale_ids": engine.queues[name].contract.stale_ids,
        **{
            key: int(rows[key].sum())
            for key in ("frames_from_wire", "bytes_from_wire", "frames_to_wire", "bytes_to_wire")
        },
        "forwarded": int(rows["account"]["forwarded"].sum()),
        "copies": int(rows["account"]["copies"].sum()),
        "completed": int(rows["completed"].sum()),
        "segmented": int(rows["segmented"].sum()),
        "waiting": int(rows["pending"].sum()),
        "drops": drops(rows["to_wire_drops"], rows["account"]["drops"]),
    }
    told = uplink.status()
    return row | told | {"settings": of_uplink(engine, name, told)}


def processor_row(engine: Engine, worker: Worker) -> Row:
    """One processor; where its thread may run is read back from the kernel."""
    vms = [vm for vm in engine.vms.values() if vm.worker == worker.index]
    return {
        "cpu": worker.cpu,
        "effective": runs_on(worker),
        "thread": worker.thread_id,
        "state": "gone" if not worker.alive() else "sleeping" if worker.row["sleeping"] else "busy",
        "why": engine.why,
        "vms": len(vms),
        "queues": sum(len(vm.running) for vm in vms),
        "polled": engine.directing.polled(worker.index),
        "rounds": int(worker.row["rounds"]),
        "bursts": int(worker.row["bursts"]),
        "sleeps": int(worker.row["sleeps"]),
        "wakeups": int(worker.row["wakeups"]),
        "busy_ns": worker.busy_ns,
        "busy_ratio": None if worker.busy_ratio is None else round(worker.busy_ratio, 4),
    }


def configuration_row(engine: Engine) -> Row:
    """What is in force, as tables and keys; and what was wrong with a later one, if that was refused."""
    refused = engine.refused
    return {
        "file": os.path.abspath(engine.where),
        "in_force": tables(engine.config),
        "refused": str(refused).partition("\n")[0] if refused else None,
        "corrected": engine.corrected,
        "missing": [f"{subject}: {why}" for subject, why in engine.changes.missing.items()],
    }


def show(engine: Engine, what: str) -> list[Row]:
    """The rows of one view."""
    if what == "vms":
        return [vm_row(vm) for vm in engine.vms.values()]
    if what == "queues":
        return [queue_row(vm, index) for vm in engine.vms.values() for index in _set_up(vm)]
    if what == "filters":
        return list(filter_rows(engine))
    if what == "uplinks":
        return [uplink_row(engine, name) for name in engine.uplinks]
    if what == "processors":
        return [processor_row(engine, worker) for worker in engine.workers]
    if what == "misses":
        return misses(engine)
    if what == "settings":
        return settings(engine)
    if what == "configuration":
        return [configuration_row(engine)]
    if what == "histograms":
        return [histogram_row(vm, index) for vm in engine.vms.values() for index in _set_up(vm)]
    raise ApiError(
        "NOT_FOUND",
        f"nothing called {what!r} to show",
        "one of vms, queues, filters, uplinks, processors, misses, settings, histograms, configuration",
    )


def _set_up(vm: Vm) -> list[int]:
    """Queue pairs that run, have counted or are somebody's receive queue; 0 always."""
    rows = vm.queue_rows()
    counted = np.flatnonzero(rows["frames_to_guest"] + rows["frames_from_guest"] + rows["offered_to_guest"])
    bound = (one.pair for one in vm.home.effects.bound.values() if one.vm is vm)
    return sorted({0, *vm.running, *bound, *(int(index) for index in counted)})
