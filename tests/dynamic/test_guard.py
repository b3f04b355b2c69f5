# SPDX-License-Identifier: Apache-2.0
"""The guard: slower is found, noise is not taken for it, and what was found has consequences that everybody hears."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.dynamic.guard import (
    ERROR,
    FIRST_PAUSE,
    FRAMES_MIN,
    LONGEST_PAUSE,
    NEXT,
    PAIRS,
    Answer,
    Guard,
    Path,
    Sample,
    Verdict,
    _tail,
    judge,
)


def samples(costs: Iterable[tuple[float, float]], frames: int = 10_000) -> Iterator[Sample]:
    """Own and plain in turns, of ns a frame."""
    for own, plain in costs:
        yield Sample(Path.OWN, frames, own * frames)
        yield Sample(Path.PLAIN, frames, plain * frames)


def noisy(
    own: float, plain: float, noise: float, seed: int = 1, pairs: int = PAIRS
) -> list[tuple[float, float]]:
    """Costs that are disturbed, own and plain each for itself."""
    chance = random.Random(seed)
    return [
        (own * chance.lognormvariate(0, noise), plain * chance.lognormvariate(0, noise)) for _ in range(pairs)
    ]


# --- judge --------------------------------------------------------------------------------------------------------


def test_slower_is_found_with_its_numbers():
    """B6: what people read, and the record behind it."""
    verdict = judge(samples([(150.0, 100.0)] * 15))
    assert verdict.answer is Answer.SLOWER
    assert verdict.why == (
        "own 150 ± 0 ns a frame, plain 100 ± 0: more than 5% slower in 15 of 15 pairs, by chance 3.1e-05"
    )
    assert (verdict.own, verdict.plain, verdict.ratio, verdict.pairs, verdict.slower_in) == (
        150,
        100,
        1.5,
        15,
        15,
    )
    assert verdict.error == 2**-15


@pytest.mark.parametrize(
    ("own", "plain", "noise", "answer"),
    [
        (100.0, 230.0, 0.10, Answer.NOT_SLOWER),
        (100.0, 100.0, 0.01, Answer.NOT_SLOWER),
        (103.0, 100.0, 0.001, Answer.NOT_SLOWER),
        (120.0, 100.0, 0.02, Answer.SLOWER),
        (105.0, 100.0, 0.10, Answer.UNKNOWN),
        (100.0, 100.0, 0.80, Answer.UNKNOWN),
    ],
)
def test_the_answer_fits_the_difference_and_the_noise(own: float, plain: float, noise: float, answer: Answer):
    assert judge(samples(noisy(own, plain, noise))).answer is answer


def test_what_drifts_for_both_is_not_taken_for_a_difference():
    """A neighbour that comes slowly makes everything three times as dear."""
    assert (
        judge(samples([(100.0 + 15 * turn, 101.0 + 15 * turn) for turn in range(15)])).answer
        is Answer.NOT_SLOWER
    )


def test_one_interrupt_does_not_decide():
    """Averages would say slower."""
    costs = [(100.0, 100.0)] * 14 + [(100_000.0, 100.0)]
    assert judge(samples(costs)).answer is Answer.NOT_SLOWER


@pytest.mark.parametrize("frames", [0, FRAMES_MIN - 1])
def test_too_few_frames_say_nothing(frames: int):
    verdict = judge(samples([(1.0, 1.0)] * 40, frames))
    assert verdict.answer is Answer.UNKNOWN
    assert verdict.why == "0 pairs of samples with 1000 frames each, and 15 are needed"


def test_a_sample_without_a_partner_is_skipped():
    """Nor is what remains paired with another time."""
    own, plain = Sample(Path.OWN, 10_000, 2e6), Sample(Path.PLAIN, 10_000, 1e6)
    short = Sample(Path.PLAIN, 1, 1.0)
    assert judge([own, own, plain], pairs_min=1).pairs == 1
    later = Sample(Path.OWN, 10_000, 4e6)
    assert judge([own, short, plain, later], pairs_min=1).ratio == 4.0
    assert judge([own, short, own], pairs_min=1).pairs == 0
    both = judge([own, plain, plain, own], pairs_min=1)
    assert (both.pairs, both.ratio) == (2, 2.0)


@pytest.mark.parametrize("pairs", range(1, 11))
def test_the_error_is_that_of_a_fair_coin(pairs: int):
    """Counted by hand: all throws there are."""
    throws = [sum(throw) for throw in product((0, 1), repeat=pairs)]
    for votes in range(pairs + 1):
        assert _tail(votes, pairs) == float(Fraction(sum(heads >= votes for heads in throws), len(throws)))


def test_chance_alone_is_called_slower_as_rarely_as_promised():
    """Own at the very edge of what is tolerated, a thousand sets with much noise."""
    answers = [judge(samples(noisy(1.05, 1.0, 0.3, seed))).answer for seed in range(1000)]
    assert answers.count(Answer.SLOWER) <= 1000 * ERROR + 10
    assert answers.count(Answer.NOT_SLOWER) <= 1000 * ERROR + 10


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)), min_size=PAIRS, max_size=40))
def test_the_answer_is_what_most_pairs_say_or_none(costs: list[tuple[float, float]]):
    """It never contradicts the median, and the unit of time does not matter."""
    verdict = judge(samples(costs))
    if verdict.answer is Answer.SLOWER:
        assert verdict.ratio > 1.05
        assert verdict.error <= ERROR
    elif verdict.answer is Answer.NOT_SLOWER:
        assert verdict.ratio <= 1.05
        assert verdict.error <= ERROR
    else:
        assert verdict.error > ERROR
    assert judge(samples([(4 * own, 4 * plain) for own, plain in costs])).answer is verdict.answer


# --- guard --------------------------------------------------------------------------------------------------------

SLOWER, FINE, OPEN = (Verdict(answer, f"measured: {answer.value}") for answer in Answer)


def test_every_answer_has_a_consequence_on_both_ways():
    assert set(NEXT) == set(product(Path, Answer))


def test_a_change_made_worse_on_purpose_is_reverted_with_its_numbers():
    """B6."""
    guard = Guard(0.0)
    assert (guard.path, guard.due, guard.why) == (Path.OWN, 0.0, "not measured yet")
    turn = guard.hear(judge(samples([(150.0, 100.0)] * 15)), 10.0)
    assert turn is not None
    assert (turn.path, guard.path, guard.due) == (Path.PLAIN, Path.PLAIN, 10.0 + FIRST_PAUSE)
    assert turn.why == (
        "slower than plain: own 150 ± 0 ns a frame, plain 100 ± 0: more than 5% slower in 15 of 15 pairs, "
        "by chance 3.1e-05; tried again in 60 s"
    )
    back = guard.hear(judge(samples([(90.0, 100.0)] * 15)), 70.0)
    assert back is not None
    assert back.path is Path.OWN
    assert back.why.startswith("no longer slower: own 90 ± 0")


def test_who_cannot_tell_changes_nothing():
    """Neither way, and no longer pause."""
    guard = Guard(0.0)
    assert guard.hear(OPEN, 0.0) is None
    assert guard.path is Path.OWN
    guard.hear(SLOWER, 0.0)
    assert guard.hear(OPEN, 60.0) is None
    assert (guard.path, guard.due, guard.why) == (Path.PLAIN, 120.0, "measured: cannot tell")


def test_the_pauses_grow_and_end_growing():
    guard, now, pauses = Guard(0.0), 0.0, []
    for _ in range(12):
        guard.hear(SLOWER, now)
        pauses.append(guard.due - now)
        now = guard.due
    assert pauses[:4] == [60.0, 120.0, 240.0, 480.0]
    assert pauses[-2:] == [LONGEST_PAUSE, LONGEST_PAUSE]


def test_who_falls_again_soon_waits_longer_and_who_was_well_for_long_begins_anew():
    guard = Guard(0.0)
    guard.hear(SLOWER, 0.0)
    guard.hear(FINE, 60.0)
    guard.hear(SLOWER, 660.0)
    assert guard.due == 660.0 + 120.0
    guard.hear(FINE, 780.0)
    guard.hear(SLOWER, 780.0 + LONGEST_PAUSE)
    assert guard.due == 780.0 + LONGEST_PAUSE + FIRST_PAUSE


@given(st.lists(st.sampled_from([SLOWER, FINE, OPEN]), max_size=40))
def test_it_is_told_exactly_when_the_way_changes(verdicts: list[Verdict]):
    """Loudly, and not at every look."""
    guard, now = Guard(0.0), 0.0
    for verdict in verdicts:
        before = guard.path
        turn = guard.hear(verdict, now)
        assert (turn is not None) == (guard.path is not before)
        assert turn is None or turn.path is guard.path
        assert now < guard.due <= now + LONGEST_PAUSE
        now = guard.due


def test_falls_in_a_day_are_few_whatever_is_measured():
    """Alternating verdicts are the worst there is."""
    guard, now, falls = Guard(0.0), 0.0, 0
    while now < 86_400:
        turn = guard.hear(SLOWER if guard.path is Path.OWN else FINE, now)
        falls += turn is not None and turn.path is Path.PLAIN
        now = guard.due
    assert falls <= 16


def test_a_record_has_every_number_and_the_answer_as_a_word():
    """For JSON."""
    record = Verdict(Answer.SLOWER, "own 90", own=90.0, pairs=16).record()
    assert (record["answer"], record["why"], record["own"], record["pairs"]) == ("slower", "own 90", 90.0, 16)
    assert json.loads(json.dumps(record)) == record
