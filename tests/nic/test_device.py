# SPDX-License-Identifier: Apache-2.0
"""What is read of a host that is a directory; what is done to a veth, and gone afterwards."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.lab.netns import Namespace
from vmq import ethtool
from vmq.abi.ethernet import mac_number
from vmq.direct.socket import CHUNK
from vmq.errors import HostError
from vmq.linux import PAGE
from vmq.nic.device import HUGE, Nic
from vmq.uplink.nic_rules import NTUPLE
from vmq.uplink.xdp_device import STRIPPING

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with a NIC eth1, a port of br0."""
    for one in ("eth1/upper_br0", "br0", "eth2"):
        (tmp_path / "sys/class/net" / one).mkdir(parents=True)
    (tmp_path / "proc/thread-self/net").mkdir(parents=True)
    return tmp_path


def route(root: Path, four: str = "", six: str = "") -> None:
    (root / "proc/thread-self/net/route").write_text(HEAD + four)
    (root / "proc/thread-self/net/ipv6_route").write_text(six)


def four(name: str, destination: str = "00000000", mask: str = "00000000") -> str:
    return f"{name}\t{destination}\t0100000A\t0003\t0\t0\t0\t{mask}\t0\t0\t0\n"


def six(name: str, destination: str = "0" * 32, length: str = "00") -> str:
    return f"{destination} {length} {'0' * 32} 00 fe80{'0' * 28} 00000400 00000001 00000000 00000003 {name}\n"


def test_the_default_route_leads_over_a_device_or_what_is_on_top_of_it(root: Path) -> None:
    over = Nic("eth1", 0, root)
    assert over.default_routes() == []
    route(
        root,
        four("eth1", "0000000A", "000000FF") + four("eth2"),
        six("lo") + six("eth1", "fe80" + "0" * 28, "40"),
    )
    assert over.default_routes() == []
    route(root, four("br0"))
    assert over.default_routes() == ["br0"]
    route(root, four("eth2"), six("eth1"))
    assert over.default_routes() == ["eth1"]


def test_rights_are_those_of_the_thread(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """linux-capability.h: numbers of bits."""
    nic, status = Nic("eth1", 0, root), root / "proc/thread-self/status"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    for held, lacks, may in (
        (0, ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF"], 8 << 20),
        (1 << 12 | 1 << 13 | 1 << 39, [], 8 << 20),
        (1 << 12 | 1 << 13 | 1 << 21 | 1 << 14, [], None),
        (1 << 13 | 1 << 21, ["CAP_NET_ADMIN"], 8 << 20),
    ):
        status.write_text(f"Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{held:016x}\n")
        assert (nic.lacks(), nic.may_pin()) == (lacks, may)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    status.write_text("CapEff:\t0\n")
    assert nic.may_pin() is None


def test_huge_pages_that_are_promised_are_not_free(root: Path) -> None:
    nic = Nic("eth1", 0, root)
    assert nic.huge_pages() == 0
    (root / HUGE).mkdir(parents=True)
    for name, count in (("free", 5), ("resv", 2)):
        (root / HUGE / f"{name}_hugepages").write_text(f"{count}\n")
    assert nic.huge_pages() == 3


def test_the_group_of_the_iommu(root: Path) -> None:
    nic, place = Nic("eth1", 0, root), root / "sys/class/net/eth1/device"
    assert nic.iommu() == (False, "", "")
    place.mkdir()
    assert nic.iommu() == (True, "", "")
    group = root / "sys/kernel/iommu_groups/12"
    group.mkdir(parents=True)
    (place / "iommu_group").symlink_to(group)
    (group / "type").write_text("DMA-FQ\n")
    assert nic.iommu() == (True, "12", "DMA-FQ")


def test_interrupts_and_who_serves_them(root: Path) -> None:
    nic = Nic("eth1", 0, root)
    assert nic.interrupts() == {}
    for irq, cpus in ((125, "0"), (126, "1-3")):
        (root / f"proc/irq/{irq}").mkdir(parents=True)
        (root / f"proc/irq/{irq}/smp_affinity_list").write_text(f"{cpus}\n")
        (root / "sys/class/net/eth1/device/msi_irqs").mkdir(parents=True, exist_ok=True)
        (root / f"sys/class/net/eth1/device/msi_irqs/{irq}").write_text("msix\n")
    assert nic.interrupts() == {125: (0,), 126: (1, 2, 3)}


def test_rules_are_switched_back_unless_they_were_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after an error; where they were on, they are not touched: a driver may forget its rules when they go off."""
    state = {NTUPLE: False}
    log: list[bool] = []

    def switch(_: str, feature: str, *, on: bool) -> None:
        log.append(on)
        state[feature] = on

    monkeypatch.setattr(ethtool, "switch", switch)
    monkeypatch.setattr(ethtool, "describe", lambda _: ethtool.Driver("igc", features=dict(state)))

    def fails() -> None:
        with Nic("eth1", 0).choosing() as was:
            assert (was, state[NTUPLE]) == (False, True)
            raise OSError("in between")

    with pytest.raises(OSError, match="in between"):
        fails()
    assert log == [True, False]
    state[NTUPLE] = True
    with Nic("eth1", 0).choosing() as was:
        assert was
    assert log == [True, False]


def test_a_rule_is_deleted_whatever_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[object, ...]] = []

    def add(*given: object) -> int:
        log.append(("add", *given))
        return 9

    def read(*given: object) -> None:
        log.append(("read", *given))
        raise OSError("unreadable")

    monkeypatch.setattr(ethtool, "place_for_rule", lambda _: 15)
    monkeypatch.setattr(ethtool, "add_rule", add)
    monkeypatch.setattr(ethtool, "rule_at", read)
    monkeypatch.setattr(ethtool, "delete_rule", lambda *given: log.append(("delete", *given)))
    mac = mac_number("02:00:00:00:00:01")
    with pytest.raises(OSError, match="unreadable"):
        Nic("eth1", 3).try_rule(mac)
    assert log == [("add", "eth1", mac, 3, 15), ("read", "eth1", 9), ("delete", "eth1", 9)]


# --- a veth


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace("host") as one, Namespace("peer") as peer:
        one.veth("v0", peer, "v1")
        yield one


def shown(host: Namespace) -> dict[str, object]:
    (link,) = json.loads(host.run("ip", "-json", "link", "show", "v0"))
    return dict(link)


@pytest.mark.root
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_program_is_there_while_it_is_asked_for(mode: str, host: Namespace) -> None:
    nic = host.call(lambda: Nic("v0", 0))
    before = shown(host)

    def during() -> dict[str, object]:
        with nic.passing(mode):
            return shown(host)

    assert "xdp" in host.call(during)
    assert "xdp" not in before
    assert "xdp" not in shown(host)


@pytest.mark.root
def test_a_socket_is_bound_again_and_again_and_nothing_stays(host: Namespace) -> None:
    """Were one left open, the queue would be busy for the next."""
    nic = host.call(lambda: Nic("v0", 0))

    def bound(mode: str, chunk: int) -> bool:
        return host.call(lambda: nic.bind(mode, zero_copy=False, chunk=chunk))

    for mode, chunk in (("native", CHUNK), ("native", PAGE), ("generic", CHUNK)):
        assert bound(mode, chunk) is False
    with pytest.raises(OSError, match="not supported"):
        host.call(lambda: nic.bind("native", zero_copy=True, chunk=PAGE))
    assert bound("native", CHUNK) is False
    assert "xdp" not in shown(host)


@pytest.mark.root
def test_large_pages_are_what_a_socket_may_have_too(host: Namespace) -> None:
    """Or they are refused, where the host has none: others take them, too."""
    nic = host.call(lambda: Nic("v0", 0))
    try:
        assert host.call(lambda: nic.bind("native", zero_copy=False, chunk=CHUNK, huge=True)) is False
    except OSError as error:
        if error.errno not in (errno.ENOMEM, errno.ENOSPC):
            raise
    assert "xdp" not in shown(host)


@pytest.mark.root
def test_tags_are_left_in_and_taken_out_again(host: Namespace) -> None:
    nic = host.call(lambda: Nic("v0", 0))
    before = host.call(nic.standing)
    assert host.call(nic.leave_tags_in) == list(STRIPPING)
    assert host.call(nic.standing) == before
    assert before["features"]["rx-vlan-hw-parse"] is True


@pytest.mark.root
def test_a_veth_has_no_rules_and_stays_as_it_was(host: Namespace) -> None:
    nic = host.call(lambda: Nic("v0", 0))
    before = host.call(nic.standing)

    def choose() -> None:
        with nic.choosing():
            pass

    with pytest.raises(HostError, match="did not switch it on"):
        host.call(choose)
    assert host.call(nic.standing) == before
    assert before["rules"] is None


@pytest.mark.root
def test_what_stands_is_what_other_programs_change(host: Namespace) -> None:
    nic = host.call(lambda: Nic("v0", 0))
    before = host.call(nic.standing)
    for command, name in (
        ("ip link set v0 mtu 1400", "MTU"),
        ("ip link set v0 promisc on", "promiscuity"),
        ("ethtool -K v0 rxvlan off", "features"),
        ("ip link set v0 down", "state"),
    ):
        host.run(*command.split())
        now = host.call(nic.standing)
        assert [one for one in before if before[one] != now[one]] == [name]
        before = now
    host.run("ip", "link", "delete", "v0")
    assert host.call(nic.standing) == {}
