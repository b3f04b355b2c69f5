# SPDX-License-Identifier: Apache-2.0
"""The API's socket: nonsense gets an error, nobody holds up anybody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.engine.running import open_files
from vmq.control import server as module
from vmq.control.server import CLIENTS_MAX, LINE_MAX, Server
from vmq.errors import ApiError, HostError, VmqError

PING = {"api": 1, "method": "ping"}


def fail(error: Exception) -> Any:
    raise error


METHODS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ping": lambda params: params.get("value", "pong"),
    "refuse": lambda _: fail(ApiError("NOT_FOUND", "no such thing", "make one")),
    "cannot": lambda _: fail(VmqError("it failed", "try again")),
    "broken": lambda _: fail(KeyError("ours")),
    "huge": lambda _: "x" * (32 << 20),
    "strange": lambda _: object(),
}


class Client:
    """A connection that says anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, server: Server) -> Client:
        return cls(*await asyncio.open_unix_connection(server.path, limit=64 << 20))

    async def say(self, what: object) -> Any:
        self.raw(what if isinstance(what, bytes) else json.dumps(what).encode() + b"\n")
        return await self.answer()

    def raw(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> Any:
        line = await asyncio.wait_for(self.reader.readline(), 10)
        return json.loads(line) if line else None

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(self.writer.wait_closed(), 10)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


def served(test: Callable[[Server], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop, against a server; nothing is left."""

    def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        async def all_of_it() -> None:
            server = Server(str(tmp_path / "api.sock"), -1, METHODS)
            await server.start("vmq.toml: [engine] api")
            server.caplog, server.patch = caplog, monkeypatch  # type: ignore[attr-defined]
            await asyncio.wait_for(test(server), 60)
            await server.close()
            assert os.listdir(tmp_path) == []

        before = open_files()
        asyncio.run(all_of_it(), debug=False)
        assert open_files() == before

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@served
async def test_a_question_a_line_an_answer_a_line(server: Server):
    client = await Client.of(server)
    assert await client.say(PING) == {"result": "pong"}
    assert await client.say(PING | {"params": {"value": [1, {"a": None}]}}) == {"result": [1, {"a": None}]}
    await client.close()


@served
async def test_questions_may_come_in_any_pieces(server: Server):
    client = await Client.of(server)
    line = json.dumps(PING).encode() + b"\n"
    for byte in line:
        client.raw(bytes([byte]))
        await asyncio.sleep(0)
    assert await client.answer() == {"result": "pong"}
    client.raw(line * 20)
    assert [await client.answer() for _ in range(20)] == [{"result": "pong"}] * 20
    await client.close()


@served
async def test_the_socket_is_its_group_s(server: Server):
    """Its permissions decide who may ask."""
    assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o660


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"hello\n", "INVALID_PARAMETER"),
        (b"\xff\xfe\x00\n", "INVALID_PARAMETER"),
        (b"\n", "INVALID_PARAMETER"),
        (b"[" * 100_000 + b"\n", "INVALID_PARAMETER"),
        (b"1" * 10_000 + b"\n", "INVALID_PARAMETER"),
        (b'{"api": 2, "method": "ping"}\n', "INVALID_PARAMETER"),
        (b'{"method": "ping"}\n', "INVALID_PARAMETER"),
        (b"[1]\n", "INVALID_PARAMETER"),
        (b'{"api": 1}\n', "NOT_SUPPORTED"),
        (b'{"api": 1, "method": "nosuch"}\n', "NOT_SUPPORTED"),
        (b'{"api": 1, "method": ["ping"]}\n', "NOT_SUPPORTED"),
        (b'{"api": 1, "method": "ping", "params": 7}\n', "INVALID_PARAMETER"),
    ],
)
def test_nonsense_gets_an_error_and_the_connection_goes_on(
    tmp_path, monkeypatch, caplog, line: bytes, status: str
):
    """And nothing of it stands in the log."""

    @served
    async def test(server: Server) -> None:
        client = await Client.of(server)
        answer = await client.say(line)
        assert answer["error"]["status"] == status
        assert answer["error"]["message"]
        assert await client.say(PING) == {"result": "pong"}
        assert caplog.text == ""
        await client.close()

    test(tmp_path, monkeypatch, caplog)


@served
async def test_an_unknown_method_says_which_there_are(server: Server):
    client = await Client.of(server)
    answer = await client.say({"api": 1, "method": "nosuch"})
    assert "no method 'nosuch'" in answer["error"]["message"]
    assert "ping, refuse" in answer["error"]["remedy"]
    await client.close()


@served
async def test_what_a_method_refuses_is_its_answer(server: Server):
    client = await Client.of(server)
    refused = {"status": "NOT_FOUND", "message": "no such thing", "remedy": "make one"}
    assert await client.say({"api": 1, "method": "refuse"}) == {"error": refused}
    failed = {"status": "FAILURE", "message": "it failed", "remedy": "try again"}
    assert await client.say({"api": 1, "method": "cannot"}) == {"error": failed}
    await client.close()


@served
async def test_a_fault_of_ours_is_logged_and_answered(server: Server):
    """Also a result that is no JSON."""
    client = await Client.of(server)
    for method in ("broken", "strange"):
        answer = await client.say({"api": 1, "method": method})
        assert answer["error"]["status"] == "FAILURE"
    assert await client.say(PING) == {"result": "pong"}
    records = server.caplog.records  # type: ignore[attr-defined]
    assert [record.levelno for record in records] == [logging.ERROR] * 2
    await client.close()


@served
async def test_a_line_that_is_too_long_is_an_error_and_the_end(server: Server):
    """Nobody knows where the next question begins."""
    client = await Client.of(server)
    client.raw(b"x" * (3 * LINE_MAX))
    answer = await client.answer()
    assert answer["error"]["status"] == "INVALID_LENGTH"
    other = await Client.of(server)
    assert await other.say(PING) == {"result": "pong"}
    await client.close()
    await other.close()


@served
async def test_too_many_clients_are_told_so_and_the_others_served(server: Server):
    clients = [await Client.of(server) for _ in range(CLIENTS_MAX)]
    for client in clients:
        assert await client.say(PING) == {"result": "pong"}
    late = await Client.of(server)
    assert (await late.answer())["error"]["status"] == "RESOURCES"
    await late.close()
    await clients.pop().close()
    await until(lambda: len(server._clients) < CLIENTS_MAX)
    again = await Client.of(server)
    assert await again.say(PING) == {"result": "pong"}
    for client in [*clients, again]:
        await client.close()


@served
async def test_a_client_that_does_not_read_is_dropped(server: Server):
    """32 MiB do not fit into a socket; nobody waits for it longer than DRAIN_SECONDS."""
    server.patch.setattr(module, "DRAIN_SECONDS", 0.05)  # type: ignore[attr-defined]
    deaf = await Client.of(server)
    deaf.reader._transport.pause_reading()  # type: ignore[attr-defined]
    deaf.raw(json.dumps({"api": 1, "method": "huge"}).encode() + b"\n")
    other = await Client.of(server)
    assert await other.say(PING) == {"result": "pong"}
    await until(lambda: len(server._clients) == 1)
    await other.close()
    await deaf.close()


@served
async def test_a_large_answer_arrives_whole(server: Server):
    client = await Client.of(server)
    answer = await client.say({"api": 1, "method": "huge"})
    assert len(answer["result"]) == 32 << 20
    await client.close()


@served
async def test_a_silent_client_makes_room(server: Server):
    server.patch.setattr(module, "IDLE_SECONDS", 0.05)  # type: ignore[attr-defined]
    silent = await Client.of(server)
    assert await silent.answer() is None
    await silent.close()


@served
async def test_clients_that_hang_up_anywhere_leave_nothing(server: Server):
    for data in (b"", b'{"api"', b"[" * 1000, json.dumps(PING).encode() + b"\n"):
        for _ in range(20):
            client = await Client.of(server)
            client.raw(data)
            await client.close()
    await until(lambda: not server._clients)


@served
async def test_closing_hangs_up_on_everybody(server: Server):
    clients = [await Client.of(server) for _ in range(5)]
    for client in clients:
        assert await client.say(PING) == {"result": "pong"}
    await server.close()
    for client in clients:
        assert await client.answer() is None
        await client.close()


def test_a_socket_that_cannot_be_had_is_the_operator_s_error(tmp_path: Path):
    (tmp_path / "api.sock").write_text("mine")
    server = Server(str(tmp_path / "api.sock"), -1, METHODS)
    with pytest.raises(HostError, match=r"vmq.toml: \[engine\] api: .* is no socket"):
        asyncio.run(server.start("vmq.toml: [engine] api"))
    asyncio.run(server.close())
