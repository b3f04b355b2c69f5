# SPDX-License-Identifier: Apache-2.0
"""Histograms of a receive queue: how long frames were under way, and how many came at a time.

    latency   ns from when the engine took a frame (from the wire, from the sending guest) to when the receiving guest
              was shown it; hand-over rings and the default queue included. Only while it is measured: `measure`
    batches   frames an indication, always

Bins are powers of two. A percentile is read from them: the upper edge of the bin in which it lies, so it is never
less than the truth, and never twice as much; of the last bin, which has no edge, it is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vmq.control.capture import vm_of
from vmq.control.requests import Measure
from vmq.dataplane import state
from vmq.engine.engine import Engine
from vmq.engine.vm import Vm

Row = dict[str, Any]
# Frames below these are in the bin, and not in one before; the last bin has no edge.
LATENCY_EDGES = [1 << (state.LATENCY_SHIFT + 1 + place) for place in range(state.LATENCY_BINS - 1)]
BATCH_EDGES = [2 << place for place in range(state.BATCH_BINS - 1)]
PERCENTILES = {"p50_ns": 0.5, "p99_ns": 0.99, "p999_ns": 0.999}


def measure(engine: Engine, asked: Measure) -> Row:
    """Begin or end a measurement."""
    vm_of(engine, "measure", asked.vm).observed.measure(on=asked.on)
    return {"status": "SUCCESS"}


def percentile(bins: Sequence[int], edges: Sequence[int], share: float) -> int | None:
    """The upper edge of the bin that holds the frame at `share`; None without frames, or without an edge."""
    wanted, seen = share * sum(bins), 0
    for count, edge in zip(bins, edges, strict=False):
        seen += count
        if count and seen >= wanted:
            return edge
    return None


def histogram_row(vm: Vm, index: int) -> Row:
    """One receive queue."""
    row = vm.observed.latencies()[index]
    bins = [int(count) for count in row["bins"]]
    batches = [int(count) for count in vm.queue_rows()[index]["batches"]]
    return {
        "vm": vm.name,
        "queue": index,
        "measured": vm.observed.measured,
        "frames": sum(bins),
        "unstamped": int(row["unstamped"]),
        "mean_ns": int(row["total"]) // sum(bins) if sum(bins) else None,
        **{name: percentile(bins, LATENCY_EDGES, share) for name, share in PERCENTILES.items()},
        "latency": bins,
        "latency_below_ns": LATENCY_EDGES,
        "latency_total_ns": int(row["total"]),
        "batches": batches,
        "batches_below": BATCH_EDGES,
    }
