# SPDX-License-Identifier: Apache-2.0
"""What placed frames cost: a run has all parts, and one whose frames are lost has none."""

from __future__ import annotations

import pytest

from bench import direct as direct_
from bench.delivery import RefusedError
from vmq.speed import placed
from vmq.speed.wire import Wire

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placed, "BURSTS", 2)


def test_both_placements_have_all_parts() -> None:
    figures = direct_.direct(1514, 1)

    assert set(figures) == {
        f"ns a frame, {one}: {part}" for one in placed.PLACEMENTS for part in ("kernel", "engine", "in all")
    }


def test_frames_that_do_not_arrive_are_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placed, "ARRIVE_SECONDS", 0.2)
    real = Wire.send
    less = placed.SHORTER - 1
    monkeypatch.setattr(
        Wire, "send", lambda self, data, count: real(self, data, less if count == placed.SHORTER else count)
    )
    with pytest.raises(RefusedError, match=f"some of {placed.SHORTER} frames are lost"):
        direct_.placed(64)
