# SPDX-License-Identifier: Apache-2.0
"""Which processor serves which receive queue while load comes and goes: dynamic VMQ, decided and not done.

    load of a processor
      high ┄┄┄┄┄┄┄┄┄┄╱▔▔▔╲┄┄┄┄┄┄┄┄┄┄  above it for some looks: receive queues leave
       aim ┄┄┄┄┄┄┄┄╱┄┄┄┄┄┄╲┄┄┄┄┄┄┄┄  until here, for where there is room
                 ╱          ▔▔▔▔▔▔▔   between the marks: nothing, for ever
       low ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄  a processor is emptied only if those that take over stay below

Why steady load ends in rest. Let V be the loads above `low`, the greatest first. A move that spreads takes from a
processor above `high` and leaves the other below it by a margin: V gets smaller. A move that gathers changes only
loads that are below `low` before and after it: V stays, and the receive queue goes to an earlier processor of an
order that is fixed. Neither can go on for ever, and neither undoes the other. One larger than any room stays.

What must move together is one receive queue here: the caller adds it up. What a processor does for none of them (its
lanes, the default queue) stays with it. Load that a full processor refuses is not seen before its cause has moved.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from math import inf

from vmq.config import cpu_text
from vmq.dynamic.smooth import Smoother

# Reasoned, not measured. With exponential service the frames that wait are load / (1 - load): 4 at 80 %, 9 at 90 %.
HIGH = 0.80
AIM = 0.70  # a noise of a tenth does not begin it anew
LOW = 0.50  # who takes others in keeps half of its time for bursts, and is far from `HIGH`
MARGIN = 0.10  # less is not worth a stop of rings
LOOKS_HIGH = 3  # frames are being lost: seconds
LOOKS_LOW = 60  # only power is: a minute
HOLD_SECONDS = 30.0  # of one receive queue between two moves: caches and the guest's interrupts follow it
MOVES = 4  # a look; each is a new version of the tables
HALF_LIFE = 2.0


@dataclass(frozen=True, slots=True)
class Marks:
    """When something moves, and how much at once. Looks are expected once a second; shares are of 1."""

    high: float = HIGH
    aim: float = AIM
    low: float = LOW
    margin: float = MARGIN
    looks_high: int = LOOKS_HIGH
    looks_low: int = LOOKS_LOW
    hold: float = HOLD_SECONDS
    moves: int = MOVES
    half_life: float = HALF_LIFE

    def __post_init__(self) -> None:
        if not (
            0 < self.low <= self.aim < self.high and self.margin > 0 and self.looks_high < self.looks_low
        ):
            raise ValueError(f"needs 0 < low <= aim < high, 0 < margin, looks_high < looks_low: {self}")


@dataclass(frozen=True, slots=True)
class Served:
    """A receive queue: where it is served, what share of that processor's time it takes, and where it may be served."""

    cpu: int
    share: float
    allowed: Collection[int]  # one that is pinned: its own


@dataclass(frozen=True, slots=True)
class Move:
    """A receive queue that is to be served by another processor, and why."""

    name: str
    cpu: int
    why: str


class Balancer:
    """Looks at the loads, and says what is to move. One for each engine."""

    def __init__(self, marks: Marks | None = None) -> None:
        self.marks = marks or Marks()
        self._shares = Smoother[str](self.marks.half_life)
        self._rest = Smoother[int](self.marks.half_life)
        self._seen: dict[str, tuple[int, float]] = {}  # processor, and when the queue came to it
        self._hot: dict[int, int] = {}  # looks above `high`
        self._spare: dict[int, int] = {}  # looks for which others could do its work

    def look(self, now: float, loads: Mapping[int, float], queues: Mapping[str, Served]) -> list[Move]:
        """The moves to make now. `loads`: of all processors of the engine, with what they do for no queue.

        A receive queue that is served elsewhere is left alone.
        """
        known = {name: queue for name, queue in queues.items() if queue.cpu in loads}
        room = self._read(now, loads, known)
        free = {name for name, (_, since) in self._seen.items() if now - since >= self.marks.hold}
        self._count_hot(room)
        moves = self._spread(room, free)
        if moves:
            self._spare = {}  # the look for room to gather begins anew
        else:
            moves = self._gather(room, free)
        for move in moves:
            self._seen[move.name] = (known[move.name].cpu, now)  # done or not: not again before its time
        return moves

    def _read(self, now: float, loads: Mapping[int, float], queues: Mapping[str, Served]) -> _Room:
        """What the loads will be, if everything stays: a queue takes its smoothed share along."""
        own = dict.fromkeys(loads, 0.0)
        for queue in queues.values():
            own[queue.cpu] += queue.share
        rest = self._rest.look(now, {cpu: max(load - own[cpu], 0.0) for cpu, load in loads.items()})
        shares = self._shares.look(now, {name: queue.share for name, queue in queues.items()})
        fresh = dict.fromkeys(queues.keys() - self._seen.keys(), -inf)
        moved = {
            name: now for name, (cpu, _) in self._seen.items() if name in queues and queues[name].cpu != cpu
        }
        since = {name: at for name, (_, at) in self._seen.items()} | fresh | moved
        self._seen = {name: (queue.cpu, since[name]) for name, queue in queues.items()}
        return _Room(rest, {name: replace(queue, share=shares[name]) for name, queue in queues.items()})

    # --- spread -----------------------------------------------------------------------------------------------

    def _count_hot(self, room: _Room) -> None:
        marks, before = self.marks, self._hot
        self._hot = {}
        for cpu, load in room.loads.items():
            looks = before.get(cpu, 0)
            if load > marks.high:
                self._hot[cpu] = looks + 1
            elif load > marks.aim and looks >= marks.looks_high:
                self._hot[cpu] = looks  # begun, and not yet where it is to end

    def _spread(self, room: _Room, free: AbstractSet[str]) -> list[Move]:
        marks, moves = self.marks, list[Move]()
        hot = [cpu for cpu, looks in self._hot.items() if looks >= marks.looks_high]
        for source in sorted(hot, key=lambda cpu: (-room.loads[cpu], cpu)):
            while len(moves) < marks.moves and room.loads[source] > marks.aim:
                found = self._relief(room, source, free)
                if found is None:
                    break
                name, target = found
                load, there = room.loads[source], room.loads[target]
                room.move(name, target)
                why = (
                    f"processor {source} is busy for {load:.0%}, above {marks.high:.0%} for {self._hot[source]} looks, "
                    f"and {target} for {there:.0%}: then {room.loads[source]:.0%} and {room.loads[target]:.0%}"
                )
                moves.append(Move(name, target, why))
        return moves

    def _relief(self, room: _Room, source: int, free: AbstractSet[str]) -> tuple[str, int] | None:
        """The one whose move leaves the busier of the two least busy, and where to; None if it is not worth it."""
        load, marks = room.loads[source], self.marks
        nearest: dict[tuple[int, ...], int | None] = {}
        found: list[tuple[float, float, str, int]] = []
        worth = 0.0
        for name in room.on[source]:
            queue = room.queues[name]
            allowed = tuple(queue.allowed)
            if allowed not in nearest:
                others = [cpu for cpu in allowed if cpu != source and cpu in room.loads]
                nearest[allowed] = min(others, key=lambda cpu: (room.loads[cpu], cpu), default=None)
            target = nearest[allowed]
            if target is None or name not in free:
                continue
            there = room.loads[target] + queue.share
            if there + marks.margin <= load:
                worth += queue.share
                found.append((max(load - queue.share, there), there, name, target))
        if worth < marks.margin:
            return None
        return min(found)[2:]

    # --- gather -----------------------------------------------------------------------------------------------

    def _gather(self, room: _Room, free: AbstractSet[str]) -> list[Move]:
        """Empty a processor whose work others have had room for long enough, the last first."""
        order = sorted(
            (cpu for cpu, names in room.on.items() if names), key=lambda cpu: (not room.stays(cpu), cpu)
        )
        emptied = {cpu: self._emptied(room, cpu, order[:place]) for place, cpu in enumerate(order)}
        self._spare = {cpu: self._spare.get(cpu, 0) + 1 for cpu, plan in emptied.items() if plan}
        for source in reversed(order):
            plan = emptied[source]
            if self._spare.get(source, 0) < self.marks.looks_low or not free >= plan.keys():
                continue
            why = (
                f"processor {source} is busy for {room.loads[source]:.0%}, and for {self._spare[source]} looks "
                f"{cpu_text(plan.values())} could do that beside its own below {self.marks.low:.0%}: {source} may sleep"
            )
            return [Move(name, target, why) for name, target in list(plan.items())[: self.marks.moves]]
        return []

    def _emptied(self, room: _Room, source: int, targets: Iterable[int]) -> dict[str, int]:
        """Where all that a processor serves would go, the largest first; empty if one of them can go nowhere."""
        low, loads = self.marks.low, {cpu: room.loads[cpu] for cpu in targets}
        if room.loads[source] > low:
            return {}  # it would not sleep
        plan: dict[str, int] = {}
        for name in sorted(room.on[source], key=lambda name: (-room.queues[name].share, name)):
            queue = room.queues[name]
            fits = (cpu for cpu, load in loads.items() if cpu in queue.allowed and load + queue.share <= low)
            target = next(fits, None)
            if target is None:
                return {}
            plan[name] = target
            loads[target] += queue.share
        return plan


class _Room:
    """Who is where, and what the loads come to: as it is, then as it would be after some moves."""

    def __init__(self, rest: Mapping[int, float], queues: Mapping[str, Served]) -> None:
        self.loads, self.queues = dict(rest), queues
        self.on: dict[int, list[str]] = {cpu: [] for cpu in rest}
        for name, queue in queues.items():
            self.on[queue.cpu].append(name)
            self.loads[queue.cpu] += queue.share

    def stays(self, cpu: int) -> bool:
        """Whether it serves one that may be nowhere else: this processor cannot sleep."""
        return any(
            not any(other != cpu and other in self.loads for other in self.queues[name].allowed)
            for name in self.on[cpu]
        )

    def move(self, name: str, target: int) -> None:
        """Pretend. What has moved is not looked at again."""
        queue = self.queues[name]
        self.on[queue.cpu].remove(name)
        self.loads[queue.cpu] -= queue.share
        self.loads[target] += queue.share
