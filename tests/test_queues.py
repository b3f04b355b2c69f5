# SPDX-License-Identifier: Apache-2.0
"""The life cycle of a receive queue against a table written down a second time, and ids that outlive their items."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.errors import ApiError
from vmq.queues import (
    GENERATION_BITS,
    NEXT,
    PUBLIC,
    SLOT_BITS,
    SLOTS_MAX,
    Event,
    Public,
    Slots,
    State,
    diagram,
    grid,
    step,
)

PAGE = Path(__file__).resolve().parents[1] / "docs" / "queues.md"

# vmq-semantics.md §4.2, copied by hand: a letter for each state, - where the source is blank.
LETTERS = dict(zip("UASRPDF", State, strict=True))
TABLE = """
                                        U A S R P D F
ALLOCATE_QUEUE                          A - - - - - -
QUEUE_PARAMETERS query/set              - A S R P - -
SET_FILTER                              - S S R R - -
CLEAR_FILTER (last)                     - - A P - - -
CLEAR_FILTER (not last)                 - - S R - - -
ENUM_FILTERS                            - A S R P - -
FILTER_PARAMETERS query                 - - S R - - -
ALLOCATION_COMPLETE                     - P R - - - -
Receive packet                          - - - R - - -
FREE_QUEUE                              - D - - D - -
DMA stopped + status sent               - - - - - F -
all buffers returned, resources freed   - - - - - - U
"""


def expected() -> dict[tuple[State, Event], State | None]:
    head, *rows = TABLE.strip("\n").splitlines()
    columns = [LETTERS[letter] for letter in head.split()]
    found = {}
    for row in rows:
        event = Event(row[:40].strip())
        for state, letter in zip(columns, row[40:].split(), strict=True):
            found[state, event] = LETTERS.get(letter)
    return found


def test_the_table_has_84_pairs_of_which_26_lead_somewhere():
    """S2: twelve events, seven states."""
    assert len(expected()) == 84
    assert sum(after is not None for after in expected().values()) == 26
    assert sum(len(row) for row in NEXT.values()) == 26


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)), ids=lambda member: member.name)
def test_each_event_in_each_state_does_what_the_table_says(state, event):
    """S2: 26 transitions as written, 58 refused in words."""
    after = expected()[state, event]
    if after is not None:
        assert step(state, event) is after
        return
    with pytest.raises(ApiError) as refused:
        step(state, event)
    assert refused.value.status == "INVALID_PARAMETER"
    assert state.value in str(refused.value)
    assert event.value in str(refused.value)
    assert refused.value.remedy


def test_users_see_four_states():
    """vmq-semantics.md §4.4."""
    assert {state.value: public.value for state, public in PUBLIC.items()} == {
        "Undefined": "Undefined",
        "Allocated": "Paused",
        "Set": "Paused",
        "Running": "Running",
        "Paused": "Paused",
        "StopDMA": "Paused",
        "Freeing": "DmaStopped",
    }
    assert set(PUBLIC.values()) == set(Public)


def test_the_step_into_freeing_is_the_only_one_that_users_see_as_dma_stopped():
    """vmq-semantics.md §4.3: the DMA-stopped status is sent for FREE_QUEUE only, never when a filter is cleared."""
    into = [event for event, row in NEXT.items() if State.FREEING in row.values()]
    assert into == [Event.DMA_STOPPED]


def test_every_state_leads_back_to_undefined():
    """Teardown never fails: whatever happened, a receive queue can be freed."""
    reached = {State.UNDEFINED}
    while True:
        more = {before for row in NEXT.values() for before, after in row.items() if after in reached}
        if more <= reached:
            break
        reached |= more
    assert reached == set(State)


def test_the_drawings_of_the_document_are_those_of_the_table():
    """docs/queues.md is drawn from the table, not beside it."""
    text = PAGE.read_text()
    assert f"```mermaid\n{diagram()}\n```" in text
    assert f"\n{grid()}\n" in text


def test_the_drawing_has_every_change_of_state_once():
    """Eleven arrows; what leaves a state as it is would only hide them."""
    arrows = [line for line in diagram().splitlines() if "-->" in line and "[*]" not in line]
    changes = {
        (before, after) for row in NEXT.values() for before, after in row.items() if before is not after
    }
    assert len(arrows) == len(changes) == 11


# --- ids ------------------------------------------------------------------------------------------------------


def test_ids_of_the_first_generation_are_slots():
    """People type them."""
    slots: Slots[str] = Slots(1, 3)
    assert [slots.take(word) for word in ("a", "b", "c", "d")] == [1, 2, 3, None]
    assert list(slots) == ["a", "b", "c"]


def test_a_stale_id_names_nobody_and_is_counted():
    """S17, D17: a buffer that comes back after its receive queue is gone must not reach the next one there."""
    slots: Slots[str] = Slots(1, 1)
    old = slots.take("old")
    assert old is not None
    slots.give_back(old)
    new = slots.take("new")
    assert new == 1 << SLOT_BITS | 1
    assert slots.find(old) is None
    assert slots.stale == 1
    assert slots.find(new) == "new"
    assert slots.stale == 1


@pytest.mark.parametrize("name", [0, 2, -1, 1 << SLOT_BITS | 1, 1 << 80, True, 1.0, "1", None, [1]])
def test_an_id_that_never_was_names_nobody_and_is_not_called_stale(name):
    """What a client makes up is its own mistake, not a sign of a late buffer."""
    slots: Slots[str] = Slots(1, 1)
    slots.take("a")
    assert slots.find(name) is None
    assert slots.stale == 0


def test_a_slot_rests_as_long_as_others_are_free():
    """The later a number comes back, the sooner a mistake shows as an unknown id."""
    slots: Slots[str] = Slots(1, 3)
    first = slots.take("a")
    assert first is not None
    slots.give_back(first)
    assert [slots.take(word) for word in ("b", "c", "d")] == [2, 3, 1 << SLOT_BITS | 1]


def test_a_slot_that_has_had_every_generation_retires():
    """No id is ever given twice, and none outgrows the integers of JSON."""
    slots: Slots[str] = Slots(1, 1)
    slots._generations[1] = (1 << GENERATION_BITS) - 1
    last = slots.take("last")
    assert last is not None
    assert last < 1 << 53
    slots.give_back(last)
    assert slots.take("more") is None


@pytest.mark.parametrize(("first", "capacity"), [(0, 0), (-1, 2), (1, SLOTS_MAX)])
def test_slots_fit_into_their_bits(first, capacity):
    """A slot beyond would be read as another generation."""
    with pytest.raises(ValueError, match="slots"):
        Slots(first, capacity)


@given(st.lists(st.integers(0, 7)))
def test_ids_are_unique_for_ever(moves):
    """Against a plain list: take when even, give back when odd."""
    slots: Slots[int] = Slots(1, 3)
    given_out: list[int] = []
    live: dict[int, int] = {}
    for move in moves:
        if move % 2 == 0:
            name = slots.take(move)
            assert (name is None) == (len(live) == 3)
            if name is not None:
                given_out.append(name)
                live[name] = move
        elif live:
            gone = sorted(live)[move % len(live)]
            slots.give_back(gone)
            del live[gone]
    assert len(set(given_out)) == len(given_out)
    assert {name: slots.find(name) for name in given_out} == {name: live.get(name) for name in given_out}
    assert slots.stale == len(given_out) - len(live)
    assert len(slots) == len(live)
