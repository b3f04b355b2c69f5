# SPDX-License-Identifier: Apache-2.0
"""Once a second: which VM has earned another processor, and which a receive queue that another has.

The decisions are those of vmq/dynamic, pure and with hysteresis. Here are their readings, from counters that the
workers keep anyway, and what is done: a receive queue moves, or is given up by one VM and completed for another. Both
are operations of the contract, in the name of the configuration; no frame is lost or overtaken.

There is no clock per receive queue. The time of a processor is shared out by frames: those that it placed in guests and
took from them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmq.contract import CONFIG
from vmq.dynamic import Balancer, Claim, Scarce, Served
from vmq.errors import ApiError
from vmq.placement import Place

if TYPE_CHECKING:
    from vmq.engine.engine import Engine
    from vmq.engine.vm import Vm

LOOK_SECONDS = 1.0


class Readings:
    """What has been counted since the last look."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._then = time.monotonic()
        self._busy: dict[int, int] = {}
        self._frames: dict[str, tuple[int, int]] = {}
        self.elapsed = LOOK_SECONDS
        self.loads: dict[int, float] = {}  # of processors: 0 to 1
        self.frames: dict[str, tuple[int, int]] = {}  # of VMs: offered to the guest, taken from it

    def read(self, now: float) -> None:
        """Until now."""
        self.elapsed, self._then = max(now - self._then, 1e-3), now
        busy = {worker.cpu: worker.busy_ns for worker in self.engine.workers}
        self.loads = {
            cpu: min(max(ns - self._busy.get(cpu, ns), 0) / self.elapsed / 1e9, 1.0)
            for cpu, ns in busy.items()
        }
        frames = {name: vm.traffic() for name, vm in self.engine.vms.items()}
        before = frames | {name: counts for name, counts in self._frames.items() if name in frames}
        self.frames = {
            name: (to - before[name][0], of - before[name][1]) for name, (to, of) in frames.items()
        }
        self._busy, self._frames = busy, frames


class Dynamics:
    """Dynamic placement and scarce receive queues of one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.readings = engine, Readings(engine)
        self._balancer = Balancer(None)
        self._scarce: dict[str, Scarce] = {}
        self._due = 0.0

    def look(self) -> None:
        """Look, if it is time to."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + LOOK_SECONDS
        self.readings.read(now)
        rates = {name: sum(counts) / self.readings.elapsed for name, counts in self.readings.frames.items()}
        self.engine.guarding.look(now, rates)
        if self.engine.config.engine.placement == "dynamic":
            self._balance(now)
        for name in self.engine.uplinks:
            self._share_out(name, now)

    # --- processors --------------------------------------------------------------------------------------------

    def _balance(self, now: float) -> None:
        engine = self.engine
        owners = [
            vm
            for name, vm in engine.vms.items()
            if vm.home.owns(vm) and not engine.guarding.fallen(vm) and engine.proving.busy != name
        ]
        total = dict.fromkeys(self.readings.loads, 0)
        for name, vm in engine.vms.items():
            total[engine.workers[vm.worker].cpu] += sum(self.readings.frames[name])
        served = {}
        for vm in owners:
            cpu = engine.workers[vm.worker].cpu
            part = sum(self.readings.frames[vm.name]) / max(total[cpu], 1)
            allowed = engine.changes.reaches[vm.name].cpus
            served[vm.name] = Served(vm.cpu, part * self.readings.loads[cpu], allowed)
        for move in self._balancer.look(now, self.readings.loads, served):
            self._move(engine.vms[move.name], move.cpu, move.why)

    def _move(self, vm: Vm, cpu: int, why: str) -> None:
        before = vm.cpu
        try:
            vm.home.contract.set_parameters(CONFIG, vm.queue_id, {"processor": cpu})
        except ApiError as error:
            vm.fail(str(error), error.remedy)
            return
        vm.cpu, self.engine.places[vm.name] = cpu, Place(cpu, why)
        vm.home.effects.spread(vm)
        self.engine.publish()
        self.engine.journal.tell("moved", vm=vm.name, processor=cpu, before=before, why=why)

    # --- scarce receive queues ---------------------------------------------------------------------------------

    def _share_out(self, uplink: str, now: float) -> None:
        limit = self.engine.uplinks[uplink].config.queues
        if limit is None:
            self._scarce.pop(uplink, None)
            return
        queues = self.engine.queues[uplink]
        if self.engine.proving.busy:
            return  # a place that is taken away now would be a verdict on nothing
        claims = {
            name: Claim(
                vm.config.weight, self.readings.frames[name][0] / self.readings.elapsed, queues.owns(vm)
            )
            for name, vm in self.engine.vms.items()
            if vm.home is queues
        }
        for swap in self._scarce.setdefault(uplink, Scarce(None)).look(now, limit, claims):
            if swap.loser is not None:
                queues.give_up(self.engine.vms[swap.loser], swap.why)
            if swap.winner is not None:
                queues.complete([self.engine.vms[swap.winner]])
            self.engine.journal.tell(
                "queue_swap", uplink=uplink, loser=swap.loser, winner=swap.winner, why=swap.why
            )

    def forget(self, uplink: str) -> None:
        """The uplink is closed."""
        self._scarce.pop(uplink, None)
