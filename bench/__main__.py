# SPDX-License-Identifier: Apache-2.0
"""python -m bench [--quick] [ROW …]: measure, and write docs/measurements.md and bench/results/.

Rows, by the part of the page that they make:

    delivery    64-1, 64-4, 1514-1, 1514-4: size and guests; each with both front-ends
    engine      idle, wake-up, start, memory
    cost        filters, generic, queues, own-64-1, own-64-4, own-1514-1, own-1514-4
    contract    filter-changes, add-vm-4, add-vm-64, add-vm-256, publish-4, publish-64, publish-256, moves

--quick takes one run of our own engine with the built-in guests, needs no peers, prints and writes nothing. A part of
the page is brought up to date when all of its rows were measured.

Exit codes: 0 all rows have their figures, 1 one was refused or this machine lacks something.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence

from bench import contract, cost, engine, quiet, report
from bench.delivery import RefusedError, delivery, once
from bench.guests import FRONT_ENDS
from bench.stats import Figure
from bench.systems import OVS_MEBIBYTES
from tests.dpdk.hugepages import NoHugepagesError, hugepages

RUNS, QUICK_RUNS = 5, 1
SETUPS = {f"{size}-{guests}": (size, guests) for size in (64, 1514) for guests in (1, 4)}
ALONE = {
    "engine": engine.ROWS,
    "cost": cost.ROWS,
    "contract": contract.ROWS,
}  # rows of our engine only, by part
MEASURES = {name: measure for rows in ALONE.values() for name, measure in rows.items()}
Rows = dict[str, dict[str, Figure]]


def say(line: str) -> None:
    """Progress."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def quick(wanted: Sequence[str]) -> None:
    """Our own engine only."""
    for name in wanted:
        if name in SETUPS:
            size, guests = SETUPS[name]
            say(
                f"{name}: {once('vmq', 'built-in', guests, size):.2f} million frames a second, built-in guests"
            )
        else:
            for part, figure in MEASURES[name](QUICK_RUNS).items():
                say(f"{name}: {part}: {figure.text()}")


def full(wanted: Sequence[str]) -> None:
    """Everything, beside the peers, and the page."""
    delivered: Rows = {}
    setups = [SETUPS[name] for name in wanted if name in SETUPS]
    if setups:
        with hugepages(OVS_MEBIBYTES):  # once: free memory may be in pieces later
            for size, guests in setups:
                for front_end in FRONT_ENDS:
                    delivered[f"{size} B, {guests} {front_end}"] = delivery(
                        front_end, guests, size, RUNS, say
                    )
    alone = {}
    for name in wanted:
        if name in MEASURES:
            others = quiet.wait()
            say(name + (f" (others take {others:.0%} of the machine)" if others > quiet.QUIET else ""))
            alone[name] = MEASURES[name](RUNS)
    write(delivered, alone)


def write(delivered: Rows, alone: Rows) -> None:
    """Keep every run; bring up to date the parts of the page whose whole story this is."""
    about = report.fingerprint()
    folder = report.ROOT / "bench" / "results"
    folder.mkdir(exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    place = folder / f"{about['commit']}-{time.strftime('%Y%m%dT%H%M%S')}.json"
    place.write_text(report.as_json(delivered, alone, about))
    tables = {}
    if delivered:
        tables["delivery"] = report.delivery_table(delivered)
    for part, rows in ALONE.items():
        if measured := {name: alone[name] for name in rows if name in alone}:
            table = report.cost_table if part == "cost" else report.engine_table
            tables[part] = table(measured)
    setups = len(SETUPS) * len(FRONT_ENDS)
    whole = {part for part, rows in ALONE.items() if set(rows) <= set(alone)}
    whole |= {"delivery"} if len(delivered) == setups else set()
    for part in (part for part in report.PARTS if part in whole):
        report.PAGE.write_text(report.page(report.PAGE.read_text(), part, tables[part], about, RUNS))
    if "delivery" in whole:
        (report.PAGE.parent / "measurements.svg").write_text(report.bars(delivered))
    say("\n" + "\n\n".join([*tables.values(), str(place)]))


def main() -> int:
    names = [*SETUPS, *MEASURES]
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure the engine beside its peers."
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of {', '.join(names)}; all without")
    parser.add_argument("--quick", action="store_true", help="our own engine only, one run of each")
    options = parser.parse_args()
    unknown = [name for name in options.rows if name not in names]
    if unknown:
        parser.error(f"no row {unknown[0]!r}: one of {', '.join(names)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as an interrupt: everything is put back
    try:
        (quick if options.quick else full)(options.rows or names)
    except (RefusedError, NoHugepagesError, FileNotFoundError) as error:
        say(f"no figure: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
