# SPDX-License-Identifier: Apache-2.0
"""A TFTP server that reads files to guests that boot from the network: one transfer at a time, in one thread.

rfc-1350 with the options blksize (rfc-2348) and tsize (rfc-2349), which firmware asks for. Debian's busybox has none.
Blocks go out in lockstep: each waits for its acknowledgement, and is sent again if that does not come.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.lab.netns import Namespace

RRQ, DATA, ACK, ERROR, OACK = 1, 3, 4, 5, 6
PORT, BLOCK = 69, 512
RETRY_SECONDS, TRIES = 1.0, 5
POLL_SECONDS = 0.1


@contextmanager
def tftp_server(namespace: Namespace, folder: Path, address: str) -> Iterator[list[str]]:
    """Serve the files of a folder; gives the names of those that were fetched whole, in order."""
    fetched: list[str] = []
    ended = threading.Event()
    listener = namespace.call(lambda: _bound(address, PORT))

    def serve() -> None:
        listener.settimeout(POLL_SECONDS)
        while not ended.is_set():
            try:
                packet, peer = listener.recvfrom(1024)
            except TimeoutError:
                continue
            with namespace.call(lambda: _bound(address, 0)) as sock:
                sock.connect(peer)
                name = _transfer(sock, packet, folder)
                fetched.extend([name] if name else [])

    thread = threading.Thread(target=serve, name="tftp", daemon=True)
    thread.start()
    try:
        yield fetched
    finally:
        ended.set()
        thread.join(TRIES * RETRY_SECONDS + 1)
        listener.close()


def _bound(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    return sock


def _transfer(sock: socket.socket, packet: bytes, folder: Path) -> str | None:
    """Answer one read request; the file's name when the client has all of it."""
    words = packet[2:].split(b"\0")
    name, asked = words[0].decode(), dict(zip(words[2::2], words[3::2], strict=False))
    path = folder / Path(name).name
    if struct.unpack_from("!H", packet) != (RRQ,) or not path.exists():
        sock.send(struct.pack("!HH", ERROR, 1) + b"no such file\0")
        return None
    data = path.read_bytes()
    size = int(asked.get(b"blksize", BLOCK))
    granted = {b"blksize": size, b"tsize": len(data)}
    options = b"".join(b"%b\0%d\0" % (key, value) for key, value in granted.items() if key in asked)
    if options and not _acknowledged(sock, struct.pack("!H", OACK) + options, 0):
        return None
    for number, start in enumerate(range(0, len(data) + 1, size), 1):
        block = struct.pack("!HH", DATA, number % 65536) + data[start : start + size]
        if not _acknowledged(sock, block, number % 65536):
            return None
    return name


def _acknowledged(sock: socket.socket, packet: bytes, number: int) -> bool:
    """Send until the acknowledgement comes; False when the client has gone or refuses."""
    sock.settimeout(RETRY_SECONDS)
    for _ in range(TRIES):
        try:
            sock.send(packet)
            while (answer := sock.recv(1024)[:4]) != struct.pack("!HH", ACK, number):
                if answer[:2] == struct.pack("!H", ERROR):
                    return False
        except TimeoutError:
            continue
        except OSError:
            return False
        return True
    return False
