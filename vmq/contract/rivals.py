# SPDX-License-Identifier: Apache-2.0
"""Filters that a new one could quarrel with, found without asking all of them.

Two filters of different receive queues quarrel if some frame passes both and neither has the higher priority: then
nobody could say where it goes. Most filters name one outer destination address, and two that name different ones
never meet. So filters are kept by that address; those without one can meet anything, and are always asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vmq.filters import Field, Filter, Flag, Kind, overlap


class Placed(Protocol):
    """A filter, and the id of its receive queue, which may change."""

    @property
    def filter(self) -> Filter: ...

    @property
    def place(self) -> int: ...


def destination(named: Filter) -> int | None:
    """The one outer destination address of all frames that pass, if the filter names one."""
    if Flag.ENCAPSULATION in named.flags:
        return None
    values = (t.value for t in named.tests if t.field is Field.MAC_DESTINATION and t.kind is Kind.EQUAL)
    return next(values, None)


class Rivals:
    """All filters, by destination address; None for those that name none."""

    def __init__(self) -> None:
        self._filters: dict[int | None, dict[int, Placed]] = {}

    def add(self, name: int, placed: Placed) -> None:
        self._filters.setdefault(destination(placed.filter), {})[name] = placed

    def remove(self, name: int, gone: Filter) -> None:
        key = destination(gone)
        del self._filters[key][name]
        if not self._filters[key]:
            del self._filters[key]

    def quarrel(self, new: Filter, place: int, besides: int = 0) -> int | None:
        """The id of a filter elsewhere, of the same priority, that shares a frame with this one."""
        for name, placed in self._candidates(new):
            if name != besides and placed.place != place and placed.filter.priority == new.priority:
                if overlap(placed.filter, new):
                    return name
        return None

    def _candidates(self, new: Filter) -> Iterator[tuple[int, Placed]]:
        key = destination(new)
        keys = list(self._filters) if key is None else [key, None]
        for one in keys:
            yield from self._filters.get(one, {}).items()
