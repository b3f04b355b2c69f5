# SPDX-License-Identifier: Apache-2.0
"""Mistakes of network devices: real ones, an engine and the doctor in a network namespace of the test's own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.running import FIRST_CPU, PATIENCE, frame, until
from tests.mistakes.made import STRANGER, A, B, Finding, seen, vms
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.netns import Namespace
from vmq.guest.guest import Guest

pytestmark = pytest.mark.root
UDP_SEGMENT = 103  # linux/udp.h: setsockopt of SOL_UDP
LAN = 'uplink = "lan"\naccept = []\n'
ENGINE = f'[engine]\napi = "{{folder}}/api.sock"\nprocessors = "{FIRST_CPU}"\nguard = false\n'
FEW = "[doctor]\nbusy_frames = 10\n"
PACKET = '[uplink.lan]\nkind = "packet"\ndevice = "v0"\n'
ROOT = Path(__file__).parents[2]


class Wired:
    """An engine whose uplink is one end of a veth pair; the other end is in another namespace, for the test."""

    def __init__(self, folder: Path, inside: Namespace, peer: Namespace) -> None:
        self.folder, self.inside, self.peer = folder, inside, peer
        for one in (inside, peer):
            one.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        inside.veth("v0", peer, "v1")

    def engine(self, text: str) -> EngineProcess:
        return EngineProcess(self.folder, ENGINE + text, self.inside)

    def wire(self) -> socket.socket:
        """Frames at the other end."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            made.bind(("v1", 3))
            made.settimeout(PATIENCE)
            return made

        return self.peer.call(make)

    def found(self, code: str) -> dict[str, Finding]:
        """What vmq doctor finds, as a process inside."""
        words = [
            sys.executable,
            "-m",
            "vmq",
            "doctor",
            code,
            "--json",
            "--config",
            str(self.folder / "vmq.toml"),
        ]
        ran = subprocess.run(
            self.inside.command(words), capture_output=True, text=True, timeout=60, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert ran.stderr == ""
        answers: list[dict[str, Any]] = json.loads(ran.stdout)
        return {one["subject"]: one for one in answers if one["status"] == "found"}


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Wired]:
    with Namespace("doctor") as inside, Namespace("peer") as peer:
        yield Wired(tmp_path, inside, peer)


def guest(wired: Wired, name: str, mac: str) -> Guest:
    return Guest(wired.folder / f"{name}.sock", mac, size=64, room=1 << 16)


def answered(wire: socket.socket, count: int, swallowed: str) -> None:
    """The NIC between: every frame goes back to its sender, but those to one address are lost."""
    lost = bytes.fromhex(swallowed.replace(":", ""))
    for _ in range(count):
        sent = wire.recv(2000)
        if sent[6:12] != lost:
            wire.send(sent[6:12] + sent[:6] + sent[12:])


def test_d07_a_nic_that_swallows_one_address(wired: Wired) -> None:
    """Both VMs send and are answered; what comes back to one of them is lost on the way."""
    with (
        wired.engine(FEW + PACKET + vms(LAN, a=A, b=B)) as engine,
        guest(wired, "a", A) as a,
        guest(wired, "b", B) as b,
        wired.wire() as wire,
    ):
        engine.wait_for("b", "running")
        for one in (a, b):
            one.send([frame(STRANGER, one.mac, number) for number in range(20)])
        answered(wire, 40, A)
        assert len(b.receive(20, PATIENCE)) == 20

        (found,) = wired.found("D07").values()
        assert (found["subject"], found["confidence"]) == ("VM a on uplink lan", "possible")
        assert seen(found)["ethtool -i v0"].startswith("veth ")
        a.send([frame(STRANGER, A)])
        answered(wire, 1, B)
        assert a.receive(1, PATIENCE)
        assert not wired.found("D07")


def test_d09_a_device_that_goes_down_and_comes_back(wired: Wired) -> None:
    """The engine says what the kernel says; ip link set up, as the fix has it."""
    with wired.engine(PACKET + vms(LAN, a=A)) as engine:
        assert not wired.found("D09")
        wired.inside.run("ip", "link", "set", "v0", "down")
        until(lambda: engine.show("uplinks")["lan"]["state"] == "down", "down")
        found = wired.found("D09")["uplink lan"]
        assert (found["severity"], seen(found)["vmq show uplinks: state"]) == ("error", "down")
        assert found["fix"]["command"].startswith("ip link set v0 up")
        wired.inside.up("v0")
        until(lambda: not wired.found("D09"), "up again")


def test_d18_frames_that_the_host_merges_are_cut_again(wired: Wired) -> None:
    """One datagram of 20,001 bytes that the sender leaves to its device; the doctor's step is ethtool -K."""
    wired.peer.address("v1", "10.9.0.1/24")
    wired.peer.run("ip", "neigh", "add", "10.9.0.2", "lladdr", A, "dev", "v1")
    wired.inside.run("ethtool", "-K", "v0", "gro", "on")
    with (
        wired.engine(PACKET + vms(LAN, a=A)) as engine,
        wired.peer.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender,
    ):
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sender.sendto(bytes(20_001), ("10.9.0.2", 9))
        until(lambda: engine.show("uplinks")["lan"]["segmented"], "a segmented frame")

        found = wired.found("D18")["uplink lan"]
        assert seen(found) == {"vmq show uplinks --json: segmented": "1"}
        wired.inside.run(*found["fix"]["command"].split())
        assert not wired.found("D18")


def test_d28_a_device_that_takes_shorter_frames_than_its_vm(wired: Wired) -> None:
    """The MTU is the device's own, and ip link changes it."""
    wired.inside.run("ip", "link", "set", "v0", "mtu", "1400")
    (wired.folder / "vmq.toml").write_text(PACKET + vms(LAN + "mtu = 1500\n", a=A))

    assert seen(wired.found("D28")["VM a"])["MTU of uplink lan"] == "1400"
    wired.inside.run("ip", "link", "set", "v0", "mtu", "1500")
    assert not wired.found("D28")
