# SPDX-License-Identifier: Apache-2.0
"""Whether direct placement pays, look by look."""

from __future__ import annotations

import pytest

from vmq.direct.lengths import FEWEST, LONG, LOOK_SECONDS, SHORT, Lengths


class Looked:
    """Looks one after the other, each with so many frames more of one length."""

    def __init__(self) -> None:
        self.lengths, self.now, self.frames, self.volume = Lengths(), 100.0, 0, 0
        self.lengths.look(self.now, 0, 0)

    def after(self, length: int, frames: int = FEWEST) -> bool:
        self.now += LOOK_SECONDS
        self.frames, self.volume = self.frames + frames, self.volume + frames * length
        self.lengths.look(self.now, self.frames, self.volume)
        return self.lengths.pays


def test_long_frames_pay_until_they_are_short_again() -> None:
    it = Looked()
    assert [it.after(length) for length in (SHORT + 1, LONG, SHORT + 1, SHORT, LONG - 1, LONG)] == [
        False, True, True, False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize("pays", [False, True])
def test_few_frames_say_nothing(pays: bool) -> None:
    it = Looked()
    it.after(LONG if pays else SHORT)
    assert it.after(60 if pays else 1514, FEWEST - 1) is pays


def test_counters_that_were_cleared_say_nothing() -> None:
    it = Looked()
    assert it.after(LONG)
    it.frames = it.volume = 0
    assert it.after(60, 10)
    assert not it.after(60)


def test_it_looks_now_and_then() -> None:
    it = Looked()
    it.lengths.look(it.now + LOOK_SECONDS / 2, FEWEST, FEWEST * LONG)
    assert not it.lengths.pays


def test_the_reason_names_the_length() -> None:
    it = Looked()
    assert "few frames" in it.lengths.why()
    it.after(60)
    assert "60 bytes" in it.lengths.why()
