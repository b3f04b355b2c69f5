# SPDX-License-Identifier: Apache-2.0
"""`vmq bench --placement`: what frames cost here by either placement, from which length on direct pays, and a file that says so.

    rounds of all LENGTHS, in turn ──► costs (vmq/direct/costs.py) ──► table, verdict
                                                                  └──► file, which engines read (vmq/direct/figures.py)

Nothing of the host is touched: wires and engine are in a namespace of their own. What cannot be believed is not written.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vmq import daemon
from vmq.direct.costs import ROUNDS_LEAST, Cost, Spent, crossings, quartiles
from vmq.direct.figures import NAME, Figures, doubts
from vmq.doctor.hands import replace_file
from vmq.errors import HostError, VmqError
from vmq.guest.traffic import compile_kernels as compile_guest_kernels
from vmq.kept import kept
from vmq.speed.placed import PLACEMENTS, WHERE, Ask, Stand, Took
from vmq.speed.program import say
from vmq.table import table

LENGTHS = (64, 512, 1024, 1514)
SAID_SECONDS = 2.0
PARTS = {
    "kernel ns": "kernel_ns",
    "engine ns": "engine_ns",
    "in all ns": "total_ns",
    "direct saves ns": "saves_ns",
}
COLUMNS = ("bytes", "placement", *PARTS)
LEGEND = """\
ns a frame, medians (the middle half of {rounds} rounds); kernel: softirqs included, without what makes the frames"""


def run(ask: Ask, seconds: float, output: str | None, as_json: bool) -> str:
    """What is to be printed; `seconds` for each length, but ROUNDS_LEAST rounds."""
    with _terminable(), Stand(ask, prepare=_compile) as stand:
        say(f"engine on processor {stand.served.cpu}, frames and guests on {stand.served.other}")
        figures = Figures.of(tuple(measure(stand, seconds)))
        stand.check()
    if wrong := doubts(figures):
        raise VmqError(f"nothing is written: it {wrong}", "Try again while nothing else runs", place=WHERE)
    path = Path(output) if output else kept(NAME)
    store(figures, path)
    found = record(figures) | {"file": str(path)}
    return json.dumps(found, indent=2) if as_json else report(found)


def _compile() -> None:
    daemon.compile_kernels(compile_guest_kernels)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM interrupts as SIGINT does, and everything is put back."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def measure(stand: Stand, seconds: float) -> list[Cost]:
    """Rounds of all lengths in turn."""
    rounds: dict[int, list[dict[str, Took]]] = {length: [] for length in LENGTHS}
    began = said = time.monotonic()
    least = seconds * len(LENGTHS)
    while len(rounds[LENGTHS[-1]]) < ROUNDS_LEAST or time.monotonic() - began < least:
        for length, found in rounds.items():
            found.append(stand.round(length))
        if time.monotonic() - said >= SAID_SECONDS:
            said = time.monotonic()
            say(f"{said - began:.0f} s of {least:.0f}: {len(rounds[LENGTHS[-1]])} rounds")
    return [
        Cost(length, **{placement: _spent([one[placement] for one in found]) for placement in PLACEMENTS})
        for length, found in rounds.items()
    ]


def _spent(rounds: Sequence[Took]) -> Spent:
    return Spent(tuple(one.kernel for one in rounds), tuple(one.engine for one in rounds))


def store(figures: Figures, path: Path) -> None:
    """Write the file in one step; HostError if it cannot be."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, figures.text())
    except OSError as error:
        raise HostError(
            str(path), f"cannot be written: {error.strerror}", "Run it as root, or name another with --output"
        ) from None


def record(figures: Figures) -> dict[str, Any]:
    """All figures, and what they come to, as plain values."""
    band, (_, at, _) = figures.band(), crossings(figures.costs)
    return {
        "kernel": figures.kernel,
        "cpu": figures.cpu,
        "rounds": len(figures.costs[0].direct.kernel),
        "rows": [_row(cost, placement) for cost in figures.costs for placement in PLACEMENTS],
        "equal_at": at if math.isfinite(at) else None,
        "direct_from": band.long if math.isfinite(band.long) else None,
        "switched_to": band.short if math.isfinite(band.short) else None,
        "verdict": band.words(),
    }


def _row(cost: Cost, placement: str) -> dict[str, Any]:
    """Medians, and between what the middle half of the rounds was."""
    spent = cost.direct if placement == "direct" else cost.switched
    parts = {"kernel_ns": spent.kernel, "engine_ns": spent.engine, "total_ns": spent.total()}
    if placement == "direct":
        parts["saves_ns"] = cost.gains()
    found = {name: quartiles(values) for name, values in parts.items()}
    return {
        "bytes": cost.length,
        "placement": placement,
        **{name: median for name, (_, median, _) in found.items()},
        "middle_half": {name: (low, high) for name, (low, _, high) in found.items()},
    }


def report(found: Mapping[str, Any]) -> str:
    """The table and the verdict in words."""
    lines = [
        {"bytes": row["bytes"], "placement": row["placement"]}
        | {column: _cell(row, name) for column, name in PARTS.items()}
        for row in found["rows"]
    ]
    words = f'{found["verdict"]}: placement = "auto" goes by that'
    if found["equal_at"]:
        words += (
            f"\nequal at {found['equal_at']:.0f} bytes; a VM is switched again at {found['switched_to']:.0f}"
        )
    legend = LEGEND.format(rounds=found["rounds"])
    return "\n".join([table(lines, COLUMNS), legend, words, f"kept in {found['file']}"])


def _cell(row: Mapping[str, Any], name: str) -> str | None:
    if name not in row:
        return None
    low, high = row["middle_half"][name]
    return f"{row[name]:.0f} ({low:.0f} to {high:.0f})"
