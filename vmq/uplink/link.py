# SPDX-License-Identifier: Apache-2.0
"""Network devices of the host: what one is now, and the few things an uplink sets.

What the kernel says is asked each time, never remembered: somebody else may change a device behind our back. Settings
are ioctls; what ioctls hide (the bridge a device belongs to, promiscuity) is one rtnetlink request. pyroute2 is not
used here: its sockets run an event loop of their own and refuse to work inside the engine's.
"""

from __future__ import annotations

import fcntl
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vmq.abi import netdevice as nd

REPLY = 1 << 16  # bytes; one link's answer is some two thousand
_PROGRAMS = {
    "native": nd.IFLA_XDP_DRV_PROG_ID,
    "generic": nd.IFLA_XDP_SKB_PROG_ID,
    "offloaded": nd.IFLA_XDP_HW_PROG_ID,
}


@dataclass(frozen=True)
class Link:
    """A network device as the kernel describes it."""

    index: int
    name: str
    kind: int  # ARPHRD_*
    mtu: int
    up: bool
    state: str  # IF_OPER_WORDS
    master: int  # index of its bridge, 0 without
    promiscuity: int
    mac: int
    programs: Mapping[str, int] = field(default_factory=dict)  # XDP programs that are there: where → id
    virtual: str = ""  # of which kind a device without hardware is, as "veth"; "" for a NIC
    tap_queues: int = 0  # open queues of a TAP that may have several


def index_of(device: str) -> int:
    """The number of a device, 0 if there is none of this name."""
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return 0


def describe(index: int) -> Link | None:
    """What the kernel says about a device; None when it is gone."""
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as asked:
        asked.settimeout(1)
        body = np.zeros(1, nd.ifinfomsg)
        body["index"] = index
        head = np.zeros(1, nd.nlmsghdr)
        head["len"] = head.nbytes + body.nbytes
        head["type"], head["flags"] = nd.RTM_GETLINK, nd.NLM_F_REQUEST
        asked.send(head.tobytes() + body.tobytes())
        return _parse(asked.recv(REPLY))


def _parse(reply: bytes) -> Link | None:
    head = np.frombuffer(reply, nd.nlmsghdr, 1)[0]
    if head["type"] != nd.RTM_NEWLINK:
        return None
    place = nd.nlmsghdr.itemsize
    body = np.frombuffer(reply, nd.ifinfomsg, 1, place)[0]
    found = attributes(reply[place + nd.ifinfomsg.itemsize : int(head["len"])])
    on = attributes(found.get(nd.IFLA_XDP, b""))

    def number(attribute: int) -> int:
        return int.from_bytes(found.get(attribute, b""), "little")

    state = number(nd.IFLA_OPERSTATE)
    about = attributes(found.get(nd.IFLA_LINKINFO, b""))
    virtual = about.get(nd.IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
    data = attributes(about.get(nd.IFLA_INFO_DATA, b"")) if virtual == "tun" else {}
    return Link(
        index=int(body["index"]),
        name=found.get(nd.IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        kind=int(body["type"]),
        mtu=number(nd.IFLA_MTU),
        up=bool(int(body["flags"]) & nd.IFF_UP),
        state=nd.IF_OPER_WORDS[state] if state < len(nd.IF_OPER_WORDS) else str(state),
        master=number(nd.IFLA_MASTER),
        promiscuity=number(nd.IFLA_PROMISCUITY),
        mac=number(nd.IFLA_ADDRESS),
        virtual=virtual,
        tap_queues=int.from_bytes(data.get(nd.IFLA_TUN_NUM_QUEUES, b""), "little"),
        programs={where: int.from_bytes(on[one], "little") for where, one in _PROGRAMS.items() if one in on},
    )


def attributes(data: bytes) -> dict[int, bytes]:
    """What stands in a row of netlink attributes, by type."""
    found: dict[int, bytes] = {}
    place = 0
    while place + nd.nlattr.itemsize <= len(data):
        attribute = np.frombuffer(data, nd.nlattr, 1, place)[0]
        length = max(int(attribute["len"]), nd.nlattr.itemsize)
        found[int(attribute["type"]) & nd.NLA_TYPE_MASK] = data[place + nd.nlattr.itemsize : place + length]
        place += (length + nd.NLA_ALIGN - 1) & ~(nd.NLA_ALIGN - 1)
    return found


def interface_request(device: str, value: int = 0) -> bytearray:
    """An ifreq for `device`."""
    request = np.zeros(1, nd.ifreq)
    request["name"], request["value"] = device.encode(), value
    return bytearray(request.tobytes())


def request_value(request: bytearray) -> int:
    """The number in an ifreq that came back."""
    return int(np.frombuffer(request, nd.ifreq)[0]["value"])


def request_name(request: bytearray) -> str:
    """The name in an ifreq that came back."""
    return bytes(np.frombuffer(request, nd.ifreq)[0]["name"]).decode(errors="replace")


def _ioctl(code: int, device: str, value: int = 0) -> int:
    request = interface_request(device, value)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
        fcntl.ioctl(asked, code, request)
    return request_value(request)


def name_of(index: int, by: socket.socket) -> str:
    """What a device is called now, in the namespace of a socket; OSError if it is not there."""
    request = interface_request("", index)
    fcntl.ioctl(by, nd.SIOCGIFNAME, request)
    return request_name(request)


def set_mtu(device: str, mtu: int) -> None:
    _ioctl(nd.SIOCSIFMTU, device, mtu)


def set_up(device: str) -> None:
    flags = _ioctl(nd.SIOCGIFFLAGS, device) & nd.IFF_MASK
    if not flags & nd.IFF_UP:
        _ioctl(nd.SIOCSIFFLAGS, device, flags | nd.IFF_UP)


def set_silent(device: str) -> None:
    """Let it ask nobody for addresses."""
    flags = _ioctl(nd.SIOCGIFFLAGS, device) & nd.IFF_MASK
    _ioctl(nd.SIOCSIFFLAGS, device, flags | nd.IFF_NOARP)


def set_down(device: str) -> None:
    flags = _ioctl(nd.SIOCGIFFLAGS, device) & nd.IFF_MASK
    if flags & nd.IFF_UP:
        _ioctl(nd.SIOCSIFFLAGS, device, flags & ~nd.IFF_UP)


def join_bridge(bridge: str, index: int) -> None:
    _ioctl(nd.SIOCBRADDIF, bridge, index)


def leave_bridge(bridge: str, index: int) -> None:
    _ioctl(nd.SIOCBRDELIF, bridge, index)
