# SPDX-License-Identifier: Apache-2.0
"""Targets: each is of a row that there is, and is judged by what was measured."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from bench.parts import rows
from bench.stats import Figure
from bench.targets import Target, load, of_row

FIGURES = {
    "vmq": Figure.of([6.0]),
    "ovs": Figure.of([3.0]),
    "noisy": Figure.of([1.0, 9.0]),
    "none": Figure.of([0.0]),
    "runs": Figure.of([9.0, 9.5, 10.0, 10.5, 13.0]),
    "beside": Figure.of([9.0, 10.0, 10.0, 10.0, 13.0]),
}


@pytest.mark.parametrize("target", load(), ids=lambda target: f"{target.row} {target.figure}")
def test_every_target_is_of_a_row_that_there_is(target: Target) -> None:
    assert any(fnmatch(name, target.row) for name in rows())


@pytest.mark.parametrize(
    ("target", "met", "said"),
    [
        (Target("*", "vmq", "ovs", least=2), True, "≥ 2 × ovs: met"),
        (Target("*", "vmq", "ovs", least=2.1), False, "≥ 2.1 × ovs: **missed**"),
        (Target("*", "vmq", most=6), True, "≤ 6: met"),
        (Target("*", "vmq", most=0), False, "≤ 0: **missed**"),
        (Target("*", "runs", most=10.2), None, "≤ 10.2: too close to tell"),
        (Target("*", "runs", least=9.8), None, "≥ 9.8: too close to tell"),
        (Target("*", "runs", most=10.5), True, "≤ 10.5: met"),
        (Target("*", "runs", most=9.4), False, "≤ 9.4: **missed**"),
        (Target("*", "runs", "beside", most=1.05), True, "≤ 1.05 × beside: met"),
        (Target("*", "runs", "ovs", least=3.2), None, "≥ 3.2 × ovs: too close to tell"),
        (Target("*", "vmq", "noisy", least=2), None, "≥ 2 × noisy: too noisy to tell"),
        (Target("*", "vmq", "none", least=2), None, "≥ 2 × none: too noisy to tell"),
    ],
)
def test_a_target_is_met_missed_or_cannot_be_told(target: Target, met: bool | None, said: str) -> None:
    assert target.met(FIGURES) is met
    assert target.verdict(FIGURES) == said


def test_a_target_concerns_rows_that_have_its_figures() -> None:
    one, other = Target("64-*", "vmq", "ovs", least=1), Target("64-*", "vmq", "net_vhost", least=1)

    assert of_row([one, other], "64-1", FIGURES) == [one]
    assert of_row([one, other], "1514-1", FIGURES) == []


def test_a_target_without_a_bar_or_with_a_misspelt_key_is_refused() -> None:
    with pytest.raises(ValueError, match="one of least and most"):
        load('[[target]]\nrow = "x"\nfigure = "y"\n')
    with pytest.raises(TypeError, match="leats"):
        load('[[target]]\nrow = "x"\nfigure = "y"\nleats = 1\n')
