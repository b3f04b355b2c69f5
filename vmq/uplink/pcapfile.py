# SPDX-License-Identifier: Apache-2.0
"""Capture files: read the classic format and pcapng, write the classic format with nanoseconds.

`read_capture` yields Ethernet packets in the order of the file, whatever its byte order and unit of time. A file that
ends inside a packet, or says something impossible, is an error with the byte at which it happens; nothing is guessed.
Other link types are refused by name. What a pcapng file holds besides packets (names, statistics) is passed over.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Self

import numpy as np

from vmq.abi import capture as cap
from vmq.errors import ConfigError, HostError

ORDERS: tuple[Literal["<"], Literal[">"]] = ("<", ">")
PACKET_MAX = 1 << 18  # bytes of a packet; more is a damaged file
SECOND = 1_000_000_000
RETRY = "Capture it again, or repair it: editcap BROKEN WHOLE"


@dataclass(frozen=True, slots=True)
class Captured:
    """One packet: when, its bytes, and how many it had on the wire."""

    time_ns: int
    data: bytes
    original: int


def read_capture(path: str, where: str = "") -> Iterator[Captured]:
    """The packets of a capture; ConfigError says at which byte it is damaged. `where` names the key that asked."""
    where = where or path
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ConfigError(where, f"{path} is empty", "Name a capture that holds packets")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise HostError(
            where, f"cannot read {path}: {words}", "Name a capture file that may be read"
        ) from error
    with content:
        yield from _Reader(content, path, where).packets()


class _Reader:
    """A capture in memory, and how far it is read."""

    def __init__(self, content: mmap.mmap, path: str, where: str) -> None:
        self.content, self.path, self.where = content, path, where
        self.place = 0
        self.order: Literal["<", ">"] = "<"
        self.interfaces: list[tuple[int, int, int]] = []  # link type, units a second, offset in seconds

    def fail(self, wrong: str, remedy: str = RETRY) -> NoReturn:
        raise ConfigError(self.where, f"{self.path}: {wrong}", remedy)

    def header(self, layout: np.dtype[Any], place: int, end: int) -> Any:
        """The structure at `place`, which does not reach beyond `end`."""
        if place + layout.itemsize > end:
            self.fail(f"ends at byte {len(self.content)}, inside a structure that begins at byte {place}")
        return np.frombuffer(self.content[place : place + layout.itemsize], layout.newbyteorder(self.order))[
            0
        ]

    def data(self, place: int, length: int, end: int) -> bytes:
        """The bytes of a packet."""
        if length > PACKET_MAX:
            self.fail(f"a packet of {length} bytes at byte {place} cannot be")
        if place + length > end:
            self.fail(f"ends at byte {len(self.content)}, inside a packet that begins at byte {place}")
        return self.content[place : place + length]

    def need_ethernet(self, linktype: int) -> None:
        if linktype != cap.LINKTYPE_ETHERNET:
            self.fail(
                f"its link type is {linktype}, not Ethernet ({cap.LINKTYPE_ETHERNET})",
                "Capture on an Ethernet device; tcpdump -i any does not",
            )

    def packets(self) -> Iterator[Captured]:
        start = bytes(self.content[:4])
        if start[:2] == cap.GZIP_MAGIC:
            self.fail("it is compressed", f"Uncompress it: gunzip {self.path}")
        for order in ORDERS:
            self.order = order
            magic = int.from_bytes(start, "little" if order == "<" else "big")
            if magic in (cap.PCAP_MICROSECONDS, cap.PCAP_NANOSECONDS):
                return self._classic(magic == cap.PCAP_NANOSECONDS)
        if int.from_bytes(start, "little") != cap.BLOCK_SECTION:
            self.fail("it is neither pcap nor pcapng", "Name a capture, as tcpdump -w writes it")
        return self._blocks()

    def _classic(self, nanoseconds: bool) -> Iterator[Captured]:
        end = len(self.content)
        head = self.header(cap.pcap_file, 0, end)
        self.need_ethernet(int(head["linktype"]) & cap.LINKTYPE_MASK)
        place = cap.pcap_file.itemsize
        while place < end:
            record = self.header(cap.pcap_record, place, end)
            place += cap.pcap_record.itemsize
            data = self.data(place, int(record["captured"]), end)
            place += len(data)
            fraction = int(record["fraction"]) * (1 if nanoseconds else 1000)
            yield Captured(int(record["seconds"]) * SECOND + fraction, data, int(record["original"]))

    def _blocks(self) -> Iterator[Captured]:
        place, end = 0, len(self.content)
        while place < end:
            if self.content[place : place + 4] == cap.BLOCK_SECTION.to_bytes(4, "little"):
                self._section(place, end)
            head = self.header(cap.block_header, place, end)
            length = int(head["length"])
            if length < cap.BLOCK_LEAST or length % 4:
                self.fail(f"a block of {length} bytes at byte {place} cannot be")
            if place + length > end:
                self.fail(f"ends at byte {end}, inside a block that begins at byte {place}")
            body, rest = place + cap.block_header.itemsize, place + length - 4
            packet = self._block(int(head["type"]), body, rest)
            if packet is not None:
                yield packet
            place += length

    def _section(self, place: int, end: int) -> None:
        """Begin a section, pcapng "Section Header Block": its byte order, and no interface yet."""
        body = place + cap.block_header.itemsize
        for order in ORDERS:
            self.order = order
            if int(self.header(cap.section_body, body, end)["magic"]) == cap.BYTE_ORDER_MAGIC:
                self.interfaces = []
                return
        self.fail(f"the section at byte {place} has no byte order")

    def _block(self, kind: int, body: int, end: int) -> Captured | None:
        if kind == cap.BLOCK_INTERFACE:
            self.interfaces.append(self._interface(body, end))
            return None
        if kind == cap.BLOCK_SIMPLE:
            original = int.from_bytes(self.content[body : body + 4], "little" if self.order == "<" else "big")
            self._interface_of(0, body)
            return Captured(0, self.data(body + 4, min(original, max(end - body - 4, 0)), end), original)
        if kind not in (cap.BLOCK_ENHANCED, cap.BLOCK_OBSOLETE_PACKET):
            return None
        layout = cap.enhanced_body if kind == cap.BLOCK_ENHANCED else cap.obsolete_body
        head = self.header(layout, body, end)
        _, units, offset = self._interface_of(int(head["interface"]), body)
        data = self.data(body + layout.itemsize, int(head["captured"]), end)
        ticks = int(head["high"]) << 32 | int(head["low"])
        return Captured(ticks * SECOND // units + offset * SECOND, data, int(head["original"]))

    def _interface_of(self, number: int, place: int) -> tuple[int, int, int]:
        if number >= len(self.interfaces):
            self.fail(
                f"the packet at byte {place} is of interface {number}, which the section does not describe"
            )
        self.need_ethernet(self.interfaces[number][0])
        return self.interfaces[number]

    def _interface(self, body: int, end: int) -> tuple[int, int, int]:
        """Link type, units a second and offset of a pcapng "Interface Description Block"."""
        head = self.header(cap.interface_body, body, end)
        place, units, offset = body + cap.interface_body.itemsize, 1_000_000, 0
        while place + cap.option_header.itemsize <= end:
            option = self.header(cap.option_header, place, end)
            code, length = int(option["code"]), int(option["length"])
            place += cap.option_header.itemsize
            value = self.content[place : place + length]
            if code == cap.OPTION_END or place + length > end:
                break
            if code == cap.OPTION_TSRESOL and length:
                binary, power = value[0] & cap.TSRESOL_BINARY, value[0] & ~cap.TSRESOL_BINARY
                units = 2**power if binary else 10**power
            elif code == cap.OPTION_TSOFFSET:
                offset = int.from_bytes(value, "little" if self.order == "<" else "big", signed=True)
            place += (length + 3) & ~3
        return int(head["linktype"]), units, offset


class CaptureWriter:
    """A capture that is being written; what `write` was given stands in the file after `flush`.

    A file that was there is not touched before `begin`, since what it is opened for may still be refused; `discard`
    leaves it as it was. It is emptied and not replaced: who reads along (tail -f) stays with it. Nobody has to call `begin`
    who has no doubts: the first packet does, and so does the end.
    """

    def __init__(self, path: str, where: str = "") -> None:
        self.path = path
        self._begun = False
        try:
            descriptor, self._made = _open_untouched(path)
        except OSError as error:
            raise HostError(
                where or path, f"cannot write {path}: {error.strerror}", "Name a file that may be written"
            ) from error
        self._file = os.fdopen(descriptor, "wb")

    def begin(self, again: bool = False) -> None:
        """Begin the capture, in an empty file; or go on at its end, if we write it `again` and it is such a capture."""
        if self._begun:
            return
        self._begun = True
        head = _file_header()
        regular = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)  # pipes and devices hold nothing
        if again and regular and self._starts_with(head):
            return
        if regular:
            os.ftruncate(self._file.fileno(), 0)
        self._file.write(head)

    def _starts_with(self, head: bytes) -> bool:
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            return file.read(len(head)) == head
        return False

    def write(self, frame: bytes, time_ns: int | None = None) -> None:
        """Add a packet; without a time, it happened now."""
        self.begin()
        seconds, fraction = divmod(time.time_ns() if time_ns is None else time_ns, SECOND)
        record = np.array([(seconds, fraction, len(frame), len(frame))], cap.pcap_record)
        self._file.write(record.tobytes() + frame)

    def flush(self) -> None:
        self.begin()
        self._file.flush()

    def discard(self) -> None:
        """End what has not begun, and leave nothing behind. It does not fail."""
        with contextlib.suppress(OSError):
            self._file.close()
            if self._made and not self._begun:
                os.unlink(self.path)

    def close(self) -> None:
        try:
            self.begin()
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_untouched(path: str) -> tuple[int, bool]:
    """Open a file to write at its end, with all that it holds; and whether it was not there."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    with contextlib.suppress(FileExistsError):
        return os.open(path, flags | os.O_EXCL, 0o666), True
    return os.open(path, flags, 0o666), False


def _file_header() -> bytes:
    """How each of our captures begins: pcap "File Header"."""
    head = np.zeros(1, cap.pcap_file)
    head["magic"], head["linktype"] = cap.PCAP_NANOSECONDS, cap.LINKTYPE_ETHERNET
    head["major"], head["minor"] = cap.PCAP_VERSION
    head["snaplen"] = PACKET_MAX
    return head.tobytes()
