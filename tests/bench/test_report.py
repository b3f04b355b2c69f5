# SPDX-License-Identifier: Apache-2.0
"""The page: figures are replaced between the marks, prose stays; targets are judged, and noise is no figure."""

from __future__ import annotations

import pytest

from bench.parts import PARTS
from bench.report import (
    PAGE,
    cost_table,
    figures_table,
    marks,
    page,
    peers_table,
    summary,
    table,
    unmet,
    write,
)
from bench.stats import HISTOGRAM, Figure
from bench.targets import Target

ROWS = {
    "64-1": {"vmq": Figure.of([6.0]), "net_vhost": Figure.of([4.0]), "ovs": Figure.of([3.0])},
    "64-4": {"vmq": Figure.of([5.0, 6.0, 7.0]), "ovs": Figure.of([3.0])},
    "noisy": {"vmq": Figure.of([2.0, 6.0, 7.0]), "ovs": Figure.of([3.0])},
}
ALONE = {"idle": {"%": Figure.of([0.2]), HISTOGRAM + "all": Figure.of([1.0, 2.0])}}
TARGETS = (
    Target("64-1", "vmq", "net_vhost", least=1.5),
    Target("64-*", "vmq", "ovs", least=2.5, why="It is slow."),
    Target("noisy", "vmq", "ovs", least=1),
    Target("idle", "%", most=1),
)


def test_table_gives_ratios_and_leaves_out_what_was_not_compared() -> None:
    lines = peers_table(ROWS, TARGETS).splitlines()

    assert lines[0] == "| row | vmq | net_vhost | OVS-DPDK | vmq / net_vhost | vmq / OVS-DPDK | target |"
    assert lines[2] == (
        "| 64-1 | 6.00 | 4.00 | 3.00 | 1.5 × | 2.0 × | ≥ 1.5 × net_vhost: met; ≥ 2.5 × ovs: **missed** |"
    )
    assert lines[3] == "| 64-4 | 6.00 (5.00–7.00) | - | 3.00 | - | 2.0 × | ≥ 2.5 × ovs: **missed** |"


def test_a_noisy_machine_has_no_median_no_ratio_and_no_verdict() -> None:
    line = peers_table(ROWS, TARGETS).splitlines()[4]

    assert (
        line == "| noisy | noisy: 2.00–7.00 (spread 83%) | - | 3.00 | - | - | ≥ 1 × ovs: too noisy to tell |"
    )


def test_figures_have_a_line_each_and_histograms_none() -> None:
    assert figures_table(ALONE, TARGETS).splitlines()[2:] == ["| idle: % | 0.20 | ≤ 1: met |"]


def test_a_figure_whose_other_half_is_missing_says_who_has_none() -> None:
    told = Target("latency-*", "vmq: p50", "ovs: p50", most=1)
    rows = {"latency-90": {"vmq: p50": Figure.of([2.0]), "ovs: arrived": Figure.of([1.0])}}
    assert figures_table(rows, (told,)).splitlines()[2:] == [
        "| latency-90: vmq: p50 | 2.00 | ≤ 1 × ovs: p50: it has none |",
        "| latency-90: ovs: arrived | 1.00 | - |",
    ]


def test_a_noisy_figure_has_its_range_alone() -> None:
    rows = {"idle": {"%": Figure.of([0.1, 0.2, 0.9])}}

    assert figures_table(rows, TARGETS).splitlines()[2] == (
        "| idle: % | noisy: 0.10–0.90 (spread 400%) | ≤ 1: too noisy to tell |"
    )
    assert summary(rows) == "idle: %: noisy: 0.10–0.90 (spread 400%)"


def test_what_is_not_met_says_how_far_and_why() -> None:
    """Also what cannot be told, what the other has not, and what nobody has: a bar does not vanish."""
    more = Target("64-4", "vmq", "net_vhost", least=1), Target("64-1", "vqm", least=1)
    assert unmet(ROWS, (*TARGETS, *more)).splitlines() == [
        "- 64-1, vmq ≥ 2.5 × ovs: it is 2 × ovs. It is slow.",
        "- 64-1, vqm ≥ 1: there is no such figure.",
        "- 64-4, vmq ≥ 2.5 × ovs: it is 2 × ovs. It is slow.",
        "- 64-4, vmq ≥ 1 × net_vhost: net_vhost has none.",
        "- noisy, vmq ≥ 1 × ovs: too noisy to tell.",
    ]
    assert "Not met:" in table("peers", ROWS, TARGETS)
    assert "Not met:" not in table("figures", ALONE, TARGETS)


def test_costs_are_compared_with_the_first_of_their_row() -> None:
    rows = {
        "filters": {"1": Figure.of([50.0]), "16": Figure.of([54.0, 55.0, 56.0])},
        "own": {"own": Figure.of([40.0])},
    }

    assert cost_table(rows, [Target("filters", "16", "1", most=1.05)]).splitlines()[2:] == [
        "| filters | 1 | 50.0 | - | - |",
        "| filters | 16 | 55.0 (54.0–56.0) | +10 % | ≤ 1.05 × 1: **missed** |",
        "| own | own | 40.0 | - | - |",
    ]


def test_page_keeps_its_prose_and_replaces_the_figures_of_one_part() -> None:
    names = [part.name for part in PARTS]
    old = "words\n" + "between\n".join(
        "{}\nold {name}\n{}\n".format(*marks(name), name=name) for name in names
    )

    new = page(old, "delivery", "table one", {"cpu": "x", "code": "abc", "machine": "def"}, 5)
    both = page(new, "engine", "table two", {"cpu": "y"}, 5)

    assert new.startswith("words\n")
    assert new.endswith("between\n" + old.partition("between\n")[2])
    assert "old delivery" not in new
    assert "old engine" not in both
    assert "Machine: cpu x. Median of 5 runs" in both
    assert "Machine: cpu y." in both
    assert page(both, "engine", "table two", {"cpu": "y"}, 5) == both
    with pytest.raises(ValueError, match="no place for nonsense"):
        page(old, "nonsense", "table", {}, 5)


def test_pictures_stand_beside_the_page(tmp_path) -> None:
    place = tmp_path / "page.md"
    place.write_text("\n".join(marks("delivery")))

    write("delivery", "peers", ROWS, TARGETS, {"cpu": "x"}, 5, place)

    assert "![delivery](page/delivery.svg)" in place.read_text()
    assert (tmp_path / "page" / "delivery.svg").read_text().startswith("<svg")


def test_the_page_has_a_place_for_every_part() -> None:
    text = PAGE.read_text()

    assert all(text.count(mark) == 1 for part in PARTS for mark in marks(part.name))
