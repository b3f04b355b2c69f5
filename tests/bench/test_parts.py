# SPDX-License-Identifier: Apache-2.0
"""Rows and parts by name; what the quick run measures."""

from __future__ import annotations

import pytest

from bench.parts import PARTS, chosen, rows
from bench.report import TABLES


def test_every_row_has_one_part_and_every_part_a_table() -> None:
    assert sum(len(part.rows) for part in PARTS) == len(rows())
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert {part.table for part in PARTS} <= set(TABLES)


def test_words_are_rows_parts_or_patterns() -> None:
    assert chosen([]) == list(rows())
    assert chosen(["idle", "cost", "idle"]) == [
        "idle",
        *next(part.rows for part in PARTS if part.name == "cost"),
    ]
    assert set(chosen(["64-4-*"])) >= {"64-4-built-in", "64-4-testpmd"}
    with pytest.raises(ValueError, match="no row 'nonsense': one of"):
        chosen(["nonsense"])


def test_the_quick_run_measures_rows_of_our_own_only() -> None:
    for part in PARTS:
        quick = part.quickly()
        assert set(quick) <= set(part.rows)
        assert not part.hugepages or not set(quick.values()) & set(part.rows.values())
    assert any(part.quickly() for part in PARTS)
