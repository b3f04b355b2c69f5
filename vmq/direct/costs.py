# SPDX-License-Identifier: Apache-2.0
"""What frames cost by either placement, and from which length on direct placement pays: pure.

    of each length, rounds of: ns of kernel and engine, switched and direct ──► gain of each round, of the machine's whole time

    gain, ns                       ..·˙˙  best quarter of the rounds
        │               ..··˙˙..··˙˙..·˙  median
      0 ┼───────────·˙─────·˙─────·˙────────────► bytes
        │   ..··˙˙..··˙˙   at    long             worst quarter
                   short

Between lengths it goes in a straight line. A VM is direct from `long` on, where even the worst quarter gains, and is switched again at
`short`, where even the best one does not, so what the rounds disagree about changes nothing; MARGIN bytes at least on either side of
where the median does. Rounds of both placements are made in turn, so their difference has little of what slows both. Longer frames
than were measured count as the longest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

MARGIN = 64  # bytes
ROUNDS_LEAST = 3


class Spent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """ns a frame by one placement, a round each. The kernel's is without what the generator of the frames takes."""

    kernel: tuple[float, ...]
    engine: tuple[float, ...]

    def total(self) -> list[float]:
        return [kernel + engine for kernel, engine in zip(self.kernel, self.engine, strict=True)]


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of frames of one length, in bytes with their Ethernet header."""

    length: int
    switched: Spent
    direct: Spent

    def gains(self) -> list[float]:
        """Ns that direct placement saves, of each round."""
        return [one - other for one, other in zip(self.switched.total(), self.direct.total(), strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The greatest of the least quarter, the median, the least of the greatest quarter."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


class Band(NamedTuple):
    """Mean lengths up to which a VM is switched and from which on it is direct, and whose figures say so."""

    short: float
    long: float
    whose: str

    def words(self) -> str:
        """From which length on it pays."""
        if self.long == math.inf:
            return f"direct placement pays for no length, {self.whose}"
        if not self.long:
            return f"direct placement pays for all lengths, {self.whose}"
        return f"direct placement pays from {self.long:.0f} on, {self.whose}"


def crossing(gains: Sequence[tuple[int, float]]) -> float:
    """The length beyond which all gains, by length, are above nothing: 0 if all are, `inf` if that of the longest is not."""
    if gains[-1][1] <= 0:
        return math.inf
    for (length, gain), (longer, more) in reversed(list(pairwise(gains))):
        if gain <= 0:
            return length + (longer - length) * -gain / (more - gain)
    return 0.0


def crossings(costs: Sequence[Cost]) -> tuple[float, float, float]:
    """Of several lengths, in ascending order: where the best quarter, the median and the worst quarter of the rounds begin to gain."""
    by_quartile = zip(*(quartiles(cost.gains()) for cost in costs), strict=True)
    worst, median, best = (
        crossing([(cost.length, gain) for cost, gain in zip(costs, gains, strict=True)])
        for gains in by_quartile
    )
    return best, median, worst


def band(costs: Sequence[Cost], whose: str) -> Band:
    """What the figures of several lengths, in ascending order, come to."""
    (short, at, long), longest = crossings(costs), float(costs[-1].length)
    if at == math.inf:
        return Band(math.inf, math.inf, whose)
    if not at:
        return Band(0.0, min(long, longest), whose)
    return Band(max(min(short, at - MARGIN), 0.0), min(max(long, at + MARGIN), longest), whose)
