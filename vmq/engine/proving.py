# SPDX-License-Identifier: Apache-2.0
"""Is a VM's own receive queue worth it? Its own traffic takes both ways in turns, and the processors' time is measured.

    own   plain   plain   own   own   plain …      each for at least FRAMES frames of the VM, or SLICE_SECONDS
    own: as it is.   plain: through the default queue, as without VMQ.   No frame is lost or overtaken between them.

`vmq doctor --prove` asks for one measurement, and so does the guard (guarding.py). One at a time; control goes on
meanwhile, and dynamic placement leaves the VM alone.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from vmq.dynamic import Path, Sample, Verdict, judge
from vmq.engine.mover import Move
from vmq.errors import ApiError

if TYPE_CHECKING:
    from vmq.engine.engine import Engine
    from vmq.engine.vm import Vm

PAIRS = 16
FRAMES = 2000
SLICE_SECONDS = 0.25
SWITCH_SECONDS = 2.0  # a guest that takes nothing keeps its queue on its way
PAUSE_SECONDS = 0.005  # after a switch: what was under way is through; and between two looks at a counter
ORDER = (Path.OWN, Path.PLAIN, Path.PLAIN, Path.OWN)


@dataclass
class Proof:
    """A measurement, under way or done."""

    vm: str
    wanted: int  # samples
    samples: list[Sample] = field(default_factory=list)
    verdict: Verdict | None = None
    wrong: str = ""

    def record(self) -> dict[str, Any]:
        """For people and JSON."""
        return {
            "vm": self.vm,
            "running": self.verdict is None and not self.wrong,
            "done": len(self.samples),
            "wanted": self.wanted,
            "verdict": self.verdict.record() if self.verdict else None,
            "wrong": self.wrong,
        }


class Proving:
    """Measurements of one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.proof: Proof | None = None  # the last one
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> str | None:
        """The VM that is being measured."""
        return self.proof.vm if self._task is not None and not self._task.done() and self.proof else None

    def start(self, name: str, pairs: int = PAIRS) -> Proof:
        """Begin to measure a VM; ApiError if that cannot be."""
        vm = self.engine.vms.get(name)
        if vm is None:
            raise ApiError("NOT_FOUND", f"no VM {name!r:.80}", "vmq show vms")
        if self.busy:
            raise ApiError("FAILURE", f"{self.busy} is being measured", "one at a time: ask again later")
        if not vm.home.owns(vm):
            remedy = f"give [vm.{name}] a weight, or its uplink more queues"
            raise ApiError("FAILURE", f"{name} has no receive queue of its own: {vm.lack}", remedy)
        if not vm.running:
            raise ApiError("FAILURE", f"{name} has no guest that receives: {vm.obstacle}", "start the guest")
        proof = self.proof = Proof(name, 2 * pairs)
        self._task = asyncio.get_running_loop().create_task(self._measure(vm, proof))
        return proof

    def cancel(self) -> None:
        """The engine ends."""
        if self._task is not None:
            self._task.cancel()

    async def _measure(self, vm: Vm, proof: Proof) -> None:
        publisher = self.engine.publisher
        publisher.timed = True
        try:
            for path in islice(cycle(ORDER), proof.wanted):
                await self._take(vm, path)
                proof.samples.append(await self._sample(vm, path))
            proof.verdict = vm.verdict = judge(proof.samples, pairs_min=min(proof.wanted // 2, PAIRS - 1))
        except _Gone:
            proof.wrong = f"{vm.name} went away in the middle"
        except _Stuck:
            proof.wrong = f"frames of {vm.name} wait for its guest, which posts no buffers"
        finally:
            publisher.timed = False
            if self.there(vm):
                self.switch(vm, self.engine.guarding.path(vm))
            elif not self.engine.closing:
                self.engine.publish()

    def there(self, vm: Vm) -> bool:
        """Whether it is still served, and has a receive queue of its own."""
        return self.engine.vms.get(vm.name) is vm and vm.home.owns(vm)

    def switch(self, vm: Vm, path: Path) -> None:
        """Let the frames of a VM take this way."""
        plain = path is Path.PLAIN
        worker = self.engine.default if plain else self.engine.worker_of(vm.cpu)
        self.engine.mover.move_all([Move(vm, 0, worker, plain)])
        self.engine.publish()

    async def _take(self, vm: Vm, path: Path) -> None:
        """The way is in force when this returns."""
        self.switch(vm, path)
        deadline = time.monotonic() + SWITCH_SECONDS
        while time.monotonic() < deadline:
            await asyncio.sleep(PAUSE_SECONDS)
            if not self.there(vm):
                raise _Gone
            if vm.queues[0].former < 0:
                return
        raise _Stuck

    async def _sample(self, vm: Vm, path: Path) -> Sample:
        frames, work, deadline = sum(vm.traffic()), self._work(), time.monotonic() + SLICE_SECONDS
        while sum(vm.traffic()) - frames < FRAMES and time.monotonic() < deadline:
            await asyncio.sleep(PAUSE_SECONDS)
            if not self.there(vm):
                raise _Gone
        return Sample(path, sum(vm.traffic()) - frames, float(self._work() - work))

    def _work(self) -> int:
        """Time of all processors in rounds that moved something, ns."""
        return sum(int(worker.row["work_ns"]) for worker in self.engine.workers)


class _Gone(Exception):
    """The VM, or its receive queue."""


class _Stuck(Exception):
    """It does not come to the other way."""
