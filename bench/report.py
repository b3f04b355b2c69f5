# SPDX-License-Identifier: Apache-2.0
"""What a run found, as tables and bars of docs/measurements.md between its marks, and as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.stats import Figure, ratio

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "measurements.md"
# of the page: each between two marks, and replaced when all of its rows were measured
PARTS = ("delivery", "engine", "cost", "contract")
BAR_WIDTH, BAR_HEIGHT, LABEL_WIDTH = 360, 18, 230

Rows = Mapping[str, Mapping[str, Figure]]


def fingerprint() -> dict[str, Any]:
    """The machine and the versions that a figure belongs to."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    packages = {name: version(name) for name in ("numba", "llvmlite", "numpy")}
    return {
        "cpu": model, "processors": os.cpu_count(), "kernel": platform.release().partition("-")[0], "python": platform.python_version(),
        "commit": commit, **packages,
    }  # fmt: skip


def delivery_table(rows: Rows) -> str:
    """Million frames a second, a line a set-up, and ours as a multiple of each peer's."""
    peers = ("net_vhost", "ovs")
    lines = [
        "| frames, guests | vmq | net_vhost | OVS-DPDK | vmq / net_vhost | vmq / OVS-DPDK |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in rows.items():
        cells = [figures[one].text() if one in figures else "-" for one in ("vmq", *peers)]
        times = [ratio(figures["vmq"], figures[one]) if one in figures else None for one in peers]
        noisy = " (noisy)" if any(figure.noisy for figure in figures.values()) else ""
        lines.append(f"| {name}{noisy} | {' | '.join(cells)} | {' | '.join(_times(one) for one in times)} |")
    return "\n".join(lines)


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ×"


def engine_table(rows: Rows) -> str:
    """Figures of the engine alone."""
    lines = ["| what | figure |", "|---|---|"]
    lines += [
        f"| {name}: {part} | {figure.text()} |"
        for name, parts in rows.items()
        for part, figure in parts.items()
    ]
    return "\n".join(lines)


def cost_table(rows: Rows) -> str:
    """ns a frame, and each line as a multiple of the first of its row."""
    lines = ["| row | with | ns a frame | against the first |", "|---|---|---|---|"]
    for name, parts in rows.items():
        first, *_ = parts.values()
        for part, figure in parts.items():
            times = ratio(figure, first)
            against = "-" if figure is first or times is None else f"{100 * (times - 1):+.0f} %"
            lines.append(f"| {name} | {part} | {figure.text(1)} | {against} |")
    return "\n".join(lines)


def bars(rows: Rows) -> str:
    """The delivery figures as bars, SVG."""
    entries = [
        (f"{name}: {system}", figure.median)
        for name, figures in rows.items()
        for system, figure in figures.items()
    ]
    longest = max((value for _, value in entries), default=1.0)
    height = BAR_HEIGHT * len(entries) + 8
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL_WIDTH + BAR_WIDTH + 60}" height="{height}" '
            'font-family="sans-serif" font-size="11">'
        )
    ]
    for place, (label, value) in enumerate(entries):
        y, width = 4 + place * BAR_HEIGHT, max(value / longest * BAR_WIDTH, 1)
        colour = "#2b6cb0" if label.endswith("vmq") else "#a0aec0"
        parts.append(f'<text x="{LABEL_WIDTH - 6}" y="{y + 12}" text-anchor="end">{label}</text>')
        parts.append(
            f'<rect x="{LABEL_WIDTH}" y="{y}" width="{width:.0f}" height="{BAR_HEIGHT - 4}" fill="{colour}"/>'
        )
        parts.append(f'<text x="{LABEL_WIDTH + width + 4:.0f}" y="{y + 12}">{value:.2f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def marks(part: str) -> tuple[str, str]:
    """What stands before and after the figures of a part."""
    return f"<!-- {part}: begin -->", f"<!-- {part}: end -->"


def page(old: str, part: str, table: str, about: Mapping[str, Any], runs: int) -> str:
    """The page with the figures of one part replaced; its prose and the other parts stay."""
    machine = ", ".join(f"{key} {value}" for key, value in about.items())
    begin, end = marks(part)
    before, _, rest = old.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\nMachine: {machine}. Median of {runs} runs (minimum–maximum).\n\n{table}\n\n{end}{after}"


def as_json(delivery: Rows, engine: Rows, about: Mapping[str, Any]) -> str:
    """Everything, with every run."""

    def plain(rows: Rows) -> dict[str, Any]:
        return {
            name: {part: list(figure.values) for part, figure in parts.items()}
            for name, parts in rows.items()
        }

    return json.dumps({"machine": about, "delivery": plain(delivery), "engine": plain(engine)}, indent=2)
