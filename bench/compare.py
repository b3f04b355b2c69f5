# SPDX-License-Identifier: Apache-2.0
"""python -m bench.compare OLD NEW: has the engine become slower? Two commits, the newer scripts, in turn.

    old/  vmq of OLD, bench and tests of NEW  ─► subject.py ─┐
    new/  vmq of NEW, bench and tests of NEW  ─► subject.py ─┴─► A B A B …, 7 times each row

NEW may be `.`: the files as they are here. It informs: the exit code is 1 only if the best of 7 is below 0.6 of what
it was before, twice. A commit that cannot be had, and an OLD that does not build or cannot be driven by the newer scripts, are
skipped with the reason, and the exit code is 0. A NEW whose engine ends or says nothing any more is a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

from bench.stats import Figure

ROOT = Path(__file__).parents[1]
RUNS, BAR = 7, 0.6
PATIENCE_SECONDS = 600.0  # for an answer; the first comes when everything is compiled
SCRIPTS = ("bench", "tests")
HERE = "."


class SkippedError(Exception):
    """Why there is nothing to compare."""


class BrokenError(Exception):
    """What the newer engine died of."""


def take(commit: str, folder: Path, *names: str) -> None:
    """Files of a commit, or those that are here."""
    if commit == HERE:
        for name in names:
            (folder / name).symlink_to(ROOT / name)
        return
    packed = folder / "files.tar"
    command = ["git", "-C", str(ROOT), "archive", f"--output={packed}", commit, "--", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SkippedError(f"{commit} cannot be had: {done.stderr.strip()}")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    packed.unlink()


class Side:
    """One commit's engine, driven by the newer scripts."""

    def __init__(self, name: str, commit: str, scripts: str, place: Path) -> None:
        self.name, self.folder = name, place / name
        self.folder.mkdir()
        take(commit, self.folder, "vmq")
        take(scripts, self.folder, *SCRIPTS)
        environment = os.environ | {"VMQ_CACHE_DIR": str(place / "cache"), "PYTHONPATH": str(self.folder)}
        self._log = place / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.subject"],
                cwd=self.folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _pipe(self, one: IO[str] | None) -> IO[str]:
        assert one is not None
        return one

    def hear(self) -> str:
        """Its next line; if there is none, its last words: SkippedError of the old, BrokenError of the new."""
        pipe = self._pipe(self._process.stdout)
        heard, _, _ = select.select(
            [pipe], [], [], PATIENCE_SECONDS
        )  # it answers by single lines: none is buffered
        if heard and (line := pipe.readline().strip()):
            return line
        said = self._log.read_text(errors="replace").strip().splitlines()
        why = (said[-1] if said else "it ended") if heard else f"no answer in {PATIENCE_SECONDS:g} s"
        raise (SkippedError if self.name == "old" else BrokenError)(f"{self.name}: {why}")

    def nanoseconds(self, row: str) -> float:
        """ns a frame, once."""
        pipe = self._pipe(self._process.stdin)
        with contextlib.suppress(BrokenPipeError):  # then it has ended, and `hear` says why
            pipe.write(f"{row}\n")
            pipe.flush()
        return float(self.hear())


@contextlib.contextmanager
def sides(old: str, new: str) -> Iterator[tuple[Side, Side]]:
    """Both, ready to be asked. They compile at the same time."""
    with tempfile.TemporaryDirectory(prefix="vmq-bench-compare-") as name, contextlib.ExitStack() as stack:
        made = [stack.enter_context(Side(*which, new, Path(name))) for which in (("old", old), ("new", new))]
        for side in made:
            side.hear()
        yield made[0], made[1]


def measure(old: Side, new: Side, row: str, runs: int = RUNS) -> tuple[Figure, Figure]:
    """Figures of both, in turn."""
    pairs = [(old.nanoseconds(row), new.nanoseconds(row)) for _ in range(runs)]
    return Figure.of([one for one, _ in pairs]), Figure.of([one for _, one in pairs])


def speed(old: Figure, new: Figure) -> float:
    """How many times as fast the best of the new is as the best of the old."""
    return min(old.values) / min(new.values)


def judge(old: Side, new: Side, row: str) -> bool:
    """Print the ratio of a row; whether it is below the bar, twice."""
    for attempt in range(2):
        before, after = measure(old, new, row)
        value = speed(before, after)
        low = value < BAR
        note = f"  below {BAR}" + (": measured again" if not attempt else "") if low else ""
        print(f"{row:<12} {before.text(1):>24} {after.text(1):>24} {value:>5.2f} ×{note}", flush=True)
        if not low:
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description="Whether the engine has become slower."
    )
    parser.add_argument("old", metavar="OLD", help="a commit")
    parser.add_argument("new", metavar="NEW", help="a commit, or . for the files that are here")
    options = parser.parse_args()
    slower: list[str] = []  # those found before the old one gave up count, too
    try:
        from bench.subject import ROWS

        with sides(options.old, options.new) as (old, new):
            print(f"{'row':<12} {'ns a frame, old':>24} {'new':>24} {'speed':>7}")
            for row in ROWS:
                slower += [row] if judge(old, new, row) else []
    except SkippedError as reason:
        print(f"nothing more is compared: {reason}")
    except BrokenError as reason:
        print(f"the newer engine fails: {reason}")
        return 1
    if slower:
        print(f"slower than {BAR} of before, twice: {', '.join(slower)}")
    return int(bool(slower))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # as an interrupt: both sides end
    sys.exit(main())
