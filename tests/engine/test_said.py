# SPDX-License-Identifier: Apache-2.0
"""What is said of one VM port."""

from __future__ import annotations

import pytest

from vmq.engine.said import LINES_MAX, SILENCE_SECONDS, Said


def test_a_line_is_said_once_a_minute_and_not_too_many(monkeypatch: pytest.MonkeyPatch):
    """O5: an attacker cannot fill the log."""
    now = [1000.0]
    monkeypatch.setattr("vmq.engine.said.time.monotonic", lambda: now[0])
    said = Said()
    assert [said.fresh("a"), said.fresh("b"), said.fresh("a"), said.fresh("b")] == [True, True, False, False]
    assert sum(said.fresh(f"request {number}") for number in range(1000)) == LINES_MAX - 2
    now[0] += SILENCE_SECONDS + 1
    assert said.fresh("a")
