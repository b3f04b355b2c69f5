# SPDX-License-Identifier: Apache-2.0
"""The control socket: one JSON object a line in, one a line out.

    {"api": 1, "method": "show", "params": {"what": "vms"}}   →   {"result": […]}
                                                              or   {"error": {"status": …, "message": …, "remedy": …}}

After `subscribe` a connection is a stream: a line for each event, {"event": …}, and nothing is answered any more.

Lines are bounded, so is the number of clients and their silence, unless an owner is bound to the connection or it is
a stream: a line that was begun is finished soon, and where all places are taken who has been silent longest makes
room. A client that sends nonsense gets an error, one that reads nothing is dropped, and neither disturbs the data
plane. However a connection ends, what its session has to do then is done.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from vmq.control.session import Session
from vmq.control.stream import Overrun, Telling
from vmq.errors import ApiError, VmqError
from vmq.listener import Listener

API = 1
MEMBERS = ("api", "method", "params")
LINE_MAX = 1 << 20
CLIENTS_MAX = 64
IDLE_SECONDS = 60.0  # a client that asks nothing goes
LINE_SECONDS = 5.0  # one that has begun to ask, and does not go on
SPARED_SECONDS = 1.0  # after so much silence it may be sent away for another: what it asks may be on its way
DRAIN_SECONDS = 5.0  # one that does not read its answer
LOG = logging.getLogger("vmq")

Method = Callable[[Session, dict[str, Any]], Any]


class Server:
    """Answers `methods` on the socket at `path`."""

    def __init__(self, path: str, group: int, methods: Mapping[str, Method]) -> None:
        self.path, self.group, self.methods = path, group, methods
        self._listener: Listener | None = None
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[Any]] = set()
        # Who may be sent away for another client, and since when it has been silent: the oldest first.
        self._silent: dict[asyncio.Task[Any], float] = {}

    async def start(self, where: str) -> None:
        """Open the socket; HostError if it cannot be."""
        self._listener = Listener(where, self.path, self.group)
        self._server = await asyncio.start_unix_server(self._client, sock=self._listener.sock, limit=LINE_MAX)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._clients.add(task)
        session = Session()
        try:
            if len(self._clients) <= CLIENTS_MAX or await self._made_room():
                await self._serve(session, reader, writer)
            else:
                remedy = "ask again in a second, or end one of them"
                error = ApiError("RESOURCES", f"more than {CLIENTS_MAX} clients", remedy)
                writer.write(_line(_error(error)))
            await asyncio.wait_for(writer.drain(), DRAIN_SECONDS)
            writer.close()
        except (ConnectionError, TimeoutError, Overrun, asyncio.CancelledError):
            pass  # it is gone, does not read, or has to go: `close` waits for that
        finally:
            if not writer.is_closing():
                writer.transport.abort()
            self._clients.discard(task)
            self._silent.pop(task, None)
            session.leaving.close()

    async def _made_room(self) -> bool:
        """Send the client away that has been silent longest; False if none has been for long enough."""
        task, since = next(iter(self._silent.items()), (None, 0.0))
        if task is None or asyncio.get_running_loop().time() - since < SPARED_SECONDS:
            return False
        del self._silent[task]
        task.cancel()
        await asyncio.wait({task}, timeout=DRAIN_SECONDS)
        return True

    async def _serve(
        self, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer line after line."""
        while session.stream is None:
            try:
                line = await self._heard(session, reader)
            except ValueError:
                error = ApiError("INVALID_LENGTH", f"a request is a line of at most {LINE_MAX} bytes")
                writer.write(_line(_error(error)))
                return
            if not line:
                return
            writer.write(self.answer(session, line))
            await asyncio.wait_for(writer.drain(), DRAIN_SECONDS)
        await _tell(session.stream, reader, writer)

    async def _heard(self, session: Session, reader: asyncio.StreamReader) -> bytes:
        """The next line; nothing at the end. An owner takes its time: what it holds would go with it."""
        if session.may_be_silent:
            return await reader.readline()
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._silent[task] = asyncio.get_running_loop().time()
        async with asyncio.timeout(IDLE_SECONDS):
            first = await reader.read(1)
        async with asyncio.timeout(LINE_SECONDS):
            line = first if first in (b"", b"\n") else first + await reader.readline()
        self._silent.pop(task, None)
        return line

    def answer(self, session: Session, line: bytes) -> bytes:
        """The answer to one request, as a line; never raises."""
        try:
            return _line({"result": self._result(session, line)})
        except ApiError as error:
            return _line(_error(error))
        except VmqError as error:
            return _line(_error(ApiError("FAILURE", error.wrong, error.remedy)))
        except Exception:
            LOG.exception("a request failed by a fault of vmq")
            return _line(_error(ApiError("FAILURE", "the engine failed to answer", "see its log")))

    def _result(self, session: Session, line: bytes) -> Any:
        try:
            request = msgspec.json.decode(line)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise ApiError("INVALID_PARAMETER", f"not JSON: {error}") from error
        if not isinstance(request, dict):
            raise ApiError("INVALID_PARAMETER", "a request is an object", "give api, method and params")
        if type(request.get("api")) is not int or request["api"] != API:
            wrong = f"this engine speaks api {API}, and not {request.get('api')!r:.80}"
            raise ApiError("INVALID_PARAMETER", wrong, f"give api {API}: `vmq schema api` describes it")
        if strange := [name for name in request if name not in MEMBERS]:
            wrong = f"a request has no member {strange[0]!r:.80}"
            raise ApiError("INVALID_PARAMETER", wrong, f"give {', '.join(MEMBERS)} and nothing else")
        method = self.methods.get(str(request.get("method")))
        if method is None:
            known = ", ".join(self.methods)
            raise ApiError("NOT_SUPPORTED", f"no method {request.get('method')!r:.80}", f"one of {known}")
        params = request.get("params", {})
        if not isinstance(params, dict):
            raise ApiError("INVALID_PARAMETER", "params is an object")
        return method(session, params)

    async def close(self) -> None:
        """Close the socket and every client. It does not fail."""
        if self._server is not None:
            self._server.close()
        if self._listener is not None:
            self._listener.close()
        clients = list(self._clients)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def _tell(stream: Telling, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send what happens, until the client has gone, or says something: it takes the stream for a conversation."""

    def heard(reading: asyncio.Task[bytes]) -> None:
        if not reading.cancelled() and reading.exception() is None and reading.result():
            error = ApiError("INVALID_PARAMETER", "this connection is a stream", "ask on another connection")
            writer.write(_line(_error(error)))
        stream.end()

    reading = asyncio.create_task(reader.read(1))
    reading.add_done_callback(heard)
    try:
        while records := await stream.take():
            writer.write(b"".join(_line({stream.word: record}) for record in records))
            await asyncio.wait_for(writer.drain(), DRAIN_SECONDS)
    finally:
        reading.cancel()


def _error(error: ApiError) -> dict[str, Any]:
    return {"error": error.record()}


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode() + os.linesep.encode()
