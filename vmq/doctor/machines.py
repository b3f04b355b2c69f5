# SPDX-License-Identifier: Apache-2.0
"""Virtual machines as whoever started them described them: a QEMU command line (qemu.py), a libvirt domain (libvirt.py).

Both become the same record, a Machine with its network devices. A property that is not said is None where QEMU's own
default depends on its version, else that default. From /proc come, for a process that runs: where its vCPU threads may
run, and on which NUMA nodes its memory lies, as far as we may look.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vmq.config.forms import cpu_list
from vmq.doctor import qemu

VCPU = re.compile(r"CPU \d+/")  # QEMU's names of vCPU threads: "CPU 0/KVM", "CPU 0/TCG"
SHARED_FILE = re.compile(r"file=(?:/memfd:|/dev/hugepages|/dev/shm)")  # of guest memory in numa_maps
NODE_PAGES = re.compile(r"\bN(\d+)=(\d+)")


@dataclass(frozen=True)
class Nic:
    """One virtio network device of a guest and its back-end."""

    backend: str = ""  # vhost-user, tap, user, …
    socket: str | None = None
    server: bool = False  # QEMU listens
    mac: str | None = None
    queues: int = 1
    multiqueue: bool = False  # mq=on
    vectors: int | None = None
    rx_queue_size: int = qemu.RX_QUEUE_SIZE
    mtu: int | None = None
    mergeable: bool = True
    standby: bool = False  # a passthrough device is to take over (failover)


@dataclass(frozen=True)
class Machine:
    """A virtual machine. `where` names what was read."""

    name: str
    where: str
    shared: bool | None = None  # its memory; None: not told
    vcpus: int = 1
    nics: tuple[Nic, ...] = ()
    passthrough: bool = False  # it has a device of the host's
    pinned: tuple[tuple[int, ...], ...] = ()  # per vCPU thread: where it may run
    nodes: Mapping[int, int] = field(default_factory=dict)  # pages of guest memory by NUMA node


def of_words(words: list[str], where: str) -> Machine:
    """The machine of a QEMU command line."""
    said = qemu.read(words)
    return Machine(
        name=said.name or where,
        where=where,
        shared=said.shared,
        vcpus=said.vcpus,
        passthrough=said.passthrough,
        nics=tuple(_nic(device, said) for device in said.devices),
    )


def _nic(device: Mapping[str, str], said: qemu.CommandLine) -> Nic:
    netdev = said.netdevs.get(device.get("netdev", ""), {})
    chardev = said.chardevs.get(netdev.get("chardev", ""), {})
    return Nic(
        backend=netdev.get("type", ""),
        socket=chardev.get("path"),
        server=qemu.is_on(chardev.get("server", "off")),
        mac=device["mac"].lower() if "mac" in device else None,
        queues=qemu.number(netdev.get("queues")) or 1,
        multiqueue=qemu.is_on(device.get("mq", "off")),
        vectors=qemu.number(device.get("vectors")),
        rx_queue_size=qemu.number(device.get("rx_queue_size")) or qemu.RX_QUEUE_SIZE,
        mtu=qemu.number(device.get("host_mtu")) or None,
        mergeable=qemu.is_on(device.get("mrg_rxbuf", "on")),
        standby=qemu.is_on(device.get("failover", "off")),
    )


def processes(proc: Path) -> Iterator[Machine]:
    """The QEMU processes that run."""
    for place in sorted(proc.glob("[0-9]*")):
        try:
            words = (place / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        except OSError:  # it ended meanwhile, or is another user's
            continue
        if qemu.is_program(words[0]):
            machine = of_words(words[1:], f"{place.name} (QEMU process)")
            yield replace(machine, pinned=tuple(_threads(place)), nodes=_nodes(place))


def _threads(place: Path) -> Iterator[tuple[int, ...]]:
    """Where each vCPU thread may run."""
    for task in sorted(place.glob("task/*")):
        try:
            name, status = (task / "comm").read_text(), (task / "status").read_text()
        except OSError:
            continue
        allowed = re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE)
        if VCPU.match(name) and allowed:
            yield cpu_list(allowed[1])


def _nodes(place: Path) -> dict[int, int]:
    pages: Counter[int] = Counter()
    try:
        lines = (place / "numa_maps").read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        if SHARED_FILE.search(line):
            pages.update({int(node): int(count) for node, count in NODE_PAGES.findall(line)})
    return dict(pages)
