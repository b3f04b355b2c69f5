# SPDX-License-Identifier: Apache-2.0
"""The run: what is known is not measured again, what is refused does not stop the others, noise is tried again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import parts, quiet, report, results, run
from bench.delivery import RefusedError
from bench.stats import HISTOGRAM, Figure, Figures
from tests.dpdk.hugepages import NoHugepagesError
from tests.engine.running import until

QUIET, NOISY = Figure.of([5.0, 5.1]), Figure.of([1.0, 9.0])


class Bench:
    """A page, a folder of results, and rows that are told what to find."""

    def __init__(self, folder: Path) -> None:
        self.page = folder / "page.md"
        self.page.write_text("\n".join(report.marks("part")))
        self.found: dict[str, list[Figures | Exception]] = {}

    def row(self, name: str, *found: Figures | Exception) -> Callable[[int], Figures]:
        self.found[name] = list(found)

        def measure(_: int) -> Figures:
            one = self.found[name].pop(0)
            if isinstance(one, Exception):
                raise one
            return one

        return measure

    def part(self, **rows: list[Figures | Exception]) -> parts.Part:
        return parts.Part("part", {name: self.row(name, *found) for name, found in rows.items()}, "cost")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    one = Bench(tmp_path)
    monkeypatch.setattr(results.Results.__init__, "__defaults__", (tmp_path / "results",))
    monkeypatch.setattr(report.write, "__defaults__", (one.page,))
    monkeypatch.setattr(quiet, "wait", lambda: 0.0)
    monkeypatch.setattr(run, "fingerprint", lambda: {"cpu": "x", "commit": "a", "code": "b"})
    return one


def test_rows_of_several_runs_make_the_page(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run measures what is missing; the page is written when nothing is."""
    one = bench.part(first=[{"a": QUIET}], second=[RefusedError("lost"), {"b": QUIET}])
    monkeypatch.setattr(parts, "PARTS", (one,))

    assert run.full([], fresh=False) == 1
    assert "5.05" not in bench.page.read_text()
    assert run.full([], fresh=False) == 0
    assert "| first | a | 5.0 (5.0–5.1)" in bench.page.read_text()
    assert "| second | b |" in bench.page.read_text()
    assert bench.found == {"first": [], "second": []}


def test_fresh_measures_what_is_named_anew(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench.part(first=[{"a": QUIET}, {"a": Figure.of([7.0])}], second=[{"b": QUIET}])
    monkeypatch.setattr(parts, "PARTS", (one,))

    assert run.full([], fresh=False) == 0
    assert run.full(["first"], fresh=True) == 0
    assert "| first | a | 7.0" in bench.page.read_text()


def test_a_row_that_is_refused_anew_does_not_get_its_old_figure(
    bench, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = bench.part(
        first=[{"a": QUIET}, RefusedError("lost")], second=[{"b": QUIET}, {"b": Figure.of([7.0])}]
    )
    monkeypatch.setattr(parts, "PARTS", (one,))
    assert run.full([], fresh=False) == 0
    capsys.readouterr()

    assert run.full([], fresh=True) == 1

    said = capsys.readouterr().err
    assert "| second | b | 7.0" in said
    assert "| first | a |" not in said
    assert "not written to the page, as these rows are missing: first" in said


def test_a_noisy_row_is_measured_again_and_the_quietest_attempt_is_kept(bench) -> None:
    worse = Figure.of([1.0, 2.0, 99.0])

    def whole(figures: Figures) -> list[Figure]:
        return list(figures.values())

    assert run.attempts("x", bench.row("x", {"a": NOISY}, {"a": QUIET}), whole) == {"a": QUIET}
    assert run.attempts("x", bench.row("x", {"a": worse}, {"a": NOISY}, {"a": worse}), whole) == {"a": NOISY}
    assert run.attempts("x", bench.row("x", {"a": NOISY}), lambda _: []) == {"a": NOISY}


def test_noise_matters_where_something_is_judged() -> None:
    """Every figure of a cost but its drawings; of others those that a target names."""
    idle = {"% of a processor, four silent VMs": QUIET, "another": NOISY}

    assert run.judged("filters")({"1 plain": QUIET, "16 plain": NOISY, HISTOGRAM + "all": NOISY}) == [
        QUIET,
        NOISY,
    ]
    assert run.judged("idle")(idle) == [QUIET]
    assert run.judged("memory")({"MiB": NOISY}) == []


def test_a_row_that_fails_takes_no_other_with_it(
    bench, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its fault is; without hugepages, only those that need them have no figure."""

    def none(_: int) -> None:
        raise NoHugepagesError("they cannot be had")

    fails = bench.part(first=[RuntimeError("a peer went away")], second=[{"b": QUIET}])
    huge = parts.Part("huge", {"third": bench.row("third")}, "peers", hugepages=True)
    monkeypatch.setattr(parts, "PARTS", (fails, huge))
    monkeypatch.setattr(run, "hugepages", none)

    assert run.full([], fresh=False) == 1

    said = capsys.readouterr().err
    assert "RuntimeError: a peer went away" in said
    assert "no figure: third: they cannot be had" in said
    assert "| second | b | 5.0" in said


def test_an_unknown_row_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["nonsense"])
    assert ended.value.code == 2
    assert "no row 'nonsense'" in capsys.readouterr().err


@pytest.mark.compiled
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_the_middle_leaves_nothing(number: signal.Signals) -> None:
    """A real engine with real guests, supervised."""
    folder = Path(tempfile.mkdtemp(prefix="vmq-"))  # a short one: sockets lie below
    environment = os.environ | {"TMPDIR": str(folder), "VMQ_TEST_MARK": f"{os.getpid()}-bench"}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "--quick", "64-4-built-in"], env=environment, cwd=results.ROOT,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def ours(word: bytes = b"") -> list[Path]:
        return [place for place in Path("/proc").glob("[0-9]*") if _is(place, word)]

    def _is(place: Path, word: bytes) -> bool:
        try:
            marked = f"VMQ_TEST_MARK={os.getpid()}-bench".encode() in (place / "environ").read_bytes()
            return marked and word in (place / "cmdline").read_bytes()
        except OSError:
            return False

    until(lambda: ours(b"vmq.guest") or process.poll() is not None, "guests have been started", 100)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 128 + number, said
    assert ours() == []
    folder.rmdir()
