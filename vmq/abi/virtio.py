# SPDX-License-Identifier: Apache-2.0
"""virtio as a network device speaks it: feature bits, split virtqueues, the packet header.

Feature names are bit numbers. Only what the engine offers, requires or refuses by name is listed. Everything is
little-endian (VIRTIO_F_VERSION_1 is required), which is the byte order of every host the engine runs on.
"""

from __future__ import annotations

from vmq.abi.layout import layout, u8, u16, u32, u64

# virtio-1.2 §5.1.3 Feature bits
VIRTIO_NET_F_CSUM = 0
VIRTIO_NET_F_GUEST_CSUM = 1
VIRTIO_NET_F_MTU = 3
VIRTIO_NET_F_MRG_RXBUF = 15
VIRTIO_NET_F_CTRL_VQ = 17
VIRTIO_NET_F_GUEST_ANNOUNCE = 21
VIRTIO_NET_F_MQ = 22

# virtio-1.2 §6 Reserved Feature Bits; the bits below 32 that a legacy device also knew
VIRTIO_F_NOTIFY_ON_EMPTY = 24
VIRTIO_F_ANY_LAYOUT = 27
VIRTIO_RING_F_INDIRECT_DESC = 28
VIRTIO_RING_F_EVENT_IDX = 29
VIRTIO_F_VERSION_1 = 32
VIRTIO_F_RING_PACKED = 34

# vhost-user "Feature bits": they share the virtio feature word
VHOST_F_LOG_ALL = 26
VHOST_USER_F_PROTOCOL_FEATURES = 30

# virtio-1.2 §2.7.5 The Virtqueue Descriptor Table
vring_desc = layout(16, ("addr", u64), ("len", u32), ("flags", u16), ("next", u16))
VRING_DESC_F_NEXT = 1
VRING_DESC_F_WRITE = 2  # the device writes
VRING_DESC_F_INDIRECT = 4
DESC_ALIGN, AVAIL_ALIGN, USED_ALIGN = 16, 2, 4  # virtio-1.2 §2.7 Split Virtqueues
SPLIT_MAX_SIZE = 32768

# virtio-1.2 §2.7.6 The Virtqueue Available Ring: this header, then u16 ring[size], then u16 used_event
vring_avail = layout(4, ("flags", u16), ("idx", u16))
VRING_AVAIL_F_NO_INTERRUPT = 1

# virtio-1.2 §2.7.8 The Virtqueue Used Ring: this header, then the elements, then u16 avail_event
vring_used = layout(4, ("flags", u16), ("idx", u16))
vring_used_elem = layout(8, ("id", u32), ("len", u32))
VRING_USED_F_NO_NOTIFY = 1


def split_ring_bytes(size: int) -> tuple[int, int, int]:
    """Bytes of descriptor table, available ring and used ring of a split virtqueue, event words included."""
    avail = vring_avail.itemsize + 2 * size + 2
    used = vring_used.itemsize + vring_used_elem.itemsize * size + 2
    return vring_desc.itemsize * size, avail, used


# virtio-1.2 §5.1.6 Device Operation: struct virtio_net_hdr
# Twelve bytes: VIRTIO_F_VERSION_1 is required and VIRTIO_NET_F_HASH_REPORT is never offered.
net_hdr = layout(
    12,
    ("flags", u8),  # NET_HDR_F_*
    ("gso_type", u8),  # NET_HDR_GSO_*; may carry GSO_ECN
    ("hdr_len", u16),  # a hint: never trusted as a copy length
    ("gso_size", u16),
    ("csum_start", u16),
    ("csum_offset", u16),  # counted from csum_start
    ("num_buffers", u16),  # to_guest only: chains this frame spans
)
NET_HDR_F_NEEDS_CSUM = 1
NET_HDR_F_DATA_VALID = 2
NET_HDR_GSO_NONE = 0
NET_HDR_GSO_TCPV4 = 1
NET_HDR_GSO_UDP = 3
NET_HDR_GSO_TCPV6 = 4
NET_HDR_GSO_UDP_L4 = 5
NET_HDR_GSO_ECN = 0x80
