# SPDX-License-Identifier: Apache-2.0
"""Veth pairs where nobody else is: in a network namespace that has no name and is held by a descriptor of ours.

    near end    what is sent into it comes out at the far end: by us, and by a NIC's program, wherever that NIC is
    far end     has one receive queue, an XDP program, and nobody to send anything

No daemon of the host sees either end, gives it an address or sends anything into it. When the descriptor goes, whatever ended
us, the namespace goes, and all pairs with it. linux-rtnetlink.h, linux-veth.h
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from vmq import linux
from vmq.abi import netdevice as nd
from vmq.uplink import link

T = TypeVar("T")
NO_IPV6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
NEAR, FAR = "near{:x}", "far{:x}"
DEVICES = "/proc/thread-self/net/dev"
TX_DROPPED = 11  # the place behind the name: linux, net/core/net-procfs.c
ANSWER_SECONDS = 5.0


class Apart:
    """The namespace of all pairs."""

    def __init__(self) -> None:
        self.fd = _in_a_thread(self._make)
        try:
            self._devices = self.call(lambda: os.open(DEVICES, os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            os.close(self.fd)
            raise

    @staticmethod
    def _make() -> int:
        linux.unshare(nd.CLONE_NEWNET)
        made = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a kernel without IPv6 needs no telling
            Path(NO_IPV6).write_text("1\n")
        return made

    def call(self, function: Callable[[], T]) -> T:
        """What a function gives there: sockets that it makes stay there."""

        def enter() -> T:
            linux.setns(self.fd, nd.CLONE_NEWNET)
            return function()

        return _in_a_thread(enter)

    def devices(self) -> str:
        """What the kernel has counted for each device there."""
        told = b""  # the kernel gives a page or so at a time
        while part := os.pread(self._devices, link.REPLY, len(told)):
            told += part
        return told.decode()

    def close(self) -> None:
        """Give it up, and all pairs with it. It may be called again."""
        if self.fd >= 0:
            os.close(self._devices)
            os.close(self.fd)
            self.fd = -1


class Pair:
    """A pair of number `number`, up; frames of `mtu` bytes behind their Ethernet header cross it. `index` is the near end's."""

    def __init__(self, apart: Apart, number: int, mtu: int) -> None:
        self.name, self._far, self._apart = NEAR.format(number), FAR.format(number), apart
        self.index, self.far_index = apart.call(lambda: self._make(mtu))

    def _make(self, mtu: int) -> tuple[int, int]:
        with _netlink() as asked:
            _ask(asked, nd.RTM_NEWLINK, nd.NLM_F_CREATE | nd.NLM_F_EXCL, _new(self.name, self._far, mtu))
        for end in (self.name, self._far):
            link.set_silent(end)
            link.set_up(end)
        return link.index_of(self.name), link.index_of(self._far)

    def refused(self, devices: str) -> int:
        """Frames that found no room at the far end, of those that we sent and those that a NIC's program led here.

        `devices`: what the kernel has counted, for all pairs at once.
        """
        for line in devices.splitlines():
            name, _, counts = line.partition(":")
            if name.strip() == self.name:
                return int(counts.split()[TX_DROPPED])
        return 0

    def close(self) -> None:
        """Take both ends away. It may be called again."""
        with contextlib.suppress(OSError):
            self._apart.call(self._delete)

    def _delete(self) -> None:
        with _netlink() as asked:
            _ask(asked, nd.RTM_DELLINK, 0, _header(link.index_of(self.name)))


def _in_a_thread(function: Callable[[], T]) -> T:
    """What a function gives in a thread of its own, whose namespaces are nobody else's."""
    given: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            given.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever called
            failed.append(error)

    thread = threading.Thread(target=run, name="vmq-apart", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return given[0]


def _netlink() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    made.settimeout(ANSWER_SECONDS)
    return made


def _ask(asked: socket.socket, kind: int, flags: int, body: bytes) -> None:
    """Give an order; OSError as the kernel answers."""
    head = np.zeros(1, nd.nlmsghdr)
    head["len"], head["type"] = head.nbytes + len(body), kind
    head["flags"] = nd.NLM_F_REQUEST | nd.NLM_F_ACK | flags
    asked.send(head.tobytes() + body)
    answer = asked.recv(link.REPLY)
    code = -int.from_bytes(answer[nd.nlmsghdr.itemsize :][:4], "little", signed=True)
    if code:
        raise OSError(code, os.strerror(code))


def _header(index: int = 0) -> bytes:
    row = np.zeros(1, nd.ifinfomsg)
    row["index"] = index
    return row.tobytes()


def _attribute(kind: int, data: bytes) -> bytes:
    head = np.zeros(1, nd.nlattr)
    head["len"], head["type"] = head.nbytes + len(data), kind
    return head.tobytes() + data + bytes(-len(data) % nd.NLA_ALIGN)


def _word(kind: int, value: int) -> bytes:
    return _attribute(kind, value.to_bytes(4, "little"))


def _end(name: str, mtu: int) -> bytes:
    """One end: its name, and one queue each way, so that frames keep their order."""
    queues = _word(nd.IFLA_NUM_TX_QUEUES, 1) + _word(nd.IFLA_NUM_RX_QUEUES, 1)
    return _attribute(nd.IFLA_IFNAME, name.encode() + b"\0") + _word(nd.IFLA_MTU, mtu) + queues


def _new(near: str, far: str, mtu: int) -> bytes:
    peer = _header() + _end(far, mtu)
    data = _attribute(
        nd.IFLA_INFO_DATA | nd.NLA_F_NESTED, _attribute(nd.VETH_INFO_PEER | nd.NLA_F_NESTED, peer)
    )
    kind = _attribute(nd.IFLA_INFO_KIND, b"veth\0")
    return _header() + _end(near, mtu) + _attribute(nd.IFLA_LINKINFO | nd.NLA_F_NESTED, kind + data)
