# SPDX-License-Identifier: Apache-2.0
"""Rows in columns, as literal text."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from vmq.table import cell, table, wants_colour

ROWS: list[dict[str, Any]] = [
    {
        "name": "web",
        "state": "running",
        "frames": 1234567,
        "drops": {"no_buffer": 2, "spoofed": 30, "runt": 0},
    },
    {"name": "database", "state": "faulted", "frames": None, "drops": {}},
]


def test_a_table_is_aligned_and_its_last_column_is_not_padded() -> None:
    """Numbers to the right, texts to the left, no blanks at the end of a line."""
    assert table(
        ROWS, ["name", "state", "frames", "drops"], lambda row: ["a note"] * (row["name"] == "web")
    ) == (
        "name      state     frames  drops\n"
        "web       running  1234567  spoofed 30, no_buffer 2\n"
        "    a note\n"
        "database  faulted        -  -"
    )


def test_colour_is_for_the_state_alone_and_moves_nothing() -> None:
    """The same columns with and without."""
    painted = table(ROWS, ["name", "state", "frames"], colour=True)

    assert "web       \x1b[32mrunning\x1b[0m  1234567" in painted
    assert "database  \x1b[31mfaulted\x1b[0m        -" in painted
    assert (
        table([{"name": "x", "state": "other"}], ["name", "state"], colour=True) == "name  state\nx     other"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        (0, "0"),
        (True, "yes"),
        (False, "no"),
        (0.125, "0.12"),
        (["a", "b"], "a,b"),
        ([1, 2], "1,2"),
        ({"b": 1, "a": 1, "c": 5, "none": 0}, "c 5, a 1, b 1"),
        ({"none": 0}, "-"),
        ("evil\x1b[2J\ntext", "evil?[2J?text"),
    ],
)
def test_cells_are_short_and_leave_the_terminal_alone(value: object, text: str) -> None:
    """A text may quote a guest."""
    assert cell(value) == text


@pytest.mark.parametrize(
    ("tty", "env", "colour"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colour_needs_a_terminal_that_wants_it(
    monkeypatch, tty: bool, env: dict[str, str], colour: bool
) -> None:
    """https://no-color.org: set and not empty."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty, raising=False)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    assert wants_colour() is colour
