# SPDX-License-Identifier: Apache-2.0
"""One front-end on a socket: reads messages, lets `protocol` decide, carries the actions out in order.

The `Owner` is the engine: it makes the data plane follow a session and says where stopped rings were. Everything
else happens here: mappings, descriptors, replies. Nothing waits for the front-end: a socket that takes no reply is
closed. Whatever goes wrong inside a message, its descriptors are closed and the session is as it was; what goes
wrong in the framing ends the connection. So does a fault of our own: its traceback is logged once, and the event
loop never sees it.
"""

from __future__ import annotations

import array
import logging
import os
import resource
import select
import socket
import time
from collections.abc import Callable, Iterable
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

BATCH, TURN_SECONDS = 64, 0.002  # messages handled, and time taken, before others get their turn
DESCRIPTORS_FAIR = 128  # that every front-end may hold: 16 queue pairs with a few regions
COMMUNICATION = 'vhost-user "Communication"'
LOG = logging.getLogger("vmq")


class Owner(Protocol):
    """What a connection needs of the engine, for its VM port."""

    def follow(self, session: Session, mappings: dict[Region, Mapping]) -> dict[int, int]:
        """Make the data plane follow; where the rings stopped that it no longer has. Waits for all workers."""

    def mapped(self, mapping: Mapping) -> None:
        """Guest memory that may fault."""

    def unmapping(self, mapping: Mapping) -> None:
        """The same, no longer."""

    def call(self, descriptor: int) -> None:
        """Call the driver; it must not wait, whatever the other end does to its eventfd."""

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

    def gone(self) -> bool:
        """Whether the front-end has hung up; what it said before may still be unread."""
        poller = select.poll()
        poller.register(self._socket, 0)
        return bool(poller.poll(0))

    def readable(self) -> None:
        """Handle what the socket holds, a bounded number of messages at a time. Never raises."""
        try:
            until = time.monotonic() + TURN_SECONDS
            for _ in range(BATCH):
                if not self._read() or time.monotonic() > until:
                    return
        except ProtocolError as error:
            self._owner.refused(error)
            self.close()
        except ConnectionError:
            self.close()  # the front-end is gone
        except Exception:
            LOG.exception("a connection is closed by a fault of vmq")
            self.close()

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
                self._close_all([fd for message in messages for fd in message.fds])
                wrong = "descriptors were lost: more than a message may carry, or than this process may open"
                raise ProtocolError(COMMUNICATION, wrong, fatal=True)
        finally:
            if flags & socket.MSG_CTRUNC:
                self._close_all(self._decoder.release())
        self._check_share(messages)
        for message in messages:
            self.handle(message)
        return True

    def _check_share(self, messages: list[Message]) -> None:
        """The last quarter of the descriptors of this process is for front-ends that have few; fatal for others."""
        newest = max((fd for message in messages for fd in message.fds), default=0)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if newest >= limit * 3 // 4 and len(self.session.fds) >= DESCRIPTORS_FAIR:
            self._close_all([fd for message in messages for fd in message.fds])
            wrong = f"it holds {len(self.session.fds)} descriptors, and this process has few left of {limit}"
            raise ProtocolError(COMMUNICATION, wrong, "raise the limit of open files", fatal=True)

    def handle(self, message: Message) -> None:
        """One message, whole or not at all."""
        mapped: list[Mapping] = []
        try:
            outcome = protocol.handle(self.session, message)
            if outcome.error is None:
                self._prepare(outcome.actions, mapped)
        except ProtocolError as error:
            self._take_back(mapped)
            outcome = protocol.refusal(self.session, message, error)
        except BaseException:
            self._take_back(mapped)
            self._close_all(message.fds)
            raise
        if outcome.error is not None:
            self._owner.refused(outcome.error)
        self._execute(outcome)

    def _take_back(self, mapped: list[Mapping]) -> None:
        for mapping in mapped:
            self._unmap(mapping)

    def _prepare(self, actions: tuple[Action, ...], mapped: list[Mapping]) -> None:
        """The actions that may fail; they come first, and have disturbed nobody."""
        for action in actions:
            if isinstance(action, CheckEventFd):
                if not linux.is_eventfd(action.fd):
                    raise ProtocolError(COMMUNICATION, "the descriptor is no eventfd")
                linux.set_nonblocking(action.fd)
            elif isinstance(action, MapRegion):
                mapping = map_region(action.region, sum(one.length for one in self.mappings.values()))
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
                self._owner.call(self.session.rings[action.index].call)
            elif isinstance(action, Announce):
                self._owner.announce(action.mac)
            elif isinstance(action, Reply):
                self._send(action.data)
            elif isinstance(action, ReplyRingBase):
                self._send(protocol.ring_base(self.session, action.index).data)

    def _send(self, data: bytes) -> None:
        """Send a reply whole; a peer that leaves no room for it does not read its replies."""
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        if sent != len(data):
            raise ProtocolError(COMMUNICATION, "the front-end does not read its replies", fatal=True)

    @staticmethod
    def _close_all(fds: Iterable[int]) -> None:
        for fd in fds:
            os.close(fd)

    def close(self) -> None:
        """Let go of everything, from whatever state; twice is once. Never raises."""
        if self._socket.fileno() < 0:
            return
        try:
            self._closed()
        except Exception:
            LOG.exception("a connection has ended, and its owner failed")
        self._socket.close()
        self._close_all(self._decoder.release())
        try:
            self._execute(protocol.disconnect(self.session))
        except Exception:
            LOG.exception("a connection could not give everything back")
