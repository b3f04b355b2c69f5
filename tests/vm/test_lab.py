# SPDX-License-Identifier: Apache-2.0
"""The laboratory alone: guests joined by a cable, without vmq, so that a later failure is not the guest's."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.lab import recipes
from tests.vm.lab.errors import CommandError, GuestGoneError
from tests.vm.lab.image import NET, STORAGE, build
from tests.vm.lab.netns import Namespace
from tests.vm.lab.nic import cable, user
from tests.vm.lab.qemu import KERNEL_OPTIONS, Guest
from tests.vm.lab.tgt import iscsi_server

TARGET_MAC, INITIATOR_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"
TARGET, INITIATOR = "10.77.0.1", "10.77.0.2"

Pair = tuple[Guest, Guest]


@pytest.mark.qemu
@pytest.mark.root
def test_iscsi_initiator_in_a_guest_writes_to_the_disk_of_the_host(tmp_path: Path) -> None:
    """tgtd's file holds what the guest wrote. QEMU's own network leads to the namespace's loopback."""
    nic = user(INITIATOR_MAC, "10.0.2.15/24")
    with (
        Namespace("tgt") as host,
        iscsi_server(host, tmp_path) as disk,
        Guest("initiator", [nic], image=STORAGE, namespace=host) as guest,
    ):
        recipes.iscsi_login(guest, "10.0.2.2")
        assert recipes.verify_disk(guest) == hashlib.md5(disk.read_bytes()[: 2 << 20]).hexdigest()


@pytest.mark.qemu
def test_guest_boots_from_its_network(tmp_path: Path) -> None:
    """The device's ROM (iPXE) gets an address, a script, a kernel and an initramfs."""
    image = build(NET)
    (tmp_path / "vmlinuz").symlink_to(image.vmlinuz)
    (tmp_path / "initrd").symlink_to(image.initramfs)
    script = f"#!ipxe\nkernel vmlinuz initrd=initrd {KERNEL_OPTIONS}\ninitrd initrd\nboot\n"
    (tmp_path / "script").write_text(script)
    with Guest("netboot", [user(TARGET_MAC, tftp=str(tmp_path), bootfile="script")], image=None) as guest:
        assert guest.run("cat /sys/class/net/eth0/address") == f"{TARGET_MAC}\n"


@pytest.mark.root
def test_namespaces_are_joined_and_entered() -> None:
    """A socket made by a call inside stays inside, a link's addresses are usable at once."""
    with Namespace("here") as here, Namespace("there") as there:
        here.veth("up0", there, "up0")
        here.address("up0", "10.0.0.1/24", "fd00::1/64")
        there.address("up0", "10.0.0.2/24", "fd00::2/64")
        listener = there.call(lambda: socket.create_server(("fd00::2", 5000), family=socket.AF_INET6))
        client = here.call(lambda: socket.create_connection(("fd00::2", 5000), 5))
        with listener, client:
            assert client.getpeername()[0] == "fd00::2"
        assert here.run("cat", "/proc/sys/net/ipv6/conf/up0/accept_dad") == "0\n"
        assert len(here.mac("up0").split(":")) == 6


@pytest.mark.qemu
def test_guest_ends_with_the_test_and_its_end_is_told() -> None:
    """A guest that is gone makes the next command fail at once, not at its limit."""
    with Guest("short") as short:
        short.ready()
        assert short.qmp.execute("query-status")["running"]
        with pytest.raises(GuestGoneError):
            short.run("poweroff -f; sleep 60", 60)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two guests with the storage image and a cable between them."""
    ends = (TARGET_MAC, f"{TARGET}/24", "fd77::1/64"), (INITIATOR_MAC, f"{INITIATOR}/24", "fd77::2/64")
    with (
        cable(*ends) as (left, right),
        Guest("target", [left], image=STORAGE) as target,
        Guest("initiator", [right], image=STORAGE) as initiator,
    ):
        yield target.ready(), initiator.ready()


@pytest.mark.qemu
def test_guests_reach_each_other_over_ipv4_and_ipv6(pair: Pair) -> None:
    """The addresses of the command line are configured when a guest is ready."""
    target, _ = pair
    assert "0% packet loss" in target.run(f"ping -c 2 -W 2 {INITIATOR}")
    assert "0% packet loss" in target.run("ping -c 2 -W 2 fd77::2")


@pytest.mark.qemu
def test_a_command_reports_its_output_and_its_status(pair: Pair) -> None:
    """What the guest's shell printed, whole, and its status; a failure is an error with both."""
    target, _ = pair
    assert target.run("printf 'a\\n\\tb'; seq 3000 >&2").endswith("2999\n3000\n")
    with pytest.raises(CommandError, match="no such thing") as failure:
        target.run("echo no such thing; exit 3")
    assert failure.value.status == 3
    with pytest.raises(CommandError):
        target.run("sleep 60", timeout=1)
    assert target.run("echo still there") == "still there\n"


@pytest.mark.qemu
def test_http_and_streams_carry_a_file(pair: Pair) -> None:
    """The md5 sums at both ends agree."""
    target, initiator = pair
    sum_sent = recipes.make_file(target, "/srv/file", 8)
    recipes.serve_http(target)
    assert recipes.fetch(initiator, f"http://{TARGET}/file") == sum_sent
    taken = recipes.receive_stream(initiator, 5001)
    recipes.send_stream(target, "/srv/file", INITIATOR, 5001).wait(60)
    taken.wait(60)
    assert recipes.received(initiator) == 8 << 20
    assert recipes.md5(initiator, "/run/received") == sum_sent


@pytest.mark.qemu
def test_tagged_interfaces_reach_each_other(pair: Pair) -> None:
    """Both ends have a sub-interface of the VLAN, and no other address of that subnet."""
    target, initiator = pair
    recipes.vlan(target, 10, "10.78.0.1/24")
    recipes.vlan(initiator, 10, "10.78.0.2/24")
    assert "0% packet loss" in target.run("ping -c 2 -W 2 10.78.0.2")


@pytest.mark.qemu
def test_fcoe_initiator_finds_the_disk_and_verifies_it(pair: Pair) -> None:
    """VN2VN, a login without a fabric; 2 MiB written to a block device and read back."""
    target, initiator = pair
    recipes.fcoe_target(target, INITIATOR_MAC)
    assert recipes.fcoe_login(initiator).startswith("0x00")
    recipes.verify_disk(initiator)
    initiator.run("echo eth0 >/sys/bus/fcoe/ctlr_destroy")
    assert initiator.run("sleep 1; [ -b /dev/sda ]; echo $?") == "1\n"


@pytest.mark.qemu
def test_iscsi_initiator_finds_the_disk_and_verifies_it(pair: Pair) -> None:
    """The kernel's target and the kernel's initiator; 2 MiB written to a block device and read back."""
    target, initiator = pair
    recipes.iscsi_target(target, TARGET)
    recipes.iscsi_login(initiator, TARGET)
    recipes.verify_disk(initiator)


@pytest.mark.qemu
def test_a_disk_that_never_came_is_a_failure(pair: Pair) -> None:
    """A plain file in /dev reads back what was written to it: it must not verify."""
    target, _ = pair
    with pytest.raises(CommandError, match="not a block device"):
        recipes.verify_disk(target, device="/dev/sdz")
