# SPDX-License-Identifier: Apache-2.0
"""A histogram as a picture of a few lines: a bar a bin, its edge, its count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

WIDTH = 24
EIGHTHS = " ▏▎▍▌▋▊▉█"
UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"))


def time_text(nanoseconds: float | None) -> str:
    """A time in the unit that suits it."""
    if nanoseconds is None:
        return "-"
    for size, unit in UNITS:
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.0f} ns"


def frames_text(frames: float) -> str:
    return f"{frames:.0f}"


def picture(
    noun: str, bins: Sequence[int], edges: Sequence[int], text: Callable[[float], str]
) -> Iterator[str]:
    """A line a bin, from the first to the last that has anything; none, if none has."""
    filled = [place for place, count in enumerate(bins) if count]
    if not filled:
        return
    largest, total = max(bins), sum(bins)
    labels = [f"< {text(edge)}" if edge is not None else "more" for _, edge in zip_longest(bins, edges)]
    width = max(len(label) for label in labels)
    for place in range(filled[0], filled[-1] + 1):
        label, count = labels[place].rjust(width), bins[place]
        yield f"{noun}  {label}  {bar(count / largest):<{WIDTH}}  {count}  {100 * count / total:.1f} %"


def bar(share: float) -> str:
    """A bar of WIDTH characters at most, in eighths of one; the least is seen."""
    eighths = max(round(share * WIDTH * 8), 1 if share else 0)
    return EIGHTHS[8] * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")
