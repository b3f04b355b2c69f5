# SPDX-License-Identifier: Apache-2.0
"""What one measurement found, and what several of them come to: the median of each number."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Trial:
    """Some time of traffic to guests: frames of each of them, and what that took.

    `host_ns`: time on processors of all threads of what brings the frames; `guest_ns`: of the guests' processes. Latencies
    are from when a frame is taken from the wire to when its guest is shown it.
    """

    size: int
    seconds: float
    frames: tuple[int, ...]
    host_ns: float
    guest_ns: float | None = None
    p50_ns: float | None = None
    p99_ns: float | None = None

    @property
    def total(self) -> int:
        return sum(self.frames)

    def record(self) -> dict[str, Any]:
        """Plain values."""
        total = max(self.total, 1)
        return {
            "frames_a_second": self.total / self.seconds,
            "gigabits_a_second": self.total * self.size * 8 / self.seconds / 1e9,
            "host_ns_a_frame": self.host_ns / total,
            "guest_ns_a_frame": None if self.guest_ns is None else self.guest_ns / total,
            "host_cpu_percent": self.host_ns / self.seconds / 1e7,
            "p50_ns": self.p50_ns,
            "p99_ns": self.p99_ns,
            "fairness": jain(self.frames),
        }


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 if all have as much, 1 / n if one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def medians(trials: Sequence[Trial]) -> dict[str, Any]:
    """The median of each number, over trials of the same thing."""
    records = [trial.record() for trial in trials]
    found: dict[str, Any] = {}
    for name in records[0]:
        values = [record[name] for record in records if record[name] is not None]
        found[name] = statistics.median(values) if values else None
    return found
