# SPDX-License-Identifier: Apache-2.0
"""vhost-user messages: bytes and descriptors in, typed fields out. No I/O, no state but an unfinished message.

    recvmsg(decoder.wanted) ──► Decoder.feed ──► Message ──► u64, vring_addr, regions, …  ──► typed fields

A stream socket delivers descriptors with a byte, not with a message. They belong to the message of the first byte
they came with (vhost-user "Communication"). Linux ends a read behind the bytes that brought descriptors but lets
earlier bytes precede them, so whoever reads more than `wanted` cannot tell whose they are; `wanted` never crosses
the end of a message.

Two kinds of fault. What spoils the framing (version, reply bit, size, too many descriptors) is fatal: nobody knows
where the next message begins. A payload that does not fit its request is a refusal: only that message is lost.
Syntax (sizes, number of descriptors) is checked here, meaning in `protocol`.

Descriptors are plain numbers and this file closes none. Those of a finished message belong to whoever got the
message; all others are given back by `release`, also after a fault, those of messages finished by the same call
included.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Any

from vmq.abi.vhost_user import (
    FDS_MAX,
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    FLAG_VERSION,
    FLAG_VERSION_MASK,
    HEADER,
    LOG,
    MEM_REG,
    MEMORY,
    MEMORY_BASELINE_NREGIONS,
    MEMORY_REGION,
    REPLY_FLAGS,
    U64,
    VRING_ADDR,
    VRING_NOFD,
    VRING_STATE,
    Request,
)
from vmq.errors import ProtocolError

# Above any message of a network device (SET_MEM_TABLE: 264 bytes), so that a table with one region too many is
# refused as such and does not cost the connection.
PAYLOAD_MAX = 512

_NAMES = {int(request): request.name for request in Request}

FRAMING = 'vhost-user "Header"'
PAYLOAD = 'vhost-user "Payload"'
MEMORY_REMEDY = (
    "share the guest's memory: QEMU: -object memory-backend-memfd,share=on,… with -machine memory-backend=…; "
    "libvirt: <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
)


@dataclass(frozen=True, slots=True)
class Message:
    """One request of the front-end; `fds` are open descriptors that its receiver owns."""

    request: int
    flags: int = FLAG_VERSION
    payload: bytes = b""
    fds: tuple[int, ...] = ()

    @property
    def need_reply(self) -> bool:
        return bool(self.flags & FLAG_NEED_REPLY)

    @property
    def name(self) -> str:
        return _NAMES.get(self.request, f"request {self.request}")


class Decoder:
    """Cuts a stream into messages; holds at most one unfinished message."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._fds: list[int] = []

    @property
    def wanted(self) -> int:
        """Bytes to read next: the rest of the header, or of the payload; never 0."""
        have = len(self._bytes)
        return (HEADER.size if have < HEADER.size else HEADER.size + self._header()[2]) - have

    def feed(self, data: bytes, fds: list[int]) -> list[Message]:
        """The messages that `data` finishes, in order; `fds` came with its first byte."""
        self._bytes += data
        self._fds += fds
        messages: list[Message] = []
        try:
            if len(self._fds) > FDS_MAX:
                raise ProtocolError(
                    FRAMING,
                    f"{len(self._fds)} descriptors with one message, at most {FDS_MAX} allowed",
                    fatal=True,
                )
            while (message := self._next()) is not None:
                messages.append(message)
        except ProtocolError:
            self._fds += [fd for message in messages for fd in message.fds]
            raise
        return messages

    def finish(self) -> None:
        """The stream has ended: a fault inside a message."""
        if self._bytes:
            raise ProtocolError(
                FRAMING, f"the stream ended inside a message: {self.wanted} bytes more due", fatal=True
            )

    def release(self) -> list[int]:
        """Give up: all descriptors received and not handed out, for the caller to close."""
        fds, self._fds = self._fds, []
        self._bytes.clear()
        return fds

    def _header(self) -> tuple[int, int, int]:
        request, flags, size = HEADER.unpack_from(self._bytes)
        return request, flags, size

    def _next(self) -> Message | None:
        if len(self._bytes) < HEADER.size:
            return None
        request, flags, size = self._header()
        if flags & FLAG_VERSION_MASK != FLAG_VERSION:
            raise ProtocolError(FRAMING, f"version {flags & FLAG_VERSION_MASK}, only 1 is known", fatal=True)
        if flags & FLAG_REPLY:
            raise ProtocolError(FRAMING, f"request {request} has the reply bit set", fatal=True)
        if size > PAYLOAD_MAX:
            raise ProtocolError(
                FRAMING,
                f"request {request}: payload of {size} bytes, at most {PAYLOAD_MAX} allowed",
                fatal=True,
            )
        end = HEADER.size + size
        if len(self._bytes) < end:
            return None
        message = Message(request, flags, bytes(self._bytes[HEADER.size : end]), tuple(self._fds))
        del self._bytes[:end]
        self._fds = []
        return message


def reply(request: int, payload: bytes) -> bytes:
    """The answer to a request: the same number, need_reply cleared."""
    return HEADER.pack(request, REPLY_FLAGS, len(payload)) + payload


# --- payloads -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VringState:
    index: int
    num: int


@dataclass(frozen=True, slots=True)
class VringAddr:
    """User addresses, as the front-end knows its own memory; `log` is guest-physical."""

    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int


@dataclass(frozen=True, slots=True)
class VringFd:
    index: int
    fd: int  # -1: the front-end has none


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of guest memory: `size` bytes at guest address `gpa`, at `offset` of the file `fd`."""

    gpa: int
    size: int
    uaddr: int
    offset: int
    fd: int

    @property
    def place(self) -> tuple[int, int, int]:
        """What makes two regions the same; the offset is not compared (vhost-user REM_MEM_REG)."""
        return self.gpa, self.size, self.uaddr


@dataclass(frozen=True, slots=True)
class Log:
    size: int
    offset: int
    fd: int


def _unpack(message: Message, layout: Struct) -> tuple[Any, ...]:
    if len(message.payload) != layout.size:
        raise ProtocolError(PAYLOAD, f"payload of {len(message.payload)} bytes, exactly {layout.size} due")
    return layout.unpack(message.payload)


def _only_fd(message: Message) -> int:
    if len(message.fds) != 1:
        raise ProtocolError(PAYLOAD, f"{len(message.fds)} descriptors, exactly one due")
    return message.fds[0]


def nothing(message: Message) -> None:
    """A request without payload."""
    if message.payload:
        raise ProtocolError(PAYLOAD, f"payload of {len(message.payload)} bytes, none due")


def u64(message: Message) -> int:
    """vhost-user "A single 64-bit integer"."""
    (value,) = _unpack(message, U64)
    return int(value)


def vring_state(message: Message) -> VringState:
    """vhost-user "A vring state description"."""
    return VringState(*_unpack(message, VRING_STATE))


def vring_addr(message: Message) -> VringAddr:
    """vhost-user "A vring address description"."""
    return VringAddr(*_unpack(message, VRING_ADDR))


def vring_fd(message: Message) -> VringFd:
    """Ring index and eventfd. All other bits stay in the index: one that only looks small is no ring's."""
    value = u64(message)
    index = value & ~VRING_NOFD
    if not value & VRING_NOFD:
        return VringFd(index, _only_fd(message))
    if message.fds:
        raise ProtocolError(PAYLOAD, f"ring {index}: a descriptor, and the bit that says there is none")
    return VringFd(index, -1)


def regions(message: Message) -> tuple[Region, ...]:
    """vhost-user "Multiple Memory regions description": one descriptor a region, in their order."""
    head, body = message.payload[: MEMORY.size], message.payload[MEMORY.size :]
    count = MEMORY.unpack(head)[0] if len(head) == MEMORY.size else 0
    if count > MEMORY_BASELINE_NREGIONS:
        raise ProtocolError(PAYLOAD, f"{count} regions, at most {MEMORY_BASELINE_NREGIONS} allowed")
    if len(message.payload) != MEMORY.size + count * MEMORY_REGION.size:
        raise ProtocolError(PAYLOAD, f"payload of {len(message.payload)} bytes for {count} regions")
    if not message.fds or not count:
        raise _not_shared()
    if len(message.fds) != count:
        raise ProtocolError(PAYLOAD, f"{len(message.fds)} descriptors for {count} regions")
    return tuple(
        Region(gpa, size, uaddr, offset, fd)
        for (gpa, size, uaddr, offset), fd in zip(MEMORY_REGION.iter_unpack(body), message.fds, strict=True)
    )


def added_region(message: Message) -> Region:
    """vhost-user "Single memory region description", with its descriptor."""
    _, gpa, size, uaddr, offset = _unpack(message, MEM_REG)
    if not message.fds:
        raise _not_shared()
    return Region(gpa, size, uaddr, offset, _only_fd(message))


def removed_region(message: Message) -> Region:
    """The same without descriptor; some front-ends send one, which then has no use."""
    _, gpa, size, uaddr, offset = _unpack(message, MEM_REG)
    return Region(gpa, size, uaddr, offset, -1)


def log(message: Message) -> Log:
    """vhost-user "Log description"."""
    size, offset = _unpack(message, LOG)
    return Log(size, offset, _only_fd(message))


def _not_shared() -> ProtocolError:
    return ProtocolError(PAYLOAD, "guest memory came without its file: it is not shared", MEMORY_REMEDY)
