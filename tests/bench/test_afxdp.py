# SPDX-License-Identifier: Apache-2.0
"""Frames of a NIC beside DPDK's AF_XDP driver: each system delivers, and vmq places them as it was told to."""

from __future__ import annotations

import pytest

from bench import afxdp
from bench.delivery import RefusedError
from vmq.speed.wire import Wire

pytestmark = [pytest.mark.root, pytest.mark.dpdk]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afxdp, "WARM_SECONDS", 0.1)
    monkeypatch.setattr(afxdp, "MEASURED_SECONDS", 0.2)


@pytest.mark.parametrize("name", afxdp.SYSTEMS)
def test_every_system_delivers(name: str) -> None:
    assert afxdp.once(name, 1514) > 0


def test_frames_that_another_placed_are_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(afxdp.SYSTEMS, "vmq, switched", afxdp.SYSTEMS["vmq"])
    with pytest.raises(RefusedError, match="the kernel placed"):
        afxdp.once("vmq, switched", 64)


def test_frames_that_do_not_arrive_whole_are_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Wire.send
    monkeypatch.setattr(afxdp, "PATIENCE", 0.5)
    monkeypatch.setattr(Wire, "send", lambda self, data, count: real(self, data, count - 1))
    with pytest.raises(RefusedError, match="63 of 64"):
        afxdp.once("vmq, switched", 64)
