# SPDX-License-Identifier: Apache-2.0
"""An AF_XDP socket on a queue of the NIC that only one VM's frames are led to; its memory is the guest's, and some of ours behind it.

    memory      [guest ..................................][ours: a chunk for each entry of the rings]
    fill ring   always full: entry n names the guest's buffer that frame n is to land in, or chunk n of ours (dataplane/nic_queue.py)

The kernel copies a frame into the entry of its number, and shows it under the same number: what stands in an entry that it has
not used may be written anew at any time. A driver without copies would fetch entries ahead, so the socket is bound for copies
(XDP_COPY), whatever the driver can. It is bound before it is shown to anybody, and serves the VM until its memory is another. linux-if_xdp.h
"""

from __future__ import annotations

import socket
from typing import Any

import numpy as np

from vmq import linux
from vmq.abi import xdp
from vmq.abi.ethernet import VLAN_HLEN
from vmq.dataplane import state
from vmq.dataplane.direct import HEADER
from vmq.direct.memory import GuestMemory
from vmq.direct.socket import CHUNK
from vmq.jit import address_of, at
from vmq.uplink.xdp_socket import bind, map_rings, register, statistics

SIZE = 1024  # entries of a ring, and chunks of ours: what a processor may be late by. Of 2 million frames a second, 0.5 ms
BESIDE = SIZE * CHUNK  # bytes of ours that it wants behind a guest's memory
ALIGN = 64


class NicSocket:
    """On queue `queue` of device `index`; its guest gets frames of `longest` bytes at most, without their 802.1Q tag."""

    def __init__(self, index: int, queue: int, memory: GuestMemory, longest: int) -> None:
        self.index, self.queue = index, queue
        self._mappings: list[tuple[int, int]] = []
        self._block = np.zeros(state.nic_queue.itemsize + ALIGN, np.uint8)
        self.address = -(-address_of(self._block) // ALIGN) * ALIGN
        self.row: Any = at(self.address, 1, state.nic_queue)[0]
        self._lists = np.zeros((2, SIZE), np.int64)
        self._socket = socket.socket(xdp.AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            register(self._socket, memory.address, memory.whole, CHUNK, xdp.XDP_UMEM_UNALIGNED_CHUNK_FLAG)
            map_rings(self._socket, self.row, SIZE, self._mappings)
            self._fill(memory)
            bind(self._socket, index, queue, xdp.XDP_COPY | xdp.XDP_USE_NEED_WAKEUP)
        except BaseException:
            self.close()
            raise
        row = self.row
        row["fd"], row["memory"], row["chunk"] = self.fileno(), memory.address, CHUNK
        row["longest"], row["least"] = longest, HEADER + longest + VLAN_HLEN
        row["spans"], row["span_count"] = address_of(memory.spans), len(memory.spans)
        row["heads"], row["places"] = (address_of(self._lists[which]) for which in range(2))
        row["until"] = state.NONE

    def _fill(self, memory: GuestMemory) -> None:
        """All entries name chunks of ours; the kernel looks when the socket is bound."""
        self.row["size"], self.row["bounce"] = memory.whole, memory.size
        fill = self.row["fill"]
        at(int(fill["entries"]), SIZE, np.uint64)[:] = memory.size + CHUNK * np.arange(SIZE, dtype=np.uint64)
        at(int(fill["producer"]), 1, np.uint32)[0] = SIZE

    def fileno(self) -> int:
        return self._socket.fileno()

    def received(self) -> int:
        """Frames that the kernel has shown so far, modulo 2^32."""
        return int(at(int(self.row["receive"]["producer"]), 1, np.uint32)[0])

    def waiting(self) -> int:
        """Frames that nobody has taken yet."""
        taken = int(at(int(self.row["receive"]["consumer"]), 1, np.uint32)[0])
        return (self.received() - taken) & state.M32

    def statistics(self) -> dict[str, int]:
        """What the kernel has counted, by its own names."""
        return statistics(self._socket)

    def close(self) -> None:
        """Give the memory and the queue back. It may be called again."""
        self._socket.close()
        while self._mappings:
            linux.unmap(*self._mappings.pop())
