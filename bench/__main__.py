# SPDX-License-Identifier: Apache-2.0
"""python -m bench [--quick] [ROW …]: measure, and write docs/measurements.md and bench/results/.

Rows: 64-1, 64-4, 1514-1, 1514-4 (size and guests; each with both front-ends), idle, wake-up, start, memory. --quick
takes one run of our own engine with the built-in guests, needs no peers, prints and writes nothing. The page is
brought up to date when all rows of a part were measured.

Exit codes: 0 all rows have their figures, 1 one was refused or this machine lacks something.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence

from bench import engine, quiet, report
from bench.delivery import RefusedError, delivery, once
from bench.guests import FRONT_ENDS
from bench.stats import Figure
from bench.systems import OVS_MEBIBYTES
from tests.dpdk.hugepages import NoHugepagesError, hugepages

RUNS, QUICK_RUNS = 5, 1
SETUPS = {f"{size}-{guests}": (size, guests) for size in (64, 1514) for guests in (1, 4)}
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
            for part, figure in engine.ROWS[name](QUICK_RUNS).items():
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
        if name in engine.ROWS:
            others = quiet.wait()
            say(name + (f" (others take {others:.0%} of the machine)" if others > quiet.QUIET else ""))
            alone[name] = engine.ROWS[name](RUNS)
    write(
        delivered,
        alone,
        {
            "delivery": set(SETUPS) <= set(wanted),
            "engine": set(engine.ROWS) <= set(wanted),
        },
    )


def write(delivered: Rows, alone: Rows, whole: dict[str, bool]) -> None:
    """Keep every run; bring up to date the parts of the page whose whole story this is."""
    about = report.fingerprint()
    folder = report.ROOT / "bench" / "results"
    folder.mkdir(exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    place = folder / f"{about['commit']}-{time.strftime('%Y%m%dT%H%M%S')}.json"
    place.write_text(report.as_json(delivered, alone, about))
    tables = {"delivery": report.delivery_table(delivered), "engine": report.engine_table(alone)}
    for part in (part for part in report.PARTS if whole[part]):
        report.PAGE.write_text(report.page(report.PAGE.read_text(), part, tables[part], about, RUNS))
    if whole["delivery"]:
        (report.PAGE.parent / "measurements.svg").write_text(report.bars(delivered))
    say("\n" + "\n\n".join([*tables.values(), str(place)]))


def main() -> int:
    names = [*SETUPS, *engine.ROWS]
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
