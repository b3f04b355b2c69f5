# SPDX-License-Identifier: Apache-2.0
"""From one configuration to another, whole or not at all, while frames flow.

`plan` (plan.py) says what leads there; this file does it. What may fail comes first and disturbs nobody; when it fails,
everything goes back to what it was, and the error says why. What cannot be had back is `missing`: told in the log, in the
journal and in `vmq show`, until a configuration is in force again as it was asked for. A VM port is never without the
uplink that it was configured for: where that is missing, it is missing too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from vmq.abi.ethernet import mac_number
from vmq.config import AnyUplink, Config
from vmq.config import Vm as VmConfig
from vmq.contract import CONFIG
from vmq.dataplane import state
from vmq.engine.plan import (
    Action,
    AddVm,
    ChangeUplink,
    ChangeVm,
    CloseUplink,
    OpenUplink,
    PrepareUplink,
    RemoveVm,
    lasting,
    plan,
    same_wire,
)
from vmq.engine.queues import UplinkQueues
from vmq.engine.vm import Vm
from vmq.errors import ApiError, ConfigError, HostError, VmqError
from vmq.placement import Reach, devices, place, reach_of, vm_reaches
from vmq.topology import read
from vmq.uplink import Uplink, open_uplink

if TYPE_CHECKING:
    from vmq.engine.engine import Engine

LOG = logging.getLogger("vmq")


class OpenedUplink(NamedTuple):
    """An uplink that is open: its number in filters, itself, and of what it was made."""

    number: int
    uplink: Uplink
    config: AnyUplink


class Changes:
    """Changes the configuration of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.reaches: dict[str, Reach] = {}  # the processors that may serve each VM
        self.uplink_reaches: dict[str, Reach] = {}  # those of each uplink, for all of its VMs
        self.opening = set[str]()  # uplinks that receive nothing yet: their VMs are not all there
        self.missing: dict[str, str] = {}  # "vm a" or "uplink lan" → why it is not in force any more
        self._prepared: dict[str, Uplink] = {}  # open, and not an uplink of the engine yet

    def reconfigure(self, new: Config) -> tuple[Action, ...]:
        """Bring about another configuration, whole or not at all; the actions taken. ConfigError: nothing changed."""
        try:
            actions = self._reconfigure(new)
        except VmqError as error:
            self.engine.configured(0, error)
            raise
        self.engine.configured(len(actions))
        return actions

    def _reconfigure(self, new: Config) -> tuple[Action, ...]:
        self._arrange(new)
        old, actions = self.engine.config, plan(self.engine.config, new)
        try:
            self.engine.directing.make_way(new)
            self._free_addresses(new)
            for action in actions:
                self._apply(action, new)
        except TimeoutError:
            raise  # a processor is stuck: the engine ends
        except (VmqError, OSError) as error:
            self._restore(old)
            if isinstance(error, VmqError):
                raise
            wrong = f"the host refuses what it needs: {error.strerror or error}"
            raise HostError(
                self.engine.where, wrong, "raise the limit of open files, or of memory"
            ) from error
        self.missing.clear()
        self._in_force(new)
        return actions

    def _free_addresses(self, new: Config) -> None:
        """Clear the filters whose addresses are other VMs' from now on: VMs may swap them.

        Their frames go on to their owner until another has them, or the configuration is in force.
        """
        owners = {
            (vm.uplink, vm.vlan, mac_number(mac)): name for name, vm in new.vms.items() for mac in vm.mac
        }
        for name, vm in self.engine.vms.items():
            where = vm.config.uplink, vm.config.vlan
            parting = [mac for mac in vm.filters if owners.get((*where, mac), name) != name]
            vm.parting |= frozenset((mac, vm.config.vlan or 0) for mac in parting)
            for mac in parting:
                vm.home.contract.clear_filter(CONFIG, vm.filters.pop(mac)[0])

    def _in_force(self, config: Config, again: bool = False) -> None:
        """This is the configuration now, or `again`: give out what is scarce, and let uplinks receive."""
        self.engine.config = config
        for name in self.opening:
            self.engine.uplinks[name].uplink.begin(again)
        self.opening.clear()
        for vm in self.engine.vms.values():
            vm.parting = frozenset()
        for queues in self.engine.queues.values():
            queues.complete()
        self.engine.publish()

    def _arrange(self, new: Config) -> None:
        """Decide which processor serves which VM; ConfigError if those that there are cannot."""
        engine = self.engine
        cpus = tuple(worker.cpu for worker in engine.workers)
        now = {name: vm.cpu for name, vm in engine.vms.items()}
        topology = read(devices(new))
        engine.places = place(new, cpus, topology, now, engine.where)
        self.reaches = vm_reaches(new, cpus, topology, engine.where)
        self.uplink_reaches = {name: reach_of(name, new, cpus, topology) for name in new.uplinks}

    def _restore(self, old: Config) -> None:
        """Back to `old` from wherever `_apply` stopped: remove what is new, add what is gone.

        What cannot be opened again is missed in words: the configuration in force is what there is.
        """
        engine = self.engine
        while self._prepared:
            self._prepared.popitem()[1].discard()
        there = [name for name, one in engine.uplinks.items() if same_wire(old.uplinks.get(name), one.config)]
        for name, vm in list(engine.vms.items()):
            stays = name in old.vms and lasting(old.vms[name]) == lasting(vm.config)
            if not stays or vm.config.uplink not in (None, *there):
                self.remove_vm(name)
        for name in [name for name in engine.uplinks if name not in there]:
            self.close_uplink(name, discard=True)
        self._arrange(old)
        self._free_addresses(old)
        for action in plan(self._what_there_is(old), old):
            try:
                self._apply(action, old)
            except TimeoutError:
                raise
            except (VmqError, OSError) as error:
                self._miss(action, error)
        for vm in engine.vms.values():
            vm.home.follow(vm)  # what `_free_addresses` has taken
        self._in_force(self._what_there_is(old), again=True)

    def _miss(self, action: Action, error: Exception) -> None:
        """Something of the configuration from before cannot be had back: say so."""
        subject = f"{'vm' if isinstance(action, AddVm | ChangeVm) else 'uplink'} {action.name}"
        wrong = f"{error.where}: {error.wrong}" if isinstance(error, ConfigError) else str(error)
        remedy = error.remedy if isinstance(error, VmqError) else ""
        LOG.error("%s is not in force any more: %s", subject, error)
        self.missing[subject] = wrong
        self.engine.journal.tell("missing", subject=subject, what=wrong, remedy=remedy)

    def _what_there_is(self, config: Config) -> Config:
        """With the keys of `config` that are the engine's own, or the doctor's."""
        uplinks = {name: opened.config for name, opened in self.engine.uplinks.items()}
        vms = {name: vm.config for name, vm in self.engine.vms.items()}
        return Config(engine=config.engine, uplinks=uplinks, vms=vms, doctor=config.doctor)

    def _apply(self, action: Action, new: Config) -> None:
        if isinstance(action, PrepareUplink):
            self._prepared[action.name] = self._opened(action.name, action.config, new)
        elif isinstance(action, OpenUplink):
            self._open_uplink(action.name, action.config, new)
        elif isinstance(action, ChangeUplink):
            self._change_uplink(action.name, action.config)
        elif isinstance(action, CloseUplink):
            self.close_uplink(action.name)
        elif isinstance(action, AddVm):
            self._add_vm(action.name, action.config)
        elif isinstance(action, ChangeVm):
            self._change_vm(action.name, action.config)
        elif isinstance(action, RemoveVm):
            self.remove_vm(action.name)

    # --- uplinks -----------------------------------------------------------------------------------------------

    def _open_uplink(self, name: str, config: AnyUplink, new: Config) -> None:
        engine, count = self.engine, len(self.engine.workers)
        if (len(engine.uplinks) + 1) * count > state.MAX_LANES:  # numbers are dense
            where = f"{engine.where}: [uplink.{name}]"
            raise ConfigError(where, "too many uplinks", f"at most {state.MAX_LANES} lanes")
        uplink = self._prepared.pop(name, None) or self._opened(name, config, new)
        number = _free(opened.number for opened in engine.uplinks.values())
        engine.segment.rows["lane_state"][number * count : (number + 1) * count] = 0
        engine.uplinks[name] = OpenedUplink(number, uplink, config)
        engine.queues[name] = UplinkQueues(engine, name, config.queues)
        self.opening.add(name)
        engine.publish()
        for worker, fd in zip(engine.workers, uplink.descriptors(), strict=True):
            if fd is not None:
                worker.watch(fd)

    def _opened(self, name: str, config: AnyUplink, new: Config) -> Uplink:
        """The host's side of an uplink; ConfigError or HostError, and nothing left."""
        engine = self.engine
        targets = [
            (mac_number(mac), vm.vlan or 0) for vm in new.vms.values() if vm.uplink == name for mac in vm.mac
        ]
        try:
            return open_uplink(name, config, len(engine.workers), targets)
        except ConfigError as error:
            raise type(error)(f"{engine.where}: {error.where}", error.wrong, error.remedy) from error

    def _change_uplink(self, name: str, config: AnyUplink) -> None:
        engine = self.engine
        engine.uplinks[name] = engine.uplinks[name]._replace(config=config)
        engine.uplinks[name].uplink.reconfigure(config)
        engine.queues[name].limit(config.queues)

    def close_uplink(self, name: str, discard: bool = False) -> None:
        """Undo `_open_uplink`; its VM ports are gone. `discard`: it has not served, and leaves no trace on its device."""
        engine = self.engine
        uplink = engine.uplinks[name].uplink
        for worker, fd in zip(engine.workers, uplink.descriptors(), strict=True):
            if fd is not None:
                worker.forget(fd)
        engine.queues.pop(name).close()
        engine.dynamics.forget(name)
        number = engine.uplinks.pop(name).number
        self.opening.discard(name)
        engine.publish()
        for worker in engine.workers:
            worker.strangers["count"][worker.strangers["uplink"] == number] = 0
        if discard:
            uplink.discard()
        else:
            uplink.close()

    # --- VM ports ----------------------------------------------------------------------------------------------

    def _add_vm(self, name: str, config: VmConfig) -> None:
        engine = self.engine
        where = f"{engine.where}: [vm.{name}]"
        if config.uplink is not None and config.uplink not in engine.uplinks:
            wrong = f"its uplink {config.uplink} could not be opened again"
            raise ConfigError(where, wrong, "correct what that lacks, then SIGHUP to vmq run")
        number = _free(vm.number for vm in engine.vms.values())
        if number >= state.MAX_VPORTS:
            raise ConfigError(where, "too many VMs", f"at most {state.MAX_VPORTS} are served")
        taken = [(vm.first_queue, vm.config.queue_pairs) for vm in engine.vms.values()]
        first = _free_run(taken, config.queue_pairs)
        if first + config.queue_pairs > state.MAX_QUEUES:
            raise ConfigError(f"{where} queue_pairs", "no receive queues are left", "lower it")
        vm = Vm(engine, name, config, number, first)
        rows = engine.segment.rows
        rows["queue_state"][first : first + config.queue_pairs] = 0
        rows["ring_state"][2 * first : 2 * (first + config.queue_pairs)] = 0
        rows["port_state"][number] = 0
        for worker in engine.workers:
            worker.misses[number] = 0
        try:
            vm.port.open()
        except BaseException:
            vm.port.close()
            raise
        engine.vms[name] = vm
        self._forget_learned(vm)
        try:
            vm.home.add(vm)
        except ApiError as error:
            self.remove_vm(name)
            raise ConfigError(where, error.wrong, error.remedy) from error
        engine.publish()

    def _change_vm(self, name: str, config: VmConfig) -> None:
        vm = self.engine.vms[name]
        if (vm.config.learn, vm.config.vlan) != (config.learn, config.vlan):
            vm.learned.clear()
        before = vm.config
        vm.reconfigure(config)
        self._forget_learned(vm)
        del vm.learned[max(config.learn_max - len(vm.following.addresses), 0) :]
        try:
            vm.home.change(vm)
        except ApiError as error:
            vm.reconfigure(before)
            vm.home.follow(vm)
            raise ConfigError(f"{self.engine.where}: [vm.{name}]", error.wrong, error.remedy) from error

    def _forget_learned(self, vm: Vm) -> None:
        """Its configured addresses are its own now, whoever has learned or follows them."""
        for other in self.engine.vms.values():
            had = set(other.macs)
            if other is not vm and other.segment == vm.segment:
                other.learned = [mac for mac in other.learned if mac not in vm.macs[: len(vm.config.mac)]]
            other.following.reconfigure()
            if other is not vm and set(other.macs) != had:
                other.home.follow(other)

    def remove_vm(self, name: str) -> None:
        """Undo `_add_vm`."""
        vm = self.engine.vms[name]
        vm.port.close()
        self.engine.mover.forget(vm)
        vm.home.remove(vm)
        del self.engine.vms[name]
        self.engine.publish()


def _free(taken: Iterable[int]) -> int:
    """The smallest number that is not taken."""
    used = set(taken)
    return next(number for number in range(len(used) + 1) if number not in used)


def _free_run(taken: list[tuple[int, int]], count: int) -> int:
    """The first of `count` numbers that lie in no (first, count) run."""
    place = 0
    for first, length in sorted(taken):
        if first - place >= count:
            break
        place = max(place, first + length)
    return place
