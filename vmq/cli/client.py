# SPDX-License-Identifier: Apache-2.0
r"""Asking a running engine: one connection, one question, one answer.

    us   {"api": 1, "method": "show", "params": {"what": "vms"}}\n
    it   {"result": …}\n    or    {"error": {"status": …, "message": …, "remedy": …}}\n

`follow` and `capturing` go on: after the answer come events, or pieces of a capture, a line each, for as long as there
are some.

The socket is a UNIX stream socket, and its permissions decide who may ask. What answers is trusted no further
than its size: an answer is bounded, waited for a bounded time, and must have the shape above.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any, BinaryIO

from vmq import API_SOCKET
from vmq.cli.grammar import CONFIG
from vmq.errors import ApiError

API = 1
PATIENCE = 5.0  # seconds; an engine answers from a thread that does nothing else
ANSWER_MAX = 64 << 20


def ask(path: str | None, method: str, **params: Any) -> Any:
    """The result of a method; parameters that are None are left out."""
    path = path or default_path()
    with _reached(path), _connection(path) as connection, connection.makefile("rb") as answers:
        connection.sendall(_question(method, params))
        answer = answers.readline(ANSWER_MAX)
    return _result(path, answer)


def ask_rows(path: str | None, method: str, **params: Any) -> list[dict[str, Any]]:
    """The result of a method that answers with records."""
    rows = ask(path, method, **params)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _strange(f"the answer to {method} is not a list of records")
    return rows


def ask_record(path: str | None, method: str, **params: Any) -> dict[str, Any]:
    """The result of a method that answers with one record."""
    record = ask(path, method, **params)
    if not isinstance(record, dict):
        raise _strange(f"the answer to {method} is not a record")
    return record


def follow(path: str | None, since: int) -> Iterator[dict[str, Any]]:
    """What has happened after a number, and then what happens. Only an error ends it."""
    path = path or default_path()
    with _reached(path), _connection(path) as connection, connection.makefile("rb") as lines:
        connection.sendall(_question("subscribe", {"since": since}))
        _result(path, lines.readline(ANSWER_MAX))
        connection.settimeout(None)
        while line := lines.readline(ANSWER_MAX):
            yield _event(line)
    raise ApiError(
        "UNAVAILABLE",
        f"{path}: the engine has ended, or told more than was read",
        "Follow again; --since NUMBER goes on after the last event that was seen",
    )


class Pieces:
    """A capture as the engine tells it: pieces of a file, until it is whole."""

    def __init__(self, path: str, connection: socket.socket, lines: BinaryIO) -> None:
        self.path, self._connection, self._lines = path, connection, lines

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        """(bytes, frames lost so far)."""
        while line := self._line():
            try:
                record = json.loads(line)["capture"]
                piece = base64.b64decode(record["blocks"]), int(record["lost"])
            except (ValueError, LookupError, TypeError):
                raise _strange("what the engine tells is no capture") from None
            yield piece

    def _line(self) -> bytes:
        with _reached(self.path):
            return self._lines.readline(ANSWER_MAX)

    def enough(self) -> None:
        """Ask for what is left. It may be called at any time, and does not fail."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def capturing(path: str | None, **params: Any) -> Iterator[Pieces]:
    """A capture that runs; parameters that are None are left out."""
    path = path or default_path()
    with contextlib.ExitStack() as stack:
        with _reached(path):
            connection = stack.enter_context(_connection(path))
            lines = stack.enter_context(connection.makefile("rb"))
            connection.sendall(_question("capture", params))
            answer = lines.readline(ANSWER_MAX)
        _result(path, answer)
        connection.settimeout(None)
        yield Pieces(path, connection, lines)


def _event(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)["event"]
        if isinstance(record["number"], int):
            return dict(record)
    except (ValueError, LookupError, TypeError):
        pass
    raise _strange("what the engine tells is no event")


def _strange(wrong: str) -> ApiError:
    return ApiError("FAILURE", wrong, "Use the vmq of the engine's version")


def _question(method: str, params: dict[str, Any]) -> bytes:
    given = {name: value for name, value in params.items() if value is not None}
    return json.dumps({"api": API, "method": method, "params": given}).encode() + b"\n"


@contextlib.contextmanager
def _reached(path: str) -> Iterator[None]:
    """What the system says when there is no answer, in words."""
    try:
        yield
    except TimeoutError:
        raise ApiError(
            "TIMEOUT",
            f"{path}: no answer within {PATIENCE:.0f} s",
            "See the engine's log for what holds it up",
        ) from None
    except PermissionError:
        raise ApiError(
            "NOT_PERMITTED",
            f"{path}: permission denied",
            "Join the group that owns the socket, or become root",
        ) from None
    except OSError as error:
        raise ApiError(
            "UNAVAILABLE",
            f"{path}: no engine answers: {error.strerror or error}",
            f"Is one running? Start it: vmq run --config {CONFIG}; or name its socket: --api PATH",
        ) from None


def default_path() -> str:
    """Where the engine's socket is when nobody says."""
    return os.environ.get("VMQ_API") or API_SOCKET


@contextlib.contextmanager
def _connection(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(path)
        yield connection


def _result(path: str, line: bytes) -> Any:
    if not line:
        raise ApiError(
            "UNAVAILABLE", f"{path}: closed without an answer", "See the engine's log for the reason"
        )
    try:
        answer = json.loads(line)
        if "result" in answer:
            return answer["result"]
        error = answer["error"]
        refusal = ApiError(str(error["status"]), str(error["message"]), str(error.get("remedy") or ""))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ApiError(
            "FAILURE", f"{path}: what answers is not a vmq engine", "Check --api and $VMQ_API"
        ) from None
    raise refusal
