# SPDX-License-Identifier: Apache-2.0
"""Real guests exchange real traffic through their receive queues, with the host and with each other."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.vm.conftest import HOST4, HOST6, MAC, TAP, Lan, join
from tests.vm.lab import recipes
from tests.vm.lab.tgt import iscsi_server

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.timeout(300)]


def test_host_and_guest_ping_each_other_over_ipv4_and_ipv6(lan: Lan) -> None:
    """The host is at the other end of the TAP; ARP and neighbour discovery cross as broadcast and multicast."""
    lan.host.run("ping", "-c", "3", "-i", "0.2", "-W", "2", "10.0.0.1")
    lan.host.run("ping", "-6", "-c", "3", "-i", "0.2", "-W", "2", "fd00::1")
    lan.a.run(f"ping -c 3 -W 2 {HOST4}")
    lan.a.run(f"ping6 -c 3 -W 2 {HOST6}")


def test_guests_ping_each_other_over_ipv4_and_ipv6(lan: Lan) -> None:
    """VM to VM: the frames never reach the uplink."""
    lan.a.run("ping -c 2 -W 2 10.0.0.2")  # resolves the address
    before = lan.engine.show("uplinks")["lan"]["frames_to_wire"]
    lan.a.run("ping -c 20 -A -W 2 10.0.0.2")
    after = lan.engine.show("uplinks")["lan"]["frames_to_wire"]

    lan.b.run("ping6 -c 3 -W 2 fd00::1")
    assert after - before < 10, "unicast between guests left the host"


def test_64_mebibytes_by_http_from_guest_to_host_arrive_intact(lan: Lan, tmp_path: Path) -> None:
    """TCP at the speed the guest can send: every byte counts."""
    total = recipes.make_file(lan.a, "/srv/big", 64)
    recipes.serve_http(lan.a)

    lan.host.run("wget", "-q", "-O", str(tmp_path / "big"), "http://10.0.0.1/big", timeout=200)

    assert hashlib.md5((tmp_path / "big").read_bytes(), usedforsecurity=False).hexdigest() == total


def test_64_mebibytes_by_http_from_guest_to_guest_arrive_intact(lan: Lan) -> None:
    """One copy, guest to guest."""
    total = recipes.md5(lan.a, "/srv/big")

    assert recipes.fetch(lan.b, "http://10.0.0.1/big", 200) == total


def test_64_mebibytes_by_http_from_host_to_guest_arrive_intact(lan: Lan, tmp_path: Path) -> None:
    """The host's stack finishes checksums and segments itself: the TAP offers no offload."""
    data = os.urandom(64 << 20)
    (tmp_path / "big").write_bytes(data)
    server = lan.host.popen("busybox", "httpd", "-f", "-h", str(tmp_path), "-p", f"{HOST4}:8080")
    try:
        time.sleep(0.3)
        got = recipes.fetch(lan.a, f"http://{HOST4}:8080/big", 200)
    finally:
        server.terminate()

    assert got == hashlib.md5(data, usedforsecurity=False).hexdigest()


def test_guest_gets_its_address_by_dhcp(lan: Lan, tmp_path: Path) -> None:
    """Broadcast both ways, and a UDP checksum that nobody left unfinished (the classic DHCP failure)."""
    (tmp_path / "udhcpd.conf").write_text(
        f"start 10.0.0.100\nend 10.0.0.110\ninterface {TAP}\nlease_file {tmp_path}/leases\npidfile {tmp_path}/pid\n"
        "option subnet 255.255.255.0\n"
    )
    (tmp_path / "leases").touch()
    server = lan.host.popen("busybox", "udhcpd", "-f", str(tmp_path / "udhcpd.conf"))
    try:
        assert recipes.dhcp(lan.b).startswith("10.0.0.1")
    finally:
        server.terminate()
        lan.b.run("ip address flush dev eth0; ip address add 10.0.0.2/24 dev eth0")
        lan.b.run("ip -6 address add fd00::2/64 dev eth0 nodad || true")


def test_guest_gets_its_address_by_dhcp_from_another_guest(lan: Lan) -> None:
    """The same without the host."""
    lan.a.run(
        "printf 'start 10.0.0.120\\nend 10.0.0.129\\ninterface eth0\\nlease_file /tmp/leases\\n"
        "pidfile /tmp/udhcpd.pid\\noption subnet 255.255.255.0\\n' >/tmp/udhcpd.conf; touch /tmp/leases; "
        "busybox udhcpd /tmp/udhcpd.conf"
    )
    try:
        assert recipes.dhcp(lan.b).startswith("10.0.0.12")
    finally:
        lan.a.run("kill $(cat /tmp/udhcpd.pid)")
        lan.b.run("ip address flush dev eth0; ip address add 10.0.0.2/24 dev eth0")
        lan.b.run("ip -6 address add fd00::2/64 dev eth0 nodad || true")


def test_two_vlans_do_not_hear_each_other(lan: Lan) -> None:
    """The same subnet in VLAN 10 and VLAN 20: no ping, not even the broadcast of ARP."""
    heard = lan.engine.show("vms")["b20"]["frames_to_guest"]
    lan.a.run("ip address add 10.9.0.1/24 dev eth1")
    lan.b.run("ip address add 10.9.0.2/24 dev eth1")

    lan.a.run("ping -c 2 -W 1 10.9.0.2 && exit 1 || exit 0")

    assert lan.engine.show("vms")["b20"]["frames_to_guest"] == heard


def test_two_guests_of_one_vlan_hear_each_other_and_see_no_tag(lan: Lan) -> None:
    """`vlan = 30` on both: the guests' own frames are untagged."""
    before = {name: lan.engine.show("vms")[name]["drops"] for name in ("a30", "b30")}

    lan.a.run("ping -c 3 -W 2 10.3.0.2")

    assert {name: lan.engine.show("vms")[name]["drops"] for name in ("a30", "b30")} == before


# The families of libiscsi's suite that only read. LIO compares nothing in VERIFY and keeps no reservation key, so those
# two families say nothing about the way there.
HARMLESS = (
    *(
        f"SCSI.{name}"
        for name in ("TestUnitReady", "Inquiry", "Mandatory", "ModeSense6", "ReportSupportedOpcodes")
    ),
    *(f"SCSI.{name}" for name in ("Read6", "Read10", "Read12", "Read16", "ReadCapacity10", "ReadCapacity16")),
    *(f"SCSI.{name}" for name in ("GetLBAStatus", "ReadDefectData10", "ReadDefectData12", "StartStopUnit")),
    *(
        f"SCSI.{name}"
        for name in ("Prefetch10", "Prefetch16", "NoMedia", "ReadOnly", "PrinReportCapabilities")
    ),
    *(f"iSCSI.{name}" for name in ("iSCSIcmdsn", "iSCSIdatasn")),
)


def test_iscsi_target_in_the_guest_serves_an_initiator_on_the_host(lan: Lan) -> None:
    """LIO in the guest, libiscsi's tools on the host: inquiry, capacity, and the harmless tests of its suite."""
    recipes.iscsi_target(lan.a, "10.0.0.1")
    url = f"iscsi://10.0.0.1/{recipes.ISCSI_TARGET}/0"

    assert "LIO-ORG" in lan.host.run("iscsi-inq", url)
    assert "RETURNED" in lan.host.run("iscsi-readcapacity16", url).upper()
    for family in HARMLESS:  # of several --test options only the last one counts
        conformance(lan, f"{family}.*", url)


def conformance(lan: Lan, tests: str, url: str, *options: str) -> None:
    """Run tests of libiscsi's suite from the host: some run, and all that run pass."""
    suite = lan.host.run("iscsi-test-cu", *options, f"--test={tests}", url, timeout=120, check=False)
    summary = re.search(r"^\s*tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", suite, re.MULTILINE)
    assert summary is not None, suite
    _total, run, passed, failed = map(int, summary.groups())
    assert run >= 1, suite
    assert (passed, failed) == (run, 0), suite


def test_iscsi_disk_of_the_guest_holds_what_the_host_wrote_and_what_the_other_guest_writes(lan: Lan) -> None:
    """The suite's writes, which lose data, from the host; the other guest reads their pattern, then writes its own."""
    url = f"iscsi://10.0.0.1/{recipes.ISCSI_TARGET}/0"
    for family in ("Write12", "Write16", "WriteVerify10", "Write10"):
        conformance(lan, f"SCSI.{family}.*", url, "--dataloss")
    conformance(lan, "SCSI.Write10.Simple", url, "--dataloss")
    recipes.iscsi_login(lan.b, "10.0.0.1")
    try:
        other = lan.b.run("dd if=/dev/sda bs=512 count=256 iflag=direct 2>/dev/null | tr -d '\\246' | wc -c")
        assert other.strip() == "0", "bytes that are not the suite's"
        recipes.verify_disk(lan.b)
    finally:
        lan.b.run(
            "echo 1 >/sys/block/sda/device/delete; iscsistart -v >/dev/null 2>&1; killall iscsistart || true"
        )


def test_iscsi_disk_of_the_host_reads_back_in_the_guest(lan: Lan, tmp_path: Path) -> None:
    """tgt on the host, the guest's own initiator."""
    with iscsi_server(lan.host, tmp_path) as disk:
        recipes.iscsi_login(lan.a, HOST4)
        recipes.verify_disk(lan.a)
        assert disk.read_bytes().strip(b"\0")
        lan.a.run("echo 1 >/sys/block/sda/device/delete; killall iscsistart || true")


def test_fcoe_between_two_guests_verifies_a_lun(lan: Lan) -> None:
    """VN2VN login by multicast and learned addresses; the LUN is a block device and 2 MiB read back equal."""
    recipes.fcoe_target(lan.a, MAC["b"])
    recipes.fcoe_login(lan.b)
    recipes.verify_disk(lan.b, device=lan.b.run("ls -d /dev/sd? | tail -1").strip())

    vms = lan.engine.show("vms")
    assert vms["a"]["learned"][0].startswith("0e:fd:00"), vms["a"]
    assert vms["b"]["learned"][0].startswith("0e:fd:00"), vms["b"]


def test_tcp_connection_survives_a_killed_engine(lan: Lan) -> None:
    """kill -9 in the middle of a transfer and a new start: QEMU reconnects, the stream ends with the right hash."""
    data = os.urandom(48 << 20)
    lan.a.run("rm -f /srv/big /run/fetched")
    job = recipes.receive_stream(lan.a, 7001)
    killed = threading.Event()

    def send() -> None:
        """Slowly, until the engine is dead: a fast machine would be done before."""
        with socket.create_connection(("10.0.0.1", 7001), 10) as sock:
            sock.settimeout(120)
            for place in range(0, len(data), 1 << 16):
                sock.sendall(data[place : place + (1 << 16)])
                killed.wait(0.02)

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(lan.host.call, send, 200)
        deadline = time.monotonic() + 60
        while recipes.received(lan.a) < 4 << 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        lan.engine.kill()
        killed.set()
        assert recipes.received(lan.a) < len(data), "the transfer was over before the engine was killed"
        lan.engine.start()
        join(lan.engine, lan.host)
        sent.result(200)
    job.wait(120)

    assert recipes.received(lan.a) == len(data)
    assert recipes.md5(lan.a, "/run/received") == hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert lan.engine.show("vms")["a"]["state"] == "running"
