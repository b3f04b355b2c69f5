# SPDX-License-Identifier: Apache-2.0
"""A stand: every frame that the engine counts is one that a guest has, by either way, as it was sent; nothing outlives it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmq import daemon
from vmq.errors import VmqError
from vmq.guest.traffic import compile_kernels
from vmq.speed import stand
from vmq.speed.stand import DEFAULT, OWN, Stand, frames_of, process_ns, processors, recording
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


@pytest.mark.parametrize("size", [64, 512, 1514, 9000])
def test_frames_lie_past_a_processors_own_caches_whatever_their_size(size: int) -> None:
    made = recording(size, 4)
    assert 8 << 20 <= made.block.nbytes <= 40 << 20
    assert len(made.rows) >= 4096


def test_every_guest_expects_the_frames_that_name_it_in_their_order() -> None:
    made = recording(9000, 4)
    expected = frames_of(9000, 4)

    assert sum(map(len, expected)) == len(made.rows)
    for number, frames in enumerate(expected):
        assert {frame[:6] for frame in frames} == {bytes.fromhex(stand.mac(number).replace(":", ""))}
        assert {len(frame) for frame in frames} == {9000}
        assert len({frame[6:12] for frame in frames}) == len(frames), "a flow each"


async def proved(folder: Path, weight: int) -> list[dict[str, int]]:
    async with Stand(folder, 9000, 2, proof=True) as one:
        one.weigh(weight)
        await one.prove()
        await one.prove()
        return [guest.counters for guest in one.guests]


@pytest.mark.compiled
@pytest.mark.timeout(180)
@pytest.mark.parametrize("weight", [OWN, DEFAULT])
def test_a_proof_compares_every_frame_of_a_lap(tmp_path, weight: int) -> None:
    daemon.compile_kernels(compile_kernels)

    counters = asyncio.run(proved(tmp_path, weight))

    laps = sum(told["verified"] for told in counters)
    assert laps >= 2 * len(recording(9000, 2).rows)
    assert laps == sum(told["frames"] for told in counters)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.compiled
@pytest.mark.timeout(180)
def test_a_proof_refuses_a_frame_with_another_byte(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What guests expect is made apart from what the engine plays."""
    daemon.compile_kernels(compile_kernels)
    expected = frames_of(64, 1)
    expected[0] = [expected[0][0], *(frame[:-1] + b"x" for frame in expected[0][1:])]
    monkeypatch.setattr(stand, "frames_of", lambda _size, _guests: expected)

    async def one_byte() -> None:
        async with Stand(tmp_path, 64, 1, proof=True) as one:
            with pytest.raises(VmqError, match=r"v0 got what it should not: \d+ wrong"):
                await one.prove()

    expected[0] = expected[0][:64]
    asyncio.run(one_byte())


@pytest.mark.parametrize("name", stand.FAULTS)
def test_what_a_guest_should_not_get_refuses_the_figures(name: str) -> None:
    """Even if as many frames arrived as were sent."""
    guest = stand.Guest(SimpleNamespace(returncode=0))  # type: ignore[arg-type]
    assert not guest.faults()
    guest.counters = {"frames": 7, name: 2}
    assert guest.faults() == f"2 {name}"
    one = object.__new__(Stand)
    one.engine, one.guests = SimpleNamespace(vms={"v0": None}), [guest]  # type: ignore[assignment]
    with pytest.raises(VmqError, match=f"v0 got what it should not: 2 {name}"):
        one._refuse_faults()


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
