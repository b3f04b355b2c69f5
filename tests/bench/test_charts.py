# SPDX-License-Identifier: Apache-2.0
"""Pictures are SVG, and show what is there to be shown."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from bench.charts import bars, curves, histograms, points
from bench.stats import HISTOGRAM, Figure
from bench.targets import Target

SVG = "{http://www.w3.org/2000/svg}"
PEERS = {"64 <B>": {"vmq": Figure.of([6.0]), "ovs": Figure.of([3.0]), "noisy": Figure.of([1.0, 9.0])}}
GROWTH = {
    "queues": {f"{count} queues": Figure.of([40.0 + count]) for count in (1, 4, 16)},
    "own": {"own": Figure.of([1.0])},
}


def found(text: str, tag: str) -> list[ET.Element]:
    return list(ET.fromstring(text).iter(SVG + tag))


def test_bars_are_as_long_as_their_figures_and_a_target_is_a_line_across() -> None:
    text = bars(PEERS, [Target("64*", "vmq", "ovs", least=1.5)])
    widths = [float(one.attrib["width"]) for one in found(text, "rect")[1:]]
    (line,) = found(text, "line")

    assert widths[0] == 2 * widths[1]
    assert float(line.attrib["x1"]) == float(found(text, "rect")[1].attrib["x"]) + 0.75 * widths[0]
    assert "noisy, from 1.00" in text
    assert bars({}) == ""


def test_what_grows_is_a_curve() -> None:
    assert points(GROWTH["queues"]) == [(1, 41.0), (4, 44.0), (16, 56.0)]
    assert len(found(curves(GROWTH, "ns"), "polyline")) == 1
    assert curves({"own": GROWTH["own"]}, "ns") == ""


def test_values_are_a_histogram() -> None:
    figures = {HISTOGRAM + "µs": Figure.of([float(one % 17) for one in range(200)]), "p50": Figure.of([8.0])}

    assert len(found(histograms(figures), "polyline")) == 1
    assert histograms({"p50": figures["p50"]}) == ""
    assert histograms({HISTOGRAM + "same": Figure.of([3.0, 3.0])}).startswith("<svg")
