# SPDX-License-Identifier: Apache-2.0
"""The running engine: it owns the processors, uplinks and VM ports, and publishes what the kernels see.

Control is one thread (asyncio). Every change ends in `publish`: the entries of all VM ports and uplinks become a
new version of the tables, and control goes on when every processor has adopted it. Workers tell control about
events through an eventfd: a source address to learn, a fault, a worker that died.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

from vmq import linux
from vmq.abi.linux import SIGBUS
from vmq.config import Config
from vmq.config import Vm as VmConfig
from vmq.dataplane import faults, state
from vmq.engine.announce import rarp
from vmq.engine.plan import Action, AddVm, ChangeVm, CloseUplink, OpenUplink, RemoveVm, lasting, plan
from vmq.engine.vm import Vm
from vmq.errors import ConfigError, VmqError
from vmq.publisher import Publisher, Segment, UplinkEntry
from vmq.uplink import Uplink, open_uplink
from vmq.worker import Worker, link_rings, unmap_rings

TICK_SECONDS = 0.05
LOG = logging.getLogger("vmq")


class Engine:
    """One engine. `where` names its configuration in errors; `cpus` are its processors."""

    def __init__(self, where: str, cpus: tuple[int, ...], why: str, group: int = -1) -> None:
        self.where, self.why, self.group = where, why, group
        self.config = Config()
        self.segment = Segment(len(cpus))
        self.publisher = Publisher(self.segment)
        self._rings = link_rings(self.segment)
        self.workers = [Worker(self.segment, index, cpu) for index, cpu in enumerate(cpus)]
        self.uplinks: dict[str, tuple[int, Uplink]] = {}
        self.vms: dict[str, Vm] = {}
        self.failed: Callable[[BaseException], None] = lambda problem: None
        self._tick: asyncio.TimerHandle | None = None
        self._calling = [0] * len(cpus)
        self.last_error = ""

    # --- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the processors; the event loop runs."""
        linux.install_handler(SIGBUS, faults.on_sigbus())
        self.publisher.publish([], [])
        self.publisher.doorbells = [worker.doorbell for worker in self.workers]
        for worker in self.workers:
            worker.start()
        asyncio.get_running_loop().add_reader(self.segment.control_fd, self._events)
        self._ticking()

    def close(self) -> None:
        """Stop everything and give everything back. It does not fail."""
        for vm in list(self.vms.values()):
            self._remove_vm(vm.name)
        for name in list(self.uplinks):
            self._close_uplink(name)
        if self._tick is not None:
            self._tick.cancel()
            asyncio.get_running_loop().remove_reader(self.segment.control_fd)
        self.segment.engine["stop"] = 1
        self.publisher.ring()
        for worker in self.workers:
            worker.join()
        self.publisher.reclaim()
        stuck = any(worker.alive() for worker in self.workers)
        for worker in self.workers:
            worker.close()
        if not stuck:
            unmap_rings(self._rings)
            self.segment.close()

    def log(self, line: str) -> None:
        """One line for the operator."""
        LOG.warning("%s", line)

    # --- configuration ---------------------------------------------------------------------------------------

    def reconfigure(self, new: Config) -> tuple[Action, ...]:
        """Bring about another configuration, whole or not at all; the actions taken. ConfigError: nothing changed."""
        old = self.config
        actions = plan(old, new)
        done: list[Action] = []
        try:
            for action in actions:
                self._apply(action, new)
                done.append(action)
        except VmqError:
            self._restore(old, new)
            raise
        self.config = new
        self.publish()
        return tuple(done)

    def _restore(self, old: Config, new: Config) -> None:
        """Back to `old` from wherever `_apply` stopped: remove what is new, add what is missing."""
        for name, vm in list(self.vms.items()):
            if name not in old.vms or lasting(old.vms[name]) != lasting(vm.config):
                self._remove_vm(name)
        for name, (_, uplink) in list(self.uplinks.items()):
            if old.uplinks.get(name) != uplink.config:
                self._close_uplink(name)
        for name, config in old.uplinks.items():
            if name not in self.uplinks:
                self._open_uplink(name, config)
        for name, vm_config in old.vms.items():
            if name in self.vms:
                self._change_vm(name, vm_config)
            else:
                self._add_vm(name, vm_config)
        self.publish()

    def _apply(self, action: Action, new: Config) -> None:
        if isinstance(action, OpenUplink):
            self._open_uplink(action.name, action.config)
        elif isinstance(action, CloseUplink):
            self._close_uplink(action.name)
        elif isinstance(action, AddVm):
            self._add_vm(action.name, action.config)
        elif isinstance(action, ChangeVm):
            self._change_vm(action.name, action.config)
        elif isinstance(action, RemoveVm):
            self._remove_vm(action.name)

    def _open_uplink(self, name: str, config: Any) -> None:
        if (len(self.uplinks) + 1) * len(self.workers) > state.MAX_LANES:  # numbers are dense
            raise ConfigError(
                f"{self.where}: uplink.{name}", "too many uplinks", f"at most {state.MAX_LANES} lanes"
            )
        where = f"{self.where}: uplink.{name}"
        uplink = open_uplink(name, config, len(self.workers), where)
        number = _free(number for number, _ in self.uplinks.values())
        base = number * len(self.workers)
        self.segment.rows["lane_state"][base : base + len(self.workers)] = 0
        self.uplinks[name] = (number, uplink)
        self.publish()
        for worker, fd in zip(self.workers, uplink.descriptors(), strict=True):
            if fd is not None:
                worker.watch(fd, edge=False)

    def _close_uplink(self, name: str) -> None:
        _, uplink = self.uplinks[name]
        for worker, fd in zip(self.workers, uplink.descriptors(), strict=True):
            if fd is not None:
                worker.forget(fd)
        del self.uplinks[name]
        self.publish()
        uplink.close()

    def _add_vm(self, name: str, config: VmConfig) -> None:
        number = _free(vm.number for vm in self.vms.values())
        if number >= state.MAX_VPORTS:
            raise ConfigError(
                f"{self.where}: vm.{name}", "too many VMs", f"at most {state.MAX_VPORTS} are served"
            )
        first = _free_run(
            [(vm.first_queue, vm.config.queue_pairs) for vm in self.vms.values()], config.queue_pairs
        )
        if first + config.queue_pairs > state.MAX_QUEUES:
            raise ConfigError(
                f"{self.where}: vm.{name}: queue_pairs", "no receive queues are left", "lower it"
            )
        vm = Vm(self, name, config, number, first)
        vm.worker = self._place(config)
        self.segment.rows["queue_state"][first : first + config.queue_pairs] = 0
        self.segment.rows["ring_state"][2 * first : 2 * (first + config.queue_pairs)] = 0
        self.segment.rows["port_state"][number] = 0
        vm.port.open()
        self.vms[name] = vm
        self.publish()

    def _change_vm(self, name: str, config: VmConfig) -> None:
        vm = self.vms[name]
        vm.config = config
        vm.learned = [mac for mac in vm.learned if mac not in vm.macs[: len(config.mac)]]
        self.publish()

    def _remove_vm(self, name: str) -> None:
        self.vms[name].port.close()
        del self.vms[name]
        self.publish()

    def _place(self, config: VmConfig) -> int:
        """The processor of a new VM: the one it asks for, else the one with the fewest VMs."""
        for worker in self.workers:
            if worker.cpu == config.processor:
                return worker.index
        load = [sum(vm.worker == worker.index for vm in self.vms.values()) for worker in self.workers]
        return load.index(min(load))

    # --- tables --------------------------------------------------------------------------------------------

    def uplink_of(self, vm: Vm) -> Uplink | None:
        """The uplink of a VM, None without."""
        found = self.uplinks.get(vm.config.uplink or "")
        return found[1] if found else None

    def uplink_number(self, name: str | None) -> int:
        """The number of an uplink in filters, NONE without."""
        found = self.uplinks.get(name or "")
        return found[0] if found else state.NONE

    def publish(self) -> None:
        """Publish what is; go on when every processor has adopted it."""
        uplinks = [UplinkEntry(number, tuple(uplink.lanes)) for number, uplink in self.uplinks.values()]
        epoch = self.publisher.publish([vm.entry() for vm in self.vms.values()], uplinks)
        self.publisher.settle(epoch)
        self.publisher.reclaim()
        for name, (_, uplink) in self.uplinks.items():
            uplink.follow({mac for vm in self.vms.values() if vm.config.uplink == name for mac in vm.macs})

    def announce(self, vm: Vm, mac: int) -> None:
        """A RARP in the name of a VM that has just arrived."""
        uplink = self.uplink_of(vm)
        if uplink is not None:
            uplink.send(rarp(mac, vm.config.vlan or 0))

    # --- what workers tell -----------------------------------------------------------------------------------

    def _events(self) -> None:
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
        self._judge(numbers.values())

    def _judge(self, vms: Iterable[Vm]) -> None:
        """Say once what stopped a VM port, or what its guest does wrong."""
        for vm in vms:
            if vm.fault:
                vm.fail(
                    state.FAULTS[vm.fault][1], "restart the guest's driver or let the front-end reconnect"
                )

    def _ticking(self) -> None:
        """Twenty times a second: uplinks that write files, and the watchdog of calls."""
        for _, uplink in self.uplinks.values():
            uplink.tick()
        for worker in self.workers:
            calling = int(worker.row["calling"])
            if calling and calling == self._calling[worker.index]:
                self._unblock(calling - 1)
            self._calling[worker.index] = calling
        self._tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._ticking)

    def _unblock(self, descriptor: int) -> None:
        """A call has lasted a whole tick: its eventfd is full and was made blocking behind our back. Drain it."""
        with contextlib.suppress(OSError):
            linux.set_nonblocking(descriptor)
            os.eventfd_read(descriptor)
            for vm in self.vms.values():
                if any(ring.call == descriptor for ring in vm.session.rings):
                    vm.fail("its call eventfd blocks", "the front-end must leave O_NONBLOCK alone")


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
