# SPDX-License-Identifier: Apache-2.0
"""What was measured, in bench/results: a file a run, every value in it, kept after each row.

Rows of several runs make one page if they are of one machine and of one code: the same files of vmq/, of bench/ but
for those that only present (`PRESENTING`), and of what bench/ takes from tests/ (`LABS`). The commit alone would not say that: there may be changes beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.stats import Figure, Figures, Rows
from bench.systems import OVS
from vmq.topology import model

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "bench" / "results"
PRESENTING = (
    "__main__",
    "charts",
    "compare",
    "report",
    "results",
    "subject",
    "supervisor",
    "targets",
)
LABS = (ROOT / "tests" / "dpdk", ROOT / "tests" / "vm" / "lab", ROOT / "tests" / "engine")
PEERS = {
    "OVS": (OVS, r"Open vSwitch\) (\S+)"), "DPDK": (OVS, r"DPDK (\S+)"),
    "QEMU": ("qemu-system-x86_64", r"version (\S+)"), "iperf3": ("iperf3", r"iperf (\S+)"),
}  # fmt: skip
Machine = dict[str, Any]


def code() -> str:
    """What stands for all files that a figure depends on."""
    files = [*sorted((ROOT / "vmq").rglob("*.py")), *sorted((ROOT / "bench").glob("*.py"))]
    files += [file for folder in LABS for file in sorted(folder.rglob("*.py"))]
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

    changed = git("status", "--porcelain", "--", "vmq", "bench", *map(str, LABS))
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def told_version(program: str, pattern: str) -> str:
    """The version that a program tells of itself; "none" where it is not installed."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        return "none"
    found = re.search(pattern, done.stdout)
    return found[1] if found else "none"


def machine_id() -> str:
    """What stands for this machine and tells nobody which it is: machine-id(5) is to be kept to oneself."""
    place = Path("/etc/machine-id")
    whole = place.read_bytes() if place.exists() else platform.node().encode()
    return hashlib.sha256(b"vmq bench" + whole).hexdigest()[:8]


def fingerprint() -> Machine:
    """The machine and the versions that a figure belongs to."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    packages = {name: version(name) for name in ("numba", "llvmlite", "numpy")}
    return {
        "cpu": model(), "processors": os.cpu_count(),
        "memory": f"{memory / 2**30:.0f} GiB", "machine": machine_id(),
        "kernel": platform.release().partition("-")[0], "python": platform.python_version(),
        **packages, **{name: told_version(*how) for name, how in PEERS.items()}, "commit": commit(), "code": code(),
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
