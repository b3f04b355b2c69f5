# SPDX-License-Identifier: Apache-2.0
"""Where the nanoseconds of a frame go: 64 bytes, in random order to four receive queues, on one processor.

    all_rounds ─┬─ rx_burst ─────────────────────────────────────────── read
                ├─ steer, frame by frame ────────────────────────────── classify
                ├─ finish ─┬─ expect, ring by ring ──────────────────── look ahead
                │          └─ deliver ─┬─ descriptor, translation, packet header, used element ── place
                │                      ├─ copy_short ────────────────── copy
                │                      └─ publish, indicate ─────────── show
                └─ rings from processors, silent guests ─────────────── look at the rest

Hardware counters are not to be had here. So the time-stamp counter is read where one part ends and the next begins,
once a burst or once an indication and never once a frame, in functions that stand around the product's own
(rebuilt.py). What a reading costs is measured alone, and taken off the part that it ends.

The copy lies inside the loop over frames, where a clock would cost more than it does. It is taken out instead: the same
round with everything but the copy. What is missing then is the copy's, wherever it was missing: the fence before an
indication waits for its stores.

Each value measures one core three times: as it is, with the clock, with the clock and without the copy. The parts are
made from the last two; that they together are the first is the proof that the clock has not changed what it measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numba import types

from bench.core import SPANS, Core, compile_kernels, mac, play, recording, refill, scattered
from bench.rebuilt import rebuilt
from bench.stack import PART
from bench.stats import Figure
from bench.systems import ENGINE_CPU
from vmq import linux
from vmq.abi.layout import i64, rows
from vmq.affinity import on_processor
from vmq.clock import now
from vmq.dataplane import state
from vmq.dataplane.lanes import rx_burst
from vmq.dataplane.moderate import indicate
from vmq.dataplane.overload import fill
from vmq.dataplane.rounds import finish
from vmq.dataplane.split import publish
from vmq.jit import INTERPRETED, at, compile_for, copy_short, int64, kernel

QUEUES, COUNT, TIMES = 4, 131072, 3
READ, CLASSIFY, AHEAD, PLACE, SHOW, REST, BETWEEN = range(7)
PARTS = ("read", "classify", "look ahead", "place", "show", "look at the rest")
COPY = "copy"
WHOLE, TOGETHER = "ns a frame in all", "the parts together"
TELLING = 0.1  # by how much the two may differ
# What stands around `publish` is told of no worker: the stamps lie at an address that is known when it is compiled.
STAMPS = 0x2100_0000_0000
stamps = rows(("last", i64), ("spent", i64, (7,)), ("marks", i64, (7,)))
ALONE = 1_000_000
Functions = Mapping[Callable[..., Any], Callable[..., Any]]

if INTERPRETED:
    from time import perf_counter_ns as ticks
else:
    # An intrinsic of LLVM by its name: RDTSC on x86.
    ticks = types.ExternalFunction("llvm.readcyclecounter", types.int64())


@kernel
def mark(part: int) -> None:
    """`part` ends here, and another begins."""
    row = at(STAMPS, 1, stamps)[0]
    time = int64(ticks())
    row["spent"][part] += time - int64(row["last"])
    row["marks"][part] += 1
    row["last"] = time


@kernel
def marked_receive(t: Any, w: Any, lane: Any, progress: Any, books: int) -> int:
    mark(REST)
    taken = rx_burst(t, w, lane, progress, books)
    mark(READ)
    return taken


@kernel
def marked_finish(t: Any, w: Any, hold: int, handed: int) -> None:
    mark(CLASSIFY)
    finish(t, w, hold, handed)
    mark(PLACE)


@kernel
def marked_fill(t: Any, w: Any, number: int, hold: int, again: int) -> None:
    mark(AHEAD)
    fill(t, w, number, hold, again)


@kernel
def marked_publish(vq: Any, ring: Any) -> bool:
    mark(PLACE)
    return publish(vq, ring)


@kernel
def marked_indicate(w: Any, row: Any, vq: Any, ring: Any, books: Any, batch: int, wanted: bool) -> None:
    indicate(w, row, vq, ring, books, batch, wanted)
    mark(SHOW)


@kernel
def marked_refill(row: Any, t: Any, number: int) -> None:
    mark(REST)
    refill(row, t, number)
    mark(BETWEEN)


@kernel
def no_copy(to: int, source: int, count: int) -> None:
    """Nothing."""


@kernel
def marks_alone(address: int) -> int:
    """ns for ALONE marks."""
    w = at(address, 1, state.worker)[0]
    began = now(w)
    for _ in range(ALONE):
        mark(BETWEEN)
    return now(w) - began


def with_clock(instead: Functions) -> Any:
    """The whole measured loop with marks, and with others instead of some functions."""
    inmost: Functions = {publish: marked_publish, indicate: marked_indicate, **instead}
    inner: Functions = {fill: rebuilt(marked_fill, inmost), **instead}
    outer: Functions = {
        finish: rebuilt(marked_finish, inner),
        rx_burst: marked_receive,
        refill: marked_refill,
        **instead,
    }
    made = rebuilt(play, outer)
    compile_for(made, "int64")
    return made


class Parted:
    """A core whose rounds are measured part by part."""

    def __init__(self, core: Core, kernel: Any) -> None:
        self._core, self._kernel = core, kernel
        self._row = at(STAMPS, 1, stamps)

    def nanoseconds(self, spans: int = SPANS) -> dict[str, float]:
        """ns a frame of each part, the marks' own time taken off."""
        each = int(marks_alone(int(self._core.row["worker"][0]))) / ALONE
        self._row["spent"], self._row["marks"] = 0, 0
        mark(BETWEEN)
        self._row["spent"], self._row["marks"] = 0, 0
        total = self._core.nanoseconds(spans, self._kernel)
        ticks = self._row["spent"][0][:BETWEEN]
        frames = spans * int(self._core.row["rounds"][0]) * state.BURST
        scale = total / (int(ticks.sum()) / frames)  # ns of a tick
        spent = ticks / frames * scale - self._row["marks"][0][:BETWEEN] / frames * each
        return dict(zip(PARTS, spent.tolist(), strict=True))


def separated(core: Core, marked: Any, uncopied: Any) -> dict[str, float]:
    """ns a frame of each part, the copy among them."""
    whole, without = Parted(core, marked).nanoseconds(), Parted(core, uncopied).nanoseconds()
    copy = sum(whole.values()) - sum(without.values())
    place = PARTS.index("show")
    names = (*PARTS[:place], COPY, *PARTS[place:])
    return {name: copy if name == COPY else without[name] for name in names}


def nanoseconds(runs: int) -> dict[str, Figure]:
    """ns a frame: in all, of which in each part, and of the parts together."""
    linux.map_fixed(STAMPS, linux.PAGE)
    compile_kernels()
    compile_for(marks_alone, "int64")
    marked, uncopied = with_clock({}), with_clock({copy_short: no_copy})
    macs = [mac(number) for number in range(QUEUES)]
    values: dict[str, list[float]] = {}
    with on_processor(ENGINE_CPU), Core(recording(64, macs, scattered(COUNT, QUEUES)), macs, QUEUES) as core:
        core.nanoseconds()
        for _ in range(TIMES * runs):
            values.setdefault(WHOLE, []).append(core.nanoseconds())
            parts = separated(core, marked, uncopied)
            for name, value in parts.items():
                values.setdefault(f"{PART}{name}", []).append(value)
            values.setdefault(TOGETHER, []).append(sum(parts.values()))
    figures = {name: Figure.of(several) for name, several in values.items()}
    check(figures)
    return figures


def check(figures: Mapping[str, Figure]) -> None:
    """ValueError if the parts are not what they were taken from."""
    whole, together = figures[WHOLE].median, figures[TOGETHER].median
    if abs(together / whole - 1) > TELLING:
        raise ValueError(f"a frame takes {whole:.1f} ns, and its parts together {together:.1f} ns")


ROWS: dict[str, Callable[[int], dict[str, Figure]]] = {"nanoseconds": nanoseconds}
