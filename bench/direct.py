# SPDX-License-Identifier: Apache-2.0
"""What a frame costs that the kernel places in guest memory, beside one that the engine copies there: `vmq bench --placement`, in runs.

How it is measured: vmq/speed/placed.py. A run is some rounds in an engine of its own. A VM "switched" and a VM "direct" are served
for other measurements here, too.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.delivery import RefusedError
from bench.quiet import say
from bench.stats import Figure, Measure
from vmq.cli.client import ask
from vmq.errors import VmqError
from vmq.speed.placed import PLACEMENTS, SOURCE, Served, Stand
from vmq.speed.stand import mac
from vmq.speed.wire import Wire, a_frame

ROUNDS = 5  # of a run
PATIENCE = 20.0


def frame(size: int) -> bytes:
    """For the guest, from somebody."""
    return a_frame(mac(0), SOURCE, size)


@contextmanager
def served(one: Wire, placement: str) -> Iterator[Served]:
    """An engine on the wire, and a guest whose frames are placed like this."""
    with (
        tempfile.TemporaryDirectory(prefix="vmq-bench-") as name,
        Served(one, Path(name), ask, (placement,)) as it,
    ):
        yield it


def placed(size: int) -> dict[str, float]:
    """Medians of some rounds, ns a frame of each part; RefusedError if frames are lost or took another way."""
    found: dict[str, list[float]] = {}
    try:
        with Stand(ask) as stand:
            for _ in range(ROUNDS):
                for placement, took in stand.round(size).items():
                    parts = {"kernel": took.kernel, "engine": took.engine, "in all": sum(took)}
                    for part, value in parts.items():
                        found.setdefault(f"ns a frame, {placement}: {part}", []).append(value)
            stand.check()
    except VmqError as error:
        raise RefusedError(str(error)) from error
    return {name: statistics.median(values) for name, values in found.items()}


def direct(size: int, runs: int) -> dict[str, Figure]:
    """Both placements in turn."""
    values: dict[str, list[float]] = {}
    for run in range(runs):
        parts = placed(size)
        for name, value in parts.items():
            values.setdefault(name, []).append(value)
        told = ", ".join(f"{one} {parts[f'ns a frame, {one}: in all']:.0f}" for one in PLACEMENTS)
        say(f"direct-{size}: {run + 1}/{runs}, in all {told} ns a frame")
    return {name: Figure.of(found) for name, found in values.items()}


ROWS: dict[str, Measure] = {f"direct-{size}": partial(direct, size) for size in (64, 512, 1514)}
