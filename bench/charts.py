# SPDX-License-Identifier: Apache-2.0
"""Pictures of what was measured, as SVG: bars beside peers, growth curves, histograms.

Each takes the rows of a part and gives the text of a picture, or nothing where the rows have no such thing. A dashed
line across the bars of a row is the bar of its target.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

from bench.stats import HISTOGRAM, Figure, Figures, Rows
from bench.targets import Target, of_row

WIDTH, HEIGHT = 720, 260  # of a curve or a histogram
LABELS, BAR, LINE = 230, 400, 18  # of bars: the names, the longest bar, the height of one
MARGIN = 56
OURS, OTHERS, GOAL = "#2b6cb0", "#a0aec0", "#c53030"
COLOURS = (OURS, "#2f855a", "#b7791f", "#6b46c1", "#c53030", "#4a5568")
BINS = 40
NUMBER = re.compile(r"\d+")


def _svg(width: float, height: float, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
    body = "\n".join(parts)
    return f'{head}font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(words)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float, colour: str, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}"{dashed}/>'


def bars(rows: Rows, targets: Sequence[Target] = ()) -> str:
    """A bar for each system of each row; of a noisy one only its frame, as far as its least."""
    shown = {name: figures for name, figures in rows.items() if figures}
    if not shown:
        return ""
    longest = max(max(_length(figure) for figure in figures.values()) for figures in shown.values()) or 1.0
    parts, y = [], 4.0
    for name, figures in shown.items():
        top = y
        for system, figure in figures.items():
            width = max(_length(figure) / longest * BAR, 1)
            colour = OURS if system == "vmq" else OTHERS
            fill = f'fill="none" stroke="{colour}"' if figure.noisy else f'fill="{colour}"'
            value = f"noisy, from {min(figure.values):.2f}" if figure.noisy else f"{figure.median:.2f}"
            parts.append(_text(LABELS - 6, y + 12, f"{name}: {system}", "end"))
            parts.append(f'<rect x="{LABELS}" y="{y}" width="{width:.0f}" height="{LINE - 4}" {fill}/>')
            parts.append(_text(LABELS + width + 4, y + 12, value))
            y += LINE
        parts += [
            _line(LABELS + x, top - 2, LABELS + x, y - 2, GOAL, "3 2")
            for target in of_row(targets, name, figures)
            if (x := _goal(target, figures) / longest * BAR) <= BAR
        ]
        y += LINE / 3
    return _svg(LABELS + BAR + 110, y + 4, parts)


def _length(figure: Figure) -> float:
    return min(figure.values) if figure.noisy else figure.median


def _goal(target: Target, figures: Figures) -> float:
    """Where the bar of a target stands among the bars."""
    bound = target.least if target.least is not None else target.most or 0.0
    return bound * figures[target.of].median if target.of else bound


def points(figures: Figures) -> list[tuple[int, float]]:
    """Of a row that grows: the number that each figure's name begins with, and the figure."""
    found = [
        (int(match[0]), figure.median) for name, figure in figures.items() if (match := NUMBER.match(name))
    ]
    return sorted(dict(reversed(found)).items())


def curves(rows: Rows, unit: str) -> str:
    """How figures grow with the number in their names: a curve a row, the first axis logarithmic."""
    grown = {name: found for name, figures in rows.items() if len(found := points(figures)) >= 3}
    if not grown:
        return ""
    most_x = max(x for found in grown.values() for x, _ in found)
    most_y = max(y for found in grown.values() for _, y in found) * 1.1

    def place(x: float, y: float) -> tuple[float, float]:
        share = math.log(max(x, 1)) / math.log(max(most_x, 2))
        return MARGIN + share * (WIDTH - 3 * MARGIN), HEIGHT - MARGIN - y / most_y * (HEIGHT - 1.5 * MARGIN)

    parts = _axes(f"{unit}, as {', '.join(grown)} grow")
    for number in range(5):
        parts.append(
            _text(MARGIN - 6, place(1, most_y * number / 4)[1] + 4, f"{most_y * number / 4:.0f}", "end")
        )
    for x in sorted({x for found in grown.values() for x, _ in found}):
        parts.append(_text(place(x, 0)[0], HEIGHT - MARGIN + 16, str(x), "middle"))
    for (name, found), colour in zip(grown.items(), COLOURS * len(grown), strict=False):
        places = [place(x, y) for x, y in found]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(places[-1][0] + 6, places[-1][1] + 4, name))
    return _svg(WIDTH, HEIGHT, parts)


def _axes(title: str) -> list[str]:
    bottom = HEIGHT - MARGIN
    return [
        _text(MARGIN, 16, title),
        _line(MARGIN, bottom, WIDTH - 2 * MARGIN, bottom, "black"),
        _line(MARGIN, MARGIN / 2, MARGIN, bottom, "black"),
    ]


def histograms(figures: Figures) -> str:
    """How the values of one row are spread, one curve above the other; from the least to what 99.5 % do not exceed."""
    named = {
        name.removeprefix(HISTOGRAM): figure for name, figure in figures.items() if name.startswith(HISTOGRAM)
    }
    if not named:
        return ""
    least = min(min(figure.values) for figure in named.values())
    most = max(sorted(figure.values)[int(0.995 * (len(figure.values) - 1))] for figure in named.values())
    width = (most - least) / BINS or 1.0
    parts, bottom = _axes(", ".join(named)), HEIGHT - MARGIN
    for number in range(0, BINS + 1, BINS // 4):
        x = MARGIN + number / BINS * (WIDTH - 3 * MARGIN)
        parts.append(_text(x, bottom + 16, f"{least + number * width:.4g}", "middle"))
    for place, ((name, figure), colour) in enumerate(zip(named.items(), COLOURS * len(named), strict=False)):
        counts = [0] * BINS
        for value in figure.values:
            if value <= most:
                counts[min(int((value - least) / width), BINS - 1)] += 1
        steps = [
            (MARGIN + bin_ / BINS * (WIDTH - 3 * MARGIN), bottom - count / max(counts) * (bottom - MARGIN))
            for bin_, count in enumerate(counts)
        ]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in steps)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(WIDTH - 3.4 * MARGIN, MARGIN + 14 * place, f"— {name}"))
        parts.append(
            _line(
                WIDTH - 3.4 * MARGIN,
                MARGIN + 14 * place - 4,
                WIDTH - 3.4 * MARGIN + 10,
                MARGIN + 14 * place - 4,
                colour,
            )
        )
    return _svg(WIDTH, HEIGHT, parts)
