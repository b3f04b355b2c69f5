# SPDX-License-Identifier: Apache-2.0
"""Addresses and VLANs: one table of near misses, and each row one rule's alone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.doctor.hosts import DB, LAN, WEB, host, links, nic, only, qemu, see, statuses, vm
from vmq.doctor.facts import Facts, Link
from vmq.doctor.rules_filters import (
    blame,
    duplicates,
    second_address,
    stale_filter,
    tags_in_software,
    wrong_vlan,
)
from vmq.doctor.situation import Situation
from vmq.ethtool import Driver

STRANGER = "52:54:00:00:00:99"
TWO = LAN + vm("web", WEB, uplink="lan", vlan=10) + vm("db", DB, uplink="lan", vlan=10)
SOCKET = "/run/vmq/web.sock"


def miss(kind: str, mac: str = WEB, vlan: int | None = 10, **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "vm": "web",
        "uplink": "lan",
        "mac": mac,
        "vlan": vlan,
        "count": 7,
        "remedy": "r",
        **more,
    }


def running(
    *misses: dict[str, Any], forwarded: int = 0, text: str = TWO, facts: Facts | None = None
) -> Situation:
    return see(text, facts, misses=list(misses), queues=[{"vm": "web", "forwarded": forwarded}])


@pytest.mark.parametrize(
    ("row", "forwarded", "code"),
    [
        (miss("wrong_vlan", vlan=20), 0, "D12"),
        (miss("duplicate_mac"), 0, "D15"),
        (miss("spoofed_source", DB), 5, "D15"),
        (miss("spoofed_source", STRANGER), 0, "D16"),
        (miss("spoofed_source", STRANGER), 5, "D32"),
        (miss("unknown_mac", STRANGER, vm=None), 0, ""),
    ],
)
def test_a_near_miss_is_one_rules_alone(row: dict[str, Any], forwarded: int, code: str) -> None:
    """Two rules never blame each other's cause."""
    situation = running(row, forwarded=forwarded)
    rules = {"D12": wrong_vlan, "D15": duplicates, "D16": stale_filter, "D32": second_address}

    assert blame(situation, row) == code
    assert [name for name, rule in rules.items() if statuses(rule(situation)) == ["found"]] == [code] * bool(
        code
    )


@pytest.mark.parametrize(
    ("own", "seen", "ours", "undo"),
    [
        (10, 20, "vlan = 20 in [vm.web] of vmq.toml; or send in VLAN 10", "vlan = 10 in [vm.web]"),
        (10, None, "leave vlan out of [vm.web] of vmq.toml; or send in VLAN 10", "vlan = 10 in [vm.web]"),
        (None, 20, "vlan = 20 in [vm.web] of vmq.toml; or send untagged", "leave vlan out of [vm.web]"),
    ],
)
def test_the_vlan_that_was_seen_is_in_the_fix(
    own: int | None, seen: int | None, ours: str, undo: str
) -> None:
    """Each "no" of the truth table for VLANs of a filter."""
    keys: dict[str, Any] = {} if own is None else {"vlan": own}
    text = LAN + vm("web", uplink="lan", **keys)
    found = only(wrong_vlan(running(miss("wrong_vlan", vlan=seen), text=text)))

    assert (found.fix.command, found.undo) == (ours, undo)
    assert statuses(wrong_vlan(running(text=text))) == ["clear"]


def vlan_device(vid: int) -> Facts:
    return host("0", links=links(Link("eth0", vlan=(vid, "eth1")), nic("eth1")))


def test_an_uplink_that_is_a_vlan_device_has_no_tags() -> None:
    text = LAN + vm("web", uplink="lan", vlan=10)

    found = only(wrong_vlan(see(text, vlan_device(10))))
    assert (found.confidence, found.evidence[0].value) == ("certain", "eth0 is VLAN 10 of eth1")
    assert only(wrong_vlan(see(text, vlan_device(20)))).confidence == "possible"  # a tag in a tag
    assert statuses(wrong_vlan(running(text=LAN + vm("web", uplink="lan"), facts=vlan_device(10)))) == [
        "clear"
    ]


def filtering(on: bool, *more: Link) -> Facts:
    return host("0", links=links(nic("eth0", driver=Driver("ice", features={"rx-vlan-filter": on})), *more))


def test_a_nic_that_filters_vlans_which_nobody_asked_for() -> None:
    found = only(wrong_vlan(see(TWO, filtering(on=True))))

    assert (found.vms, found.confidence) == (("web", "db"), "likely")
    assert found.fix.command.startswith("ethtool -K eth0 rx-vlan-filter off")
    asked = Link("eth0.10", vlan=(10, "eth0"))
    promiscuous = TWO.replace(LAN, LAN + "promiscuous = true\n")
    for situation in (
        running(facts=filtering(on=False)),
        running(facts=filtering(True, asked)),
        running(text=promiscuous, facts=filtering(on=True)),
    ):
        assert statuses(wrong_vlan(situation)) == ["clear"]


def test_a_bridge_that_filters_vlans_hides_which() -> None:
    tap = '[uplink.lan]\nkind = "tap"\ndevice = "t"\nbridge = "br0"\n' + vm("web", uplink="lan", vlan=10)
    facts = host("0", links=links(Link("br0", vlan_filtering=True), Link("t", master="br0")))

    (said,) = wrong_vlan(running(text=tap, facts=facts))
    assert said.status == "unknown"
    assert "bridge vlan show dev t" in said.why
    before = host("0", links=links(Link("br0", vlan_filtering=True)))  # vmq makes the TAP when it starts
    assert statuses(wrong_vlan(running(text=tap, facts=before))) == ["unknown"]


def test_without_an_engine_the_configuration_alone_is_no_all_clear() -> None:
    for rule in (wrong_vlan, duplicates, stale_filter, second_address):
        assert statuses(rule(see(TWO))) == ["unknown"]


# --- tags ---------------------------------------------------------------------------------------------------


def stripping(features: dict[str, bool] | None) -> Facts:
    driver = None if features is None else Driver("ice", features=features)
    return host("0", links=links(nic("eth0", driver=driver)))


def test_an_uplink_with_and_without_vlan_offload() -> None:
    """Nothing leaks: vmq takes the tag off itself. So it is a note."""
    assert only(tags_in_software(see(TWO, stripping({"rx-vlan-hw-parse": False})))).severity == "note"
    assert statuses(tags_in_software(see(TWO, stripping({"rx-vlan-hw-parse": True})))) == ["clear"]
    assert statuses(tags_in_software(see(TWO, stripping(None)))) == ["unknown"]
    untagged = LAN + vm("web", uplink="lan")
    assert statuses(tags_in_software(see(untagged, stripping({})))) == ["not_applicable"]
    program = TWO.replace('"packet"', '"xdp"')  # which sees no tags that were taken off
    assert statuses(tags_in_software(see(program, stripping({"rx-vlan-hw-parse": False})))) == [
        "not_applicable"
    ]


# --- addresses ----------------------------------------------------------------------------------------------


def bridged(second: str = "br0", **keys: Any) -> Situation:
    text = "".join(
        f'[uplink.{name}]\nkind = "tap"\ndevice = "{name}"\nbridge = "{bridge}"\n'
        for name, bridge in (("a", "br0"), ("b", second))
    )
    text += vm("web", WEB, uplink="a", vlan=10) + vm("twin", WEB, uplink="b", **({"vlan": 10} | keys))
    return running(text=text)


def test_one_address_on_two_uplinks_of_one_bridge() -> None:
    found = only(duplicates(bridged()))

    assert found.vms == ("web", "twin")
    assert 'mac = "52:54:00:00:00:02" in [vm.twin]' in found.fix.command  # a free one


def test_one_address_in_different_vlans_or_networks_is_clear() -> None:
    assert statuses(duplicates(bridged(vlan=20))) == ["clear"]
    assert statuses(duplicates(bridged("br1"))) == ["clear"]


def test_the_offered_address_is_nobodys() -> None:
    text = LAN + vm("web", WEB, uplink="lan") + vm("db", DB, uplink="lan")
    facts = host("0", links=links(Link("eth9", mac="52:54:00:00:00:03")))

    command = only(duplicates(running(miss("duplicate_mac", vlan=None), text=text, facts=facts))).fix.command
    assert "52:54:00:00:00:04" in command


def test_a_device_of_the_host_with_the_guests_address() -> None:
    """A TAP that was given the guest's address, as some guides say."""
    tap = '[uplink.lan]\nkind = "tap"\ndevice = "t"\n' + vm("web", uplink="lan")

    found = only(duplicates(running(text=tap, facts=host("0", links=links(Link("t", mac=WEB))))))
    assert found.fix.command == "ip link set t address 52:54:00:00:00:02"
    far = host("0", links=links(Link("t", mac=DB), Link("other", mac=WEB)))
    assert statuses(duplicates(running(text=tap, facts=far))) == ["clear"]


def test_two_guests_of_the_host_with_one_address() -> None:
    """A cloned VM; on another bridge it is as bad, if the bridges meet."""
    web, twin = qemu("web"), qemu("twin", "-netdev", "tap,id=x")
    text = LAN + vm("web", uplink="lan", socket=SOCKET)

    assert only(duplicates(see(text, None, web, twin))).confidence == "likely"
    other = qemu("twin", mac=DB)
    assert statuses(duplicates(see(text, None, web, other))) == ["unknown"]


def test_two_devices_of_one_guest_with_one_address() -> None:
    """But not a guest that runs and whose domain was named, too."""
    text = LAN + vm("web", uplink="lan", socket=SOCKET)
    double = qemu("web", "-netdev", "tap,id=x", "-device", f"virtio-net-pci,netdev=x,mac={WEB}")

    assert only(duplicates(see(text, None, double))).subject == "web and web"
    assert statuses(duplicates(see(text, None, qemu("web"), qemu("web")))) == ["unknown"]


def test_two_guests_with_one_address_in_different_vlans_are_no_duplicates() -> None:
    text = LAN + vm("web", uplink="lan", vlan=10, socket=SOCKET)
    text += vm("twin", uplink="lan", vlan=20, socket="/run/vmq/twin.sock")

    assert statuses(duplicates(see(text, None, qemu("web"), qemu("twin")))) == ["unknown"]


def test_a_station_with_the_vms_address_may_be_a_reflection() -> None:
    found = only(duplicates(running(miss("duplicate_mac"))))

    assert found.confidence == "possible"
    assert "look for a loop" in found.why


def test_a_vm_that_uses_its_neighbours_address_is_certain() -> None:
    found = only(duplicates(running(miss("spoofed_source", DB))))
    assert (found.subject, found.confidence) == ("VM web and VM db", "certain")


def test_qemu_gives_another_address_than_the_filter_has() -> None:
    text = LAN + vm("web", uplink="lan", socket=SOCKET)

    found = only(stale_filter(see(text, None, qemu(mac=STRANGER))))
    assert (found.confidence, found.fix.command) == ("certain", f'mac = "{STRANGER}" in [vm.web] of vmq.toml')
    assert statuses(stale_filter(see(text, None, qemu()))) == ["unknown"]


def test_a_guest_that_changed_its_address() -> None:
    """The filter to set, and the one before."""
    found = only(stale_filter(running(miss("spoofed_source", STRANGER))))

    assert found.fix.command.startswith(f'mac = "{STRANGER}" in [vm.web]')
    assert found.undo == f'mac = ["{WEB}"] in [vm.web]'


def test_a_second_address_is_told_as_dropped_with_how_often() -> None:
    """Not as a filter to add silently."""
    found = only(second_address(running(miss("spoofed_source", STRANGER), forwarded=5)))

    assert "those frames are dropped" in found.why
    assert "7 frames" in found.evidence[0].value
    assert "if the guest may have it" in found.fix.command
    assert statuses(second_address(running())) == ["clear"]


def test_a_near_miss_of_a_client_s_filter_is_not_put_right_at_the_vm() -> None:
    """The engine names the filter; whether it or the VM is wrong is for people to say."""
    for kind in ("filter_vlan", "wrong_vlan"):
        row = miss(kind, vlan=9) | {"filters": ["filter 3 of x"], "remedy": "set that filter in VLAN 9"}
        found = only(wrong_vlan(running(row, text=LAN + vm("web", uplink="lan"))))
        assert (found.fix.command, found.fix.steps) == ("set that filter in VLAN 9", ())
