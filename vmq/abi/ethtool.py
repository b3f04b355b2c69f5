# SPDX-License-Identifier: Apache-2.0
"""What a network device's driver says of itself, and rules by which it chooses receive queues: SIOCETHTOOL.

linux-ethtool.h, and linux-if.h for the request.
"""

from __future__ import annotations

from vmq.abi.layout import layout, packed, u8, u16, u32, u64

SIOCETHTOOL = 0x8946
ETHTOOL_GDRVINFO, ETHTOOL_GSTRINGS, ETHTOOL_GSSET_INFO, ETHTOOL_GFEATURES = 0x03, 0x1B, 0x37, 0x3A
ETHTOOL_SFEATURES = 0x3B
ETHTOOL_GCHANNELS = 0x3C
ETHTOOL_GRXCLSRLCNT, ETHTOOL_GRXCLSRULE, ETHTOOL_GRXCLSRLALL = 0x2E, 0x2F, 0x30
ETHTOOL_SRXCLSRLDEL, ETHTOOL_SRXCLSRLINS = 0x31, 0x32
ETHER_FLOW = 0x12  # a rule that looks at the Ethernet header
RX_CLS_LOC_SPECIAL = 1 << 31  # in `data` of a count: the driver finds a place by itself
RX_CLS_LOC_ANY = 0xFFFFFFFF  # then this is the place to ask for
RULES_MAX = 4096  # places that we read; more than any NIC of ours has
ETH_SS_FEATURES = 4
ETH_GSTRING_LEN = 32
FEATURES_MAX = 256  # far more than any kernel has

ifreq_data = layout(40, ("name", "S16"), ("data", u64), ("rest", u64, (2,)))
drvinfo = layout(
    196,
    ("cmd", u32),
    ("driver", "S32"),
    ("version", "S32"),
    ("fw_version", "S32"),
    ("bus_info", "S32"),
    ("erom_version", "S32"),
    ("rest", u8, (32,)),
)
channels = layout(
    36,
    ("cmd", u32),
    ("max_rx", u32),
    ("max_tx", u32),
    ("max_other", u32),
    ("max_combined", u32),
    ("rx", u32),
    ("tx", u32),
    ("other", u32),
    ("combined", u32),
)
sset_info = layout(24, ("cmd", u32), ("reserved", u32), ("sset_mask", u64), ("data", u32), ("padding", u32))
gstrings = layout(
    12 + FEATURES_MAX * ETH_GSTRING_LEN,
    ("cmd", u32),
    ("string_set", u32),
    ("len", u32),
    ("data", "S32", (FEATURES_MAX,)),
)
feature_block = layout(16, ("available", u32), ("requested", u32), ("active", u32), ("never_changed", u32))
gfeatures = layout(
    8 + FEATURES_MAX // 32 * 16,
    ("cmd", u32),
    ("size", u32),
    ("features", feature_block, (FEATURES_MAX // 32,)),
)
set_block = layout(8, ("valid", u32), ("requested", u32))
sfeatures = layout(
    8 + FEATURES_MAX // 32 * 8,
    ("cmd", u32),
    ("size", u32),
    ("features", set_block, (FEATURES_MAX // 32,)),
)

# A rule: the header that is looked for, the bits of it that count, and the queue. Of the unions only what is asked for.
ether_spec = layout(52, ("dst", u8, (6,)), ("rest", u8, (46,)))
flow_ext = layout(
    20, ("padding", u16), ("h_dest", u8, (6,)), ("vlan_etype", u16), ("vlan_tci", u16), ("data", u32, (2,))
)
rx_flow_spec = layout(
    168,
    ("flow_type", u32),
    ("h_u", ether_spec),
    ("h_ext", flow_ext),
    ("m_u", ether_spec),
    ("m_ext", flow_ext),
    ("ring_cookie", u64),
    ("location", u32),
)
rxnfc = layout(192, ("cmd", u32), ("flow_type", u32), ("data", u64), ("fs", rx_flow_spec), ("rule_cnt", u32))
# The same with places behind it. They begin where the count ends, in what C pads.
rxnfc_all = packed(
    188 + 4 * RULES_MAX,
    ("cmd", u32),
    ("flow_type", u32),
    ("data", u64),
    ("fs", rx_flow_spec),
    ("rule_cnt", u32),
    ("rule_locs", u32, (RULES_MAX,)),
)
