# SPDX-License-Identifier: Apache-2.0
"""A figure is a median of several runs with its spread; a comparison is a ratio of medians of one run.

A figure whose name begins with HISTOGRAM is no run of something but all of its values: it is drawn, not tabled.
"""

from __future__ import annotations

import itertools
import math
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
        """(max - min) / median; 0 where all runs are alike, without end where they are not and the median is 0."""
        span = max(self.values) - min(self.values)
        if not span:
            return 0.0
        return span / abs(self.median) if self.median else math.inf

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
            spread = f"{self.spread:.0%}" if self.median else "about nothing"
            return f"noisy: {self._range(digits)} (spread {spread})"
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


def middle_half(one: Figure, other: Figure | None = None) -> tuple[float, float]:
    """Between which values the middle half of the runs lies: of a figure, or of its multiples of another.

    Runs of a row are made in turn, so those of one number are compared: what slows the machine slows both.
    """
    values: Sequence[float] = one.values
    if other is not None:
        alike = len(one.values) == len(other.values)
        pairs = (
            zip(one.values, other.values, strict=True)
            if alike
            else itertools.product(one.values, other.values)
        )
        values = [this / that for this, that in pairs if that]
    if len(values) < 2:
        value = ratio(one, other) if other is not None else one.median
        return (value or 0.0,) * 2
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
