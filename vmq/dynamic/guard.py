# SPDX-License-Identifier: Apache-2.0
"""Whether the better way is the better way: the same frames taken both ways in turns, judged, and acted upon loudly.

    own    as configured: a receive queue of its own, a placement, whatever is to be an advantage
    plain  without it: the default queue, the switched placement

    samples  own plain own plain …  ──pairs──► cost of own / cost of plain, a ratio each ──► judge: Verdict
    Guard    OWN ──slower──► PLAIN ──after a pause, not slower──► OWN      the pause doubles with every fall

Neighbours in time meet the same load, so a pair cancels what changes slowly; and a set is judged by counting the
pairs that say "slower", not by averages, which one interrupt ruins. The sign test: were own as likely better as worse,
so many of n pairs would say the same with the probability `error`. It makes no assumption about how costs are spread.

A set is judged once, when it is whole. Who looks after every pair and stops when he likes the answer is wrong more
often than `error` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from math import comb
from statistics import median
from typing import Any

PAIRS = 15  # 13 of 15 decide; 15 of 15 is not demanded, so one or two may be spoiled
FRAMES_MIN = 1000  # a sample: sixteen full bursts, and reading the clock is less than a thousandth of it
TOLERANCE = 0.05  # a choice: for less it is not worth to give up what the way is for
ERROR = 0.01
EVERY_SECONDS = 600.0  # between two sets while own is in force
FIRST_PAUSE = 60.0
LONGEST_PAUSE = 4 * 3600.0


class Path(Enum):
    """Which of the two ways."""

    OWN = "own"
    PLAIN = "plain"


class Answer(Enum):
    """What a set of samples says of own."""

    SLOWER = "slower"
    NOT_SLOWER = "not slower"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True, slots=True)
class Sample:
    """A short time on one way: frames that passed, and the processor's time they took."""

    path: Path
    frames: int
    nanoseconds: float

    @property
    def cost(self) -> float:
        """Nanoseconds a frame."""
        return self.nanoseconds / self.frames


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer with its numbers. Costs are medians in ns a frame; a spread is the median distance from that."""

    answer: Answer
    why: str
    own: float = 0.0
    plain: float = 0.0
    own_spread: float = 0.0
    plain_spread: float = 0.0
    ratio: float = 0.0  # the median of own / plain, pair by pair
    pairs: int = 0
    slower_in: int = 0  # pairs in which own cost more than the tolerance allows
    error: float = 1.0  # how often chance alone would answer like that

    def record(self) -> dict[str, Any]:
        """For people and JSON."""
        return asdict(self) | {"answer": self.answer.value}


def judge(
    samples: Iterable[Sample], *, pairs_min: int = PAIRS, tolerance: float = TOLERANCE, error: float = ERROR
) -> Verdict:
    """Whether own is slower than plain by more than the tolerance. The samples alternate, in any order of the two."""
    pairs = list(_pairs(samples))
    if len(pairs) < pairs_min:
        why = f"{len(pairs)} pairs of samples with {FRAMES_MIN} frames each, and {pairs_min} are needed"
        return Verdict(Answer.UNKNOWN, why, pairs=len(pairs))
    ratios = [own / plain for own, plain in pairs]
    worse = sum(ratio > 1 + tolerance for ratio in ratios)
    answer, chance = Answer.UNKNOWN, min(1.0, 2 * _tail(max(worse, len(pairs) - worse), len(pairs)))
    for possible, votes in ((Answer.SLOWER, worse), (Answer.NOT_SLOWER, len(pairs) - worse)):
        if (found := _tail(votes, len(pairs))) <= error:
            answer, chance = possible, found
    own, own_spread = _middle([one for one, _ in pairs])
    plain, plain_spread = _middle([other for _, other in pairs])
    numbers = (
        f"own {own:.0f} ± {own_spread:.0f} ns a frame, plain {plain:.0f} ± {plain_spread:.0f}: more than "
        f"{tolerance:.0%} slower in {worse} of {len(pairs)} pairs, by chance {chance:.2g}"
    )
    return Verdict(
        answer, numbers, own, plain, own_spread, plain_spread, median(ratios), len(pairs), worse, chance
    )


def _pairs(samples: Iterable[Sample]) -> Iterable[tuple[float, float]]:
    """Costs of own and plain, one after the other in time; what is too short to say anything is skipped."""
    first: Sample | None = None
    for sample in samples:
        if sample.frames < FRAMES_MIN or sample.nanoseconds <= 0:
            first = None  # its partner would be compared with another time
        elif first is None or first.path is sample.path:
            first = sample
        else:
            own, plain = (first, sample) if first.path is Path.OWN else (sample, first)
            yield own.cost, plain.cost
            first = None


def _tail(votes: int, of: int) -> float:
    """The probability that a fair coin shows at least so many heads."""
    return sum(comb(of, heads) for heads in range(votes, of + 1)) / float(2**of)


def _middle(costs: Sequence[float]) -> tuple[float, float]:
    centre = median(costs)
    return centre, median(abs(cost - centre) for cost in costs)


# --- what follows from it -----------------------------------------------------------------------------------------

NEXT = {
    (Path.OWN, Answer.SLOWER): Path.PLAIN,
    (Path.OWN, Answer.NOT_SLOWER): Path.OWN,
    (Path.OWN, Answer.UNKNOWN): Path.OWN,
    (Path.PLAIN, Answer.SLOWER): Path.PLAIN,
    (Path.PLAIN, Answer.NOT_SLOWER): Path.OWN,
    (Path.PLAIN, Answer.UNKNOWN): Path.PLAIN,
}


@dataclass(frozen=True, slots=True)
class Turn:
    """Another way is in force: to be told to everybody."""

    path: Path
    why: str


class Guard:
    """The way that is in force for one subject, and when to measure both again. It begins with own."""

    def __init__(
        self,
        now: float,
        *,
        every: float = EVERY_SECONDS,
        first_pause: float = FIRST_PAUSE,
        longest_pause: float = LONGEST_PAUSE,
    ) -> None:
        self.path = Path.OWN
        self.verdict: Verdict | None = None  # the last one
        self.due = now  # from when on a set of samples is wanted
        self._every, self._first, self._longest = every, first_pause, longest_pause
        self._pause = 0.0  # the last one
        self._since = now

    @property
    def why(self) -> str:
        """Why this way is in force."""
        return "not measured yet" if self.verdict is None else self.verdict.why

    def hear(self, verdict: Verdict, now: float) -> Turn | None:
        """What a set of samples has said; the change that follows, if one does."""
        before, self.path, self.verdict = self.path, NEXT[self.path, verdict.answer], verdict
        if verdict.answer is Answer.SLOWER:
            calm = before is Path.OWN and now - self._since >= self._longest
            self._pause = self._first if calm or not self._pause else min(2 * self._pause, self._longest)
        self.due = now + (self._every if self.path is Path.OWN else self._pause)
        if self.path is before:
            return None
        self._since = now
        if self.path is Path.OWN:
            return Turn(self.path, f"no longer slower: {verdict.why}")
        return Turn(self.path, f"slower than plain: {verdict.why}; tried again in {self._pause:.0f} s")
