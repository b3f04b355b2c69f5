# SPDX-License-Identifier: Apache-2.0
"""The tier of TAPs: a queue of the device for each VM, which the processor of its receive queue reads straight into its guest.

    switched ─► kept       a queue that nothing else leads to; the program leads the VM's addresses there; when what stood in the
                           queues of all has been delivered, its processor reads it, and switches what it reads
             ─► led        a flag in the tables: what it reads goes straight into guest memory (dataplane/straight.py)

    led      ─► kept       the flag is off in the next version: all frames stay in the one queue, in order, whoever writes them
    kept     ─► settling   an address has gone, or the queue was another VM's: frames to it may stand in the queue. The flag is off in the version in which the
                           address is no filter of the VM's any more, then the program leads it elsewhere; then a grace
                           period, SETTLE_SECONDS for what a queueing discipline holds, and the queue has been seen empty

A VM keeps its queue until it is gone, also where it is not to be direct any more: so nothing is lost on the way, and none
overtaken. The bytes of a frame are in guest memory before anybody here sees whose it is: so what stands in the queue has to be
the VM's, and where it might not be, it is read and switched.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmq import linux
from vmq.config.records import Config
from vmq.dataplane import state
from vmq.engine.tier import LED, SWITCHED, keys_led, soon, uplink_of
from vmq.errors import VmqError
from vmq.jit import at
from vmq.uplink.tap import TapUplink

if TYPE_CHECKING:
    from vmq.engine.directing import Directing
    from vmq.engine.vm import Vm

LOG = logging.getLogger("vmq")
SETTLE_SECONDS = 1.0
WAIT_SECONDS = 0.01  # for older frames, while nobody reads the queue, which holds 500
UNFIT = {
    state.UNFIT_BUFFERS: "its driver posts buffers that are too short for the longest frame",
    state.UNFIT_FRAME: "a frame that was not its stood in its queue of the TAP",
}


@dataclass(eq=False)
class Own:
    """One VM's: queue `number` of its device, and whether its processor reads that; what the program leads there."""

    vm: Vm
    uplink: TapUplink
    number: int
    descriptor: int
    led: set[tuple[int, int]] = field(default_factory=set)
    read: bool = False
    watched: int = state.NONE  # the processor that a frame in it wakes
    settled: bool = True  # nothing stands in it but frames to `led`
    since: float = 0.0  # when the program leads nothing else there any more
    told: bool = False  # that it is direct


class OwnQueues:
    """All of an engine, a `Tier`."""

    measured = False

    def __init__(self, directing: Directing) -> None:
        self.directing, self.engine = directing, directing.engine
        self._owns: dict[str, Own] = {}

    # --- what is asked of it ---------------------------------------------------------------------------------

    def serves(self, vm: Vm) -> bool:
        return isinstance(uplink_of(vm), TapUplink)

    def words(self, vm: Vm) -> str:  # noqa: ARG002 - the same for all
        return "by a queue of its own"

    def polled(self, vm: Vm) -> bool:
        """What a queue of a TAP takes, is done in the system call that reads it."""
        return self.stage(vm) == LED

    def stage(self, vm: Vm) -> str:
        """switched, settling, kept or led, as above."""
        own = self._owns.get(vm.name)
        if own is None:
            return SWITCHED
        return LED if vm.queues[0].straight else "kept" if own.settled else "settling"

    def obstacle(self, vm: Vm) -> str:
        uplink = uplink_of(vm)
        if not isinstance(uplink, TapUplink) or not uplink.several:
            return "its TAP has one queue only"
        if uplink.shared:
            return "somebody else has queues of its TAP"
        return "" if 0 in vm.running else "its first receive queue does not run"

    # --- there and back --------------------------------------------------------------------------------------

    def go_on(self, vm: Vm) -> None:
        own = self._owns.get(vm.name)
        try:
            if own is None:
                self._begin(vm)
            else:
                self._go_on(own)
        except OSError as error:
            self.directing.rest(vm, f"the kernel refuses what it needs: {error.strerror}")
        except VmqError as error:
            self.directing.rest(vm, f"the kernel refuses its program: {error.wrong}")

    def _begin(self, vm: Vm) -> None:
        uplink = uplink_of(vm)
        if not isinstance(uplink, TapUplink):
            return
        number, descriptor, fresh = uplink.own_queue()
        own = self._owns[vm.name] = Own(vm, uplink, number, descriptor, settled=fresh, since=time.monotonic())
        own.led = keys_led(self.engine)[vm]
        try:
            self._lead(uplink)
        except OSError:
            self._forget(own)
            raise
        self._let_pass(own)
        own.read = True
        self.engine.publish()

    def _let_pass(self, own: Own) -> None:
        """Wait a moment for frames that came by the queues of all: they are older than those that come by its own."""
        poll = select.poll()
        for row in own.uplink.lanes:
            poll.register(int(row["fd"]), select.POLLIN)

        def empty() -> bool:
            full = {descriptor for descriptor, _ in poll.poll(0)}
            for row in own.uplink.lanes:
                descriptor = int(row["fd"])
                if descriptor not in full and descriptor in waiting:
                    waiting.remove(descriptor)
                    poll.unregister(descriptor)
            return not waiting

        waiting = {int(row["fd"]) for row in own.uplink.lanes}
        passed = soon(empty, WAIT_SECONDS)
        self.engine.publish()  # rounds that had begun have ended
        rows = self.engine.segment.rows["rings"]
        rings = [
            at(int(rows[sender * state.MAX_WORKERS + own.vm.worker]), 1, state.byte_ring)[0]
            for sender in range(len(self.engine.workers))
        ]
        heads = [int(ring["head"]) for ring in rings]

        def arrived() -> bool:
            return all(int(ring["tail"]) >= head for ring, head in zip(rings, heads, strict=True))

        if not (soon(arrived, WAIT_SECONDS) and passed):
            LOG.warning("vm %s: frames may have overtaken others when it became direct", own.vm.name)

    def _go_on(self, own: Own) -> None:
        books = self.engine.segment.rows["queue_state"][own.vm.first_queue]
        if books["unfit"]:
            self.directing.rest(own.vm, UNFIT[int(books["unfit"])])
            if books["unfit"] == state.UNFIT_FRAME:
                own.settled, own.since = False, time.monotonic()
            self._agree(own)
            books["unfit"] = 0
            return
        if not own.settled and time.monotonic() > own.since + SETTLE_SECONDS:
            poll = select.poll()
            poll.register(own.descriptor, select.POLLIN)
            own.settled = not poll.poll(0)
        self._agree(own)

    def leave(self, whys: Mapping[Vm, str]) -> None:
        """The next version has it. What a driver changes is in a version, too: nothing has to be done before that."""
        self._agree(*(own for own in self._owns.values() if own.vm in whys))

    def _agree(self, *owns: Own) -> None:
        """Publish a version if it would say anything else of these than the last one."""
        entries = ((own.vm.queues[0], self._wanted(own)) for own in owns)
        if any((entry.tap, entry.straight) != wanted for entry, wanted in entries):
            self.engine.publish()

    def _wanted(self, own: Own) -> tuple[int, bool]:
        straight = own.read and own.settled and not self.directing.obstacle(own.vm)
        return own.descriptor if own.read else state.NONE, straight

    def set_out(self, workers: Mapping[Vm, int]) -> None:
        """For one version nobody reads them: who has done so has delivered what he read."""
        going = [
            own
            for own in self._owns.values()
            if own.read and workers.get(own.vm, own.vm.worker) != own.vm.worker
        ]
        for own in going:
            own.read = False
        if going:
            self.engine.publish()
        for own in going:
            own.read = True

    # --- around a version ------------------------------------------------------------------------------------

    def tidy(self) -> None:
        for own in list(self._owns.values()):
            if self.engine.vms.get(own.vm.name) is not own.vm:
                self._forget(own)

    def make_way(self, new: Config) -> None:
        """What it is made for lasts as long as a VM port."""

    def prepare(self) -> None:
        wanted = self._keys()
        for own in self._owns.values():
            if not own.led <= wanted.get(own.vm, set()):
                own.settled = False
            tap, straight = self._wanted(own)
            if tap != state.NONE and own.watched != own.vm.worker:
                self._unwatch(own)
                own.watched = own.vm.worker
                self.engine.workers[own.watched].watch(own.descriptor)
            own.vm.queues[0] = replace(own.vm.queues[0], tap=tap, straight=straight)

    def follow(self) -> None:
        self.tidy()
        wanted = self._keys()
        changed = [own for own in self._owns.values() if own.led != wanted[own.vm]]
        fewer = [own for own in changed if not own.settled]
        for own in changed:
            own.led = wanted[own.vm]
        for uplink in {own.uplink for own in changed}:
            try:
                self._lead(uplink)
            except OSError as error:  # who is not led comes by the queues of all
                LOG.warning("uplink %s: %s", uplink.name, error.strerror)
        if fewer:
            linux.grace_period()
        for own in fewer:
            own.since = time.monotonic()
        for own in self._owns.values():
            self._tell(own)

    def _tell(self, own: Own) -> None:
        now = own.vm.queues[0].straight
        if now:
            self.directing.whys.pop(own.vm.name, None)
        if now != own.told:
            own.told = now
            why = "" if now else self.directing.obstacle(own.vm) or "one of its addresses has gone"
            self.directing.tell(own.vm, "direct" if now else "switched", why)

    def _keys(self) -> dict[Vm, set[tuple[int, int]]]:
        return keys_led(self.engine) if self._owns else {}

    def _lead(self, uplink: TapUplink) -> None:
        owns: Iterable[Own] = (own for own in self._owns.values() if own.uplink is uplink)
        uplink.lead({key: own.number for own in owns for key in own.led})

    # --- its end -----------------------------------------------------------------------------------------------

    def _unwatch(self, own: Own) -> None:
        if own.watched != state.NONE:
            self.engine.workers[own.watched].forget(own.descriptor)
            own.watched = state.NONE

    def _forget(self, own: Own) -> None:
        """Nobody reads it any more: another VM may have its queue."""
        del self._owns[own.vm.name]
        self._unwatch(own)
        try:
            self._lead(own.uplink)
        except OSError as error:
            LOG.warning("uplink %s: %s", own.uplink.name, error.strerror)
        linux.grace_period()
        own.uplink.give_back(own.number)

    def close(self) -> None:
        for own in self._owns.values():
            own.read = False
        if self._owns:
            self.engine.publish()
        for own in list(self._owns.values()):
            self._forget(own)
