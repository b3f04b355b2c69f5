# SPDX-License-Identifier: Apache-2.0
"""What was asked for, what is in effect, and why the two differ: for every setting of VMs, processors and uplinks.

VMQ's critics name one thing above all: "enabled" does not mean "in effect". So no view has a setting without the three,
and `why` is empty only where they agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vmq.abi.ethernet import mac_text
from vmq.config import cpu_text
from vmq.control.filtered import taken
from vmq.engine.engine import Engine
from vmq.engine.vm import DEFAULT_MTU, Vm
from vmq.uplink.base import setting

Row = dict[str, Any]
EVERY_BATCH = "every batch"
NO_OFFLOADS = "not offered in this version: checksums and segments are finished before a guest gets them"


def settings(engine: Engine) -> list[Row]:
    """Every setting of a running engine, the engine's own first."""
    found = [{"of": "engine", **row} for row in _of_engine(engine)]
    for name, opened in engine.uplinks.items():
        own = [_receive_queues(engine, name), *opened.uplink.status().get("settings", ())]
        found += [{"of": f"uplink {name}", **row} for row in own]
    return found + [{"of": f"vm {vm.name}", **row} for vm in engine.vms.values() for row in of_vm(vm)]


def _of_engine(engine: Engine) -> Iterator[Row]:
    asked = engine.config.engine
    cpus = cpu_text([worker.cpu for worker in engine.workers])
    yield setting("processors", cpu_text(asked.processors) if asked.processors else None, cpus, engine.why)
    yield setting("placement", asked.placement, asked.placement)


def _receive_queues(engine: Engine, uplink: str) -> Row:
    """How many VMs of an uplink have a receive queue of their own."""
    vms = [vm for vm in engine.vms.values() if vm.config.uplink == uplink]
    have = sum(vm.home.owns(vm) for vm in vms)
    limit = engine.uplinks[uplink].config.queues
    why = "" if have == len(vms) else f"{len(vms)} VMs; the others are served by the default queue"
    return setting("queues", limit, have, why or ("as many as there are VMs" if limit != have else ""))


def of_vm(vm: Vm) -> list[Row]:
    """Every setting of one VM port."""
    return [
        _own_queue(vm),
        _filters(vm),
        _processor(vm),
        _written_by(vm),
        _queue_pairs(vm),
        _mtu(vm),
        setting("offloads", "all that the guest can do", "none", NO_OFFLOADS),
        _moderation(vm),
        setting("overload", vm.config.overload, vm.config.overload),
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
    effective = vm.engine.workers[vm.worker].cpu
    why = vm.engine.places[vm.name].why
    if vm.queues[0].shared:
        why = "the processor of the default queue"
    elif vm.queues[0].former >= 0:
        why = "it is on its way there"
    return setting("processor", vm.config.processor, effective, why)


def _written_by(vm: Vm) -> Row:
    """Who writes the payload: the word of the glossary is placement."""
    if not vm.queues[0].shared:
        return setting("placement", "direct", "switched", "direct placement is not available in this version")
    return setting("placement", "direct", "switched twice", "its frames go through the default queue")


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


def _moderation(vm: Vm) -> Row:
    asked = _moderated(vm.config.indications, vm.config.indication_frames)
    if vm.home.owns(vm) or asked == EVERY_BATCH:
        return setting("moderation", asked, asked)
    return setting("moderation", asked, EVERY_BATCH, "it has no receive queue of its own")


def _moderated(indications: int, frames: int) -> str:
    """When the guest is told."""
    words = [f"{indications} a second"] if indications else []
    words += [f"every {frames} frames"] if frames else []
    return " or ".join(words) or EVERY_BATCH
