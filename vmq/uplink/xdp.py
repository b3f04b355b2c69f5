# SPDX-License-Identifier: Apache-2.0
"""A NIC or a veth through AF_XDP sockets, shared with the host: a program in the kernel takes out what is for VMs.

        NIC queue n ─► program ─┬─ the address of a VM ──► AF_XDP socket of lane n, no copy but the kernel's
                                └─ anything else ─► the host's stack ─► packet sockets: groups, near misses

It is a packet uplink, with that beside it: whatever the program leaves to the kernel comes up as there, and lanes
without a NIC queue of their own send and receive as there. So where XDP cannot be had, the uplink is a packet uplink,
and says why; a `mode` that was asked for by name is an error instead.

A program sees the bytes of a frame and nothing else, so tags must be among them. The NIC is told to leave them in, and
told to take them out again at the end. A veth hands over tags beside the frame if its other end has tx-vlan-offload,
and checksums unfinished if that has tx-checksumming: nobody at this end can see that, so the operator vouches for it
(`prepared`). Devices on top of others (bonds, bridges, VLANs) get their frames behind the kernel's own untagging.

Everything in the kernel is a descriptor of this process; whatever ends it leaves the device as it was, but for the tags.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Collection
from typing import Any, cast

from vmq.abi import netdevice as nd
from vmq.abi import xdp
from vmq.abi.ethernet import ETH_HLEN, VLAN_HLEN
from vmq.config.records import Xdp
from vmq.dataplane import state
from vmq.errors import HostError, VmqError
from vmq.jit import at
from vmq.uplink import link
from vmq.uplink.base import setting
from vmq.uplink.packet import PacketUplink
from vmq.uplink.xdp_socket import CHUNKS, XdpSocket, chunk_for
from vmq.uplink.xdp_steering import XdpSteering

STRAIGHT = ("", "veth", "tun")  # devices whose frames a program sees before the kernel has touched them
_REMEDIES = {
    errno.EPERM: "Run with CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW",
    errno.EBUSY: "Stop who has a program or a socket there: ip link show NAME, bpftool net; or set kind to packet",
    errno.EEXIST: "Take the other program off: ip link set NAME xdp off; or set kind to packet",
    errno.ENOBUFS: "Raise the limit of locked memory, LimitMEMLOCK, or run with CAP_IPC_LOCK",
    errno.EAFNOSUPPORT: "Use a kernel with CONFIG_XDP_SOCKETS; or set kind to packet",
    errno.EOPNOTSUPP: "Set mode and zero_copy to auto, or kind to packet",
}
_BIND = {"auto": 0, "on": xdp.XDP_ZEROCOPY, "off": xdp.XDP_COPY}


class XdpUplink(PacketUplink):
    """Lanes on the AF_XDP sockets and packet sockets of one device."""

    kind = "xdp"

    def __init__(self, name: str, config: Xdp, worker_count: int) -> None:
        self.steering: XdpSteering | None = None
        self.sockets: list[XdpSocket] = []
        self._epolls: dict[int, select.epoll] = {}
        self._tags = False  # we have told the NIC to leave them in
        self._why = self._why_mode = self._why_everything = ""
        self._everything = True
        self._nic_queues = 0
        super().__init__(name, config, worker_count)
        try:
            self._set_up(config)
        except BaseException:
            self.discard()
            raise

    def _set_up(self, config: Xdp) -> None:
        """Attach and open everything, or nothing: then say why, or fail if it was asked for by name."""
        self._nic_queues = link.receive_queues(config.device)
        try:
            self._engage(config)
        except HostError as error:
            self._disengage()
            if config.mode != "auto":
                raise
            self._why = f"{error.wrong}. {error.remedy}"

    def _engage(self, config: Xdp) -> None:
        longest = self.mtu + ETH_HLEN + VLAN_HLEN
        chunk = chunk_for(longest)
        if chunk is None:
            raise HostError(
                self.place("mtu"), f"no buffer takes frames of {longest} bytes", "Choose a smaller MTU"
            )
        self._check_device(config)
        self._leave_tags_in(config.device)
        count = min(self._nic_queues, len(self.lanes))
        device = config.device
        try:
            self.steering = XdpSteering(self._nic_queues, longest)
            self._why_mode = self.steering.attach(self.index, config.mode)
            self._open_sockets(config, chunk, count)
            for queue, one in enumerate(self.sockets):
                self.steering.serve(queue, one.fileno())
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, "Set kind to packet").replace("NAME", device)
            wrong = f"{device} takes no AF_XDP: {error.strerror or error}"
            raise HostError(self.place("device"), wrong, remedy) from error
        except VmqError as error:
            raise HostError(self.place("device"), error.wrong, error.remedy) from error
        for row, one in zip(self.lanes, self.sockets, strict=False):
            self._epolls[one.queue] = both = select.epoll()
            both.register(int(row["fd"]), select.EPOLLIN)
            both.register(one.fileno(), select.EPOLLIN)
            row["kind"] = state.LANE_XDP

    def _check_device(self, config: Xdp) -> None:
        known = link.describe(self.index)
        kind, device = known.virtual if known else "", config.device
        if kind not in STRAIGHT:
            raise HostError(
                self.place("device"),
                f"{device} is a {kind}: a program sees its frames without their VLAN tags",
                "Name the NIC below it, or set kind to packet",
            )
        if kind == "veth" and not config.prepared:
            raise HostError(
                self.place("prepared"),
                f"{device} is a veth, whose other end may leave VLAN tags and checksums beside its frames",
                "There: ethtool -K PEER txvlan off tx off; here: prepared = true",
            )

    def _leave_tags_in(self, device: str) -> None:
        """Have the NIC leave VLAN tags in its frames; HostError if it does not."""
        try:
            if not link.takes_tags_out(device):
                return
            link.take_tags_out(device, wanted=False)
            self._tags = not link.takes_tags_out(device)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and not self._tags:
                return  # a driver without such a switch takes nothing out
        if not self._tags:
            raise HostError(
                self.place("device"),
                f"{device} takes VLAN tags out of its frames and cannot be told not to",
                "Set kind to packet",
            )

    def _open_sockets(self, config: Xdp, chunk: int, count: int) -> None:
        steering = cast("XdpSteering", self.steering)
        # The kernel's own run of the program, behind the driver, has no frame that the NIC could have written to us.
        flags = xdp.XDP_COPY if steering.mode == "generic" else _BIND[config.zero_copy]
        if steering.mode == "generic" and config.zero_copy == "on":
            raise OSError(errno.EOPNOTSUPP, "no zero-copy in generic mode")
        for queue in range(count):
            row = self.lanes[queue]
            row["xdp"] = self.memory(state.xdp_socket.itemsize)
            shown = at(int(row["xdp"]), 1, state.xdp_socket)[0]
            self.sockets.append(XdpSocket(self.index, queue, chunk, flags, shown, self.memory(8 * CHUNKS)))

    def descriptors(self) -> list[int | None]:
        """A lane has two sockets to watch: an epoll instance is readable when one of them is."""
        return [
            self._epolls[lane].fileno() if lane in self._epolls else one
            for lane, one in enumerate(super().descriptors())
        ]

    def follow(self, filters: Collection[tuple[int, int]], everything: bool = False) -> None:
        super().follow(filters, everything)
        if self.steering is None:
            return
        self._why_everything = self.steering.follow(filters)
        if not self._why_everything and everything:
            self._why_everything = "a receive filter or a VM takes frames to other addresses"
        if bool(self._why_everything) != self._everything:
            self._everything = not self._everything
            self._watch()

    def _watch(self) -> None:
        """Choose what the packet sockets take of what the kernel keeps."""
        for one in self._sockets:
            if self._everything:
                one.setsockopt(socket.SOL_SOCKET, nd.SO_DETACH_FILTER, 0)
            elif self.steering is not None:
                one.setsockopt(socket.SOL_SOCKET, nd.SO_ATTACH_BPF, self.steering.watcher.fd)

    def lost(self) -> int:
        counted = self._statistics()
        return super().lost() + counted.get("rx_dropped", 0) + counted.get("rx_ring_full", 0)

    def _statistics(self) -> dict[str, int]:
        each = [one.statistics() for one in self.sockets]
        return {name: sum(one[name] for one in each) for name in (each[0] if each else ())}

    def status(self) -> dict[str, Any]:
        told = super().status()
        if told["state"] == "gone":
            return told
        told["verdicts"] = self.steering.verdicts() if self.steering else {}
        told["statistics"] = self._statistics()
        told["queues"] = len(self.sockets) or told["queues"]
        told["settings"] += self._settings()
        return told

    def _settings(self) -> list[dict[str, Any]]:
        """What was left to us has no requested value, but where the better way could not be had."""
        config = cast("Xdp", self.config)
        prepared = setting("prepared", config.prepared, config.prepared)
        if self.steering is None:
            off = setting("zero_copy", None, "off", "packet sockets have none")
            return [setting("mode", config.mode, "packet sockets", self._why), off, prepared]
        zero = "on" if all(one.zero_copy() for one in self.sockets) else "off"
        asked = None if config.mode == "auto" and not self._why_mode else config.mode
        watched = self._why_everything or "nobody takes frames to other addresses than the filters'"
        count, workers = len(self.sockets), len(self.lanes)
        fewer = (
            f"one a worker; frames of the others are copied up: ethtool -L {config.device} combined {workers}"
        )
        rows = [
            setting("mode", asked, self.steering.mode, self._why_mode or "the driver runs the program"),
            setting(
                "zero_copy",
                None if config.zero_copy == "auto" else config.zero_copy,
                zero,
                "the driver can" if zero == "on" else "the driver has none, or it was not asked for",
            ),
            setting("nic_queues", self._nic_queues, count, fewer if count < self._nic_queues else ""),
            setting("watched", None, "everything" if self._everything else "groups", watched),
            prepared,
        ]
        if self._tags:
            why = "switched off while vmq runs: a program sees only tags that are in the frame"
            rows.append(setting("vlan_stripping", None, "off", why))
        return rows

    def _disengage(self) -> None:
        """Take the program off the device, then close what it led to."""
        if self.steering is not None:
            self.steering.close()
            self.steering = None
        for row in self.lanes:
            if row["kind"] == state.LANE_XDP:
                row["kind"], row["xdp"] = state.LANE_PACKET, 0
        while self._epolls:
            self._epolls.popitem()[1].close()
        while self.sockets:
            self.sockets.pop().close()
        if self._tags:
            self._tags = False
            with contextlib.suppress(OSError):  # with the device its setting went too
                link.take_tags_out(self.config.device, wanted=True, by=self._sockets[0])

    def close(self) -> None:
        self._disengage()
        super().close()
