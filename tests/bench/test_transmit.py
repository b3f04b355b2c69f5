# SPDX-License-Identifier: Apache-2.0
"""What sending takes by both ways: each frame goes out, and one that does not is no figure."""

from __future__ import annotations

import pytest

from bench import transmit
from bench.delivery import RefusedError

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transmit, "BATCHES", 3)


def test_both_ways_send_all_frames() -> None:
    figures = transmit.transmit(1514, 2)

    assert list(figures) == ["ns a frame of the kernel, copy", "ns a frame of the kernel, direct"]
    assert all(figure.median > 0 for figure in figures.values())


def test_frames_that_do_not_arrive_are_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = transmit.arrived
    told = iter(range(1000))
    monkeypatch.setattr(transmit, "arrived", lambda one: real(one) - next(told))
    with pytest.raises(RefusedError, match="of 192 frames arrived"):
        transmit.transmit(64, 1)
