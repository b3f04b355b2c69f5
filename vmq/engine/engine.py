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
import itertools
import logging
import os
from collections.abc import Callable
from typing import Any

from vmq import linux
from vmq.abi.linux import SIGBUS
from vmq.config import Config
from vmq.contract import Contract
from vmq.dataplane import faults, state
from vmq.engine.announce import rarp
from vmq.engine.changes import Changes, OpenedUplink
from vmq.engine.directing import Directing
from vmq.engine.dynamics import Dynamics
from vmq.engine.guarding import Guarding
from vmq.engine.journal import Journal
from vmq.engine.mover import Mover
from vmq.engine.plan import Action
from vmq.engine.proving import Proving
from vmq.engine.queues import UplinkQueues
from vmq.engine.vm import Vm
from vmq.engine.watchdog import Watchdog
from vmq.errors import ConfigError, VmqError
from vmq.placement import Place
from vmq.publisher import Publisher, Segment, UplinkEntry
from vmq.uplink import Uplink
from vmq.worker import Worker, link_rings, unmap_rings

TICK_SECONDS = 0.05
GENERATIONS = 1 << 31  # what a parcel has room for
EVENTS_PAUSE_SECONDS = 0.01  # between two looks at what workers tell
PENALTY_SECONDS = 10.0  # for a front-end that made a processor wait
LOG = logging.getLogger("vmq")


def _say(problem: BaseException) -> None:
    """Nobody has said who is to be told about a dead worker: it is in the log."""
    LOG.error("a processor has died: %s", problem)


def _written(path: str) -> int | None:
    """When a file was written last; None if it is not there."""
    with contextlib.suppress(OSError):
        return os.stat(path).st_mtime_ns
    return None


class Engine:
    """One engine. `where` names its configuration in errors; `cpus` are its processors."""

    def __init__(self, where: str, cpus: tuple[int, ...], why: str, group: int = -1) -> None:
        self.where, self.why, self.group = where, why, group
        self.config = Config()
        self.refused: VmqError | None = None  # why the last one that it was to take is not in force
        self._refused_then: int | None = None  # when the file that was refused had been written
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
        self._anywhere: set[int] = set()  # where control's thread ran before it made room
        self.closing = False
        self.paused = False  # True: no lane receives yet
        self.default = 0  # the worker of the default queue
        self.changes, self.mover, self.dynamics = Changes(self), Mover(self), Dynamics(self)
        self.directing = Directing(self)
        self.proving, self.guarding = Proving(self), Guarding(self)
        self.queues: dict[str | None, UplinkQueues] = {None: UplinkQueues(self, None, None)}  # by uplink
        self._generations = itertools.count(1)
        self.afterwards: list[
            Callable[[], None]
        ] = []  # to be done when all processors have adopted the next version

    # --- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the processors; the event loop runs."""
        self._make_room()
        linux.install_handler(SIGBUS, faults.on_sigbus())
        self.publisher.publish([], [])
        self.publisher.doorbells = [worker.doorbell for worker in self.workers]
        for worker in self.workers:
            worker.start()
        self.watchdog.start()
        self._listen()
        self._ticking()

    def _make_room(self) -> None:
        """Keep this thread, and those it starts from now on, off the workers' processors, where there are others.

        Of 5 million frames a second a ring of 1024 holds 0.2 ms: no longer than one look at everything takes.
        """
        self._anywhere = os.sched_getaffinity(0)
        others = self._anywhere - {worker.cpu for worker in self.workers}
        if others:
            os.sched_setaffinity(0, others)

    def close(self) -> None:
        """Stop everything and give everything back. It does not fail."""
        self.closing = True
        self.proving.cancel()
        try:
            self.directing.close()
            for name in list(self.vms):
                self.changes.remove_vm(name)
            for name in list(self.uplinks):
                self.changes.close_uplink(name)
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
        """End the threads, and be free to run where they did."""
        self.segment.engine["stop"] = 1
        self.publisher.ring()
        for worker in self.workers:
            worker.join()
        self.watchdog.close()
        if self._anywhere:
            os.sched_setaffinity(0, self._anywhere)
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

    def configured(self, actions: int, refused: VmqError | None = None) -> None:
        """A configuration was brought about, or refused: told, and kept for whoever asks later."""
        self.refused, self._refused_then = refused, _written(self.where)
        where = f"{refused.where}: " if isinstance(refused, ConfigError) and refused.where else ""
        wrong, remedy = (where + refused.wrong, refused.remedy) if refused else (None, None)
        self.journal.tell("configured", actions=actions, wrong=wrong, remedy=remedy)

    @property
    def corrected(self) -> bool:
        """Whether the file that was refused has been written since: nobody knows what the engine thinks of it."""
        return self.refused is not None and _written(self.where) != self._refused_then

    def reconfigure(self, new: Config) -> tuple[Action, ...]:
        """Bring about another configuration, whole or not at all; the actions taken. ConfigError: nothing changed."""
        return self.changes.reconfigure(new)

    # --- receive queues --------------------------------------------------------------------------------------

    @property
    def contracts(self) -> dict[str, Contract]:
        """The contract of each uplink; "" for VMs without one."""
        return {name or "": queues.contract for name, queues in self.queues.items()}

    def worker_of(self, cpu: int) -> int:
        """The index of the worker on a processor."""
        return [worker.cpu for worker in self.workers].index(cpu)

    def generation(self) -> int:
        """One that no receive queue has had."""
        return next(self._generations) % GENERATIONS

    # --- tables --------------------------------------------------------------------------------------------

    def uplink_of(self, vm: Vm) -> Uplink | None:
        """The uplink of a VM, None without."""
        return None if vm.config.uplink is None else self.uplinks[vm.config.uplink].uplink

    def uplink_number(self, name: str | None) -> int:
        """The number of an uplink in filters, NONE without."""
        return state.NONE if name is None else self.uplinks[name].number

    def publish(self) -> None:
        """Publish what is; go on when every processor has adopted it."""
        self.directing.prepare()
        uplinks = [UplinkEntry(one.number, self._lanes(name)) for name, one in self.uplinks.items()]
        filters = [queues.effects.entry for queues in self.queues.values()]
        self.segment.engine["polls"] = self.config.engine.idle == "poll"
        self.segment.engine["measured"] = any(vm.observed.measured for vm in self.vms.values())
        epoch = self.publisher.publish([vm.entry() for vm in self.vms.values()], uplinks, filters)
        try:
            self.publisher.settle(epoch)
        except TimeoutError as problem:
            self.failed(problem)
            raise
        self.publisher.reclaim()
        while self.afterwards:
            self.afterwards.pop()()
        for name, opened in self.uplinks.items():
            if name in self.queues:  # one that closes leads nowhere any more
                opened.uplink.follow(*self._followed(name))
        self.directing.follow()

    def _followed(self, name: str) -> tuple[set[tuple[int, int]], bool]:
        """The (address, VLAN id) that have a receive filter on an uplink, and whether frames to others are wanted too."""
        entry = self.queues[name].effects.entry
        vms = [vm for vm in self.vms.values() if vm.config.uplink == name]
        filters = {key for vm in vms for key in vm.keys} | entry.plain.keys()
        return filters, len(entry.tests) > 0 or any("unknown" in vm.config.accept for vm in vms)

    def _lanes(self, name: str) -> tuple[Any, ...]:
        rows = tuple(row.copy() for row in self.uplinks[name].uplink.lanes)
        for row in rows:
            row["receives"] *= not self.paused and name not in self.changes.opening
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
        learned, waits = set[int](), False
        for worker in self.workers:
            if worker.failure is not None:
                self.failed(worker.failure)
            for kind, number, value in worker.events():
                vm = numbers.get(number)
                if vm is not None and kind == state.EVENT_LEARN and vm.learn(value):
                    learned.add(number)
                elif vm is not None and kind == state.EVENT_WAITS:
                    waits = True
        for number in learned:
            numbers[number].home.follow(numbers[number])
        if learned:
            self.publish()
        if waits:
            self.directing.waits()
        for vm in self.vms.values():
            vm.judge()

    def _ticking(self) -> None:
        """Twenty times a second: queues on their way or due to go, uplinks that write files, front-ends that hang."""
        self._tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._ticking)
        self.mover.look()
        self.dynamics.look()
        self.directing.look()
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
