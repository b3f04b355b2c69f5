# SPDX-License-Identifier: Apache-2.0
"""A stand: every frame that the engine counts is one that a guest has, by either way; nothing outlives it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from vmq import daemon
from vmq.errors import VmqError
from vmq.guest.traffic import compile_kernels
from vmq.speed import stand
from vmq.speed.stand import DEFAULT, OWN, Stand, process_ns, processors
from vmq.speed.trial import Trial


def test_the_engine_has_a_processor_and_the_guests_the_others() -> None:
    cpu, others = processors()
    allowed = os.sched_getaffinity(0)

    assert {cpu, *others} == allowed
    assert cpu not in others or allowed == {cpu}


def test_time_on_processors_is_of_all_threads() -> None:
    before = process_ns(os.getpid())
    ended = time.thread_time_ns() + 50_000_000
    while time.thread_time_ns() < ended:
        pass
    assert process_ns(os.getpid()) - before > 40_000_000


async def both_ways(folder: Path) -> tuple[list[int], list[Trial]]:
    async with Stand(folder, 64, 2) as one:
        pids = [guest.process.pid for guest in one.guests]
        trials = []
        for weight in (OWN, DEFAULT):
            one.weigh(weight)
            trials.append(await one.measure(0.1))
            assert [vm.home.owns(vm) for vm in one.engine.vms.values()] == [weight == OWN] * 2
    return pids, trials


@pytest.mark.compiled
@pytest.mark.timeout(180)
def test_guests_get_what_the_engine_counts_with_and_without_queues_of_their_own(tmp_path) -> None:
    daemon.compile_kernels(compile_kernels)

    pids, trials = asyncio.run(both_ways(tmp_path))

    for trial in trials:
        assert min(trial.frames) > 0
        assert trial.host_ns > 0
        assert trial.guest_ns is not None
        assert trial.guest_ns > 0
        assert trial.p50_ns is not None
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.compiled
@pytest.mark.timeout(180)
def test_a_frame_that_no_guest_has_refuses_the_figures(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.compile_kernels(compile_kernels)
    monkeypatch.setattr(stand, "SETTLE_SECONDS", 0.5)

    async def one_too_many() -> None:
        async with Stand(tmp_path, 64, 1) as one:
            monkeypatch.setattr(one, "_frames", lambda: (1,))
            with pytest.raises(
                VmqError, match="guests got other frames than the engine counts: v0 0 and not 1"
            ):
                await one.settle()

    asyncio.run(one_too_many())


def test_a_guest_that_ends_early_is_said(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")

    with pytest.raises(VmqError, match="a built-in guest ended early"):
        asyncio.run(stand.Guest.start(tmp_path / "s", stand.mac(0), 0))
