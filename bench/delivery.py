# SPDX-License-Identifier: Apache-2.0
"""Frames a second into guests: the same frames, guests and processors for each system, in turn (A B A B …)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.guests import FRONT_ENDS
from bench.stats import Figure
from bench.systems import SYSTEMS, compared

WARM_SECONDS, MEASURED_SECONDS = 1.0, 1.6
Say = Callable[[str], None]


def once(system: str, front_end: str, guests: int, size: int) -> float:
    """One run: million frames a second that arrived. ValueError: no frame did, or one was lost without a name."""
    with tempfile.TemporaryDirectory(prefix="vmq-bench-") as name:
        folder = Path(name)
        with (
            SYSTEMS[system](folder, guests, size) as served,
            FRONT_ENDS[front_end](folder, served) as delivered,
        ):
            time.sleep(WARM_SECONDS)
            before, began = delivered(), time.monotonic()
            time.sleep(MEASURED_SECONDS)
            frames, seconds = delivered() - before, time.monotonic() - began
            if frames <= 0:
                raise ValueError(f"{system} delivered nothing to {guests} {front_end} guests")
            if served.engine is not None:
                check_books(served.engine.show("queues").values())
    return frames / seconds / 1e6


def check_books(queues: object) -> None:
    """Every frame offered to a receive queue arrived or has a named drop; read while it runs, so nearly."""
    for row in queues:  # type: ignore[attr-defined]
        named = sum(count for name, count in row["drops"].items() if name.startswith("to_guest"))
        missing = abs(row["offered_to_guest"] - row["frames_to_guest"] - named)
        if missing > 100_000:
            raise ValueError(f"{row['vm']}: {missing} frames without a name")


def delivery(front_end: str, guests: int, size: int, runs: int, say: Say) -> dict[str, Figure]:
    """Figures of each system that can serve so many guests."""
    values: dict[str, list[float]] = {name: [] for name in compared(guests)}
    for run in range(runs):
        for system, several in values.items():
            several.append(once(system, front_end, guests, size))
            say(f"{size} B to {guests} {front_end}: {run + 1}/{runs}, {system} {several[-1]:.2f} Mpps")
    return {name: Figure.of(several) for name, several in values.items()}
