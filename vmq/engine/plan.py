# SPDX-License-Identifier: Apache-2.0
"""What leads from one configuration to another: a list of actions, found without doing any.

`plan(x, x)` is empty. What is new comes first, since it may fail, and then nothing has been disturbed; what is gone
comes last, since it cannot fail. Only what is new in the place of something old (the same socket, filter, device or
file) comes after that. An uplink that takes the place of another is opened first all the same, aside, unless the two
cannot be open at once: a device that is not there is found before anybody is disturbed. A VM whose socket stays is
changed in place and keeps its guest; one that needs another socket, uplink or number of queues is replaced, and so are
those of an uplink that is opened anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from vmq.config import AnyUplink, Config, Vm
from vmq.config.records import Packet, Xdp


@dataclass(frozen=True, slots=True)
class OpenUplink:
    """A new uplink."""

    name: str
    config: AnyUplink


@dataclass(frozen=True, slots=True)
class PrepareUplink:
    """The successor of an uplink that is still there: it is opened, and serves nobody before `OpenUplink`."""

    name: str
    config: AnyUplink


@dataclass(frozen=True, slots=True)
class CloseUplink:
    """An uplink that is gone; the VMs that used it are gone or replaced before."""

    name: str


@dataclass(frozen=True, slots=True)
class ChangeUplink:
    """Other processors or queues for the VMs of an uplink, or other frames that it forwards; it stays open."""

    name: str
    config: AnyUplink


@dataclass(frozen=True, slots=True)
class AddVm:
    """A new VM port."""

    name: str
    config: Vm


@dataclass(frozen=True, slots=True)
class ChangeVm:
    """Other filters, limits or processors, same socket: the guest notices nothing."""

    name: str
    config: Vm


@dataclass(frozen=True, slots=True)
class RemoveVm:
    """A VM port that is gone."""

    name: str


Action = OpenUplink | PrepareUplink | CloseUplink | ChangeUplink | AddVm | ChangeVm | RemoveVm


def lasting(vm: Vm) -> tuple[object, ...]:
    """What cannot change while a front-end is connected."""
    return vm.socket, vm.mode, vm.uplink, vm.queue_pairs


def same_wire(one: AnyUplink | None, other: AnyUplink | None) -> bool:
    """Whether one can go on as the other: they differ in what serves their VMs, or what is asked of each frame."""

    def wire(uplink: AnyUplink | None) -> AnyUplink | None:
        if uplink is None:
            return None
        return replace(uplink, processors=None, numa_node=None, queues=None, link_local="drop")

    return wire(one) == wire(other)


def claims(vm: Vm) -> set[tuple[object, ...]]:
    """What no two VM ports have at the same time: a socket, a receive filter."""
    return {("socket", vm.socket), *(("filter", vm.uplink, vm.vlan, mac) for mac in vm.mac)}


def holds(uplink: AnyUplink) -> set[tuple[str, str]]:
    """What it alone has as long as it is open: a device, a file that is written."""
    return _named(uplink, device="device", write="file")


def needs(uplink: AnyUplink) -> set[tuple[str, str]]:
    """What nobody may hold when it is opened. A file that is read is whole when its writer is closed; it is read at once."""
    return holds(uplink) | _named(uplink, read="file")


def _named(uplink: AnyUplink, **kinds: str) -> set[tuple[str, str]]:
    """(kind, name) of what some keys name."""
    return {(kind, name) for key, kind in kinds.items() if (name := getattr(uplink, key, None)) is not None}


def excludes(old: AnyUplink, new: AnyUplink) -> bool:
    """Whether the one must be closed before the other is opened. Packet sockets share their device, programs do not."""
    packets = isinstance(old, Packet) and isinstance(new, Packet)
    share = packets and not (isinstance(old, Xdp) and isinstance(new, Xdp))
    return not share and bool(holds(old) & needs(new))


def plan(old: Config, new: Config) -> tuple[Action, ...]:
    """The actions, in order. The engine's own keys (api, processors, group) are not among them."""
    fresh = {name for name, uplink in new.uplinks.items() if not same_wire(old.uplinks.get(name), uplink)}
    stale = {name for name, uplink in old.uplinks.items() if not same_wire(new.uplinks.get(name), uplink)}
    moved = [name for name in new.uplinks if name not in fresh and old.uplinks[name] != new.uplinks[name]]
    busy = set[tuple[str, str]]().union(*(holds(old.uplinks[name]) for name in stale))
    late = {name for name in fresh if name in stale or needs(new.uplinks[name]) & busy}
    ahead = [
        name
        for name in new.uplinks
        if name in late and not any(excludes(old.uplinks[gone], new.uplinks[name]) for gone in stale)
    ]
    replaced = {
        name
        for name, vm in new.vms.items()
        if name in old.vms and (lasting(old.vms[name]) != lasting(vm) or vm.uplink in fresh)
    }
    taken = set[tuple[object, ...]]().union(*(claims(vm) for vm in old.vms.values()))
    early = {
        name
        for name, vm in new.vms.items()
        if name not in old.vms and vm.uplink not in late and not claims(vm) & taken
    }
    kept = [name for name in new.vms if name in old.vms and name not in replaced]
    changed = [name for name in kept if old.vms[name] != new.vms[name] or new.vms[name].uplink in moved]
    added = [name for name in new.vms if name not in kept]
    return (
        *(OpenUplink(name, new.uplinks[name]) for name in new.uplinks if name in fresh - late),
        *(PrepareUplink(name, new.uplinks[name]) for name in ahead),
        *(AddVm(name, new.vms[name]) for name in added if name in early),
        *(ChangeUplink(name, new.uplinks[name]) for name in moved),
        *(ChangeVm(name, new.vms[name]) for name in changed),
        *(RemoveVm(name) for name in old.vms if name not in kept),
        *(CloseUplink(name) for name in old.uplinks if name in stale),
        *(OpenUplink(name, new.uplinks[name]) for name in new.uplinks if name in late),
        *(AddVm(name, new.vms[name]) for name in added if name not in early),
    )
