# SPDX-License-Identifier: Apache-2.0
"""A vhost-user back-end in plain Python, slow and simple, so that the driver's side is tested without the engine.

It speaks the protocol in a thread and leaves the rings to the test: `deliver` puts frames into a ring, `collect`
takes them out. Only the layouts of structures are repeated here, so a wrong one in vmq.abi is noticed.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Self

NEXT, WRITE, INDIRECT = 1, 2, 4
VERSION_1, MERGEABLE, MQ, RING_INDIRECT, EVENT_IDX, PROTOCOL = (
    1 << 32,
    1 << 15,
    1 << 22,
    1 << 28,
    1 << 29,
    1 << 30,
)
FEATURES = VERSION_1 | MERGEABLE | MQ | RING_INDIRECT | EVENT_IDX | PROTOCOL | 1 << 3
PROTOCOL_FEATURES = 1 << 0 | 1 << 3 | 1 << 4 | 1 << 15
ANSWERS = {1: "features", 15: "protocol_features", 17: "pairs", 36: "slots"}


@dataclass
class Ring:
    num: int = 0
    base: int = 0
    addresses: tuple[int, ...] = ()  # user addresses: desc, used, avail
    kick: int = -1
    call: int = -1
    err: int = -1
    enabled: bool = False
    used: int = 0
    shown: int = 0


@dataclass
class Backend:
    path: str
    features: int = FEATURES
    protocol_features: int = PROTOCOL_FEATURES
    pairs: int = 4
    slots: int = 32
    connects: bool = False  # we dial, the front-end listens
    answer: int = 0  # to what is to be acknowledged
    log: list[int] = field(default_factory=list)
    regions: list[tuple[int, int, int, int, mmap.mmap]] = field(default_factory=list)
    rings: dict[int, Ring] = field(default_factory=dict)
    chosen: int = 0
    mtu: int = 0

    def __enter__(self) -> Self:
        self.stopping = threading.Event()
        self.peer: socket.socket | None = None
        self.listener = socket.socket(socket.AF_UNIX)
        if not self.connects:
            self.listener.bind(self.path)
            self.listener.listen(4)
            self.listener.settimeout(0.05)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join(10)
        self.listener.close()
        self.forget()

    def serve(self) -> None:
        while not self.stopping.is_set():
            try:
                if self.connects:
                    self.peer = socket.socket(socket.AF_UNIX)
                    self.peer.connect(self.path)
                else:
                    self.peer, _ = self.listener.accept()
            except OSError:
                if self.peer:
                    self.peer.close()
                time.sleep(0.01)
                continue
            with self.peer:
                self.peer.settimeout(0.05)
                while not self.stopping.is_set() and self.message():
                    pass
            self.forget()

    def hang_up(self) -> None:
        assert self.peer
        self.peer.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        for ring in self.rings.values():
            for fd in (ring.kick, ring.call, ring.err):
                if fd >= 0:
                    os.close(fd)
        self.rings.clear()
        self.regions.clear()

    def message(self) -> bool:
        """Serve one message; False at the end of the connection."""
        assert self.peer
        try:
            head, fds, _, _ = socket.recv_fds(self.peer, 12, 8)
        except TimeoutError:
            return True
        except OSError:
            return False
        if not head:
            return False
        request, flags, size = struct.unpack("=III", head)
        payload = self.peer.recv(size) if size else b""
        self.log.append(request)
        reply = self.handle(request, payload, fds)
        if reply is None and flags & 8:
            reply = struct.pack("=Q", self.answer)
        if reply is not None:
            self.peer.sendall(struct.pack("=III", request, 5, len(reply)) + reply)
        return True

    def handle(self, request: int, payload: bytes, fds: list[int]) -> bytes | None:
        if request in ANSWERS:
            return struct.pack("=Q", getattr(self, ANSWERS[request]))
        if request == 2:
            (self.chosen,) = struct.unpack("=Q", payload)
        elif request == 20:
            (self.mtu,) = struct.unpack("=Q", payload)
        elif request in (5, 37):
            rows = payload[8:]
            if request == 5:
                self.regions.clear()
            for row, fd in zip(struct.iter_unpack("=QQQQ", rows), fds, strict=True):
                self.regions.append((*row, mmap.mmap(fd, 0)))
                os.close(fd)
        elif request in (8, 9, 10, 11, 18):
            return self.about_ring(request, payload)
        elif request in (12, 13, 14):
            ring = self.rings.setdefault(struct.unpack("=Q", payload)[0], Ring())
            name = {12: "kick", 13: "call", 14: "err"}[request]
            if (old := getattr(ring, name)) >= 0:
                os.close(old)
            setattr(ring, name, fds[0])
        return None

    def about_ring(self, request: int, payload: bytes) -> bytes | None:
        index, num = struct.unpack("=II", payload[:8])
        ring = self.rings.setdefault(index, Ring())
        if request == 8:
            ring.num = num
        elif request == 9:
            ring.addresses = struct.unpack("=QQQQ", payload[8:])[:3]
            ring.used = ring.shown = struct.unpack("=H", self.user(ring.addresses[1] + 2, 2))[0]
        elif request == 10:
            ring.base = num
        elif request == 18:
            ring.enabled = bool(num)
        else:
            return struct.pack("=II", index, ring.base)
        return None

    # --- memory ---------------------------------------------------------------------------------------------

    def find(self, address: int, size: int, *, user: bool) -> tuple[mmap.mmap, int]:
        for guest, length, own, offset, file in self.regions:
            start = own if user else guest
            if start <= address and address + size <= start + length:
                return file, offset + address - start
        raise AssertionError(f"{size} bytes at {address:#x} are outside every region")

    def user(self, address: int, size: int, data: bytes | None = None) -> bytes:
        file, place = self.find(address, size, user=True)
        if data is not None:
            file[place : place + size] = data
        return bytes(file[place : place + size])

    def guest(self, address: int, size: int, data: bytes | None = None) -> bytes:
        """Byte by byte, so buffers may span regions."""
        read = bytearray()
        for step in range(size):
            file, place = self.find(address + step, 1, user=False)
            if data is not None:
                file[place] = data[step]
            read.append(file[place])
        return bytes(read)

    # --- the device's side of a ring ------------------------------------------------------------------------

    def available(self, index: int) -> int:
        ring = self.rings[index]
        avail = struct.unpack("=H", self.user(ring.addresses[2] + 2, 2))[0]
        return (avail - ring.base) & 65535

    def chain(self, index: int) -> tuple[int, list[tuple[int, int, int]]]:
        """Head and (address, length, flags) of the next chain."""
        ring = self.rings[index]
        entry = ring.addresses[2] + 4 + 2 * (ring.base % ring.num)
        head = struct.unpack("=H", self.user(entry, 2))[0]
        ring.base = (ring.base + 1) & 65535
        found, at, nested = [], head, None
        while True:
            place = (nested or ring.addresses[0]) + 16 * at
            row = self.guest(place, 16) if nested else self.user(place, 16)
            address, length, flags, at = struct.unpack("=QIHH", row)
            if flags & INDIRECT:
                nested, at = address, 0
                continue
            found.append((address, length, flags))
            if not flags & NEXT:
                return head, found

    def give_back(self, index: int, used: list[tuple[int, int]]) -> None:
        """Write used elements, show them, call if the driver wants it."""
        ring = self.rings[index]
        for head, length in used:
            self.user(ring.addresses[1] + 4 + 8 * (ring.used % ring.num), 8, struct.pack("=II", head, length))
            ring.used = (ring.used + 1) & 65535
        self.user(ring.addresses[1] + 2, 2, struct.pack("=H", ring.used))
        old, ring.shown = ring.shown, ring.used
        if self.chosen & EVENT_IDX:
            event = struct.unpack("=H", self.user(ring.addresses[2] + 4 + 2 * ring.num, 2))[0]
            wanted = (ring.used - event - 1) & 65535 < (ring.used - old) & 65535
        else:
            wanted = not struct.unpack("=H", self.user(ring.addresses[2], 2))[0] & 1
        if wanted:
            os.eventfd_write(ring.call, 1)

    def deliver(self, *frames: bytes, queue: int = 0, header: bytes = bytes(10)) -> int:
        """Put frames into a receive queue with one index update; how many found buffers."""
        used: list[tuple[int, int]] = []
        for number, frame in enumerate(frames):
            spans: list[tuple[int, list[tuple[int, int, int]]]] = []
            room = 0
            while room < len(frame) + 12:
                if not self.available(2 * queue):
                    self.give_back(2 * queue, used)
                    return number
                spans.append(self.chain(2 * queue))
                room += sum(length for _, length, _ in spans[-1][1])
                assert all(flags & WRITE for _, _, flags in spans[-1][1])
            data = header + struct.pack("=H", len(spans)) + frame
            for head, buffers in spans:
                written = 0
                for address, length, _ in buffers:
                    part, data = data[:length], data[length:]
                    self.guest(address, len(part), part)
                    written += len(part)
                used.append((head, written))
        self.give_back(2 * queue, used)
        return len(frames)

    def collect(self, queue: int = 0) -> list[bytes]:
        """Take all frames of a transmit virtqueue, packet header included."""
        frames, used = [], []
        while self.available(2 * queue + 1):
            head, buffers = self.chain(2 * queue + 1)
            assert not any(flags & WRITE for _, _, flags in buffers)
            frames.append(b"".join(self.guest(address, length) for address, length, _ in buffers))
            used.append((head, 0))
        self.give_back(2 * queue + 1, used)
        return frames

    def want_kicks(self, index: int, *, wanted: bool = True) -> None:
        ring = self.rings[index]
        if self.chosen & EVENT_IDX:
            event = ring.base if wanted else (ring.base - 1) & 65535
            self.user(ring.addresses[1] + 4 + 8 * ring.num, 2, struct.pack("=H", event))
        else:
            self.user(ring.addresses[1], 2, struct.pack("=H", int(not wanted)))
