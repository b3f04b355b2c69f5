# SPDX-License-Identifier: Apache-2.0
"""What becoming direct takes: memory that is really pinned, and frames of which none is missed."""

from __future__ import annotations

import pytest

from bench import placement
from bench.delivery import RefusedError
from vmq.guest.guest import Guest

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SIZES", (8 * placement.MIB,))


def test_registering_takes_time_and_memory_of_the_kernels() -> None:
    figures = placement.register(1)

    assert list(figures) == ["8 MiB: s", "8 MiB: MiB of the kernel's"]
    assert figures["8 MiB: s"].median > 0


def test_a_flow_goes_on_through_both_changes() -> None:
    figures = placement.change(1)

    names = ("while nothing changes", "direct to switched", "switched to direct")
    assert list(figures) == [
        "frames waited for the change, ms",
        *(f"longest journey, ms, {name}" for name in names),
        "frames that were overtaken",
    ]
    assert all(figures[name].median > 0 for name in list(figures)[:-1])


def test_frames_that_are_missing_are_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Guest.receive
    monkeypatch.setattr(placement, "PATIENCE", 0.5)
    monkeypatch.setattr(Guest, "receive", lambda self, *how: real(self, *how)[1:])
    with pytest.raises(RefusedError, match="frames did not arrive"):
        placement.changed()
