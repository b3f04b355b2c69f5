# SPDX-License-Identifier: Apache-2.0
"""The guard: a receive queue of its own must never make a VM slower, and if it does, nobody has to find out by himself.

Now and then it has VMs with traffic measured (proving.py). Where the own queue turns out slower than the default queue, the
VM falls back to that: in the log, in the journal, in every view, with the numbers; and it is measured again after a pause
that doubles with every fall (vmq/dynamic/guard.py decides).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vmq.dynamic import Guard, Path
from vmq.engine.proving import Proof

if TYPE_CHECKING:
    from vmq.engine.engine import Engine
    from vmq.engine.vm import Vm

EVERY_SECONDS = 600.0  # between two measurements of a VM; guests boot before the first one
RATE_MIN = 10_000  # frames a second: for fewer it makes no difference, and takes long to see


class Guarding:
    """The guards of one engine's VMs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._asked: Proof | None = None  # what is being measured for a guard

    def path(self, vm: Vm) -> Path:
        """The way that is in force for a VM."""
        return vm.guard.path if vm.guard is not None else Path.OWN

    def fallen(self, vm: Vm) -> str:
        """Why a VM does not use its own receive queue; empty if it does."""
        return f"the guard: {vm.guard.why}" if vm.guard is not None and vm.guard.path is Path.PLAIN else ""

    def look(self, now: float, rates: Mapping[str, float]) -> None:
        """Once a second: hear what was measured, and have measured who is due. `rates`: frames a second of each VM."""
        if not self.engine.config.engine.guard:
            self._release()
            return
        if self._asked is not None and self._asked.verdict is not None:
            self._hear(self._asked, now)
        if self.engine.proving.busy:
            return
        busy = [vm for name, vm in self.engine.vms.items() if rates[name] >= RATE_MIN]
        for vm, guard in self._due(busy, now):
            guard.due = now + EVERY_SECONDS  # should nothing come of it
            self._asked = self.engine.proving.start(vm.name)
            return

    def _release(self) -> None:
        """The guard is switched off: what it has done is undone, and what it has asked for is not heard."""
        self._asked = None
        for vm in self.engine.vms.values():
            fallen, vm.guard = self.fallen(vm), None
            if fallen and self.engine.proving.there(vm):
                self.engine.proving.switch(vm, Path.OWN)

    def _due(self, busy: list[Vm], now: float) -> Iterator[tuple[Vm, Guard]]:
        for vm in busy:
            if vm.guard is None:
                vm.guard = Guard(now)
                vm.guard.due = now + EVERY_SECONDS
            if now >= vm.guard.due and self.engine.proving.there(vm) and vm.running:
                yield vm, vm.guard

    def _hear(self, proof: Proof, now: float) -> None:
        """Do what the verdict says, loudly."""
        self._asked = None
        vm = self.engine.vms.get(proof.vm)
        if vm is None or vm.guard is None or proof.verdict is None:
            return
        turn = vm.guard.hear(proof.verdict, now)
        if turn is not None and self.engine.proving.there(vm):
            self.engine.proving.switch(vm, turn.path)
            way = "its own receive queue" if turn.path is Path.OWN else "the default queue"
            self.engine.log(f"vm {vm.name}: served by {way} from now on: {turn.why}")
            self.engine.journal.tell("guard", vm=vm.name, path=turn.path.value, why=turn.why)
