# SPDX-License-Identifier: Apache-2.0
"""Headers of tunnels against scapy's."""

from __future__ import annotations

import numpy as np
from scapy.layers.l2 import GRE
from scapy.layers.vxlan import VXLAN

from vmq.abi import tunnel


def test_every_field_of_vxlan_stands_where_it_reads() -> None:
    read = np.frombuffer(bytes(VXLAN(flags=8, vni=5)), tunnel.vxlan.newbyteorder(">"), 1)[0]

    assert (read["flags"], read["vni"] >> 8) == (tunnel.VXLAN_HAS_VNI, 5)


def test_every_field_of_nvgre_stands_where_it_reads() -> None:
    packet = GRE(key_present=1, proto=tunnel.ETH_P_TEB, key=6)

    read = np.frombuffer(bytes(packet), tunnel.gre.newbyteorder(">"), 1)[0]

    assert (read["flags"], read["protocol"], read["key"]) == (tunnel.GRE_KEY_PRESENT, 0x6558, 6)
