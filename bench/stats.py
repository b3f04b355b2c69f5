# SPDX-License-Identifier: Apache-2.0
"""A figure is a median of several runs with its spread; a comparison is a ratio of medians of one run.

A figure whose name begins with HISTOGRAM is no run of something but all of its values: it is drawn, not tabled.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

NOISY = 0.6  # a spread (max - min over median) beyond this has no median worth printing
HISTOGRAM = "histogram: "


@dataclass(frozen=True, slots=True)
class Figure:
    """Some runs of one thing."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The figure of these runs; ValueError without any."""
        if not values:
            raise ValueError("no run, no figure")
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """(max - min) / median; 0 for a single run."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0

    @property
    def noisy(self) -> bool:
        return self.spread > NOISY

    def text(self, digits: int = 2) -> str:
        """Median, and minimum to maximum where there were several runs."""
        if len(self.values) == 1:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self._range(digits)})"

    def judged(self, digits: int = 2) -> str:
        """As `text`; of a noisy machine the range alone, since its median says nothing."""
        if self.noisy:
            return f"noisy: {self._range(digits)} (spread {self.spread:.0%})"
        return self.text(digits)

    def _range(self, digits: int) -> str:
        return f"{min(self.values):.{digits}f}–{max(self.values):.{digits}f}"


Figures = Mapping[str, Figure]  # of one row
Rows = Mapping[str, Figures]
Measure = Callable[[int], Mapping[str, Figure]]  # so many runs of a row


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def ratio(one: Figure, other: Figure) -> float | None:
    """How many times the median of `other` the median of `one` is."""
    return one.median / other.median if other.median else None
