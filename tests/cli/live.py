# SPDX-License-Identifier: Apache-2.0
"""A stand-in for an engine that lives: it answers by what is true now, and reads its file on SIGHUP.

It is this process: the signal comes here. What it refuses stands in its events, as an engine's does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

Rows = Callable[[], list[dict[str, Any]]]


class Live:
    """`views` tells the rows of a view; `refuses` is a word that it does not accept in its file."""

    def __init__(self, path: Path, file: Path, refuses: str = "", **views: Rows) -> None:
        self.path, self.file, self.refuses, self.views = str(path), file, refuses, views
        self.pid = os.getpid()
        self.events: list[dict[str, Any]] = []
        self.deaf = False  # it gets the signal and does nothing
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGHUP, lambda *_: self.reload())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=10)
        signal.signal(signal.SIGHUP, self._before)
        Path(self.path).unlink()

    def reload(self) -> None:
        if self.deaf:
            return
        bad = bool(self.refuses) and self.refuses in self.file.read_text()
        wrong = {"wrong": "it does not fit", "remedy": "another"} if bad else {"wrong": None, "remedy": None}
        self.events.append(
            {"number": len(self.events) + 1, "time": 1.0, "event": "configured", "actions": 1, **wrong}
        )

    def _answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "ping":
            return {"result": {"pid": self.pid}}
        if method == "events":
            return {"result": [one for one in self.events if one["number"] > params["since"]]}
        view = self.views.get(params["what"])
        if view is None:
            return {"error": {"status": "NOT_FOUND", "message": "nothing called so", "remedy": ""}}
        return {"result": view()}

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, connection.makefile("rb") as questions:
                    line = questions.readline()
                    if line:
                        asked = json.loads(line)
                        answer = self._answer(asked["method"], asked.get("params", {}))
                        connection.sendall(json.dumps(answer).encode() + b"\n")
