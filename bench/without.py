# SPDX-License-Identifier: Apache-2.0
"""With and without: a receive queue for each VM, the default queue alone, and Linux bridge + TAP, as `vmq bench` measures them."""

from __future__ import annotations

import asyncio
from functools import partial

from bench.delivery import RefusedError
from bench.stats import Figure, Measure
from vmq.errors import VmqError
from vmq.speed.program import GUESTS, WAYS_SIZES, prepare, ways

SECONDS = 0.8  # of each trial
UNITS = {
    "host_ns_a_frame": ("host CPU ns a frame", 1.0),
    "guest_ns_a_frame": ("guests' CPU ns a frame", 1.0),
    "total_ns_a_frame": ("host and guests' CPU ns a frame", 1.0),
    "frames_a_second": ("million frames a second", 1e-6),
    "p50_ns": ("µs, p50", 1e-3),
    "p99_ns": ("µs, p99", 1e-3),
    "fairness": ("Jain's index", 1.0),
}


def with_without(size: int, guests: int, runs: int) -> dict[str, Figure]:
    """Each way's figures, in turn; of bridge + TAP, which has no guests, neither their time nor a rate."""
    prepare()
    try:
        found, why = asyncio.run(ways(size, guests, SECONDS, runs))
    except VmqError as error:
        raise RefusedError(str(error)) from error
    if why:
        raise RefusedError(f"no bridge: {why}")
    figures = {}
    for name, (what, factor) in UNITS.items():
        for way, trials in found.items():
            values = [value * factor for trial in trials if (value := trial.record()[name]) is not None]
            if values:
                figures[f"{what}, {way}"] = Figure.of(values)
    return figures


ROWS: dict[str, Measure] = {
    f"with-without-{size}-{guests}": partial(with_without, size, guests)
    for size in WAYS_SIZES
    for guests in GUESTS
}
