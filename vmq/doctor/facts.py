# SPDX-License-Identifier: Apache-2.0
"""The host, as its files say: processors, interrupts, network devices, virtual machines.

    root ─┬─ sys/devices/system/cpu     governor, sleep states; cores, nodes, isolation: vmq/topology.py
          ├─ proc/irq                   where interrupts are served
          ├─ sys/class/net              address, MTU, speed, node, bridge or bond, VLANs, interrupts
          ├─ proc/sys                   a few settings
          └─ proc/PID                   QEMU processes (machines.py)

Facts are read once and judge nothing. What cannot be read is None or missing, never a default: a virtual machine hides
its governor, a virtual device has no speed. Everything hangs below one directory, so that tests read recorded trees;
what only the running kernel can answer (ethtool.py) is asked through a function that the caller gives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmq import topology as topologies
from vmq.affinity import processors
from vmq.config.forms import cpu_list
from vmq.doctor.machines import Machine, processes
from vmq.errors import HostError
from vmq.topology import Topology

if TYPE_CHECKING:
    from vmq.ethtool import Driver

SYSCTLS = ("net.core.rmem_max", "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")
Ask = Callable[[str], "Driver | None"]


@dataclass(frozen=True)
class Cpu:
    """A logical processor that is online."""

    number: int
    siblings: tuple[int, ...]  # logical processors of its core, itself among them
    node: int | None = None
    governor: str | None = None  # None: the host hides it
    sleeps: tuple[
        tuple[int, int], ...
    ] = ()  # sleep states that are allowed: number, µs to wake; none: hidden

    @property
    def wake_us(self) -> int | None:
        """Of the deepest sleep state that is allowed."""
        return max((delay for _, delay in self.sleeps), default=None)


@dataclass(frozen=True)
class Bond:
    """What a bonding device does."""

    mode: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """A network device."""

    name: str
    mac: str = ""
    mtu: int | None = None
    speed: int | None = None  # Mbit/s
    node: int | None = None  # None: unknown
    master: str | None = None  # its bridge or bond
    bond: Bond | None = None
    vlan: tuple[int, str] | None = None  # of a VLAN device: VLAN id, device below
    vlan_filtering: bool | None = None  # of a bridge
    hardware: bool = False  # it has a driver of a bus
    function: bool = False  # a virtual function (SR-IOV)
    receive_queues: int = 0
    irqs: tuple[int, ...] = ()
    driver: Driver | None = None


@dataclass(frozen=True)
class Facts:
    """What was read. The mappings are not to be changed."""

    cpus: Mapping[int, Cpu] = field(default_factory=dict)
    topology: Topology | None = None  # None: cannot be read
    irqs: Mapping[int, tuple[int, ...]] = field(default_factory=dict)  # where each is served
    links: Mapping[str, Link] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    machines: tuple[Machine, ...] = ()

    @property
    def nodes(self) -> set[int]:
        """The NUMA nodes that have processors."""
        return {cpu.node for cpu in self.cpus.values() if cpu.node is not None}

    @classmethod
    def read(cls, root: Path = Path("/"), ask: Ask | None = None, *, machines: bool = True) -> Facts:
        """The facts below `root`. `ask` describes the driver of a device; `machines`: look for QEMU, too."""
        topology = _topology(root)
        system = root / topologies.CPU
        return cls(
            cpus={} if topology is None else {cpu: _cpu(system, cpu, topology) for cpu in topology.allowed},
            topology=topology if root != Path("/") else _allowed(topology),
            irqs=dict(_irqs(root / "proc/irq")),
            links={link.name: link for link in _links(root, ask or (lambda _: None))},
            sysctls={
                name: value
                for name in SYSCTLS
                if (value := text(root / "proc/sys" / name.replace(".", "/"))) is not None
            },
            machines=tuple(processes(root / "proc")) if machines else (),
        )


def text(path: Path) -> str | None:
    """What a file says; None if it says nothing, cannot be read or is not there."""
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    """A number from 0; others stand for "unknown"."""
    said = text(path)
    return int(said) if said is not None and said.isdecimal() else None


def _list(path: Path) -> tuple[int, ...] | None:
    said = text(path)
    try:
        return None if said is None else cpu_list(said)
    except ValueError:
        return None


def _topology(root: Path) -> Topology | None:
    """All processors that are online."""
    try:
        return topologies.read([place.name for place in _entries(root / topologies.NET)], root)
    except HostError:
        return None


def _allowed(topology: Topology | None) -> Topology | None:
    """This host's, with the processors that this process may use: the engine's, if it is started as we are."""
    return topology and replace(topology, allowed=tuple(sorted(processors())))


def _cpu(system: Path, number: int, topology: Topology) -> Cpu:
    place = system / f"cpu{number}"
    states = [state for state in place.glob("cpuidle/state*") if text(state / "disable") != "1"]
    sleeps = [(state.name, delay) for state in states if (delay := _number(state / "latency")) is not None]
    return Cpu(
        number=number,
        siblings=topology.core(number),
        node=topology.nodes.get(number),
        governor=text(place / "cpufreq/scaling_governor"),
        sleeps=tuple(sorted((int(name[5:]), delay) for name, delay in sleeps if name[5:].isdecimal())),
    )


def _irqs(place: Path) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Where an interrupt is served: what is in effect, else what is allowed.

    An order to move it takes effect when it comes the next time. Until then it is in effect where it is not allowed.
    """
    for entry in _entries(place):
        if entry.name.isdecimal():
            served = _list(entry / "effective_affinity_list")
            allowed = _list(entry / "smp_affinity_list")
            if allowed and not (served and set(served) <= set(allowed)):
                served = allowed
            if served:
                yield int(entry.name), served


def _links(root: Path, ask: Ask) -> Iterator[Link]:
    vlans = _vlans(root / "proc/net/vlan/config")
    for place in _entries(root / "sys/class/net"):
        name = place.name
        if not place.is_dir():  # bonding_masters
            continue
        device = place / "device"
        filtering = text(place / "bridge/vlan_filtering")
        yield Link(
            name=name,
            mac=text(place / "address") or "",
            mtu=_number(place / "mtu"),
            speed=_number(place / "speed"),
            node=_number(device / "numa_node"),
            master=_target(place / "master"),
            bond=_bond(place / "bonding"),
            vlan=vlans.get(name),
            vlan_filtering=None if filtering is None else filtering == "1",
            hardware=device.exists(),
            function=(device / "physfn").exists(),
            receive_queues=len(list(place.glob("queues/rx-*"))),
            irqs=_interrupts(device),
            driver=ask(name),
        )


def _interrupts(device: Path) -> tuple[int, ...]:
    """The message-signalled interrupts of a device, or of the bus device that a virtio device sits on."""
    if not device.exists():
        return ()
    for place in (device, device.resolve().parent):
        numbers = [int(entry.name) for entry in _entries(place / "msi_irqs") if entry.name.isdecimal()]
        if numbers:
            return tuple(sorted(numbers))
    return ()


def _bond(place: Path) -> Bond | None:
    mode, members = text(place / "mode"), text(place / "slaves")
    if mode is None:
        return None
    return Bond(mode.split()[0], tuple((members or "").split()))


def _vlans(config: Path) -> dict[str, tuple[int, str]]:
    """VLAN devices: `name | id | device below` a line, behind two lines of headings."""
    rows = [[cell.strip() for cell in line.split("|")] for line in (text(config) or "").splitlines()]
    return {row[0]: (int(row[1]), row[2]) for row in rows if len(row) == 3 and row[1].isdecimal()}


def _target(link: Path) -> str | None:
    try:
        return os.path.basename(os.readlink(link))
    except OSError:
        return None


def _entries(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError:
        return []
