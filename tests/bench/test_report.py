# SPDX-License-Identifier: Apache-2.0
"""The page: figures are replaced between the marks, prose stays."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

from bench.report import PAGE, PARTS, as_json, bars, cost_table, delivery_table, engine_table, marks, page
from bench.stats import Figure

ROWS = {
    "64 B, 1 built-in": {"vmq": Figure.of([6.0]), "net_vhost": Figure.of([4.0]), "ovs": Figure.of([3.0])},
    "64 B, 4 built-in": {"vmq": Figure.of([5.0, 6.0, 7.0]), "ovs": Figure.of([3.0])},
}
ALONE = {"idle": {"%": Figure.of([0.2])}}


def test_table_gives_ratios_and_leaves_out_what_was_not_compared() -> None:
    lines = delivery_table(ROWS).splitlines()

    assert lines[2] == "| 64 B, 1 built-in | 6.00 | 4.00 | 3.00 | 1.5 × | 2.0 × |"
    assert lines[3] == "| 64 B, 4 built-in | 6.00 (5.00–7.00) | - | 3.00 | - | 2.0 × |"


def test_page_keeps_its_prose_and_replaces_the_figures_of_one_part() -> None:
    old = (
        "words\n"
        + "between\n".join(f"{marks(part)[0]}\nold {part}\n{marks(part)[1]}\n" for part in PARTS)
        + "more words\n"
    )

    new = page(old, "delivery", delivery_table(ROWS), {"cpu": "x"}, 5)
    both = page(new, "engine", engine_table(ALONE), {"cpu": "y"}, 5)

    assert new.startswith("words\n")
    assert new.endswith("between\n" + old.partition("between\n")[2])
    assert "old delivery" not in new
    assert "old engine" not in both
    assert "Machine: cpu x." in both
    assert "Machine: cpu y." in both
    assert page(both, "engine", engine_table(ALONE), {"cpu": "y"}, 5) == both


def test_costs_are_compared_with_the_first_of_their_row() -> None:
    rows = {
        "filters": {"1": Figure.of([50.0]), "16": Figure.of([54.0, 55.0, 56.0])},
        "own": {"own": Figure.of([40.0])},
    }

    assert cost_table(rows).splitlines()[2:] == [
        "| filters | 1 | 50.0 | - |",
        "| filters | 16 | 55.0 (54.0–56.0) | +10 % |",
        "| own | own | 40.0 | - |",
    ]


def test_the_page_has_a_place_for_every_part() -> None:
    text = PAGE.read_text()

    assert all(text.count(mark) == 1 for part in PARTS for mark in marks(part))


def test_bars_are_a_picture() -> None:
    assert ET.fromstring(bars(ROWS)).tag.endswith("svg")


def test_json_has_every_run() -> None:
    told = json.loads(as_json(ROWS, ALONE, {"cpu": "x"}))

    assert told["delivery"]["64 B, 4 built-in"]["vmq"] == [5.0, 6.0, 7.0]
