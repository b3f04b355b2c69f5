# SPDX-License-Identifier: Apache-2.0
"""The engine beside the least that it could do: copy the same bytes from the same places to the same places.

    engine    recording ─► read, classify, find a buffer, check, copy, give back, show ─► receive buffers
    memcpy    the same frames in the order in which the engine wrote them ─► the same buffers, behind the same headers

What the engine copies is listed once (`moves`): which frame went to which buffer, burst by burst and in each receive
queue by receive queue. A recording has as many frames as fill all rings a whole number of times, so the list is the
same for every lap, and memcpy goes round it without end. It looks ahead as the engine does, or not at all: what is
faster is the peer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core import ROUNDS, SPANS, Core, Order, compile_kernels, mac, recording, scattered
from bench.stats import Figure
from bench.systems import ENGINE_CPU
from vmq.abi.layout import i64, rows
from vmq.affinity import on_processor
from vmq.clock import now
from vmq.dataplane import state
from vmq.dataplane.replay import EXPECTED
from vmq.dataplane.to_guest import AHEAD, HEADER, LONG, LONG_AHEAD, LONGEST
from vmq.jit import address_of, at, compile_for, copy, copy_short, int64, kernel, prefetch

GUESTS, TIMES = 4, 3
# By size of a frame: frames of the recording, receive buffers of all guests, bytes of each, rounds of a span.
SIZES = {
    64: (131072, 32768, 2048, ROUNDS),
    512: (16384, 16384, 2048, ROUNDS),
    1514: (8192, 8192, 2048, ROUNDS),
    9000: (2048, 2048, 9216, ROUNDS // 4),
}
SHORT = 256  # bytes, up to which a copy is not a call
MOVE = rows(("source", i64), ("target", i64), ("length", i64))
COPIES = rows(
    ("worker", i64),
    ("moves", i64), ("count", i64),  # the first BURST of them once more at the end, for looking ahead
    ("cursor", i64), ("frames", i64),  # where it is; how many to copy
    ("ahead", i64),  # whether to look ahead
)  # fmt: skip


@kernel
def look_ahead(moves: Any, cursor: int) -> None:
    """Bring nearer what the engine would: replay.expect_recorded, split.read_ahead, to_guest.expect_room."""
    source, target, room = moves[cursor + state.BURST], moves[cursor + AHEAD], moves[cursor + LONG_AHEAD]
    for place in range(0, min(int64(source["length"]), EXPECTED), state.LINE):
        prefetch(int64(source["source"]) + place, 0)
    prefetch(target["target"], 1)
    prefetch(int64(target["target"]) + state.LINE, 1)
    if LONG < room["length"] <= LONGEST:
        for place in range(2 * state.LINE, int64(room["length"]), state.LINE):
            prefetch(int64(room["target"]) + place, 1)


@kernel
def copies(address: int) -> int:
    """ns for the next frames of the list; nothing but their bytes is moved."""
    row = at(address, 1, COPIES)[0]
    w = at(row["worker"], 1, state.worker)[0]
    count, cursor, ahead = int64(row["count"]), int64(row["cursor"]), int64(row["ahead"])
    moves = at(row["moves"], count + state.BURST, MOVE)
    began = now(w)
    for _ in range(row["frames"]):
        one = moves[cursor]
        if ahead:
            look_ahead(moves, cursor)
        if one["length"] <= SHORT:
            copy_short(one["target"], one["source"], one["length"])
        else:
            copy(one["target"], one["source"], one["length"])
        cursor += 1
        if cursor == count:
            cursor = int64(0)
    taken = now(w) - began
    row["cursor"] = cursor
    return taken


def moves(core: Core, order: Order, stride: int) -> npt.NDArray[Any]:
    """Every copy of one lap of a recording, as the engine makes them."""
    played = core.played.rows
    made = np.zeros(len(order), MOVE)
    made["source"], made["length"] = played["address"], played["length"]
    for queue, guest in enumerate(core.guests):
        mine = np.flatnonzero(order == queue)
        if len(mine) % guest.receive.size:
            raise ValueError(
                f"{len(mine)} frames do not fill a ring of {guest.receive.size} a whole number of times"
            )
        made["target"][mine] = guest.buffers + HEADER + stride * (np.arange(len(mine)) % guest.receive.size)
    bursts = np.arange(len(order)) // state.BURST
    # In a burst, a queue's turn is where its first frame stands.
    _, first, turn = np.unique(bursts * len(core.guests) + order, return_index=True, return_inverse=True)
    return made[np.argsort(first[turn], kind="stable")]


class Copier:
    """memcpy in place of the engine of a core."""

    def __init__(self, core: Core, order: Order, stride: int, *, ahead: bool) -> None:
        lap = moves(core, order, stride)
        self._moves = np.concatenate([lap, lap[: state.BURST]])
        self._row = np.zeros(1, COPIES)
        self._row["worker"] = core.row["worker"]
        self._row["moves"], self._row["count"] = address_of(self._moves), len(lap)
        self._row["frames"] = SPANS * core.row["rounds"] * state.BURST
        self._row["ahead"] = ahead

    def nanoseconds(self) -> float:
        """ns a frame."""
        return int(copies(address_of(self._row))) / int(self._row["frames"][0])


def beside_memcpy(size: int, runs: int) -> dict[str, Figure]:
    """ns a frame of the engine and of memcpy; and the engine's throughput as a share of memcpy's, run by run."""
    count, posted, stride, rounds = SIZES[size]
    macs, order = [mac(number) for number in range(GUESTS)], scattered(count, GUESTS)
    compile_kernels()
    compile_for(copies, "int64")
    values: dict[str, list[float]] = {"engine": [], "memcpy": [], "memcpy that looks ahead": []}
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_processor(ENGINE_CPU))
        core = stack.enter_context(
            Core(recording(size, macs, order), macs, GUESTS, posted=posted, stride=stride, rounds=rounds)
        )
        measures: list[Callable[[], float]] = [core.nanoseconds]
        measures += [Copier(core, order, stride, ahead=ahead).nanoseconds for ahead in (False, True)]
        for measure in measures:
            measure()
        for _ in range(TIMES * runs):
            for several, measure in zip(values.values(), measures, strict=True):
                several.append(measure())
    engine, *peers = values.values()
    best = [min(both) for both in zip(*peers, strict=True)]
    figures = {f"ns a frame, {name}": Figure.of(several) for name, several in values.items()}
    share = [fastest / ours for ours, fastest in zip(engine, best, strict=True)]
    return figures | {"engine / the faster memcpy, in throughput": Figure.of(share)}


ROWS: dict[str, Callable[[int], dict[str, Figure]]] = {
    f"copy-{size}": partial(beside_memcpy, size) for size in SIZES
}
