# SPDX-License-Identifier: Apache-2.0
"""The control socket: one JSON object a line in, one a line out.

    {"api": 1, "method": "show", "params": {"what": "vms"}}   →   {"result": […]}
                                                              or   {"error": {"status": …, "message": …, "remedy": …}}

Lines are bounded, so is the number of clients; a client that sends nonsense gets an error, one that reads nothing
is dropped, and neither disturbs the data plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmq.errors import ApiError, VmqError
from vmq.linux import listen

API = 1
LINE_MAX = 1 << 20
CLIENTS_MAX = 64
LOG = logging.getLogger("vmq")

Method = Callable[[dict[str, Any]], Any]


class Server:
    """Answers `methods` on the socket at `path`."""

    def __init__(self, path: str, group: int, methods: dict[str, Method]) -> None:
        self.path, self.group, self.methods = path, group, methods
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self, where: str) -> None:
        """Open the socket; HostError if it cannot be."""
        sock = listen(where, self.path, self.group)
        self._server = await asyncio.start_unix_server(self._client, sock=sock, limit=LINE_MAX)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) > CLIENTS_MAX:
                writer.write(_line(_error(ApiError("RESOURCES", f"more than {CLIENTS_MAX} clients"))))
                return
            while line := await reader.readline():
                writer.write(_line(self.answer(line)))
                await asyncio.wait_for(writer.drain(), timeout=5)
        except (ValueError, ConnectionError, TimeoutError):
            pass  # too long a line, a client that is gone or does not read
        finally:
            self._clients.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def answer(self, line: bytes) -> dict[str, Any]:
        """The answer to one request; never raises."""
        try:
            request = json.loads(line)
            if not isinstance(request, dict) or request.get("api") != API:
                raise ApiError("INVALID_PARAMETER", f"a request is an object with api {API}")
            method = self.methods.get(str(request.get("method")))
            if method is None:
                raise ApiError("NOT_SUPPORTED", f"no method {request.get('method')!r}", f"one of {', '.join(self.methods)}")
            params = request.get("params", {})
            if not isinstance(params, dict):
                raise ApiError("INVALID_PARAMETER", "params is an object")
            return {"result": method(params)}
        except json.JSONDecodeError as error:
            return _error(ApiError("INVALID_PARAMETER", f"not JSON: {error}"))
        except (UnicodeDecodeError, RecursionError) as error:
            return _error(ApiError("INVALID_PARAMETER", f"not JSON: {error}"))
        except ApiError as error:
            return _error(error)
        except VmqError as error:
            return _error(ApiError("FAILURE", error.wrong, error.remedy))
        except Exception:
            LOG.exception("a request failed")
            return _error(ApiError("FAILURE", "the engine failed to answer", "see its log"))

    async def close(self) -> None:
        """Close the socket and every client."""
        if self._server is not None:
            self._server.close()
            Path(self.path).unlink(missing_ok=True)
        for task in list(self._clients):
            task.cancel()


def _error(error: ApiError) -> dict[str, Any]:
    return {"error": error.record()}


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode() + os.linesep.encode()
