# SPDX-License-Identifier: Apache-2.0
"""A TAP device: the host's own stack, or a bridge of it, is at the other end.

One queue a lane (IFF_MULTI_QUEUE with several), each a descriptor of /dev/net/tun in non-blocking mode. Frames carry
the twelve-byte virtio header in little-endian order; TUNSETOFFLOAD 0 asks the host's stack to finish checksums and
segments itself. A device that we made goes away with its last descriptor unless it is to persist; one that was there
before is taken out of the bridge it was put into, and stays. linux-if_tun.h
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import Any

import numpy as np

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

CLONE = "/dev/net/tun"
FEATURES = {"tap": IFF_TAP, "no_pi": IFF_NO_PI, "vnet_hdr": IFF_VNET_HDR, "multi_queue": IFF_MULTI_QUEUE}
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
        return IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if len(self.lanes) > 1 else 0)

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
        remedies = {
            **_ATTACH,
            errno.EINVAL: f"Choose another name: {device} is no TAP, or one with "
            + ("a single queue" if worker_count > 1 else "several queues"),
        }
        for row in self.lanes:
            with refusing(where, f"cannot open {CLONE}", _OPEN, _OPEN[errno.ENOENT]):
                row["fd"] = os.open(CLONE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            with refusing(where, f"cannot open the TAP {device}", remedies, remedies[errno.EINVAL]):
                fcntl.ioctl(int(row["fd"]), TUNSETIFF, link.interface_request(device, self._flags))
                self._made = not before
                fcntl.ioctl(int(row["fd"]), TUNSETVNETHDRSZ, _int(net_hdr.itemsize))
                fcntl.ioctl(int(row["fd"]), TUNSETVNETLE, _int(1))
                fcntl.ioctl(int(row["fd"]), TUNSETOFFLOAD, 0)
        self.index = link.index_of(device)

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
        told |= {"bridge": bridge.name if bridge else None, "queues": len(self.lanes)}
        changed = f"the device changed after vmq started; frames above {self.mtu} are dropped"
        told["settings"] = [
            setting("device", config.device, link.request_name(request)),
            setting("mtu", config.mtu, known.mtu, changed if known.mtu != self.mtu else ""),
            setting("bridge", config.bridge, told["bridge"]),
            setting("features", _words(self._flags), _words(link.request_value(request) & IFF_MASK)),
            setting("header", net_hdr.itemsize, int.from_bytes(size, "little")),
        ]
        return told

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
        super().close()


def _words(flags: int) -> list[str]:
    return [word for word, flag in FEATURES.items() if flags & flag]


def _int(value: int) -> bytes:
    return np.int32(value).tobytes()
