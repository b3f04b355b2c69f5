# SPDX-License-Identifier: Apache-2.0
"""A histogram as lines: from its first bin to its last, the longest bar for the most."""

from __future__ import annotations

import pytest

from vmq.cli.histogram import WIDTH, bar, frames_text, picture, time_text


@pytest.mark.parametrize(
    ("time", "text"),
    [(None, "-"), (0, "0 ns"), (512, "512 ns"), (1024, "1.02 µs"), (1 << 20, "1.05 ms"), (2e9, "2 s")],
)
def test_a_time_has_the_unit_that_suits_it(time: float | None, text: str):
    assert time_text(time) == text


def test_a_picture_begins_and_ends_with_what_there_is():
    lines = list(picture("batches", [0, 8, 0, 4, 0], [2, 4, 8, 16], frames_text))
    assert lines == [
        f"batches   < 4  {'█' * WIDTH}  8  66.7 %",
        f"batches   < 8  {' ' * WIDTH}  0  0.0 %",
        f"batches  < 16  {'█' * (WIDTH // 2):<{WIDTH}}  4  33.3 %",
    ]


def test_the_last_bin_has_no_edge():
    assert list(picture("latency", [0, 3], [1024], time_text)) == [
        f"latency       more  {'█' * WIDTH}  3  100.0 %"
    ]


def test_nothing_is_no_picture():
    assert list(picture("latency", [0, 0], [1], time_text)) == []


@pytest.mark.parametrize(("share", "text"), [(0, ""), (1e-9, "▏"), (1, "█" * WIDTH), (1.5 / WIDTH, "█▌")])
def test_the_least_is_seen(share: float, text: str):
    assert bar(share) == text
