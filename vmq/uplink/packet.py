# SPDX-License-Identifier: Apache-2.0
"""A NIC or a veth through packet sockets, one a lane; the kernel's driver stays.

With several lanes the sockets share what comes in (PACKET_FANOUT_HASH: frames of a flow stay together). Until all of
them have joined, a filter that takes nothing keeps every frame out, so that none is seen twice.

What the device hands up besides its own address is asked for on lane 0: one PACKET_MR_UNICAST a receive filter, all
multicast, or everything when the configuration says so or there are more filters than UNICAST_MAX. Memberships are the
kernel's to count and end with the socket: nothing is left behind on the device. linux-if_packet.h
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from vmq.abi import netdevice as nd
from vmq.abi.ethernet import ETH_ALEN, MAC_GROUP_BIT, mac_text
from vmq.abi.linux import (
    PACKET_ADD_MEMBERSHIP,
    PACKET_AUXDATA,
    PACKET_DROP_MEMBERSHIP,
    PACKET_FANOUT,
    PACKET_FANOUT_HASH,
    PACKET_IGNORE_OUTGOING,
    PACKET_MR_PROMISC,
    PACKET_MR_UNICAST,
    PACKET_STATISTICS,
    PACKET_VNET_HDR,
    SOL_PACKET,
    iovec,
    mmsghdr,
    packet_mreq,
)
from vmq.config.records import Packet
from vmq.dataplane import state
from vmq.dataplane.packet import CONTROL, HEADER, HEADER_STRIDE, LEAD
from vmq.errors import HostError
from vmq.jit import address_of, at
from vmq.uplink import link
from vmq.uplink.base import ALIGN, refusing, setting
from vmq.uplink.device import DeviceUplink

UNICAST_MAX = 256  # addresses that are asked for one by one
RECEIVE_BYTES = (
    1 << 23
)  # asked of the kernel for each socket: some 3000 frames of 1514 bytes as it counts them
_REMEDIES = {
    errno.EPERM: "Run with CAP_NET_RAW",
    errno.ENETDOWN: "Bring the device up: ip link set NAME up",
}


def prepare_lane(row: Any, memory: Callable[[int], int]) -> None:
    """Give a lane its buffers, and message headers that point to them."""
    size = (LEAD + state.FRAME_MAX + ALIGN - 1) & ~(ALIGN - 1)
    every = np.arange(state.BURST)
    row["kind"], row["receives"] = state.LANE_PACKET, 1
    row["buffers"], row["buffer_size"] = memory(state.BURST * size), size
    row["held"] = memory(state.super_frame.itemsize)
    row["messages"] = memory(state.BURST * mmsghdr.itemsize)
    prepare_sending(row, memory)
    vectors = at(memory(state.BURST * iovec.itemsize), state.BURST, iovec)
    vectors["base"] = int(row["buffers"]) + LEAD - HEADER + every * size
    vectors["len"] = size - LEAD + HEADER
    messages = at(int(row["messages"]), state.BURST, mmsghdr)["hdr"]
    messages["iov"], messages["iovlen"] = address_of(vectors) + every * iovec.itemsize, 1
    messages["control"] = memory(state.BURST * CONTROL) + every * CONTROL


def prepare_sending(row: Any, memory: Callable[[int], int]) -> None:
    """Give a lane what it sends with."""
    row["headers"] = memory(state.BURST * HEADER_STRIDE)
    row["transmit"] = memory(state.BURST * mmsghdr.itemsize)


class PacketUplink(DeviceUplink):
    """Lanes on the packet sockets of one device."""

    kind = "packet"
    config: Packet

    def __init__(self, name: str, config: Packet, worker_count: int) -> None:
        super().__init__(name, config, worker_count)
        self._sockets: list[socket.socket] = []
        self._unicast: set[int] = set()
        self._promiscuous = ""  # why all frames are taken
        self._lost = 0
        try:
            self._attach(worker_count)
            with refusing(
                self.place("device"), f"{config.device} takes no membership", {}, "Check the device"
            ):
                self._membership(PACKET_ADD_MEMBERSHIP, nd.PACKET_MR_ALLMULTI, 0)
                if config.promiscuous:
                    self._membership(PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC, 0)
                    self._promiscuous = "promiscuous = true"
            self._buffers()
        except BaseException:
            self.discard()
            raise

    def _attach(self, worker_count: int) -> None:
        device, where = self.config.device, self.place("device")
        self.index = link.index_of(device)
        known = link.describe(self.index) if self.index else None
        if known is None:
            raise HostError(where, f"there is no device {device}", "Name one that ip link shows")
        if known.kind != nd.ARPHRD_ETHER:
            raise HostError(where, f"{device} is no Ethernet device", "Name an Ethernet device")
        self._fit(known)
        with refusing(where, f"cannot bring {device} up", {}, "Run with CAP_NET_ADMIN"):
            link.set_up(device)
        with refusing(where, f"cannot open a packet socket on {device}", _REMEDIES, "Check the device"):
            for _ in range(worker_count):
                self._open(device)
            if worker_count > 1:
                self._share()
            for one in self._sockets:
                one.setsockopt(socket.SOL_SOCKET, nd.SO_DETACH_FILTER, 0)

    def _open(self, device: str) -> None:
        """A socket that is bound and takes nothing yet."""
        one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        self._sockets.append(one)
        nothing = np.array([(nd.BPF_RET_K, 0, 0, 0)], nd.sock_filter)
        program = np.array([(1, address_of(nothing))], nd.sock_fprog)
        one.setsockopt(socket.SOL_SOCKET, nd.SO_ATTACH_FILTER, program.tobytes())
        for option in (PACKET_VNET_HDR, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING):
            one.setsockopt(SOL_PACKET, option, 1)
        try:
            one.setsockopt(socket.SOL_SOCKET, nd.SO_RCVBUFFORCE, RECEIVE_BYTES)
        except PermissionError:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        one.bind((device, nd.ETH_P_ALL))

    def _share(self) -> None:
        """Let all sockets share what comes in. The first asks for a group that nobody else has."""
        kind = PACKET_FANOUT_HASH | nd.PACKET_FANOUT_FLAG_UNIQUEID
        self._sockets[0].setsockopt(SOL_PACKET, PACKET_FANOUT, kind << 16)
        group = self._sockets[0].getsockopt(SOL_PACKET, PACKET_FANOUT) & state.M16
        for one in self._sockets[1:]:
            one.setsockopt(SOL_PACKET, PACKET_FANOUT, PACKET_FANOUT_HASH << 16 | group)

    def _buffers(self) -> None:
        for row, one in zip(self.lanes, self._sockets, strict=True):
            row["fd"] = one.fileno()
            prepare_lane(row, self.memory)

    def _membership(self, option: int, kind: int, mac: int) -> None:
        request = np.zeros(1, packet_mreq)
        request["ifindex"], request["type"] = self.index, kind
        if kind == PACKET_MR_UNICAST:
            request["alen"] = ETH_ALEN
            request["address"][0, :ETH_ALEN] = list(int(mac).to_bytes(ETH_ALEN, "little"))
        self._sockets[0].setsockopt(SOL_PACKET, option, request.tobytes())

    def follow(self, filters: Collection[tuple[int, int]], everything: bool = False) -> None:  # noqa: ARG002
        """Ask the device for frames to these addresses; for all frames where that is too much for it.

        A device that is gone or refuses both is told by `status`. Somebody who takes everything needs `promiscuous`.
        """
        if self.config.promiscuous or not self._sockets:
            return
        wanted = {mac for mac, _ in filters if not mac & MAC_GROUP_BIT}
        why = (
            f"more than {UNICAST_MAX} receive filters"
            if len(wanted) > UNICAST_MAX
            else self._unicasts(wanted)
        )
        self._take_all(why)

    def _unicasts(self, wanted: set[int]) -> str:
        """Join what is wanted, leave what is not; why that failed, or nothing."""
        try:
            for mac in sorted(wanted - self._unicast):
                self._membership(PACKET_ADD_MEMBERSHIP, PACKET_MR_UNICAST, mac)
                self._unicast.add(mac)
        except OSError as error:
            return f"the device refused {mac_text(mac)}: {error.strerror}"
        for mac in self._unicast - wanted:
            with contextlib.suppress(OSError):  # with the device its memberships went too
                self._membership(PACKET_DROP_MEMBERSHIP, PACKET_MR_UNICAST, mac)
        self._unicast &= wanted
        return ""

    def _take_all(self, why: str) -> None:
        """Take all frames, because of `why`, or no longer."""
        if bool(why) != bool(self._promiscuous):
            option = PACKET_ADD_MEMBERSHIP if why else PACKET_DROP_MEMBERSHIP
            with contextlib.suppress(OSError):
                self._membership(option, PACKET_MR_PROMISC, 0)
        self._promiscuous = why

    def send(self, frame: bytes) -> None:
        if self._sockets:
            with contextlib.suppress(OSError):
                self._sockets[0].send(bytes(HEADER) + frame)

    def lost(self) -> int:
        """Frames that the kernel threw away because a socket was full, since the uplink was opened."""
        for one in self._sockets:  # each question starts the kernel's count anew
            told = one.getsockopt(SOL_PACKET, PACKET_STATISTICS, nd.tpacket_stats.itemsize)
            self._lost += int(np.frombuffer(told, nd.tpacket_stats)[0]["drops"])
        return self._lost

    def status(self) -> dict[str, Any]:
        config, known = self.config, link.describe(self.index) if self._sockets else None
        told: dict[str, Any] = {"kind": self.kind, "device": config.device, "state": "gone", "settings": []}
        if known is None:
            return told
        told |= {"state": known.state if known.up else "down", "mtu": known.mtu, "ifindex": known.index}
        told |= {"promiscuity": known.promiscuity, "lost": self.lost(), "queues": len(self._sockets)}
        told["membership"] = (
            "promiscuous" if self._promiscuous else [mac_text(mac) for mac in sorted(self._unicast)]
        )
        buffer = (
            self._sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        )  # it counts its own share too
        why = self._promiscuous or (
            "the device filters no addresses, or somebody else asked for all frames"
            if known.promiscuity
            else ""
        )
        changed = f"the device changed after vmq started; frames above {self.mtu} are dropped"
        told["settings"] = [
            setting("device", config.device, known.name),
            setting("mtu", config.mtu, known.mtu, changed if known.mtu != self.mtu else ""),
            setting("promiscuous", config.promiscuous, known.promiscuity > 0, why),
            setting(
                "receive_bytes", RECEIVE_BYTES, buffer, "net.core.rmem_max" if buffer < RECEIVE_BYTES else ""
            ),
        ]
        return told

    def close(self) -> None:
        for row in self.lanes:
            row["fd"] = state.NONE
        for one in self._sockets:
            one.close()
        self._sockets.clear()
