# SPDX-License-Identifier: Apache-2.0
"""The connection, against servers that keep to the protocol and servers that do not."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.qmp.server import EVENT, Peer, Server, forever, play
from vmq.qmp import follower as module
from vmq.qmp.follower import Follower
from vmq.qmp.lists import RxFilter


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)


def test_lists_are_asked_for_after_connecting_and_after_every_change(tmp_path: Path) -> None:
    """The event fires once and not again until the command was run: QEMU is asked after each."""

    async def serve(peer: Peer) -> None:
        await peer.greet()
        await peer.answer()
        peer.say(EVENT)
        await peer.answer("0e:fd:00:00:00:02")
        peer.say(b'{"event": "RTC_CHANGE"}\r\n' + EVENT)
        await peer.answer()
        await forever(peer)

    async def scene(server: Server) -> None:
        await server.until(lambda one: len(one.answers) == 3)
        assert server.follower.state == "following"

    server = play(tmp_path, serve, scene)

    assert server.unicast() == [0, 1, 0]
    assert (len(server.connects), server.troubles) == (1, [])


def test_lists_are_asked_for_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else QEMU tells meanwhile."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)

    async def serve(peer: Peer) -> None:
        await peer.greet()
        while True:
            await peer.answer()
            peer.say(b'{"event": "RTC_CHANGE"}\r\n')

    async def scene(server: Server) -> None:
        await server.until(lambda one: len(one.answers) >= 4)

    assert len(play(tmp_path, serve, scene).connects) == 1


def test_a_flood_of_changes_is_a_bounded_number_of_questions(tmp_path: Path) -> None:
    """Each answer may become a new version of the tables: a burst, then so many a second."""

    async def serve(peer: Peer) -> None:
        await peer.greet()
        while True:
            await peer.answer()
            peer.say(EVENT * 50)
            await peer.writer.drain()

    async def scene(server: Server) -> None:
        await server.until(lambda one: len(one.answers) > module.BURST + 1)

    server = play(tmp_path, serve, scene)
    first, last = server.asked[0], server.asked[-1]

    assert len(server.asked) <= module.BURST + 1 + (last - first) / module.INTERVAL_SECONDS
    assert last - first >= module.INTERVAL_SECONDS


def test_a_flood_of_bytes_leaves_control_its_time(tmp_path: Path) -> None:
    """Bytes are taken in turns with everything else, and no faster than CHUNK a pause."""
    taken = 0

    async def serve(peer: Peer) -> None:
        nonlocal taken
        await peer.greet()
        await peer.answer()
        while True:
            peer.say(EVENT * 1000)
            await peer.writer.drain()
            taken += 1000 * len(EVENT)

    async def scene(server: Server) -> None:
        await server.until(lambda one: one.answers)
        began, turns = time.monotonic(), 0
        while turns < 100:
            await asyncio.sleep(0.001)
            turns += 1
        elapsed = time.monotonic() - began
        # What the sockets and the streams of the server hold is not taken yet.
        assert taken <= (elapsed + 1) / module.READ_PAUSE_SECONDS * module.CHUNK + (1 << 20)
        server.follower.close()

    play(tmp_path, serve, scene)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"(qemu) monitor\r\n", "does not speak QMP"),
        (b"\x00" * 100 + b"\n", "does not speak QMP"),
        (b"{" * (module.CHUNK * 80), "does not end"),
        (b'{"return": {}}\r\n', "does not begin with a greeting"),
    ],
    ids=["text", "zeros", "endless", "answer"],
)
def test_who_does_not_speak_the_protocol_is_left_and_tried_again(
    tmp_path: Path, said: bytes, words: str
) -> None:
    """Said once, not at every attempt."""

    async def serve(peer: Peer) -> None:
        peer.say(said)
        await forever(peer)

    async def scene(server: Server) -> None:
        await server.until(lambda one: len(one.connects) >= 3)
        assert server.follower.state == "connecting"

    (trouble,) = play(tmp_path, serve, scene).troubles

    assert trouble.startswith(f"{tmp_path}/qmp: ")
    assert words in trouble


@pytest.mark.parametrize("step", ["greeting", "capabilities", "answer"])
def test_silence_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """QEMU serves one client at a time, and lets a second wait without a word. Events are no answer."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)

    async def serve(peer: Peer) -> None:
        if step != "greeting":
            peer.say(b'{"QMP": {}}\r\n')
            command = await peer.command()
            if step == "answer":
                peer.reply(command)
                await peer.command()
        while True:
            peer.say(EVENT)
            await asyncio.sleep(0.01)

    async def silent(peer: Peer) -> None:
        await forever(peer)

    async def scene(server: Server) -> None:
        await server.until(lambda one: len(one.connects) >= 2)

    server = play(tmp_path, silent if step == "greeting" else serve, scene)

    assert "another program is connected to the socket" in server.troubles[0]
    assert server.answers == []


def test_after_an_answer_silence_is_peace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that changes nothing is no reason to connect again."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.05)

    async def serve(peer: Peer) -> None:
        await peer.greet()
        await peer.answer()
        await forever(peer)

    async def scene(server: Server) -> None:
        await server.until(lambda one: one.answers)
        await asyncio.sleep(0.3)

    server = play(tmp_path, serve, scene)

    assert (len(server.connects), server.troubles) == (1, [])


@pytest.mark.parametrize("after", range(4))
def test_a_connection_that_ends_anywhere_is_made_again(tmp_path: Path, after: int) -> None:
    """QEMU goes and comes; what it said before it went in the middle of a line is nothing."""

    async def serve(peer: Peer) -> None:
        if len(peer.server.connects) > 1:
            await peer.greet()
            await peer.answer()
            await forever(peer)
        if after >= 1:
            peer.say(b'{"QMP": {}}\r\n')
            command = await peer.command()
            if after >= 2:
                peer.reply(command)
                await peer.command()
                if after >= 3:
                    peer.say(b'{"return": [{"name": "net')
                    await peer.writer.drain()

    async def scene(server: Server) -> None:
        await server.until(lambda one: one.answers)
        assert server.follower.trouble is None

    server = play(tmp_path, serve, scene)

    assert len(server.connects) == 2
    assert len(server.troubles) == 1


def test_a_path_where_nobody_listens_is_tried_again_ever_more_seldom(tmp_path: Path) -> None:
    """Back-off: after the k-th attempt twice as long as after the one before."""

    async def serve(peer: Peer) -> None:
        await peer.greet()
        await peer.answer()
        await forever(peer)

    async def scene(server: Server) -> None:
        await server.until(lambda one: one.answers)

    server = Server(tmp_path / "late", serve)
    retries: list[float] = []

    async def run() -> None:
        server.follower.start()
        await server.until(lambda one: one.troubles)
        while len(retries) < 4:
            await server.until(lambda one: one.follower._retry not in retries)
            retries.append(server.follower._retry)
        listener = await asyncio.start_unix_server(server._accepted, server.path)
        await scene(server)
        assert server.follower._retry == module.RETRY_SECONDS
        server.follower.close()
        listener.close()
        await asyncio.sleep(0.05)

    asyncio.run(run())

    assert retries == [0.04, 0.08, 0.16, 0.32]
    assert server.troubles == [f"{tmp_path}/late: cannot be connected to: No such file or directory"]


def test_a_socket_that_vmq_may_not_open_has_a_remedy_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU makes it for its own user."""

    class Refusing(socket.socket):
        def connect(self, _: object) -> None:
            raise PermissionError(13, "Permission denied")

    told: list[tuple[str, str]] = []

    async def run() -> None:
        follower = Follower("/r/qmp", None, pytest.fail, lambda *trouble: told.append(trouble))  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", Refusing)
            follower.start()
            await asyncio.sleep(0.05)
        follower.close()

    asyncio.run(run())

    assert told == [("/r/qmp: cannot be connected to: Permission denied", module.MAY_WRITE)]


def test_the_longest_pause_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that comes back after hours is found within half a minute."""
    monkeypatch.setattr(module, "RETRY_MAX_SECONDS", 0.03)

    async def run() -> Follower:
        follower = Server(tmp_path / "none", forever).follower
        follower.start()
        await asyncio.sleep(0.3)
        follower.close()
        return follower

    assert asyncio.run(run())._retry == 0.03


def test_a_refusal_is_said_and_asked_again_when_something_changes(tmp_path: Path) -> None:
    """A device that is plugged in later has its id then."""

    async def serve(peer: Peer) -> None:
        await peer.greet()
        command = await peer.command()
        assert command["arguments"] == {"name": "net9"}
        error = {
            "error": {"class": "GenericError", "desc": "invalid net client name: net9"},
            "id": command["id"],
        }
        peer.say(json.dumps(error).encode() + b"\r\n")
        await asyncio.sleep(0.1)
        assert peer.server.follower.state == "connecting"
        peer.say(EVENT)
        await peer.answer()
        await forever(peer)

    async def scene(server: Server) -> None:
        server.follower.nic = "net9"
        await server.until(lambda one: one.answers)
        assert (server.follower.trouble, server.follower.state) == (None, "following")

    server = play(tmp_path, serve, scene)

    assert server.troubles == [f"{tmp_path}/qmp: QEMU refuses: invalid net client name: net9"]


def test_a_peer_that_does_not_read_is_left(tmp_path: Path) -> None:
    """Nothing waits for room in its socket."""

    class Full:
        """A socket without room."""

        def __init__(self, real: Any) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def send(self, _: bytes) -> int:
            raise BlockingIOError

    async def serve(peer: Peer) -> None:
        server = peer.server
        server.follower._socket = Full(server.follower._socket)  # type: ignore[assignment]
        peer.say(b'{"QMP": {}}\r\n')
        await forever(peer)

    async def scene(server: Server) -> None:
        await server.until(lambda one: one.troubles)

    assert play(tmp_path, serve, scene).troubles == [f"{tmp_path}/qmp: it takes no commands"]


def test_start_and_close_may_come_twice_and_from_within(tmp_path: Path) -> None:
    """Nothing is left: no descriptor, no timer, no reader."""

    async def serve(peer: Peer) -> None:
        await peer.greet()
        await peer.answer()
        await forever(peer)

    server = Server(tmp_path / "qmp", serve)

    def answered(devices: tuple[RxFilter, ...]) -> None:
        server.answers.append(devices)
        server.follower.close()

    async def run() -> None:
        server.follower._on_answer = answered
        listener = await asyncio.start_unix_server(server._accepted, server.path)
        server.follower.close()
        for _ in range(2):
            server.answers.clear()
            server.follower.start()
            server.follower.start()
            await server.until(lambda one: one.answers)
            assert (server.follower.state, server.follower._timers, server.follower._socket) == (
                "off",
                {},
                None,
            )
            server.follower.close()
        listener.close()
        await asyncio.sleep(0.05)

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(run())

    assert len(os.listdir("/proc/self/fd")) == before
    assert len(server.connects) == 2
