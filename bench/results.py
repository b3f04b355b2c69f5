# SPDX-License-Identifier: Apache-2.0
"""What was measured, in bench/results: a file a run, every value in it, kept after each row.

Rows of several runs make one page if they are of one machine and of one code: the same files of vmq/ and of bench/, but
for those that only present (`PRESENTING`). The commit alone would not say that: there may be changes beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.stats import Figure, Figures, Rows

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "bench" / "results"
PRESENTING = (
    "__main__",
    "charts",
    "compare",
    "parts",
    "report",
    "results",
    "run",
    "subject",
    "supervisor",
    "targets",
)
Machine = dict[str, Any]


def code() -> str:
    """What stands for all files that a figure depends on."""
    files = [*sorted((ROOT / "vmq").rglob("*.py")), *sorted((ROOT / "bench").glob("*.py"))]
    digest = hashlib.sha256()
    for file in files:
        if file.parent.name != "bench" or file.stem not in PRESENTING:
            digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:8]


def commit() -> str:
    """What git calls this checkout; with a + if files of it are not as committed."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "vmq", "bench")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def fingerprint() -> Machine:
    """The machine and the versions that a figure belongs to."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if "model name" in line]
    packages = {name: version(name) for name in ("numba", "llvmlite", "numpy")}
    return {
        "cpu": models[0] if models else platform.machine(), "processors": os.cpu_count(),
        "kernel": platform.release().partition("-")[0], "python": platform.python_version(),
        **packages, "commit": commit(), "code": code(),
    }  # fmt: skip


class Results:
    """The file of this run, and what is known from runs before."""

    def __init__(self, about: Machine, folder: Path = FOLDER) -> None:
        self.about, self.folder = about, folder
        now = f"{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**9:09}"
        self.file = folder / f"{about['commit'].rstrip('+')}-{now}.json"
        self.rows: dict[str, Figures] = {}

    def known(self) -> dict[str, Figures]:
        """Rows of this code on this machine, the latest of each."""
        found: dict[str, Figures] = {}
        for file in sorted(self.folder.glob("*.json"), key=lambda one: one.stat().st_mtime):
            told = json.loads(file.read_text())
            if "rows" in told and _same(told["machine"], self.about):
                for name, figures in told["rows"].items():
                    found[name] = {part: Figure.of(values) for part, values in figures.items()}
        return found | self.rows

    def keep(self, name: str, figures: Figures) -> None:
        """One more row; the file is whole at any time."""
        self.rows[name] = figures
        self.folder.mkdir(exist_ok=True)
        (self.folder / ".gitignore").write_text("*\n")
        whole = self.file.with_suffix(".new")
        whole.write_text(as_json(self.rows, self.about))
        whole.rename(self.file)


def _same(one: Machine, other: Machine) -> bool:
    return {**one, "commit": ""} == {**other, "commit": ""}


def as_json(rows: Rows, about: Machine) -> str:
    """Everything, with every run."""
    plain = {
        name: {part: list(figure.values) for part, figure in figures.items()}
        for name, figures in rows.items()
    }
    return json.dumps({"machine": about, "rows": plain}, indent=2)
