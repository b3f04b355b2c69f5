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
from vmq.control.server import CLIENTS_MAX, LINE_MAX, Method, Server
from vmq.control.session import Session, subscribe
from vmq.control.stream import WAITING
from vmq.engine.journal import Journal
from vmq.errors import ApiError, HostError, VmqError

PING = {"api": 1, "method": "ping"}


def fail(error: Exception) -> Any:
    raise error


LEFT: list[str] = []
JOURNAL = Journal()


def leave(session: Session, mark: str) -> None:
    session.leaving.callback(LEFT.append, mark)


METHODS: dict[str, Method] = {
    "ping": lambda _, params: params.get("value", "pong"),
    "refuse": lambda *_: fail(ApiError("NOT_FOUND", "no such thing", "make one")),
    "cannot": lambda *_: fail(VmqError("it failed", "try again")),
    "broken": lambda *_: fail(KeyError("ours")),
    "huge": lambda *_: "x" * (32 << 20),
    "strange": lambda *_: object(),
    "claim": lambda session, params: setattr(session, "owner", params["owner"]),
    "leave": lambda session, params: leave(session, params["mark"]),
    "subscribe": lambda session, params: subscribe(JOURNAL, session, params.get("since", 0)),
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
        (b'{"api": true, "method": "ping"}\n', "INVALID_PARAMETER"),
        (b'{"api": 1.0, "method": "ping"}\n', "INVALID_PARAMETER"),
        (b'{"api": 1, "method": "ping", "parms": {}}\n', "INVALID_PARAMETER"),
        (b'{"api": 1, "method": "ping", "\\ud800": 1}\n', "INVALID_PARAMETER"),
        (b'{"api": 1, "method": "ping", "params": {"value": "\\ud800"}}\n', "INVALID_PARAMETER"),
        (b'{"api": 1, "method": "ping", "params": {"value": NaN}}\n', "INVALID_PARAMETER"),
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
async def test_another_version_is_told_which_one_is_spoken(server: Server):
    client = await Client.of(server)
    answer = await client.say({"api": 2, "method": "ping"})
    assert answer["error"]["message"] == "this engine speaks api 1, and not 2"
    await client.close()


@served
async def test_a_member_that_a_request_does_not_have_is_named(server: Server):
    """It may be a slip of `params`, and the method would do something else without."""
    client = await Client.of(server)
    answer = await client.say({"api": 1, "method": "ping", "parms": {"uplink": "lan"}})
    assert answer["error"]["message"] == "a request has no member 'parms'"
    assert answer["error"]["remedy"] == "give api, method, params and nothing else"
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
    """Nobody is sent away who has just asked."""
    server.patch.setattr(module, "SPARED_SECONDS", 60.0)  # type: ignore[attr-defined]
    clients = [await Client.of(server) for _ in range(CLIENTS_MAX)]
    for client in clients:
        assert await client.say(PING) == {"result": "pong"}
    late = await Client.of(server)
    error = (await late.answer())["error"]
    assert (error["status"], bool(error["remedy"])) == ("RESOURCES", True)
    await late.close()
    await clients.pop().close()
    await until(lambda: len(server._clients) < CLIENTS_MAX)
    again = await Client.of(server)
    assert await again.say(PING) == {"result": "pong"}
    for client in [*clients, again]:
        await client.close()


@served
async def test_who_has_been_silent_longest_makes_room_but_no_owner_and_no_stream(server: Server):
    """Half a request is silence, too."""
    server.patch.setattr(module, "SPARED_SECONDS", 0.0)  # type: ignore[attr-defined]
    owner, stream = await Client.of(server), await Client.of(server)
    await owner.say({"api": 1, "method": "claim", "params": {"owner": "x"}})
    await stream.say({"api": 1, "method": "subscribe", "params": {"since": JOURNAL.number}})
    others = []
    for _ in range(CLIENTS_MAX - 2):
        others.append(await Client.of(server))
        others[-1].raw(b'{"api": 1')
        await until(lambda: len(server._silent) == len(others))
    late = [await Client.of(server) for _ in range(2)]
    for client in late:
        assert await client.say(PING) == {"result": "pong"}
    assert [await client.answer() for client in others[:2]] == [None, None]
    others[2].raw(b', "method": "ping"}\n')
    assert await others[2].answer() == await owner.say(PING) == {"result": "pong"}
    JOURNAL.tell("vm_error", vm="still told")
    assert (await stream.answer())["event"]["vm"] == "still told"
    for client in (owner, stream, *others, *late):
        await client.close()
    await until(lambda: not server._clients)
    assert server._silent == {}


@served
async def test_a_request_that_was_begun_is_finished_soon(server: Server):
    """But for an owner's: all that it holds would go."""
    server.patch.setattr(module, "LINE_SECONDS", 0.05)  # type: ignore[attr-defined]
    owner, half = await Client.of(server), await Client.of(server)
    await owner.say({"api": 1, "method": "claim", "params": {"owner": "x"}})
    for client in (owner, half):
        client.raw(b'{"api": 1, ')
    assert await half.answer() is None
    owner.raw(b'"method": "ping"}\n')
    assert await owner.answer() == {"result": "pong"}
    await owner.close()
    await half.close()


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
async def test_a_connection_with_an_owner_may_be_silent(server: Server):
    """What it holds would be taken down with it."""
    server.patch.setattr(module, "IDLE_SECONDS", 0.05)  # type: ignore[attr-defined]
    owner, silent = await Client.of(server), await Client.of(server)
    assert await owner.say({"api": 1, "method": "claim", "params": {"owner": "x"}}) == {"result": None}
    assert await silent.answer() is None
    assert await owner.say(PING) == {"result": "pong"}
    await owner.close()
    await silent.close()


@pytest.mark.parametrize("last", [b"", b'{"api"', b"nonsense\n", b"x" * (3 * LINE_MAX), b"[" * 70000])
def test_what_a_session_has_to_do_is_done_however_its_connection_ends(
    tmp_path, monkeypatch, caplog, last: bytes
):
    """Also in the middle of a line."""

    @served
    async def test(server: Server) -> None:
        LEFT.clear()
        client = await Client.of(server)
        for mark in ("first", "last"):
            await client.say({"api": 1, "method": "leave", "params": {"mark": mark}})
        assert LEFT == []
        client.raw(last)
        client.writer.transport.abort()
        await until(lambda: LEFT == ["last", "first"])
        other = await Client.of(server)
        await other.say({"api": 1, "method": "leave", "params": {"mark": "at the end"}})
        await server.close()
        assert LEFT[2:] == ["at the end"]
        await other.close()

    test(tmp_path, monkeypatch, caplog)


# --- streams


@served
async def test_a_stream_gives_what_is_kept_and_then_what_happens(server: Server):
    """In order, each record once, nobody asks again."""
    JOURNAL.tell("vm_error", vm="before")
    since = JOURNAL.number
    JOURNAL.tell("vm_error", vm="kept")
    client = await Client.of(server)
    question = {"api": 1, "method": "subscribe", "params": {"since": since}}
    assert await client.say(question) == {"result": {"number": since + 1}}
    for number in range(300):
        JOURNAL.tell("vm_error", vm=str(number))
    told = [(await client.answer())["event"] for _ in range(301)]
    assert [one["vm"] for one in told] == ["kept", *map(str, range(300))]
    assert [one["number"] for one in told] == list(range(since + 1, since + 302))
    await client.close()
    await until(lambda: not JOURNAL.watchers)


@served
async def test_a_stream_may_be_silent_and_answers_nothing(server: Server):
    server.patch.setattr(module, "IDLE_SECONDS", 0.05)  # type: ignore[attr-defined]
    client = await Client.of(server)
    await client.say({"api": 1, "method": "subscribe", "params": {"since": JOURNAL.number}})
    await asyncio.sleep(0.1)
    JOURNAL.tell("vm_error", vm="a")
    assert (await client.answer())["event"]["vm"] == "a"
    assert (await client.say(PING))["error"]["message"] == "this connection is a stream"
    assert await client.answer() is None
    await client.close()
    assert not JOURNAL.watchers


@served
async def test_a_stream_that_nobody_reads_is_dropped(server: Server):
    """Its records are bounded, and nobody waits for it."""
    server.patch.setattr(module, "DRAIN_SECONDS", 0.05)  # type: ignore[attr-defined]
    deaf = await Client.of(server)
    await deaf.say({"api": 1, "method": "subscribe", "params": {"since": JOURNAL.number}})
    deaf.reader._transport.pause_reading()  # type: ignore[attr-defined]
    for _ in range(WAITING):
        JOURNAL.tell("vm_error", what="x" * 1000)
    await until(lambda: not server._clients)
    assert not JOURNAL.watchers
    await deaf.close()


@served
async def test_a_stream_that_does_not_keep_up_is_dropped(server: Server):
    """More at once than is kept for anybody."""
    client = await Client.of(server)
    await client.say({"api": 1, "method": "subscribe", "params": {"since": JOURNAL.number}})
    for _ in range(WAITING + 1):
        JOURNAL.tell("vm_error")
    assert await client.answer() is None
    await until(lambda: not JOURNAL.watchers)
    await client.close()


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
