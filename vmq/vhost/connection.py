# SPDX-License-Identifier: Apache-2.0
"""One front-end on a socket: reads messages, lets `protocol` decide, carries the actions out in order.

The `Owner` is the engine: it makes the data plane follow a session and says where stopped rings were. Everything
else happens here: mappings, descriptors, replies. Nothing waits for the front-end: a socket that takes no reply is
closed. Whatever goes wrong inside a message, its descriptors are closed and the session is as it was; what goes
wrong in the framing ends the connection.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Protocol

from vmq import linux
from vmq.abi.vhost_user import FDS_MAX
from vmq.errors import ProtocolError
from vmq.vhost import protocol
from vmq.vhost.actions import (
    Action,
    Announce,
    Apply,
    CheckEventFd,
    CloseFd,
    MapRegion,
    Reply,
    ReplyRingBase,
    SignalCall,
    UnmapRegion,
)
from vmq.vhost.memory import Mapping, map_region, unmap
from vmq.vhost.message import Decoder, Message, Region
from vmq.vhost.session import Offer, Session, stopped_at

BATCH = 64  # messages handled before others get their turn
COMMUNICATION = 'vhost-user "Communication"'


class Owner(Protocol):
    """What a connection needs of the engine, for its VM port."""

    def follow(self, session: Session, mappings: dict[Region, Mapping]) -> dict[int, int]:
        """Make the data plane follow; where the rings stopped that it no longer has. Waits for all workers."""

    def mapped(self, mapping: Mapping) -> None:
        """Guest memory that may fault."""

    def unmapping(self, mapping: Mapping) -> None:
        """The same, no longer."""

    def announce(self, mac: int) -> None:
        """Tell the network that this address is here."""

    def refused(self, error: ProtocolError) -> None:
        """A message was refused, or the framing broke."""


class Connection:
    """A connected front-end. `closed` is called once, when it has gone for any reason."""

    def __init__(self, sock: socket.socket, offer: Offer, owner: Owner, closed: Callable[[], None]) -> None:
        sock.setblocking(False)
        self.session = Session.new(offer)
        self.mappings: dict[Region, Mapping] = {}
        self._socket, self._owner, self._closed = sock, owner, closed
        self._decoder = Decoder()

    def fileno(self) -> int:
        """The socket, for the event loop."""
        return self._socket.fileno()

    def readable(self) -> None:
        """Handle what the socket holds, a bounded number of messages at a time."""
        try:
            for _ in range(BATCH):
                if not self._read():
                    return
        except ProtocolError as error:
            self._owner.refused(error)
            self.close()
        except OSError:
            self.close()  # the front-end is gone

    def _read(self) -> bool:
        """One receive; False when there is nothing more now, or the connection has ended."""
        room = socket.CMSG_SPACE((FDS_MAX + 1) * array.array("i").itemsize)
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                self._decoder.wanted, room, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return False
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if not data:
            self._decoder.finish()
            self.close()
            return False
        try:
            messages = self._decoder.feed(data, list(fds))
            if flags & socket.MSG_CTRUNC:
                for fd in [fd for message in messages for fd in message.fds]:
                    os.close(fd)
                raise ProtocolError(COMMUNICATION, "more descriptors than a message may carry", fatal=True)
        finally:
            if flags & socket.MSG_CTRUNC:
                self._close_all(self._decoder.release())
        for message in messages:
            self.handle(message)
        return True

    def handle(self, message: Message) -> None:
        """One message, whole or not at all."""
        outcome = protocol.handle(self.session, message)
        if outcome.error is None:
            mapped: list[Mapping] = []
            try:
                self._prepare(outcome.actions, mapped)
            except ProtocolError as error:
                for mapping in mapped:
                    self._unmap(mapping)
                outcome = protocol.refusal(self.session, message, error)
        if outcome.error is not None:
            self._owner.refused(outcome.error)
        self._execute(outcome)

    def _prepare(self, actions: tuple[Action, ...], mapped: list[Mapping]) -> None:
        """The actions that may fail; they come first, and have disturbed nobody."""
        for action in actions:
            if isinstance(action, CheckEventFd):
                if not linux.is_eventfd(action.fd):
                    raise ProtocolError(COMMUNICATION, "the descriptor is no eventfd")
                linux.set_nonblocking(action.fd)
            elif isinstance(action, MapRegion):
                mapping = map_region(action.region)
                mapped.append(mapping)
                self.mappings[action.region] = mapping
                self._owner.mapped(mapping)

    def _unmap(self, mapping: Mapping) -> None:
        del self.mappings[mapping.region]
        self._owner.unmapping(mapping)
        unmap(mapping)

    def _execute(self, outcome: protocol.Outcome) -> None:
        """The actions that do not fail, in order."""
        self.session = outcome.session  # at once: a reply that cannot be sent closes what this session owns
        for action in outcome.actions:
            if isinstance(action, Apply):
                stopped = self._owner.follow(self.session, self.mappings)
                self.session = stopped_at(self.session, stopped)
            elif isinstance(action, UnmapRegion):
                self._unmap(self.mappings[action.region])
            elif isinstance(action, CloseFd):
                os.close(action.fd)
            elif isinstance(action, SignalCall):
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(self.session.rings[action.index].call, 1)
            elif isinstance(action, Announce):
                self._owner.announce(action.mac)
            elif isinstance(action, Reply):
                self._send(action.data)
            elif isinstance(action, ReplyRingBase):
                self._send(protocol.ring_base(self.session, action.index).data)

    def _send(self, data: bytes) -> None:
        """Send a reply whole; a peer that leaves no room for it does not read its replies."""
        if self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) != len(data):
            raise ProtocolError(
                'vhost-user "Communication"', "the front-end does not read its replies", fatal=True
            )

    @staticmethod
    def _close_all(fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)

    def close(self) -> None:
        """Let go of everything, from whatever state; twice is once."""
        if self._socket.fileno() < 0:
            return
        closed, self._closed = self._closed, lambda: None
        closed()
        self._socket.close()
        self._close_all(self._decoder.release())
        self._execute(protocol.disconnect(self.session))
