# SPDX-License-Identifier: Apache-2.0
"""A guest gives its device addresses, and QEMU tells who follows it: no engine, QEMU's own network.

An address gets onto a device's list as FCoE's does, by `dev_uc_add` in the guest's kernel: a macvlan device uses it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.vm.lab.image import NET, Contents
from tests.vm.lab.nic import user
from tests.vm.lab.qemu import Guest
from vmq.abi.ethernet import mac_number
from vmq.config import Vm
from vmq.qmp import Follower, RxFilter, follower, pick, wanted

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(200)]
OWN, SECOND, NEW = "52:54:00:00:00:01", "52:54:00:00:00:02", "02:00:00:00:00:09"
FIRST_OF_MANY = "0e:fd:00:00:00:00"
MACVLAN = Contents((*NET.modules, "macvlan"))
QEMU_TABLE = 64  # what its unicast and multicast tables hold together


@dataclass(frozen=True)
class Host:
    """A guest with two network devices, and the folder of its QEMU's sockets for followers, `vmq` and `other`."""

    guest: Guest
    folder: Path


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("qmp")
    sockets = [f"unix:{folder}/{name},server=on,wait=off" for name in ("vmq", "other")]
    arguments = [word for path in sockets for word in ("-qmp", path)]
    with Guest("followed", [user(OWN), user(SECOND)], image=MACVLAN, arguments=arguments) as one:
        one.ready().run("modprobe macvlan; modprobe 8021q; ip link set eth0 up; ip link set eth1 up")
        yield Host(one, folder)


@pytest.fixture(autouse=True)
def only_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked now and then would hide an event that was missed."""
    monkeypatch.setattr(follower, "POLL_SECONDS", 3600.0)


class Watch:
    """A follower of the guest, in this thread's event loop, and what it was told last."""

    def __init__(self, host: Host, nic: str | None = None, socket: str = "vmq") -> None:
        self.guest, self.devices, self.troubles = host.guest, tuple[RxFilter, ...](), list[str]()
        self.follower = Follower(str(host.folder / socket), nic, self._answered, self._troubled)

    def _answered(self, devices: tuple[RxFilter, ...]) -> None:
        self.devices = devices

    def _troubled(self, what: str, remedy: str) -> None:
        assert remedy
        self.troubles.append(what)

    @property
    def mine(self) -> RxFilter:
        nothing = RxFilter("", 0, everything=True, overflow=True)
        return pick(self.devices, {mac_number(OWN)}, "nic0-device") or nothing

    async def run(self, script: str) -> None:
        await asyncio.to_thread(self.guest.run, script)

    async def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, f"{self.devices}, troubles: {self.troubles}"
            await asyncio.sleep(0.02)


def follow(watch: Watch, scene: Callable[[Watch], Any]) -> None:
    async def main() -> None:
        watch.follower.start()
        try:
            await scene(watch)
        finally:
            watch.follower.close()

    asyncio.run(main())


def test_addresses_that_the_guest_adds_and_removes_are_followed(host: Host) -> None:
    """One event for each question: a second change is seen because the first was asked about."""
    address = mac_number(FIRST_OF_MANY)

    async def scene(watch: Watch) -> None:
        for _ in range(6):
            await watch.run(
                f"ip link add link eth0 name mv0 address {FIRST_OF_MANY} type macvlan; ip link set mv0 up"
            )
            await watch.until(lambda: address in watch.mine.unicast)
            assert wanted(Vm(mac=(OWN,)), watch.mine).followed == (address,)
            await watch.run("ip link delete mv0")
            await watch.until(lambda: address not in watch.mine.unicast)
        assert not any(one.everything for one in watch.devices)

    follow(Watch(host), scene)


def test_the_own_address_and_groups_are_followed(host: Host) -> None:
    """The device is the same one, whatever address the guest gives it."""

    async def scene(watch: Watch) -> None:
        await watch.until(lambda: {one.name for one in watch.devices} == {"nic0-device", "nic1-device"})
        await watch.until(lambda: mac_number("33:33:00:00:00:01") in watch.mine.multicast)
        await watch.run(f"ip link set eth0 address {NEW}")
        await watch.until(lambda: watch.mine.main == mac_number(NEW))
        assert mac_number(NEW) in wanted(Vm(mac=(OWN,)), watch.mine).followed
        await watch.run(f"ip link set eth0 address {OWN}")
        await watch.until(lambda: watch.mine.main == mac_number(OWN))

    follow(Watch(host), scene)


def test_promiscuity_and_vlans_are_told(host: Host) -> None:
    """What the guest expects in vain is known."""

    async def scene(watch: Watch) -> None:
        await watch.run("ip link add link eth0 name eth0.5 type vlan id 5; ip link set eth0.5 up")
        await watch.until(lambda: 5 in watch.mine.vlans)
        await watch.run("ip link delete eth0.5; ip link set eth0 promisc on")
        await watch.until(lambda: watch.mine.everything and 5 not in watch.mine.vlans)
        await watch.run("ip link set eth0 promisc off")
        await watch.until(lambda: not watch.mine.everything)

    follow(Watch(host), scene)


def test_a_list_that_is_too_long_takes_nothing_away(host: Host) -> None:
    """QEMU keeps no unicast entry when its table overflows."""
    add = "ip link add link eth0 name mv$i address 0e:fd:00:00:00:$(printf %02x $i) type macvlan; ip link set mv$i up"

    async def scene(watch: Watch) -> None:
        await watch.run(f"for i in 1 2 3; do {add}; done")
        await watch.until(lambda: len(watch.mine.unicast) == 3)
        before = wanted(Vm(mac=(OWN,)), watch.mine)
        await watch.run(f"for i in $(seq 4 {QEMU_TABLE + 1}); do {add}; done")
        await watch.until(lambda: watch.mine.overflow)
        after = wanted(Vm(mac=(OWN,)), watch.mine, followed=before.followed)
        assert after.followed == before.followed
        assert "table holds" in after.notes[-1].what
        await watch.run(f"for i in $(seq 1 {QEMU_TABLE + 1}); do ip link delete mv$i; done")
        await watch.until(lambda: not watch.mine.overflow and watch.mine.unicast == ())

    follow(Watch(host), scene)


def test_one_device_is_asked_for_by_its_id_and_a_wrong_id_is_said(host: Host) -> None:
    """qmp_nic is the id of QEMU's -device."""

    async def scene(watch: Watch) -> None:
        await watch.until(lambda: [one.name for one in watch.devices] == ["nic1-device"])

    async def wrong(watch: Watch) -> None:
        await watch.until(lambda: watch.troubles)

    follow(Watch(host, "nic1-device"), scene)
    lost = Watch(host, "nic7-device", "other")
    follow(lost, wrong)

    assert "QEMU refuses: invalid net client name: nic7-device" in lost.troubles[0]
    assert lost.devices == ()


def test_a_reboot_empties_the_list(host: Host) -> None:
    """QEMU tells of a reset, not of what it does to the list."""
    address = mac_number(FIRST_OF_MANY)

    async def scene(watch: Watch) -> None:
        await watch.run(
            f"ip link add link eth0 name mv0 address {FIRST_OF_MANY} type macvlan; ip link set mv0 up"
        )
        await watch.until(lambda: address in watch.mine.unicast)
        await asyncio.to_thread(host.guest.reboot, lambda: host.guest.qmp.execute("system_reset"))
        await watch.until(lambda: address not in watch.mine.unicast)

    follow(Watch(host), scene)
