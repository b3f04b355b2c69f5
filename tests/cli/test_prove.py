# SPDX-License-Identifier: Apache-2.0
"""`vmq doctor --prove`: asked once, waited for, and both ways printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vmq.cli import main, prove

VERDICT = {
    "answer": "not slower", "why": "own 40 ± 1 ns a frame, plain 60 ± 2: …", "own": 40.0, "plain": 60.0,
    "own_spread": 1.0, "plain_spread": 2.0, "ratio": 0.67, "pairs": 16, "slower_in": 0, "error": 1e-5,
}  # fmt: skip


class Engine:
    """Answers as an engine that measures."""

    def __init__(self, *proofs: dict[str, Any]) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._proofs = list(proofs)

    def ask(self, _api: str | None, method: str, **params: Any) -> dict[str, Any]:
        self.asked.append((method, params))
        return self._proofs.pop(0) if method == "proof" else {"status": "SUCCESS"}


def proof(**changes: Any) -> dict[str, Any]:
    return {
        "vm": "web",
        "running": False,
        "done": 32,
        "wanted": 32,
        "verdict": VERDICT,
        "wrong": "",
    } | changes


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    one = Engine(proof(running=True, done=3, verdict=None), proof())
    monkeypatch.setattr(prove, "ask_record", one.ask)
    monkeypatch.setattr(prove, "PAUSE", 0.0)
    return one


def test_both_ways_are_printed_with_what_follows(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--prove", "web"]) == 0
    assert engine.asked[0] == ("prove", {"vm": "web", "pairs": 16})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "vm web: its own receive queue is not slower than the default queue"
    assert lines[1].split()[:5] == ["its", "own", "receive", "queue", "40.0"]
    assert lines[1].count("█") * 3 == pytest.approx(lines[2].count("█") * 2, abs=3)
    assert lines[3].strip() == VERDICT["why"]


def test_json_is_the_engine_s_record(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--prove", "web", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == proof()
    assert len(engine.asked) == 3


@pytest.mark.parametrize("answer", ["slower", "cannot tell"])
def test_what_is_slower_or_cannot_be_told_is_an_exit_code(engine: Engine, answer: str) -> None:
    engine._proofs = [proof(verdict=VERDICT | {"answer": answer})]
    assert main(["doctor", "--prove", "web"]) == 1


def test_a_measurement_that_broke_off_says_why(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine._proofs = [proof(verdict=None, wrong="web went away in the middle")]
    assert main(["doctor", "--prove", "web"]) == 1
    assert "web: web went away in the middle" in capsys.readouterr().err


def test_an_engine_that_gets_nowhere_is_not_waited_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prove, "PATIENCE", 0.0)
    engine._proofs = [proof(running=True, done=3, verdict=None)] * 3
    assert main(["doctor", "--prove", "web"]) == 1
    assert "gets nowhere" in capsys.readouterr().err
