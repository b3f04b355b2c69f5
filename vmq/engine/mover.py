# SPDX-License-Identifier: Apache-2.0
"""Receive queues that go from one processor to another while frames flow: none is lost, none is overtaken.

    1. publish   worker = new, former = old      every source hands over to the new one, which leaves it in the ring;
                                                 the old one delivers what it was handed, and takes nothing from the guest
    2. wait      until the rings to the old one hold nothing for the queue, and those from it nothing of the guest's
    3. publish   former = NONE                   the new one delivers, and takes from the guest

Any number go together: two versions, and one wait for all of them; one that is slower than the others goes on by itself. Step 2 is a matter of microseconds, as frames of
sources that do not wait are delivered or dropped at once. Frames of a lossless source stay in the old one's ring for as
long as the guest posts no buffers: then control does not wait, and looks again with every tick. Such a queue is `late`
when it has got nothing in LATE_ROUNDS rounds of its processor and LATE_SECONDS: frames of sources that do not wait are
dropped then, as the guest has no buffer for them, before they fill a ring that is others', too. A processor that is merely
slow drops nothing. A queue that nobody has started has no such way to go.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from vmq.dataplane import state
from vmq.jit import at

if TYPE_CHECKING:
    from vmq.engine.engine import Engine
    from vmq.engine.vm import Vm

GRACE_SECONDS, PATIENCE_SECONDS = (
    0.0003,
    0.005,
)  # then those go on that have arrived; then nobody is waited for any more
PAUSE_SECONDS = 0.00002
SOON_SECONDS = 0.001
LATE_SECONDS, LATE_ROUNDS = 0.25, 16  # a guest that takes nothing for so long is not merely slow
AT_ONCE, EVERY = 512, 1 << 20  # parcels that are looked at while control waits, and with the tick


@dataclass
class Mark:
    """What has to pass: everything before `head` of a byte ring, for a receive queue or of a VM port."""

    ring: int
    head: int
    column: str  # "queue" or "source"
    number: int
    hold: bool  # frames of sources that wait

    def passed(self, *, most: int = EVERY) -> bool:
        """Nothing more to come. While the reader goes on, what it has passed may be overwritten: look again later.

        Not more than `most` parcels are looked at; a ring that is full of short frames takes 57 ms.
        """
        ring = at(self.ring, 1, state.byte_ring)[0]
        tail = int(ring["tail"])
        if tail >= self.head:
            return True
        found = list(islice(self._waiting(ring, tail), most))
        return len(found) < most and self.number not in found and tail == int(ring["tail"])

    def _waiting(self, ring: np.void, tail: int) -> Iterator[int]:
        """Numbers of what lies in the ring before the mark."""
        size = int(ring["size"])
        while tail < self.head:
            place = int(ring["data"]) + tail % size
            length = int(at(place, 1, np.int64)[0])
            if length == 0:
                return
            if length > 0:
                header = at(place, 1, state.parcel)[0]
                if header["queue"] != state.NONE:
                    yield int(header[self.column])
            tail += abs(length)


@dataclass(eq=False)
class Journey:
    """A receive queue on its way, and where it has been told to go next."""

    vm: Vm
    pair: int
    marks: list[Mark] = field(default_factory=list)
    then: Move | None = None
    since: float = field(default_factory=time.monotonic)  # that its guest got its last frame
    _seen: tuple[int, int] = (-1, 0)  # frames it had got then, rounds of the processor

    @property
    def _former(self) -> np.void:
        """Row of the processor that has what was handed over before."""
        row: np.void = self.vm.engine.workers[self.vm.queues[self.pair].former].row
        return row

    def arrived(self, *, most: int = EVERY) -> bool:
        """Nothing of it lies before a mark, nor waits for buffers: that may have gone behind one (overload.py)."""
        self.marks = [mark for mark in self.marks if not mark.passed(most=most)]
        if self.marks:
            return False
        return not self._kept()

    def _kept(self) -> int:
        """Frames that wait for its buffers at that processor."""
        lists = at(int(self._former["todo"]), state.MAX_QUEUES, state.todo)
        return int(lists[self.vm.first_queue + self.pair]["kept"])

    def late(self, now: float) -> bool:
        """Whether frames wait for buffers that its guest does not post; it is asked now and then."""
        frames, rounds = int(self.vm.queue_rows()[self.pair]["frames_to_guest"]), int(self._former["rounds"])
        if frames != self._seen[0]:
            self._seen, self.since = (frames, rounds), now
        elif now - self.since > LATE_SECONDS and rounds - self._seen[1] >= LATE_ROUNDS:
            return self._kept() > 0 or any(mark.hold and mark.column == "queue" for mark in self.marks)
        return False


@dataclass(frozen=True, slots=True)
class Move:
    """Let `worker` serve a receive queue, by itself or (`shared`) by its default queue."""

    vm: Vm
    pair: int
    worker: int
    shared: bool = False


class Mover:
    """All journeys of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._under_way: dict[tuple[int, int], Journey] = {}
        self._timer: asyncio.TimerHandle | None = None  # one for all who are on their way

    def move_all(self, moves: Sequence[Move]) -> None:
        """Let workers serve receive queues from the next version on; those that have a way to go set out together."""
        self.engine.directing.set_out(
            {
                move.vm: move.worker
                for move in moves
                if move.pair == 0 and (move.worker, move.shared) != (move.vm.worker, move.vm.queues[0].shared)
            }
        )
        going = [journey for move in moves if (journey := self._set_out(move)) is not None]
        if not going:
            return
        for journey in going:
            journey.vm.rings.watch()
        self.engine.publish()
        for journey in going:
            journey.marks = list(self._marks(journey.vm, journey.pair))
        for patience in (GRACE_SECONDS, PATIENCE_SECONDS):
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and not all(one.arrived(most=AT_ONCE) for one in going):
                time.sleep(PAUSE_SECONDS)
            self._end(going, most=AT_ONCE)
            under_way = self._under_way.values()
            going = [one for one in going if one in under_way]
        self._soon()

    def _set_out(self, move: Move) -> Journey | None:
        """Change its entry; the journey, if it has one before it."""
        vm, pair = move.vm, move.pair
        entry = vm.queues[pair]
        going = self._under_way.get((vm.number, pair))
        if going is not None:
            going.then = move
        elif move.worker == entry.worker or not vm.started(pair):
            vm.queues[pair] = replace(entry, worker=move.worker, shared=move.shared)
        else:
            vm.queues[pair] = replace(entry, worker=move.worker, former=entry.worker, shared=move.shared)
            going = self._under_way[vm.number, pair] = Journey(vm, pair)
            return going
        return None

    def _soon(self) -> None:
        """Look again before the next tick, while somebody is on his way who is merely slow."""
        now = time.monotonic()
        young = any(now - journey.since < LATE_SECONDS for journey in self._under_way.values())
        if young and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SOON_SECONDS, self._look_soon)

    def _look_soon(self) -> None:
        self._timer = None
        self._end(list(self._under_way.values()), most=AT_ONCE)
        self._soon()

    def _marks(self, vm: Vm, pair: int) -> Iterator[Mark]:
        former = vm.queues[pair].former
        rings, most = self.engine.segment.rows["rings"], state.MAX_WORKERS
        for hold in range(2):
            for other in range(len(self.engine.workers)):
                for sender, owner in ((other, former), (former, other)):
                    address = int(rings[(hold * most + sender) * most + owner])
                    head = int(at(address, 1, state.byte_ring)[0]["head"])
                    if owner == former:
                        yield Mark(address, head, "queue", vm.first_queue + pair, bool(hold))
                    # A guest's frames are in the rings for sources that wait only where `kept` says so.
                    if sender == former and not hold:
                        yield Mark(address, head, "source", vm.number, hold=False)

    def _end(self, journeys: Collection[Journey], *, most: int = EVERY) -> None:
        """Let those go on that have arrived, in one version."""
        ended = [one for one in journeys if one.arrived(most=most)]
        for one in ended:
            del self._under_way[one.vm.number, one.pair]
            one.vm.queues[one.pair] = replace(one.vm.queues[one.pair], former=state.NONE, late=False)
        if ended:
            self.engine.publish()
        for one in ended:
            one.vm.rings.watch()
        if further := [one.then for one in ended if one.then is not None]:
            self.move_all(further)
            self.engine.publish()

    def look(self) -> None:
        """Let those go on that have arrived, and mark those that are late."""
        self._end(list(self._under_way.values()))
        now = time.monotonic()
        late = [one for one in self._under_way.values() if one.late(now) and not one.vm.queues[one.pair].late]
        for one in late:
            one.vm.queues[one.pair] = replace(one.vm.queues[one.pair], late=True)
        if late:
            self.engine.publish()

    def forget(self, vm: Vm) -> None:
        """The VM port is gone."""
        for key in [key for key in self._under_way if key[0] == vm.number]:
            del self._under_way[key]
