# SPDX-License-Identifier: Apache-2.0
"""A NIC or a veth through AF_XDP sockets, shared with the host: a program in the kernel takes out what is for VMs.

        NIC queue n ─► program ─┬─ the address of a VM ──► AF_XDP socket of lane n, no copy but the kernel's
                                └─ anything else ─► the host's stack ─► packet sockets: groups, near misses

It is a packet uplink, with that beside it: whatever the program leaves to the kernel comes up as there, and lanes
without a NIC queue of their own send and receive as there. So where XDP cannot be had, the uplink is a packet uplink,
and says why; a `mode` that was asked for by name is an error instead.

A program sees the bytes of a frame and nothing else, so tags and checksums must be among them (xdp_device.py). Where
that ends, or the device leaves, so does the steering, at the next look: all frames come by packet sockets from then on.

The device's own address stays the host's, whoever has a receive filter for it: packet sockets bring a copy, as ever.

Everything in the kernel is a descriptor of this process; whatever ends it leaves the device as it was, but for the tags.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import time
from collections import Counter
from collections.abc import Collection
from typing import Any, Protocol, cast

from vmq import ethtool
from vmq.abi import netdevice as nd
from vmq.abi import xdp
from vmq.abi.ethernet import ETH_HLEN, VLAN_HLEN
from vmq.config.records import Xdp
from vmq.dataplane import state
from vmq.errors import HostError, VmqError
from vmq.jit import at
from vmq.uplink import link, xdp_device
from vmq.uplink.base import setting
from vmq.uplink.nic_rules import NicRules
from vmq.uplink.packet import PacketUplink
from vmq.uplink.xdp_program import to_own_queue, to_pair
from vmq.uplink.xdp_socket import LISTS, XdpSocket, chunk_for
from vmq.uplink.xdp_steering import XdpSteering

LOG = logging.getLogger(__name__)
LOOK_SECONDS = 1.0  # between two looks at what others may have done to the device
_REMEDIES = {
    errno.EPERM: "Run with CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW",
    errno.EBUSY: "Stop who has a program or a socket there: ip link show NAME, bpftool net; or set kind to packet",
    errno.EEXIST: "Take the other program off: ip link set NAME xdp off; or set kind to packet",
    errno.EMFILE: "Raise the limit of open files, LimitNOFILE",
    errno.ENOBUFS: "Raise the limit of locked memory, LimitMEMLOCK, or run with CAP_IPC_LOCK",
    errno.EAFNOSUPPORT: "Use a kernel with CONFIG_XDP_SOCKETS; or set kind to packet",
    errno.EOPNOTSUPP: "Set mode and zero_copy to auto, or kind to packet",
}
_BIND = {"auto": 0, "on": xdp.XDP_ZEROCOPY, "off": xdp.XDP_COPY}


class OwnSocket(Protocol):
    """An AF_XDP socket on a NIC queue that is one VM's."""

    queue: int

    def fileno(self) -> int: ...

    def statistics(self) -> dict[str, int]: ...


class XdpUplink(PacketUplink):
    """Lanes on the AF_XDP sockets and packet sockets of one device."""

    kind = "xdp"

    def __init__(self, name: str, config: Xdp, worker_count: int) -> None:
        self.steering: XdpSteering | None = None
        self.sockets: list[XdpSocket] = []
        self._epolls: dict[int, select.epoll] = {}
        self._tags: xdp_device.Tags | None = None
        self._filters: Collection[tuple[int, int]] = ()
        self._wants_everything = False
        self._leads: dict[
            int, dict[tuple[int, int], int]
        ] = {}  # by VM port: filters that lead to something of its own
        self._own_sockets: list[OwnSocket] = []
        self._own_queues: dict[
            int, dict[int, int]
        ] = {}  # by VM port: its addresses, and the NIC queue they are to come by
        self.rules = NicRules(config.device)
        self._past: Counter[str] = Counter()  # what the kernel counted for those that are closed
        self._own, self._look = 0, 0.0  # the device's address; when it is looked at next
        self._why = self._why_mode = self._why_everything = ""
        self._everything = True
        super().__init__(name, config, worker_count)
        try:
            self._set_up(config)
        except BaseException:
            self.discard()
            raise

    def _set_up(self, config: Xdp) -> None:
        """Attach and open everything, or nothing: then say why, or fail if it was asked for by name."""
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
        known = link.describe(self.index)
        xdp_device.check(self.place(), config, known)
        self._own = known.mac if known else 0
        self._tags = xdp_device.Tags(self.index, self._sockets[0])
        self._leave_tags_in(self._tags)
        device = config.device
        try:
            now, most = ethtool.receive_queues(device)
            if config.mode == "generic":
                xdp_device.check_generic(self.place(), config, "")
            self.steering = XdpSteering(most, longest)
            self._why_mode = self.steering.attach(self.index, config.mode)
            if self.steering.mode == "generic":
                xdp_device.check_generic(self.place(), config, self._why_mode)
            self._open_sockets(config, chunk, min(now, len(self.lanes)))
            for queue, one in enumerate(self.sockets):
                self.steering.serve(queue, one.fileno())
            self._show_lanes()
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, "Set kind to packet").replace("NAME", device)
            wrong = f"{device} takes no AF_XDP: {error.strerror or error}"
            raise HostError(self.place("device"), wrong, remedy) from error
        except HostError:
            raise
        except VmqError as error:
            raise HostError(self.place("device"), error.wrong, error.remedy) from error

    def _leave_tags_in(self, tags: xdp_device.Tags) -> None:
        """Have the device leave VLAN tags in its frames; HostError if it does not."""
        try:
            tags.leave_in()
        except HostError as error:
            wrong = f"{self.config.device} takes VLAN tags out of its frames: {error.wrong}"
            remedy = f"{error.remedy}; or set kind to packet"
            raise HostError(self.place("device"), wrong, remedy) from error
        except OSError as error:
            wrong = f"{self.config.device} is gone: {error.strerror}"
            raise HostError(self.place("device"), wrong, "Check the device") from error

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
            self.sockets.append(XdpSocket(self.index, queue, chunk, flags, shown, self.memory(LISTS)))

    def _show_lanes(self) -> None:
        for row, one in zip(self.lanes, self.sockets, strict=False):
            self._epolls[one.queue] = both = select.epoll()
            both.register(int(row["fd"]), select.EPOLLIN)
            both.register(one.fileno(), select.EPOLLIN)
            row["kind"] = state.LANE_XDP

    def descriptors(self) -> list[int | None]:
        """A lane has two sockets to watch: an epoll instance is readable when one of them is."""
        return [
            self._epolls[lane].fileno() if lane in self._epolls else one
            for lane, one in enumerate(super().descriptors())
        ]

    def follow(self, filters: Collection[tuple[int, int]], everything: bool = False) -> None:
        super().follow(filters, everything)
        self._filters, self._wants_everything = filters, everything
        self._steer()

    def _steer(self) -> None:
        """Have the program, and what packet sockets take, follow the filters."""
        if self.steering is None:
            return
        led = {key: value for filters in self._leads.values() for key, value in filters.items()}
        self._why_everything = self.steering.follow(self._filters, self._own, led) or self._why
        if not self._why_everything and self._wants_everything:
            self._why_everything = "a receive filter or a VM takes frames to other addresses"
        if bool(self._why_everything) != self._everything:
            self._everything = not self._everything
            self._watch()

    @property
    def steers(self) -> bool:
        """Whether a program in the kernel finds the frames for VMs."""
        return self.steering is not None and bool(self.steering.mode)

    @property
    def mode(self) -> str:
        """How the program is attached; empty without."""
        return self.steering.mode if self.steering is not None else ""

    def pair(self, number: int, index: int) -> None:
        """The near end of the pair of VM port `number`, in the namespace of who asks."""
        if self.steering is not None:
            self.steering.pair(number, index)

    def lead(self, number: int, filters: Collection[tuple[int, int]]) -> None:
        """Lead frames to these filters into the pair of a VM port, and no others."""
        self._leads[number] = dict.fromkeys(filters, to_pair(number))
        self._steer()

    def lead_own(self, number: int, filters: Collection[tuple[int, int]], queue: int, longest: int) -> None:
        """Lead frames to these filters to a VM port's own socket on a NIC queue, and no others; none longer, without its tag."""
        self._leads[number] = dict.fromkeys(filters, to_own_queue(queue, longest))
        self._own_queues[number] = {mac: queue for mac, _ in filters}
        self._steer()
        self._rule()

    def unlead(self, number: int) -> None:
        """Frames come by our own sockets again, from when no processor runs the program with what it read before."""
        self._leads.pop(number, None)
        if self._own_queues.pop(number, None) is not None:
            self._rule()
        self._steer()

    def _rule(self) -> None:
        """Have the NIC's rules follow."""
        self.rules.follow({mac: queue for one in self._own_queues.values() for mac, queue in one.items()})

    def join(self, one: OwnSocket) -> None:
        """A VM's own socket on a NIC queue, before a filter leads there."""
        if self.steering is not None:
            self.steering.serve_own(one.queue, one.fileno())
        self._own_sockets.append(one)

    def part(self, one: OwnSocket) -> None:
        """It is about to be closed; nothing leads there any more."""
        if one in self._own_sockets:
            self._own_sockets.remove(one)
            self._past.update(one.statistics())
            if self.steering is not None:
                self.steering.forget_own(one.queue)

    def tick(self) -> None:
        """See now and then whether the device is there, leaves tags in and has its address still."""
        if self.steering is None or not self.steering.mode or time.monotonic() < self._look:
            return
        self._look = time.monotonic() + LOOK_SECONDS
        with contextlib.suppress(OSError):  # then the next time
            self._look_after(link.describe(self.index))

    def _look_after(self, known: link.Link | None) -> None:
        try:
            if known is None:
                wrong = f"{self.config.device} is gone, or in another network namespace"
                raise HostError(self.place("device"), wrong, "Bring it back, and restart vmq")
            if self._tags is not None:
                self._leave_tags_in(self._tags)
        except HostError as error:
            self._retire(f"{error.wrong}. {error.remedy}")
            return
        if known.mac != self._own:
            self._own = known.mac
            self._steer()

    def _retire(self, why: str) -> None:
        """Steer no more, as long as it is open: what comes from now on, comes by packet sockets."""
        LOG.warning("uplink %s: %s; it steers again when vmq is started anew", self.name, why)
        self._why = self._why_everything = why
        if self.steering is not None:
            self.steering.detach()
        if not self._everything:
            self._everything = True
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
        each = [one.statistics() for one in (*self.sockets, *self._own_sockets)]
        return {name: self._past[name] + sum(one[name] for one in each) for name in (each[0] if each else ())}

    def status(self) -> dict[str, Any]:
        told = super().status()
        if told["state"] == "gone":
            return told
        told["verdicts"] = self.steering.verdicts() if self.steering else {}
        told["statistics"] = self._statistics()
        told["queues"] = len(self.sockets) or told["queues"]
        with contextlib.suppress(OSError):  # it went at this moment
            told["settings"] += self._settings(link.name_of(self.index, self._sockets[0]))
        return told

    def _settings(self, device: str) -> list[dict[str, Any]]:
        """What was left to us has no requested value, but where the better way could not be had."""
        config = cast("Xdp", self.config)
        prepared = setting("prepared", config.prepared, config.prepared)
        if self.steering is None or not self.steering.mode:
            off = setting("zero_copy", None, "off", "packet sockets have none")
            return [
                setting("mode", config.mode, "packet sockets", self._why),
                off,
                prepared,
                *self._stripping(),
            ]
        zero = "on" if all(one.zero_copy() for one in self.sockets) else "off"
        asked = None if config.mode == "auto" and not self._why_mode else config.mode
        watched = self._why_everything or "nobody takes frames to other addresses than the filters'"
        count, workers, now = len(self.sockets), len(self.lanes), ethtool.receive_queues(device)[0]
        fewer = f"one a worker; frames of the others are copied up: ethtool -L {device} combined {workers}"
        return [
            setting("mode", asked, self.steering.mode, self._why_mode or "the driver runs the program"),
            setting(
                "zero_copy",
                None if config.zero_copy == "auto" else config.zero_copy,
                zero,
                "the driver can" if zero == "on" else "the driver has none, or it was not asked for",
            ),
            setting("nic_queues", now, count, fewer if count < now else ""),
            setting("watched", None, "everything" if self._everything else "groups", watched),
            prepared,
            *self._stripping(),
        ]

    def _stripping(self) -> list[dict[str, Any]]:
        """What has become of the device's VLAN offload, if it is other than it was."""
        if self._tags is None or not self._tags.ours():
            return []
        out = self._tags.taken_out()
        why = "somebody switched it on" if out else "a program sees only tags that are in the frame"
        return [setting("vlan_stripping", None, ", ".join(out) or "off", why)]

    def _disengage(self) -> None:
        """Take the program off the device, then close what it led to."""
        self.rules.close()
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
        if self._tags is not None:
            self._tags.put_back()
            self._tags = None

    def close(self) -> None:
        self._disengage()
        super().close()
