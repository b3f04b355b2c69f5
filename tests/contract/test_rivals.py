# SPDX-License-Identifier: Apache-2.0
"""Quarrels are found as if every filter had been asked."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tests.contract.double import filter_of, mac
from vmq.contract import rivals as module
from vmq.contract.rivals import Rivals, destination
from vmq.filters import Field, FieldTest, Filter, Flag, Kind, overlap

MASK = Filter((FieldTest(Field.MAC_DESTINATION, Kind.MASK_EQUAL, 0, 1),))
INNER = Filter(filter_of(1).tests, flags=Flag.ENCAPSULATION)


@dataclass
class Placed:
    filter: Filter
    place: int


def filled(*placed: tuple[Filter, int]) -> Rivals:
    rivals = Rivals()
    for name, (one, place) in enumerate(placed, 1):
        rivals.add(name, Placed(one, place))
    return rivals


def test_only_a_filter_of_one_outer_address_has_a_destination():
    """An inner address says nothing about the outer one."""
    assert destination(filter_of(1, 10)) == mac(1)
    assert destination(MASK) is None
    assert destination(INNER) is None


def test_the_same_address_on_two_receive_queues_is_a_quarrel():
    """vmq-semantics.md §5.4: not the first in order of ids."""
    rivals = filled((filter_of(1, 10), 7))
    assert rivals.quarrel(filter_of(1, 10), 8) == 1
    assert rivals.quarrel(filter_of(1), 8) == 1
    assert rivals.quarrel(filter_of(1, 11), 8) is None
    assert rivals.quarrel(filter_of(2, 10), 8) is None


def test_one_receive_queue_does_not_quarrel_with_itself():
    """The filters of a receive queue are alternatives."""
    assert filled((filter_of(1, 10), 7)).quarrel(filter_of(1), 7) is None


def test_priority_settles_a_quarrel():
    assert filled((filter_of(1, 10), 7)).quarrel(filter_of(1, 10, priority=1), 8) is None


def test_a_mask_meets_every_address():
    """B13: satisfiability, not equality."""
    rivals = filled((filter_of(1), 7), (MASK, 9))
    assert rivals.quarrel(MASK, 8) is not None
    assert rivals.quarrel(filter_of(2), 8) == 2


def test_what_was_removed_quarrels_with_nobody():
    rivals = filled((filter_of(1), 7))
    rivals.remove(1, filter_of(1))
    assert rivals.quarrel(filter_of(1), 8) is None
    assert not rivals._filters


def test_a_filter_that_moves_does_not_quarrel_with_itself():
    rivals = filled((filter_of(1), 7), (filter_of(1, 10), 7))
    assert rivals.quarrel(filter_of(1, 10), 8, besides=2) == 1
    assert filled((filter_of(1), 7)).quarrel(filter_of(1), 8, besides=1) is None


some = st.one_of(
    st.builds(filter_of, st.integers(1, 3), st.sampled_from([None, 0, 10, 11]), priority=st.integers(0, 1)),
    st.sampled_from([MASK, INNER]),
)


@given(st.lists(st.tuples(some, st.integers(1, 3)), max_size=8), some, st.integers(1, 3))
def test_asking_some_filters_finds_what_asking_all_would_find(placed, new, place):
    """Against a search through all of them."""
    all_of_them = {
        name
        for name, (one, where) in enumerate(placed, 1)
        if where != place and one.priority == new.priority and overlap(one, new)
    }
    found = filled(*placed).quarrel(new, place)
    assert found in all_of_them or (found is None and not all_of_them)


def test_a_thousand_other_addresses_cost_no_comparison(monkeypatch):
    """1,000 filter changes a second: the work of one does not grow with the number of filters."""
    asked = []
    rivals = filled(*((filter_of(number % 250 + 1, number // 250 + 1), 7) for number in range(1000)))
    monkeypatch.setattr(module, "overlap", lambda a, b: asked.append((a, b)))
    rivals.quarrel(filter_of(255, 10), 8)
    assert asked == []
