# SPDX-License-Identifier: Apache-2.0
"""Frames of every shape are read as that shape."""

from __future__ import annotations

import pytest

from vmq.filters.example import SHAPES, Column, Shape, build, equal, tag, unequal
from vmq.filters.model import BITS, Field, Kind
from vmq.filters.reference import read


def values_of(shape: Shape) -> dict[Column, int]:
    """Different values for all columns, within the shape's demands."""
    columns = [(field, inner) for inner in (False, True) for field in Field if shape.has(field)]
    values = {
        (field, inner): 2 + number & (1 << BITS[field]) - 1 for number, (field, inner) in enumerate(columns)
    }
    values |= {column: test.value for column, test in shape.demands() if test.kind is Kind.EQUAL}
    return values


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_frame_shows_exactly_the_values_it_was_built_of(shape: Shape) -> None:
    values = values_of(shape)

    vid, tci = tag(values)
    seen = read(build(shape, values), vid, tci, shape.tagged)

    fields = {field for field in Field if shape.has(field)}
    assert set(seen.outer) == fields
    assert {field: seen.outer[field] for field in fields - {Field.PACKET_TYPE}} == {
        field: values[field, False] for field in fields - {Field.PACKET_TYPE}
    }
    for field in (Field.MAC_DESTINATION, Field.MAC_SOURCE):
        assert seen.inner[field] == values[field, shape.tunnel]


def test_there_are_no_two_frames_of_one_kind() -> None:
    assert len(set(SHAPES)) == len(SHAPES) == 20


def test_an_untagged_frame_of_type_802_1q_would_be_tagged() -> None:
    untagged, tagged = (Shape(yes, None, SHAPES[0].transport) for yes in (False, True))
    demand = ((Field.ETHERTYPE, False), unequal(Field.ETHERTYPE, 0x8100))

    assert demand in list(untagged.demands())
    assert demand not in list(tagged.demands())


def test_columns_without_a_value_are_zero() -> None:
    shape = SHAPES[0]

    assert build(shape, {(Field.ETHERTYPE, False): 0x8906}) == bytes(12) + b"\x89\x06"
    assert tag({}) == (0, 0)
    assert equal(Field.PRIORITY, 3).passes(3)
