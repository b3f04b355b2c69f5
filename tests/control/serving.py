# SPDX-License-Identifier: Apache-2.0
"""The API over a real socket, with contracts on doubles instead of an engine: as much of vmq as there is without kernels."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.contract.double import Bench
from vmq.control.contracts import Contracts
from vmq.control.schema import bound, schema
from vmq.control.server import Server
from vmq.control.session import subscribe
from vmq.engine.journal import Journal
from vmq.errors import ApiError

PATIENCE = 10.0


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.001)


class Client:
    """A connection that asks, and waits for the answer."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rb")

    def raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def line(self) -> Any:
        """The next line; None at the end."""
        line = self._lines.readline()
        return json.loads(line) if line else None

    def say(self, method: str, **params: Any) -> Any:
        """The whole answer."""
        self.raw(json.dumps({"api": 1, "method": method, "params": params}).encode() + b"\n")
        return self.line()

    def ask(self, method: str, **params: Any) -> Any:
        """The result; ApiError if it is refused."""
        answer = self.say(method, **params)
        if "error" in answer:
            raise ApiError(*answer["error"].values())
        return answer["result"]

    def status(self, method: str, **params: Any) -> str:
        """The status that it is refused with; SUCCESS if it is not."""
        answer = self.say(method, **params)
        assert "result" in answer or answer["error"]["message"]
        return str(answer["error"]["status"]) if "error" in answer else "SUCCESS"

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def words(last: int = 1, **more: Any) -> dict[str, Any]:
    """A filter of one address."""
    return {"tests": [{"field": "mac_destination", "value": f"52:54:00:00:00:{last:02x}"}]} | more


def queue(client: Client, owner: str = "a", *, complete: bool = True, **parameters: Any) -> int:
    number: int = client.ask("allocate_queue", owner=owner, parameters=parameters)["queue"]
    if complete:
        done = client.ask("queue_allocation_complete", owner=owner, queues=[number])
        assert done == [{"queue": number, "status": "SUCCESS", "why": ""}]
    return number


class Serving:
    """A server with a contract for each name, in a thread of its own."""

    def __init__(self, *uplinks: str, **options: Any) -> None:
        self.journal = Journal()
        self.benches = {name: Bench(**options) for name in uplinks or ("lan",)}
        for name, bench in self.benches.items():
            bench.contract._registry._events = self._noted(name)
        self._folder = tempfile.TemporaryDirectory(prefix="vmq-api-")
        self.path = str(Path(self._folder.name) / "api.sock")
        self.of_contracts = Contracts(self)
        self._server = Server(self.path, -1, bound(self._functions()))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._wait(self._server.start("a test"))

    @property
    def contracts(self) -> dict[str, Any]:
        return {name: bench.contract for name, bench in self.benches.items()}

    def _functions(self) -> dict[str, Any]:
        return {
            "ping": lambda _, __: {"pid": 1, "compiled_after_start": []},
            "schema": lambda _, __: schema(),
            "show": lambda _, asked: [{"what": asked.what}],
            "explain": lambda _, __: {},
            "events": lambda _, asked: self.journal.since(asked.since),
            "subscribe": lambda session, asked: subscribe(self.journal, session, asked.since),
            "capture": lambda _, __: {"interfaces": []},
            "measure": lambda _, __: {"status": "SUCCESS"},
            "prove": lambda _, __: {"status": "SUCCESS"},
            "proof": lambda _, __: {
                "vm": "a",
                "running": True,
                "done": 0,
                "wanted": 2,
                "verdict": None,
                "wrong": "",
            },
            **self.of_contracts.functions(),
        }

    def _noted(self, uplink: str) -> Callable[[dict[str, Any]], None]:
        def note(record: dict[str, Any]) -> None:
            what = {name: value for name, value in record.items() if name not in {"number", "event"}}
            self.journal.tell(record["event"], uplink=uplink, **what)

        return note

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function where the contracts live."""

        async def call() -> Any:
            return function(*arguments)

        return self._wait(call())

    @property
    def bench(self) -> Bench:
        return next(iter(self.benches.values()))

    def everything(self) -> Any:
        """All that a client could see, and all that engines were told."""
        state = [bench.everything() for bench in self.benches.values()]
        return json.dumps([state, self.journal.number], default=str)

    def client(self) -> Client:
        return Client(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._folder.cleanup)
            stack.callback(self._loop.close)
            stack.callback(self._thread.join, PATIENCE)
            stack.callback(self._loop.call_soon_threadsafe, self._loop.stop)
            self._wait(self._server.close())
