# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of this host's processors: which there are, which share a core, which stand near which NIC.

    /sys/devices/system/cpu/online, isolated, nohz_full
    /sys/devices/system/cpu/cpuN/topology/thread_siblings_list       the hardware threads of N's core, N among them
    /sys/devices/system/node/nodeN/cpulist                           the processors of a NUMA node
    /sys/class/net/DEVICE/device/numa_node                           the node of a NIC, -1 for unknown

What cannot be read is unknown, never guessed: a processor without siblings stands alone, one without a node has
none. A TAP, a veth or a bridge stands nowhere. The node of a guest's memory is nobody's to know before the guest
has written to it: the kernel takes each page from the host when it is touched first.

With `root` the same files are read below another directory: the recorded topology of another host
(docs/processors.md says how to record one). Its processors are those that were online; of this host, those that
this process may use.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmq.affinity import processors
from vmq.config.forms import cpu_list
from vmq.errors import HostError

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"
NET = "sys/class/net"


@dataclass(frozen=True, slots=True)
class Topology:
    """The processors of a host. Mappings hold what is known, and are not to be changed."""

    allowed: tuple[int, ...]  # that vmq may use, ascending
    siblings: Mapping[int, tuple[int, ...]] = field(default_factory=dict)  # processor → threads of its core
    nodes: Mapping[int, int] = field(default_factory=dict)  # processor → NUMA node
    isolated: frozenset[int] = frozenset()  # kept free of the scheduler's tasks or of its tick
    nics: Mapping[str, int] = field(default_factory=dict)  # network device → NUMA node

    def core(self, cpu: int) -> tuple[int, ...]:
        """The hardware threads of a processor's core, itself among them."""
        return self.siblings.get(cpu, (cpu,))

    @property
    def several_nodes(self) -> bool:
        """Whether near and far mean anything here."""
        return len(set(self.nodes.values())) > 1


def model() -> str:
    """What this host's processors call themselves: proc(5), /proc/cpuinfo."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def read(devices: Collection[str] = (), root: str | Path | None = None) -> Topology:
    """The topology of this host, or the one recorded below `root`; of the NICs `devices`, where they stand."""
    base = Path(root or "/")
    if root is None:
        allowed = tuple(sorted(processors()))
    else:
        allowed = _list(base / CPU / "online")
        if not allowed:
            raise HostError(
                f"{base / CPU / 'online'}",
                "no processors are listed there",
                "Name a directory into which a host's /sys was recorded",
            )
    threads = {cpu: _list(base / CPU / f"cpu{cpu}" / "topology" / "thread_siblings_list") for cpu in allowed}
    places = {device: _number(base / NET / device / "device" / "numa_node") for device in devices}
    return Topology(
        allowed=allowed,
        siblings={cpu: core for cpu, core in threads.items() if cpu in core},
        nodes=_nodes(base),
        isolated=frozenset((*_list(base / CPU / "isolated"), *_list(base / CPU / "nohz_full"))),
        nics={device: node for device, node in places.items() if node >= 0},
    )


def _nodes(base: Path) -> dict[int, int]:
    """Processor → node."""
    found: dict[int, int] = {}
    for path in sorted((base / NODE).glob("node*")):
        if match := re.fullmatch(r"node([0-9]+)", path.name):
            found |= dict.fromkeys(_list(path / "cpulist"), int(match[1]))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _list(path: Path) -> tuple[int, ...]:
    """Processors in the kernel's list format; none where there is no such file. An empty nohz_full is "(null)"."""
    try:
        return cpu_list(_text(path))
    except ValueError:
        return ()


def _number(path: Path) -> int:
    try:
        return int(_text(path))
    except ValueError:
        return -1
