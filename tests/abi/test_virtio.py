# SPDX-License-Identifier: Apache-2.0
"""Layouts of virtio against golden bytes."""

from __future__ import annotations

import numpy as np

from vmq.abi.virtio import net_hdr, split_ring_bytes, vring_desc, vring_used_elem


def test_descriptor_bytes_stand_in_the_order_of_the_specification() -> None:
    """virtio-1.2 §2.7.5 The Virtqueue Descriptor Table: le64 addr, le32 len, le16 flags, le16 next."""
    row = np.array([(0x1122334455667788, 0xAABBCCDD, 0x0102, 0x0304)], vring_desc)

    assert row.tobytes().hex() == "8877665544332211" + "ddccbbaa" + "0201" + "0403"


def test_used_element_is_id_then_length() -> None:
    """virtio-1.2 §2.7.8 The Virtqueue Used Ring"""
    assert np.array([(1, 2)], vring_used_elem).tobytes().hex() == "0100000002000000"


def test_packet_header_has_twelve_bytes_in_order() -> None:
    """virtio-1.2 §5.1.6 Device Operation: struct virtio_net_hdr"""
    row = np.array([(1, 4, 0x0203, 0x0405, 0x0607, 0x0809, 0x0A0B)], net_hdr)

    assert row.tobytes().hex() == "0104" + "0302" + "0504" + "0706" + "0908" + "0b0a"


def test_ring_sizes_count_the_event_words() -> None:
    """virtio-1.2 §2.7 Split Virtqueues: 16 n; 6 + 2 n; 6 + 8 n."""
    assert split_ring_bytes(256) == (4096, 518, 2054)
