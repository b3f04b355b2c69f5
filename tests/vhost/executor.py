# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the connection: runs actions, keeps the books, and speaks like a front-end.

It fails a test at once when an action would touch what it must not: a descriptor twice, memory that a kernel still
sees, a second answer. After each message it compares descriptors and mappings with what the session says it owns.
"""

from __future__ import annotations

import struct
from dataclasses import replace

from vmq.abi import virtio
from vmq.abi.vhost_user import FLAG_NEED_REPLY, FLAG_VERSION, Request
from vmq.errors import ProtocolError
from vmq.vhost import protocol
from vmq.vhost.actions import (
    Apply,
    CheckEventFd,
    CloseFd,
    MapLog,
    MapRegion,
    Reply,
    ReplyRingBase,
    SignalCall,
    UnmapLog,
    UnmapRegion,
)
from vmq.vhost.message import Log, Message, Region
from vmq.vhost.session import FEATURES, PROTOCOL_FEATURES, Offer, Session, mask, stopped_at

R = Request
LOG_OFFER = Offer(
    features=FEATURES | mask(virtio.VHOST_F_LOG_ALL),
    protocol_features=PROTOCOL_FEATURES | mask(1),
    max_pairs=2,
)
GUEST = (0, 0x100000, 0x7000_0000, 0)  # gpa, size, uaddr, offset
HIGH = (0x200000, 0x100000, 0x7010_0000, 0x100000)
BASE = 0x7000_0000


class Port:
    """One connection: session, open descriptors, mappings, and a data plane that is only a note of its memory."""

    def __init__(self, offer: Offer | None = None) -> None:
        self.session = Session.new(offer or Offer(max_pairs=2))
        self.plane = self.session  # as of the last Apply
        self.open: set[int] = set()
        self.mapped: set[Region | Log] = set()
        self.reached: dict[int, int] = {}  # next_avail of rings that run
        self.actions: list[object] = []
        self.replies: list[bytes] = []
        self.error: ProtocolError | None = None
        self.idle = False
        self.broken: set[type] = set()  # kinds of actions that fail
        self._next_fd = 100

    def send(self, request: int, payload: bytes = b"", fds: int = 0, ask: bool = False) -> Port:
        brought = tuple(range(self._next_fd, self._next_fd + fds))
        self._next_fd += fds
        self.open |= set(brought)
        message = Message(request, FLAG_VERSION | (FLAG_NEED_REPLY if ask else 0), payload, brought)
        before, self.actions, self.replies = self.session, [], []
        outcome = protocol.handle(self.session, message)
        try:
            self._run(outcome)
        except ProtocolError as error:
            self.mapped = {*before.regions, *([before.log] if before.log else [])}
            outcome = protocol.refusal(before, message, error)
            self._run(outcome)
        self.error, self.idle = outcome.error, outcome.idle
        self._check(before, ask)
        return self

    def leave(self) -> None:
        self._run(protocol.disconnect(self.session))
        assert self.open == set()
        assert self.mapped == set()

    def _run(self, outcome: protocol.Outcome) -> None:
        before, after = self.session, outcome.session
        for action in outcome.actions:
            self.actions.append(action)
            match action:
                case CheckEventFd(fd) | MapRegion(Region(fd=fd)) | MapLog(Log(fd=fd)):
                    assert fd in self.open
                    assert Apply() not in self.actions, "what may fail comes first"
                    if type(action) in self.broken:
                        raise ProtocolError("the file", "it is none")
                    if not isinstance(action, CheckEventFd):
                        self.mapped.add(action.region if isinstance(action, MapRegion) else action.log)
                case Apply():
                    gone = set(before.started) - set(after.started)
                    after = stopped_at(after, {i: self.reached[i] for i in gone if i in self.reached})
                    self.plane = after
                case UnmapRegion(memory) | UnmapLog(memory):
                    assert not self.plane.started or memory not in (*self.plane.regions, self.plane.log)
                    self.mapped.remove(memory)
                case CloseFd(fd):
                    assert not self.plane.started or fd not in {
                        fd for i in self.plane.started for fd in self._fds(self.plane, i)
                    }
                    self.open.remove(fd)
                case SignalCall(index):
                    assert self.plane.rings[index].call in self.open
                case Reply(data):
                    self.replies.append(data)
                case ReplyRingBase(index):
                    self.replies.append(protocol.ring_base(after, index).data)
        self.session = after

    @staticmethod
    def _fds(session: Session, index: int) -> tuple[int, int, int]:
        ring = session.rings[index]
        return ring.kick, ring.call, ring.err

    def _check(self, before: Session, ask: bool) -> None:
        assert self.open == self.session.fds, "no descriptor leaks, none is closed twice"
        assert self.mapped == {*self.session.regions, *([self.session.log] if self.session.log else [])}
        assert self.plane.started == self.session.started, "the data plane follows what has started"
        assert len(self.replies) <= 1
        assert self.replies or not ask
        if self.error:
            assert replace(self.session, refused="", rings=()) == replace(before, refused="", rings=())

    # --- what front-ends say, in the words of the tests ---

    @property
    def value(self) -> int:
        """The number of the only answer."""
        (data,) = self.replies
        _, flags, size, value = struct.unpack("=IIIQ", data)
        assert (flags, size) == (5, 8)
        return int(value)

    def started(self) -> list[int]:
        """The rings that a kernel has."""
        return list(self.session.started)

    def num(self, request: int, value: int, ask: bool = False) -> Port:
        return self.send(request, struct.pack("=Q", value), ask=ask)

    def state(self, request: int, index: int, num: int, ask: bool = False) -> Port:
        return self.send(request, struct.pack("=II", index, num), ask=ask)

    def addr(self, index: int, at: int, flags: int = 0, ask: bool = False) -> Port:
        payload = struct.pack("=IIQQQQ", index, flags, at, at + 0x3000, at + 0x2000, 0x1240)
        return self.send(R.SET_VRING_ADDR, payload, ask=ask)

    def fd(self, request: int, index: int, ask: bool = False) -> Port:
        return self.send(request, struct.pack("=Q", index), fds=1, ask=ask)

    def add(self, region: tuple[int, int, int, int], ask: bool = False) -> Port:
        return self.send(R.ADD_MEM_REG, struct.pack("=QQQQQ", 0, *region), fds=1, ask=ask)

    def table(self, *regions: tuple[int, int, int, int], ask: bool = False) -> Port:
        payload = struct.pack("=II", len(regions), 0) + b"".join(struct.pack("=QQQQ", *r) for r in regions)
        return self.send(R.SET_MEM_TABLE, payload, fds=len(regions), ask=ask)

    def log(self, size: int, offset: int = 0) -> Port:
        return self.send(R.SET_LOG_BASE, struct.pack("=QQ", size, offset), fds=1)

    def hello(self, features: int = FEATURES) -> Port:
        """QEMU's handshake, then the choice of the driver."""
        self.num(R.SET_PROTOCOL_FEATURES, self.session.offer.protocol_features)
        self.send(R.SET_OWNER)
        for index in range(4):
            self.fd(R.SET_VRING_CALL, index)
            self.fd(R.SET_VRING_ERR, index)
        return self.num(R.SET_FEATURES, features)

    def ring(self, index: int, base: int = 0, at: int = BASE, size: int = 256) -> Port:
        self.state(R.SET_VRING_NUM, index, size)
        self.state(R.SET_VRING_BASE, index, base)
        self.addr(index, at + index * 0x10000)
        self.fd(R.SET_VRING_KICK, index)
        return self.fd(R.SET_VRING_CALL, index)

    def running(self, base: int = 0) -> Port:
        """Both rings of the first pair run."""
        self.hello().table(GUEST)
        for index in (0, 1):
            self.ring(index, base).state(R.SET_VRING_ENABLE, index, 1)
            self.reached[index] = base
        assert self.started() == [0, 1]
        return self


def refused(port: Port, word: str = "") -> None:
    assert port.error is not None
    assert word in str(port.error)
    assert not port.error.fatal
