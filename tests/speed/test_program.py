# SPDX-License-Identifier: Apache-2.0
"""What is printed, and what becomes of a way that cannot be had."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from vmq.errors import VmqError
from vmq.speed import program
from vmq.speed.program import BRIDGE, QUEUE, SHARED
from vmq.speed.trial import Trial

COST = {SHARED: 60.0, QUEUE: 30.0}


class Stand:
    """Measures what it is told to."""

    made: ClassVar[list[tuple[int, int]]] = []
    proved: ClassVar[list[tuple[int, int, str]]] = []

    def __init__(self, _: Path, size: int, guests: int, *, proof: bool = False) -> None:
        if not proof:
            assert {one[:2] for one in self.proved[-2:]} == {(size, guests)}, "first it is proved"
            self.made.append((size, guests))
        self.size, self.guests, self.way = size, guests, QUEUE

    def weigh(self, weight: int) -> None:
        self.way = QUEUE if weight else SHARED

    async def prove(self) -> None:
        self.proved.append((self.size, self.guests, self.way))

    async def measure(self, seconds: float) -> Trial:
        frames = (round(1_000_000 * seconds),) * self.guests
        return Trial(self.size, seconds, frames, COST[self.way] * sum(frames), 1.0, 2048, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    Stand.made, Stand.proved = [], []
    monkeypatch.setattr(program, "Stand", Stand)
    monkeypatch.setattr(program, "prepare", lambda: "engine on processor 1, guests on 0")


def bridge(found: Trial | None) -> Any:
    @contextlib.asynccontextmanager
    async def made(_size: int, _guests: int) -> AsyncIterator[Any]:
        if found is None:
            raise VmqError("unshare: no permission")

        async def measure(_: float) -> Trial:
            return found

        yield measure

    return made


def test_a_table_has_a_line_for_each_size_and_number_of_guests(capsys: pytest.CaptureFixture[str]) -> None:
    lines = program.run(1.0, False).splitlines()

    assert lines[0].split() == [
        "bytes",
        "guests",
        "Mframes/s",
        "Gbit/s",
        "ns",
        "a",
        "frame",
        "host",
        "CPU",
        "%",
        "p50",
        "µs",
        "p99",
        "µs",
    ]
    assert lines[1].split() == ["64", "1", "1.00", "0.51", "30.00", "3.00", "2.05", "-"]
    assert len(lines) == 1 + len(Stand.made) == 7
    assert capsys.readouterr().err.splitlines()[0] == "engine on processor 1, guests on 0"


def test_a_machine_that_is_too_noisy_has_a_range_and_no_median(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three short trials say whether one long one could be believed."""
    rates = itertools.cycle((1_000_000, 2_000_000, 500_000))

    async def measure(one: Stand, seconds: float) -> Trial:
        frames = round(next(rates) * seconds)
        return Trial(one.size, seconds, (frames,), 30.0 * frames, 1.0, 2048, None)

    monkeypatch.setattr(Stand, "measure", measure)
    assert "noisy: 0.50–2.00" in program.run(3.0, False).splitlines()[1]
    assert json.loads(program.run(3.0, True))["rows"][0]["ranges"]["frames_a_second"] == [500_000, 2_000_000]


def test_json_has_every_number() -> None:
    told = json.loads(program.run(1.0, True))
    assert [(row["bytes"], row["guests"]) for row in told["rows"]] == Stand.made
    assert told["rows"][0]["host_ns_a_frame"] == 30.0


def test_both_ways_are_proved() -> None:
    program.run(1.0, True)
    assert Stand.proved[:2] == [(64, 1, QUEUE), (64, 1, SHARED)]
    assert len(Stand.proved) == 2 * len(Stand.made)


def test_three_ways_are_compared_row_by_row(monkeypatch) -> None:
    monkeypatch.setattr(program, "_bridge", bridge(Trial(64, None, (10,), 3000.0)))

    out = program.with_without(0.1, False)

    assert (
        out.count("(a) bridge + TAP")
        == out.count("(b) default queue")
        == out.count("(c) a queue per VM")
        == 6
    )
    said = "host CPU a frame against (c): (a) 10.00 × (10.00–10.00), (b) 2.00 × (2.00–2.00)"
    assert f"64 bytes, 4 guests: {said}" in out
    assert next(line for line in out.splitlines() if "(a)" in line).split()[-6:] == [
        "300.00",
        "-",
        "-",
        "-",
        "-",
        "1.00",
    ]


def test_medians_stand_with_their_ranges_and_noise_has_no_verdict(monkeypatch) -> None:
    found = iter(
        [*[3000.0, 3300.0, 2700.0, 3000.0, 3000.0] * 2, *[3000.0, 9000.0, 1000.0, 3000.0, 3000.0] * 4]
    )

    @contextlib.asynccontextmanager
    async def made(_size: int, _guests: int) -> AsyncIterator[Any]:
        async def measure(_: float) -> Trial:
            return Trial(64, None, (10,), next(found))

        yield measure

    monkeypatch.setattr(program, "_bridge", made)

    out = program.with_without(0.1, False)

    assert out.count("300.00 (270.00–330.00)") == 2
    assert out.count("noisy: 100.00–900.00") == 4
    assert out.count("(a) 10.00 × (9.00–11.00)") == 2
    assert out.count("(a) too noisy to tell, (b) 2.00 ×") == 4


def test_without_a_namespace_the_bridge_is_left_out_and_why_is_said_once(
    monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "_bridge", bridge(None))

    out = program.with_without(0.1, True)

    assert {row["way"] for row in json.loads(out)["rows"]} == {SHARED, QUEUE}
    assert capsys.readouterr().err.count("(a) is left out: unshare: no permission") == 1
    assert BRIDGE not in out


def test_a_program_that_cannot_begin_says_its_last_words(monkeypatch) -> None:
    """Whatever refuses the namespace: unshare itself, or that it is missing."""

    async def one() -> None:
        async with program._bridge(64, 1):
            pass

    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(VmqError):
        asyncio.run(one())
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(VmqError, match="unshare: No such file"):
        asyncio.run(one())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts_and_everything_is_put_back(number: signal.Signals) -> None:
    put_back = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(20)
        finally:
            put_back.append(number)

    with pytest.raises(KeyboardInterrupt):
        program.complete(work())
    assert put_back == [number]
