# SPDX-License-Identifier: Apache-2.0
"""Servers for a follower: every connection is a script, which keeps to the protocol or does not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from vmq.qmp.follower import Follower
from vmq.qmp.lists import RxFilter

Serve = Callable[["Peer"], Awaitable[None]]
EVENT = b'{"event": "NIC_RX_FILTER_CHANGED", "data": {"name": "net0", "path": "/x"}}\r\n'


class Peer:
    """One accepted connection, as a script sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: Server) -> None:
        self.reader, self.writer, self.server = reader, writer, server

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def command(self) -> dict[str, Any]:
        line = await self.reader.readline()
        if not line:
            raise ConnectionError
        found: dict[str, Any] = json.loads(line)
        if found["execute"] == "query-rx-filter":
            self.server.asked.append(time.monotonic())
        return found

    async def greet(self) -> None:
        self.say(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
        self.reply(await self.command())

    def reply(self, command: dict[str, Any], what: object = None) -> None:
        self.say(json.dumps({"return": what or {}, "id": command["id"]}).encode() + b"\r\n")

    async def answer(self, *unicast: str) -> None:
        """Wait for the question and answer it."""
        entry = {"name": "net0", "main-mac": "52:54:00:00:00:01", "unicast-table": unicast}
        self.reply(await self.command(), [entry])


class Server:
    """Listens at a path and gives every connection to a script."""

    def __init__(self, path: Path, serve: Serve) -> None:
        self.path, self.serve = path, serve
        self.connects: list[float] = []
        self.asked: list[float] = []
        self.answers: list[tuple[RxFilter, ...]] = []
        self.troubles: list[str] = []
        self.follower = Follower(str(path), None, self.answers.append, self._troubled)

    def _troubled(self, what: str, remedy: str) -> None:
        assert remedy
        self.troubles.append(what)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connects.append(time.monotonic())
        try:
            await self.serve(Peer(reader, writer, self))
        except OSError:
            pass
        finally:
            writer.close()

    async def until(self, condition: Callable[[Server], object], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition(self):
            assert time.monotonic() < deadline, f"waited in vain; troubles: {self.troubles}"
            await asyncio.sleep(0.005)

    def unicast(self) -> list[int]:
        return [len(devices[0].unicast) for devices in self.answers]


def play(path: Path, serve: Serve, scene: Callable[[Server], Awaitable[None]]) -> Server:
    """Follow what `serve` serves while `scene` looks on."""
    server = Server(path / "qmp", serve)

    async def run() -> None:
        listener = await asyncio.start_unix_server(server._accepted, server.path)
        server.follower.start()
        try:
            await asyncio.wait_for(scene(server), 60)
        finally:
            server.follower.close()
            listener.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)

    asyncio.run(run())
    return server


async def forever(peer: Peer) -> None:
    """Read, say nothing."""
    while await peer.reader.read(4096):
        pass
