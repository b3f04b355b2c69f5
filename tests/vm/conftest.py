# SPDX-License-Identifier: Apache-2.0
"""Two Debian guests on one engine whose uplink is a TAP: the host of a namespace is at its other end.

                     ┌── eth0 untagged ── a ── eth1 VLAN 10 ──┐
    host, vmqtap0 ── engine                                  engine (the same)
                     └── eth0 untagged ── b ── eth1 VLAN 20 ──┘        and eth2 of both in VLAN 30

They are booted once for all tests of this folder that use `lan`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.image import STORAGE
from tests.vm.lab.netns import Namespace, joined
from tests.vm.lab.nic import vhost_user
from tests.vm.lab.qemu import Guest

MAC = {
    "a": "52:54:00:00:00:01", "b": "52:54:00:00:00:02",
    "a10": "52:54:00:00:10:01", "b20": "52:54:00:00:20:02",
    "a30": "52:54:00:00:30:01", "b30": "52:54:00:00:30:02",
}  # fmt: skip
VLAN = {"a10": 10, "b20": 20, "a30": 30, "b30": 30}
FCOE = '["0e:fc:00:00:00:00/24", "0e:fd:00:00:00:00/24"]'
HOST4, HOST6 = "10.0.0.254", "fd00::fe"
TAP = "vmqtap0"


def configuration() -> str:
    """The configuration of the engine."""
    text = f'[uplink.lan]\nkind = "tap"\ndevice = "{TAP}"\n'
    for name, mac in MAC.items():
        text += f'[vm.{name}]\nsocket = "{{folder}}/{name}.sock"\nuplink = "lan"\nmac = "{mac}"\n'
        text += f"vlan = {VLAN[name]}\n" if name in VLAN else f"learn = {FCOE}\n"
    return text


@dataclass(frozen=True)
class Lan:
    """What a test gets."""

    host: Namespace
    engine: EngineProcess
    a: Guest
    b: Guest


def join(engine: EngineProcess, host: Namespace) -> None:
    """Give the host its addresses; the TAP is the engine's, and new after each of its starts."""
    del engine
    host.sysctl(f"net/ipv6/conf/{TAP}/accept_dad", 0)
    host.address(TAP, f"{HOST4}/24")
    host.run("ip", "-6", "address", "add", f"{HOST6}/64", "dev", TAP, "nodad")


@pytest.fixture(scope="package")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    folder: Path = tmp_path_factory.mktemp("lan")
    with Namespace("lan") as host, EngineProcess(folder, configuration(), host) as engine:
        join(engine, host)

        def nics(side: str, number: int, others: tuple[str, ...]) -> list:
            first = vhost_user(
                folder / f"{side}.sock", MAC[side], f"10.0.0.{number}/24", f"fd00::{number}/64"
            )
            rest = [
                vhost_user(folder / f"{name}.sock", MAC[name], f"10.{net}.0.{number}/24")
                for name, net in zip(others, (1, 3), strict=True)
            ]
            return [first, *rest]

        with (
            Guest("a", nics("a", 1, ("a10", "a30")), image=STORAGE) as a,
            Guest("b", nics("b", 2, ("b20", "b30")), image=STORAGE) as b,
        ):
            a.ready()
            b.ready()
            yield Lan(host, engine, a, b)


@pytest.fixture
def ends() -> Iterator[tuple[Namespace, Namespace]]:
    with joined() as found:
        yield found
