# SPDX-License-Identifier: Apache-2.0
"""What leads from one configuration to another: a list of actions, found without doing any.

`plan(x, x)` is empty. What is new comes first, since it may fail, and then nothing has been disturbed; what is gone
comes last, since it cannot fail. A VM whose socket stays is changed in place and keeps its guest; one that needs
another socket, uplink or number of queues is replaced.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmq.config import AnyUplink, Config, Vm


@dataclass(frozen=True, slots=True)
class OpenUplink:
    """A new uplink."""

    name: str
    config: AnyUplink


@dataclass(frozen=True, slots=True)
class CloseUplink:
    """An uplink that is gone; the VMs that used it are gone or replaced before."""

    name: str


@dataclass(frozen=True, slots=True)
class AddVm:
    """A new VM port."""

    name: str
    config: Vm


@dataclass(frozen=True, slots=True)
class ChangeVm:
    """Other filters, limits or processor, same socket: the guest notices nothing."""

    name: str
    config: Vm


@dataclass(frozen=True, slots=True)
class RemoveVm:
    """A VM port that is gone."""

    name: str


Action = OpenUplink | CloseUplink | AddVm | ChangeVm | RemoveVm


def lasting(vm: Vm) -> tuple[object, ...]:
    """What cannot change while a front-end is connected."""
    return vm.socket, vm.mode, vm.uplink, vm.queue_pairs


def plan(old: Config, new: Config) -> tuple[Action, ...]:
    """The actions, in order. The engine's own keys (api, processors, group) are not among them."""
    fresh = {name for name, uplink in new.uplinks.items() if old.uplinks.get(name) != uplink}
    stale = {name for name, uplink in old.uplinks.items() if new.uplinks.get(name) != uplink}
    replaced = {
        name
        for name, vm in new.vms.items()
        if name in old.vms and (lasting(old.vms[name]) != lasting(vm) or vm.uplink in fresh)
    }
    gone = [name for name in old.vms if name not in new.vms or name in replaced]
    kept = [name for name in new.vms if name in old.vms and name not in replaced]
    swapped = sorted(fresh & stale)  # the same device cannot be open twice
    return (
        *(OpenUplink(name, new.uplinks[name]) for name in new.uplinks if name in fresh - stale),
        *(
            AddVm(name, vm)
            for name, vm in new.vms.items()
            if name not in old.vms and vm.uplink not in swapped
        ),
        *(ChangeVm(name, new.vms[name]) for name in kept if old.vms[name] != new.vms[name]),
        *(RemoveVm(name) for name in gone),
        *(CloseUplink(name) for name in old.uplinks if name in stale),
        *(OpenUplink(name, new.uplinks[name]) for name in swapped),
        *(AddVm(name, new.vms[name]) for name in new.vms if name in replaced),
        *(AddVm(name, vm) for name, vm in new.vms.items() if name not in old.vms and vm.uplink in swapped),
    )
