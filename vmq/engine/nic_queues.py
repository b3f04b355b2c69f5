# SPDX-License-Identifier: Apache-2.0
"""The tier of VMs with a receive queue of the NIC for their own (`nic_queue`): a socket there whose memory is the guest's and some of ours.

    switched ─► making    the socket on its memory: about a second for 512 MiB, in a thread of its own
             ─► kept      the NIC's program leads the VM's addresses there, where they come by this queue; frames are switched
             ─► led       its processor binds frames to the guest's buffers: one flag in the tables (dataplane/nic_queue.py)

    led      ─► kept      entries of the fill ring name our chunks again; a grace period, after which nothing can land in a buffer any more;
                          then no frame is bound. Frames from the NIC go on all the while

The socket serves the VM in both placements, so none of its frames is lost or overtaken at a change. Frames by other paths, from other VMs or
to groups, cannot be put between those that the kernel places: they wait for the queue to be switched, which is done at once, and it
rests as `Directing.rest_a_little` says. What the NIC's rules lead to another queue comes by other paths, too.

Where the queue cannot be had, the VM is `refused`, and pairs.py has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from vmq import ethtool, linux
from vmq.abi.ethernet import ETH_HLEN
from vmq.config.records import Config
from vmq.dataplane import state
from vmq.direct.memory import GuestMemory, identity
from vmq.direct.nic_socket import BESIDE, NicSocket
from vmq.engine.pinned import TORN, give_back, in_the_way, said, take
from vmq.engine.plan import lasting
from vmq.engine.tier import LED, SWITCHED, keys_led, soon, uplink_of
from vmq.jit import at, store_release
from vmq.uplink.xdp import XdpUplink

if TYPE_CHECKING:
    from vmq.engine.directing import Directing
    from vmq.engine.vm import Vm

LOG = logging.getLogger("vmq")
KEYS = ("uplink", "vlan", "nic_queue", "placement")  # of a VM, that a socket is made for
TURN_SECONDS = 5.0  # for a processor to take a round: as Publisher.settle
WAITED = "frames have come for it by another path than its NIC queue"
ANOTHER = "its memory, its uplink or its configuration is another now"
UNFIT = "its driver posts buffers that are none for the kernel"


@dataclass(eq=False)
class Own:
    """One VM's. `socket` is there when it is made; `stage` as in the picture; `shape` is what it was made for."""

    vm: Vm
    uplink: XdpUplink
    memory: GuestMemory
    shape: tuple[object, ...]
    made: Future[NicSocket]
    stage: str = "making"
    socket: NicSocket | None = None
    stale: bool = False  # not wanted any more; it is closed when it is made
    watched: int = state.NONE  # the processor that a frame in it wakes
    filters: set[tuple[int, int]] = field(default_factory=set)  # that lead there


class NicQueues:
    """All of an engine, a `Tier`."""

    measured = False

    def __init__(self, directing: Directing) -> None:
        self.directing, self.engine = directing, directing.engine
        self._owns: dict[str, Own] = {}
        self._refused: dict[str, tuple[tuple[object, ...], str]] = {}  # for what, and why
        self._makers = ThreadPoolExecutor(1, "vmq-nic-queue")

    # --- what is asked of it ---------------------------------------------------------------------------------

    def serves(self, vm: Vm) -> bool:
        if vm.config.nic_queue is None or not isinstance(uplink_of(vm), XdpUplink):
            return False
        return not self.refused(vm)

    def words(self, vm: Vm) -> str:  # noqa: ARG002 - the same for all
        return "by a NIC queue of its own"

    def polled(self, vm: Vm) -> bool:  # noqa: ARG002 - the NIC's own interrupts decide that
        return False

    def refused(self, vm: Vm) -> str:
        """Why this VM cannot have its NIC queue; empty if nobody has said so."""
        asked, why = self._refused.get(vm.name, ((), ""))
        return why if asked == _asked(vm) else ""

    def rules(self, vm: Vm) -> str:
        """Who leads its frames to its queue."""
        own = self._owns.get(vm.name)
        if own is None or not own.uplink.rules.why:
            return "rules of the NIC, ours or from before, lead its addresses there"
        return f"who owns the NIC leads its addresses there: {own.uplink.rules.why}"

    def stage(self, vm: Vm) -> str:
        """switched, making, kept, leaving or led, as in the picture."""
        own = self._owns.get(vm.name)
        return SWITCHED if own is None or own.stale else own.stage

    def obstacle(self, vm: Vm) -> str:
        return in_the_way(vm, self.directing.torn)

    def tidy(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.waits()
        for name in self._refused.keys() - self.engine.vms.keys():
            del self._refused[name]
        torn = [own for own in self._owns.values() if not own.stale and own.memory.is_torn()]
        for own in torn:  # pages of its memory are gone: the kernel has others
            self.directing.torn.add(own.vm, own.memory)
        self._give_up(torn, TORN)
        vms = self.engine.vms
        other = [
            own
            for own in self._owns.values()
            if vms.get(own.vm.name) is not own.vm or own.shape != _shape(own.vm)
        ]
        self._give_up(other, ANOTHER)

    # --- towards direct --------------------------------------------------------------------------------------

    def go_on(self, vm: Vm) -> None:
        own = self._owns.get(vm.name)
        if own is None:
            self._begin(vm)
        elif own.stage == "making" and not own.stale and own.made.done():
            self._made(own)
        elif own.stage == "kept":
            self._lead(own)

    def _begin(self, vm: Vm) -> None:
        uplink, number = uplink_of(vm), vm.config.nic_queue
        if not isinstance(uplink, XdpUplink) or number is None:
            return
        try:
            if why := _unsuited(vm, uplink, number):
                self._refuse(vm, why)
                return
            memory = take(vm, BESIDE)
        except OSError as error:
            self._refuse(vm, f"the host refuses what it needs: {said(error)}")
            return
        index, longest = uplink.index, vm.mtu + ETH_HLEN
        made = self._makers.submit(lambda: NicSocket(index, number, memory, longest))
        self._owns[vm.name] = Own(vm, uplink, memory, _shape(vm), made)

    def _refuse(self, vm: Vm, why: str) -> None:
        """Not as long as nothing about it changes: another tier has the VM."""
        self._refused[vm.name] = _asked(vm), why
        self.engine.log(f"vm {vm.name}: no queue of the NIC for its own: {why}")

    def _made(self, own: Own) -> None:
        try:
            own.socket = made = own.made.result()
            own.memory.registered()
            if own.memory.is_torn():
                self.directing.torn.add(own.vm, own.memory)
                self._give_up([own], TORN)
                return
            own.stage = "kept"
            own.uplink.join(made)
            self._show(own, made.address)
            self.engine.publish()  # which leads its filters there, when it is read
        except Exception as error:  # noqa: BLE001 - whatever the host or the kernel says is the reason
            self._give_up([own], "")
            self._refuse(own.vm, f"the kernel refuses what it needs: {said(error)}")
            return

    def _lead(self, own: Own) -> None:
        vm, socket = own.vm, own.socket
        if socket is None:
            return
        for name in ("bound", "withdrawn", "free", "waits", "unfit"):
            socket.row[name] = 0
        socket.row["until"] = state.NONE
        if self._kept(vm):
            return  # older frames wait for buffers: those that the kernel places would overtake them
        own.stage = LED
        vm.queues[0] = replace(vm.queues[0], led=state.LED)
        self.engine.publish()
        self.directing.whys.pop(vm.name, None)
        self.directing.tell(vm, "direct")

    def _kept(self, vm: Vm) -> int:
        """Frames that its processor has put aside for it."""
        lists = at(int(self.engine.workers[vm.worker].row["todo"]), state.MAX_QUEUES, state.todo)
        return int(lists[vm.first_queue]["kept"])

    @staticmethod
    def _show(own: Own, address: int) -> None:
        """Have its processor read the socket of this row from the next version on; 0: none."""
        own.vm.queues[0] = replace(own.vm.queues[0], nic=address)

    # --- and back --------------------------------------------------------------------------------------------

    def waits(self) -> None:
        """Have those switched for which frames of other paths wait, and those with buffers that are none for the kernel."""
        led = [own for own in self._owns.values() if own.stage == LED and own.socket is not None]
        unfit = [own for own in led if own.socket is not None and own.socket.row["unfit"]]
        awaited = [own for own in led if own.socket is not None and own.socket.row["waits"]]
        awaited = [own for own in awaited if own not in unfit]
        self._leave(dict.fromkeys(unfit, UNFIT) | dict.fromkeys(awaited, WAITED))
        for own in unfit:
            self.directing.rest(own.vm, UNFIT)
        for own in awaited:
            self.directing.rest_a_little(own.vm, WAITED)

    def leave(self, whys: Mapping[Vm, str]) -> None:
        """Switched at once: their buffers are the guests' again, in order, and what has landed is given back."""
        owns = (own for own in self._owns.values() if own.stage == LED and own.vm in whys)
        self._leave({own: whys[own.vm] for own in owns})

    def _leave(self, whys: Mapping[Own, str]) -> None:
        """All of these together: a grace period takes as long for many as for one."""
        sockets = {own: own.socket for own in whys if own.socket is not None}
        if not sockets:
            return
        began = time.monotonic()
        for own in sockets:
            own.stage = "leaving"
            own.vm.queues[0] = replace(own.vm.queues[0], led=state.LEAVING)
        self.engine.publish()
        self._turn(lambda: all(one.row["withdrawn"] for one in sockets.values()))
        self._grace()
        for one in sockets.values():
            # us: the kernel's index, then until | the worker: until, then its own index.
            store_release(one.row, "until", one.received())
        self.engine.publisher.ring()
        self._turn(lambda: all(one.row["free"] for one in sockets.values()))
        for own in sockets:
            own.vm.queues[0] = replace(own.vm.queues[0], led=0)
        self.engine.publish()
        for own in sockets:
            own.stage, self.directing.whys[own.vm.name] = "kept", whys[own]
            self.directing.tell(own.vm, "switched", whys[own], time.monotonic() - began)

    def _grace(self) -> None:
        """As a processor that is stuck, where the kernel cannot be waited for: what is half done is not left so."""
        try:
            linux.grace_period()
        except OSError as problem:
            self.engine.failed(problem)
            raise

    def _turn(self, condition: Callable[[], bool]) -> None:
        """Wait for processors; TimeoutError when one is stuck."""
        if not soon(condition, TURN_SECONDS):
            problem = TimeoutError(f"a processor took no round within {TURN_SECONDS:g} s")
            self.engine.failed(problem)
            raise problem

    def set_out(self, workers: Mapping[Vm, int]) -> None:
        """For one version nobody reads their sockets: who has done so has delivered what he read."""
        self.leave(dict.fromkeys(workers, "its receive queue moves to another processor"))
        going = {
            own: own.socket.address
            for own in self._owns.values()
            if own.stage == "kept"
            and own.socket is not None
            and workers.get(own.vm, own.vm.worker) != own.vm.worker
        }
        for own in going:
            self._show(own, 0)
        if going:
            self.engine.publish()
        for own, address in going.items():
            self._show(own, address)

    # --- around a version ------------------------------------------------------------------------------------

    def make_way(self, new: Config) -> None:
        self._give_up([own for own in self._owns.values() if not self._stays(own, new)], ANOTHER)

    def _stays(self, own: Own, new: Config) -> bool:
        before, config, wire = own.vm.config, new.vms.get(own.vm.name), own.vm.config.uplink or ""
        if config is None or lasting(config) != lasting(before):
            return False
        same = all(getattr(config, key) == getattr(before, key) for key in (*KEYS, "overload"))
        return same and new.uplinks.get(wire) == self.engine.config.uplinks.get(wire)

    def prepare(self) -> None:
        """Have a frame in a socket wake the processor that reads it."""
        for own in self._owns.values():
            worker = own.vm.worker if own.socket is not None and own.vm.queues[0].nic else state.NONE
            if own.watched != worker and own.socket is not None:
                if own.watched != state.NONE:
                    self.engine.workers[own.watched].forget(own.socket.fileno())
                if worker != state.NONE:
                    self.engine.workers[worker].watch(own.socket.fileno())
                own.watched = worker

    def follow(self) -> None:
        """Lead the VMs' filters there that are no other receive queue's."""
        keys = keys_led(self.engine) if self._owns else {}
        for own in list(self._owns.values()):
            filters = keys.get(own.vm, set())
            if own.socket is not None and own.stage in ("kept", LED) and filters != own.filters:
                own.filters = filters
                own.uplink.lead_own(own.vm.number, filters, own.socket.queue, int(own.socket.row["longest"]))

    # --- its end -----------------------------------------------------------------------------------------------

    def _give_up(self, owns: Collection[Own], why: str) -> None:
        """Switch them, and give everything back: now, or when it is made."""
        owns = [own for own in owns if self._owns.get(own.vm.name) is own]
        self._leave({own: why for own in owns if own.stage == LED})
        for own in owns:
            if (
                own.made.done()
                and own.socket is None
                and not own.made.cancelled()
                and not own.made.exception()
            ):
                own.socket = own.made.result()
        self._empty([own for own in owns if own.made.done()])
        for own in owns:
            if own.made.done():
                self._forget(own)
            elif not own.stale:
                own.stale = True
                own.made.add_done_callback(partial(self._call_soon, own))

    def _empty(self, owns: Collection[Own]) -> None:
        """Lead nothing there, have what has landed delivered, and nobody read it any more."""
        for own in owns:
            own.stage = "going"
            if own.filters:  # else what leads to a VM of this number is not of this socket
                own.uplink.unlead(own.vm.number)
                own.filters = set()
        shown = {own: own.socket for own in owns if own.vm.queues[0].nic and own.socket is not None}
        if shown:
            self._grace()
            soon(lambda: all(one.waiting() == 0 for one in shown.values()))
            for own in shown:
                self._show(own, 0)
            self.engine.publish()
            for own, one in shown.items():
                if left := one.waiting():
                    LOG.warning("vm %s: %d frames went with its NIC queue", own.vm.name, left)

    def _forget(self, own: Own) -> None:
        """Nobody reads it."""
        if self._owns.get(own.vm.name) is own:
            del self._owns[own.vm.name]
            if own.socket is not None:
                own.uplink.part(own.socket)
                own.socket.close()
            give_back(own.vm, own.memory)

    def _call_soon(self, own: Own, _: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and `close` waits
            self._loop.call_soon_threadsafe(self._give_up, [own], ANOTHER)

    def close(self) -> None:
        """Everything is switched; wait for what is still being made."""
        self._makers.shutdown(cancel_futures=True)
        self._give_up(list(self._owns.values()), "the engine ends")


def _unsuited(vm: Vm, uplink: XdpUplink, number: int) -> str:
    """What is wrong with a queue of a device for a VM; empty if nothing is. OSError: the device is gone."""
    now, _ = ethtool.receive_queues(uplink.config.device)
    ours = len(uplink.sockets)
    if vm.config.vlan is not None:
        return "its frames carry a VLAN tag, which only the program of a pair takes out"
    if uplink.mode != "native":
        return f"the NIC's program runs in {uplink.mode or 'no'} mode, and this needs native mode"
    if number >= now:
        return f"{uplink.config.device} has {now} receive queues, 0 to {now - 1}: ethtool -L"
    if number < ours:
        return f"queues 0 to {ours - 1} of {uplink.config.device} are the engine's, one a processor"
    return ""


def _asked(vm: Vm) -> tuple[object, ...]:
    """What a refusal is good for."""
    return uplink_of(vm), vm.config.nic_queue, vm.config.vlan, vm.connects


def _shape(vm: Vm) -> tuple[object, ...]:
    """What a socket is made for: with anything else it is another one."""
    return (
        uplink_of(vm),
        identity(vm.session.regions),
        vm.number,
        vm.mtu,
        *(getattr(vm.config, key) for key in KEYS[1:]),
    )
