# SPDX-License-Identifier: Apache-2.0
"""Network devices of a guest, as QEMU's command line wants them.

`vhost_user` is the one under test. `cable` joins two guests without anything of ours between them (QEMU's stream
back-end on a pair of sockets), which proves a guest before a failure is blamed on the switch. `user` is QEMU's own
small network with DHCP and TFTP.

`vectors=0`: QEMU 7.2 under emulation (no KVM) crashes when a vhost-user device with MSI-X starts.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Nic:
    """One virtio-net device. In `arguments` `{id}` stands for the name that the guest's command line gives it."""

    mac: str
    arguments: tuple[str, ...]
    properties: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    descriptors: tuple[int, ...] = field(default=())

    def command_line(self, number: int, netboot: bool) -> list[str]:
        name = f"nic{number}"
        device = [
            "virtio-net-pci",
            f"netdev={name}",
            f"id={name}-device",
            f"mac={self.mac}",
            *self.properties,
        ]
        # Without its ROM a device costs the firmware nothing; with it, it can boot the guest.
        device.append(f"bootindex={number}" if netboot else "romfile=")
        return [*(argument.format(id=name) for argument in self.arguments), "-device", ",".join(device)]


def vhost_user(
    path: Path | str,
    mac: str,
    *addresses: str,
    queues: int = 1,
    server: bool = False,
    reconnect: int = 1,
    **properties: str | int,
) -> Nic:
    """A vhost-user front-end: QEMU connects to `path`, or with `server` listens there until a back-end comes.

    `addresses` are given to the interface at boot. `properties` are the device's own: `host_mtu=9000`, `packed="on"`.
    """
    role = "server=on" if server else f"reconnect={reconnect}"
    arguments = (
        "-chardev",
        f"socket,id={{id}}-socket,path={path},{role}",
        "-netdev",
        f"vhost-user,id={{id}},chardev={{id}}-socket,queues={queues}",
    )
    wanted: dict[str, str | int] = {"vectors": 0, **({"mq": "on"} if queues > 1 else {}), **properties}
    return Nic(mac, arguments, tuple(f"{key}={value}" for key, value in wanted.items()), addresses)


@contextmanager
def cable(first: tuple[str, ...], second: tuple[str, ...]) -> Iterator[tuple[Nic, Nic]]:
    """Two devices joined by a wire; each end is a MAC and the addresses of its interface."""
    ends = socket.socketpair()
    try:
        yield _cable_end(first, ends[0]), _cable_end(second, ends[1])
    finally:
        for end in ends:
            end.close()


def _cable_end(end: tuple[str, ...], plug: socket.socket) -> Nic:
    mac, *addresses = end
    arguments = ("-netdev", f"stream,id={{id}},addr.type=fd,addr.str={plug.fileno()}")
    return Nic(mac, arguments, (), tuple(addresses), (plug.fileno(),))


def user(mac: str, *addresses: str, **options: str | int) -> Nic:
    """QEMU's own network: 10.0.2.2 is the host. Options as QEMU names them: `tftp=FOLDER`, `bootfile=NAME`."""
    text = "".join(f",{key}={value}" for key, value in options.items())
    return Nic(mac, ("-netdev", f"user,id={{id}}{text}"), (), addresses)
