# SPDX-License-Identifier: Apache-2.0
"""Linux numbers and structures that Python's standard library does not name, for x86-64 and arm64.

Each group names the UAPI header it was read from (tags: docs/specs.md). Structures are what the kernel reads or
writes; kernels of the data plane use the same objects.
"""

from __future__ import annotations

import platform

from vmq.abi.layout import i32, i64, layout, packed, u8, u16, u32, u64

# linux-eventpoll.h: struct epoll_event is packed on x86-64 only
_event = packed if platform.machine() == "x86_64" else layout
epoll_event = _event(12 if platform.machine() == "x86_64" else 16, ("events", u32), ("data", u64))
EPOLLIN, EPOLLET = 1, 1 << 31

# linux-socket.h: scatter-gather and message headers
iovec = layout(16, ("base", u64), ("len", u64))
msghdr = layout(
    56,
    ("name", u64),
    ("namelen", u32),
    ("iov", u64),
    ("iovlen", u64),
    ("control", u64),
    ("controllen", u64),
    ("flags", i32),
)
mmsghdr = layout(64, ("hdr", msghdr), ("len", u32))
cmsghdr = layout(16, ("len", u64), ("level", i32), ("type", i32))
MSG_DONTWAIT, MSG_TRUNC = 0x40, 0x20
UIO_MAXIOV = 1024

# linux-if_packet.h
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_DROP_MEMBERSHIP = 2
PACKET_STATISTICS = 6
PACKET_AUXDATA = 8
PACKET_VNET_HDR = 15
PACKET_FANOUT = 18
PACKET_IGNORE_OUTGOING = 23
PACKET_FANOUT_HASH = 0
PACKET_MR_PROMISC, PACKET_MR_UNICAST = 1, 3
packet_mreq = layout(16, ("ifindex", i32), ("type", u16), ("alen", u16), ("address", u8, (8,)))
tpacket_auxdata = layout(
    20,
    ("status", u32),
    ("len", u32),
    ("snaplen", u32),
    ("mac", u16),
    ("net", u16),
    ("vlan_tci", u16),
    ("vlan_tpid", u16),
)
TP_STATUS_CSUMNOTREADY = 1 << 3
TP_STATUS_VLAN_VALID = 1 << 4
TP_STATUS_CSUM_VALID = 1 << 7

# linux-if_tun.h
TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNGETIFF = 0x800454D2
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
TUNSETVNETLE = 0x400454DC
TUNSETSTEERINGEBPF = 0x800454E0
IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000

# linux-time.h
timespec = layout(16, ("sec", i64), ("nsec", i64))
CLOCK_MONOTONIC = 1

# linux-resource.h: struct rusage; voluntary and involuntary context switches are its last two
rusage = layout(144, ("others", u8, (128,)), ("voluntary", i64), ("involuntary", i64))
RUSAGE_THREAD = 1

# linux-signal.h: struct siginfo as SIGBUS fills it
siginfo_fault = layout(24, ("signo", i32), ("errno", i32), ("code", i32), ("address", u64))
SA_SIGINFO = 4
SIGBUS = 7

# linux-mman.h
PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 1, 2, 0x10, 0x20, 0x4000
MAP_POPULATE, MAP_FIXED_NOREPLACE = 0x8000, 0x100000

# linux-errno.h
EINTR, EAGAIN, ENOMEM, EFAULT, EBUSY, EINVAL, ENOBUFS = 4, 11, 12, 14, 16, 22, 105

# linux-membarrier.h
NR_MEMBARRIER = 324 if platform.machine() == "x86_64" else 283
MEMBARRIER_CMD_GLOBAL = 1
