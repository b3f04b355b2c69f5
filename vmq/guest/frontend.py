# SPDX-License-Identifier: Apache-2.0
"""A vhost-user front-end: the socket, the handshake in QEMU's order, memory and rings handed over and taken back.

    connect       GET_FEATURES, protocol features, GET_QUEUE_NUM, GET_MAX_MEM_SLOTS, SET_OWNER
    start         NET_SET_MTU, SET_FEATURES, memory, per ring NUM BASE ADDR KICK CALL ERR, then ENABLE
    stop          GET_VRING_BASE of each ring: its answer is where the back-end stopped

Any back-end will do: what it does not offer is not used. Whatever takes an answer is answered or times out. With
REPLY_ACK every change is acknowledged, so it is in force when the method returns; without it GET_FEATURES serves
as a barrier at the end of a start, as QEMU uses it.

`send` and `reply` are the raw protocol: with them a test says anything, in any order, wrongly.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmq.abi.vhost_user import (
    FLAG_NEED_REPLY,
    FLAG_VERSION,
    HEADER,
    MEM_REG,
    MEMORY,
    MEMORY_BASELINE_NREGIONS,
    MEMORY_REGION,
    REPLY_FLAGS,
    U64,
    VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    VHOST_USER_PROTOCOL_F_MQ,
    VHOST_USER_PROTOCOL_F_MTU,
    VHOST_USER_PROTOCOL_F_RARP,
    VHOST_USER_PROTOCOL_F_REPLY_ACK,
    VRING_ADDR,
    VRING_STATE,
    Request,
)
from vmq.abi.virtio import VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_VERSION_1
from vmq.errors import ProtocolError
from vmq.guest.memory import Memory, Region

COMMUNICATION = 'vhost-user "Communication"'
PROTOCOL_FEATURES = sum(
    1 << bit
    for bit in (
        VHOST_USER_PROTOCOL_F_MQ,
        VHOST_USER_PROTOCOL_F_RARP,
        VHOST_USER_PROTOCOL_F_REPLY_ACK,
        VHOST_USER_PROTOCOL_F_MTU,
        VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    )
)
RETRY = 0.02  # seconds between attempts to connect to a back-end that is not there yet


@dataclass(frozen=True, slots=True)
class Ring:
    """A virtqueue as the messages describe it: user addresses, eventfds."""

    index: int
    size: int
    desc: int
    avail: int
    used: int
    kick: int
    call: int
    err: int


class Frontend:
    """One connection at a time to the back-end at `path`. `server`: we listen and the back-end connects.

    `add_regions` hands memory over by ADD_MEM_REG where the back-end offers it, otherwise by SET_MEM_TABLE.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        server: bool = False,
        timeout: float = 10.0,
        add_regions: bool = True,
        protocol_features: int = PROTOCOL_FEATURES,
    ) -> None:
        self.path = os.fspath(path)
        self.timeout = timeout
        self.wanted = protocol_features
        if not add_regions:
            self.wanted &= ~(1 << VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)
        self.offered = 0  # feature words of the back-end
        self.offered_protocol = 0
        self.features = 0  # what both sides agreed on
        self.protocol_features = 0
        self.max_pairs = 1
        self.mem_slots = MEMORY_BASELINE_NREGIONS
        self._sent_regions: tuple[Region, ...] = ()
        self._socket: socket.socket | None = None
        self._listener: socket.socket | None = None
        if server:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self.path)
            self._listener.listen(1)
            self._listener.settimeout(timeout)

    # --- the socket ---------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Wait for the back-end, at most `timeout`; TimeoutError without one."""
        self.disconnect()
        if self._listener:
            self._socket, _ = self._listener.accept()
        else:
            self._socket = self._dial()
        self._socket.settimeout(self.timeout)

    def _dial(self) -> socket.socket:
        deadline = time.monotonic() + self.timeout
        while True:
            dialled = socket.socket(socket.AF_UNIX)
            try:
                dialled.settimeout(self.timeout)
                dialled.connect(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                dialled.close()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.path}: no back-end within {self.timeout} s") from None
                time.sleep(RETRY)
            except BaseException:
                dialled.close()
                raise
            else:
                return dialled

    @property
    def wire(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionError(f"{self.path}: not connected")
        return self._socket

    @property
    def connected(self) -> bool:
        """Whether the back-end has not hung up."""
        if self._socket is None:
            return False
        poller = select.poll()
        poller.register(self._socket, select.POLLRDHUP)
        return not poller.poll(0)

    def disconnect(self) -> None:
        """Hang up without a word, as a front-end that was killed."""
        if self._socket:
            self._socket.close()
        self._socket = None
        self._sent_regions = ()

    def close(self) -> None:
        self.disconnect()
        if self._listener:
            self._listener.close()
            self._listener = None
            with contextlib.suppress(FileNotFoundError):
                Path(self.path).unlink()

    # --- raw messages -------------------------------------------------------------------------------------

    def send(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, need_reply: bool = False
    ) -> None:
        """Send one message, whatever it says."""
        flags = FLAG_VERSION | (FLAG_NEED_REPLY if need_reply else 0)
        message = HEADER.pack(request, flags, len(payload)) + payload
        socket.send_fds(self.wire, [message], list(fds))

    def reply(self, request: int) -> bytes:
        """The payload of the next message, which must be the reply to `request`."""
        number, flags, size = HEADER.unpack(self._receive(HEADER.size))
        payload = self._receive(size)
        if number != request or flags != REPLY_FLAGS:
            wrong = f"reply to request {request} expected, but request {number} with flags {flags:#x} came"
            raise ProtocolError(COMMUNICATION, wrong)
        return payload

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.wire.recv(size - len(data))
            if not more:
                raise ConnectionResetError(f"{self.path}: the back-end closed the connection")
            data += more
        return data

    def ask(self, request: Request, payload: bytes = b"") -> int:
        """Send a question and return its 64-bit answer."""
        self.send(request, payload)
        (value,) = U64.unpack(self.reply(request))
        return int(value)

    def tell(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a change; with REPLY_ACK wait until it is in force, ProtocolError if the back-end refuses it."""
        acknowledged = self.has(VHOST_USER_PROTOCOL_F_REPLY_ACK)
        self.send(request, payload, fds, need_reply=acknowledged)
        if acknowledged and (answer := U64.unpack(self.reply(request))[0]):
            raise ProtocolError(COMMUNICATION, f"{request.name}: the back-end answered {answer}: refused")

    def has(self, bit: int) -> bool:
        """Whether a protocol feature is agreed on."""
        return bool(self.protocol_features >> bit & 1)

    def negotiated(self, bit: int) -> bool:
        """Whether a device feature is agreed on."""
        return bool(self.features >> bit & 1)

    # --- the handshake ------------------------------------------------------------------------------------

    def handshake(self, features: int) -> None:
        """Agree on protocol features, and choose of `features` what the back-end offers."""
        self.protocol_features = 0
        self.offered = self.ask(Request.GET_FEATURES)
        self.features = self.offered & features
        if not self.negotiated(VIRTIO_F_VERSION_1):
            rule = "virtio-1.2 §6 Reserved Feature Bits"
            raise ProtocolError(rule, "the back-end does not offer VIRTIO_F_VERSION_1")
        if self.negotiated(VHOST_USER_F_PROTOCOL_FEATURES):
            self.offered_protocol = self.ask(Request.GET_PROTOCOL_FEATURES)
            chosen = self.offered_protocol & self.wanted
            self.send(Request.SET_PROTOCOL_FEATURES, U64.pack(chosen))
            self.protocol_features = chosen
        if self.has(VHOST_USER_PROTOCOL_F_MQ):
            self.max_pairs = self.ask(Request.GET_QUEUE_NUM)
        if self.has(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS):
            self.mem_slots = self.ask(Request.GET_MAX_MEM_SLOTS)
        self.send(Request.SET_OWNER)

    def set_mtu(self, mtu: int) -> None:
        if self.has(VHOST_USER_PROTOCOL_F_MTU):
            self.tell(Request.NET_SET_MTU, U64.pack(mtu))

    def set_features(self) -> None:
        self.tell(Request.SET_FEATURES, U64.pack(self.features))

    def set_memory(self, memory: Memory) -> None:
        """Hand over guest memory, unless this connection has it already (QEMU sends it once a connection)."""
        if memory.regions == self._sent_regions:
            return
        if self.has(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS):
            for region in memory.regions:
                self.add_region(memory, region)
        else:
            rows = b"".join(MEMORY_REGION.pack(*_wire(region)) for region in memory.regions)
            head = MEMORY.pack(len(memory.regions), 0)
            self.tell(Request.SET_MEM_TABLE, head + rows, [memory.fd] * len(memory.regions))
        self._sent_regions = memory.regions

    def add_region(self, memory: Memory, region: Region) -> None:
        self.tell(Request.ADD_MEM_REG, MEM_REG.pack(0, *_wire(region)), [memory.fd])

    def remove_region(self, region: Region) -> None:
        self.tell(Request.REM_MEM_REG, MEM_REG.pack(0, *_wire(region)))

    # --- rings --------------------------------------------------------------------------------------------

    def start_ring(self, ring: Ring, base: int) -> None:
        """Everything the back-end needs to run a ring from index `base` on."""
        self.tell(Request.SET_VRING_NUM, VRING_STATE.pack(ring.index, ring.size))
        self.tell(Request.SET_VRING_BASE, VRING_STATE.pack(ring.index, base))
        self.tell(Request.SET_VRING_ADDR, VRING_ADDR.pack(ring.index, 0, ring.desc, ring.used, ring.avail, 0))
        self.tell(Request.SET_VRING_KICK, U64.pack(ring.index), [ring.kick])
        self.tell(Request.SET_VRING_CALL, U64.pack(ring.index), [ring.call])
        self.tell(Request.SET_VRING_ERR, U64.pack(ring.index), [ring.err])

    def enable(self, index: int, *, on: bool = True) -> None:
        """Without VHOST_USER_F_PROTOCOL_FEATURES a ring is enabled from the start, and there is no message."""
        if self.negotiated(VHOST_USER_F_PROTOCOL_FEATURES):
            self.tell(Request.SET_VRING_ENABLE, VRING_STATE.pack(index, int(on)))

    def stop_ring(self, index: int) -> int:
        """Take a ring back; the index where the back-end stopped."""
        self.send(Request.GET_VRING_BASE, VRING_STATE.pack(index, 0))
        _, base = VRING_STATE.unpack(self.reply(Request.GET_VRING_BASE))
        return int(base)

    def barrier(self) -> None:
        """Return when the back-end has done everything sent so far."""
        self.ask(Request.GET_FEATURES)


def _wire(region: Region) -> tuple[int, int, int, int]:
    return region.guest, region.size, region.own, region.offset
