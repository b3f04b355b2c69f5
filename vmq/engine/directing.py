# SPDX-License-Identifier: Apache-2.0
"""VMs whose frames the kernel places: which can be, and by which tier; a VM is direct where nothing is in the way.

        the VM ─► tier         nic_queues.py   the NIC leads its frames to a receive queue of its own
                               pairs.py        a program on a NIC leads them into a pair of its own
                               own_queues.py   a program in a TAP leads them into a queue of its own

The next look makes a VM direct again that was not for a moment; after frames or buffers that were none for the kernel, not before
REST_SECONDS, twice as long each time, unless it had been well for REST_MOST. After frames that only a switched queue can take,
not before LITTLE_SECONDS, twice as long each time up to LITTLE_MOST, unless it had been direct for WELL times as long as it rested:
with a broadcast now and then a VM is switched for a fifth of the time at most, and with many it is switched.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmq.config.records import Config
from vmq.dataplane import state
from vmq.direct.figures import BUILT_IN, Known
from vmq.direct.lengths import Lengths
from vmq.engine.nic_queues import NicQueues
from vmq.engine.own_queues import OwnQueues
from vmq.engine.pairs import Pairs
from vmq.engine.pinned import Torn
from vmq.engine.tier import SWITCHED, Tier

if TYPE_CHECKING:
    from vmq.engine.engine import Engine
    from vmq.engine.vm import Vm

REST_SECONDS, REST_MOST = 1.0, 300.0  # after which it is forgotten, too
LITTLE_SECONDS, LITTLE_MOST, WELL = 0.2, 5.0, 4


@dataclass(frozen=True)
class Rest:
    """A while for which a VM is left switched."""

    until: float = 0.0
    pause: float = 0.0  # how long it is
    why: str = ""


class Directing:
    """All direct receive queues of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.whys: dict[str, str] = {}  # why a VM is switched that is to be direct
        self._rests: dict[str, Rest] = {}
        self._lengths: dict[str, tuple[int, Lengths]] = {}  # of which front-end, where that decides
        self._little: dict[str, Rest] = {}  # as `_rests`, after frames of other paths
        self.torn = Torn()
        self.nic_queues, self.pairs, self.own_queues = NicQueues(self), Pairs(self), OwnQueues(self)
        self.tiers: tuple[Tier, ...] = (self.nic_queues, self.pairs, self.own_queues)
        self.known = Known()  # what frames cost here

    # --- what is asked of it ---------------------------------------------------------------------------------

    def tier_of(self, vm: Vm) -> Tier | None:
        """The tier that serves a VM; None without."""
        return next((tier for tier in self.tiers if tier.serves(vm)), None)

    def stage(self, vm: Vm) -> str:
        """How far a VM is, in a word of its tier."""
        tier = self.tier_of(vm)
        return tier.stage(vm) if tier else SWITCHED

    def words(self, vm: Vm) -> str:
        """How frames of a VM come that is direct."""
        tier = self.tier_of(vm)
        words = tier.words(vm) if tier else ""
        _, lengths = self._lengths.get(vm.name, (0, None))
        return f"{words}; {lengths.why()}" if words and lengths else words

    def polled(self, worker: int) -> int:
        """For how many direct VMs a processor does the kernel's work, while their frames are many."""
        own = [(self.tier_of(vm), vm) for vm in self.engine.vms.values() if vm.worker == worker]
        return sum(tier is not None and tier.polled(vm) for tier, vm in own)

    def look(self) -> None:
        """Go on with those under way; begin with those that may be direct, leave those that may not."""
        self.known.look(time.monotonic(), self.engine.config.engine.placement_figures)
        for known in (self._rests, self._little, self._lengths, self.whys):
            for name in known.keys() - self.engine.vms.keys():
                del known[name]
        self.torn.tidy(self.engine.vms.keys())
        for tier in self.tiers:
            tier.tidy()
        for vm in self.engine.vms.values():
            self._measure(vm)
        whys = {vm: why for vm in self.engine.vms.values() if (why := self.obstacle(vm))}
        for tier in self.tiers:
            own = [vm for vm in self.engine.vms.values() if self.tier_of(vm) is tier]
            tier.leave({vm: whys[vm] for vm in own if vm in whys})
            for vm in own:
                if vm not in whys:
                    tier.go_on(vm)
        self.whys |= {vm.name: why for vm, why in whys.items() if vm.config.placement != "switched"}

    def _measure(self, vm: Vm) -> None:
        """The length of its frames, where that decides; each front-end has its own."""
        if vm.config.placement != "auto":
            self._lengths.pop(vm.name, None)
            return
        connects, lengths = self._lengths.get(vm.name, (vm.connects, Lengths()))
        if connects != vm.connects:
            lengths = Lengths()
        self._lengths[vm.name] = vm.connects, lengths
        tier = self.tier_of(vm)
        lengths.look(
            time.monotonic(), *vm.received(), self.known.band if tier and tier.measured else BUILT_IN
        )

    def obstacle(self, vm: Vm) -> str:
        """Why this VM cannot be direct; empty if it can."""
        if vm.config.placement == "switched":
            return "it is not asked for"
        tier = self.tier_of(vm)
        if tier is None:
            return "its uplink is not of kind xdp or tap"
        if vm.queues[0].shared:
            return "it has no receive queue of its own"
        if vm.queues[0].former != state.NONE:
            return "its receive queue is on its way to another processor"
        if len(vm.home.effects.entry.tests):
            return "receive filters of its uplink look at more than addresses"
        if vm.observed.any:
            return "it is captured or measured"
        if vm.fault:
            return "its first receive queue does not run"
        if why := tier.obstacle(vm):
            return why
        for rest in (self._rests.get(vm.name), self._little.get(vm.name)):
            left = rest.until - time.monotonic() if rest is not None else 0.0
            if rest is not None and left > 0:
                return f"{rest.why}: again in {left:.{int(left < 1)}f} s"
        if (
            vm.config.placement == "auto" and tier is not self.nic_queues
        ):  # which costs the kernel nothing more
            _, lengths = self._lengths.get(vm.name, (0, Lengths()))
            return "" if lengths.pays else lengths.why()
        return ""

    # --- what happens ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Another version of the tables is about to be built."""
        for tier in self.tiers:
            tier.prepare()

    def follow(self) -> None:
        """All processors have adopted it; receive filters may be others now."""
        for tier in self.tiers:
            tier.follow()

    def make_way(self, new: Config) -> None:
        """Another configuration is about to be brought about."""
        for tier in self.tiers:
            tier.make_way(new)

    def leave(self, vm: Vm, why: str) -> None:
        """Make a VM switched, at once."""
        for tier in self.tiers:  # also one that serves it no more, and has not tidied up
            tier.leave({vm: why})

    def set_out(self, workers: Mapping[Vm, int]) -> None:
        """Their first receive queues are about to go to these processors, or to the default queue or from there."""
        for tier in self.tiers:
            tier.set_out(workers)

    # --- what tiers tell ---------------------------------------------------------------------------------------

    def tell(self, vm: Vm, placement: str, why: str = "", waited: float = 0.0) -> None:
        """A VM has become direct, or switched, and its frames have waited so many seconds for it."""
        self.engine.journal.tell(
            "placement", vm=vm.name, placement=placement, why=why, waited_ms=round(1000 * waited, 3)
        )

    def rest(self, vm: Vm, why: str) -> None:
        """Leave a VM switched for a while."""
        now, last = time.monotonic(), self._rests.get(vm.name, Rest())
        pause = (
            min(2 * last.pause, REST_MOST) if last.pause and now - last.until < REST_MOST else REST_SECONDS
        )
        self._rests[vm.name] = Rest(now + pause, pause, why)
        self.whys[vm.name] = why

    def rest_a_little(self, vm: Vm, why: str) -> None:
        """Leave a VM switched for a shorter while: frames have come that only a switched queue can take."""
        now, last = time.monotonic(), self._little.get(vm.name, Rest())
        well = now - last.until >= WELL * last.pause
        pause = LITTLE_SECONDS if well else min(2 * last.pause, LITTLE_MOST)
        self._little[vm.name] = Rest(now + pause, pause, why)
        self.whys[vm.name] = why

    def waits(self) -> None:
        """A processor says that a frame waits for a VM to be switched."""
        self.nic_queues.waits()

    def close(self) -> None:
        """Everything is switched, and given back."""
        for tier in self.tiers:
            tier.close()
