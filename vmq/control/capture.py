# SPDX-License-Identifier: Apache-2.0
"""A capture for one client: a pcapng file in pieces, for as long as the client reads.

        rings ─► blocks ─► {"capture": {"blocks": base64, "captured": …, "lost": …}} ─► client

The engine opens no file for anybody: the client does, and writes the blocks one behind the other. Nothing waits here
but one piece. Where the client reads slowly its rings fill up, and the capture loses frames, which it counts. A client
that has enough closes its side; it gets what is left and the statistics, and then the end. One that is gone is gone.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib

from vmq.control.requests import Capture as Asked
from vmq.control.session import Session
from vmq.dataplane import state
from vmq.engine.engine import Engine
from vmq.engine.journal import Record
from vmq.engine.observed import ROOM, Capture
from vmq.engine.vm import Vm
from vmq.errors import ApiError

PAUSE_SECONDS = 0.02  # between two looks into the rings, unless there was much in them
CAPTURES_MAX = 8  # connections that may be silent for ever, beside owners and streams (session.py)
RINGS_MAX = 64  # of all captures: 256 MiB
DIRECTIONS = {
    "to_guest": state.TO_GUEST,
    "from_guest": state.FROM_GUEST,
    "both": state.TO_GUEST | state.FROM_GUEST,
}


def vm_of(engine: Engine, method: str, name: str) -> Vm:
    """The VM of a name; ApiError if there is none."""
    vm = engine.vms.get(name)
    if vm is None:
        known = ", ".join(engine.vms) or "there is none"
        raise ApiError("INVALID_PARAMETER", f"{method}: no VM {name[:80]!r}", f"name a VM: {known}")
    return vm


def capture(engine: Engine, session: Session, asked: Asked) -> dict[str, list[str]]:
    """Make the connection a capture."""
    vm = vm_of(engine, "capture", asked.vm)
    pairs = range(vm.config.queue_pairs)
    if asked.queue is not None and asked.queue not in pairs:
        wrong = f"capture: {vm.name} has no receive queue {asked.queue}"
        raise ApiError("INVALID_PARAMETER", wrong, f"its receive queues are 0 to {pairs[-1]}")
    wanted = tuple(pairs) if asked.queue is None else (asked.queue,)
    others = [one for other in engine.vms.values() for one in other.observed.captures]
    taken = sum(len(one.pairs) for one in others)
    if len(others) >= CAPTURES_MAX:
        raise ApiError("RESOURCES", f"capture: {CAPTURES_MAX} captures run", "end one of them")
    if taken + len(wanted) > RINGS_MAX:
        wrong = f"capture: {taken} of {RINGS_MAX} rings are in use, and {len(wanted)} more were needed"
        raise ApiError("RESOURCES", wrong, "end another capture, or name one receive queue")
    running = Capture(vm, wanted, DIRECTIONS[asked.direction], asked.snaplen)
    session.leaving.callback(running.close)
    session.stream = Pieces(running)
    return {"interfaces": [f"{vm.name}:{pair}" for pair in wanted]}


class Pieces:
    """The file of a capture, piece by piece."""

    word = "capture"

    def __init__(self, running: Capture) -> None:
        self._capture = running
        self._ended = asyncio.Event()
        self._parts = iter((running.header,))
        self._whole = self._hurry = False

    async def take(self) -> list[Record]:
        """The next piece; waits until there is one. Nothing: the file is whole."""
        for part in self._parts:
            return [self._piece(part)]
        while not self._whole:
            await self._rest()
            enough = self._ended.is_set() or not self._capture.there
            if enough:
                self._capture.stop()
            if blocks := self._capture.blocks():
                self._hurry = len(blocks) > ROOM // 2
                return [self._piece(blocks)]
            if enough:
                self._whole = True
                return [self._piece(self._capture.statistics())]
        return []

    async def _rest(self) -> None:
        """Let others have their turn, and a piece become worth its line."""
        if self._hurry:
            self._hurry = False
            await asyncio.sleep(0)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), PAUSE_SECONDS)

    def _piece(self, blocks: bytes) -> Record:
        return {
            "blocks": base64.b64encode(blocks).decode(),
            "captured": self._capture.kept,
            "lost": self._capture.lost,
        }

    def end(self) -> None:
        """What is left, and then nothing more."""
        self._ended.set()
