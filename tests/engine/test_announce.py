# SPDX-License-Identifier: Apache-2.0
"""The frame that says where an address is now, read by somebody else's parser."""

from __future__ import annotations

import pytest

from vmq.abi.ethernet import mac_number
from vmq.engine.announce import rarp

MAC = "52:54:00:12:34:56"


def test_an_announcement_is_the_rarp_that_qemu_sends():
    """rfc-903, byte by byte."""
    address = bytes.fromhex(MAC.replace(":", ""))
    expected = (
        b"\xff" * 6 + address + b"\x80\x35" + b"\x00\x01\x08\x00\x06\x04\x00\x03" + (address + bytes(4)) * 2
    )
    assert rarp(mac_number(MAC), 0) == expected.ljust(60, b"\0")


@pytest.mark.parametrize("vlan", [0, 1, 4094])
def test_scapy_reads_it(vlan: int):
    """An oracle of its own."""
    from scapy.layers.l2 import ARP, Dot1Q, Ether

    read = Ether(rarp(mac_number(MAC), vlan))

    assert (read.dst, read.src) == ("ff:ff:ff:ff:ff:ff", MAC)
    assert read.haslayer(Dot1Q) == bool(vlan)
    if vlan:
        assert (read[Dot1Q].vlan, read[Dot1Q].type) == (vlan, 0x8035)
    body = read[ARP] if read.haslayer(ARP) else ARP(bytes(read.lastlayer()))
    assert (body.op, body.hwsrc, body.hwdst) == (3, MAC, MAC)
    assert len(bytes(read)) == 64 if vlan else 60
