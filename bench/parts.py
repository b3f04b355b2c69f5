# SPDX-License-Identifier: Apache-2.0
"""The parts of the page and their rows. To add a part: a line here, its marks in docs/measurements.md, its targets.

A module of rows has `ROWS`: name → a function that takes the number of runs and gives figures by name. How a part is
tabled:

    peers      a column a system, ours (`vmq`) first, and ours as a multiple of each other; a figure a system
    cost       a line a figure, ns a frame, each as a multiple of the first of its row
    figures    a line a figure, whatever its unit; its name says it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial

from bench import (
    afxdp,
    contract,
    copies,
    cost,
    direct,
    engine,
    fairness,
    latency,
    pairs,
    phases,
    placement,
    taptcp,
    transmit,
    ways,
    without,
)
from bench.delivery import delivery, once
from bench.guests import FRONT_ENDS
from bench.quiet import say
from bench.stats import Figure, Measure
from bench.systems import Size


@dataclass(frozen=True, slots=True)
class Part:
    """`quick`: rows that make bench-quick measures, as a shell matches them; or what it measures in their place."""

    name: str
    rows: Mapping[str, Measure]
    table: str
    quick: tuple[str, ...] | Mapping[str, Measure] = ()
    hugepages: bool = False  # needs OVS-DPDK's

    def quickly(self) -> dict[str, Measure]:
        """What takes no peers and little time."""
        if isinstance(self.quick, Mapping):
            return dict(self.quick)
        return {name: row for name, row in self.rows.items() if any(fnmatch(name, one) for one in self.quick)}


def _deliver(front_end: str, guests: int, size: Size, runs: int) -> dict[str, Figure]:
    return delivery(front_end, guests, size, runs, say)


def _ours(guests: int, size: Size, runs: int) -> dict[str, Figure]:
    return {"vmq": Figure.of([once("vmq", "built-in", guests, size) for _ in range(runs)])}


SETUPS: list[tuple[Size, int]] = [(size, guests) for size in (64, 512, 1514, "imix") for guests in (1, 4)]
DELIVERY: dict[str, Measure] = {
    f"{size}-{guests}-{front_end}": partial(_deliver, front_end, guests, size)
    for size, guests in SETUPS
    for front_end in FRONT_ENDS
}
QUICK_DELIVERY: dict[str, Measure] = {
    f"{size}-{guests}-built-in": partial(_ours, guests, size) for size, guests in SETUPS
}
CORE: dict[str, Measure] = {**phases.ROWS, **copies.ROWS, **pairs.ROWS, **fairness.ROWS}

PARTS = (
    Part("delivery", DELIVERY, "peers", QUICK_DELIVERY, hugepages=True),
    Part("ways", ways.PEERS, "peers", ways.QUICK, hugepages=True),
    Part("latency", latency.ROWS, "figures", latency.QUICK, hugepages=True),
    Part("engine", engine.ROWS, "figures", ("idle", "wake-up", "memory")),
    Part("without", without.ROWS, "figures"),
    Part("taptcp", taptcp.ROWS, "figures"),
    Part("cost", cost.ROWS, "cost", ("filters", "queues", "own-*")),
    Part("core", CORE, "figures", ("copy-1514", "nanoseconds")),
    Part("contract", contract.ROWS, "figures"),
    Part("direct", {**direct.ROWS, **placement.ROWS, **transmit.ROWS}, "figures"),
    Part("af-xdp", afxdp.ROWS, "peers"),
)


def rows() -> dict[str, Measure]:
    """All rows by name."""
    return {name: row for part in PARTS for name, row in part.rows.items()}


def chosen(words: list[str]) -> list[str]:
    """The rows that words name: a row, a part, or a pattern of rows. ValueError for one that names nothing."""
    known = rows()
    found: dict[str, None] = {}
    for word in words:
        of_part = [name for part in PARTS if part.name == word for name in part.rows]
        if not (named := of_part or [name for name in known if fnmatch(name, word)]):
            parts = ", ".join(part.name for part in PARTS)
            raise ValueError(f"no row {word!r}: one of {', '.join(known)}; or a part: {parts}")
        found |= dict.fromkeys(named)
    return list(found or known)
