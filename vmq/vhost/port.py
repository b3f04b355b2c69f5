# SPDX-License-Identifier: Apache-2.0
"""The socket of a VM port: listen for a front-end or connect to one, one at a time, again whenever it goes.

    mode = "listen"    our socket file; QEMU connects (libvirt calls this mode='client'), with `reconnect`
    mode = "connect"   QEMU listens (libvirt: mode='server'); we retry until it is there

A stale socket file of a process that is gone is replaced; one that somebody listens on is an error. While one
front-end is connected, a second is turned away in words.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from vmq.linux import listen
from vmq.vhost.connection import Connection, Owner
from vmq.vhost.session import Offer

RETRY_SECONDS = 0.1


class Port:
    """One VM port's socket and its connection, if there is one."""

    def __init__(self, where: str, path: str, mode: str, group: int, offer: Offer, owner: Owner) -> None:
        self.where, self.path, self.mode, self.offer, self.owner = where, path, mode, offer, owner
        self.connection: Connection | None = None
        self.turned_away = 0
        self._group = group
        self._listener: socket.socket | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._open = False
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
            self._listener = listen(self.where, self.path, self._group)
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)
        else:
            self._connect()

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sock, _ = self._listener.accept()
            if self.connection is not None:
                self.turned_away += 1
                sock.close()
                return
            self._adopt(sock)

    def _connect(self) -> None:
        self._retry = None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self.path)
        except OSError:
            sock.close()
            self._again()
            return
        self._adopt(sock)

    def _again(self) -> None:
        if self._open and self.mode == "connect":
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._connect)

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
        """End the connection, remove the socket file."""
        self._open = False
        if self._retry is not None:
            self._retry.cancel()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            Path(self.path).unlink(missing_ok=True)
        if self.connection is not None:
            self.connection.close()
