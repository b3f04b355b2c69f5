# SPDX-License-Identifier: Apache-2.0
"""One device of the host: what it is, and what can be done to it and taken back.

Whatever a method does to the device, it has undone when it returns or raises. Programs and sockets are descriptors: even a
process that is killed leaves none of them. Only what ethtool switches, and a rule, would outlive it.

Sockets are bound with a program on the device, as an uplink does it: some drivers set a queue up for zero-copy only then.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vmq import ethtool, linux
from vmq.abi import bpf, xdp
from vmq.abi import netdevice as nd
from vmq.bpf.assembler import R0, Code
from vmq.bpf.link import Link
from vmq.bpf.program import Program
from vmq.dataplane.state import xdp_ring
from vmq.direct.socket import CHUNK
from vmq.doctor.facts import Facts, text
from vmq.jit import at
from vmq.uplink import link, netdev
from vmq.uplink.nic_rules import NTUPLE
from vmq.uplink.xdp_device import Tags
from vmq.uplink.xdp_socket import bind, map_rings, register
from vmq.uplink.xdp_steering import MODES

ENTRIES = 64  # of each ring
MEMORY = 1 << 21  # of a socket: one page of the large kind
ODD = 13  # frames of a guest begin anywhere
HUGE = Path("sys/kernel/mm/hugepages/hugepages-2048kB")
NEEDED = {  # rights without which nothing can be tried: any one of each
    "CAP_NET_ADMIN": (nd.CAP_NET_ADMIN,),
    "CAP_NET_RAW": (nd.CAP_NET_RAW,),
    "CAP_BPF": (nd.CAP_BPF, nd.CAP_SYS_ADMIN),
}


class Nic:
    """Device `name`; `queue` is the receive queue that sockets are bound to."""

    def __init__(self, name: str, queue: int, root: Path = Path("/")) -> None:
        self.name, self.queue, self._root = name, queue, root
        self.index = link.index_of(name)

    # --- what it is

    def link(self) -> link.Link | None:
        return link.describe(self.index)

    def driver(self) -> ethtool.Driver | None:
        return ethtool.describe(self.name)

    def queues(self) -> tuple[int, int]:
        return ethtool.receive_queues(self.name)

    def abilities(self) -> frozenset[str] | None:
        return netdev.abilities(self.index)

    def interrupts(self) -> dict[int, tuple[int, ...]]:
        """Its interrupts, and the processors that serve each."""
        facts = Facts.read(self._root, machines=False)
        known = facts.links.get(self.name)
        return {irq: facts.irqs.get(irq, ()) for irq in (known.irqs if known else ())}

    def default_routes(self) -> list[str]:
        """Of it and of devices on top of it (a bridge, a bond, a VLAN), those that default routes lead to."""
        lead, net = set(), self._root / "proc/thread-self/net"
        for line in (text(net / "route") or "").splitlines()[1:]:
            device, destination, *_, mask = line.split()[:8]
            if not int(destination, 16) and not int(mask, 16):
                lead.add(device)
        for line in (text(net / "ipv6_route") or "").splitlines():
            destination, length, *_, device = line.split()
            if not int(destination, 16) and not int(length, 16) and device != "lo":
                lead.add(device)
        return sorted(lead & self._stack(self.name))

    def _stack(self, name: str) -> set[str]:
        above = (self._root / "sys/class/net" / name).glob("upper_*")
        return {name}.union(*(self._stack(one.name.removeprefix("upper_")) for one in above))

    def standing(self) -> dict[str, Any]:
        """Everything about it that a step may have changed."""
        told, said = self.link(), self.driver()
        if told is None:
            return {}
        try:
            rules: int | None = ethtool.rules(self.name)
        except OSError:
            rules = None
        return {
            "state": (told.up, told.state),
            "MTU": told.mtu,
            "address": told.mac,
            "promiscuity": told.promiscuity,
            "programs": dict(told.programs),
            "features": dict(said.features) if said else {},
            "receive queues": self.queues(),
            "rules": rules,
        }

    # --- this host and this process

    def lacks(self) -> list[str]:
        """Rights that this process would need."""
        held = self._rights()
        return [name for name, bits in NEEDED.items() if not any(held >> bit & 1 for bit in bits)]

    def may_pin(self) -> int | None:
        """Bytes of memory that this process may pin, None for all."""
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        free = limit == resource.RLIM_INFINITY or self._rights() >> nd.CAP_IPC_LOCK & 1
        return None if free else limit

    def _rights(self) -> int:
        said = (text(self._root / "proc/thread-self/status") or "").splitlines()
        return next((int(line.split()[1], 16) for line in said if line.startswith("CapEff:")), 0)

    def huge_pages(self) -> int:
        """Pages of 2 MiB that are free, and promised to nobody."""
        free, promised = (int(text(self._root / HUGE / f"{of}_hugepages") or 0) for of in ("free", "resv"))
        return max(free - promised, 0)

    def iommu(self) -> tuple[bool, str, str]:
        """Whether it has hardware behind it; its group of the IOMMU, and the group's kind, or nothing."""
        device = self._root / "sys/class/net" / self.name / "device"
        group = device / "iommu_group"
        number = os.path.basename(os.path.realpath(group)) if group.exists() else ""
        return device.exists(), number, text(group / "type") or ""

    # --- what is tried

    @contextlib.contextmanager
    def passing(self, mode: str) -> Iterator[None]:
        """A program that lets every frame go on is on it; OSError if it is refused. `mode`: of MODES."""
        code = Code()
        code.let(R0, "=", bpf.XDP_PASS)
        code.exit()
        with (
            Program(bpf.BPF_PROG_TYPE_XDP, "vmq_passes", code) as program,
            Link(program, self.index, flags=MODES[mode]),
        ):
            yield

    def bind(self, mode: str, *, zero_copy: bool, chunk: int, huge: bool = False) -> bool:
        """Bind a socket with buffers for frames, and close it; whether it was zero-copy. OSError if that is refused.

        `chunk`: of one page, buffers begin where pages do; of CHUNK, anywhere, as those of guests.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(self.passing(mode))
            mappings: list[tuple[int, int]] = []
            held.callback(_unmap, mappings)
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            one = held.enter_context(socket.socket(xdp.AF_XDP, kind))
            address = _memory(huge, mappings)
            flags = xdp.XDP_UMEM_UNALIGNED_CHUNK_FLAG if chunk == CHUNK else 0
            register(one, address, MEMORY, chunk, flags)
            _fill(one, chunk, ODD if flags else 0, mappings)
            bind(one, self.index, self.queue, xdp.XDP_ZEROCOPY if zero_copy else xdp.XDP_COPY)
            told = one.getsockopt(xdp.SOL_XDP, xdp.XDP_OPTIONS, 4)
            return bool(int.from_bytes(told, "little") & xdp.XDP_OPTIONS_ZEROCOPY)

    def leave_tags_in(self) -> list[str]:
        """Have it leave VLAN tags in its frames; what had to be switched off for that. HostError if it cannot be."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as by:
            tags = Tags(self.index, by)
            out = tags.taken_out()
            try:
                tags.leave_in()
            finally:
                tags.put_back()
        return out

    @contextlib.contextmanager
    def choosing(self) -> Iterator[bool]:
        """Its rules are switched on; whether they were. HostError if they cannot be."""
        said = self.driver()
        was = bool(said and said.features.get(NTUPLE))
        try:
            if not was:
                ethtool.switch(self.name, NTUPLE, on=True)
            yield was
        finally:
            now = self.driver()
            if not was and now and now.features.get(NTUPLE):
                ethtool.switch(self.name, NTUPLE, on=False)

    def rules(self) -> int:
        """How many rules it has; OSError from a driver without them."""
        return ethtool.rules(self.name)

    def try_rule(self, mac: int) -> tuple[int, tuple[int, int]]:
        """Lead an address to the queue, read that, and delete it; its place, the address and the queue that were read."""
        place = ethtool.add_rule(self.name, mac, self.queue, ethtool.place_for_rule(self.name))
        try:
            return place, ethtool.rule_at(self.name, place)
        finally:
            ethtool.delete_rule(self.name, place)


def _memory(huge: bool, mappings: list[tuple[int, int]]) -> int:
    """Memory of ours; on one page of 2 MiB, if that is asked for."""
    if not huge:
        mappings.append((linux.map_private(MEMORY), MEMORY))
        return mappings[-1][0]
    descriptor = os.memfd_create("vmq_nic", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    try:
        os.ftruncate(descriptor, MEMORY)
        os.posix_fallocate(descriptor, 0, MEMORY)
        mappings.append((linux.map_shared(descriptor, MEMORY), MEMORY))
    finally:
        os.close(descriptor)
    return mappings[-1][0]


def _fill(one: socket.socket, chunk: int, begin: int, mappings: list[tuple[int, int]]) -> None:
    """Rings, and buffers for frames in the fill ring: the kernel looks when the socket is bound."""
    row = np.zeros(1, [("fill", xdp_ring)])[0]
    map_rings(one, row, ENTRIES, mappings)
    fill = row["fill"]
    at(int(fill["entries"]), ENTRIES, np.uint64)[:] = np.arange(ENTRIES, dtype=np.uint64) * chunk + begin
    at(int(fill["producer"]), 1, np.uint32)[0] = ENTRIES


def _unmap(mappings: list[tuple[int, int]]) -> None:
    while mappings:
        linux.unmap(*mappings.pop())
