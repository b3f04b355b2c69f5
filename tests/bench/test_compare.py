# SPDX-License-Identifier: Apache-2.0
"""Two commits, in turn: what fails, what is only told, and what is skipped."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench import compare, subject
from bench.compare import HERE, ROOT, BrokenError, Side, SkippedError, judge, speed, take
from bench.stats import Figure


class Told:
    """A side that has its figures in a list; the last stands for all that follow."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def nanoseconds(self, _: str) -> float:
        return self.values.pop(0) if len(self.values) > 1 else self.values[0]


def test_speed_is_by_the_best_of_each() -> None:
    assert speed(Figure.of([40.0, 30.0]), Figure.of([60.0, 90.0])) == 0.5


@pytest.mark.parametrize(
    ("new", "slower", "lines"),
    [((60.0,), False, 1), ((51.0,), True, 2), ((51.0,) * 7 + (31.0,), False, 2)],
)
def test_only_what_is_much_slower_twice_fails(
    new: tuple[float, ...], slower: bool, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """30 ns before: 60 % of the speed is 50 ns; a second look decides."""
    old = 36.1 if new == (60.0,) else 30.0

    assert judge(Told(old), Told(*new), "row") is slower  # type: ignore[arg-type]

    assert len(capsys.readouterr().out.splitlines()) == lines


def test_a_commit_that_cannot_be_had_is_skipped_with_the_reason(
    monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", "no-such-commit", HERE])

    assert compare.main() == 0
    assert capsys.readouterr().out.startswith("nothing more is compared: no-such-commit cannot be had: ")


def test_an_engine_that_the_scripts_cannot_drive_is_skipped_with_the_reason(tmp_path, monkeypatch) -> None:
    """Its last words are the reason."""
    monkeypatch.setattr(subprocess, "Popen", _with("raise ImportError('no such name')"))

    with (
        Side("old", HERE, HERE, tmp_path) as side,
        pytest.raises(SkippedError, match="old: ImportError: no such name"),
    ):
        side.hear()


def test_a_newer_engine_that_ends_is_a_failure(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", _with("raise ValueError('a frame was lost')"))
    with (
        Side("new", HERE, HERE, tmp_path) as side,
        pytest.raises(BrokenError, match="new: ValueError: a frame was lost"),
    ):
        side.hear()


def test_a_side_that_falls_silent_is_not_waited_for_without_end(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compare, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(subprocess, "Popen", _with("import time; time.sleep(60)"))

    with Side("new", HERE, HERE, tmp_path) as side, pytest.raises(BrokenError, match="new: no answer in 0 s"):
        side.hear()


def test_the_comparison_fails_where_the_newer_engine_does(
    monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "sides", _broken)
    monkeypatch.setattr(sys, "argv", ["compare", HERE, HERE])
    assert compare.main() == 1
    assert capsys.readouterr().out.startswith("the newer engine fails: ")


def _broken(*_: str) -> None:
    raise BrokenError("new: it ended")


def test_a_side_answers_rows_one_by_one(tmp_path, monkeypatch) -> None:
    program = "import sys\nprint('ready', flush=True)\nfor line in sys.stdin: print(len(line), flush=True)"
    monkeypatch.setattr(subprocess, "Popen", _with(program))

    with Side("new", HERE, HERE, tmp_path) as side:
        assert side.hear() == "ready"
        assert side.nanoseconds("own-64-4") == 9.0


def _with(program: str):
    """Popen that runs this program in the place of the subject."""
    real = subprocess.Popen

    def start(argv, **options):
        assert argv[1:] == ["-m", "bench.subject"]
        return real([sys.executable, "-c", program], **options)

    return start


def test_files_of_a_commit_are_taken_whole(tmp_path) -> None:
    try:
        take("HEAD", tmp_path, "vmq")
    except SkippedError as reason:
        pytest.skip(f"no repository: {reason}")
    assert (tmp_path / "vmq" / "__init__.py").exists()
    assert [one.name for one in tmp_path.iterdir()] == ["vmq"]


def test_files_that_are_here_are_not_copied(tmp_path) -> None:
    take(HERE, tmp_path, "vmq", "bench")
    assert (tmp_path / "bench").resolve() == ROOT / "bench"


def test_rows_are_made_as_the_benchmarks_make_them() -> None:
    """The newer scripts drive the engine that stands beside them."""
    with subject.ROWS["own-64-4"]() as core:
        assert core.queues == 4
