# SPDX-License-Identifier: Apache-2.0
"""Mistakes of a host: in a configuration for this one, and in the files of hosts with the hardware that this one lacks.

The files lie below a directory as the kernel lays them out below /, links among them; the doctor's own readers read them.
What a kernel writes there itself, on processors, nodes and NICs that QEMU made, is in tests/vm/test_doctor_hosts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.doctor.lab import BOND, CPU, FOUR, NET, SLEEPS, THREADS, nic
from tests.mistakes.made import LAN, A, B, Doctor, device, laid_out, seen, shared, vms

Lay = Callable[[Mapping[str, str]], None]
ENGINE = '[engine]\nprocessors = "{}"\n'
PACKET = '[uplink.{0}]\nkind = "packet"\ndevice = "{0}"\n'
ON_BOND = '[uplink.lan]\nkind = "packet"\ndevice = "bond0"\n'
NODES = {"sys/devices/system/node/node0/cpulist": "0-1", "sys/devices/system/node/node1/cpulist": "2-3"}


@pytest.fixture
def lay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lay:
    return laid_out(monkeypatch, tmp_path / "root")


def with_queues(name: str, count: int, **irqs: int) -> dict[str, str]:
    """A NIC with so many receive queues."""
    return nic(name, **irqs) | {f"{NET}/{name}/queues/rx-{number}/rps_cpus": "0" for number in range(count)}


# --- teams --------------------------------------------------------------------------------------------------


def test_d01_the_first_and_the_third_of_three_uplinks_share_a_processor(before: Doctor, lay: Lay) -> None:
    """Every pair is compared, and not the last one only. Apart, they are clear."""
    lay(FOUR)
    uplinks = '[uplink.{0}]\nkind = "memory"\nprocessors = "{1}"\n'
    text = "".join(uplinks.format(*pair) for pair in (("one", "1-2"), ("two", "3"), ("three", "0,2")))
    before.file.write_text(text)

    assert set(before.found("D01")) == {"uplinks one and three"}
    assert before.code == 1
    before.file.write_text(text.replace("0,2", "0"))
    assert before.clear("D01")


def test_d01_interrupts_of_two_nics_on_one_processor(before: Doctor, lay: Lay) -> None:
    lay(FOUR | nic("a", irq31=1, irq32=2) | nic("b", irq33=2, irq34=3))
    before.file.write_text(PACKET.format("a") + PACKET.format("b"))

    assert "processor 2" in before.found("D01")["a and b"]["why"]
    lay({"proc/irq/33/smp_affinity_list": "3"})
    assert before.clear("D01")


def test_d02_members_of_a_bond_on_unlike_processors(before: Doctor, lay: Lay) -> None:
    """As many, and others: found. The same in another order: not."""
    lay(FOUR | BOND | nic("a", irq31=1, irq32=2) | nic("b", irq33=2, irq34=3))
    before.file.write_text(ON_BOND)

    assert set(before.found("D02")) == {"bond bond0"}
    lay({"proc/irq/33/smp_affinity_list": "2", "proc/irq/34/smp_affinity_list": "1"})
    assert before.clear("D02")


def test_d03_as_many_queues_as_the_smallest_member_has(before: Doctor, lay: Lay) -> None:
    """4 and 8 queues, 10 VMs: 4 in a bond, which is too few; 12 as two uplinks."""
    lay(FOUR | BOND | with_queues("a", 4) | with_queues("b", 8))
    ten = vms(LAN, **{f"v{number}": f"{A[:-2]}{number + 16:02x}" for number in range(10)})
    before.file.write_text(ON_BOND + ten)

    found = before.found("D03")["bond bond0"]
    assert "MIN: min(4, 8) = 4" in str(seen(found))
    lay({f"{NET}/{name}/device/vendor": "0x8086" for name in ("a", "b")})
    before.file.write_text(PACKET.format("a") + PACKET.format("b") + ten.replace('"lan"', '"a"'))
    (clear,) = before.all("D03")
    assert (clear["status"], "SUM: 4 + 8 = 12" in str(seen(clear))) == ("clear", True)


def test_d25_a_bond_below_vmq(before: Doctor, lay: Lay) -> None:
    lay(FOUR | BOND | nic("a") | nic("b"))
    before.file.write_text(ON_BOND)
    assert set(before.found("D25")) == {"bond bond0"}
    before.file.write_text(PACKET.format("a") + PACKET.format("b"))
    assert before.statuses("D25") == {"not_applicable"}


def test_d26_one_member_at_another_speed(before: Doctor, lay: Lay) -> None:
    speeds = {f"{NET}/a/speed": "10000", f"{NET}/b/speed": "1000"}
    lay(FOUR | BOND | nic("a") | nic("b") | speeds)
    before.file.write_text(ON_BOND)

    assert seen(before.found("D26")["bond bond0"]) == {"speed": "a 10000, b 1000"}
    lay({f"{NET}/b/speed": "10000"})
    assert not before.found("D26")


# --- processors ---------------------------------------------------------------------------------------------


def test_d04_a_worker_on_processor_0(before: Doctor, lay: Lay) -> None:
    """A warning where there is another one, a note on a host of one."""
    lay(FOUR)
    before.file.write_text(ENGINE.format(0))
    found = before.found("D04")["processor 0"]
    assert (found["severity"], 'processors = "1"' in found["fix"]["command"]) == ("warning", True)
    before.file.write_text(ENGINE.format(1))
    assert before.clear("D04")


def test_d05_two_workers_on_one_core(before: Doctor, lay: Lay) -> None:
    lay(THREADS)
    before.file.write_text(ENGINE.format("2-3"))
    assert set(before.found("D05")) == {"processors 2 and 3"}
    before.file.write_text(ENGINE.format("2,4"))
    assert before.clear("D05")


def test_d14_another_node_than_the_nic_and_the_guest(before: Doctor, lay: Lay) -> None:
    """The NIC on node 1; the pages of a guest, as numa_maps counts them, too."""
    words = ["qemu-system-x86_64", "-name", "a", *shared(), *device(before.file.parent, "a", A)]
    maps = "7f0000000000 default file=/memfd:memory\\040(deleted) dirty=99 N0=1 N1=98 kernelpagesize_kB=4"
    guest = {"proc/77/cmdline": "\0".join(words), "proc/77/numa_maps": maps}
    lay(FOUR | NODES | nic("lan") | {f"{NET}/lan/device/numa_node": "1"} | guest)
    lay({f"{CPU}/cpu{number}/node{number // 2}/cpulist": "" for number in range(4)})
    text = (
        f'[engine]\nprocessors = "{{}}"\napi = "{before.file.parent}/api.sock"\n'
        + PACKET.format("lan")
        + vms(LAN, a=A)
    )
    before.file.write_text(text.format(1))

    found = before.found("D14")
    assert set(found) == {"uplink lan", "VM a"}
    assert "98 pages on node 1" in str(seen(found["VM a"]))
    assert 'processors = "2"' in found["uplink lan"]["fix"]["command"]
    before.file.write_text(text.format(2))
    assert before.clear("D14")


def test_d30_a_processor_that_saves_power(before: Doctor, lay: Lay) -> None:
    """Its governor, and sleep states that are slow to leave; of other processors nothing is said."""
    lay(FOUR | SLEEPS | {f"{CPU}/cpu1/cpufreq/scaling_governor": "powersave"})
    before.file.write_text(ENGINE.format(1))
    (first, second) = [one for one in before.all("D30") if one["status"] == "found"]
    assert (first["evidence"][0]["value"], second["evidence"][0]["value"]) == ("powersave", "900 µs")
    before.file.write_text(ENGINE.format(2))
    assert before.statuses("D30") == {"unknown"}, "it hides both"
    lay({f"{CPU}/cpu1/cpufreq/scaling_governor": "performance"})
    lay({f"{CPU}/cpu1/cpuidle/state{number}/disable": "1" for number in (2, 3)})
    before.file.write_text(ENGINE.format(1))
    assert before.clear("D30")


# --- devices ------------------------------------------------------------------------------------------------


def test_d20_a_virtual_function_with_the_vms_address(before: Doctor, lay: Lay, tmp_path: Path) -> None:
    """It is one because its device has a link to the physical function. With another address it is none of ours."""
    lay(FOUR | nic("pf") | nic("vf") | {f"{NET}/vf/address": A})
    (tmp_path / "root" / NET / "vf/device").mkdir(parents=True, exist_ok=True)
    (tmp_path / "root" / NET / "vf/device/physfn").symlink_to("../../pf/device")
    (tmp_path / "root" / NET / "pf/device").mkdir(parents=True, exist_ok=True)
    before.file.write_text(PACKET.format("lan") + vms(LAN, a=A))

    assert "a virtual function" in str(seen(before.found("D20")["VM a"]))
    lay({f"{NET}/vf/address": B})
    assert before.clear("D20")


def test_d33_the_hosts_firewall_sees_bridged_frames(before: Doctor, lay: Lay) -> None:
    lay(FOUR | nic("br0") | {"proc/sys/net/bridge/bridge-nf-call-iptables": "1"})
    before.file.write_text('[uplink.lan]\nkind = "tap"\ndevice = "t"\nbridge = "br0"\n')

    assert seen(before.found("D33")["uplink lan"]) == {"sysctl net.bridge.bridge-nf-call-iptables": "1"}
    lay({"proc/sys/net/bridge/bridge-nf-call-iptables": "0"})
    assert before.clear("D33")
