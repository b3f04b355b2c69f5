# SPDX-License-Identifier: Apache-2.0
"""What one measurement found, and what several of them come to: the median of each number, and from where to where it went.

A median says nothing where the runs are too far apart: then neither it nor what follows from it is told.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOISY = 0.6  # a spread (max - min over median) beyond this has no median worth printing
RANGES = "ranges"
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trial:
    """Some time of traffic to guests: frames of each of them, and what that took.

    `host_ns`: time on processors of all threads of what brings the frames; `guest_ns`: of the guests' processes. Latencies
    are from when a frame is taken from the wire to when its guest is shown it. Without `seconds` there is no rate.
    """

    size: int
    seconds: float | None
    frames: tuple[int, ...]
    host_ns: float
    guest_ns: float | None = None
    p50_ns: float | None = None
    p99_ns: float | None = None

    @property
    def total(self) -> int:
        return sum(self.frames)

    def record(self) -> Record:
        """Plain values."""
        total = max(self.total, 1)
        rate = None if self.seconds is None else self.total / self.seconds
        return {
            "frames_a_second": rate,
            "gigabits_a_second": None if rate is None else rate * self.size * 8 / 1e9,
            "host_ns_a_frame": self.host_ns / total,
            "guest_ns_a_frame": None if self.guest_ns is None else self.guest_ns / total,
            "total_ns_a_frame": None if self.guest_ns is None else (self.host_ns + self.guest_ns) / total,
            "host_cpu_percent": None if self.seconds is None else self.host_ns / self.seconds / 1e7,
            "p50_ns": self.p50_ns,
            "p99_ns": self.p99_ns,
            "fairness": jain(self.frames),
        }


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 if all have as much, 1 / n if one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def medians(trials: Sequence[Trial]) -> Record:
    """The median of each number over trials of the same thing, and in `ranges` its least and its greatest."""
    records = [trial.record() for trial in trials]
    found: Record = {}
    ranges: dict[str, tuple[float, float]] = {}
    for name in records[0]:
        values = [record[name] for record in records if record[name] is not None]
        found[name] = statistics.median(values) if values else None
        if values:
            ranges[name] = min(values), max(values)
    return found | {RANGES: ranges}


def noisy(record: Mapping[str, Any], name: str) -> bool:
    """Whether a number of `medians` says nothing."""
    low, high = record[RANGES][name]
    return bool(high - low > NOISY * record[name])


def in_words(record: Mapping[str, Any], name: str, factor: float = 1.0) -> float | str | None:
    """A number, and from where to where it went in several trials; that alone where it says nothing."""
    if record[name] is None or RANGES not in record:
        return None if record[name] is None else record[name] * factor
    low, high = (f"{value * factor:.2f}" for value in record[RANGES][name])
    if noisy(record, name):
        return f"noisy: {low}–{high}"
    return f"{record[name] * factor:.2f}" + (f" ({low}–{high})" if low != high else "")


def compared(record: Mapping[str, Any], other: Mapping[str, Any], name: str) -> str:
    """How many times the `other`'s number this one's is, at least and at most; or that it cannot be told."""
    if noisy(record, name) or noisy(other, name):
        return "too noisy to tell"
    (low, high), (least, most) = record[RANGES][name], other[RANGES][name]
    span = f"{low / most:.2f}–{high / least:.2f}"
    if low <= most and least <= high:
        return f"too close to tell ({span})"
    return f"{record[name] / other[name]:.2f} × ({span})"
