# SPDX-License-Identifier: Apache-2.0
"""QEMU's device in its variants, each with an engine of its own: what works, and what is refused in words
(Q1, Q3)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.lab.image import NET, Contents
from tests.vm.lab.netboot import netboot
from tests.vm.lab.qemu import Guest
from tests.vm.lab.site import HOST, TAP, Site, mac, site

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.timeout(200)]

# virtio-1.2 §5.1.3 Feature bits, §6 Reserved Feature Bits: those that the back-end has a say in.
FEATURES = {
    3: "net_f_mtu", 15: "net_f_mrg_rxbuf", 21: "net_f_guest_announce", 22: "net_f_mq",
    28: "ring_f_indirect_desc", 29: "ring_f_event_idx", 32: "f_version_1",
}  # fmt: skip
OFF = {
    "mrg_rxbuf": "net_f_mrg_rxbuf",
    "event_idx": "ring_f_event_idx",
    "indirect_desc": "ring_f_indirect_desc",
}
USUAL = {"net_f_mrg_rxbuf", "net_f_guest_announce", "ring_f_indirect_desc", "ring_f_event_idx", "f_version_1"}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as ready:
        yield ready


def driver_features(guest: Guest) -> set[str]:
    """What the guest's driver has chosen, as it says itself."""
    bits = guest.run("cat /sys/class/net/eth0/device/features").strip()
    return {name for bit, name in FEATURES.items() if bits[bit] == "1"}


@pytest.mark.parametrize(
    "off", [(), *((name,) for name in OFF), tuple(OFF)], ids=lambda off: "-".join(off) or "all"
)
def test_ring_features_that_the_device_lacks_are_done_without(here: Site, off: tuple[str, ...]) -> None:
    """Mergeable or not, event index or flags, indirect or not: the same traffic, and both ends name the same."""
    with here.guest("a", here.nic("a", dict.fromkeys(off, "off"))) as guest:
        guest.ready()

        assert here.ping("a") == 3
        here.upload(guest)
        here.download(guest)

        chosen = set(here.row("a")["features"])
        assert chosen == driver_features(guest) == USUAL - {OFF[name] for name in off}


def test_legacy_device_is_refused_in_words_and_the_port_takes_a_modern_one_later(here: Site) -> None:
    """Its rings are of another byte order and its header shorter: no frame moves, and its neighbour does not care."""
    with here.guest("b") as neighbour:
        old = here.nic("a", {"disable-modern": "on", "disable-legacy": "off"})
        with here.guest("a", old, machine="pc") as legacy:
            legacy.ready()
            neighbour.ready()
            legacy.run(f"ping -c 2 -W 1 {HOST}", check=False)
            row = here.row("a")

            assert (row["state"], row["queues_running"], row["features"]) == ("connected", 0, [])
            assert (row["frames_to_guest"], row["frames_from_guest"]) == (0, 0)
            assert "virtio 0.95" in row["last_error"]["what"]
            assert "virtio 1.0" in row["last_error"]["remedy"]
            assert "disable-modern=off" in row["last_error"]["remedy"]
            assert here.ping("b") == 3
            neighbour.run(f"ping -c 2 -W 1 {HOST}")

        with here.guest("a") as modern:
            modern.run("ping -c 3 -W 2 10.0.0.2")
            assert here.row("a")["last_error"] is None


def test_two_queue_pairs_come_and_go_while_frames_flow(here: Site) -> None:
    """The driver of two processors starts with two; its control queue is QEMU's, and reaches us as SET_VRING_ENABLE."""
    image = Contents(NET.modules, ("ethtool",))
    with here.guest("a", here.nic("a", queues=2), image=image, processors=2) as guest:
        guest.ready()
        assert "net_f_mq" in here.row("a")["features"]
        here.upload(guest, 4)
        address = here.address("a")
        pinging = here.host.popen(
            "ping", "-q", "-c", "60", "-i", "0.1", "-W", "1", address, log=here.folder / "ping"
        )
        for pairs in (1, 2, 1, 2, 1):
            guest.run(f"ethtool -L eth0 combined {pairs}")
            deadline = time.monotonic() + 5  # QEMU waits for no answer to SET_VRING_ENABLE
            while here.row("a")["queues_running"] != pairs and time.monotonic() < deadline:
                time.sleep(0.02)
            states = {key: row["state"] for key, row in here.engine.show("queues").items() if key[:2] == "a/"}
            assert [states[f"a/{pair}"] for pair in range(pairs)] == ["running"] * pairs
            assert list(states.values()).count("running") == pairs
            guest.run(f"ping -c 3 -i 0.1 -W 2 {HOST}")
        pinging.wait(30)

        told = (here.folder / "ping").read_text()
        assert int(told.split(" received")[0].split()[-1]) >= 59, told


@pytest.mark.parametrize("backend", ["memory-backend-ram", "memory-backend-memfd,share=off"])
def test_guest_memory_that_is_not_shared_is_said_with_the_remedy(here: Site, backend: str) -> None:
    """QEMU connects all the same: it sends no region, or the file of memory that it has mapped for itself."""
    with here.guest("b") as neighbour:
        with here.guest("a", backend=backend) as guest:
            guest.run(f"ping -c 2 -W 1 {HOST}", check=False)
            neighbour.ready()
            assert here.ping("a", count=1) == 0
            row = here.row("a")

            assert (row["frames_to_guest"], row["frames_from_guest"]) == (0, 0)
            assert "memory" in row["last_error"]["what"]
            assert "share=on" in row["last_error"]["remedy"]
            assert here.ping("b") == 3

        with here.guest("a") as shared:
            shared.ready()
            assert here.ping("a") == 3
            assert here.row("a")["last_error"] is None


def test_jumbo_frames_reach_guests_that_were_told_the_mtu(tmp_path: Path) -> None:
    """One with mergeable buffers, one with buffers of nine kilobytes; -M do forbids fragments."""
    with (
        site(tmp_path, mtu=9000) as here,
        here.guest("a", here.nic("a", {"host_mtu": 9000})) as a,
        here.guest("b", here.nic("b", {"host_mtu": 9000, "mrg_rxbuf": "off"})) as b,
    ):
        for guest in (a, b):
            assert guest.run("cat /sys/class/net/eth0/mtu").strip() == "9000"
            assert here.row(guest.name)["mtu"] == 9000
            assert here.ping(guest.name, "-s", "8972", "-M", "do") == 3
        a.run("ping -c 3 -W 2 -s 8000 10.0.0.2")
        b.run("ping -c 3 -W 2 -s 8000 10.0.0.1")
        for guest in (a, b):
            names, values = guest.run("grep ^Ip: /proc/net/snmp").splitlines()
            assert dict(zip(names.split(), values.split(), strict=True))["FragCreates"] == "0"
        here.upload(b)
        here.download(b)


@pytest.mark.parametrize(("told", "effective"), [(68, 68), (1400, 1400), (65535, 1500)])
def test_mtu_that_the_device_tells_its_driver_limits_the_port(here: Site, told: int, effective: int) -> None:
    """The smallest of what the configuration, the uplink and the front-end say; what is longer has a named drop."""
    with here.guest("a", here.nic("a", {"host_mtu": told})) as guest:
        assert guest.run("cat /sys/class/net/eth0/mtu").strip() == str(told)
        assert here.row("a")["mtu"] == effective
        header = 20 + 8
        assert here.ping("a", "-s", str(effective - header), "-M", "do") == 3
        if effective < 1500:
            assert here.ping("a", "-s", str(effective + 1 - header), "-M", "do", count=2) == 0
            assert here.row("a")["drops"]["to_guest_too_long"] >= 2
            assert here.row("a")["last_error"] is None
        else:
            guest.run(f"ping -c 1 -W 1 -s {effective + 1 - header} {HOST}", check=False)
            assert here.row("a")["drops"]["from_guest_too_long"] >= 1
            assert "host_mtu=1500" in here.row("a")["last_error"]["remedy"]


def test_firmware_boots_its_guest_through_the_engine(here: Site) -> None:
    """iPXE in the device's ROM, an independent driver: DHCP, TFTP, HTTP; then Linux on the same port."""
    with (
        netboot(here.host, TAP, HOST, here.folder, mac("a"), here.address("a")) as fetched,
        here.guest("a", image=None) as guest,
    ):
        guest.ready()
        assert fetched == ["script", "initrd"]
        assert here.ping("a") == 3
        here.upload(guest, 2)
        assert here.row("a")["last_error"] is None
