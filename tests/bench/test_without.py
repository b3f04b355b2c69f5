# SPDX-License-Identifier: Apache-2.0
"""With and without, as rows: every way's figures, and none without the bridge."""

from __future__ import annotations

from typing import Any

import pytest

from bench import stats, without
from bench.delivery import RefusedError
from bench.targets import load, of_row
from vmq.errors import VmqError
from vmq.speed import trial
from vmq.speed.program import BRIDGE, QUEUE, SHARED
from vmq.speed.trial import Trial


def told(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, list[Trial]], why: str = "", error: str = ""
) -> None:
    async def ways(*_: Any) -> tuple[dict[str, list[Trial]], str]:
        if error:
            raise VmqError(error)
        return found, why

    monkeypatch.setattr(without, "ways", ways)
    monkeypatch.setattr(without, "prepare", lambda: "")


def test_figures_are_by_way_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {BRIDGE: (2000.0, None), SHARED: (60.0, 10.0), QUEUE: (30.0, 10.0)}
    trials = {
        way: [Trial(64, guest and 1.0, (100,), 100 * cost, guest, 2.0, 4.0)]
        for way, (cost, guest) in costs.items()
    }
    told(monkeypatch, trials)

    figures = without.with_without(64, 1, 5)

    assert figures[f"host CPU ns a frame, {BRIDGE}"].median == 2000.0
    assert figures[f"host and guests' CPU ns a frame, {QUEUE}"].median == 30.1
    for what in ("guests' CPU ns a frame", "host and guests' CPU ns a frame", "million frames a second"):
        assert f"{what}, {BRIDGE}" not in figures
        assert f"{what}, {SHARED}" in figures
    assert figures[f"Jain's index, {QUEUE}"].median == 1.0
    judged = of_row(load(), "with-without-64-1", figures)
    assert [target.met(figures) for target in judged] == [True, True]


def test_users_and_this_bench_call_the_same_noisy() -> None:
    assert trial.NOISY == stats.NOISY


def test_what_cannot_be_measured_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, {}, why="no permission")
    with pytest.raises(RefusedError, match="no bridge: no permission"):
        without.with_without(64, 1, 5)
    told(monkeypatch, {}, error="a guest got nothing")
    with pytest.raises(RefusedError, match="a guest got nothing"):
        without.with_without(64, 1, 5)
