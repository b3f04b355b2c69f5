# SPDX-License-Identifier: Apache-2.0
"""What is scarce, and who gets it when a batch of receive queues is completed.

Scarce are receive queues of their own (of the NIC, of XDP), room on processors, and locked memory. A batch is
balanced as a whole, because first come, first served would give everything to whoever comes first:

  1. By weight, then in the order of the batch, each receive queue is admitted if its least need can be met beside
     those before it: a queue, room on its processor (on any, if it names none), half of its suggested buffers.
  2. Buffers that are left are handed out in the same order, up to what was suggested.
  3. Who named a processor gets it; the others then go where most room is left.

Naming a processor never costs a place that somebody else was admitted to: those who name none go anywhere. What is
held already is not taken away here. The functions know numbers only, so a plan and a running engine agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """What there is in all."""

    queues: int
    processors: Mapping[int, int]  # processor → most receive queues on it
    locked_memory: int  # bytes
    buffer_bytes: int = 2048


@dataclass(frozen=True, slots=True)
class Need:
    """What one receive queue asks for."""

    processor: int | None
    buffers: int
    weight: int

    @property
    def least(self) -> int:
        """The fewest buffers that will do: a suggestion is met by its half."""
        return (self.buffers + 1) // 2


@dataclass(frozen=True, slots=True)
class Grant:
    """What one receive queue has got."""

    processor: int
    buffers: int


class _Left:
    """What is left of a budget, while it is handed out."""

    def __init__(self, budget: Budget, held: Iterable[Grant]) -> None:
        grants = list(held)
        self.budget = budget
        self.queues = budget.queues - len(grants)
        self.rooms = dict(budget.processors)
        for grant in grants:
            self.rooms[grant.processor] -= 1
        self.anywhere = sum(self.rooms.values())  # places, of which some are spoken for by name
        self.named = dict.fromkeys(self.rooms, 0)
        self.buffers = budget.locked_memory // budget.buffer_bytes - sum(grant.buffers for grant in grants)

    def lacks(self, need: Need) -> str:
        """Why the least need cannot be met; empty if it can."""
        if need.weight == 0:
            return "weight 0 asks for no receive queue of its own"
        if self.queues < 1:
            return f"all {self.budget.queues} receive queues are taken"
        if need.processor is not None and self.rooms.get(need.processor, 0) <= self.named[need.processor]:
            most = self.budget.processors[need.processor]
            return f"processor {need.processor} has its {most} receive queues"
        if self.anywhere < 1:
            return "every processor has as many receive queues as it may"
        if self.buffers < need.least:
            return f"locked memory for {max(self.buffers, 0)} buffers is left, {need.least} are needed"
        return ""

    def admit(self, need: Need) -> str:
        lack = self.lacks(need)
        if not lack:
            self.queues -= 1
            self.anywhere -= 1
            self.buffers -= need.least
            if need.processor is not None:
                self.named[need.processor] += 1
        return lack

    def top_up(self, need: Need) -> int:
        """The buffers of one that was admitted: its least, and of the rest what is left."""
        more = min(need.buffers - need.least, self.buffers)
        self.buffers -= more
        return need.least + more

    def place(self, need: Need) -> int:
        """The processor of one that was admitted; those who name one come first."""
        processor = need.processor
        if processor is None:
            processor = max(self.rooms, key=lambda number: (self.rooms[number], -number))
        self.rooms[processor] -= 1
        return processor


def balance(budget: Budget, held: Iterable[Grant], needs: Sequence[Need]) -> list[Grant | str]:
    """For each need, in its place: the grant, or the words for what is lacking. Processors named must exist."""
    left = _Left(budget, held)
    order = sorted(range(len(needs)), key=lambda index: -needs[index].weight)
    verdicts = [left.admit(needs[index]) for index in order]
    lacks = dict(zip(order, verdicts, strict=True))
    admitted = [index for index in order if not lacks[index]]
    buffers = {index: left.top_up(needs[index]) for index in admitted}
    by_name = sorted(admitted, key=lambda index: needs[index].processor is None)
    places = {index: left.place(needs[index]) for index in by_name}
    return [lacks[index] or Grant(places[index], buffers[index]) for index in range(len(needs))]


def regrant(budget: Budget, others: Iterable[Grant], grant: Grant, need: Need) -> Grant | str:
    """The grant of a receive queue whose need has changed while it runs; the words if its processor is full.

    Buffers are a hint: if there is not even memory for half, it keeps what it has.
    """
    left = _Left(budget, others)
    processor = grant.processor if need.processor is None else need.processor
    if left.rooms[processor] < 1:
        return f"processor {processor} has its {budget.processors[processor]} receive queues"
    fits = min(need.buffers, left.buffers)
    return Grant(processor, fits if fits >= need.least else grant.buffers)
