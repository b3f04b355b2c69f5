# SPDX-License-Identifier: Apache-2.0
"""vmq doctor on the files of a real kernel with hardware that test machines lack: two nodes, sibling threads, unlike NICs
and a bond.

QEMU makes the hardware, Debian's kernel says what it finds, and the doctor's own readers read that, copied file by file.
What a fix would do is done in the guest, and its kernel is asked again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mistakes.made import A, B, Doctor, Finding, laid_out, seen, vms
from tests.vm.lab.image import NET, Contents
from tests.vm.lab.qemu import Guest

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.timeout(200)]
IMAGE = Contents((*NET.modules, "vmxnet3", "e1000e", "bonding"))
# eth0: several receive queues, on a node that nobody says. eth1: one receive queue, behind a bridge of node 1.
HARDWARE = """
-numa node,nodeid=0,cpus=0-3,memdev=near -numa node,nodeid=1,cpus=4-7,memdev=distant
-object memory-backend-ram,id=near,size=128M -object memory-backend-ram,id=distant,size=128M
-device pxb-pcie,id=node1,bus_nr=64,bus=pcie.0,numa_node=1 -device ioh3420,id=port1,bus=node1,chassis=1
-netdev user,id=n0 -device vmxnet3,netdev=n0,bus=pcie.0,mac=52:54:00:0d:c0:31,romfile=
-netdev user,id=n1 -device e1000e,netdev=n1,bus=port1,mac=52:54:00:0d:c0:32,romfile=
"""
FILES = """
/sys/devices/system/cpu/online /sys/devices/system/cpu/isolated /sys/devices/system/cpu/cpu*/topology/thread_siblings_list
/sys/devices/system/cpu/cpu*/cpufreq/* /sys/devices/system/cpu/cpu*/cpuidle/state*/* /sys/devices/system/node/node*/cpulist
/sys/class/net/*/address /sys/class/net/*/mtu /sys/class/net/*/speed /sys/class/net/*/bonding/* /sys/class/net/*/device/numa_node
/sys/class/net/*/device/msi_irqs/* /sys/class/net/*/queues/rx-*/rps_cpus /proc/irq/*/*_affinity_list
"""
COPY = "cd /; for file in {}; do [ -f $file ] && echo @$file && cat $file; done 2>/dev/null; true"
ETH = '[uplink.{0}]\nkind = "packet"\ndevice = "{0}"\n'
BOND = '[uplink.lan]\nkind = "packet"\ndevice = "bond0"\n'
CPU = "max,vendor=GenuineIntel"  # of others the kernel takes no threads from QEMU
LAN = 'uplink = "lan"\n'


class Machine(Guest):
    """A guest with that hardware."""

    def _machine(self, machine: str, backend: str, memory: int, processors: int) -> list[str]:
        argv = super()._machine(machine, backend, memory, processors)
        place = argv.index("-object")
        del argv[place : place + 2]  # memory without a node
        threads = "8,sockets=2,cores=2,threads=2"
        for option, value in (("-smp", threads), ("-cpu", CPU), ("-machine", "q35,graphics=off")):
            argv[argv.index(option) + 1] = value
        return [*argv, *HARDWARE.split()]

    def copied(self, root: Path) -> None:
        """What its kernel says now."""
        told = self.run(COPY.format(" ".join(FILES.split())).replace("\n", " "))
        for part in re.split(r"^@/", told, flags=re.MULTILINE)[1:]:
            name, _, text = part.partition("\n")
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def treated(self, finding: Finding) -> None:
        """The steps of a fix; an interrupt moves when it comes the next time."""
        for step in finding["fix"]["steps"]:
            self.run(f"echo {step['value']} >{step['path']}")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine("host", image=IMAGE, memory=256, processors=8) as made:
        made.run("modprobe -a vmxnet3 e1000e; ip link set eth0 up; ip link set eth1 up")
        yield made


@pytest.fixture
def before(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Doctor:
    made = Doctor(tmp_path / "vmq.toml", capsys)
    laid_out(monkeypatch, made.root)
    return made


def test_d05_two_workers_on_the_threads_of_one_core(machine: Machine, before: Doctor) -> None:
    machine.copied(before.root)
    before.file.write_text('[engine]\nprocessors = "2-3"\n')
    assert set(before.found("D05")) == {"processors 2 and 3"}
    before.file.write_text('[engine]\nprocessors = "1,4"\n')
    assert before.clear("D05")


def test_d14_a_worker_on_another_node_than_the_nic(machine: Machine, before: Doctor) -> None:
    """Of a NIC whose node nobody says, nothing is known."""
    machine.copied(before.root)
    text = '[engine]\nprocessors = "{}"\n' + ETH.format("eth1")
    before.file.write_text(text.format(1))
    found = before.found("D14")["uplink eth1"]
    assert seen(found)["/sys/class/net/eth1/device/numa_node"] == "1"
    before.file.write_text(text.format(5))
    assert before.clear("D14")
    before.file.write_text('[engine]\nprocessors = "1"\n' + ETH.format("eth0"))
    assert before.statuses("D14") == {"unknown"}


def test_d01_the_interrupts_of_two_uplinks_until_they_are_told_apart(
    machine: Machine, before: Doctor
) -> None:
    """The steps of the fix, done in the guest. They hold at once, though most of these interrupts never come."""
    machine.run("for irq in /proc/irq/*/; do echo 1 >$irq/smp_affinity_list; done 2>/dev/null; true")
    machine.copied(before.root)
    before.file.write_text(ETH.format("eth0") + ETH.format("eth1"))
    found = before.found("D01")["eth0 and eth1"]
    assert "processor 1" in found["why"]
    machine.treated(found)
    machine.copied(before.root)
    assert before.clear("D01")


def test_d02_d03_d25_d26_a_bond_of_unlike_nics(machine: Machine, before: Doctor) -> None:
    """LACP over a NIC of eight receive queues and one of a single one; interrupts as one of them has them, at the end."""
    machine.run(
        "modprobe bonding max_bonds=0; ip link add bond0 type bond; echo 802.3ad >/sys/class/net/bond0/bonding/mode"
    )
    for name in ("eth0", "eth1"):
        machine.run(f"ip link set {name} down; ip link set {name} master bond0")
    machine.run(
        "echo 1 | tee $(ls /sys/class/net/eth0/device/msi_irqs | sed 's,.*,/proc/irq/&/smp_affinity_list,')"
    )
    machine.run(
        "echo 3 | tee $(ls /sys/class/net/eth1/device/msi_irqs | sed 's,.*,/proc/irq/&/smp_affinity_list,')"
    )
    try:
        machine.copied(before.root)
        before.file.write_text(BOND + vms(LAN, a=A, b=B))
        assert set(before.found("D25")) == {"bond bond0"}
        assert seen(before.found("D26")["bond bond0"])["receive queues"] == "eth0 8, eth1 1"
        assert "MIN: min(8, 1) = 1 (bond0 is a bond, mode 802.3ad)" in str(
            seen(before.found("D03")["bond bond0"])
        )
        found = before.found("D02")["bond bond0"]
        machine.treated(found)
        machine.copied(before.root)
        assert before.clear("D02")
    finally:
        machine.run("ip link del bond0; ip link set eth0 up; ip link set eth1 up")


def test_d04_interrupts_on_processor_0(machine: Machine, before: Doctor) -> None:
    machine.run("for irq in /proc/irq/*/; do echo 0 >$irq/smp_affinity_list; done 2>/dev/null; true")
    machine.copied(before.root)
    before.file.write_text('[engine]\nprocessors = "3"\n' + ETH.format("eth1"))
    found = before.found("D04")["uplink eth1"]
    machine.treated(found)
    machine.copied(before.root)
    assert before.clear("D04")
