# SPDX-License-Identifier: Apache-2.0
"""Golden bytes: what QEMU's C structures look like on the wire, written out by hand."""

from __future__ import annotations

import sys

import pytest

from vmq.abi import vhost_user
from vmq.abi.vhost_user import Request

ORDER = sys.byteorder


def u32(value: int) -> bytes:
    return value.to_bytes(4, ORDER)


def u64(value: int) -> bytes:
    return value.to_bytes(8, ORDER)


def test_header_is_request_flags_size():
    """vhost-user "Header": three 32-bit numbers."""
    assert vhost_user.HEADER.pack(1, 2, 3) == u32(1) + u32(2) + u32(3)


def test_ring_addresses_come_used_before_available():
    """vhost-user "A vring address description": descriptor, used, available, log."""
    packed = vhost_user.VRING_ADDR.pack(1, 2, 3, 4, 5, 6)
    assert packed == u32(1) + u32(2) + u64(3) + u64(4) + u64(5) + u64(6)


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (vhost_user.HEADER, 12),
        (vhost_user.U64, 8),
        (vhost_user.VRING_STATE, 8),
        (vhost_user.VRING_ADDR, 40),
        (vhost_user.MEMORY, 8),
        (vhost_user.MEMORY_REGION, 32),
        (vhost_user.MEM_REG, 40),
        (vhost_user.LOG, 16),
    ],
)
def test_payloads_have_no_padding(layout, size):
    """vhost-user "Payload": packed, in the byte order of the host."""
    assert layout.size == size


def test_replies_carry_version_and_reply_bit_only():
    """vhost-user "Header": QEMU refuses every other value than 0x5."""
    assert vhost_user.REPLY_FLAGS == 0x5


def test_requests_are_numbered_without_a_gap():
    """vhost-user "Front-end message types": 1 to 43."""
    assert [int(request) for request in Request] == list(range(1, 44))
    assert (Request.GET_VRING_BASE, Request.SEND_RARP, Request.RESET_DEVICE) == (11, 19, 34)
    assert (Request.ADD_MEM_REG, Request.REM_MEM_REG, Request.SET_STATUS, Request.GET_STATUS) == (
        37,
        38,
        39,
        40,
    )
