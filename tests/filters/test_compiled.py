# SPDX-License-Identifier: Apache-2.0
"""Filters as keys and rows: no frame goes elsewhere than the list of filters says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.filters.strategies import GROUP, MACS, A, B, filters, frames, tags
from vmq.abi.ethernet import mac_number
from vmq.dataplane.match import COLUMNS
from vmq.dataplane.state import NONE, TO_DROP_QUEUE
from vmq.filters.compiled import Arranged, Arranger, Entry, arrange, in_order, plain, rows
from vmq.filters.model import NO_FLAGS, Field, FieldTest, Filter, Flag, Kind
from vmq.filters.reference import matches

MAC_A = mac_number(A)
TO_A = FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, MAC_A)
VLAN_5 = FieldTest(Field.VLAN_ID, Kind.EQUAL, 5)
PORT_53 = FieldTest(Field.UDP_DESTINATION, Kind.EQUAL, 53)
UNTAGGED, INSIDE = Flag.VLAN_UNTAGGED_OR_ZERO, Flag.ENCAPSULATION


@pytest.mark.parametrize(("wanted", "key"), [
    (Filter((TO_A, VLAN_5)), (MAC_A, 5)),
    (Filter((VLAN_5, TO_A)), (MAC_A, 5)),
    (Filter((TO_A,), flags=UNTAGGED), (MAC_A, 0)),
    (Filter((TO_A,)), None),  # any VLAN: not one key
    (Filter((TO_A, VLAN_5), flags=INSIDE), None),
    (Filter((TO_A,), flags=UNTAGGED | INSIDE), None),
    (Filter((TO_A, VLAN_5, PORT_53)), None),
    (Filter((TO_A, PORT_53), flags=UNTAGGED), None),
    (Filter((VLAN_5,)), None),
    (Filter((TO_A, FieldTest(Field.VLAN_ID, Kind.EQUAL, 0))), None),  # not frames without a tag
    (Filter((TO_A, FieldTest(Field.VLAN_ID, Kind.NOT_EQUAL, 5))), None),
    (Filter((FieldTest(Field.MAC_DESTINATION, Kind.MASK_EQUAL, 2, 3), VLAN_5)), None),
    (Filter((FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, mac_number(GROUP)), VLAN_5)), None),
])  # fmt: skip
def test_one_address_in_one_vlan_or_none_is_a_key(wanted: Filter, key: tuple[int, int] | None) -> None:
    assert plain(wanted) == key


@st.composite
def plain_filters(draw: st.DrawFn) -> Filter:
    test = FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, draw(st.sampled_from(MACS)))
    priority = draw(st.integers(-1, 1))
    if draw(st.booleans()):
        return Filter((test,), priority, UNTAGGED)
    return Filter((test, FieldTest(Field.VLAN_ID, Kind.EQUAL, draw(st.sampled_from([5, 6])))), priority)


def entries() -> st.SearchStrategy[list[Entry]]:
    return st.lists(filters() | plain_filters(), max_size=7).map(
        lambda made: [(one, target) for target, one in enumerate(made)]
    )


def first(found: list[Entry], frame: bytes, tag: tuple[int, int, bool]) -> int:
    return next((target for one, target in in_order(found) if matches(one, frame, *tag)), NONE)


@settings(max_examples=400)
@given(entries(), frames(), tags())
def test_rows_first_and_then_the_key_is_the_same_as_the_list(
    found: list[Entry], frame: bytes, tag: tuple[int, int, bool]
) -> None:
    arranged = arrange(found)

    target = first(list(arranged.generic), frame, tag)
    if target == NONE and len(frame) >= 14:
        target = arranged.plain.get((int.from_bytes(frame[:6], "little"), tag[0]), NONE)

    assert target == first(found, frame, tag)


def test_plain_filters_are_rows_only_where_they_go_before_a_generic_one() -> None:
    """Frames of segments whose filters are all plain never meet a row."""
    early, late = Filter((TO_A, VLAN_5), priority=1), Filter((TO_A, VLAN_5), priority=-1)
    elsewhere = Filter((FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, mac_number(B)), VLAN_5), priority=1)
    generic = Filter((TO_A, PORT_53))

    assert arrange([(early, 1), (late, 2)]).generic == ()
    assert arrange([(generic, 3), (late, 2), (elsewhere, 4)]).generic == ((generic, 3),)
    assert arrange([(generic, 3), (early, 1)]).generic == ((early, 1), (generic, 3))


def test_of_equal_priorities_generic_filters_go_first_and_then_the_first_in_the_list() -> None:
    made = [(Filter((TO_A,), priority), target) for target, priority in enumerate((0, 5, 0, 5))]
    key = (Filter((TO_A, VLAN_5), 5), 4)

    assert [target for _, target in in_order([key, *made])] == [1, 3, 4, 0, 2]
    assert arrange([key, *made]).generic == (made[1], made[3], key, made[0], made[2])


def test_rows_are_runs_of_tests_with_the_narrowest_first() -> None:
    different = FieldTest(Field.PRIORITY, Kind.NOT_EQUAL, 3)
    block = FieldTest(Field.MAC_SOURCE, Kind.MASK_EQUAL, 2, 3)
    table = rows([(Filter((different, block, TO_A), flags=UNTAGGED | INSIDE), 7), (Filter((TO_A,), 1), 8)])

    assert [COLUMNS[column] for column in table["column"]] == [
        "mac_destination",
        "inner_mac_destination",
        "vlan_or_zero",
        "inner_mac_source",
        "priority",
    ]
    assert table["mask"].tolist() == [(1 << 48) - 1, (1 << 48) - 1, 4095, 3, 7]
    assert table["value"].tolist() == [MAC_A, MAC_A, 0, 2, 3]
    assert table["negated"].tolist() == [0, 0, 0, 0, 1]
    assert table["target"].tolist() == [8, NONE, NONE, NONE, 7]
    assert table["next"].tolist() == [1, 5, 5, 5, 5]


def test_no_filters_are_no_rows() -> None:
    assert len(rows([])) == 0
    assert arrange([]).plain == {}


@pytest.mark.parametrize("entry", [(Filter((TO_A,)), NONE), (Filter(()), 1)])
def test_a_filter_that_has_no_end_is_no_row(entry: Entry) -> None:
    with pytest.raises(ValueError, match="no filter with a target"):
        rows([entry])


def test_every_field_has_its_columns() -> None:
    for field in Field:
        assert len(rows([(Filter((FieldTest(field, Kind.EQUAL, 1),), flags=NO_FLAGS), 0)])) == 1
        assert len(rows([(Filter((FieldTest(field, Kind.EQUAL, 1),), flags=INSIDE), 0)])) == 1


# --- filters that change ------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 3), filters() | plain_filters(), st.booleans()), max_size=25), st.data()
)
def test_filters_that_change_one_at_a_time_are_arranged_as_all_at_once(
    steps: list[tuple[int, Filter, bool]], data: st.DataObject
) -> None:
    """Set, cleared and moved between receive queues, one of which is the drop queue; against `arrange` on the whole list."""
    arranger, queues = Arranger(), {queue: dict[int, Filter]() for queue in range(4)}
    targets = {0: 10, 1: 11, 2: 12, 3: TO_DROP_QUEUE}
    for number, (queue, new, again) in enumerate(steps, 1):
        changed = {queue}
        there = [(place, name) for place, kept in queues.items() for name in kept]
        if again and there:
            place, name = data.draw(st.sampled_from(there))
            moved = queues[place].pop(name)
            changed.add(place)
            if data.draw(st.booleans()):
                queues[queue][name] = moved
        else:
            queues[queue][number] = replace(new, priority=number)
        arranger.change({place: (dict(queues[place]), targets[place]) for place in changed})
        every = [(one, targets[place]) for place, kept in queues.items() for one in kept.values()]
        wanted, found = arrange(every), arranger.arranged()
        assert found == wanted


def test_while_all_are_plain_and_differ_nothing_is_arranged_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmq.filters.compiled.arrange", None)
    arranger = Arranger()
    one, other = Filter((TO_A, VLAN_5)), Filter((TO_A,), flags=UNTAGGED)
    arranger.change({1: ({1: one}, 7), 2: ({2: other}, 8)})
    assert arranger.arranged() == Arranged({(MAC_A, 5): 7, (MAC_A, 0): 8}, ())
    arranger.change({1: ({}, 7), 2: ({2: other, 1: one}, 8)})
    assert arranger.arranged() == Arranged({(MAC_A, 5): 8, (MAC_A, 0): 8}, ())
    arranger.change({2: ({}, 8)})
    assert arranger.arranged() == Arranged({}, ())
