# SPDX-License-Identifier: Apache-2.0
"""An AF_XDP socket on one queue of a NIC, with memory of its own, as kernels see it (dataplane/xdp.py).

    memory  [receive chunks: CHUNKS | send chunks: CHUNKS]     each ring has CHUNKS entries

It is bound before it is shown to anybody. Who closes it has taken it out of every table: the rings are unmapped. The
kernel gives a queue free some time after its socket was closed, so a queue that is busy is asked again for BUSY_SECONDS.
linux-if_xdp.h
"""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
import time
from typing import Any

import numpy as np

from vmq import linux
from vmq.abi import xdp
from vmq.abi.netdevice import SO_SNDBUFFORCE
from vmq.dataplane.state import xdp_ring
from vmq.jit import at

# Each way. They are used in turn, so all of them are as soon cold as there are many: to one guest come 2.2 million frames a second of 1514
# bytes with 4096, 2.45 with 2048, 2.5 with 1024 (medians of four, in turn); 2048 are a millisecond at 2 million.
CHUNKS = 2048
LISTS = 2 * 8 * CHUNKS  # bytes: offsets of spare chunks, lengths of frames
SEND_BYTES = 1 << 23  # asked of the kernel, which counts frames under way by their memory
BUSY_SECONDS, BUSY_PAUSE = 1.0, 0.02
_RINGS = (  # name, option, offset of its mapping, entry
    ("receive", xdp.XDP_RX_RING, xdp.XDP_PGOFF_RX_RING, "rx", xdp.desc),
    ("transmit", xdp.XDP_TX_RING, xdp.XDP_PGOFF_TX_RING, "tx", xdp.desc),
    ("fill", xdp.XDP_UMEM_FILL_RING, xdp.XDP_UMEM_PGOFF_FILL_RING, "fill", np.dtype(np.uint64)),
    (
        "completion",
        xdp.XDP_UMEM_COMPLETION_RING,
        xdp.XDP_UMEM_PGOFF_COMPLETION_RING,
        "completion",
        np.dtype(np.uint64),
    ),
)


def chunk_for(longest: int) -> int | None:
    """The size of a chunk that takes frames of so many bytes; None if no chunk does."""
    page = linux.PAGE
    return next((size for size in (2048, page) if longest + xdp.XDP_PACKET_HEADROOM <= size), None)


def register(one: socket.socket, address: int, length: int, chunk: int, flags: int = 0) -> None:
    """Make memory what the kernel of this socket reads and writes; it is pinned as long as the socket is open."""
    asked = np.zeros(1, xdp.umem_reg)
    asked["addr"], asked["len"], asked["chunk_size"], asked["flags"] = address, length, chunk, flags
    try:
        one.setsockopt(xdp.SOL_XDP, xdp.XDP_UMEM_REG, asked.tobytes())
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        wrong = f"{length >> 20} MiB more are to be pinned, of {limit >> 20} MiB in all: CAP_IPC_LOCK, LimitMEMLOCK of the service, ulimit -l"
        raise OSError(error.errno, wrong) from error


def map_rings(one: socket.socket, row: Any, size: int, mappings: list[tuple[int, int]]) -> None:
    """Have the kernel make rings of `size` entries, for those fields that `row` has; what to unmap goes to `mappings`."""
    for _, option, _, _, _ in _RINGS:
        one.setsockopt(xdp.SOL_XDP, option, size)
    told = one.getsockopt(xdp.SOL_XDP, xdp.XDP_MMAP_OFFSETS, xdp.mmap_offsets.itemsize)
    offsets = np.frombuffer(told, xdp.mmap_offsets)[0]
    for name, _, place, field, entry in _RINGS:
        if name not in row.dtype.names:
            continue
        offset = offsets[field]
        length = int(offset["desc"]) + size * entry.itemsize
        address = linux.map_ring(one.fileno(), length, place)
        mappings.append((address, length))
        ring = np.zeros(1, xdp_ring)[0]
        ring["size"], ring["entries"] = size, address + int(offset["desc"])
        for index in ("producer", "consumer", "flags"):
            ring[index] = address + int(offset[index])
        row[name] = ring


def bind(one: socket.socket, index: int, queue: int, flags: int) -> None:
    """Bind to a queue of a device. The kernel gives it free some time after another socket was closed."""
    address = np.zeros(1, xdp.sockaddr)
    address["family"], address["flags"] = xdp.AF_XDP, flags
    address["ifindex"], address["queue_id"] = index, queue
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            linux.bind_socket(one.fileno(), address.tobytes())
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise
            time.sleep(BUSY_PAUSE)
        else:
            return


def statistics(one: socket.socket) -> dict[str, int]:
    """What the kernel has counted for a socket, by its own names."""
    told = one.getsockopt(xdp.SOL_XDP, xdp.XDP_STATISTICS, xdp.statistics.itemsize)
    row = np.frombuffer(told, xdp.statistics)[0]
    return {name: int(row[name]) for name in xdp.statistics.names or ()}


class XdpSocket:
    """A socket of queue `queue` of the device number `index`; `row` is its `xdp_socket` for the kernels, `lists`
    LISTS bytes for them.
    """

    def __init__(self, index: int, queue: int, chunk: int, flags: int, row: Any, lists: int) -> None:
        self.index, self.queue, self.row = index, queue, row
        self._mappings: list[tuple[int, int]] = []
        self._socket = socket.socket(xdp.AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._memory(chunk)
            self._rings()
            self._stock(chunk, lists)
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BYTES)
            bind(self._socket, index, queue, flags | xdp.XDP_USE_NEED_WAKEUP)
        except BaseException:
            self.close()
            raise
        row["fd"] = self.fileno()

    def fileno(self) -> int:
        return self._socket.fileno()

    def _memory(self, chunk: int) -> None:
        length = 2 * CHUNKS * chunk
        address = linux.map_private(length)
        self._mappings.append((address, length))
        self.row["umem"], self.row["chunk"] = address, chunk
        register(self._socket, address, length, chunk)

    def _rings(self) -> None:
        map_rings(self._socket, self.row, CHUNKS, self._mappings)

    def _stock(self, chunk: int, lists: int) -> None:
        """Half of the chunks to be filled, the others to be sent from. The kernel looks when the socket is bound."""
        chunks = np.arange(2 * CHUNKS, dtype=np.int64) * chunk
        fill = self.row["fill"]
        at(int(fill["entries"]), CHUNKS, np.uint64)[:] = chunks[:CHUNKS]
        at(int(fill["producer"]), 1, np.uint32)[0] = CHUNKS
        at(lists, CHUNKS, np.int64)[:] = chunks[CHUNKS:]
        self.row["spare"], self.row["spare_count"] = lists, CHUNKS
        self.row["lengths"] = lists + 8 * CHUNKS

    def zero_copy(self) -> bool:
        """Whether the NIC writes into our memory itself."""
        told = self._socket.getsockopt(xdp.SOL_XDP, xdp.XDP_OPTIONS, 4)
        return bool(int.from_bytes(told, "little") & xdp.XDP_OPTIONS_ZEROCOPY)

    def statistics(self) -> dict[str, int]:
        """What the kernel has counted, by its own names."""
        return statistics(self._socket)

    def close(self) -> None:
        """Give queue and memory back. It may be called again."""
        self._socket.close()
        while self._mappings:
            linux.unmap(*self._mappings.pop())
