# SPDX-License-Identifier: Apache-2.0
"""What a driver says that it does with programs and AF_XDP sockets, without anything being tried (Linux 6.3 and later), and
how long the kernel waits for who polls a queue himself before it does so (Linux 6.13 and later).

It is asked by generic netlink: families of the kernel have names, and a number that is asked for first. What a driver says
is a hint: a veth takes redirected frames only while its other end has a program, and a NIC may refuse with some settings what
it can do with others. linux-netdev.h
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

import numpy as np

from vmq.abi import netdevice as nd
from vmq.uplink.link import REPLY, attributes

VERSION = 1
SECONDS = 1.0  # until the kernel has answered


class Family:
    """The kernel's network devices, asked and told in the namespace where this is made. FileNotFoundError: it has no such family."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, nd.NETLINK_GENERIC
        )
        self._socket.settimeout(SECONDS)
        try:
            name = _attribute(nd.CTRL_ATTR_FAMILY_NAME, nd.NETDEV_FAMILY_NAME)
            found = _ask(self._socket, nd.GENL_ID_CTRL, nd.CTRL_CMD_GETFAMILY, name)
        except BaseException:
            self.close()
            raise
        self._number = int.from_bytes(found[nd.CTRL_ATTR_FAMILY_ID], "little")

    def features(self, index: int) -> int:
        """NETDEV_XDP_ACT of a device."""
        which = _attribute(nd.NETDEV_A_DEV_IFINDEX, index.to_bytes(4, "little"))
        said = _ask(self._socket, self._number, nd.NETDEV_CMD_DEV_GET, which)
        return int.from_bytes(said.get(nd.NETDEV_A_DEV_XDP_FEATURES, b""), "little")

    def defer(self, napi: int, times: int, nanoseconds: int) -> None:
        """Have the kernel leave queue `napi` to who polls it, and look itself when nobody has done so for so long, so many times before
        frames wake it again; 0: frames wake it at once. OSError if it cannot.
        """
        told = _attribute(nd.NETDEV_A_NAPI_ID, napi.to_bytes(4, "little"))
        told += _attribute(nd.NETDEV_A_NAPI_DEFER_HARD_IRQS, times.to_bytes(4, "little"))
        told += _attribute(nd.NETDEV_A_NAPI_GRO_FLUSH_TIMEOUT, nanoseconds.to_bytes(4, "little"))
        _ask(self._socket, self._number, nd.NETDEV_CMD_NAPI_SET, told, nd.NLM_F_ACK)

    def close(self) -> None:
        """It may be called again."""
        self._socket.close()


def abilities(index: int) -> frozenset[str] | None:
    """Words of NETDEV_XDP_ACT that the driver of a device says; None if the kernel cannot tell. OSError if it refuses."""
    try:
        with contextlib.closing(Family()) as kernel:
            return words(kernel.features(index))
    except FileNotFoundError:
        return None


def words(bits: int) -> frozenset[str]:
    """Abilities by their names; bits that we have no name for are left out."""
    return frozenset(name for bit, name in enumerate(nd.NETDEV_XDP_ACT) if bits >> bit & 1)


def _attribute(kind: int, value: bytes) -> bytes:
    head = np.zeros(1, nd.nlattr)
    head["len"], head["type"] = nd.nlattr.itemsize + len(value), kind
    return head.tobytes() + value + bytes(-len(value) % nd.NLA_ALIGN)


def _ask(asked: socket.socket, family: int, command: int, told: bytes, flags: int = 0) -> dict[int, bytes]:
    """Put one question to a family; the attributes of the answer."""
    head, body = np.zeros(1, nd.nlmsghdr), np.zeros(1, nd.genlmsghdr)
    body["cmd"], body["version"] = command, VERSION
    head["len"] = head.nbytes + body.nbytes + len(told)
    head["type"], head["flags"] = family, nd.NLM_F_REQUEST | flags
    asked.send(head.tobytes() + body.tobytes() + told)
    return _parse(asked.recv(REPLY))


def _parse(reply: bytes) -> dict[int, bytes]:
    head: Any = np.frombuffer(reply, nd.nlmsghdr, 1)[0]
    place = nd.nlmsghdr.itemsize
    if head["type"] != nd.NLMSG_ERROR:
        return attributes(reply[place + nd.genlmsghdr.itemsize : int(head["len"])])
    code = -int.from_bytes(reply[place : place + 4], "little", signed=True)
    if code:
        raise OSError(code, os.strerror(code))
    return {}  # an order that was carried out
