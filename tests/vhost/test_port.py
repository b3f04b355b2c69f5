# SPDX-License-Identifier: Apache-2.0
"""The socket of a VM port: both directions, one front-end at a time, again whenever it goes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from tests.engine.running import open_files
from tests.vhost.test_connection import Owner
from vmq.errors import HostError
from vmq.listener import Listener
from vmq.vhost import port as module
from vmq.vhost.port import Port
from vmq.vhost.session import Offer

QUESTION = struct.pack("=III", 1, 1, 0)  # GET_FEATURES


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop, and compare descriptors."""

    def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = open_files()
        asyncio.run(test(tmp_path, monkeypatch))
        assert open_files() == before

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def made(path: Path, mode: str = "listen") -> Port:
    return Port("vmq.toml: [vm.web] socket", str(path / "web.sock"), mode, -1, Offer(), Owner())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


def dial(path: Path) -> socket.socket:
    front = socket.socket(socket.AF_UNIX)
    front.setblocking(False)
    front.connect(str(path / "web.sock"))
    return front


async def answers(front: socket.socket) -> bool:
    """Whether the back-end answers; False when it has hung up."""
    try:
        front.send(QUESTION)
        return bool(await asyncio.wait_for(asyncio.get_running_loop().sock_recv(front, 20), 10))
    except ConnectionError:
        return False


@in_loop
async def test_it_listens_with_the_rights_of_its_group_only(tmp_path, monkeypatch):
    """design §4: 0660."""
    port = made(tmp_path)
    port.open()
    assert stat.S_IMODE((tmp_path / "web.sock").stat().st_mode) == 0o660
    assert port.state == "listening"
    port.close()
    assert not (tmp_path / "web.sock").exists()


@in_loop
async def test_a_front_end_comes_goes_and_comes_again(tmp_path, monkeypatch):
    port = made(tmp_path)
    changes: list[str] = []
    port.changed = lambda: changes.append(port.state)
    port.open()
    for _round in range(3):
        with dial(tmp_path) as front:
            assert await answers(front)
        await until(lambda: port.connection is None)
    assert changes == ["connected", "listening"] * 3
    port.close()


@in_loop
async def test_a_second_front_end_is_turned_away_in_words(tmp_path, monkeypatch):
    """And the first notices nothing."""
    port = made(tmp_path)
    port.open()
    with dial(tmp_path) as first:
        assert await answers(first)
        with dial(tmp_path) as second:
            assert not await answers(second)
        assert await answers(first)
        assert port.turned_away == 1
        (error,) = port.owner.errors  # type: ignore[attr-defined]
        assert "a second front-end" in str(error)
        assert error.remedy
        port.close()


@in_loop
async def test_who_connects_again_at_once_is_let_in(tmp_path, monkeypatch):
    """A restarted front-end may be accepted before the end of its predecessor is read."""
    port = made(tmp_path)
    port.open()
    first = dial(tmp_path)
    assert await answers(first)
    first.send(QUESTION * 200)  # more than one turn of the loop reads
    first.close()
    with dial(tmp_path) as second:
        port._accept(port._listener.sock)  # type: ignore[union-attr]
        assert await answers(second)
    assert port.turned_away == 0
    port.close()


@in_loop
async def test_connect_mode_retries_until_a_front_end_listens_and_again_when_it_goes(tmp_path, monkeypatch):
    """mode = "connect": QEMU listens, and may come later, go and come back."""
    port = made(tmp_path, "connect")
    port.open()
    assert port.state == "connecting"
    for _round in range(2):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "web.sock"))
            listener.listen(1)
            listener.setblocking(False)
            front, _address = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(listener), 10)
            with front:
                front.setblocking(False)
                assert await answers(front)
                assert port.state == "connected"
        (tmp_path / "web.sock").unlink()
        await until(lambda: port.state == "connecting")
    port.close()


@in_loop
async def test_connect_mode_removes_no_socket_of_the_peer(tmp_path, monkeypatch):
    """It is the listener's."""
    port = made(tmp_path, "connect")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "web.sock"))
        listener.listen(1)
        port.open()
        port.close()
    assert (tmp_path / "web.sock").exists()


@in_loop
async def test_a_socket_that_somebody_listens_on_is_an_error(tmp_path, monkeypatch):
    """One line with file, key and remedy; the other's socket stays."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "web.sock"))
        other.listen(1)
        with pytest.raises(HostError, match="in use by another process") as refused:
            made(tmp_path).open()
    assert str(refused.value).startswith("vmq.toml: [vm.web] socket: ")
    assert (tmp_path / "web.sock").exists()


@in_loop
async def test_a_stale_socket_is_replaced(tmp_path, monkeypatch):
    """An engine that was killed leaves its sockets."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "web.sock"))
    port = made(tmp_path)
    port.open()
    with dial(tmp_path) as front:
        assert await answers(front)
    port.close()


@in_loop
async def test_after_harm_a_front_end_waits(tmp_path, monkeypatch):
    """`hold`: it is disconnected, and let in again later."""
    port = made(tmp_path)
    port.open()
    now = [100.0]
    monkeypatch.setattr("vmq.vhost.port.time.monotonic", lambda: now[0])
    first = dial(tmp_path)
    assert await answers(first)
    port.hold(10)
    assert not await answers(first)
    first.close()
    with dial(tmp_path) as early:
        assert not await answers(early)
    now[0] = 111.0
    with dial(tmp_path) as late:
        assert await answers(late)
    monkeypatch.undo()
    port.close()


@in_loop
async def test_a_process_without_descriptors_does_not_spin(tmp_path, monkeypatch):
    """EMFILE leaves the socket readable: it is left alone for a while, then tried again."""
    port = made(tmp_path)
    monkeypatch.setattr(module, "BREATH_SECONDS", 0.05)
    port.open()
    listener = cast("Listener", port._listener).sock
    tries: list[int] = []

    class Full:
        def fileno(self) -> int:
            return listener.fileno()

        def accept(self) -> Any:
            tries.append(1)
            if len(tries) < 3:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return listener.accept()

    asyncio.get_running_loop().remove_reader(listener.fileno())
    port._listen(Full())  # type: ignore[arg-type]
    with dial(tmp_path) as front:
        assert await answers(front)
    assert len(tries) == 3
    assert "cannot be accepted" in str(port.owner.errors[0])  # type: ignore[attr-defined]
    port.close()


@in_loop
async def test_connect_mode_survives_a_moment_without_descriptors(tmp_path, monkeypatch):
    """EMFILE: said with the remedy, and tried again."""
    monkeypatch.setattr(module, "BREATH_SECONDS", 0.05)
    port = made(tmp_path, "connect")
    ours, tries = socket.socket, []

    def few(*words: Any) -> Any:
        tries.append(words)
        if len(tries) < 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return ours(*words)

    with ours(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "web.sock"))
        listener.listen(1)
        monkeypatch.setattr("vmq.vhost.port.socket.socket", few)
        port.open()
        await until(lambda: port.connection)
        monkeypatch.undo()
        assert port.state == "connected"
    assert len(tries) == 3
    assert "no front-end can be connected to" in str(port.owner.errors[0])  # type: ignore[attr-defined]
    assert "open files" in str(port.owner.errors[0])  # type: ignore[attr-defined]
    port.close()


@in_loop
async def test_closing_ends_the_connection_and_twice_is_once(tmp_path, monkeypatch):
    port = made(tmp_path)
    port.open()
    with dial(tmp_path) as front:
        assert await answers(front)
        port.close()
        port.close()
        assert not await answers(front)


@in_loop
async def test_closing_does_not_fail_when_the_directory_is_gone(tmp_path, monkeypatch):
    """Teardown never fails."""
    place = tmp_path / "run"
    place.mkdir()
    port = made(place)
    port.open()
    (place / "web.sock").unlink()
    place.rmdir()
    with contextlib.suppress(RuntimeError):
        port.close()
