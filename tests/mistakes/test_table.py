# SPDX-License-Identifier: Apache-2.0
"""The table of proofs: for every mistake of the catalogue, who makes it for real and has the doctor find it, or why nobody can.

docs/doctor.md has the same words. A test of this folder that begins with a code stands in the table.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vmq.doctor import CATALOGUE

ROOT = Path(__file__).parents[2]
IMPOSSIBLE = "impossible: "

Tests = dict[str, tuple[str, ...]]


class Proof(NamedTuple):
    """`how` it is made, or why it cannot be; `tests`: FILE of tests/ → functions in it."""

    how: str
    tests: Mapping[str, tuple[str, ...]]


HOSTS, KERNEL, ENGINE, FRAMES, QEMU, DEVICES = (
    "mistakes/test_hosts.py",
    "vm/test_doctor_hosts.py",
    "mistakes/test_engine.py",
    "mistakes/test_frames.py",
    "mistakes/test_processes.py",
    "mistakes/test_devices.py",
)
FIX, NEAR, BOOTED = "vm/test_doctor_fix.py", "cli/test_doctor.py", "vm/test_doctor.py"
NEAR_MISSES: Tests = {NEAR: ("test_mistakes_of_a_real_engine_and_its_guests_are_found",)}
WAITING: Tests = {BOOTED: ("test_mistakes_of_a_command_line_are_found_while_it_waits",)}
UNLIKE: Tests = {KERNEL: ("test_d02_d03_d25_d26_a_bond_of_unlike_nics",)}

PROOFS = {
    "D01": Proof(
        "three uplinks in a file, the first and the third overlapping; interrupts of two NICs, which QEMU made, on one processor",
        {
            HOSTS: (
                "test_d01_the_first_and_the_third_of_three_uplinks_share_a_processor",
                "test_d01_interrupts_of_two_nics_on_one_processor",
            ),
            KERNEL: ("test_d01_the_interrupts_of_two_uplinks_until_they_are_told_apart",),
        },
    ),
    "D02": Proof(
        "a bond in a kernel of its own, its members' interrupts on unlike processors",
        UNLIKE | {HOSTS: ("test_d02_members_of_a_bond_on_unlike_processors",)},
    ),
    "D03": Proof(
        "that bond, of NICs with eight receive queues and one; NICs with 4 and 8, as the kernel's files have them, and 10 VMs",
        UNLIKE | {HOSTS: ("test_d03_as_many_queues_as_the_smallest_member_has",)},
    ),
    "D04": Proof(
        "an engine that runs on processor 0; a NIC whose interrupts were sent there",
        {
            ENGINE: ("test_d04_a_worker_on_the_hosts_processor",),
            HOSTS: ("test_d04_a_worker_on_processor_0",),
            KERNEL: ("test_d04_interrupts_on_processor_0",),
        },
    ),
    "D05": Proof(
        "a process with threads named and pinned as QEMU's vCPUs, on a worker's processor; sibling threads, which QEMU made",
        {
            QEMU: ("test_d05_a_vcpu_on_the_processor_of_a_worker",),
            HOSTS: ("test_d05_two_workers_on_one_core",),
            KERNEL: ("test_d05_two_workers_on_the_threads_of_one_core",),
        },
    ),
    "D06": Proof(
        "a file changed and not told, or refused; a worker moved by taskset; guests without driver or second queue pair; a "
        "filter of somebody else; more VMs than receive queues; QEMU's lines with private memory, another socket, both listening",
        {
            ENGINE: (
                "test_d06_a_file_that_the_engine_was_not_told_of",
                "test_d06_a_file_that_the_engine_has_refused",
                "test_d06_a_refused_file_that_nobody_can_read_either",
                "test_d06_a_worker_that_was_moved",
                "test_d06_a_guest_that_starts_no_driver",
                "test_d06_a_receive_queue_that_its_guest_does_not_enable",
                "test_d06_a_filter_of_somebody_else_that_takes_a_vms_frames",
                "test_d06_an_idle_vm_without_a_receive_queue_is_a_note",
            ),
            QEMU: ("test_d06_qemu_and_vmq_do_not_meet",),
        }
        | WAITING,
    ),
    "D07": Proof(
        "a wire that swallows what is sent to one of two VMs on a veth, while both send",
        {DEVICES: ("test_d07_a_nic_that_swallows_one_address",)},
    ),
    "D08": Proof(
        "three VMs as busy as each other, and one receive queue",
        {FRAMES: ("test_d08_more_vms_than_receive_queues",)},
    ),
    "D09": Proof(
        "the device of a running uplink set down",
        {DEVICES: ("test_d09_a_device_that_goes_down_and_comes_back",)},
    ),
    "D10": Proof(
        "frames for a VM of weight 0, fixed by the doctor",
        {"cli/test_fix.py": ("test_a_weight_of_a_real_engine",)},
    ),
    "D11": Proof(
        "one receive queue, held by the VM that gets no frame",
        {FRAMES: ("test_d11_an_idle_vm_that_holds_the_receive_queue",)},
    ),
    "D12": Proof(
        "frames in another VLAN than the VM's; a VLAN device as uplink",
        NEAR_MISSES | {FIX: ("test_d12_a_vlan_device_that_takes_the_tag_off",)},
    ),
    "D13": Proof(
        "rx-vlan-offload of a veth switched off",
        {FIX: ("test_d13_tags_of_a_real_device",)},
    ),
    "D14": Proof(
        "a NIC on the far node of two, which QEMU made; pages of a guest there, as numa_maps has them",
        {
            KERNEL: ("test_d14_a_worker_on_another_node_than_the_nic",),
            HOSTS: ("test_d14_another_node_than_the_nic_and_the_guest",),
        },
    ),
    "D15": Proof(
        "a station on the wire, a process of QEMU's line and a device of the host with a VM's address; two VMs of one uplink "
        "are refused",
        NEAR_MISSES
        | {
            QEMU: (
                "test_d15_two_guests_of_one_address",
                "test_d15_two_vms_of_one_address_on_one_uplink_are_refused",
            ),
            FIX: ("test_d15_a_device_of_the_host_with_the_vms_address",),
            BOOTED: ("test_two_guests_with_one_address_are_found",),
        },
    ),
    "D16": Proof(
        "a guest all of whose frames come from another address; QEMU's line with another",
        NEAR_MISSES | {QEMU: ("test_d16_an_address_that_only_qemu_knows",)} | WAITING,
    ),
    "D17": Proof(
        "a receive queue freed twice",
        {ENGINE: ("test_d17_a_receive_queue_that_was_freed_is_used_again",)},
    ),
    "D18": Proof(
        "a driver that takes no mergeable buffers, mrg_rxbuf=off; a datagram of 20,001 bytes cut again behind a veth",
        {
            ENGINE: ("test_d18_a_driver_that_takes_no_mergeable_buffers",),
            QEMU: ("test_d18_mergeable_buffers_switched_off",),
            DEVICES: ("test_d18_frames_that_the_host_merges_are_cut_again",),
        }
        | WAITING,
    ),
    "D19": Proof(
        IMPOSSIBLE
        + "RSS and vmq do not compete for a NIC, as vmq takes none of its queues. A processor saturated for real is "
        "named, and `unknown`: flows are not counted, and a single one is no mistake",
        {FRAMES: ("test_d19_a_saturated_processor_is_named_and_nobody_is_blamed",)},
    ),
    "D20": Proof(
        "QEMU's line of a failover pair; a virtual function with the VM's address, as the kernel's files have it",
        {
            QEMU: ("test_d20_a_passthrough_device_carries_the_traffic",),
            HOSTS: ("test_d20_a_virtual_function_with_the_vms_address",),
        },
    ),
    "D21": Proof(
        "QEMU's line with four receive queues and one vCPU",
        {QEMU: ("test_d21_more_receive_queues_than_vcpus",)} | WAITING,
    ),
    "D22": Proof(
        "measured with real frames, by --prove and by the guard; that the answer is `slower` is the test's",
        {
            ENGINE: (
                "test_d22_whether_a_receive_queue_makes_it_slower_is_measured",
                "test_d22_a_receive_queue_that_makes_it_slower_is_found_after_the_guard_has_acted",
            )
        },
    ),
    "D23": Proof(
        IMPOSSIBLE
        + "there is no table. 64 flows for a guest of four queue pairs all take its one receive queue, and no key of "
        "the configuration spreads them",
        {ENGINE: ("test_d23_no_indirection_table_can_be_uneven",)},
    ),
    "D24": Proof(
        "QEMU's line without mq, with too few vectors, with more queues than the VM port; a guest that starts one of four",
        {
            QEMU: (
                "test_d24_what_several_receive_queues_need",
                "test_d24_a_driver_that_runs_fewer_than_it_was_given",
            )
        }
        | WAITING,
    ),
    "D25": Proof(
        "a bond in a kernel of its own, as uplink",
        UNLIKE | {HOSTS: ("test_d25_a_bond_below_vmq",)},
    ),
    "D26": Proof(
        "a bond of a vmxnet3 with eight receive queues and an e1000e with one; two speeds, as the kernel's files have them",
        UNLIKE | {HOSTS: ("test_d26_one_member_at_another_speed",)},
    ),
    "D27": Proof(
        IMPOSSIBLE
        + "every receive queue is placed alike, whatever driver carries it, and no key asks for more",
        {ENGINE: ("test_d27_no_driver_offers_more_than_another",)},
    ),
    "D28": Proof(
        "frames longer than their receiver's MTU, and than their sender's; a veth, a bridge and QEMU's host_mtu that do not match",
        {
            FRAMES: (
                "test_d28_a_frame_that_is_longer_than_somebody_takes",
                "test_d28_a_vm_that_was_given_more_than_its_uplink",
            ),
            QEMU: ("test_d28_a_guest_that_was_told_more_than_its_port_takes",),
            DEVICES: ("test_d28_a_device_that_takes_shorter_frames_than_its_vm",),
            FIX: ("test_d28_a_bridge_that_takes_shorter_frames",),
        }
        | WAITING,
    ),
    "D29": Proof(
        "500 frames for a guest of 64 buffers that refills late; rx_queue_size=256",
        {
            FRAMES: ("test_d29_a_burst_that_is_longer_than_the_ring",),
            QEMU: ("test_d29_a_receive_ring_of_qemus_default",),
        }
        | WAITING,
    ),
    "D30": Proof(
        "governor and sleep states as the kernel's files have them: virtual machines have neither, and QEMU makes none",
        {HOSTS: ("test_d30_a_processor_that_saves_power",)},
    ),
    "D31": Proof(
        "a frame every 5 ms: with indications held back, and without on a processor that is busy",
        {
            FRAMES: (
                "test_d31_indications_that_are_held_back_and_gather_nothing",
                "test_d31_frames_one_at_a_time_on_a_processor_that_is_busy",
            )
        },
    ),
    "D32": Proof("a guest that also sends from an address that is not its own", NEAR_MISSES),
    "D33": Proof(
        "bridge-nf-call-iptables set in a namespace with a bridge; of vmq itself no policy costs a placement",
        {
            FIX: ("test_d33_the_hosts_firewall_on_bridged_frames",),
            HOSTS: ("test_d33_the_hosts_firewall_sees_bridged_frames",),
        },
    ),
    "D34": Proof(
        "`queues` 0 of an uplink, and `weight` 0 for all of its VMs, on a running engine",
        {ENGINE: ("test_d34_receive_queues_switched_off_and_nobody_measured",)},
    ),
}


def functions(file: str) -> set[str]:
    """The tests of a file."""
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_mistake_of_the_catalogue_is_proved() -> None:
    """Made for real, or impossible in words that a test bears out."""
    assert list(PROOFS) == [entry.code for entry in CATALOGUE]
    assert [code for code, proof in PROOFS.items() if not proof.tests] == []


def test_the_tests_that_are_named_exist() -> None:
    missing = {
        f"{code}: {file}::{name}"
        for code, proof in PROOFS.items()
        for file, names in proof.tests.items()
        for name in set(names) - functions(file)
    }
    assert missing == set()


def test_every_test_of_a_code_stands_in_the_table() -> None:
    for file in (HOSTS, KERNEL, ENGINE, FRAMES, QEMU, DEVICES):
        for name in functions(file):
            codes = [code.upper() for code in re.findall(r"d\d\d(?=_)", name)]
            assert [code for code in codes if name in PROOFS[code].tests.get(file, ())] == codes, name


def test_the_page_says_the_same() -> None:
    """docs/doctor.md, "How each is proved"."""
    section = (
        (ROOT / "docs/doctor.md").read_text().partition("## How each is proved\n")[2].partition("\n## ")[0]
    )
    rows = dict(re.findall(r"^\| (D\d\d) \| ([^|]+) \|$", section, re.MULTILINE))
    assert rows == {code: proof.how for code, proof in PROOFS.items()}
