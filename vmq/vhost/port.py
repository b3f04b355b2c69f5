# SPDX-License-Identifier: Apache-2.0
"""The socket of a VM port: listen for a front-end or connect to one, one at a time, again whenever it goes.

    mode = "listen"    our socket file; QEMU connects (libvirt calls this mode='client'), with `reconnect`
    mode = "connect"   QEMU listens (libvirt: mode='server'); we retry until it is there

A stale socket file of a process that is gone is replaced; one that somebody listens on is an error. While one
front-end is connected, a second is turned away in words; one that has hung up makes room for the next at once. A
front-end that did harm (`hold`) has to wait.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from vmq.errors import ProtocolError
from vmq.listener import MORE_FILES, Listener
from vmq.vhost.connection import Connection, Owner
from vmq.vhost.session import Offer

RETRY_SECONDS = 0.1  # until we connect again
BREATH_SECONDS = 1.0  # until we accept again, when the process has no descriptor left
COMMUNICATION = 'vhost-user "Communication"'


class Port:
    """One VM port's socket and its connection, if there is one."""

    def __init__(self, where: str, path: str, mode: str, group: int, offer: Offer, owner: Owner) -> None:
        self.where, self.path, self.mode, self.offer, self.owner = where, path, mode, offer, owner
        self.connection: Connection | None = None
        self.turned_away = 0
        self._group = group
        self._listener: Listener | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._open = False
        self._held_until = 0.0
        self.changed: Callable[[], None] = lambda: None

    @property
    def state(self) -> str:
        """listening, connecting or connected."""
        if self.connection is not None:
            return "connected"
        return "listening" if self.mode == "listen" else "connecting"

    def open(self) -> None:
        """Make the socket; HostError when the path cannot be used."""
        self._open = True
        if self.mode == "listen":
            self._listener = Listener(self.where, self.path, self._group)
            self._listen(self._listener.sock)
        else:
            self._connect()

    def hold(self, seconds: float) -> None:
        """End the connection, and have none for a while."""
        self._held_until = time.monotonic() + seconds
        if self.connection is not None:
            self.connection.close()

    def _listen(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # no descriptor is left: asking again at once would be a busy loop
            self.owner.refused(
                ProtocolError(COMMUNICATION, f"a front-end cannot be accepted: {error.strerror}", MORE_FILES)
            )
            asyncio.get_running_loop().remove_reader(listener.fileno())
            self._retry = asyncio.get_running_loop().call_later(BREATH_SECONDS, self._listen, listener)
            return
        if self.connection is not None and self.connection.gone():
            self.connection.close()
        if self.connection is not None:
            self._turn_away(
                sock,
                "a second front-end was turned away: one is connected",
                "give each VM a socket of its own",
            )
        elif time.monotonic() < self._held_until:
            self._turn_away(sock, "a front-end was turned away: the last one did harm", "wait some seconds")
        else:
            self._adopt(sock)

    def _turn_away(self, sock: socket.socket, wrong: str, remedy: str) -> None:
        sock.close()
        self.turned_away += 1
        self.owner.refused(ProtocolError(COMMUNICATION, wrong, remedy))

    def _connect(self) -> None:
        self._retry = None
        kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            sock = socket.socket(socket.AF_UNIX, kind)
        except OSError as error:  # no descriptor is left
            wrong = f"no front-end can be connected to: {error.strerror}"
            self.owner.refused(ProtocolError(COMMUNICATION, wrong, MORE_FILES))
            self._again(BREATH_SECONDS)
            return
        try:
            sock.connect(self.path)
        except OSError:
            sock.close()
            self._again()
            return
        self._adopt(sock)

    def _again(self, least: float = RETRY_SECONDS) -> None:
        if self._open and self.mode == "connect":
            pause = max(least, self._held_until - time.monotonic())
            self._retry = asyncio.get_running_loop().call_later(pause, self._connect)

    def _adopt(self, sock: socket.socket) -> None:
        connection = Connection(sock, self.offer, self.owner, self._gone)
        self.connection = connection
        asyncio.get_running_loop().add_reader(connection.fileno(), connection.readable)
        self.changed()

    def _gone(self) -> None:
        """The connection is about to close its socket."""
        connection, self.connection = self.connection, None
        if connection is not None:
            asyncio.get_running_loop().remove_reader(connection.fileno())
        self._again()
        self.changed()

    def close(self) -> None:
        """End the connection, remove the socket file. It does not fail."""
        self._open = False
        if self._retry is not None:
            self._retry.cancel()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.sock.fileno())
            self._listener.close()
            self._listener = None
        if self.connection is not None:
            self.connection.close()
