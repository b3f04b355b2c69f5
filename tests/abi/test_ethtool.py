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
