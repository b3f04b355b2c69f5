# SPDX-License-Identifier: Apache-2.0
"""The control socket: one JSON object a line in, one a line out.

    {"api": 1, "method": "show", "params": {"what": "vms"}}   →   {"result": […]}
                                                              or   {"error": {"status": …, "message": …, "remedy": …}}

Lines are bounded, so is the number of clients and their silence; a client that sends nonsense gets an error, one
that reads nothing is dropped, and neither disturbs the data plane.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from typing import Any, cast

from vmq.errors import ApiError, VmqError
from vmq.listener import Listener

API = 1
LINE_MAX = 1 << 20
CLIENTS_MAX = 64
IDLE_SECONDS = 60.0  # a client that asks nothing makes room for others
DRAIN_SECONDS = 5.0  # one that does not read its answer
LOG = logging.getLogger("vmq")

Method = Callable[[dict[str, Any]], Any]


class Server:
    """Answers `methods` on the socket at `path`."""

    def __init__(self, path: str, group: int, methods: dict[str, Method]) -> None:
        self.path, self.group, self.methods = path, group, methods
        self._listener: Listener | None = None
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[Any]] = set()

    async def start(self, where: str) -> None:
        """Open the socket; HostError if it cannot be."""
        self._listener = Listener(where, self.path, self.group)
        self._server = await asyncio.start_unix_server(self._client, sock=self._listener.sock, limit=LINE_MAX)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._clients.add(task)
        try:
            if len(self._clients) > CLIENTS_MAX:
                writer.write(_line(_error(ApiError("RESOURCES", f"more than {CLIENTS_MAX} clients"))))
            else:
                await self._serve(reader, writer)
            await asyncio.wait_for(writer.drain(), DRAIN_SECONDS)
            writer.close()
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # it is gone, does not read, or has to go: `close` waits for that
        finally:
            if not writer.is_closing():
                writer.transport.abort()
            self._clients.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer line after line."""
        while True:
            try:
                line = await asyncio.wait_for(reader.readline(), IDLE_SECONDS)
            except ValueError:
                error = ApiError("INVALID_LENGTH", f"a request is a line of at most {LINE_MAX} bytes")
                writer.write(_line(_error(error)))
                return
            if not line:
                return
            writer.write(self.answer(line))
            await asyncio.wait_for(writer.drain(), DRAIN_SECONDS)

    def answer(self, line: bytes) -> bytes:
        """The answer to one request, as a line; never raises."""
        try:
            return _line({"result": self._result(line)})
        except ApiError as error:
            return _line(_error(error))
        except VmqError as error:
            return _line(_error(ApiError("FAILURE", error.wrong, error.remedy)))
        except Exception:
            LOG.exception("a request failed by a fault of vmq")
            return _line(_error(ApiError("FAILURE", "the engine failed to answer", "see its log")))

    def _result(self, line: bytes) -> Any:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ApiError("INVALID_PARAMETER", f"not JSON: {error}") from error
        if not isinstance(request, dict) or request.get("api") != API:
            raise ApiError("INVALID_PARAMETER", f"a request is an object with api {API}")
        method = self.methods.get(str(request.get("method")))
        if method is None:
            known = ", ".join(self.methods)
            raise ApiError("NOT_SUPPORTED", f"no method {request.get('method')!r}", f"one of {known}")
        params = request.get("params", {})
        if not isinstance(params, dict):
            raise ApiError("INVALID_PARAMETER", "params is an object")
        return method(params)

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


def _error(error: ApiError) -> dict[str, Any]:
    return {"error": error.record()}


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode() + os.linesep.encode()
