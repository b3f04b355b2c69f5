# SPDX-License-Identifier: Apache-2.0
"""Filters as the data plane has them: addresses in VLANs for its hash table, rows for everything else.

Nearly every filter names one address, in one VLAN or in none. Such a *plain* filter is a key of the hash table
(vmq/dataplane/classify.py), whose cost does not grow with their number. The others are *generic*: rows that
vmq/dataplane/match.py tests one after the other, once for each frame of a segment that has any.

`arrange` keeps the order between the two. Rows are asked first; a plain filter of higher priority than a generic one
that shares a frame with it is therefore among the rows, too. What no row matches is the hash table's, as if there
were no rows: a plain filter that is not among them shares no frame with what goes behind it. Of equal priority,
generic filters go first: where that matters they are filters of one receive queue, since others are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vmq.abi.ethernet import MAC_GROUP_BIT
from vmq.dataplane.match import COLUMNS, field_test
from vmq.dataplane.state import NONE
from vmq.filters.model import ADDRESSES, BITS, Field, FieldTest, Filter, Flag, Kind
from vmq.filters.overlap import overlap

Entry = tuple[Filter, int]  # and its target: any number but NONE
Key = tuple[int, int]  # address, VLAN id; 0: untagged and priority-tagged frames


@dataclass(frozen=True)
class Arranged:
    """The filters of one segment or uplink, in the form that frames meet them."""

    plain: dict[Key, int]
    generic: tuple[Entry, ...]  # in order


def plain(this: Filter) -> Key | None:
    """The key of a filter that names one unicast address in one VLAN or none; None of any other."""
    values = {test.field: test.value for test in this.tests if test.kind is Kind.EQUAL}
    address = values.pop(Field.MAC_DESTINATION, MAC_GROUP_BIT)
    if len(this.tests) != 1 + len(values) or address & MAC_GROUP_BIT:
        return None
    if this.flags == Flag.VLAN_UNTAGGED_OR_ZERO and not values:
        return address, 0
    if not this.flags and list(values) == [Field.VLAN_ID] and values[Field.VLAN_ID] > 0:
        return address, values[Field.VLAN_ID]
    return None


def in_order(filters: Iterable[Entry]) -> list[Entry]:
    """The highest priority first; of equal ones generic before plain, then as in the list."""
    return sorted(filters, key=lambda entry: (-entry[0].priority, plain(entry[0]) is not None))


def arrange(filters: Iterable[Entry]) -> Arranged:
    """Plain filters for the hash table, and what must be tested row by row before it is asked."""
    keys: dict[Key, int] = {}
    behind: list[Filter] = []  # generic filters of lower priority than what comes next
    generic: list[Entry] = []
    for this, target in reversed(in_order(filters)):
        key = plain(this) if target >= 0 else None  # the hash table leads to receive queues only
        if key is None:
            behind.append(this)
            generic.append((this, target))
            continue
        keys[key] = target  # of two with one key, the first in order is met last
        if any(overlap(this, later) for later in behind):
            generic.append((this, target))
    return Arranged(keys, tuple(reversed(generic)))


class Arranger:
    """Filters in force that change one at a time: while all are plain and differ, a change costs no more than itself."""

    def __init__(self) -> None:
        self._filters: dict[int, tuple[Mapping[int, Filter], int]] = {}  # by receive queue; with its target
        self._keys: dict[int, Key | None] = {}  # by filter; None: it has to be arranged with all others
        self._plain: dict[Key, int] = {}
        self._together = 0  # how many of those

    def change(self, queues: Mapping[int, tuple[Mapping[int, Filter], int]]) -> None:
        """These receive queues have these filters now, by their ids, and no others; and what leads there."""
        for queue, (filters, target) in queues.items():
            old, before = self._filters.pop(queue, ({}, target))
            for name in old if before != target else old.keys() - filters.keys():
                self._remove(name)
            if filters:
                self._filters[queue] = filters, target
        for filters, target in queues.values():
            for name in filters.keys() - self._keys.keys():
                self._add(name, plain(filters[name]) if target >= 0 else None, target)

    def _add(self, name: int, key: Key | None, target: int) -> None:
        if key is None or key in self._plain:
            self._keys[name] = None
            self._together += 1
        else:
            self._keys[name] = key
            self._plain[key] = target

    def _remove(self, name: int) -> None:
        key = self._keys.pop(name)
        if key is None:
            self._together -= 1
        else:
            del self._plain[key]

    @property
    def filters(self) -> dict[int, Mapping[int, Filter]]:
        """By receive queue and id."""
        return {queue: filters for queue, (filters, _) in self._filters.items()}

    def arranged(self) -> Arranged:
        """All of them, as `arrange` has them."""
        if not self._together:
            return Arranged(self._plain, ())
        pairs = self._filters.values()
        return arrange([(one, target) for filters, target in pairs for one in filters.values()])


def rows(filters: Iterable[Entry]) -> npt.NDArray[Any]:
    """Filters that `check` admits, as a table for `match`."""
    made: list[tuple[int, int, int, int, int, int]] = []
    for this, target in in_order(filters):
        if not this.tests or target == NONE:  # its rows would run into the next filter's
            raise ValueError(f"no filter with a target: {this} to {target}")
        tests = _tests(this)
        end = len(made) + len(tests)
        for place, (column, mask, value, negated) in enumerate(tests, 1):
            made.append((column, mask, value, negated, target if place == len(tests) else NONE, end))
    table = np.zeros(len(made), field_test)
    for place, name in enumerate(("column", "mask", "value", "negated", "target", "next")):
        table[name] = [row[place] for row in made]
    return table


def _tests(this: Filter) -> Sequence[tuple[int, int, int, int]]:
    """Column, mask, value and whether negated; those that most frames fail come first."""
    inner = Flag.ENCAPSULATION in this.flags
    tests = [_row(one, inner=inner and one.field in ADDRESSES) for one in this.tests]
    if Flag.VLAN_UNTAGGED_OR_ZERO in this.flags:
        tests.append((COLUMNS.index("vlan_or_zero"), (1 << BITS[Field.VLAN_ID]) - 1, 0, 0))
    return sorted(tests, key=lambda row: (row[3], -row[1].bit_count()))


def _row(one: FieldTest, *, inner: bool) -> tuple[int, int, int, int]:
    column = COLUMNS.index(f"inner_{one.field}" if inner else str(one.field))
    mask = one.mask if one.kind is Kind.MASK_EQUAL else (1 << BITS[one.field]) - 1
    return column, mask, one.value, int(one.kind is Kind.NOT_EQUAL)
