# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a running engine: answers on a real socket, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class Engine:
    """Answers each connection with the next of `answers`, the last of them for ever."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.asked: list[dict[str, Any]] = []
        self.answers: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def answer(self, *results: Any) -> None:
        self.answers = [json.dumps({"result": result}).encode() + b"\n" for result in results]

    def refuse(self, **error: str) -> None:
        self.answers = [json.dumps({"error": error}).encode() + b"\n"]

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=10)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, connection.makefile("rb") as questions:
                    self.asked.append(json.loads(questions.readline()))
                    connection.sendall(self.answers[0] if len(self.answers) == 1 else self.answers.pop(0))


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A running engine, where $VMQ_API says."""
    running = Engine(tmp_path / "api.sock")
    monkeypatch.setenv("VMQ_API", running.path)
    yield running
    running.close()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def vmq(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process: (exit code, stdout, stderr)."""
    from vmq.cli import main

    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
