# SPDX-License-Identifier: Apache-2.0
"""Medians, spreads and ratios."""

from __future__ import annotations

import pytest

from bench.stats import Figure, middle_half, percentile, ratio


def test_figure_is_the_median_with_its_spread() -> None:
    figure = Figure.of([3.0, 1.0, 2.0])

    assert figure.median == 2.0
    assert figure.spread == 1.0
    assert figure.noisy
    assert figure.text() == "2.00 (1.00–3.00)"
    assert figure.judged() == "noisy: 1.00–3.00 (spread 100%)"
    assert Figure.of([2.0]).text() == "2.00"


def test_no_run_gives_no_figure() -> None:
    with pytest.raises(ValueError, match="no run"):
        Figure.of([])


def test_ratio_is_of_medians_and_nothing_by_zero() -> None:
    assert ratio(Figure.of([4.0]), Figure.of([2.0])) == 2.0
    assert ratio(Figure.of([4.0]), Figure.of([0.0])) is None


def test_runs_that_differ_about_nothing_have_no_median() -> None:
    assert Figure.of([0.0, 0.0]).spread == 0.0
    assert Figure.of([0.0, 0.0, 3.0]).judged() == "noisy: 0.00–3.00 (spread about nothing)"


def test_the_middle_half_leaves_out_single_runs_and_compares_those_made_in_turn() -> None:
    assert middle_half(Figure.of([1.0, 2.0, 3.0, 4.0, 99.0])) == (2.0, 4.0)
    assert middle_half(Figure.of([2.0, 4.0, 6.0]), Figure.of([1.0, 2.0, 3.0])) == (2.0, 2.0)
    assert middle_half(Figure.of([2.0, 4.0]), Figure.of([2.0])) == (1.25, 1.75)
    assert middle_half(Figure.of([2.0]), Figure.of([0.0])) == (0.0, 0.0)


def test_percentile_is_a_value_that_occurred() -> None:
    assert percentile([5, 1, 4, 2, 3], 0.5) == 3
    assert percentile([5, 1, 4, 2, 3], 0.99) == 5
