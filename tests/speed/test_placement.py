# SPDX-License-Identifier: Apache-2.0
"""`vmq bench --placement`: rounds that are given, and the whole command as root; what it prints, keeps and refuses."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import msgspec
import pytest

from tests.direct.test_costs import steady
from vmq.cli.client import ask
from vmq.direct.costs import Cost, Spent
from vmq.direct.figures import Figures
from vmq.errors import HostError, VmqError
from vmq.speed import placed, placement
from vmq.speed.placed import PLACEMENTS, Took


def given(*gains: float) -> Figures:
    return Figures.of(tuple(steady(*gains)))


def told(figures: Figures) -> str:
    return placement.report(placement.record(figures) | {"file": "/f"})


def test_the_table_has_both_placements_of_each_length_and_the_verdict() -> None:
    text = told(given(-100, -50, -10, 30))
    lines = text.splitlines()
    assert [line.split()[:2] for line in lines[1:9]] == [
        [str(length), one] for length in placement.LENGTHS for one in PLACEMENTS
    ]
    assert lines[8].endswith("30 (30 to 30)")
    assert "pays from 1210 on, measured here on" in text
    assert "equal at 1146 bytes; a VM is switched again at 1082" in text
    assert text.endswith("kept in /f")


def test_never_and_always_have_no_length() -> None:
    never, always = given(-1, -1, -1, -1), given(1, 1, 1, 1)
    assert "pays for no length" in told(never)
    assert "pays for all lengths" in told(always)
    assert "switched again" not in told(never) + told(always)
    assert [placement.record(one)["direct_from"] for one in (never, always)] == [None, 0]
    assert [placement.record(one)["equal_at"] for one in (never, always)] == [None, 0]
    json.dumps(placement.record(never), allow_nan=False)


def test_rounds_go_through_all_lengths_and_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def a_round(size: int) -> dict[str, Took]:
        asked.append(size)
        return {"switched": Took(100.0, size / 10), "direct": Took(200.0, 30.0 + len(asked))}

    costs = placement.measure(SimpleNamespace(round=a_round), 0.0)  # type: ignore[arg-type]
    assert asked == [*placement.LENGTHS] * 3
    assert costs[0] == Cost(64, Spent((100.0,) * 3, (6.4,) * 3), Spent((200.0,) * 3, (31.0, 35.0, 39.0)))


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot be written"):
        placement.store(given(1, 1, 1, 1), tmp_path / "file" / "placement.json")


class Stood:
    """A stand whose figures are given."""

    served = SimpleNamespace(cpu=1, other=0)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def check(self) -> None:
        pass


def test_figures_that_nobody_would_believe_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "Stand", Stood)
    monkeypatch.setattr(placement, "measure", lambda *_: steady(-1000, 1, 1, 1))
    path = tmp_path / "placement.json"
    with pytest.raises(
        VmqError, match="nothing is written: it says that a switched frame of 64 bytes takes no time"
    ):
        placement.run(ask, 0.0, str(path), as_json=False)
    assert not path.exists()


@pytest.mark.root
@pytest.mark.compiled
@pytest.mark.timeout(180)
def test_the_whole_command_measures_prints_and_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame is compared by the stand. What comes out of so few is not judged."""
    monkeypatch.setattr(placed, "BURSTS", 1)
    monkeypatch.setattr(placement, "doubts", lambda _: "")
    path, before = tmp_path / "state" / "placement.json", signal.getsignal(signal.SIGTERM)

    told = json.loads(placement.run(ask, 0.01, str(path), as_json=True))

    assert signal.getsignal(signal.SIGTERM) is before
    assert [(row["bytes"], row["placement"]) for row in told["rows"]] == [
        (length, one) for length in placement.LENGTHS for one in PLACEMENTS
    ]
    assert set(told["rows"][0]) == {"bytes", "placement", "kernel_ns", "engine_ns", "total_ns", "middle_half"}
    assert told["file"] == str(path)
    kept = json.loads(path.read_text())
    assert [len(cost["direct"]["kernel"]) for cost in kept["costs"]] == [3] * len(placement.LENGTHS)
    assert path.stat().st_mode & 0o077 == 0
    assert told["verdict"] == msgspec.convert(kept, Figures).band().words()
