# SPDX-License-Identifier: Apache-2.0
"""Sizes that the kernel's headers give."""

from __future__ import annotations

import struct

import numpy as np

from vmq.abi import ethtool
from vmq.abi.layout import offset


def test_layouts_are_those_of_c() -> None:
    """linux-ethtool.h: struct ethtool_drvinfo, ethtool_sset_info, ethtool_gstrings, ethtool_gfeatures, ethtool_sfeatures."""
    assert ethtool.drvinfo.itemsize == struct.calcsize("=I32s32s32s32s32s12sIIIII")
    assert offset(ethtool.sset_info, "data") == struct.calcsize("=IIQ")
    assert offset(ethtool.gstrings, "data") == struct.calcsize("=III")
    assert offset(ethtool.gfeatures, "features") == struct.calcsize("=II")
    assert ethtool.feature_block.itemsize == struct.calcsize("=IIII")
    assert offset(ethtool.sfeatures, "features") == struct.calcsize("=II")
    assert ethtool.set_block.itemsize == struct.calcsize("=II")


def test_a_request_carries_a_name_and_an_address() -> None:
    """linux-if.h: struct ifreq with ifr_data."""
    request = np.zeros(1, ethtool.ifreq_data)
    request["name"], request["data"] = b"lo", 7

    assert request.tobytes() == struct.pack("=16sQ16x", b"lo", 7)


def test_a_rule_has_the_offsets_of_c() -> None:
    """linux-ethtool.h: struct ethtool_rx_flow_spec, ethtool_flow_ext, ethtool_rxnfc."""
    spec = {name: offset(ethtool.rx_flow_spec, name) for name in ethtool.rx_flow_spec.names or ()}
    assert spec == {
        "flow_type": 0, "h_u": 4, "h_ext": 56, "m_u": 76, "m_ext": 128, "ring_cookie": 152, "location": 160
    }  # fmt: skip
    extended = {name: offset(ethtool.flow_ext, name) for name in ethtool.flow_ext.names or ()}
    assert extended == {"padding": 0, "h_dest": 2, "vlan_etype": 8, "vlan_tci": 10, "data": 12}
    outer = {name: offset(ethtool.rxnfc, name) for name in ethtool.rxnfc.names or ()}
    assert outer == {"cmd": 0, "flow_type": 4, "data": 8, "fs": 16, "rule_cnt": 184}
    assert {name: offset(ethtool.rxnfc_all, name) for name in outer} == outer
    assert offset(ethtool.rxnfc_all, "rule_locs") == 188
