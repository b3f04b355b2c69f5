# SPDX-License-Identifier: Apache-2.0
r"""Asking a running engine: one connection, one question, one answer.

    us   {"api": 1, "method": "show", "params": {"what": "vms"}}\n
    it   {"result": …}\n    or    {"error": {"status": …, "message": …, "remedy": …}}\n

The socket is a UNIX stream socket, and its permissions decide who may ask. What answers is trusted no further
than its size: an answer is bounded, waited for a bounded time, and must have the shape above.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from vmq import API_SOCKET
from vmq.cli.grammar import CONFIG
from vmq.errors import ApiError

API = 1
PATIENCE = 5.0  # seconds; an engine answers from a thread that does nothing else
ANSWER_MAX = 64 << 20


def ask(path: str | None, method: str, **params: Any) -> Any:
    """The result of a method; parameters that are None are left out."""
    path = path or default_path()
    given = {name: value for name, value in params.items() if value is not None}
    question = json.dumps({"api": API, "method": method, "params": given}) + "\n"
    try:
        answer = _exchange(path, question.encode())
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
    return _result(path, answer)


def default_path() -> str:
    """Where the engine's socket is when nobody says."""
    return os.environ.get("VMQ_API") or API_SOCKET


def _exchange(path: str, question: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(path)
        connection.sendall(question)
        with connection.makefile("rb") as answers:
            return answers.readline(ANSWER_MAX)


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
