# SPDX-License-Identifier: Apache-2.0
"""A TAP device: the host's own stack, or a bridge of it, is at the other end.

One queue a lane, each a descriptor of /dev/net/tun in non-blocking mode. Frames carry the twelve-byte virtio header in
little-endian order; TUNSETOFFLOAD 0 asks the host's stack to finish checksums and segments itself. Behind the lanes' there may
be queues of single VMs, filled by a program in the kernel (tap_steering.py): so a device that we make has several queues
(IFF_MULTI_QUEUE), and one that we find may have one only, if one lane is enough. A device that we made goes away with its last descriptor unless it is to persist; one that was there
before is taken out of the bridge it was put into, and stays. linux-if_tun.h
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from vmq import linux
from vmq.abi.ethernet import ETH_HLEN, VLAN_HLEN
from vmq.abi.linux import (
    IFF_MULTI_QUEUE,
    IFF_NO_PI,
    IFF_TAP,
    IFF_VNET_HDR,
    TUNGETIFF,
    TUNSETIFF,
    TUNSETOFFLOAD,
    TUNSETPERSIST,
    TUNSETVNETHDRSZ,
    TUNSETVNETLE,
)
from vmq.abi.netdevice import ARPHRD_ETHER, IFF_MASK, TUNGETVNETHDRSZ
from vmq.abi.virtio import net_hdr
from vmq.config.records import Tap
from vmq.dataplane import state
from vmq.errors import HostError
from vmq.uplink import link
from vmq.uplink.base import ALIGN, check_device, refusing, setting
from vmq.uplink.device import DeviceUplink
from vmq.uplink.tap_steering import TapSteering

CLONE = "/dev/net/tun"
FEATURES = {"tap": IFF_TAP, "no_pi": IFF_NO_PI, "vnet_hdr": IFF_VNET_HDR, "multi_queue": IFF_MULTI_QUEUE}
READ_MOST = 1 << 14  # frames of nobody: more than a queue of any length that is used
LOOK_SECONDS = 1.0  # between two looks at what others have of the device
LEAD = 4  # so that the frame behind the header begins on a boundary of 16 bytes

_OPEN = {
    errno.ENOENT: "Load the module: modprobe tun",
    errno.ENODEV: "Load the module: modprobe tun",
    errno.EACCES: f"Run as root, or allow this user to open {CLONE}",
    errno.EPERM: f"Run as root, or allow {CLONE} in the device policy of the service",
}
_ATTACH = {
    errno.EPERM: "Run with CAP_NET_ADMIN, or make the device for this user: ip tuntap add NAME mode tap user USER",
    errno.EBUSY: "Stop the program that has the device open, or choose another name",
    errno.E2BIG: "Use fewer processors: a TAP has at most 256 queues",
}
_BRIDGE = {
    errno.EBUSY: "Take the device out of the bridge it is in: ip link set NAME nomaster",
    errno.EOPNOTSUPP: "Name a bridge",
    errno.EPERM: "Run with CAP_NET_ADMIN",
    errno.ENODEV: "Make the bridge: ip link add NAME type bridge",
}


class TapUplink(DeviceUplink):
    """Lanes on the queues of one TAP."""

    kind = "tap"
    config: Tap

    def __init__(self, name: str, config: Tap, worker_count: int) -> None:
        super().__init__(name, config, worker_count)
        self._joined = False
        self._made = False
        self.several = True  # whether the device has more than one queue
        self.shared = False  # whether somebody else has, or had, queues of it: numbers change
        self._look = 0.0  # when that is looked at next
        self.steering: TapSteering | None = None
        self._own: list[int] = []  # descriptors of VMs' queues, by their number behind the lanes'
        self._free: set[int] = set()  # numbers of those that are nobody's
        if config.bridge is not None:
            check_device(self.place("bridge"), config.bridge)
        try:
            self._open(worker_count)
            self._configure()
            self._buffers()
        except BaseException:
            self.discard()
            raise

    @property
    def _flags(self) -> int:
        return IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if self.several else 0)

    def _open(self, worker_count: int) -> None:
        device, where = self.config.device, self.place("device")
        before = link.index_of(device)
        if not before and not self.config.create:
            raise HostError(
                where,
                f"there is no device {device}",
                f"Set create = true, or: ip tuntap add {device} mode tap",
            )
        known = link.describe(before) if before else None
        if known is not None and known.kind != ARPHRD_ETHER:
            raise HostError(where, f"{device} is no Ethernet device", "Choose another name")
        if known is not None and known.tap_queues:
            raise HostError(
                where, f"cannot open the TAP {device}: somebody has it open", _ATTACH[errno.EBUSY]
            )
        remedies = {
            **_ATTACH,
            errno.EINVAL: f"Choose another name: {device} is no TAP"
            + (", or one with a single queue" if worker_count > 1 else ""),
        }
        for row in self.lanes:
            with refusing(where, f"cannot open {CLONE}", _OPEN, _OPEN[errno.ENOENT]):
                row["fd"] = os.open(CLONE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            with refusing(where, f"cannot open the TAP {device}", remedies, remedies[errno.EINVAL]):
                self._attach(int(row["fd"]), alone=worker_count == 1)
                self._made = not before
                TapSteering.detach(int(row["fd"]))  # one of an engine that crashed
                fcntl.ioctl(int(row["fd"]), TUNSETVNETHDRSZ, _int(net_hdr.itemsize))
                fcntl.ioctl(int(row["fd"]), TUNSETVNETLE, _int(1))
                fcntl.ioctl(int(row["fd"]), TUNSETOFFLOAD, 0)
        self.index = link.index_of(device)

    def _attach(self, descriptor: int, *, alone: bool = False) -> None:
        """Make a descriptor the next queue of the device; `alone`: one is enough, where the device has no more."""
        device = self.config.device
        try:
            fcntl.ioctl(descriptor, TUNSETIFF, link.interface_request(device, self._flags))
        except OSError as error:
            if not alone or error.errno != errno.EINVAL:
                raise
            self.several = False
            fcntl.ioctl(descriptor, TUNSETIFF, link.interface_request(device, self._flags))

    def _configure(self) -> None:
        device, config = self.config.device, self.config
        known = link.describe(self.index)
        if known is None:
            raise HostError(self.place("device"), f"{device} went away", "Do not remove it while vmq runs")
        self._fit(known)
        if config.bridge is not None:
            self._join(config.bridge, known)
        with refusing(self.place("device"), f"cannot bring {device} up", _ATTACH, "Run with CAP_NET_ADMIN"):
            link.set_up(device)
        if self._made and config.persist:
            with refusing(
                self.place("persist"), f"cannot make {device} persist", _ATTACH, _ATTACH[errno.EPERM]
            ):
                fcntl.ioctl(int(self.lanes[0]["fd"]), TUNSETPERSIST, 1)

    def _join(self, bridge: str, known: link.Link) -> None:
        master = link.index_of(bridge)
        if not master:
            raise HostError(
                self.place("bridge"),
                f"there is no bridge {bridge}",
                f"Make it: ip link add {bridge} type bridge",
            )
        if known.master == master:
            return
        what = f"{self.config.device} cannot join {bridge}"
        with refusing(self.place("bridge"), what, _BRIDGE, "Name a bridge"):
            link.join_bridge(bridge, self.index)
        self._joined = True

    def _buffers(self) -> None:
        # One byte more than the longest frame: a read that fills the buffer tells a longer one.
        size = LEAD + net_hdr.itemsize + self.mtu + ETH_HLEN + VLAN_HLEN + 1
        size = (size + ALIGN - 1) & ~(ALIGN - 1)
        for row in self.lanes:
            row["kind"] = state.LANE_TAP
            row["receives"] = 1
            row["buffers"] = self.memory(state.BURST * size) + LEAD
            row["buffer_size"] = size

    def status(self) -> dict[str, Any]:
        config, known = self.config, link.describe(self.index) if self.index else None
        told: dict[str, Any] = {"kind": self.kind, "device": config.device, "state": "gone", "settings": []}
        if known is None or int(self.lanes[0]["fd"]) == state.NONE:
            return told
        request, size = link.interface_request(""), bytearray(4)
        try:
            fcntl.ioctl(int(self.lanes[0]["fd"]), TUNGETIFF, request)
            fcntl.ioctl(int(self.lanes[0]["fd"]), TUNGETVNETHDRSZ, size)
        except OSError:  # the device was removed under us
            return told
        bridge = link.describe(known.master) if known.master else None
        told |= {"state": known.state if known.up else "down", "mtu": known.mtu, "ifindex": known.index}
        told |= {"bridge": bridge.name if bridge else None, "queues": len(self.lanes) + len(self._own)}
        told["verdicts"] = self.steering.verdicts() if self.steering else {}
        changed = f"the device changed after vmq started; frames above {self.mtu} are dropped"
        told["settings"] = [
            setting("device", config.device, link.request_name(request)),
            setting("mtu", config.mtu, known.mtu, changed if known.mtu != self.mtu else ""),
            setting("bridge", config.bridge, told["bridge"]),
            setting("features", _words(self._flags), _words(link.request_value(request) & IFF_MASK)),
            setting("header", net_hdr.itemsize, int.from_bytes(size, "little")),
        ]
        return told

    # --- queues of VMs -----------------------------------------------------------------------------------------

    def own_queue(self) -> tuple[int, int, bool]:
        """A queue that nothing leads to: its number in the device, its descriptor, and whether nothing ever has. OSError without."""
        ordinary = len(self.lanes)
        if self.steering is None:
            steering = TapSteering(ordinary)
            try:
                steering.attach(int(self.lanes[0]["fd"]))
                linux.grace_period()  # who did not see the program has chosen among the lanes' queues
            except BaseException:
                steering.close()
                raise
            self.steering = steering
        fresh = not self._free
        if fresh:
            descriptor = os.open(CLONE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                self._attach(descriptor)
                self._count_queues(len(self.lanes) + len(self._own) + 1)
            except BaseException:
                os.close(descriptor)
                raise
            self._free.add(len(self._own))
            self._own.append(descriptor)
        place = self._free.pop()
        return ordinary + place, self._own[place], fresh

    def lead(self, queues: Mapping[tuple[int, int], int]) -> None:
        """Frames to these (address, VLAN id) come by queues of these numbers, all others by the lanes'. OSError: too many."""
        if self.steering is not None:
            self.steering.follow(queues)

    def give_back(self, number: int) -> None:
        """A queue is nobody's any more: nothing leads to it, and what stands in it goes to nobody."""
        place = number - len(self.lanes)
        if place < len(self._own):
            with contextlib.suppress(OSError):
                for _ in range(READ_MOST):
                    os.read(self._own[place], state.FRAME_MAX)
            self._free.add(place)

    def tick(self) -> None:
        """See whether all queues of the device are ours, where numbers of queues count."""
        if self.steering is None or time.monotonic() < self._look:
            return
        self._look = time.monotonic() + LOOK_SECONDS
        with contextlib.suppress(OSError):
            self._count_queues(len(self.lanes) + len(self._own))

    def _count_queues(self, ours: int) -> None:
        """OSError if the device has others. From then on nobody knows the number of a queue, also when they are closed again."""
        known = link.describe(self.index)
        self.shared = self.shared or known is None or known.tap_queues != ours
        if self.shared:
            raise OSError(errno.EBUSY, "somebody else has queues of the TAP")

    def _close_own(self) -> None:
        descriptor = int(self.lanes[0]["fd"])
        if self.steering is not None:
            if descriptor != state.NONE:
                self.steering.detach(descriptor)
            self.steering.close()
            self.steering = None
        while self._own:
            os.close(self._own.pop())
        self._free.clear()

    def send(self, frame: bytes) -> None:
        descriptor = int(self.lanes[0]["fd"])
        if descriptor != state.NONE:
            with contextlib.suppress(OSError):
                os.write(descriptor, bytes(net_hdr.itemsize) + frame)

    def discard(self) -> None:
        descriptor = int(self.lanes[0]["fd"])
        if self._made and self.config.persist and descriptor != state.NONE:
            with contextlib.suppress(OSError):
                fcntl.ioctl(descriptor, TUNSETPERSIST, 0)
        super().discard()

    def close(self) -> None:
        if self._joined and self.config.bridge is not None:
            self._joined = False
            with contextlib.suppress(OSError):
                link.leave_bridge(self.config.bridge, self.index)
        self._close_own()
        super().close()


def _words(flags: int) -> list[str]:
    return [word for word, flag in FEATURES.items() if flags & flag]


def _int(value: int) -> bytes:
    return np.int32(value).tobytes()
