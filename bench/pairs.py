# SPDX-License-Identifier: Apache-2.0
"""Two processors beside one: each with a source of its own, and with guests whose rings it fills itself.

    one        source 0 ─► processor 0 ─► guests 0-3    and the other processor does nothing; then the other way round
    both       the same, and    source 1 ─► processor 1 ─► guests 4-7, at once
    crossing   half the frames of each source are for guests of the other processor: through the rings between them

Each processor is a thread of ours in the worker's own loop, and each moves on the available indices of its own guests:
nobody else writes their rings. Both begin together, and who has made its spans goes on unmeasured until the other has,
so that neither is ever measured alone. A processor's rate is frames in the receive rings of its guests by its own time.
The machine's own work is on one of the two processors, so that one is slower by itself: what both do is compared with the
mean of what each does alone. Where frames cross, sources wait: the faster processor would overrun the slower one, and measure how fast it can drop.
What is in the rings between processors at the end is delivered before frames are counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.core import POSTED, SPAN, Rings, Stage, compile_kernels, mac, play, recording, scattered
from bench.stats import Figure
from bench.systems import ENGINE_CPU, GUEST_CPU
from vmq.abi.layout import i64, rows
from vmq.affinity import on_processor
from vmq.dataplane import state
from vmq.dataplane.rounds import parcels_round
from vmq.jit import address_of, at, compile_for, int64, kernel, load_acquire, store_release
from vmq.publisher import QueueEntry

CPUS, GUESTS = (ENGINE_CPU, GUEST_CPU), 4
COUNT, TIMES, ROUNDS, SPANS = 131072, 3, 16, 400
BEGUN, DONE = 1, 2
RUN = rows(
    ("step", i64),  # BEGUN, DONE; the other looks
    ("span", i64), ("other", i64),  # what `play` is told; the other's row
    ("first", i64),  # of its guests
    ("taken", i64), ("frames", i64),  # what came of it
)  # fmt: skip


@kernel
def frames_of(w: Any, first: int) -> int:
    """Frames in the receive rings of a processor's guests so far."""
    shared = at(w["engine"], 1, state.engine)[0]
    books = at(shared["queue_state"], first + GUESTS, state.queue_state)
    frames = int64(0)
    for number in range(first, first + GUESTS):
        frames += books[number]["frames_to_guest"]
    return frames


@kernel
def race(address: int) -> int:
    """Wait for the other; then all spans, measured; then go on until the other has made its own, too."""
    row = at(address, 1, RUN)[0]
    other = at(row["other"], 1, RUN)[0]
    w = at(at(row["span"], 1, SPAN)[0]["worker"], 1, state.worker)[0]
    store_release(row, "step", BEGUN)
    while load_acquire(other, "step") < BEGUN:
        play(row["span"])
    before = frames_of(w, row["first"])
    row["taken"] = play(row["span"])
    row["frames"] = frames_of(w, row["first"]) - before
    store_release(row, "step", DONE)
    while load_acquire(other, "step") < DONE:
        play(row["span"])
    return 0


@kernel
def take_parcels(address: int) -> int:
    """Deliver what the other processor has handed over; bursts."""
    row = at(at(address, 1, RUN)[0]["span"], 1, SPAN)[0]
    w = at(row["worker"], 1, state.worker)[0]
    t = at(row["tables"], 1, state.tables)[0]
    bursts = int64(0)
    while parcels_round(t, w, 1 - w["index"], 1):
        bursts += 1
    return bursts


class Pair(Stage):
    """Two processors, four guests each. `crossing`: half of these have the other's source for their uplink."""

    def __init__(self, *, crossing: bool, count: int = COUNT, spans: int = SPANS) -> None:
        super().__init__(len(CPUS))
        self.guests = [Rings(POSTED // GUESTS) for _ in range(2 * GUESTS)]
        uplinks = [(number // GUESTS + crossing * number) % 2 for number in range(2 * GUESTS)]
        for processor in range(2):
            macs = [mac(number) for number, uplink in enumerate(uplinks) if uplink == processor]
            self.play(recording(64, macs, scattered(count, GUESTS)), processor, waits=crossing)
        self.publish([
            guest.port(number, [mac(number)], QueueEntry(number // GUESTS, generation=1), uplink=uplink)
            for number, (guest, uplink) in enumerate(zip(self.guests, uplinks, strict=True))
        ])  # fmt: skip
        self._spans = [self.span(processor, GUESTS * processor, GUESTS, ROUNDS) for processor in range(2)]
        self.rows = np.zeros(2, RUN)
        for processor, row in enumerate(self.rows):
            self._spans[processor]["spans"] = spans
            row["span"] = address_of(self._spans[processor])
            row["other"] = address_of(self.rows[1 - processor :])
            row["first"] = GUESTS * processor

    def rate(self, *processors: int) -> float:
        """Million frames a second of these processors together; ValueError if a frame did not arrive."""
        before = self.arrived(), self.forwarded()
        self.rows["step"] = [0 if one in processors else DONE for one in range(2)]
        threads = [threading.Thread(target=self._thread, args=(one,)) for one in processors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for processor in processors:
            take_parcels(address_of(self.rows[processor:]))
        frames, forwarded = self.arrived() - before[0], self.forwarded() - before[1]
        if not frames or frames != forwarded:
            raise ValueError(f"{frames} of {forwarded} frames arrived")
        return sum(float(self.rows[one]["frames"] / self.rows[one]["taken"]) for one in processors) * 1000

    def _thread(self, processor: int) -> None:
        with on_processor(CPUS[processor]):
            race(address_of(self.rows[processor:]))


def processors(runs: int) -> dict[str, Figure]:
    """Million frames a second of each processor alone and of both, and how many times the faster of the two alone that is."""
    compile_kernels()
    compile_for(race, "int64")
    compile_for(take_parcels, "int64")
    alone, both, crossed = [], [], []
    with Pair(crossing=False) as apart, Pair(crossing=True) as crossing:
        apart.rate(0, 1)
        crossing.rate(0, 1)
        for _ in range(TIMES * runs):
            alone.append((apart.rate(0), apart.rate(1)))
            both.append(apart.rate(0, 1))
            crossed.append(crossing.rate(0, 1))
    one = [max(pair) for pair in alone]
    unit = "million frames a second"
    return {
        f"{unit}, one processor": Figure.of([pair[0] for pair in alone]),
        f"{unit}, the other alone": Figure.of([pair[1] for pair in alone]),
        f"{unit}, both": Figure.of(both),
        f"{unit}, both, half the frames cross": Figure.of(crossed),
        "both / one": Figure.of([two / single for two, single in zip(both, one, strict=True)]),
        "both, half the frames cross / one": Figure.of(
            [two / single for two, single in zip(crossed, one, strict=True)]
        ),
    }


ROWS: dict[str, Callable[[int], dict[str, Figure]]] = {"processors": processors}
