# SPDX-License-Identifier: Apache-2.0
"""Counters that begin anew, although nobody but their worker may write them.

A row of counters has one writer, who counts on for ever. To clear it is to remember what it stands at, and to show from
then on what has been added. What is remembered was read while it was counted, word by word: of a burst that was under way
some words had been counted and others had not. The totals are therefore remembered as what became of the frames, so that
from then on, too, frames in = forwarded + drops, and offered = delivered + drops.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from vmq.dataplane.reasons import DROPS, HANDOVER_FULL, HANDOVER_MOVED

Rows = npt.NDArray[Any]
TOTALS = ("frames_from_guest", "frames_from_wire")
COPIES = [HANDOVER_FULL, HANDOVER_MOVED]  # counted beside the frames that they are copies of
AT_THE_GUEST = [code for code, (name, _) in enumerate(DROPS) if name.startswith("to_guest_")]


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
            balance(before[index])

    def clear_drop(self, drop: int) -> None:
        """Count one kind of drop from here, in the accounts of all rows."""
        self._remembered()["account"]["drops"][:, drop] = self._now()["account"]["drops"][:, drop]

    def _remembered(self) -> Rows:
        if self._before is None:
            self._before = np.zeros_like(self._now())
        return self._before


def balance(row: Any) -> None:
    """Let the totals of a row be what the rest of it adds up to."""
    became = int(row["account"]["forwarded"]) + int(np.delete(row["account"]["drops"], COPIES).sum())
    for name in row.dtype.names:
        if name in TOTALS:
            row[name] = became
    if "offered_to_guest" in row.dtype.names:
        row["offered_to_guest"] = row["frames_to_guest"] + row["to_guest_drops"][AT_THE_GUEST].sum()
