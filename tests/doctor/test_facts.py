# SPDX-License-Identifier: Apache-2.0
"""A host read from its files: recorded, bare, and this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.doctor.hosts import record
from vmq.doctor.facts import Bond, Cpu, Facts, Link, text
from vmq.ethtool import Driver

CPU, NET = "sys/devices/system/cpu", "sys/class/net"
FILES = {
    f"{CPU}/online": "0-1",
    f"{CPU}/isolated": "1",
    f"{CPU}/cpu0/topology/thread_siblings_list": "0-1",
    f"{CPU}/cpu1/topology/thread_siblings_list": "0-1",
    f"{CPU}/cpu1/cpufreq/scaling_governor": "powersave",
    f"{CPU}/cpu1/cpuidle/state0/latency": "2",
    f"{CPU}/cpu1/cpuidle/state1/latency": "133",
    f"{CPU}/cpu1/cpuidle/state2/latency": "900",
    f"{CPU}/cpu1/cpuidle/state2/disable": "1",
    "sys/devices/system/node/node1/cpulist": "0-1",
    "proc/irq/30/smp_affinity_list": "0-1",
    "proc/irq/30/effective_affinity_list": "1",
    "proc/irq/31/smp_affinity_list": "0",
    "proc/irq/31/effective_affinity_list": "",
    "proc/irq/default_smp_affinity": "3",
    "proc/sys/net/core/rmem_max": "212992",
    "proc/net/vlan/config": "VLAN Dev name\t | VLAN ID\nName-Type: X\neth0.10 | 10  | eth0",
    f"{NET}/bonding_masters": "bond0",
    f"{NET}/eth0/address": "52:54:00:00:00:10",
    f"{NET}/eth0/mtu": "9000",
    f"{NET}/eth0/speed": "25000",
    f"{NET}/eth0/device/numa_node": "1",
    f"{NET}/eth0/device/msi_irqs/31": "msix",
    f"{NET}/eth0/device/msi_irqs/30": "msix",
    f"{NET}/eth0/queues/rx-0/rps_cpus": "0",
    f"{NET}/eth0/queues/rx-1/rps_cpus": "0",
    f"{NET}/eth0/queues/tx-0/xps_cpus": "0",
    f"{NET}/eth1/device/numa_node": "-1",
    f"{NET}/eth1/speed": "-1",
    f"{NET}/eth1/device/physfn/vendor": "x",
    f"{NET}/eth0.10/mtu": "1500",
    f"{NET}/br0/bridge/vlan_filtering": "1",
    f"{NET}/bond0/bonding/mode": "802.3ad 4",
    f"{NET}/bond0/bonding/slaves": "eth0 eth1",
}


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    root = record(tmp_path, FILES)
    (root / NET / "eth0/master").symlink_to("../bond0")
    return root


def test_processors(recorded: Path) -> None:
    """Siblings and nodes of the topology; of sleep states that are allowed, the deepest."""
    facts = Facts.read(recorded)

    assert facts.cpus == {0: Cpu(0, (0, 1), 1), 1: Cpu(1, (0, 1), 1, "powersave", ((0, 2), (1, 133)))}
    assert facts.nodes == {1}
    assert facts.topology is not None
    assert facts.topology.isolated == {1}


def test_interrupts_are_where_they_are_served(recorded: Path) -> None:
    """In effect, else allowed."""
    assert Facts.read(recorded).irqs == {30: (1,), 31: (0,)}


def test_network_devices(recorded: Path) -> None:
    driver = Driver("ice", "1.2")
    facts = Facts.read(recorded, {"eth0": driver}.get)

    assert facts.links == {
        "eth0": Link(
            "eth0",
            "52:54:00:00:00:10",
            mtu=9000,
            speed=25000,
            node=1,
            master="bond0",
            hardware=True,
            receive_queues=2,
            irqs=(30, 31),
            driver=driver,
        ),
        "eth1": Link("eth1", hardware=True, function=True),
        "eth0.10": Link("eth0.10", mtu=1500, vlan=(10, "eth0")),
        "br0": Link("br0", vlan_filtering=True),
        "bond0": Link("bond0", bond=Bond("802.3ad", ("eth0", "eth1"))),
    }
    assert facts.sysctls == {"net.core.rmem_max": "212992"}


def test_the_interrupts_of_a_virtio_device_are_its_bus_devices(tmp_path: Path) -> None:
    """/sys/class/net/eth0/device is virtio0, and the one above has the vectors."""
    record(
        tmp_path,
        {"sys/devices/pci0/msi_irqs/40": "msix", "sys/devices/pci0/virtio0/vendor": "x", f"{NET}/e/mtu": "1"},
    )
    (tmp_path / NET / "e/device").symlink_to("../../../devices/pci0/virtio0")

    assert Facts.read(tmp_path).links["e"].irqs == (40,)


def test_a_host_without_files_has_no_facts(tmp_path: Path) -> None:
    """Nothing is made up."""
    assert Facts.read(tmp_path) == Facts()


def test_guests_are_looked_for_unless_told_not_to(tmp_path: Path) -> None:
    record(tmp_path, {"proc/5/cmdline": "qemu-system-x86_64\0-name\0web"})

    assert [machine.name for machine in Facts.read(tmp_path).machines] == ["web"]
    assert Facts.read(tmp_path, machines=False).machines == ()


def test_this_host_has_what_it_has() -> None:
    """Real files: the loopback device, and the processors of this process."""
    facts = Facts.read(machines=False)

    assert facts.links["lo"].mtu == 65536
    assert facts.topology is not None
    assert set(facts.topology.allowed) == os.sched_getaffinity(0) <= set(facts.cpus)


def test_a_text_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    record(tmp_path, {"empty": "", "said": "x"})

    assert [text(tmp_path / name) for name in ("empty", "said", "none", ".")] == [None, "x", None, None]


@pytest.mark.parametrize(
    ("effective", "allowed", "served"),
    [("1", "0-3", (1,)), ("0", "2-3", (2, 3)), ("", "2", (2,)), ("1", "", (1,)), ("", "", None)],
)
def test_an_interrupt_that_is_to_move_counts_where_it_was_sent(
    tmp_path: Path, effective: str, allowed: str, served: tuple[int, ...] | None
) -> None:
    """It moves when it comes the next time, which may be never: an idle NIC would seem to refuse the order."""
    files = {"effective_affinity_list": effective, "smp_affinity_list": allowed}
    root = record(tmp_path, {f"proc/irq/9/{name}": text for name, text in files.items()})

    assert Facts.read(root).irqs.get(9) == served
