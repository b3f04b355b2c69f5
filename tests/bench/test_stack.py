# SPDX-License-Identifier: Apache-2.0
"""A stacked bar: each part as long as its share."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from bench.stack import LEFT, PART, WIDTH, stacked
from bench.stats import Figure

FIGURES = {
    "in all": Figure.of([31.0]),
    f"{PART}a & b": Figure.of([10.0]),
    f"{PART}c": Figure.of([29.0, 30.0, 31.0]),
    f"{PART}d": Figure.of([-0.1]),
}


def test_parts_have_their_share_of_the_bar() -> None:
    picture = ET.fromstring(stacked(FIGURES))
    bars = [one for one in picture if one.tag.endswith("rect") and one.get("stroke")]
    widths = [float(one.get("width", "0")) for one in bars]
    assert [round(width / (WIDTH - 2 * LEFT), 2) for width in widths] == [0.25, 0.75, 0.0]
    assert "a & b: 10.0 ns, 25%" in "".join(picture.itertext())


def test_figures_without_parts_have_no_picture() -> None:
    assert stacked({"in all": Figure.of([31.0])}) == ""
