# SPDX-License-Identifier: Apache-2.0
"""What placed frames cost: that what is measured took the way that was asked for, and arrived whole."""

from __future__ import annotations

import pytest

from bench import direct as direct_
from bench.delivery import RefusedError

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_, "BURSTS", 4)


def test_both_placements_have_a_cost_and_the_generators_is_taken_off() -> None:
    figures = direct_.direct(1514, 1)

    assert list(figures) == [
        "ns a frame, generator",
        *(
            f"ns a frame, {one}: {part}"
            for one in direct_.PLACEMENTS
            for part in ("kernel", "engine", "in all")
        ),
    ]
    for name in (
        "generator",
        "switched: engine",
        "direct: engine",
    ):  # the others are differences of noisy times
        assert figures[f"ns a frame, {name}"].median > 0


def test_frames_that_do_not_arrive_are_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_, "PATIENCE", 0.5)
    real = direct_.Wire.send
    monkeypatch.setattr(direct_.Wire, "send", lambda self, data, count: real(self, data, count - 1))
    with pytest.raises(RefusedError, match="799 of 800"):
        direct_.placed(64, "switched")
