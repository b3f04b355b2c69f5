# SPDX-License-Identifier: Apache-2.0
"""Where vmq keeps what is to outlive it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmq.kept import kept


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert kept("a.json") == Path("/var/lib/vmq/a.json")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    assert kept("a.json") == Path("/s/vmq/a.json")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert kept("a.json") == Path("/h/.local/state/vmq/a.json")
