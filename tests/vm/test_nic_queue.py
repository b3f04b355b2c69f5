# SPDX-License-Identifier: Apache-2.0
"""Receive queues of a NIC for VMs, from outside: an engine in a namespace, on a veth that chooses queues by destination."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.direct.harness_nic import Nic
from tests.hostile.arena import MACS, PATIENCE, frame, until
from tests.vm.lab import recipes
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.image import NET
from tests.vm.lab.netns import Namespace
from tests.vm.lab.nic import vhost_user
from tests.vm.lab.qemu import Guest as QemuGuest
from tests.vm.test_direct import DIRECT, direct, is_placed, placement
from tests.vm.test_xdp import UPLINK, WIRE, station, vm
from vmq.abi.ethernet import mac_number

pytestmark = pytest.mark.root
QUEUES = {"attacker": 2, "peer": 3}
CONFIG = UPLINK + "".join(vm(name, f"{DIRECT}\nnic_queue = {queue}") for name, queue in QUEUES.items())
Wire = tuple[Namespace, socket.socket]


@pytest.fixture
def wire() -> Iterator[Wire]:
    """The engine's host, and the far end of its NIC, which has rules for both VMs."""
    with Namespace("near") as near, Namespace("far") as far:
        for end in (near, far):
            end.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        with Nic(near, far, device="wire0") as nic, station(far) as there:
            for name, queue in QUEUES.items():
                nic.rule(mac_number(MACS[name]), queue)
            yield near, there


def test_each_vm_has_its_queue_and_a_broadcast_reaches_both_and_changes_both_for_a_moment(
    tmp_path: Path, wire: Wire
) -> None:
    near, there = wire
    with EngineProcess(tmp_path, CONFIG, near) as engine:
        with direct(engine, "attacker") as one, direct(engine, "peer") as other:
            guests = {"attacker": one, "peer": other}
            for lap in range(3):
                for name in guests:
                    until(lambda name=name: is_placed(engine, name, "direct"))  # type: ignore[misc]
                    assert placement(engine, name)["why"] == "by a NIC queue of its own"
                for number in range(30):
                    for name in guests:
                        there.send(frame(name, WIRE, number))
                for name, guest in guests.items():
                    assert guest.receive(30, PATIENCE) == [frame(name, WIRE, number) for number in range(30)]
                everybody = frame("ff:ff:ff:ff:ff:ff", WIRE, lap)
                there.send(everybody)
                for guest in guests.values():
                    assert guest.receive(1, PATIENCE) == [everybody]
                one.send([frame("peer", MACS["attacker"], lap)])
                assert other.receive(1, PATIENCE) == [frame("peer", MACS["attacker"], lap)]
            rows = engine.show("vms")
            assert all(rows[name]["frames_placed"] > 0 for name in guests)
        assert "Traceback" not in engine.log
        assert engine.stop() == 0
    (shown,) = json.loads(near.run("ip", "-json", "link", "show", "wire0"))
    assert "xdp" not in shown


def test_a_crash_loses_no_buffer_and_the_next_engine_has_the_queue(tmp_path: Path, wire: Wire) -> None:
    near, there = wire
    with EngineProcess(tmp_path, CONFIG, near) as engine:
        with direct(engine, "attacker") as one:
            there.send(frame("attacker", WIRE, 1))
            assert one.receive(1, PATIENCE) == [frame("attacker", WIRE, 1)]
            engine.kill()
        engine.start()
        with direct(engine, "attacker") as one:
            assert placement(engine, "attacker")["why"] == "by a NIC queue of its own"
            there.send(frame("attacker", WIRE, 7))
            assert one.receive(1, PATIENCE) == [frame("attacker", WIRE, 7)]


@pytest.mark.qemu
@pytest.mark.timeout(300)
def test_a_real_guest_gets_a_page_by_its_own_queue(tmp_path: Path) -> None:
    """From a server at the far end. The frames that ask for addresses come by another path, and have it switched for a moment."""
    mac, (folder, page) = MACS["attacker"], (tmp_path / "served", os.urandom(16 << 20))
    folder.mkdir()
    (folder / "page").write_bytes(page)
    with Namespace("near") as near, Namespace("far") as far, Nic(near, far, device="wire0") as nic:
        nic.rule(mac_number(mac), QUEUES["attacker"])
        far.run("ethtool", "-K", "host0", "tx", "off")  # checksums that nobody would finish
        far.address("host0", "10.0.0.254/24")
        card = vhost_user(tmp_path / "attacker.sock", mac, "10.0.0.1/24")
        with (
            EngineProcess(tmp_path, CONFIG, near) as engine,
            QemuGuest("one", [card], image=NET) as guest,
        ):
            guest.ready()
            until(lambda: is_placed(engine, "attacker", "direct"))
            server = far.popen("busybox", "httpd", "-f", "-h", str(folder), "-p", "10.0.0.254:8080")
            try:
                until(lambda: far.run("ss", "-ltnH"))
                got = recipes.fetch(guest, "http://10.0.0.254:8080/page")
            finally:
                server.terminate()
            assert got == hashlib.md5(page, usedforsecurity=False).hexdigest()
            row = engine.show("vms")["attacker"]
            assert row["frames_placed"] > 5000
            assert row["frames_placed"] > row["frames_to_guest"] / 2
            assert engine.show("uplinks")["wire"]["verdicts"]["own_queue"] > row["frames_placed"] / 2
