# SPDX-License-Identifier: Apache-2.0
"""Network devices of the host: requests by name (ioctl), what a link is (rtnetlink), options of sockets on one."""

from __future__ import annotations

from vmq.abi.layout import i32, layout, u8, u16, u32, u64

# linux-if.h
IFNAMSIZ = 16  # with the NUL at the end
ifreq = layout(
    40, ("name", "S16"), ("value", i32), ("rest", u32, (5,))
)  # the union begins with an int for all we ask
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
SIOCGIFNAME, SIOCGIFMTU, SIOCSIFMTU = 0x8910, 0x8921, 0x8922
SIOCBRADDIF, SIOCBRDELIF = 0x89A2, 0x89A3
IFF_UP, IFF_NOARP, IFF_MASK = 1, 0x80, 0xFFFF  # ifr_flags is a short
ARPHRD_ETHER = 1  # linux-if_arp.h

# linux-if_tun.h: beside those of vmq.abi.linux
TUNGETVNETHDRSZ = 0x800454D7

# linux-if_packet.h: beside those of vmq.abi.linux
PACKET_FANOUT_FLAG_UNIQUEID = 0x2000
PACKET_MR_ALLMULTI = 2
tpacket_stats = layout(8, ("packets", u32), ("drops", u32))

# linux-if_ether.h
ETH_P_ALL = 3

# linux-socket.h
SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_ATTACH_BPF = 26, 27, 32, 33, 50
SO_BUSY_POLL, SO_INCOMING_NAPI_ID, SO_PREFER_BUSY_POLL, SO_BUSY_POLL_BUDGET = 46, 56, 69, 70
sock_filter = layout(8, ("code", u16), ("jt", u8), ("jf", u8), ("k", u32))
sock_fprog = layout(16, ("len", u16), ("filter", u64))
BPF_RET_K = 6  # classic BPF: accept `k` bytes

# linux-rtnetlink.h
nlmsghdr = layout(16, ("len", u32), ("type", u16), ("flags", u16), ("seq", u32), ("pid", u32))
nlattr = layout(4, ("len", u16), ("type", u16))
ifinfomsg = layout(
    16, ("family", u8), ("pad", u8), ("type", u16), ("index", i32), ("flags", u32), ("change", u32)
)
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 1, 4, 0x200, 0x400
NLMSG_ERROR, NLA_ALIGN, NLA_TYPE_MASK, NLA_F_NESTED = 2, 4, 0x3FFF, 0x8000
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_OPERSTATE, IFLA_PROMISCUITY = 1, 3, 4, 10, 16, 30
IFLA_LINKINFO, IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 18, 1, 2, 1  # linux-veth.h
IFLA_TUN_NUM_QUEUES = 8  # of a TAP with several queues: those that are open
IFLA_XDP = 43  # programs on the device, by where they run
IFLA_XDP_PROG_ID, IFLA_XDP_DRV_PROG_ID, IFLA_XDP_SKB_PROG_ID, IFLA_XDP_HW_PROG_ID = 4, 5, 6, 7
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 31, 32
CLONE_NEWNET = 0x40000000  # linux-sched.h
IF_OPER_WORDS = ("unknown", "not present", "down", "lower layer down", "testing", "dormant", "up")

# linux-genetlink.h: requests to a family of the kernel, whose number is asked for by its name first
NETLINK_GENERIC = 16  # linux-rtnetlink.h
genlmsghdr = layout(4, ("cmd", u8), ("version", u8), ("reserved", u16))
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2

# linux-netdev.h: what a driver says that it does with programs and AF_XDP sockets; how one queue is polled (NAPI)
NETDEV_FAMILY_NAME, NETDEV_CMD_DEV_GET = b"netdev\0", 1
NETDEV_A_DEV_IFINDEX, NETDEV_A_DEV_XDP_FEATURES = 1, 3
NETDEV_CMD_NAPI_SET = 14
NETDEV_A_NAPI_ID, NETDEV_A_NAPI_DEFER_HARD_IRQS, NETDEV_A_NAPI_GRO_FLUSH_TIMEOUT = 2, 5, 6
NETDEV_XDP_ACT = ("basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg")

# linux-capability.h
CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_SYS_ADMIN, CAP_BPF = 12, 13, 14, 21, 39
