# SPDX-License-Identifier: Apache-2.0
"""vmq bench hands over to what measures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import vmq.speed
from vmq.cli.client import ask


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []

    def stand_in(name: str) -> Any:
        def run(*given: Any) -> str:
            found.append((name, *given))
            return "a table"

        return run

    program = SimpleNamespace(run=stand_in("run"), with_without=stand_in("with_without"))
    monkeypatch.setattr(vmq.speed, "program", program, raising=False)
    placing = SimpleNamespace(run=stand_in("placement"))
    monkeypatch.setattr(vmq.speed, "placement", placing, raising=False)
    return found


def test_it_is_told_how_long_and_how_to_print(vmq, calls) -> None:
    assert vmq("bench") == (0, "a table\n", "")
    assert vmq("bench", "--seconds", "0.5", "--json")[0] == 0
    assert calls == [("run", 1.0, False), ("run", 0.5, True)]


def test_with_and_without_has_many_rounds_so_each_is_shorter(vmq, calls) -> None:
    assert vmq("bench", "--with-without") == (0, "a table\n", "")
    assert calls == [("with_without", 0.5, False)]


def test_placement_is_told_whom_to_ask_and_where_to_keep_it(vmq, calls) -> None:
    assert vmq("bench", "--placement") == (0, "a table\n", "")
    assert vmq("bench", "--placement", "--seconds", "2", "--output", "f", "-j")[0] == 0
    assert calls == [("placement", ask, 4.0, None, False), ("placement", ask, 8.0, "f", True)]


def test_no_time_at_all_is_refused(vmq, calls) -> None:
    code, _, error = vmq("bench", "--seconds", "0")
    assert code == 2
    assert "0 is not a time" in error
    assert calls == []
