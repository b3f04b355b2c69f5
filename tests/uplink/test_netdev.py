# SPDX-License-Identifier: Apache-2.0
"""What drivers say of themselves, asked of this kernel; a veth's words are those of Linux' source."""

from __future__ import annotations

import contextlib
import errno
import struct

import pytest

from tests.vm.lab.netns import Namespace
from vmq.abi import netdevice as nd
from vmq.uplink import netdev
from vmq.uplink.link import index_of


def test_each_bit_has_its_name_and_others_are_left_out() -> None:
    assert netdev.words(0) == frozenset()
    assert netdev.words(1 | 2 | 8) == {"basic", "redirect", "xsk-zerocopy"}
    assert netdev.words(1 << 6 | 1 << 31) == {"ndo-xmit-sg"}


def test_an_attribute_is_padded_behind_its_length() -> None:
    assert netdev._attribute(2, b"netdev\0") == struct.pack("=HH7sx", 11, 2, b"netdev\0")


def test_a_refusal_is_the_error_that_the_kernel_names() -> None:
    with pytest.raises(OSError) as refused:
        netdev._parse(struct.pack("=IHHIIi", 36, 2, 0, 0, 0, -errno.ENODEV) + bytes(16))
    assert refused.value.errno == errno.ENODEV


def test_an_order_that_was_carried_out_has_no_answer() -> None:
    assert netdev._parse(struct.pack("=IHHIIi", 36, 2, 0, 0, 0, 0) + bytes(16)) == {}


def test_a_queue_that_is_not_there_is_not_left_to_anybody() -> None:
    with contextlib.closing(netdev.Family()) as kernel, pytest.raises(OSError) as refused:
        kernel.defer((1 << 32) - 1, 2, 50_000)
    assert refused.value.errno in (errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP)


def test_a_kernel_without_the_family_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nd, "NETDEV_FAMILY_NAME", b"nosuch\0")
    assert netdev.abilities(1) is None


def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(OSError):
        netdev.abilities(1 << 30)


@pytest.mark.root
def test_a_veth_redirects_and_has_no_zero_copy() -> None:
    with Namespace("host") as host:
        host.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        said = host.call(lambda: netdev.abilities(index_of("v0")))
        loopback = host.call(lambda: netdev.abilities(index_of("lo")))

    assert said is not None
    assert {"basic", "redirect"} <= said
    assert "xsk-zerocopy" not in said
    assert loopback == frozenset()
