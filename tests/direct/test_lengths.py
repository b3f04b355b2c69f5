# SPDX-License-Identifier: Apache-2.0
"""Whether direct placement pays, look by look."""

from __future__ import annotations

import math

import pytest

from vmq.direct.costs import Band
from vmq.direct.figures import BUILT_IN, LONG, SHORT
from vmq.direct.lengths import FEWEST, LOOK_SECONDS, LOOKS_MOST, Lengths


class Looked:
    """Looks one after the other, each with so many frames more of one length."""

    def __init__(self) -> None:
        self.lengths, self.now, self.frames, self.volume = Lengths(), 100.0, 0, 0
        self.lengths.look(self.now, 0, 0)

    def after(self, length: int, frames: int = FEWEST, band: Band = BUILT_IN) -> bool:
        self.now += LOOK_SECONDS
        self.frames, self.volume = self.frames + frames, self.volume + frames * length
        self.lengths.look(self.now, self.frames, self.volume, band)
        return self.lengths.pays


def test_long_frames_pay_until_they_are_short_again() -> None:
    it = Looked()
    assert [it.after(length) for length in (SHORT + 1, LONG, SHORT + 1, SHORT, LONG - 1)] == [
        False, True, True, False, False,
    ]  # fmt: skip


def test_each_time_long_frames_have_to_last_twice_as_long() -> None:
    it, turns = Looked(), []
    for _ in range(9):
        looks = 1
        while not it.after(LONG):
            assert "long ones are to last" in it.lengths.why()
            looks += 1
        turns.append(looks)
        assert not it.after(SHORT)
    assert turns == [1, 2, 4, 8, 16, 32, LOOKS_MOST, LOOKS_MOST, LOOKS_MOST]


@pytest.mark.parametrize("pays", [False, True])
def test_few_frames_say_nothing(pays: bool) -> None:
    it = Looked()
    it.after(LONG if pays else SHORT)
    assert it.after(60 if pays else 1514, FEWEST - 1) is pays


def test_it_looks_now_and_then() -> None:
    it = Looked()
    it.lengths.look(it.now + LOOK_SECONDS / 2, FEWEST, FEWEST * LONG)
    assert not it.lengths.pays


def test_the_reason_names_the_length() -> None:
    it = Looked()
    assert "few frames" in it.lengths.why()
    it.after(60)
    assert "60 bytes" in it.lengths.why()
    assert "pays from 1280 on, by figures of another machine" in it.lengths.why()


def test_figures_of_this_machine_decide_where_there_are_some() -> None:
    it, here = Looked(), Band(300.0, 500.0, "measured here")
    assert [it.after(length, band=here) for length in (499, 500, 301, 300)] == [False, True, True, False]
    assert (
        it.lengths.why()
        == "its frames are 300 bytes long in the mean: direct placement pays from 500 on, measured here"
    )


def test_never_and_always() -> None:
    never, always = Band(math.inf, math.inf, "measured here"), Band(0.0, 0.0, "measured here")
    it = Looked()
    assert [it.after(length, band=always) for length in (60, 1514)] == [True, True]
    assert "pays for all lengths" in it.lengths.why()
    assert [it.after(length, band=never) for length in (1514, 60)] == [False, False]
    assert "pays for no length" in it.lengths.why()
