# SPDX-License-Identifier: Apache-2.0
"""What was measured, as docs/measurements.md shows it: tables with their targets, and pictures, between marks.

A target that is missed says why below its table (targets.py). Where the machine was too noisy, a figure
has no median, and no target is judged by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bench.charts import bars, curves, histograms
from bench.results import ROOT, Machine
from bench.stack import stacked
from bench.stats import HISTOGRAM, Figure, Figures, Rows, ratio
from bench.targets import Target, of_row

PAGE = ROOT / "docs" / "measurements.md"
PICTURES = PAGE.with_suffix("")  # a folder beside the page
TITLES = {"vmq": "vmq", "ovs": "OVS-DPDK"}
HIDDEN = ("code", "machine")  # they say what belongs together, and nothing to a reader
Targets = Sequence[Target]


def peers_table(rows: Rows, targets: Targets) -> str:
    """A line a row, a column a system, and ours as a multiple of each other's."""
    names = list(dict.fromkeys(name for figures in rows.values() for name in tabled(figures)))
    others = [name for name in names if name != "vmq"]
    titles = [*(TITLES.get(one, one) for one in names), *(f"vmq / {TITLES.get(one, one)}" for one in others)]
    lines = [_line(["row", *titles, "target"]), _line(["---"] * (2 + len(titles)))]
    for name, figures in rows.items():
        cells = [figures[one].judged() if one in figures else "-" for one in names]
        cells += [_times(figures.get("vmq"), figures.get(one)) for one in others]
        lines.append(_line([name, *cells, _verdicts(of_row(targets, name, figures), figures)]))
    return "\n".join(lines)


def figures_table(rows: Rows, targets: Targets) -> str:
    """A line a figure."""
    lines = [_line(["what", "figure", "target"]), _line(["---"] * 3)]
    for name, figures in rows.items():
        wanted = of_row(targets, name, figures)
        alone = {one.figure: f"{one.bar}: it has none" for one in targets if one.one_sided(name, figures)}
        lines += [
            _line(
                [
                    f"{name}: {part}",
                    figure.judged(),
                    alone.get(part) or _verdicts(_about(wanted, part), figures),
                ]
            )
            for part, figure in tabled(figures).items()
        ]
    return "\n".join(lines)


def cost_table(rows: Rows, targets: Targets) -> str:
    """ns a frame, and each line as a multiple of the first of its row."""
    lines = [_line(["row", "with", "ns a frame", "against the first", "target"]), _line(["---"] * 5)]
    for name, figures in rows.items():
        first, *_ = figures.values()
        wanted = of_row(targets, name, figures)
        for part, figure in tabled(figures).items():
            times = ratio(figure, first)
            unclear = figure is first or times is None or figure.noisy or first.noisy
            against = "-" if unclear or times is None else f"{100 * (times - 1):+.0f} %"
            target = _verdicts(_about(wanted, part), figures)
            lines.append(_line([name, part, figure.judged(1), against, target]))
    return "\n".join(lines)


TABLES: dict[str, Callable[[Rows, Targets], str]] = {
    "peers": peers_table, "figures": figures_table, "cost": cost_table,
}  # fmt: skip


def tabled(figures: Figures) -> dict[str, Figure]:
    """Those that are not only drawn."""
    return {name: figure for name, figure in figures.items() if not name.startswith(HISTOGRAM)}


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _times(one: Figure | None, other: Figure | None) -> str:
    if one is None or other is None or one.noisy or other.noisy:
        return "-"
    value = ratio(one, other)
    return "-" if value is None else f"{value:.1f} ×"


def _about(targets: Targets, figure: str) -> list[Target]:
    return [target for target in targets if target.figure == figure]


def _verdicts(targets: Targets, figures: Figures) -> str:
    return "; ".join(target.verdict(figures) for target in targets) or "-"


def unmet(rows: Rows, targets: Targets) -> str:
    """A line for each target that is not met: how far it is or why that cannot be told, and what is in the way."""
    return "\n".join(
        f"- {name}, {target.figure} {target.bar}: {why}. {target.why}".rstrip()
        for name, figures in rows.items()
        for target in targets
        if target.means(name) and (why := _unmet(target, name, figures))
    )


def _unmet(target: Target, row: str, figures: Figures) -> str:
    if target.figure not in figures:
        return "there is no such figure"
    if target.one_sided(row, figures):
        return f"{target.of} has none"
    met = target.met(figures)
    if met is None:
        return target.unclear(figures)
    return "" if met else f"it is {target.reached(figures):.3g}{f' × {target.of}' if target.of else ''}"


def table(kind: str, rows: Rows, targets: Targets) -> str:
    """The table of a part, and what is not met below it."""
    below = unmet(rows, targets)
    return TABLES[kind](rows, targets) + (f"\n\nNot met:\n\n{below}" if below else "")


def pictures(part: str, kind: str, rows: Rows, targets: Targets) -> dict[str, str]:
    """The pictures of a part, by the name of their file."""
    drawn = {part: bars(rows, targets) if kind == "peers" else ""}
    if kind == "cost":
        drawn[f"{part}-growth"] = curves(rows, "ns a frame")
    drawn |= {f"{part}-{name}": stacked(figures) or histograms(figures) for name, figures in rows.items()}
    return {f"{name}.svg": text for name, text in drawn.items() if text}


def marks(part: str) -> tuple[str, str]:
    """What stands before and after the figures of a part."""
    return f"<!-- {part}: begin -->", f"<!-- {part}: end -->"


def page(old: str, part: str, text: str, about: Machine, runs: int) -> str:
    """The page with the figures of one part replaced; its prose and the other parts stay."""
    machine = ", ".join(f"{key} {value}" for key, value in about.items() if key not in HIDDEN)
    begin, end = marks(part)
    before, found, rest = old.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{PAGE}: no place for {part}: {begin} and {end}")
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\nMachine: {machine}. Median of {runs} runs (minimum–maximum).\n\n{text}\n\n{end}{after}"


def write(
    part: str, kind: str, rows: Rows, targets: Targets, about: Machine, runs: int, place: Path = PAGE
) -> None:
    """Bring a part of the page up to date, its pictures too."""
    folder = place.with_suffix("")
    drawn = pictures(part, kind, rows, targets)
    if drawn:
        folder.mkdir(exist_ok=True)
    for name, text in drawn.items():
        (folder / name).write_text(text)
    shown = [f"![{name.removesuffix('.svg')}]({folder.name}/{name})" for name in drawn]
    whole = "\n\n".join([table(kind, rows, targets), *shown])
    place.write_text(page(place.read_text(), part, whole, about, runs))


def summary(rows: Mapping[str, Figures]) -> str:
    """Figures as lines, for a terminal."""
    return "\n".join(
        f"{name}: {part}: {figure.judged()}"
        for name, figures in rows.items()
        for part, figure in tabled(figures).items()
    )
