# SPDX-License-Identifier: Apache-2.0
"""python -m bench [--quick] [ROW …]: measure, and write docs/measurements.md and bench/results/.

Rows: 64-1, 64-4, 1514-1, 1514-4 (size and guests; each with both front-ends), idle, wake-up, start, memory. --quick
takes one run of our own engine with the built-in guests, needs no peers, prints and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from bench import engine, report
from bench.delivery import delivery, once
from bench.guests import FRONT_ENDS
from bench.stats import Figure
from tests.dpdk.hugepages import hugepages

RUNS, QUICK_RUNS = 5, 1
OVS_MEBIBYTES = 1400
SETUPS = {f"{size}-{guests}": (size, guests) for size in (64, 1514) for guests in (1, 4)}
ENGINE_ROWS: dict[str, Callable[[int], dict[str, Figure]]] = {
    "idle": lambda runs: {"% of a processor, four silent VMs": engine.idle(runs)},
    "wake-up": lambda runs: {f"µs, {name}": one for name, one in engine.wake_up(8 * runs).items()},
    "start": lambda runs: {f"s, {name}": one for name, one in engine.start(runs).items()},
    "memory": lambda _runs: {f"MiB, {name}": one for name, one in engine.memory().items()},
}


def say(line: str) -> None:
    """Progress."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def quick(wanted: Sequence[str]) -> None:
    """Our own engine only."""
    for name, (size, guests) in SETUPS.items():
        if name in wanted:
            say(
                f"{name}: {once('vmq', 'built-in', guests, size):.2f} million frames a second, built-in guests"
            )
    for name, measure in ENGINE_ROWS.items():
        if name in wanted:
            for part, figure in measure(QUICK_RUNS).items():
                say(f"{name}: {part}: {figure.text()}")


def full(wanted: Sequence[str]) -> None:
    """Everything, beside the peers, and the page."""
    delivered: dict[str, dict[str, Figure]] = {}
    with hugepages(OVS_MEBIBYTES):
        for name, (size, guests) in SETUPS.items():
            for front_end in FRONT_ENDS if name in wanted else ():
                label = f"{size} B, {guests} {front_end}"
                delivered[label] = delivery(front_end, guests, size, RUNS, say)
    alone = {name: measure(RUNS) for name, measure in ENGINE_ROWS.items() if name in wanted}
    about = report.fingerprint()
    folder = report.ROOT / "bench" / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{about['commit']}.json").write_text(report.as_json(delivered, alone, about))
    if set(wanted) == {*SETUPS, *ENGINE_ROWS}:
        (report.PAGE.parent / "measurements.svg").write_text(report.bars(delivered))
        report.PAGE.write_text(report.page(report.PAGE.read_text(), delivered, alone, about, RUNS))
    say("\n" + report.delivery_table(delivered) + "\n\n" + report.engine_table(alone))


def main() -> int:
    names = [*SETUPS, *ENGINE_ROWS]
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure the engine beside its peers."
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of {', '.join(names)}; all without")
    parser.add_argument("--quick", action="store_true", help="our own engine only, one run of each")
    options = parser.parse_args()
    unknown = [name for name in options.rows if name not in names]
    if unknown:
        parser.error(f"no row {unknown[0]!r}: one of {', '.join(names)}")
    (quick if options.quick else full)(options.rows or names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
