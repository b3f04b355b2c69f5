# SPDX-License-Identifier: Apache-2.0
"""Measure the rows that are named, keep what was found, and bring up to date the page: what `python -m bench` supervises.

A row in which the machine was too noisy for what is judged is measured up to three times, and the attempt with the least
spread is kept. Other figures that are noisy are told as such, with their range and no median.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Sequence

from bench import parts, quiet, report, targets
from bench.delivery import RefusedError
from bench.quiet import say
from bench.results import Results, fingerprint
from bench.stats import Figure, Figures, Measure
from bench.systems import OVS_MEBIBYTES
from tests.dpdk.hugepages import NoHugepagesError, hugepages

RUNS, QUICK_RUNS, ATTEMPTS = 5, 1, 3

Judged = Callable[[Figures], list[Figure]]


def quick(words: Sequence[str]) -> int:
    """Our own engine only."""
    measures = {name: row for part in parts.PARTS for name, row in part.quickly().items()}
    if words:
        every = parts.rows() | measures
        measures = {name: every[name] for name in parts.chosen(list(words))}
    say("one run of each: how noisy the machine is cannot be told")
    return _each(measures, lambda name, row: say(report.summary({name: row(QUICK_RUNS)})))


def full(words: Sequence[str], *, fresh: bool) -> int:
    """Everything, beside the peers, and the page."""
    results = Results(fingerprint())
    wanted = parts.chosen(list(words))
    known = {} if fresh else results.known()
    if already := [name for name in wanted if name in known]:
        say(f"known from before (--fresh measures anew): {', '.join(already)}")
    due = {name: row for name, row in parts.rows().items() if name in wanted and name not in known}
    peers = {name for part in parts.PARTS if part.hugepages for name in part.rows}
    refused = 0
    with contextlib.ExitStack() as stack:
        if waiting := peers & set(due):
            try:
                stack.enter_context(hugepages(OVS_MEBIBYTES))  # once: free memory may be in pieces later
            except (NoHugepagesError, OSError) as error:
                say(f"no figure: {', '.join(sorted(waiting))}: {error}")
                due = {name: row for name, row in due.items() if name not in waiting}
                refused = 1
        refused |= _each(due, lambda name, row: results.keep(name, attempts(name, row, judged(name))))
    write(results, wanted, set(wanted) - set(known) - set(results.rows))
    return refused


def _each(measures: dict[str, Measure], do: Callable[[str, Measure], None]) -> int:
    """Do something with each row; 1 if one was refused."""
    code = 0
    for name, row in measures.items():
        try:
            do(name, row)
        except RefusedError as error:
            say(f"{name}: no figure: {error}")
            code = 1
        except Exception as problem:  # noqa: BLE001 - a row that fails, whatever it is, takes no other with it
            say(f"{name}: no figure:\n{''.join(traceback.format_exception(problem))}")
            code = 1
    return code


def judged(row: str) -> Judged:
    """Which figures of a row must not be noisy: all of systems and costs, else those that a target names."""
    if any(row in part.rows and part.table != "figures" for part in parts.PARTS):
        return lambda figures: list(report.tabled(figures).values())
    bars = targets.load()

    def named(figures: Figures) -> list[Figure]:
        return [
            figures[name]
            for target in targets.of_row(bars, row, figures)
            for name in (target.figure, target.of)
            if name
        ]

    return named


def attempts(name: str, measure: Measure, which: Judged) -> Figures:
    """The figures of a row: of the first attempt that is not noisy, or of the quietest."""
    tried: list[Figures] = []
    while len(tried) < ATTEMPTS:
        others = quiet.wait()
        say(name + (f" (others take {others:.0%} of the machine)" if others > quiet.QUIET else ""))
        tried.append(measure(RUNS))
        if not any(figure.noisy for figure in which(tried[-1])):
            break
        say(f"{name}: noisy{', again' if len(tried) < ATTEMPTS else ''}")
    return min(tried, key=lambda one: max((figure.spread for figure in which(one)), default=0.0))


def write(results: Results, wanted: Sequence[str], refused: Collection[str]) -> None:
    """Bring up to date the parts of the page that are concerned, and whose whole story is known.

    A row that was `refused` has no figure, whatever an earlier run found.
    """
    known = {name: figures for name, figures in results.known().items() if name not in refused}
    bars = targets.load()
    for part in parts.PARTS:
        rows = {name: known[name] for name in part.rows if name in known}
        if not set(part.rows) & set(wanted) or not rows:
            continue
        say(f"\n{report.table(part.table, rows, bars)}\n")
        if set(rows) == set(part.rows):
            report.write(part.name, part.table, rows, bars, results.about, RUNS)
        else:
            missing = ", ".join(name for name in part.rows if name not in rows)
            say(f"{part.name}: not written to the page, as these rows are missing: {missing}")
    if results.rows:
        say(str(results.file))


def ended(number: int, _frame: object) -> None:
    """On a signal: leave, and put everything back on the way, undisturbed."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, in this process."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure the engine beside its peers."
    )
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help="a row, a part of the page, or a pattern; all without"
    )
    parser.add_argument("--quick", action="store_true", help="our own engine only, one run of each")
    parser.add_argument("--fresh", action="store_true", help="take nothing from runs before")
    options = parser.parse_args(words)
    try:
        parts.chosen(options.rows)
    except ValueError as error:
        parser.error(str(error))
    return quick(options.rows) if options.quick else full(options.rows, fresh=options.fresh)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, ended)
    sys.exit(main())
