# SPDX-License-Identifier: Apache-2.0
"""What a row is to reach: targets.toml, beside this file.

[[target]]
row    = "64-4-*"        rows by name, as a shell matches
figure = "vmq"           one of their figures
of     = "ovs"           divided by this one; left out: the figure itself
least  = 3.0             or most = …: the bar
why    = "…"             said where it is not met: what is in the way, and what would reach it

Medians are judged. Where the bar lies among the middle half of the runs, or between it and the median, it is too close
to tell: another five runs might have said otherwise.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from bench.stats import Figures, middle_half, ratio

FILE = Path(__file__).with_name("targets.toml")


@dataclass(frozen=True, slots=True)
class Target:
    """A bar for a figure of some rows."""

    row: str
    figure: str
    of: str = ""
    least: float | None = None
    most: float | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if (self.least is None) == (self.most is None):
            raise ValueError(f"{self.row}: {self.figure}: one of least and most is needed")

    def means(self, row: str) -> bool:
        return fnmatch(row, self.row)

    def concerns(self, row: str, figures: Figures) -> bool:
        return self.means(row) and {self.figure, self.of or self.figure} <= set(figures)

    def one_sided(self, row: str, figures: Figures) -> bool:
        """Whether the row has a figure of ours and none of the other, which did not carry what was offered."""
        return self.means(row) and self.figure in figures and bool(self.of) and self.of not in figures

    @property
    def bar(self) -> str:
        """In words: ≥ 3 × ovs."""
        bound = f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"
        return f"{bound} × {self.of}" if self.of else bound

    def reached(self, figures: Figures) -> float | None:
        """What the row has; None if the machine was too noisy to tell."""
        one, other = figures[self.figure], figures.get(self.of)
        if one.noisy or (other is not None and other.noisy):
            return None
        return one.median if other is None else ratio(one, other)

    def met(self, figures: Figures) -> bool | None:
        """Whether the bar is reached; None if it cannot be told."""
        value = self.reached(figures)
        if value is None or self._close(value, figures):
            return None
        return value >= self.least if self.least is not None else value <= (self.most or 0)

    def verdict(self, figures: Figures) -> str:
        """The bar, and whether it is met."""
        met = self.met(figures)
        return f"{self.bar}: {self.unclear(figures) if met is None else 'met' if met else '**missed**'}"

    def unclear(self, figures: Figures) -> str:
        """Why it cannot be told whether the bar is met."""
        return "too noisy to tell" if self.reached(figures) is None else "too close to tell"

    def _close(self, value: float, figures: Figures) -> bool:
        """Whether runs of the middle half, or they and the median, stand on both sides of the bar."""
        ends = (*middle_half(figures[self.figure], figures.get(self.of)), value)
        bar = self.least if self.least is not None else self.most or 0
        return min(ends) < bar < max(ends)


def load(text: str | None = None) -> tuple[Target, ...]:
    """All targets; ValueError or TypeError if one cannot be read."""
    told = tomllib.loads(FILE.read_text() if text is None else text)
    return tuple(Target(**keys) for keys in told.get("target", ()))


def of_row(targets: Iterable[Target], row: str, figures: Figures) -> list[Target]:
    """Those of one row."""
    return [target for target in targets if target.concerns(row, figures)]
