# SPDX-License-Identifier: Apache-2.0
"""Rows in columns: plain text, aligned, for eyes, grep and awk.

The header has the words of the JSON. A column of numbers is aligned to the right. The last column is not
padded. Below a row, indented, stand its notes: what does not fit into a column and should not be overlooked.

Texts come from an engine that may quote a guest: what is not printable becomes a question mark, so that
nobody's terminal is steered. Colour is for states only, and only on a terminal that wants it
(https://no-color.org).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
COLOURS = {"running": "32", "faulted": "31", "listening": "33", "connecting": "33", "connected": "33"}


def cell(value: object) -> str:
    """A value of the API as the text of a cell."""
    if value is None or value in ([], {}, ""):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, Mapping):
        named = sorted(value.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{plain(name)} {count}" for name, count in named if count) or "-"
    if isinstance(value, list):
        return ",".join(cell(entry) for entry in value)
    return plain(str(value))


def plain(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def table(
    rows: Sequence[Row],
    columns: Sequence[str],
    notes: Callable[[Row], Sequence[str]] = lambda _: (),
    *,
    colour: bool = False,
) -> str:
    """The rows as text, without a line break at the end."""
    cells = [[cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    numbers = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in columns]
    lines = [_line(columns, widths, numbers)]
    for row, texts in zip(rows, cells, strict=True):
        line = _line(texts, widths, numbers)
        lines.append(_paint(line, str(row.get("state"))) if colour else line)
        lines += [f"    {plain(note)}" for note in notes(row)]
    return "\n".join(lines)


def wants_colour() -> bool:
    """Whether stdout is a terminal that is not asked to stay plain."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _line(texts: Sequence[str], widths: Sequence[int], numbers: Sequence[bool]) -> str:
    padded = [
        text.rjust(width) if number else text.ljust(width)
        for text, width, number in zip(texts, widths, numbers, strict=True)
    ]
    return "  ".join(padded).rstrip()


def _paint(line: str, state: str) -> str:
    """The state, the first time it stands in the line as a word of its own, in its colour."""
    if state not in COLOURS:
        return line
    return line.replace(f" {state}", f" \x1b[{COLOURS[state]}m{state}\x1b[0m", 1)
