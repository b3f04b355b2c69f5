# SPDX-License-Identifier: Apache-2.0
"""ARP packets against scapy's."""

from __future__ import annotations

import numpy as np
from scapy.layers.l2 import ARP

from vmq.abi import arp


def test_every_field_stands_where_it_reads() -> None:
    sender, target = "52:54:00:00:00:01", "52:54:00:00:00:02"
    packet = ARP(op=2, hwsrc=sender, psrc="0.0.0.3", hwdst=target, pdst="0.0.0.4")

    read = np.frombuffer(bytes(packet), arp.arp.newbyteorder(">"), 1)[0]

    assert (read["hardware"], read["protocol"], read["operation"]) == (arp.ARP_HARDWARE_ETHERNET, 0x0800, 2)
    lengths = (int(read["hardware_length"]), int(read["protocol_length"]))
    assert lengths == divmod(arp.ARP_LENGTHS, 256)
    assert (read["sender_address"], read["target_address"]) == (3, 4)
    assert [bytes(read[name]).hex(":") for name in ("sender_mac", "target_mac")] == [sender, target]
