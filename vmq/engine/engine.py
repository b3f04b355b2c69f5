# SPDX-License-Identifier: Apache-2.0
"""The running engine: it owns the processors, uplinks and VM ports, and publishes what the kernels see.

Control is one thread (asyncio). Every change ends in `publish`: the entries of all VM ports and uplinks become a
new version of the tables, and control goes on when every processor has adopted it. Workers tell control about
events through an eventfd: a source address to learn, a fault, a worker that died. Control listens a bounded number
of times a second, whatever a guest makes happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from vmq import linux
from vmq.abi.ethernet import mac_number
from vmq.abi.linux import SIGBUS
from vmq.config import AnyUplink, Config
from vmq.config import Vm as VmConfig
from vmq.dataplane import faults, state
from vmq.engine.announce import rarp
from vmq.engine.journal import Journal
from vmq.engine.plan import (
    Action,
    AddVm,
    ChangeUplink,
    ChangeVm,
    CloseUplink,
    OpenUplink,
    RemoveVm,
    lasting,
    plan,
    same_wire,
)
from vmq.engine.vm import Vm
from vmq.engine.watchdog import Watchdog
from vmq.errors import ConfigError, HostError, VmqError
from vmq.placement import Place, devices, place
from vmq.publisher import Publisher, Segment, UplinkEntry
from vmq.topology import read
from vmq.uplink import Uplink, open_uplink
from vmq.worker import Worker, link_rings, unmap_rings

TICK_SECONDS = 0.05
EVENTS_PAUSE_SECONDS = 0.01  # between two looks at what workers tell
PENALTY_SECONDS = 10.0  # for a front-end that made a processor wait
LOG = logging.getLogger("vmq")


class OpenedUplink(NamedTuple):
    """An uplink that is open: its number in filters, itself, and of what it was made."""

    number: int
    uplink: Uplink
    config: AnyUplink


def _say(problem: BaseException) -> None:
    """Nobody has said who is to be told about a dead worker: it is in the log."""
    LOG.error("a processor has died: %s", problem)


class Engine:
    """One engine. `where` names its configuration in errors; `cpus` are its processors."""

    def __init__(self, where: str, cpus: tuple[int, ...], why: str, group: int = -1) -> None:
        self.where, self.why, self.group = where, why, group
        self.config = Config()
        self.journal = Journal()
        self.segment = Segment(len(cpus))
        self.publisher = Publisher(self.segment)
        self._rings = link_rings(self.segment)
        self.workers = [Worker(self.segment, index, cpu) for index, cpu in enumerate(cpus)]
        self.watchdog = Watchdog(self.workers)
        self.uplinks: dict[str, OpenedUplink] = {}
        self.vms: dict[str, Vm] = {}
        self.places: dict[str, Place] = {}  # decided for every VM of the configuration
        self.failed: Callable[[BaseException], None] = _say
        self._tick: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self.paused = False  # True: no lane receives yet
        self._opening = set[str]()  # uplinks that receive nothing yet: their VMs are not all there

    # --- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the processors; the event loop runs."""
        linux.install_handler(SIGBUS, faults.on_sigbus())
        self.publisher.publish([], [])
        self.publisher.doorbells = [worker.doorbell for worker in self.workers]
        for worker in self.workers:
            worker.start()
        self.watchdog.start()
        self._listen()
        self._ticking()

    def close(self) -> None:
        """Stop everything and give everything back. It does not fail."""
        try:
            for name in list(self.vms):
                self._remove_vm(name)
            for name in list(self.uplinks):
                self._close_uplink(name)
        except TimeoutError as problem:  # what a stuck processor may still use stays as it is
            LOG.error("not everything is given back: %s", problem)  # noqa: TRY400 - known, and said in words
            for vm in self.vms.values():
                vm.port.close()
        for timer in (self._tick, self._pause):
            if timer is not None:
                timer.cancel()
        if self._tick is not None:
            asyncio.get_running_loop().remove_reader(self.segment.control_fd)
        self._stop()

    def _stop(self) -> None:
        """End the threads."""
        self.segment.engine["stop"] = 1
        self.publisher.ring()
        for worker in self.workers:
            worker.join()
        self.watchdog.close()
        stuck = any(worker.alive() for worker in self.workers)
        for worker in self.workers:
            worker.close()
        if not stuck:
            self.publisher.reclaim()
            unmap_rings(self._rings)
            self.segment.close()

    def log(self, line: str) -> None:
        """One line for the operator."""
        LOG.warning("%s", line)

    # --- configuration ---------------------------------------------------------------------------------------

    def reconfigure(self, new: Config) -> tuple[Action, ...]:
        """Bring about another configuration, whole or not at all; the actions taken. ConfigError: nothing changed."""
        try:
            actions = self._reconfigure(new)
        except VmqError as error:
            self.journal.tell("configured", actions=0, wrong=error.wrong, remedy=error.remedy)
            raise
        self.journal.tell("configured", actions=len(actions), wrong=None, remedy=None)
        return actions

    def _reconfigure(self, new: Config) -> tuple[Action, ...]:
        self._arrange(new)
        old, actions = self.config, plan(self.config, new)
        try:
            for action in actions:
                self._apply(action, new)
        except TimeoutError:
            raise  # a processor is stuck: the engine ends
        except (VmqError, OSError) as error:
            self._restore(old)
            if isinstance(error, VmqError):
                raise
            wrong = f"the host refuses what it needs: {error.strerror or error}"
            raise HostError(self.where, wrong, "raise the limit of open files, or of memory") from error
        self.config = new
        self._opening.clear()
        self.publish()
        return actions

    def _arrange(self, new: Config) -> None:
        """Decide which processor serves which VM; ConfigError if those that there are cannot."""
        cpus = tuple(worker.cpu for worker in self.workers)
        now = {name: cpus[vm.worker] for name, vm in self.vms.items()}
        self.places = place(new, cpus, read(devices(new)), now, self.where)

    def _restore(self, old: Config) -> None:
        """Back to `old` from wherever `_apply` stopped: remove what is new, add what is missing.

        What cannot be opened again is missed in words: the configuration in force is what there is.
        """
        for name, vm in list(self.vms.items()):
            if name not in old.vms or lasting(old.vms[name]) != lasting(vm.config):
                self._remove_vm(name)
        for name, opened in list(self.uplinks.items()):
            if not same_wire(old.uplinks.get(name), opened.config):
                self._close_uplink(name)
        self._arrange(old)
        for action in plan(self._in_force(old), old):
            try:
                self._apply(action, old)
            except TimeoutError:
                raise
            except (VmqError, OSError) as error:
                LOG.error("%s", error)  # noqa: TRY400 - the operator's, in words
        self.config = self._in_force(old)
        self._opening.clear()
        self.publish()

    def _in_force(self, config: Config) -> Config:
        """What there is, with the engine's own keys of `config`."""
        uplinks = {name: opened.config for name, opened in self.uplinks.items()}
        return Config(
            engine=config.engine, uplinks=uplinks, vms={name: vm.config for name, vm in self.vms.items()}
        )

    def _apply(self, action: Action, new: Config) -> None:
        if isinstance(action, OpenUplink):
            self._open_uplink(action.name, action.config, new)
        elif isinstance(action, ChangeUplink):
            self.uplinks[action.name] = self.uplinks[action.name]._replace(config=action.config)
        elif isinstance(action, CloseUplink):
            self._close_uplink(action.name)
        elif isinstance(action, AddVm):
            self._add_vm(action.name, action.config)
        elif isinstance(action, ChangeVm):
            self._change_vm(action.name, action.config)
        elif isinstance(action, RemoveVm):
            self._remove_vm(action.name)

    def _open_uplink(self, name: str, config: AnyUplink, new: Config) -> None:
        if (len(self.uplinks) + 1) * len(self.workers) > state.MAX_LANES:  # numbers are dense
            raise ConfigError(
                f"{self.where}: [uplink.{name}]", "too many uplinks", f"at most {state.MAX_LANES} lanes"
            )
        targets = [
            (mac_number(mac), vm.vlan or 0) for vm in new.vms.values() if vm.uplink == name for mac in vm.mac
        ]
        try:
            uplink = open_uplink(name, config, len(self.workers), targets)
        except ConfigError as error:
            raise type(error)(f"{self.where}: {error.where}", error.wrong, error.remedy) from error
        number = _free(opened.number for opened in self.uplinks.values())
        base = number * len(self.workers)
        self.segment.rows["lane_state"][base : base + len(self.workers)] = 0
        self.uplinks[name] = OpenedUplink(number, uplink, config)
        self._opening.add(name)
        self.publish()
        for worker, fd in zip(self.workers, uplink.descriptors(), strict=True):
            if fd is not None:
                worker.watch(fd)

    def _close_uplink(self, name: str) -> None:
        uplink = self.uplinks[name].uplink
        for worker, fd in zip(self.workers, uplink.descriptors(), strict=True):
            if fd is not None:
                worker.forget(fd)
        number = self.uplinks.pop(name).number
        self.publish()
        for worker in self.workers:
            worker.strangers["count"][worker.strangers["uplink"] == number] = 0
        uplink.close()

    def _add_vm(self, name: str, config: VmConfig) -> None:
        number = _free(vm.number for vm in self.vms.values())
        if number >= state.MAX_VPORTS:
            raise ConfigError(
                f"{self.where}: [vm.{name}]", "too many VMs", f"at most {state.MAX_VPORTS} are served"
            )
        first = _free_run(
            [(vm.first_queue, vm.config.queue_pairs) for vm in self.vms.values()], config.queue_pairs
        )
        if first + config.queue_pairs > state.MAX_QUEUES:
            raise ConfigError(
                f"{self.where}: [vm.{name}] queue_pairs", "no receive queues are left", "lower it"
            )
        vm = Vm(self, name, config, number, first)
        vm.worker = self._place(name)
        self.segment.rows["queue_state"][first : first + config.queue_pairs] = 0
        self.segment.rows["ring_state"][2 * first : 2 * (first + config.queue_pairs)] = 0
        self.segment.rows["port_state"][number] = 0
        for worker in self.workers:
            worker.misses[number] = 0
        try:
            vm.port.open()
        except BaseException:
            vm.port.close()
            raise
        self.vms[name] = vm
        self._forget_learned(vm)
        self.publish()

    def _change_vm(self, name: str, config: VmConfig) -> None:
        vm = self.vms[name]
        if (vm.config.learn, vm.config.vlan) != (config.learn, config.vlan):
            vm.learned.clear()
        vm.config = config
        self._forget_learned(vm)
        del vm.learned[config.learn_max :]
        worker = self._place(name)
        if worker != vm.worker:
            vm.move(worker)

    def _forget_learned(self, vm: Vm) -> None:
        """Its configured addresses are its own now, whoever has learned them."""
        for other in self.vms.values():
            if other.segment == vm.segment:
                other.learned = [mac for mac in other.learned if mac not in vm.macs[: len(vm.config.mac)]]

    def _remove_vm(self, name: str) -> None:
        self.vms[name].port.close()
        del self.vms[name]
        self.publish()

    def _place(self, name: str) -> int:
        """The processor of a VM, as arranged."""
        return [worker.cpu for worker in self.workers].index(self.places[name].cpu)

    # --- tables --------------------------------------------------------------------------------------------

    def uplink_of(self, vm: Vm) -> Uplink | None:
        """The uplink of a VM, None without."""
        found = self.uplinks.get(vm.config.uplink or "")
        return found.uplink if found else None

    def uplink_number(self, name: str | None) -> int:
        """The number of an uplink in filters, NONE without."""
        found = self.uplinks.get(name or "")
        return found.number if found else state.NONE

    def publish(self) -> None:
        """Publish what is; go on when every processor has adopted it."""
        uplinks = [UplinkEntry(one.number, self._lanes(name)) for name, one in self.uplinks.items()]
        epoch = self.publisher.publish([vm.entry() for vm in self.vms.values()], uplinks)
        try:
            self.publisher.settle(epoch)
        except TimeoutError as problem:
            self.failed(problem)
            raise
        self.publisher.reclaim()
        for name, opened in self.uplinks.items():
            opened.uplink.follow(
                {mac for vm in self.vms.values() if vm.config.uplink == name for mac in vm.macs}
            )

    def _lanes(self, name: str) -> tuple[Any, ...]:
        rows = tuple(row.copy() for row in self.uplinks[name].uplink.lanes)
        for row in rows:
            row["receives"] *= not self.paused and name not in self._opening
        return rows

    def announce(self, vm: Vm, mac: int) -> None:
        """A RARP in the name of a VM that has just arrived."""
        uplink = self.uplink_of(vm)
        if uplink is not None:
            uplink.send(rarp(mac, vm.config.vlan or 0))

    # --- what workers tell -----------------------------------------------------------------------------------

    def _listen(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self.segment.control_fd, self._events)

    def _events(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.segment.control_fd)
        self._pause = loop.call_later(EVENTS_PAUSE_SECONDS, self._listen)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.segment.control_fd)
        numbers = {vm.number: vm for vm in self.vms.values()}
        learned = False
        for worker in self.workers:
            if worker.failure is not None:
                self.failed(worker.failure)
            for kind, number, value in worker.events():
                vm = numbers.get(number)
                if vm is not None and kind == state.EVENT_LEARN:
                    learned |= vm.learn(value)
        if learned:
            self.publish()
        for vm in self.vms.values():
            vm.judge()

    def _ticking(self) -> None:
        """Twenty times a second: uplinks that write files, and front-ends that made somebody wait."""
        self._tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._ticking)
        for opened in self.uplinks.values():
            opened.uplink.tick()
        while self.watchdog.freed:
            self._punish(self.watchdog.freed.popleft())

    def _punish(self, descriptor: int) -> None:
        """A call has waited: its eventfd was full, and made blocking behind our back."""
        for vm in self.vms.values():
            if any(descriptor in (ring.call, ring.err) for ring in vm.session.rings):
                vm.port.hold(PENALTY_SECONDS)
                vm.fail(
                    "its call or err eventfd blocked a processor: disconnected",
                    "use a front-end that leaves O_NONBLOCK alone",
                )


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
