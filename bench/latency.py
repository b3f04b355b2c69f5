# SPDX-License-Identifier: Apache-2.0
"""How long frames are on their way from a guest to another, at shares of the rate that we carry; beside OVS-DPDK.

    search     vmq alone: what arrives unpaced ─► halve, trial by trial ─► confirm     the highest rate without loss
    rows       10, 50, 90 % of it ─► both systems in turn, the same offer              times from when a frame was due
               1, 2.5, 5 million a second, which both carry ─► the same

Our processor polls, as OVS-DPDK's does (`idle` of `[engine]`). One that sleeps has to be woken whenever the sender was away for
a while, and lets the kernel's own threads settle on it meanwhile: that was all of the difference in the tail.

Times say something only of a system that keeps up. A run in which less than 99 % of what was due was sent, or arrived,
has none: those of the other frames would flatter. Its rates tell what it did carry. We must keep up, the rate is ours.
A frame that was due and did not arrive is later than all that did: a run that lost 0.2 % has no p99.9.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial

from bench import quiet
from bench.crowd import Crowd, percentile_of
from bench.delivery import RefusedError, in_turn
from bench.guests import rate
from bench.quiet import say
from bench.stats import Figure, Figures, Measure
from bench.systems import CLASSIFYING, Load, Served, mac
from bench.ways import CALM_SECONDS, check_all, frames_from, positive, serving

SHARES = (10, 50, 90)  # % of our own rate
RATES = (1, 2.5, 5)  # million frames a second
PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
PLAUSIBLE = 0.25  # of what arrives unpaced: less is what others leave of a processor, and no rate of ours
CARRIED = 0.99  # of what is due must be sent and arrive
WARM_SECONDS, MEASURED_SECONDS, TRIAL_SECONDS = 0.5, 1.6, 0.3
TOLERANCE, TRIES, CONFIRMATIONS = 0.03, 2, 6  # of the search


@dataclass(frozen=True)
class Passage:
    """One run of paced frames: million frames a second, and the times of those that arrived."""

    offered: float  # that were due
    sent: float
    arrived: float
    times: Mapping[str, float]  # µs

    @property
    def short(self) -> str:
        """What fell short of the offer, in words; empty: it was carried."""
        if self.sent < CARRIED * self.offered:
            return f"took {self.sent:.2f} of {self.offered:.2f} Mpps"
        if self.arrived < CARRIED * self.offered:
            return f"delivered {self.arrived:.2f} of {self.offered:.2f} Mpps"
        return ""

    def parts(self, system: str) -> dict[str, float]:
        """What is told of it."""
        return {
            **{f"{system}: µs, {name}": value for name, value in self.times.items() if not self.short},
            f"{system}: Mpps offered": self.offered,
            f"{system}: Mpps sent": self.sent,
            f"{system}: Mpps arrived": self.arrived,
        }


@contextmanager
def stamping(system: str) -> Iterator[tuple[Served, Crowd]]:
    """A pair whose frames carry a time; it holds."""
    with (
        serving(system, Load(2, idle="poll")) as served,
        Crowd(served, frames_from(1, mac(1), 64), stamped=True) as crowd,
    ):
        time.sleep(CALM_SECONDS)
        yield served, crowd


def passed(crowd: Crowd, offered: float, seconds: float) -> Passage:
    """What becomes of frames while they are offered for so long; the pair goes on."""
    earlier, sent, skipped, frames = (
        crowd.times.copy(),
        crowd.count("sent"),
        crowd.skipped,
        crowd.count("frames"),
    )
    time.sleep(seconds)
    frames, sent, skipped = (
        crowd.count("frames") - frames,
        crowd.count("sent") - sent,
        crowd.skipped - skipped,
    )
    if not frames:
        raise RefusedError("nothing was delivered")
    times, due = crowd.times - earlier, sent + skipped
    each = offered / due  # no clock of ours is in it
    found = {
        name: percentile_of(times, share * due / frames)
        for name, share in PERCENTILES.items()
        if share * due <= frames
    }
    return Passage(offered, each * sent, each * frames, found)


def passage(system: str, offered: float) -> Passage:
    """Frames at a rate, million a second, from the first guest to the second."""
    with stamping(system) as (served, crowd):
        crowd.pace(round(offered * 1e6))
        crowd.hold(on=False)
        time.sleep(WARM_SECONDS)
        told = passed(crowd, offered, MEASURED_SECONDS)
        check_all(served, crowd, system)
    return told


def unpaced(served: Served, crowd: Crowd) -> float:
    """Million frames a second that arrive when they are sent as fast as it goes."""
    crowd.hold(on=False)
    time.sleep(WARM_SECONDS)
    before = crowd.meter()
    time.sleep(TRIAL_SECONDS)
    after = crowd.meter()
    check_all(served, crowd, "vmq")
    return positive(rate(before, after), "vmq")


def carries(served: Served, crowd: Crowd, offered: float, seconds: float = 0.0) -> bool:
    """Whether all that is offered is sent in time, and nothing dropped; a disturbance of one trial is the machine's."""
    for _ in range(TRIES):
        dropped = served.counts().dropped
        crowd.pace(round(offered * 1e6))
        crowd.hold(on=False)
        told = passed(crowd, offered, seconds or TRIAL_SECONDS)
        if check_all(served, crowd, "vmq") == dropped and not told.short:
            return True
    return False


def without_loss(try_: Callable[[float, float], bool], top: float) -> float:
    """The highest rate below `top` that is carried (RFC 2544): halving finds it, a longer trial confirms it."""
    low, high = 0.0, top
    while high - low > TOLERANCE * top:
        middle = (low + high) / 2
        low, high = (middle, high) if try_(middle, TRIAL_SECONDS) else (low, middle)
    for step in range(CONFIRMATIONS):
        found = low * (1 - TOLERANCE) ** step
        if found and try_(found, MEASURED_SECONDS):
            return found
    raise RefusedError(f"vmq: no rate below {top:.2f} Mpps is carried without loss")


@lru_cache(maxsize=1)
def own_rate() -> float:
    """What we carry without loss, million frames a second, when nothing else runs: the same for all shares of it."""
    others = quiet.wait()
    with stamping("vmq") as (served, crowd):
        top = unpaced(served, crowd)
        found = without_loss(partial(carries, served, crowd), top)
    if found < PLAUSIBLE * top:
        raise RefusedError(f"vmq carries {found:.2f} Mpps without loss, but {top:.2f} when nothing holds the sender "
                           f"back (others took {others:.0%} of the machine): measure when it is quiet")  # fmt: skip
    say(
        f"latency: vmq carries {found:.2f} Mpps without loss, and {top:.2f} when nothing holds the sender back"
    )
    return found


def latency(share: int, runs: int, systems: Sequence[str] = CLASSIFYING) -> Figures:
    """Systems at a share of our own rate. One that fell short in half of its runs has no times; we have no row then."""
    return at_rate(f"latency-{share}", own_rate() * share / 100, runs, systems)


def at_rate(what: str, offered: float, runs: int, systems: Sequence[str] = CLASSIFYING) -> Figures:
    """The same at a rate, million frames a second."""
    told: dict[str, list[Passage]] = {system: [] for system in systems}

    def one(system: str) -> float:
        told[system].append(passage(system, offered))
        if short := told[system][-1].short:
            say(f"{what}: {system} {short}: no times of this run")
        return told[system][-1].arrived

    in_turn({system: partial(one, system) for system in systems}, what, runs, say, "Mpps arrived")
    figures: dict[str, Figure] = {}
    for system, passages in told.items():
        carried = [one for one in passages if not one.short]
        if 2 * len(carried) <= runs and system == "vmq":
            raise RefusedError(f"vmq carried {offered:.2f} Mpps in {len(carried)} of {runs} runs: {passages}")
        timed = carried if 2 * len(carried) > runs else []
        figures |= figures_of(system, passages, timed)
    return figures


def figures_of(system: str, passages: Sequence[Passage], timed: Sequence[Passage]) -> dict[str, Figure]:
    """The times of some runs, and the rates of all."""
    every = [one.parts(system) for one in passages]
    times = {
        f"{system}: µs, {name}": [one.times[name] for one in timed if name in one.times]
        for name in PERCENTILES
        if 2 * sum(name in one.times for one in timed) > len(passages)
    }
    rates = {name: [one[name] for one in every] for name in every[0] if "Mpps" in name}
    return {name: Figure.of(values) for name, values in (times | rates).items()}


ROWS: dict[str, Measure] = {
    **{f"latency-{share}": partial(latency, share) for share in SHARES},
    **{f"latency-at-{mpps}": partial(at_rate, f"latency-at-{mpps}", float(mpps)) for mpps in RATES},
}
QUICK: dict[str, Measure] = {"latency-50": partial(latency, 50, systems=("vmq",))}
