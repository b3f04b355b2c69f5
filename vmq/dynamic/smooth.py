# SPDX-License-Identifier: Apache-2.0
"""A number that is read again and again, without its noise: the older a reading, the less it counts.

Half of what is known is forgotten in a half-life, however often one looks: a look that comes late counts for more,
so a busy control thread does not make the memory longer.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Smoother(Generic[Key]):
    """Smoothed readings by name."""

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._then: float | None = None
        self._values: dict[Key, float] = {}

    def look(self, now: float, readings: Mapping[Key, float]) -> dict[Key, float]:
        """What the readings come to. One that is new begins as it is; one that is missing is forgotten."""
        passed = 0.0 if self._then is None else max(now - self._then, 0.0)
        old = 0.5 ** (passed / self._half_life)
        values = dict(readings)
        for name in values.keys() & self._values.keys():
            values[name] += (self._values[name] - values[name]) * old
        self._then, self._values = now, values
        return dict(values)
