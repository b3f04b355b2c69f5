# SPDX-License-Identifier: Apache-2.0
"""A recorded host with a configuration file in which mistakes are made for real, one of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.doctor.hosts import DB, LAN, qemu, record, vm
from vmq.config import Config, parse
from vmq.doctor import Facts, Machine, Situation, examine
from vmq.doctor.finding import Finding
from vmq.doctor.hands import Hands
from vmq.doctor.history import History
from vmq.doctor.treatment import Cure, Result, Treatment, check, prescribe
from vmq.ethtool import Driver

CPU, NET = "sys/devices/system/cpu", "sys/class/net"
FOUR = {f"{CPU}/online": "0-3"} | {
    f"{CPU}/cpu{number}/topology/thread_siblings_list": str(number) for number in range(4)
}
THREADS = {f"{CPU}/online": "0-5"} | {
    f"{CPU}/cpu{number}/topology/thread_siblings_list": f"{number & ~1}-{number | 1}" for number in range(6)
}
ENGINE = '[engine]\nprocessors = "1"\n'


def nic(name: str, **irqs: int) -> dict[str, str]:
    """A NIC and where its interrupts are served: irq30=0."""
    files = {f"{NET}/{name}/mtu": "1500", f"{NET}/{name}/address": "02:00:00:00:00:01"}
    for irq, cpu in irqs.items():
        files |= {
            f"{NET}/{name}/device/msi_irqs/{irq[3:]}": "msix",
            f"proc/irq/{irq[3:]}/smp_affinity_list": str(cpu),
        }
    return files


class Lab:
    """A recorded host, a configuration file, and an engine's rows, which may depend on both."""

    def __init__(self, folder: Path, text: str, files: Mapping[str, str], *machines: Machine) -> None:
        self.root, self.file = record(folder / "root", files), folder / "vmq.toml"
        self.file.write_text(text)
        self.machines = machines
        self.shown: Callable[[], dict[str, list[Any]] | None] = lambda: None
        self.driver: Callable[[str], Driver | None] = lambda _: None
        self.hands = Hands(str(self.file), self.read, self.check, None, self.root)

    def read(self, text: str) -> Config:
        return parse(text, str(self.file))

    def check(self, config: Config) -> None:
        check(replace(self.look(), config=config), self.look())

    def look(self) -> Situation:
        return Situation(
            facts=Facts.read(self.root, self.driver, machines=False),
            config=parse(self.file.read_text(), str(self.file)),
            shown=self.shown(),
            domains=self.machines,
            where=str(self.file),
        )

    def found(self, *codes: str) -> list[Finding]:
        return list(examine(self.look(), codes).found)

    def cures(self, *codes: str, uncertain: bool = False) -> list[Cure]:
        return prescribe(self.look(), examine(self.look(), codes), uncertain=uncertain)

    def treat(self, history: History, cures: Iterable[Cure]) -> list[Result]:
        return Treatment(self.look, self.hands, history, pauses=(0.0, 0.0)).treat(list(cures))


IRQBALANCED = nic("a", irq31=1, irq32=2) | nic("b", irq33=2, irq34=3)
TWO_NICS = '[uplink.a]\nkind = "packet"\ndevice = "a"\n[uplink.b]\nkind = "packet"\ndevice = "b"\n'
NAMED = "".join(
    f'[uplink.{name}]\nkind = "tap"\ndevice = "{name}"\nprocessors = "{cpus}"\n'
    for name, cpus in (("a", "1-2"), ("b", "2-3"))
)
BOND = {f"{NET}/bond0/bonding/mode": "802.3ad 4", f"{NET}/bond0/bonding/slaves": "a b"}
TAP = '[uplink.lan]\nkind = "tap"\ndevice = "t"\nbridge = "br0"\nmtu = 1500\n' + vm("web", uplink="lan")
LISTENS = replace(qemu(), nics=(replace(qemu().nics[0], server=True),))
SOCKET = "/run/vmq/web.sock"
SLEEPS = {
    f"{CPU}/cpu1/cpuidle/state{number}/{name}": str(value)
    for number, delay in ((1, 20), (2, 133), (3, 900))
    for name, value in (("latency", delay), ("disable", 0))
}
MANY = "".join(vm(f"v{n}", f"52:54:00:00:00:{n:02x}") for n in range(3))
MISTAKES: list[tuple[str, str, dict[str, str], tuple[Machine, ...]]] = [
    ("D01", ENGINE + TWO_NICS, FOUR | IRQBALANCED, ()),
    ("D01", ENGINE + TWO_NICS, {f"{CPU}/online": "0-7"} | IRQBALANCED, ()),
    ("D01", NAMED, FOUR, ()),
    ("D02", LAN.replace("eth0", "bond0"), FOUR | IRQBALANCED | BOND, ()),
    ("D04", '[engine]\nprocessors = "0"\n' + LAN, FOUR, ()),
    ("D04", ENGINE + LAN, FOUR | nic("eth0", irq30=0, irq31=0), ()),
    ("D05", '[engine]\nprocessors = "2-3"\n', THREADS, ()),
    ("D06", vm("web", socket=SOCKET), FOUR, (LISTENS,)),
    ("D08", MANY, FOUR, ()),
    ("D08", LAN + "queues = 1\n" + vm("web", uplink="lan") + vm("db", DB, uplink="lan"), FOUR, ()),
    ("D12", LAN.replace("eth0", "eth0.10") + vm("web", uplink="lan", vlan=10), FOUR | nic("eth0") | nic("eth0.10")
     | {"proc/net/vlan/config": "A | B\nC\neth0.10 | 10 | eth0"}, ()),
    ("D14", '[engine]\nprocessors = "1"\n' + LAN, FOUR | nic("eth0") | {f"{NET}/eth0/device/numa_node": "1",
     "sys/devices/system/node/node0/cpulist": "0-1", "sys/devices/system/node/node1/cpulist": "2-3"}, ()),
    ("D16", vm("web", DB, socket=SOCKET), FOUR, (qemu(),)),
    ("D28", LAN + "mtu = 1500\n" + vm("web", uplink="lan", mtu=9000), FOUR, ()),
    ("D28", TAP, FOUR | {f"{NET}/br0/mtu": "1400"}, ()),
    ("D30", ENGINE, FOUR | {f"{CPU}/cpu1/cpufreq/scaling_governor": "powersave"}, ()),
    ("D30", ENGINE, FOUR | SLEEPS, ()),
    ("D33", TAP, FOUR | {"proc/sys/net/bridge/bridge-nf-call-iptables": "1"}, ()),
]  # fmt: skip
