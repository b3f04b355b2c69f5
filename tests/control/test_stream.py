# SPDX-License-Identifier: Apache-2.0
"""Events for one client: each once, in order, bounded."""

from __future__ import annotations

import asyncio

import pytest

from vmq.control.stream import WAITING, Overrun, Stream
from vmq.engine.journal import Journal


def numbers(records: list[dict[str, int]]) -> list[int]:
    return [record["number"] for record in records]


def test_a_stream_begins_with_what_is_kept_and_goes_on():
    async def test() -> None:
        journal = Journal(length=3)
        for _ in range(5):
            journal.tell("reset")
        stream = Stream(journal, 3)
        assert stream.number == 5
        assert numbers(await stream.take()) == [4, 5]
        waiting = asyncio.create_task(stream.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        journal.tell("reset")
        assert numbers(await waiting) == [6]
        assert (await Stream(journal, 0).take())[0]["event"] == "missed"

    asyncio.run(test())


def test_it_keeps_no_more_than_its_bound():
    """And says that something is lost by ending."""

    async def test() -> None:
        journal = Journal()
        stream, other = Stream(journal, 0), Stream(journal, 0)
        for _ in range(WAITING):
            journal.tell("reset")
        assert len(await other.take()) == WAITING
        journal.tell("reset")
        assert len(stream._waiting) == WAITING
        with pytest.raises(Overrun):
            await stream.take()
        assert numbers(await other.take()) == [WAITING + 1]

    asyncio.run(test())


def test_a_stream_that_has_ended_gives_nothing_and_one_that_is_closed_hears_nothing():
    async def test() -> None:
        journal = Journal()
        stream = Stream(journal, 0)
        waiting = asyncio.create_task(stream.take())
        await asyncio.sleep(0)
        stream.end()
        assert await waiting == []
        stream.close()
        assert journal.watchers == []
        journal.tell("reset")
        assert stream._waiting == []

    asyncio.run(test())
