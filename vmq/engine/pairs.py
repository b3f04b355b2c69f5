# SPDX-License-Identifier: Apache-2.0
"""The tier of uplinks with a program on a NIC: a veth pair for each VM, and a socket at its far end on the guest's memory.

    switched ─► making    pair, programs, socket on its memory: about a second for 512 MiB, in a thread of its own
    kept     ─► posting   its processor gives the kernel the guest's buffers, and sends frames for it into its pair
             ─► led       the NIC's program leads its addresses there, too

    led      ─► leaving   the NIC's program leads nothing there; a grace period; frames of other paths wait in the ring of its
                          processor, as those of a queue that moves; a mark through the pair; what has landed is given back
             ─► kept      buffers that the kernel has not used are the next ones, as if it had never had them; what was made
                          stays, to be direct again in a moment, until memory or configuration are others

Leaving is done at once and whole, whoever wants it: a driver that stops, memory that changes, another configuration; and by
all together that have to at the same time, as a grace period takes longer than everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmq import linux
from vmq.config.records import Config, Xdp
from vmq.config.records import Vm as VmConfig
from vmq.dataplane import state
from vmq.direct.memory import GuestMemory, identity
from vmq.direct.pair import Apart
from vmq.direct.queue import DirectQueue
from vmq.engine.pinned import TORN, give_back, in_the_way, said, take
from vmq.engine.plan import lasting, same_wire
from vmq.engine.tier import LED, SWITCHED, keys_led, soon, uplink_of
from vmq.uplink.xdp import XdpUplink

if TYPE_CHECKING:
    from vmq.engine.directing import Directing
    from vmq.engine.vm import Vm

LOG = logging.getLogger("vmq")
NOBODY = state.MAX_WORKERS  # as `former`: no processor delivers, and frames wait
COUNT_SECONDS = 1.0  # between two looks at what was lost; each reads the counters of all pairs
PAIR_MTU_MAX = 3400  # what a veth takes a program with is a page, less the kernel's own: some 3500


@dataclass(eq=False)
class Direct:
    """One VM's. `queue` is there when it is made; `stage` as in the picture; `shape` is what it was made for."""

    vm: Vm
    memory: GuestMemory
    shape: tuple[object, ...]
    made: Future[DirectQueue]
    stage: str = "making"
    queue: DirectQueue | None = None
    stale: bool = False  # not wanted any more; it is closed when it is made
    count_at: float = 0.0  # when what was lost is counted next


class Pairs:
    """All receive queues of an engine that are direct this way, a `Tier`."""

    measured = True

    def __init__(self, directing: Directing) -> None:
        self.directing, self.engine = directing, directing.engine
        self._directs: dict[str, Direct] = {}
        self._far: Apart | None = None
        self._makers = ThreadPoolExecutor(1, "vmq-direct")

    # --- what is asked of it ---------------------------------------------------------------------------------

    def serves(self, vm: Vm) -> bool:
        uplink = uplink_of(vm)
        return isinstance(uplink, XdpUplink) and isinstance(uplink.config, Xdp)

    def words(self, vm: Vm) -> str:
        one = self._directs.get(vm.name)
        queue = one.queue if one is not None else None
        if queue is not None and queue.is_polled():
            return "by a pair of its own, which its processor polls, as frames are many"
        why = (queue.why_not_polled if queue is not None else "") or "frames are few"
        return f"by a pair of its own; the kernel's work for it is done where frames come from: {why}"

    def polled(self, vm: Vm) -> bool:
        one = self._directs.get(vm.name)
        return self.stage(vm) == LED and one is not None and one.queue is not None and one.queue.is_polled()

    def stage(self, vm: Vm) -> str:
        """switched, making, kept, posting or led, as in the picture."""
        one = self._directs.get(vm.name)
        return SWITCHED if one is None or one.stale else one.stage

    def tidy(self) -> None:
        self._loop = asyncio.get_running_loop()
        whys = dict[Direct, str]()
        for made in self._directs.values():
            if not made.stale and made.memory.is_torn():
                whys[made] = TORN
            elif not self._is_wanted(made):
                whys[made] = "its memory, its uplink or its configuration is another now"
        self.leave({made.vm: why for made, why in whys.items()})
        for made, why in whys.items():
            if why == TORN:
                self._tear(made)
            else:
                self._forget(made)

    def _is_wanted(self, one: Direct) -> bool:
        if self.engine.vms.get(one.vm.name) is not one.vm or one.shape != _shape(one.vm):
            return False
        return self.directing.tier_of(one.vm) is self

    def _tear(self, one: Direct) -> None:
        """Pages of its memory are gone: the kernel has others. Never again with these files."""
        self.directing.torn.add(one.vm, one.memory)
        self.directing.whys[one.vm.name] = TORN
        self._forget(one)

    def go_on(self, vm: Vm) -> None:
        one = self._directs.get(vm.name)
        if one is None:
            self._begin(vm)
        else:
            self._as_far_as_it_goes(one, self._go_on)

    def obstacle(self, vm: Vm) -> str:
        return in_the_way(vm, self.directing.torn)

    # --- towards direct --------------------------------------------------------------------------------------

    def _begin(self, vm: Vm) -> None:
        try:
            self._far = self._far or Apart()
            memory = take(vm)
        except OSError as error:
            self.directing.rest(vm, f"the host refuses what it needs: {said(error)}")
            return
        far, number, mtu, strip = self._far, vm.number, vm.mtu, vm.config.vlan is not None
        uplink = uplink_of(vm)
        widest = min(max(mtu, uplink.mtu if uplink else 0), PAIR_MTU_MAX)
        made = self._makers.submit(lambda: DirectQueue(far, number, memory, mtu, widest, strip=strip))
        self._directs[vm.name] = Direct(vm, memory, _shape(vm), made)

    def _as_far_as_it_goes(self, one: Direct, step: Callable[[Direct], None]) -> None:
        """A step; where the kernel refuses what it needs, the VM is switched for a while."""
        try:
            step(one)
        except OSError as error:
            self._refuse({one.vm: f"the kernel refuses what it needs: {said(error)}"})

    def _go_on(self, one: Direct) -> None:
        if one.stale:
            return
        if one.stage == "making" and one.made.done():
            self._made(one)
        elif one.stage == "kept" and one.queue is not None:
            self._post(one, one.queue)
        elif one.stage == "posting" and one.queue is not None:
            if one.queue.row["unfit"]:
                self._unfit(one)
            elif one.queue.row["begun"]:
                self._lead(one, one.queue)
        elif one.stage == LED and one.queue is not None:
            if time.monotonic() > one.count_at:
                one.count_at = time.monotonic() + COUNT_SECONDS
                self._count([one.queue])
            one.queue.look(time.monotonic(), one.vm.received()[0])
            if one.queue.row["unfit"]:
                self._unfit(one)

    def _count(self, queues: Collection[DirectQueue]) -> None:
        """What was lost, to the counters of the queues; processors may sleep, and nothing else may wake them."""
        devices = self._far.devices() if self._far else ""
        for queue in queues:
            queue.count_lost(devices)
        if not all(queue.lost_are_booked() for queue in queues):
            self.engine.publisher.ring()

    def _unfit(self, one: Direct) -> None:
        self._refuse({one.vm: "its driver posts buffers that are none for the kernel"})

    def _made(self, one: Direct) -> None:
        try:
            queue = one.made.result()
        except Exception as error:  # noqa: BLE001 - whatever the host or the kernel says is the reason
            self._forget(one)
            self.directing.rest(one.vm, f"the kernel refuses what it needs: {said(error)}")
            return
        one.queue = queue
        one.memory.registered()
        if one.memory.is_torn():
            self._tear(one)
            return
        self._post(one, queue)

    def _post(self, one: Direct, queue: DirectQueue) -> None:
        vm, one.stage = one.vm, "posting"
        queue.follow(keys_led(self.engine)[vm])
        queue.open()
        vm.queues[0] = replace(vm.queues[0], direct=queue.address, led=state.LED)
        self.engine.workers[vm.worker].watch(queue.socket.fileno())
        self.engine.publish()

    def _lead(self, one: Direct, queue: DirectQueue) -> None:
        vm, uplink = one.vm, uplink_of(one.vm)
        if not isinstance(uplink, XdpUplink):
            return
        one.stage = LED
        queue.call(lambda: uplink.pair(vm.number, queue.pair.index))
        uplink.lead(vm.number, queue.filters_now)
        self.directing.whys.pop(vm.name, None)
        self.directing.tell(vm, "direct")

    def _active(self) -> list[tuple[Direct, DirectQueue]]:
        """Those of which the kernel has buffers."""
        found = ((one, one.queue) for one in self._directs.values() if one.stage in ("posting", LED))
        return [(one, queue) for one, queue in found if queue is not None]

    def _others(self) -> list[tuple[Direct, DirectQueue, set[tuple[int, int]]]]:
        """Those of them to whom other keys lead than their far ends know, and which."""
        active = self._active()
        keys = keys_led(self.engine) if active else {}
        every = ((one, queue, keys.get(one.vm, set())) for one, queue in active)
        return [(one, queue, own) for one, queue, own in every if own != queue.filters_now]

    def prepare(self) -> None:
        """What may be sent into a pair from the next version on, its far end knows before that."""
        refused: dict[Vm, str] = {}
        for one, queue, keys in self._others():
            try:
                queue.follow(keys | queue.filters_now)
            except OSError as error:
                refused[one.vm] = f"the kernel refuses what it needs: {said(error)}"
        self._refuse(refused)

    def follow(self) -> None:
        """The NIC's program is next, and far ends forget what leads there no more when all have been told."""
        others = self._others()
        for one, _, keys in others:
            uplink = uplink_of(one.vm)
            if one.stage == LED and isinstance(uplink, XdpUplink):
                uplink.lead(one.vm.number, keys)
        for _, queue, keys in others:
            queue.follow(keys)

    def make_way(self, new: Config) -> None:
        """Those are switched whose pair is not for it."""
        uplinks = self.engine.config.uplinks
        fresh = {name for name in uplinks if not same_wire(uplinks[name], new.uplinks.get(name))}

        def stays(before: VmConfig, config: VmConfig | None) -> bool:
            if config is None or before.uplink in fresh or config.placement == "switched":
                return False
            same = config.vlan == before.vlan and config.nic_queue == before.nic_queue
            return same and lasting(config) == lasting(before)

        gone = [one.vm for one, _ in self._active() if not stays(one.vm.config, new.vms.get(one.vm.name))]
        self.leave(dict.fromkeys(gone, "its configuration is another now"))

    # --- and back --------------------------------------------------------------------------------------------

    def leave(self, whys: Mapping[Vm, str]) -> None:
        """Make them switched, at once and together: their buffers are the guests' again, in order, and what has landed is given back."""
        leaving = [(one, queue) for one, queue in self._active() if one.vm in whys]
        if not leaving:
            return
        led = [one.vm for one, _ in leaving if one.stage == LED]
        for one, _ in leaving:
            one.stage = "leaving"
        began = self._withdraw(leaving, led)
        for one, _ in leaving:
            one.vm.queues[0] = replace(one.vm.queues[0], direct=0, led=0, former=state.NONE)
        self.engine.publish()
        waited = time.monotonic() - began
        for one, queue in leaving:
            vm, one.stage = one.vm, "kept"
            self.engine.workers[vm.worker].forget(queue.socket.fileno())
            vm.rings.watch()
            queue.socket.leave()
            self.directing.whys[vm.name] = whys[vm]
            if vm in led:
                self.directing.tell(vm, "switched", whys[vm], waited)

    def _refuse(self, whys: Mapping[Vm, str]) -> None:
        """The same, and for a while."""
        self.leave(whys)
        for vm, why in whys.items():
            self.directing.rest(vm, why)

    def set_out(self, workers: Mapping[Vm, int]) -> None:
        """Also where only the queue is another."""
        self.leave(dict.fromkeys(workers, "its receive queue moves to another processor"))

    def _withdraw(self, leaving: Sequence[tuple[Direct, DirectQueue]], led: Collection[Vm]) -> float:
        """Until the kernel has nothing of them, in one grace period for all; since when frames wait."""
        for vm in led:
            uplink = uplink_of(vm)
            if isinstance(uplink, XdpUplink):
                uplink.unlead(vm.number)
        if led:
            linux.grace_period()
        for one, queue in leaving:
            one.vm.queues[0] = replace(one.vm.queues[0], led=state.LEAVING, former=NOBODY)
            queue.poll(on=False)
        began = time.monotonic()
        self.engine.publish()
        landed = _all(
            DirectQueue.drained, leaving, "frames on their way into its memory were not seen to land"
        )
        for _, queue in leaving:
            queue.shut()
        if not landed:
            linux.grace_period()  # what the far end was about to write is written, or was not let through
        served = [one for one in leaving if not one[0].vm.fault]  # guests of others are given nothing
        _all(
            lambda queue: queue.socket.is_harvested(),
            served,
            "frames have landed in its memory that it is not told of",
        )
        self._count([queue for _, queue in served])
        _all(
            DirectQueue.lost_are_booked,
            served,
            "frames were lost on their way into its memory that no counter has",
        )
        return began

    def _forget(self, one: Direct) -> None:
        """Give everything back, now or when it is made."""
        if one.queue is None and not one.made.done():
            if not one.stale:
                one.stale = True
                one.made.add_done_callback(lambda _: self._call_soon(one))
            return
        if self._directs.get(one.vm.name) is not one:
            return
        del self._directs[one.vm.name]
        if one.queue is None and not one.made.cancelled() and one.made.exception() is None:
            one.queue = one.made.result()
        if one.queue is not None:
            one.queue.close()
        give_back(one.vm, one.memory)

    def _call_soon(self, one: Direct) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and `close` waits
            self._loop.call_soon_threadsafe(self._forget, one)

    def close(self) -> None:
        """Everything is switched; wait for what is still being made."""
        self.leave({one.vm: "the engine ends" for one in self._directs.values()})
        self._makers.shutdown(cancel_futures=True)
        for one in list(self._directs.values()):
            self._forget(one)
        if self._far is not None:
            self._far.close()
            self._far = None


def _all(
    done: Callable[[DirectQueue], bool], ones: Sequence[tuple[Direct, DirectQueue]], otherwise: str
) -> bool:
    """Wait a moment until this holds of each; whether it does. Of whom it does not, that is told."""
    left = list(ones)

    def none_left() -> bool:
        left[:] = [(one, queue) for one, queue in left if not done(queue)]
        return not left

    passed = soon(none_left)
    for one, _ in left:
        LOG.warning("vm %s: %s", one.vm.name, otherwise)
    return passed


def _shape(vm: Vm) -> tuple[object, ...]:
    """What a direct queue is made for: with anything else it is another one."""
    return (
        uplink_of(vm),
        identity(vm.session.regions),
        vm.number,
        vm.mtu,
        vm.config.vlan is not None,
        vm.config.placement != "switched",
    )
