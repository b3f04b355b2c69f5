# SPDX-License-Identifier: Apache-2.0
"""What the kernel does for a VM's pair, done by the processor that serves the VM: it polls the far end while frames are many.

        who sends ─► the pair's ring of 256 frames ─┬─ few:  the kernel, there where the sender is
                                                    └─ many: the kernel, called by the VM's processor (recvfrom, dataplane/direct.py)

A queue of a device has one piece of the kernel that works for it (NAPI), and a socket that knows its number may have it work
(SO_BUSY_POLL). While a queue is reserved, the kernel leaves it to whoever polls as long as he comes again in time (SO_PREFER_BUSY_POLL);
who has not for WAIT_NS is taken not to come: the kernel looks itself then, on the processor of who came last, and after DEFERS such looks
frames wake it where they are sent. So a thread that is held up loses nothing: more than 5 million frames a second would fill the
ring meanwhile; but for one whose interrupts are held up, too. A frame that comes a moment after another waits as long: so a queue is reserved only while frames are many.

An AF_XDP socket on a veth is not told that number (Linux 6.14 and later), so a UDP socket is: by a frame of ours that the far end's
program lets up to the namespace's own network stack, which has no address and nobody else in it. linux-netdev.h
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

import numpy as np

from vmq.abi import inet
from vmq.abi import netdevice as nd
from vmq.abi.ethernet import ETH_ALEN
from vmq.uplink import netdev

WAIT_NS, DEFERS = 50_000, 2
MANY, FEW = 400_000, 200_000  # frames a second: from which on it is polled, below which no more
LOOK_SECONDS = 0.02  # of fewer nothing is concluded
BUDGET = 64  # frames that the kernel handles before it looks whether that was all; it does so twice a call
PORT = 9  # "discard"; nobody hears there but us
TOLD_SECONDS, AGAIN_SECONDS, PAUSE_SECONDS = 0.5, 0.01, 0.001
LEAST = 60  # bytes of a frame


class Polling:
    """Of the far end `device`, in whose namespace it is made; `send` sends a frame into its pair. OSError: it cannot be had."""

    def __init__(self, device: str, send: Callable[[bytes], object]) -> None:
        self._reserved = False
        self._before: tuple[float, int] | None = None
        self._socket = socket.socket(
            socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        self._orders = netdev.Family()
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            self._socket.bind(("", PORT))
            for option, value in (
                (nd.SO_PREFER_BUSY_POLL, 1),
                (nd.SO_BUSY_POLL, 1),  # us, of who waits; we never do
                (nd.SO_BUSY_POLL_BUDGET, BUDGET),
            ):
                self._socket.setsockopt(socket.SOL_SOCKET, option, value)
            self._number = self._asked(send)
            self.reserve(on=False)
        except BaseException:
            self.close()
            raise

    def _asked(self, send: Callable[[bytes], object]) -> int:
        """What the kernel calls who works for the far end. A device that has just come up may lose a greeting."""
        deadline, again = time.monotonic() + TOLD_SECONDS, 0.0
        while not self._greeted() and time.monotonic() < deadline:
            if time.monotonic() >= again:
                send(greeting())
                again = time.monotonic() + AGAIN_SECONDS
            time.sleep(PAUSE_SECONDS)
        while self._greeted():
            pass
        number = self._socket.getsockopt(socket.SOL_SOCKET, nd.SO_INCOMING_NAPI_ID)
        if not number:
            raise OSError(errno.ENOTSUP, "it does not tell who works for a veth")
        return number

    def _greeted(self) -> bool:
        try:
            self._socket.recv(LEAST)
        except BlockingIOError:
            return False
        return True

    def is_to_be(self, now: float, frames: int) -> bool:
        """Whether it is to be polled, of a VM that has had so many frames, in all, at `now` (seconds)."""
        then, count = self._before = self._before or (now, frames)
        if now - then < LOOK_SECONDS:
            return self._reserved
        self._before = now, frames
        least = FEW if self._reserved else MANY
        return frames - count >= least * (now - then)

    def reserve(self, *, on: bool) -> None:
        """Have the kernel leave the queue to who polls it, or not. OSError: it cannot."""
        self._orders.defer(self._number, DEFERS if on else 0, WAIT_NS if on else 0)
        self._reserved = on

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Poll no more. It may be called again."""
        self._socket.close()
        self._orders.close()


def greeting() -> bytes:
    """A frame to nobody, in which there is a datagram from nobody to everybody: rfc-791 §3.1 Internet Header Format."""
    datagram, header = np.zeros(1, inet.udp), np.zeros(1, inet.ipv4)
    datagram["source"] = datagram["destination"] = socket.htons(PORT)
    datagram["length"] = socket.htons(datagram.nbytes)
    header["version_ihl"], header["ttl"], header["protocol"] = inet.IPV4_PLAIN, 1, inet.IPPROTO_UDP
    header["total_length"] = socket.htons(header.nbytes + datagram.nbytes)
    header["destination"] = socket.INADDR_BROADCAST
    total = int(np.frombuffer(header.tobytes(), np.uint16).sum(dtype=np.int64))
    header["checksum"] = -total % np.iinfo(np.uint16).max
    ethernet = bytes(2 * ETH_ALEN) + inet.ETH_P_IP.to_bytes(2)
    return (ethernet + header.tobytes() + datagram.tobytes()).ljust(LEAST, b"\0")
