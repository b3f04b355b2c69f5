# SPDX-License-Identifier: Apache-2.0
"""AF_XDP sockets: options, rings, descriptors, addresses of a socket. linux-if_xdp.h

A ring is two 32-bit indices that only grow, a word of flags, and a power of two of entries, all where the kernel says
(`ring_offset`). Receive and transmit rings hold `desc`; fill and completion rings hold the u64 address of a chunk.
"""

from __future__ import annotations

from vmq.abi.layout import layout, u16, u32, u64

AF_XDP, SOL_XDP = 44, 283  # linux-socket.h
XDP_MMAP_OFFSETS, XDP_RX_RING, XDP_TX_RING, XDP_UMEM_REG = 1, 2, 3, 4
XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_STATISTICS, XDP_OPTIONS = 5, 6, 7, 8
XDP_OPTIONS_ZEROCOPY = 1
XDP_UMEM_UNALIGNED_CHUNK_FLAG = 1  # a frame may begin at any byte
XDP_COPY, XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP = 2, 4, 8
XDP_RING_NEED_WAKEUP = 1
XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING = 0, 0x80000000
XDP_UMEM_PGOFF_FILL_RING, XDP_UMEM_PGOFF_COMPLETION_RING = 0x100000000, 0x180000000
XDP_PACKET_HEADROOM = 256  # linux-bpf.h: in front of every frame of a chunk

sockaddr = layout(
    16, ("family", u16), ("flags", u16), ("ifindex", u32), ("queue_id", u32), ("shared_umem_fd", u32)
)
ring_offset = layout(32, ("producer", u64), ("consumer", u64), ("desc", u64), ("flags", u64))
mmap_offsets = layout(
    128, ("rx", ring_offset), ("tx", ring_offset), ("fill", ring_offset), ("completion", ring_offset)
)
umem_reg = layout(
    32, ("addr", u64), ("len", u64), ("chunk_size", u32), ("headroom", u32), ("flags", u32), ("metadata", u32)
)
desc = layout(16, ("addr", u64), ("len", u32), ("options", u32))
statistics = layout(
    48,
    ("rx_dropped", u64),
    ("rx_invalid_descs", u64),
    ("tx_invalid_descs", u64),
    ("rx_ring_full", u64),
    ("rx_fill_ring_empty_descs", u64),
    ("tx_ring_empty_descs", u64),
)
