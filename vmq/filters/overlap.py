# SPDX-License-Identifier: Apache-2.0
"""Whether one frame can match two filters, found by building it.

What fields a frame has follows from its shape (example.py). There are few shapes, and in each of them a field is
either absent, so that a test of it fails, or free but for what the shape itself demands. So every shape is tried, and
in it every column on its own: the bits that tests fix must agree, and of the values that the other bits leave, at
most as many are forbidden as there are NOT_EQUAL tests. The work is bounded by shapes × tests, whatever the widths.

Packet type and destination are one field in two words: a test of the type becomes a demand on the destination.
Frames that are cut short or malformed need no shapes: whatever they match, a whole one of the same kind matches too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from vmq.abi.ethernet import MAC_BROADCAST, MAC_GROUP_BIT
from vmq.filters.example import SHAPES, Column, Demand, Shape, build, equal, tag, unequal
from vmq.filters.model import ADDRESSES, BITS, Field, FieldTest, Filter, Flag, Kind, PacketType, field_text

TYPES = {
    PacketType.UNICAST: [FieldTest(Field.MAC_DESTINATION, Kind.MASK_EQUAL, 0, MAC_GROUP_BIT)],
    PacketType.MULTICAST: [
        FieldTest(Field.MAC_DESTINATION, Kind.MASK_EQUAL, MAC_GROUP_BIT, MAC_GROUP_BIT),
        unequal(Field.MAC_DESTINATION, MAC_BROADCAST),
    ],
    PacketType.BROADCAST: [equal(Field.MAC_DESTINATION, MAC_BROADCAST)],
}


def overlap(a: Filter, b: Filter) -> bool:
    """Whether there is a frame that both match, priorities apart. `overlap(a, a)`: can anything match it?"""
    return not (_apart(a, b) or _apart(b, a)) and witness(a, b) is not None


def witness(a: Filter, b: Filter) -> dict[str, Any] | None:
    """A frame that both match: its bytes in hex, its tag, and the tested fields as text; None if there is none."""
    for shape in SHAPES:
        tests = _demands(shape, (a, b))
        if not all(shape.has(field) for (field, _), _ in tests):
            continue
        values = _values(shape, tests)
        if values is not None:
            vid, tci = tag(values)
            shown = dict.fromkeys(column for column, _ in tests)
            return {
                "frame": build(shape, values).hex(),
                "vid": vid,
                "tci": tci,
                "tagged": shape.tagged,
                "fields": {
                    f"inner {field}" if inner else str(field): field_text(field, values[field, inner])
                    for field, inner in shown
                },
            }
    return None


def solve(tests: Sequence[FieldTest], bits: int) -> int | None:
    """The lowest value of a field of so many bits that passes all tests; None if none does."""
    highest = (1 << bits) - 1
    fixed = value = 0
    forbidden = set()
    for test in tests:
        if test.kind is Kind.NOT_EQUAL:
            forbidden.add(test.value)
            continue
        mask = highest if test.kind is Kind.EQUAL else test.mask
        if test.value & ~mask or (value ^ test.value) & fixed & mask:
            return None
        fixed |= mask
        value |= test.value
    free = [bit for bit in range(bits) if not fixed >> bit & 1]
    for number in range(min(len(forbidden) + 1, 1 << len(free))):  # one more than can be forbidden
        candidate = value | sum(1 << bit for place, bit in enumerate(free) if number >> place & 1)
        if candidate not in forbidden:
            return candidate
    return None


def _apart(a: Filter, b: Filter) -> bool:
    """Whether `a` wants one value of a field that fails `b`: a quick no, the common one between plain filters."""
    same_frame = not (a.flags ^ b.flags) & Flag.ENCAPSULATION
    return any(
        one.kind is Kind.EQUAL
        and one.field is test.field
        and not test.passes(one.value)
        and (same_frame or one.field not in ADDRESSES)
        for one in a.tests
        for test in b.tests
    )


def _demands(shape: Shape, filters: Iterable[Filter]) -> list[Demand]:
    """What the filters ask of a frame of this shape, each test beside the column that it looks at."""
    found: list[Demand] = []
    for this in filters:
        for test in this.tests:
            inner = shape.tunnel and Flag.ENCAPSULATION in this.flags and test.field in ADDRESSES
            found.append(((test.field, inner), test))
        if Flag.VLAN_UNTAGGED_OR_ZERO in this.flags and shape.tagged:
            found.append(((Field.VLAN_ID, False), equal(Field.VLAN_ID, 0)))
    return found


def _values(shape: Shape, tests: Sequence[Demand]) -> dict[Column, int] | None:
    """Values of all columns of which something is asked; None if there are none."""
    places = sorted({inner for (field, inner), _ in tests if field is Field.PACKET_TYPE})
    for types in product(PacketType, repeat=len(places)):
        demands = [*tests, *shape.demands()]
        for inner, kind in zip(places, types, strict=True):
            demands.append(((Field.PACKET_TYPE, inner), equal(Field.PACKET_TYPE, kind)))
            demands += [((Field.MAC_DESTINATION, inner), test) for test in TYPES[kind]]
        values = _solve_each(demands)
        if values is not None:
            return values
    return None


def _solve_each(demands: Iterable[Demand]) -> dict[Column, int] | None:
    columns: dict[Column, list[FieldTest]] = {}
    for column, test in demands:
        columns.setdefault(column, []).append(test)
    values = {}
    for column, tests in columns.items():
        value = solve(tests, BITS[column[0]])
        if value is None:
            return None
        values[column] = value
    return values
