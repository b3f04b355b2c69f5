# SPDX-License-Identifier: Apache-2.0
"""Who has a receive queue of its own while an uplink has fewer than VMs: VmqWeight, and taken back from the idle.

The others are served by the default queue, which they share. A VM is worth its weight × its frames a second, and
nothing while it is idle. Those that are worth the same count by weight, then in the order of the configuration: the
order in which `balance` of vmq/contract/budget.py admits a batch.

    a place is free    it goes to the one that is worth most, at once: nobody loses it
    another is busier  worth more than `factor` times the holder, for some looks: it takes the place
    both are idle      for a long time, and the other comes first: it gets the place back

Why steady traffic ends in rest. A busy VM that takes a place makes the holders worth more in sum. One that gets its
place back leaves that sum, as both are worth nothing, and brings them closer to the order. Weight 0 never has a place.
Between two of its changes a VM rests for `hold` seconds, so traffic that alternates changes at most that often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from vmq.dynamic.smooth import Smoother

# Reasoned, not measured.
FACTOR = 2.0  # a tenth more traffic is chance; twice as much is not
BUSY_RATE = 100.0  # frames a second; what is below, the default queue does beside its work
LOOKS_BUSIER = 5
LOOKS_IDLE = 60  # nobody waits for a place that comes back
HOLD_SECONDS = 30.0
SWAPS = 8  # a look; the caller publishes them together
HALF_LIFE = 5.0  # of traffic that comes and goes every five seconds, the smoothed halves differ by `FACTOR`


@dataclass(frozen=True, slots=True)
class Terms:
    """When a place changes hands, and how many at once. Looks are expected once a second."""

    factor: float = FACTOR
    busy_rate: float = BUSY_RATE
    looks_busier: int = LOOKS_BUSIER
    looks_idle: int = LOOKS_IDLE
    hold: float = HOLD_SECONDS
    swaps: int = SWAPS
    half_life: float = HALF_LIFE

    def __post_init__(self) -> None:
        if not (self.factor >= 1 and self.busy_rate > 0):
            raise ValueError(f"needs factor >= 1 and busy_rate > 0: {self}")


@dataclass(frozen=True, slots=True)
class Claim:
    """A VM of the uplink: its weight, its frames since the last look as a rate, and whether it has a place."""

    weight: int
    rate: float
    owns: bool


@dataclass(frozen=True, slots=True)
class Swap:
    """A receive queue of its own for one VM, that of the other if it had one, and why. None: nobody."""

    loser: str | None
    winner: str | None
    why: str


def first_holders(weights: Mapping[str, int], queues: int | None) -> list[str]:
    """Who has a receive queue of its own before any traffic was seen; None: as many as there are VMs."""
    ranked = sorted((name for name, weight in weights.items() if weight), key=lambda name: -weights[name])
    return ranked[:queues]


class Scarce:
    """Looks at the VMs of one uplink, and says which receive queues change hands."""

    def __init__(self, terms: Terms | None = None) -> None:
        self.terms = terms or Terms()
        self._rates = Smoother[str](self.terms.half_life)
        self._owned: dict[str, tuple[bool, float]] = {}  # whether it had a place, and since when
        self._busier: dict[str, int] = {}  # looks
        self._idle: dict[str, int] = {}

    def look(self, now: float, queues: int | None, vms: Mapping[str, Claim]) -> list[Swap]:
        """The swaps to make now. `vms` in the order of the configuration; `queues`: None for as many as VMs."""
        rates = self._rates.look(now, {name: vm.rate for name, vm in vms.items()})
        fresh = dict.fromkeys(vms.keys() - self._owned.keys(), -inf)
        turned = {
            name: now for name, (owned, _) in self._owned.items() if name in vms and vms[name].owns != owned
        }
        since = {name: at for name, (_, at) in self._owned.items()} | fresh | turned
        round_ = _Round(
            self.terms, vms, rates, {name for name in vms if now - since[name] >= self.terms.hold}
        )
        self._busier = round_.count_busier(self._busier)
        self._idle = {name: self._idle.get(name, 0) + 1 for name in vms if not round_.worth[name]}
        places = len(vms) if queues is None else queues
        swaps = round_.evict(places) or round_.fill(places) or round_.overtake(self._busier)
        swaps = (swaps + round_.give_back(self._idle, swaps))[: self.terms.swaps]
        asked = {name: now for swap in swaps for name in (swap.loser, swap.winner) if name is not None}
        self._owned = {name: (vm.owns, (since | asked)[name]) for name, vm in vms.items()}
        return swaps


class _Round:
    """One look: what everybody is worth, and what follows from that. A VM is in one swap at most."""

    def __init__(
        self, terms: Terms, vms: Mapping[str, Claim], rates: Mapping[str, float], settled: set[str]
    ) -> None:
        self.terms, self.vms, self.rates, self.settled = terms, vms, rates, settled
        self.worth = {
            name: vm.weight * rates[name] if rates[name] >= terms.busy_rate else 0.0
            for name, vm in vms.items()
        }
        first = sorted((name for name in vms if vms[name].weight), key=lambda name: -vms[name].weight)
        self.turn = {name: place for place, name in enumerate(first)}  # by weight, then as configured
        ranked = sorted(first, key=lambda name: -self.worth[name])
        self.claimants = [name for name in ranked if not vms[name].owns]  # the best first
        self.holders = [name for name in reversed(ranked) if vms[name].owns]  # the worst first

    def count_busier(self, before: Mapping[str, int]) -> dict[str, int]:
        """For how many looks each claimant has been worth more than a holder, by the factor."""
        if not self.holders:
            return {}
        least = self.worth[self.holders[0]] * self.terms.factor
        return {name: before.get(name, 0) + 1 for name in self.claimants if self.worth[name] > least}

    def evict(self, places: int) -> list[Swap]:
        """What the configuration no longer gives."""
        none = [
            Swap(name, None, "its weight is 0: never a receive queue of its own")
            for name, vm in self.vms.items()
            if vm.owns and not vm.weight
        ]
        surplus = self.holders[: max(len(self.holders) - places, 0)]
        return none + [
            Swap(name, None, f"the uplink has {places}, and others are worth more") for name in surplus
        ]

    def fill(self, places: int) -> list[Swap]:
        """Free places, to the best."""
        free = max(places - len(self.holders), 0)
        return [
            Swap(None, name, f"{places - len(self.holders)} of {places} are free: {self._tell(name)}")
            for name in self.claimants[:free]
        ]

    def overtake(self, busier: Mapping[str, int]) -> list[Swap]:
        """Places of holders that are worth much less, the best claimant against the worst holder."""
        ready = [name for name in self.claimants if busier.get(name, 0) >= self.terms.looks_busier]
        return [
            Swap(
                loser,
                winner,
                f"{self._tell(winner)}, more than {self.terms.factor:g} times as much for {busier[winner]} looks: "
                f"{self._tell(loser)}",
            )
            for winner, loser in self._pairs(ready, self.holders)
            if self.worth[winner] > self.terms.factor * self.worth[loser]
        ]

    def give_back(self, idle: Mapping[str, int], swaps: list[Swap]) -> list[Swap]:
        """Places of the idle, to those that come first and are idle as well."""
        taken = {name for swap in swaps for name in (swap.loser, swap.winner)}
        resting = {
            name for name, looks in idle.items() if looks >= self.terms.looks_idle and name not in taken
        }
        first = sorted(resting.intersection(self.claimants), key=lambda name: self.turn[name])
        last = sorted(resting.intersection(self.holders), key=lambda name: -self.turn[name])
        return [
            Swap(loser, winner, f"both are idle for {self.terms.looks_idle} looks, and {winner} comes first")
            for winner, loser in self._pairs(first, last)
            if self.turn[winner] < self.turn[loser]
        ]

    def _pairs(self, winners: list[str], losers: list[str]) -> zip[tuple[str, str]]:
        """The best with the worst, of those that may change already."""
        return zip(
            (name for name in winners if name in self.settled),
            (name for name in losers if name in self.settled),
            strict=False,
        )

    def _tell(self, name: str) -> str:
        return f"{name} has weight {self.vms[name].weight} and {self.rates[name]:,.0f} frames/s"
