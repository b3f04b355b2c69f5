# SPDX-License-Identifier: Apache-2.0
"""Parts of one whole as a bar, SVG: as long as what each takes, in their order, with its number below."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

from bench.stats import Figure

PART = "of which "  # what the name of a figure begins with that is a part
WIDTH, BAR, LINE, LEFT = 720, 44, 20, 12
COLOURS = ("#2b6cb0", "#2f855a", "#718096", "#b7791f", "#c53030", "#6b46c1", "#a0aec0")


def stacked(figures: Mapping[str, Figure]) -> str:
    """The parts, or nothing where the figures have none."""
    parts = {
        name.removeprefix(PART): max(one.median, 0.0)
        for name, one in figures.items()
        if name.startswith(PART)
    }
    total = sum(parts.values())
    if not total:
        return ""
    height = BAR + LINE * (len(parts) + 1) + 2 * LEFT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    x = float(LEFT)
    for number, (name, value) in enumerate(parts.items()):
        width, colour = value / total * (WIDTH - 2 * LEFT), COLOURS[number % len(COLOURS)]
        y = BAR + LEFT + LINE * (number + 1)
        lines += [
            f'<rect x="{x:.1f}" y="{LEFT}" width="{width:.1f}" height="{BAR}" fill="{colour}" stroke="white"/>',
            f'<rect x="{LEFT}" y="{y - 10}" width="12" height="12" fill="{colour}"/>',
            f'<text x="{LEFT + 20}" y="{y}">{escape(name)}: {value:.1f} ns, {value / total:.0%}</text>',
        ]
        x += width
    lines.append(
        f'<text x="{LEFT}" y="{height - 6}" font-weight="bold">together {total:.1f} ns a frame</text>'
    )
    return "\n".join([*lines, "</svg>"]) + "\n"
