# SPDX-License-Identifier: Apache-2.0
"""Ports, uplinks and processors from the configuration or from the engine; which guest belongs to which port."""

from __future__ import annotations

from typing import Any

from tests.doctor.hosts import DB, EIGHT, LAN, WEB, host, links, nic, qemu, see, vm
from vmq.doctor.situation import MTU_DEFAULT, ports_on

ROW: dict[str, Any] = {
    "name": "web", "socket": "/run/vmq/web.sock", "mode": "listen", "uplink": "lan", "mac": [WEB], "vlan": 10,
    "queue_pairs": 16, "processors": [3], "mtu": 1500,
}  # fmt: skip
TEXT = LAN + vm("web", uplink="lan", vlan=10, socket="/run/vmq/web.sock", processor=1)


def test_without_a_configuration_the_engine_says_what_there_is() -> None:
    uplink = {"name": "lan", "kind": "packet", "device": "eth0", "mtu": 1400, "membership": "promiscuous"}
    found = see("", host(*EIGHT, links=links(nic("eth0"))), vms=[ROW], uplinks=[uplink])

    (port,) = found.ports
    assert (port.name, port.macs, port.segment, port.processor) == ("web", (WEB,), ("lan", 10), 3)
    lan = found.uplinks["lan"]
    assert (lan.kind, lan.promiscuous, lan.mtu_in_effect, lan.link) == ("packet", True, 1400, nic("eth0"))


def test_with_both_the_processor_is_the_one_in_effect() -> None:
    (port,) = see(TEXT, None, vms=[ROW], processors=[{"cpu": 3, "effective": [4]}]).ports

    assert (port.processor, port.row) == (3, ROW)


def test_processors_in_effect_planned_or_named() -> None:
    """The more certain first."""
    assert see(TEXT, host(*EIGHT), processors=[{"cpu": 3, "effective": [4]}]).processors == (4,)
    planned = see(TEXT, host(*EIGHT))
    assert (planned.processors, planned.says) == ((1,), "vmq.toml, the processors that VMs ask for")
    assert see('[engine]\nprocessors = "5-6"\n').processors == (5, 6)
    assert see().processors == see(LAN).processors == ()


def test_a_plan_that_the_engine_would_refuse_is_none() -> None:
    refused = see(
        '[uplink.a]\nkind = "tap"\ndevice = "t"\nnuma_node = 7\n' + vm("web", uplink="a"), host("0", "1")
    )

    assert refused.plan is None
    assert refused.ports[0].processor is None


def test_a_guest_belongs_to_the_port_of_its_socket_else_of_its_address() -> None:
    text = TEXT + vm("db", DB, uplink="lan", socket="/run/vmq/other.sock")
    by_socket, by_mac, foreign = qemu("web", mac=DB), qemu("db", mac=DB), qemu("x", mac="52:54:00:00:00:77")

    found = see(text, None, by_socket, by_mac, foreign).attached

    assert [(one.port.name, one.machine.name, one.by_socket) for one in found] == [
        ("web", "web", True),
        ("db", "db", False),
    ]


def test_the_mtu_of_a_port_is_its_own_its_uplinks_or_the_default() -> None:
    text = LAN + vm("a", uplink="lan", mtu=1300) + vm("b", DB, uplink="lan") + vm("c", "52:54:00:00:00:03")
    found = see(text, host("0", links=links(nic("eth0", mtu=9000))))

    assert [found.mtu_of(port) for port in found.ports] == [1300, 9000, MTU_DEFAULT]
    assert found.mtu_of(next(ports_on(see(text), "lan"))) == 1300
    assert [port.name for port in ports_on(found, "lan")] == ["a", "b"]
    assert see(text).uplinks["lan"].mtu_in_effect is None
    assert see('[uplink.lan]\nkind = "tap"\ndevice = "t"\n').uplinks["lan"].mtu_in_effect == MTU_DEFAULT


def test_evidence_names_the_key_of_the_file() -> None:
    assert see(TEXT).key("vm.web", "mac") == "vmq.toml: [vm.web] mac"


def test_limits_weights_and_queues_are_the_configurations_else_the_engines() -> None:
    """Without a configuration the defaults hold, and rows may lack what older engines do not tell."""
    text = LAN + "queues = 3\n" + vm("web", uplink="lan", weight=7) + "[doctor]\nring = 512\n"
    found = see(text)
    assert (found.limits.ring, found.ports[0].weight, found.uplinks["lan"].queues) == (512, 7, 3)

    running = see("", None, vms=[ROW, ROW | {"weight": 0}], uplinks=[{"name": "lan", "queues": 2}])
    assert ([port.weight for port in running.ports], running.uplinks["lan"].queues) == ([100, 0], 2)
    assert (running.limits.ring, see().limits.ignore) == (1024, ())
