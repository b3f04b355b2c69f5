# SPDX-License-Identifier: Apache-2.0
"""Counters that begin anew, although nobody but their worker may write them.

A row of counters has one writer, who counts on for ever. To clear it is to remember what it stands at, and to show from
then on what has been added. What is remembered was read while it was counted, word by word, and words only grow: what is
shown is never negative.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[Any]


class Counted:
    """Rows of 64-bit words as they are since they were cleared. `standing` are members that count nothing."""

    def __init__(self, now: Callable[[], Rows], standing: Collection[str] = ()) -> None:
        self._now, self._standing = now, standing
        self._before: Rows | None = None

    def rows(self) -> Rows:
        """A copy."""
        rows = self._now().copy()
        if self._before is not None:
            rows.view(np.int64)[...] -= self._before.view(np.int64)
        return rows

    def clear(self, *indices: int) -> None:
        """Count these rows from here."""
        now, before = self._now(), self._remembered()
        for index in indices:
            before[index] = now[index]
            for name in self._standing:
                before[index][name] = 0

    def clear_drop(self, drop: int) -> None:
        """Count one kind of drop from here, in the accounts of all rows."""
        self._remembered()["account"]["drops"][:, drop] = self._now()["account"]["drops"][:, drop]

    def _remembered(self) -> Rows:
        if self._before is None:
            self._before = np.zeros_like(self._now())
        return self._before
