# SPDX-License-Identifier: Apache-2.0
"""What one client is still to be told of what happens.

The journal tells a stream of every record, in the middle of whatever has made it: so a record is only put aside here,
and the connection sends it when its turn comes. A client that reads too slowly has a bound: where more than WAITING
records wait for it, the stream has overrun, keeps no more, and the connection is ended. It may subscribe again from
the last number that it has read.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from vmq.engine.journal import LENGTH, Journal, Record

WAITING = 2 * LENGTH  # all that the journal keeps, and as much again


class Telling(Protocol):
    """What a connection goes on with when nothing is asked any more: lines of one member, `word`."""

    @property
    def word(self) -> str: ...

    async def take(self) -> list[Record]:
        """What is to be told; waits until there is something. Nothing: it has ended."""

    def end(self) -> None:
        """The client has said that it wants no more."""


class Overrun(Exception):
    """The client does not keep up."""


class Stream:
    """The records after a number, as they come."""

    word = "event"

    def __init__(self, journal: Journal, since: int) -> None:
        self.number = journal.number
        self._journal = journal
        self._waiting: list[Record] = journal.since(since)
        self._more = asyncio.Event()
        self._overrun = self._ended = False
        if self._waiting:
            self._more.set()
        journal.watchers.append(self._note)

    def _note(self, record: Record) -> None:
        self._overrun = self._overrun or len(self._waiting) >= WAITING
        if not self._overrun:
            self._waiting.append(record)
        self._more.set()

    async def take(self) -> list[Record]:
        """What is to be told; waits until there is something. Nothing: the stream has ended."""
        await self._more.wait()
        if self._ended:
            return []
        if self._overrun:
            raise Overrun
        self._more.clear()
        taken, self._waiting = self._waiting, []
        return taken

    def end(self) -> None:
        """Whoever waits for more gets nothing."""
        self._ended = True
        self._more.set()

    def close(self) -> None:
        """No more records; those that wait are forgotten."""
        self._journal.watchers.remove(self._note)
        self._waiting.clear()
