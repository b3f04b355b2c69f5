# SPDX-License-Identifier: Apache-2.0
"""An AF_XDP socket whose memory is a guest's: the kernel writes frames into buffers that the guest has posted.

        register ─► post (dataplane/direct.py) ─► frames are led here: post, harvest ─► no longer: leave ─► post ─► …

Registering pins all memory and takes about a second for 512 MiB, so it is done once for a memory table. Entries of the fill ring
cannot be taken back. Those that the kernel has not used when nothing is led here any more stay where they are, and name
NOWHERE, which it passes over, until they are written anew. linux-if_xdp.h
"""

from __future__ import annotations

import socket
from typing import Any

import numpy as np

from vmq import linux
from vmq.abi import xdp
from vmq.abi.ethernet import VLAN_HLEN
from vmq.dataplane.direct import HEADER
from vmq.dataplane.state import M32
from vmq.jit import address_of, at
from vmq.uplink.xdp_socket import bind, map_rings, register, statistics

SIZE = 1024  # entries of a ring: as many buffers as a guest usually has
CHUNK = 2048  # from XDP_PACKET_HEADROOM in front of a frame; a frame has 1792 bytes at most
NOWHERE = 1 << 47  # an address that no memory has: the kernel takes the next entry


class GuestSocket:
    """On the one queue of device `index`, in whose namespace it is made. `memory`, `size`: what the kernel may write."""

    def __init__(self, index: int, memory: int, size: int, longest: int, row: Any) -> None:
        self.row = row
        self.untold = 0  # frames that were placed, and that its guest was never told of
        self._mappings: list[tuple[int, int]] = []
        self._lists = np.zeros((2, SIZE), np.int64)
        self._socket = socket.socket(xdp.AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            register(self._socket, memory, size, CHUNK, xdp.XDP_UMEM_UNALIGNED_CHUNK_FLAG)
            map_rings(self._socket, row, SIZE, self._mappings)
            bind(self._socket, index, 0, xdp.XDP_COPY | xdp.XDP_USE_NEED_WAKEUP)
        except BaseException:
            self.close()
            raise
        row["fd"], row["memory"], row["size"], row["chunk"] = self.fileno(), memory, size, CHUNK
        row["longest"], row["least"] = longest, HEADER + longest + VLAN_HLEN
        row["heads"], row["places"] = (address_of(self._lists[which]) for which in range(2))

    def fileno(self) -> int:
        return self._socket.fileno()

    def stands(self) -> int:
        """Entries of the fill ring that the kernel has not used."""
        return (self._index("fill", "producer") - self._index("fill", "consumer")) & M32

    def leave(self) -> None:
        """Nothing is led here any more, and all that was placed is harvested: forget what is posted.

        Where it is not, as its processor does nothing for a port with a fault, it is `untold`.
        """
        receive = self.row["receive"]
        self.untold += (self.received() - self._index("receive", "consumer")) & M32
        at(int(receive["consumer"]), 1, np.uint32)[0] = self.received()
        self.row["posted"], self.row["unfit"], self.row["stale"] = 0, 0, self.stands()
        slots = at(int(self.row["fill"]["entries"]), SIZE, np.uint64)
        first = self._index("fill", "consumer")
        for index in range(self.stands()):
            slots[(first + index) % SIZE] = NOWHERE

    def is_harvested(self) -> bool:
        """Whether its processor has taken all that was placed."""
        return self.received() == self._index("receive", "consumer")

    def received(self) -> int:
        """Frames that the kernel has placed so far, modulo 2^32."""
        return self._index("receive", "producer")

    def lost(self) -> int:
        """Frames that were led here and found no buffer, or no room in the receive ring."""
        told = statistics(self._socket)
        return told["rx_dropped"] + told["rx_ring_full"]

    def _index(self, ring: str, name: str) -> int:
        return int(at(int(self.row[ring][name]), 1, np.uint32)[0])

    def close(self) -> None:
        """Give the memory back. It may be called again."""
        self._socket.close()
        while self._mappings:
            linux.unmap(*self._mappings.pop())
