# SPDX-License-Identifier: Apache-2.0
"""How guests are made: buffers, MTU, vCPUs, a device beside vmq."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.doctor.hosts import DB, LAN, WEB, host, links, nic, only, qemu, see, statuses, vm
from vmq.doctor.facts import Link
from vmq.doctor.rules_guests import bypassed, few_vcpus, jumbo, shallow, unmerged

SOCKET = "/run/vmq/web.sock"
WEB_VM = LAN + vm("web", uplink="lan", socket=SOCKET, queue_pairs=4)


def row(**more: Any) -> dict[str, Any]:
    return {"name": "web", "state": "running", "features": ["net_f_mrg_rxbuf"], "drops": {}} | more


def test_mergeable_buffers_switched_off() -> None:
    """On QEMU's command line, or by the driver."""
    assert only(unmerged(see(WEB_VM, None, qemu(device=",mrg_rxbuf=off")))).vms == ("web",)
    assert only(unmerged(see(WEB_VM, None, vms=[row(features=[])]))).vms == ("web",)
    assert statuses(unmerged(see(WEB_VM, None, qemu()))) == ["clear"]
    assert statuses(unmerged(see(WEB_VM, None, vms=[row()]))) == ["clear"]
    assert statuses(unmerged(see(WEB_VM, None, vms=[row(features=[], state="listening")]))) == ["clear"]
    assert statuses(unmerged(see(WEB_VM))) == ["unknown"]


def test_frames_that_were_merged_and_cut_again_are_a_note() -> None:
    found = only(unmerged(see(WEB_VM, None, uplinks=[{"name": "lan", "device": "eth0", "segmented": 4}])))

    assert (found.severity, found.undo) == ("note", "ethtool -K eth0 gro on")


def test_a_virtual_function_with_the_vms_address() -> None:
    def function(mac: str) -> Any:
        return host("0", links=links(Link("eth0v1", mac=mac, function=True), Link("eth1", mac=WEB)))

    assert only(bypassed(see(WEB_VM, function(WEB)))).confidence == "likely"
    assert statuses(bypassed(see(WEB_VM, function(DB)))) == ["clear"]
    assert statuses(bypassed(see(LAN))) == ["not_applicable"]


def test_a_failover_pair_is_told_and_vmq_alone_is_not() -> None:
    pair = qemu("web", "-device", "vfio-pci,host=0000:01:00.0,failover_pair_id=n", device=",failover=on")

    assert only(bypassed(see(WEB_VM, None, pair))).severity == "note"
    assert statuses(bypassed(see(WEB_VM, None, qemu(device=",failover=on")))) == ["clear"]


@pytest.mark.parametrize(
    ("queues", "vcpus", "said"),
    [(1, 1, "clear"), (1, 4, "clear"), (4, 4, "clear"), (4, 1, "warning"), (2, 4, "note")],
)
def test_queues_and_vcpus(queues: int, vcpus: int, said: str) -> None:
    """One of each is right, and so is one queue: then nothing is spread."""
    (outcome,) = few_vcpus(see(WEB_VM, None, qemu("web", "-smp", str(vcpus), queues=queues)))

    assert (outcome.severity or "warning" if outcome.status == "found" else outcome.status) == said
    assert statuses(few_vcpus(see(WEB_VM))) == ["unknown"]


# --- MTU ----------------------------------------------------------------------------------------------------


def path(vm_mtu: int | None = None, wire: int = 1500, told: int | None = None) -> Any:
    keys: dict[str, Any] = {} if vm_mtu is None else {"mtu": vm_mtu}
    text = LAN + vm("web", uplink="lan", socket=SOCKET, **keys)
    facts = host("0", links=links(nic("eth0", mtu=wire)))
    return jumbo(see(text, facts, qemu(device=f",host_mtu={told}" if told else "")))


def test_a_larger_mtu_than_the_next_one_takes() -> None:
    """The smallest MTU on the path, and where it is set."""
    found = only(path(vm_mtu=9000))
    assert [entry.value for entry in found.evidence] == ["9000", "1500"]
    assert found.fix.command.startswith("mtu = 1500 in [vm.web] of vmq.toml")
    assert found.severity is None
    assert only(path(told=9000)).evidence[0].value == "host_mtu=9000"


def test_a_smaller_mtu_than_the_uplinks_is_a_note() -> None:
    """Neighbours may send what it does not take; most ask first."""
    assert only(path(vm_mtu=1400)).severity == "note"


@pytest.mark.parametrize(
    "keys", [{}, {"vm_mtu": 1500}, {"told": 1500}, {"told": 1400}, {"wire": 9000, "told": 9000}]
)
def test_equal_mtus_are_clear(keys: dict[str, int]) -> None:
    assert statuses(path(**keys)) == ["clear"]


def test_a_bridge_that_takes_less_than_its_tap() -> None:
    tap = '[uplink.lan]\nkind = "tap"\ndevice = "t"\nbridge = "br0"\nmtu = {}\n' + vm("web", uplink="lan")
    facts = host("0", links=links(Link("br0", mtu=1500)))

    assert only(jumbo(see(tap.format(9000), facts))).subject == "uplink lan"
    assert statuses(jumbo(see(tap.format(1500), facts))) == ["clear"]
    assert statuses(jumbo(see(LAN, facts))) == ["not_applicable"]


def test_frames_that_were_too_long() -> None:
    """Their own causes of drops, apart from all others."""
    lost = {"to_guest_too_long": 1, "to_guest_no_buffer": 5}

    assert [entry.value for entry in only(jumbo(see(WEB_VM, None, vms=[row(drops=lost)]))).evidence] == ["1"]
    assert statuses(jumbo(see(WEB_VM, None, vms=[row(drops={"to_guest_no_buffer": 5})]))) == ["clear"]


# --- receive buffers ----------------------------------------------------------------------------------------


def ran_out(lost: int, size: int) -> Any:
    queue = {
        "vm": "web",
        "queue": 0,
        "offered_to_guest": 10000,
        "size_to_guest": size,
        "drops": {"to_guest_no_buffer": lost},
    }
    return shallow(see(WEB_VM, None, queues=[queue]))


def test_no_free_buffer_is_the_rings_depth_or_the_guests_time() -> None:
    """The threshold stands in the finding."""
    late, never = only(ran_out(100, 256)), only(ran_out(100, 1024))

    assert late.fix.command == "rx_queue_size=1024 in QEMU's -device"
    assert never.fix.command.startswith("A vCPU with less other work")
    assert late.evidence[0].expected == "at most 0.01% (drops_per_million)"
    assert statuses(ran_out(1, 256)) == ["clear"]


def test_a_shallow_ring_on_the_command_line_is_a_note() -> None:
    guest = qemu()
    shallow_ring = replace(guest, nics=(replace(guest.nics[0], rx_queue_size=256),))

    assert only(shallow(see(WEB_VM, None, shallow_ring))).severity == "note"
    assert statuses(shallow(see(WEB_VM, None, guest))) == ["unknown"]  # no engine counts drops
    assert statuses(shallow(see(WEB_VM, None, guest, queues=[]))) == ["clear"]


def test_a_packet_socket_that_was_full() -> None:
    lost = {"name": "lan", "lost": 3}

    assert only(shallow(see(WEB_VM, None, uplinks=[lost]))).subject == "uplink lan"
    assert statuses(shallow(see(WEB_VM, None, uplinks=[lost | {"lost": 0}]))) == ["clear"]
