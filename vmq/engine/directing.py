# SPDX-License-Identifier: Apache-2.0
"""VMs whose frames the kernel places: which can be, how one becomes direct while frames flow, and how it ceases to be.

    switched ─► making    pair, programs, socket on its memory: about a second for 512 MiB, in a thread of its own
    kept     ─► posting   its processor gives the kernel the guest's buffers, and sends frames for it into its pair
             ─► led       the NIC's program leads its addresses there, too

    led      ─► leaving   the NIC's program leads nothing there; a grace period; frames of other paths wait in the ring of its
                          processor, as those of a queue that moves; a mark through the pair; what has landed is given back
             ─► kept      buffers that the kernel has not used are the next ones, as if it had never had them; what was made
                          stays, to be direct again in a moment, until memory or configuration are others

Leaving is done at once and whole, whoever wants it: a driver that stops, memory that changes, another configuration. The
next look makes it direct again where nothing is in the way; after buffers that were none for the kernel, not before
REST_SECONDS, twice as long each time, unless it had been well for REST_MOST.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmq import linux
from vmq.config.records import Config, Xdp
from vmq.dataplane import state
from vmq.direct.lengths import Lengths
from vmq.direct.memory import GuestMemory, identity
from vmq.direct.pair import Apart
from vmq.direct.queue import DirectQueue
from vmq.errors import ProtocolError
from vmq.uplink import Uplink
from vmq.uplink.xdp import XdpUplink

if TYPE_CHECKING:
    from vmq.engine.engine import Engine
    from vmq.engine.vm import Vm

LOG = logging.getLogger("vmq")
NOBODY = state.MAX_WORKERS  # as `former`: no processor delivers, and frames wait
PASS_SECONDS, PAUSE_SECONDS = 0.2, 0.0002  # for a mark to pass, and what has landed to be given back
REST_SECONDS, REST_MOST = 1.0, 300.0  # after which it is forgotten, too
COUNT_SECONDS = 1.0  # between two looks at what was lost; each reads the counters of all pairs
KEYS = ("uplink", "vlan", "placement")  # of a VM, that a pair is made for
TORN = "pages of its memory were given back to the host: a memory balloon, free page reporting, virtio-mem"
MTU_MAX = 1500 + 4  # what a chunk of the kernel has room for, and more than a guest's usual buffers


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


class Directing:
    """All direct receive queues of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.whys: dict[str, str] = {}  # why a VM is switched that is to be direct
        self._directs: dict[str, Direct] = {}
        self._far: Apart | None = None
        self._makers = ThreadPoolExecutor(1, "vmq-direct")
        self._rests: dict[str, tuple[float, float]] = {}  # until when, and how long the last one was
        self._lengths: dict[str, Lengths] = {}  # of those for which that decides
        self._torn: dict[str, tuple[object, ...]] = {}  # memory of which pages were given back to the host

    # --- what is asked of it ---------------------------------------------------------------------------------

    def stage(self, vm: Vm) -> str:
        """switched, making, kept, posting or led, as in the picture."""
        one = self._directs.get(vm.name)
        return "switched" if one is None or one.stale else one.stage

    def look(self) -> None:
        """Go on with those under way; begin with those that may be direct, leave those that may not."""
        self._loop = asyncio.get_running_loop()
        for known in (self._rests, self._torn, self._lengths, self.whys):
            for name in known.keys() - self.engine.vms.keys():
                del known[name]
        self._part()
        for vm in self.engine.vms.values():
            self._measure(vm)
            why, one = self.obstacle(vm), self._directs.get(vm.name)
            if one is not None and why:
                self.leave(vm, why)
            elif one is not None:
                self._as_far_as_it_goes(one, self._go_on)
            elif not why:
                self._begin(vm)
            if why and vm.config.placement != "switched":
                self.whys[vm.name] = why

    def _part(self) -> None:
        """What was made goes where it does not fit any more."""
        for made in list(self._directs.values()):
            if self.engine.vms.get(made.vm.name) is not made.vm or made.shape != _shape(made.vm):
                self.leave(made.vm, "its memory, its uplink or its configuration is another now")
                self._forget(made)
            elif not made.stale and made.memory.is_torn():
                self._torn[made.vm.name] = identity(made.vm.session.regions)
                self.leave(made.vm, TORN)
                self._forget(made)

    def _measure(self, vm: Vm) -> None:
        """The length of its frames, where that decides."""
        if vm.config.placement == "auto":
            rows = vm.queue_rows()
            lengths = self._lengths.setdefault(vm.name, Lengths())
            lengths.look(
                time.monotonic(), int(rows["frames_to_guest"].sum()), int(rows["bytes_to_guest"].sum())
            )

    def obstacle(self, vm: Vm) -> str:
        """Why this VM cannot be direct; empty if it can."""
        if vm.config.placement == "switched":
            return "it is not asked for"
        uplink = _uplink_of(vm)
        if not isinstance(uplink, XdpUplink) or not isinstance(uplink.config, Xdp):
            return "its uplink is not of kind xdp"
        if not uplink.steers:
            return "its uplink steers nothing in the kernel: see its mode"
        if vm.queues[0].shared:
            return "it has no receive queue of its own"
        if vm.queues[0].former != state.NONE:
            return "its receive queue is on its way to another processor"
        if vm.config.overload != "drop-newest":
            return "frames that find no buffer are to wait, and the kernel lets none wait"
        if "unknown" in vm.config.accept:
            return "it takes frames to other addresses, which the NIC's program leaves to the host"
        if len(vm.home.effects.entry.tests):
            return "receive filters of its uplink look at more than addresses"
        if vm.mtu > MTU_MAX:
            return f"frames of its MTU of {vm.mtu} take more than one buffer"
        if vm.observed.any:
            return "it is captured or measured"
        if vm.running != [0] or vm.fault:
            return "its first receive queue alone must run"
        if vm.name in self._torn and self._torn[vm.name] == identity(vm.session.regions):
            return TORN
        until, _ = self._rests.get(vm.name, (0.0, 0.0))
        if time.monotonic() < until:
            return f"it was direct, and buffers were none for the kernel: again in {until - time.monotonic():.0f} s"
        if vm.config.placement == "auto":
            lengths = self._lengths.get(vm.name, Lengths())
            return "" if lengths.pays else lengths.why()
        return ""

    # --- towards direct --------------------------------------------------------------------------------------

    def _begin(self, vm: Vm) -> None:
        try:
            self._far = self._far or Apart()
            memory = GuestMemory(vm.session.regions)
        except OSError as error:
            self._rest(vm, f"the host refuses what it needs: {error.strerror}")
            return
        try:
            self.engine.segment.add_mapping(vm.number, memory.address, memory.size)
        except ProtocolError as error:
            memory.close()
            self._rest(vm, error.wrong)
            return
        far, number, mtu, strip = self._far, vm.number, vm.mtu, vm.config.vlan is not None
        uplink = _uplink_of(vm)
        widest = max(mtu, uplink.mtu if uplink else 0)
        made = self._makers.submit(lambda: DirectQueue(far, number, memory, mtu, widest, strip=strip))
        self._directs[vm.name] = Direct(vm, memory, _shape(vm), made)

    def _as_far_as_it_goes(self, one: Direct, step: Callable[[Direct], None]) -> None:
        """A step; where the kernel refuses what it needs, the VM is switched for a while."""
        try:
            step(one)
        except OSError as error:
            why = f"the kernel refuses what it needs: {error.strerror}"
            self.leave(one.vm, why)
            self._rest(one.vm, why)

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
        elif one.stage == "led" and one.queue is not None:
            if time.monotonic() > one.count_at:
                one.count_at = time.monotonic() + COUNT_SECONDS
                self._count(one.queue)
            if one.queue.row["unfit"]:
                self._unfit(one)

    def _count(self, queue: DirectQueue) -> None:
        """What was lost, to the counters of the queue; its processor may sleep, and nothing else may wake it."""
        queue.count_lost()
        if not queue.lost_are_booked():
            self.engine.publisher.ring()

    def _unfit(self, one: Direct) -> None:
        why = "its driver posts buffers that are none for the kernel"
        self.leave(one.vm, why)
        self._rest(one.vm, why)

    def _made(self, one: Direct) -> None:
        try:
            queue = one.made.result()
        except Exception as error:  # noqa: BLE001 - whatever the host or the kernel says is the reason
            self._forget(one)
            said = error.strerror if isinstance(error, OSError) else error
            self._rest(one.vm, f"the kernel refuses what it needs: {said}")
            return
        one.queue = queue
        self._post(one, queue)

    def _post(self, one: Direct, queue: DirectQueue) -> None:
        vm, one.stage = one.vm, "posting"
        queue.follow(self._filters(vm))
        queue.open()
        vm.queues[0] = replace(vm.queues[0], direct=queue.address, led=state.LED)
        self.engine.workers[vm.worker].watch(queue.socket.fileno())
        self.engine.publish()

    def _lead(self, one: Direct, queue: DirectQueue) -> None:
        vm, uplink = one.vm, _uplink_of(one.vm)
        if not isinstance(uplink, XdpUplink):
            return
        one.stage = "led"
        queue.call(lambda: uplink.pair(vm.number, queue.pair.index))
        uplink.lead(vm.number, queue.filters_now)
        self.whys.pop(vm.name, None)
        self.engine.journal.tell("placement", vm=vm.name, placement="direct", why="", waited_ms=0.0)

    @staticmethod
    def _filters(vm: Vm) -> set[tuple[int, int]]:
        return {(mac, vm.config.vlan or 0) for mac in vm.macs}

    def follow(self) -> None:
        """Receive filters may be others now; of those that are led, the far ends come first."""
        for one in list(self._directs.values()):
            led = one.stage in ("posting", "led")
            if led and one.queue is not None and self._filters(one.vm) != one.queue.filters_now:
                self._as_far_as_it_goes(one, self._follow)

    def _follow(self, one: Direct) -> None:
        filters, uplink, queue = self._filters(one.vm), _uplink_of(one.vm), one.queue
        if queue is None:
            return
        queue.follow(filters | queue.filters_now)
        if one.stage == "led" and isinstance(uplink, XdpUplink):
            uplink.lead(one.vm.number, filters)
        queue.follow(filters)

    def make_way(self, new: Config) -> None:
        """Before another configuration is brought about: those are switched whose pair is not for it."""
        for one in list(self._directs.values()):
            before, config = one.vm.config, new.vms.get(one.vm.name)
            if config is None or any(getattr(config, key) != getattr(before, key) for key in KEYS):
                self.leave(one.vm, "its configuration is another now")

    # --- and back --------------------------------------------------------------------------------------------

    def leave(self, vm: Vm, why: str) -> None:
        """Make it switched, at once: its buffers are the guest's again, in order, and what has landed is given back."""
        one = self._directs.get(vm.name)
        if one is None or one.stage not in ("posting", "led"):
            return
        led, one.stage, began = one.stage == "led", "leaving", time.monotonic()
        if one.queue is not None:
            began = self._withdraw(vm, one.queue, led=led)
            vm.queues[0] = replace(vm.queues[0], direct=0, led=0, former=state.NONE)
            self.engine.publish()
            self.engine.workers[vm.worker].forget(one.queue.socket.fileno())
            vm.rings.watch()
            one.queue.socket.leave()
        one.stage, self.whys[vm.name] = "kept", why
        if led:
            waited = round(1000 * (time.monotonic() - began), 3)
            self.engine.journal.tell("placement", vm=vm.name, placement="switched", why=why, waited_ms=waited)

    def _withdraw(self, vm: Vm, queue: DirectQueue, *, led: bool) -> float:
        """Until the kernel has nothing of it; since when frames wait."""
        uplink = _uplink_of(vm)
        if isinstance(uplink, XdpUplink) and led:
            uplink.unlead(vm.number)
            linux.grace_period()
        vm.queues[0] = replace(vm.queues[0], led=state.LEAVING, former=NOBODY)
        began = time.monotonic()
        self.engine.publish()
        drained = _soon(queue.drained)
        queue.shut()
        if not drained:
            LOG.warning("vm %s: frames on their way into its memory were not seen to land", vm.name)
            linux.grace_period()  # what the far end was about to write is written, or was not let through
        if vm.fault:
            return began  # nothing is given to its guest any more
        if not _soon(queue.socket.is_harvested):
            LOG.warning("vm %s: frames have landed in its memory that it is not told of", vm.name)
        self._count(queue)
        if not _soon(queue.lost_are_booked):
            LOG.warning("vm %s: frames were lost on their way into its memory that no counter has", vm.name)
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
        self.engine.segment.drop_mapping(one.memory.address)
        one.memory.close()

    def _call_soon(self, one: Direct) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and `close` waits
            self._loop.call_soon_threadsafe(self._forget, one)

    def _rest(self, vm: Vm, why: str) -> None:
        now, (until, before) = time.monotonic(), self._rests.get(vm.name, (0.0, 0.0))
        pause = min(2 * before, REST_MOST) if before and now - until < REST_MOST else REST_SECONDS
        self._rests[vm.name] = now + pause, pause
        self.whys[vm.name] = why

    def close(self) -> None:
        """Everything is switched; wait for what is still being made."""
        for one in list(self._directs.values()):
            self.leave(one.vm, "the engine ends")
        self._makers.shutdown(cancel_futures=True)
        for one in list(self._directs.values()):
            self._forget(one)
        if self._far is not None:
            self._far.close()
            self._far = None


def _uplink_of(vm: Vm) -> Uplink | None:
    """None also where it could not be opened."""
    opened = vm.engine.uplinks.get(vm.config.uplink or "")
    return opened and opened.uplink


def _shape(vm: Vm) -> tuple[object, ...]:
    """What a direct queue is made for: with anything else it is another one."""
    return (
        _uplink_of(vm),
        identity(vm.session.regions),
        vm.number,
        vm.mtu,
        vm.config.vlan is not None,
        vm.config.placement,
    )


def _soon(condition: Callable[[], bool]) -> bool:
    """Wait a moment until it holds; whether it does."""
    deadline = time.monotonic() + PASS_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE_SECONDS)
    return True
