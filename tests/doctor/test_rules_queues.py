# SPDX-License-Identifier: Apache-2.0
"""Asked for, and not in effect: every reason that an engine can give becomes a finding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.doctor.hosts import DB, LAN, host, links, nic, only, qemu, see, statuses, vm
from vmq.config import parse as parse_config
from vmq.config import tables
from vmq.doctor.finding import Outcome
from vmq.doctor.libvirt import parse
from vmq.doctor.rules_queues import inspected, not_in_effect, queues_unused, refused
from vmq.doctor.situation import Situation

SOCKET = "/run/vmq/web.sock"
MAC = "52:54:00:00:00:01"
WEB_VM = LAN + vm("web", uplink="lan", socket=SOCKET, queue_pairs=4)


def row(state: str, error: str = "", **more: Any) -> dict[str, Any]:
    """A row of `vmq show vms`."""
    known = {"what": error, "remedy": "do it"} if error else None
    return {"name": "web", "state": state, "queues_running": 0, "last_error": known, "drops": {}} | more


@pytest.mark.parametrize(
    "reason",
    [
        "guest memory is not shared: nothing that the guest's driver writes arrives in the file we were given",
        "ring 0: the driver has not started it",
        "the driver has not enabled the queue",
        "a descriptor chain is longer than the queue size: it loops",
        "the guest was told an MTU of 9000, and the VM port's is 1500: longer frames are dropped",
    ],
)
@pytest.mark.parametrize("state", ["connected", "faulted", "running"])
def test_every_reason_for_no_queue_is_a_finding_with_it(reason: str, state: str) -> None:
    found = only(not_in_effect(see("", None, vms=[row(state, reason)])))

    assert found.evidence[1].value == reason
    assert found.fix.command == "do it"
    assert found.severity == ("error" if state == "faulted" else "note")


def test_a_vm_that_loses_frames_meanwhile_is_an_error() -> None:
    lost = row("connected", drops={"to_guest_not_running": 3, "own_address": 1})

    found = only(not_in_effect(see("", None, vms=[lost])))
    assert (found.severity, found.evidence[2].value) == ("error", "3 to_guest_not_running")


@pytest.mark.parametrize("state", ["running", "listening", "connecting"])
def test_a_vm_that_runs_or_is_off_is_none(state: str) -> None:
    assert statuses(not_in_effect(see("", None, vms=[row(state)]))) == ["clear"]


def test_a_spoofed_source_is_another_rules() -> None:
    spoofed = row("running", "it sends from 52:54:00:00:00:99, which is not one of its addresses")

    assert statuses(not_in_effect(see("", None, vms=[spoofed]))) == ["clear"]


def uplink(**more: Any) -> dict[str, Any]:
    return {"name": "lan", "kind": "packet", "device": "eth0", "state": "up"} | more


def test_requested_and_effective_differ() -> None:
    """Wherever they differ in vmq show there is a finding with the same reason."""
    settings = [
        {"name": "mtu", "requested": 1500, "effective": 1400, "why": "the device changed after vmq started"},
        {"name": "receive_bytes", "requested": 8, "effective": 4, "why": "net.core.rmem_max"},
        {"name": "bridge", "requested": None, "effective": "br0", "why": ""},
        {"name": "device", "requested": "eth0", "effective": "eth0", "why": ""},
    ]
    mtu, buffer = not_in_effect(see("", None, vms=[], uplinks=[uplink(settings=settings)]))

    assert (mtu.subject, mtu.why) == ("uplink lan", "the device changed after vmq started")
    assert mtu.evidence[0].value == "effective 1400"
    assert buffer.fix is not None
    assert "sysctl -w net.core.rmem_max" in buffer.fix.command


def test_a_field_that_has_both_is_a_setting_too() -> None:
    """Beside the list of settings."""
    asked = {"requested": "direct", "effective": "switched", "why": "the uplink has no queue for each VM"}

    found = only(not_in_effect(see("", None, vms=[row("running", way=asked)])))
    assert (found.vms, found.why) == (("web",), "the uplink has no queue for each VM")
    assert statuses(not_in_effect(see("", None, vms=[row("running", way=asked | {"requested": None})]))) == [
        "clear"
    ]


def test_tables_of_what_was_asked_for_and_what_is_in_force() -> None:
    """The row of a receive queue has both, and a reason for each difference."""
    queue = {
        "vm": "web",
        "requested": {"processor": 2, "suggested_buffers": 512, "name": "web"},
        "effective": {"processor": 3, "suggested_buffers": 512},
        "difference": {"processor": "processor 2 has its 8 receive queues"},
    }
    found = only(not_in_effect(see("", None, vms=[], queues=[queue])))

    assert (found.subject, found.why) == ("VM web", "processor 2 has its 8 receive queues")
    assert found.evidence[0].where == "vmq show queues --json: settings, processor"
    same = queue | {"effective": {}}
    assert statuses(not_in_effect(see("", None, vms=[], queues=[same]))) == ["clear"]


def settings(*rows: tuple[str, Any, Any, str]) -> list[dict[str, Any]]:
    return [dict(zip(("name", "requested", "effective", "why"), one, strict=True)) for one in rows]


@pytest.mark.parametrize("key", ["placement", "offloads", "flows", "suggested_buffers"])
def test_what_nobody_set_is_no_finding(key: str) -> None:
    """A default, or a hint, that no key brings about: vmq show settings has it."""
    shown = {"name": "web", "own_queue": True, "settings": settings((key, 1, 2, "so it is"))}

    assert statuses(not_in_effect(see("", None, vms=[shown]))) == ["clear"]


@pytest.mark.parametrize("own", [False, True])
def test_an_address_that_a_filter_takes_away_is_found(own: bool) -> None:
    """Whether the VM has a receive queue of its own makes no difference."""
    why = "filter 3 of owner x (priority 5) takes all frames to 52:54:00:00:00:01"
    shown = {"name": "web", "own_queue": own, "settings": settings(("filters", [MAC], [], why))}

    found = only(not_in_effect(see("", None, vms=[shown])))
    assert (found.subject, found.why) == ("VM web", why)
    assert "vmq filter clear" in found.fix.command
    same = settings(("filters", [MAC], [MAC], ""))
    assert statuses(not_in_effect(see("", None, vms=[shown | {"settings": same}]))) == ["clear"]


def pair(**more: Any) -> dict[str, Any]:
    """A row of `vmq show queues`, of a receive queue that its guest does not run."""
    why = "the guest has not enabled queue pair 1: frames for it are dropped (to_guest_not_running)"
    known = {"vm": "web", "queue": 1, "queue_id": 7, "owner": "x", "life": "Running", "state": "stopped"}
    return known | {"own": True, "why": why, "drops": {}} | more


def test_a_receive_queue_that_the_guest_has_not_enabled_is_found() -> None:
    """An error once it has lost frames."""
    found = only(not_in_effect(see("", None, vms=[], queues=[pair()])))
    assert (found.subject, found.severity) == ("VM web", None)
    assert "ethtool -L DEVICE combined 2" in found.fix.command

    lost = only(not_in_effect(see("", None, vms=[], queues=[pair(drops={"to_guest_not_running": 3})])))
    assert (lost.severity, lost.evidence[1].value) == ("error", "3 to_guest_not_running")


@pytest.mark.parametrize("better", [{"queue_id": None}, {"why": ""}, {"life": "Paused"}])
def test_a_queue_pair_that_runs_or_that_no_filter_leads_to_is_none(better: dict[str, Any]) -> None:
    assert statuses(not_in_effect(see("", None, vms=[], queues=[pair(**better)]))) == ["clear"]


def test_settings_with_a_rule_of_their_own_are_left_to_it() -> None:
    """Who has no receive queue of its own is D08's, D10's or D11's; what follows from it is nobody's."""
    row = {
        "name": "web",
        "own_queue": False,
        "settings": settings(
            ("receive_queue", "own", "default", "all 1 receive queues are taken"),
            ("moderation", "5 a second", "every batch", "it has no receive queue of its own"),
            ("queue_pairs", 16, 1, "the guest has enabled 1"),
        ),
    }
    assert statuses(not_in_effect(see("", None, vms=[row]))) == ["clear"]
    assert statuses(not_in_effect(see("", None, vms=[row | {"own_queue": True}]))) == ["found"]


def in_force(text: str, file: str = "/etc/vmq.toml", refused: str | None = None) -> dict[str, Any]:
    """The row of `vmq show configuration`."""
    return {"file": file, "in_force": tables(parse_config(text, file)), "refused": refused}


def with_file(said: str, **row: Any) -> Situation:
    """A file with that text, and an engine."""
    return replace(see(said, None, configuration=[in_force(**row)]), where="/etc/vmq.toml")


WEB = vm("web", socket="/run/web.sock")


@pytest.mark.parametrize(
    ("now", "where", "value"),
    [
        (WEB + "mtu = 1400\n", "/etc/vmq.toml: [vm.web] mtu", "1400"),
        (WEB + LAN, "/etc/vmq.toml: [uplink.lan]", "is there"),
        (vm("db", DB, socket="/run/web.sock") + "[doctor]\n", "/etc/vmq.toml: [vm.db]", "is there"),
        ('[engine]\nprocessors = "1"\n' + WEB, "/etc/vmq.toml: [engine] processors", "[1]"),
        ("[engine]\nguard = false\n" + WEB, "/etc/vmq.toml: [engine] guard", "False"),
        ('[engine]\nplacement = "dynamic"\n' + WEB, "/etc/vmq.toml: [engine] placement", "dynamic"),
        ('[engine]\napi = "/run/x"\n' + WEB, "/etc/vmq.toml: [engine] api", "/run/x"),
    ],
)
def test_a_file_that_is_not_in_force_is_found_with_the_keys(now: str, where: str, value: str) -> None:
    """It was edited, and nobody told the engine. Some keys of [engine] need a restart: SIGHUP would be refused."""
    found = next(one for one in not_in_effect(with_file(now, text=WEB)) if one.subject.startswith("config"))

    assert (found.subject, found.severity) == ("configuration /etc/vmq.toml", "warning")
    assert (found.evidence[0].where, found.evidence[0].value) == (where, value)
    assert found.fix is not None
    fixed = where.endswith(("processors", "api"))
    assert (found.fix.restart == "vmq run", "SIGHUP" in found.fix.command) == (fixed, not fixed)


def test_a_file_that_was_refused_says_so_and_what_is_in_force_instead() -> None:
    refusal = "/etc/vmq.toml: [vm.web] mtu: no"
    found = only(not_in_effect(with_file(WEB + "mtu = 1400\n", text=WEB, refused=refusal)))

    assert [entry.value for entry in found.evidence] == [refusal, "1400"]
    assert "has refused the file" in found.why


def test_a_file_that_was_corrected_since_it_was_refused_has_to_be_told() -> None:
    """The refusal is of an earlier version."""
    row = in_force(WEB, refused="/etc/vmq.toml: [vm.web] mtu: no") | {"corrected": True}
    see_it = replace(see(WEB + "mtu = 1400\n", None, configuration=[row]), where="/etc/vmq.toml")
    found = only(not_in_effect(see_it))

    assert [entry.value for entry in found.evidence] == ["1400"]
    assert found.why.startswith("An earlier version of the file was refused. The file was changed")
    assert found.fix.command.startswith("SIGHUP")


def test_a_worker_that_was_moved_is_told_once() -> None:
    """Not of every VM that it serves, too."""
    setting = {
        "name": "processor",
        "requested": 1,
        "effective": "0",
        "why": "something outside of vmq moved its thread",
    }
    assert statuses(not_in_effect(see("", None, vms=[{"name": "web", "settings": [setting]}]))) == ["clear"]


def test_a_file_that_is_in_force_or_another_one_is_none() -> None:
    """What was refused is in the file no more; a file that no engine runs says nothing of the engine's."""
    assert statuses(not_in_effect(with_file(WEB, text=WEB))) == ["clear"]
    assert statuses(not_in_effect(with_file(WEB, text=WEB, refused="no"))) == ["clear"]
    assert statuses(not_in_effect(with_file(WEB + "mtu = 1400\n", text=WEB, file="/etc/b.toml"))) == ["clear"]
    other = with_file(WEB, text=WEB, file="/etc/b.toml", refused="no such device")
    assert only(not_in_effect(other)).subject == "configuration /etc/b.toml"
    none_read = see("", None, configuration=[in_force(WEB, refused="no")])
    assert only(not_in_effect(none_read)).evidence[0].value == "no"


def test_keys_that_one_of_the_two_versions_does_not_know_are_no_difference() -> None:
    row = in_force(WEB)
    row["in_force"]["vm.web"] |= {"of_tomorrow": 1}
    del row["in_force"]["vm.web"]["learn"]

    assert statuses(not_in_effect(replace(see(WEB, None, configuration=[row]), where="/etc/vmq.toml"))) == [
        "clear"
    ]


def test_a_worker_that_was_moved() -> None:
    shown = {"processors": [{"cpu": 1, "effective": [2], "thread": 77}]}

    assert only(not_in_effect(see("", None, **shown))).fix.command == "taskset -pc 1 77"
    assert statuses(not_in_effect(see("", None, processors=[{"cpu": 1, "effective": [1]}]))) == ["clear"]


# --- what QEMU was told -------------------------------------------------------------------------------------


def told(*words: str, **keys: Any) -> list[Outcome]:
    return not_in_effect(see(WEB_VM, None, qemu("web", *words, **keys)))


def test_memory_that_is_not_shared_is_an_error_before_anything_runs() -> None:
    found = only(told(shared=False))

    assert (found.severity, found.vms) == ("error", ("web",))
    assert "share=on" in found.fix.command
    assert statuses(told()) == ["unknown"]  # no engine runs: nothing more can be said


def test_a_libvirt_domain_without_shared_memory() -> None:
    from xml.etree import ElementTree as ET

    text = (
        "<domain><name>web</name>{}<devices><interface type='vhostuser'><mac address='52:54:00:00:00:01'/>"
        "<source type='unix' path='/run/vmq/web.sock' mode='client'/></interface></devices></domain>"
    )
    private = parse(ET.fromstring(text.format("")), "web.xml")
    shared = parse(
        ET.fromstring(text.format("<memoryBacking><access mode='shared'/></memoryBacking>")), "web.xml"
    )

    assert only(not_in_effect(see(WEB_VM, None, private))).severity == "error"
    assert statuses(not_in_effect(see(WEB_VM, None, shared))) == ["unknown"]


def test_qemu_calls_at_a_socket_that_is_not_ours() -> None:
    """Known by the address; a guest of another switch has neither."""
    found = only(not_in_effect(see(WEB_VM.replace(SOCKET, "/run/vmq/w.sock"), None, qemu())))

    assert found.evidence[0].expected == "path=/run/vmq/w.sock"
    assert statuses(not_in_effect(see(WEB_VM, None, qemu("other", mac=DB)))) == ["unknown"]


def test_both_sides_wait_for_the_other() -> None:
    """mode = "listen" wants a QEMU that connects."""
    guest = qemu()
    listening = replace(guest, nics=(replace(guest.nics[0], server=True),))

    assert 'mode = "connect" in [vm.web]' in only(not_in_effect(see(WEB_VM, None, listening))).fix.command
    text = WEB_VM + 'mode = "connect"\n'
    assert statuses(not_in_effect(see(text, None, listening))) == ["unknown"]
    assert 'mode = "listen" in [vm.web]' in only(not_in_effect(see(text, None, guest))).fix.command


# --- the rest -----------------------------------------------------------------------------------------------


def test_a_device_that_is_gone_or_refuses() -> None:
    """The refused parameter and the reason, verbatim."""
    why = "the device refused 52:54:00:00:00:01: Operation not supported"
    setting = {"name": "promiscuous", "requested": False, "effective": True, "why": why}

    assert only(refused(see("", None, uplinks=[uplink(state="gone")]))).severity is None
    found = only(refused(see("", None, uplinks=[uplink(settings=[setting])])))
    assert (found.severity, found.evidence[0].value) == ("warning", why)
    assert statuses(refused(see("", None, uplinks=[uplink()]))) == ["clear"]
    assert statuses(refused(see(WEB_VM))) == ["unknown"]


@pytest.mark.parametrize(
    ("queues", "device", "wrong"),
    [
        (4, ",vectors=10", ["mq=off"]),
        (4, ",mq=on,vectors=9", ["vectors=9"]),
        (8, ",mq=on", ["queues=8"]),
        (4, ",mq=on,vectors=10", []),
        (4, ",mq=on", []),
    ],
)
def test_several_queues_need_mq_vectors_and_queue_pairs(queues: int, device: str, wrong: list[str]) -> None:
    """vectors = 2 × queues + 2."""
    outcomes = queues_unused(see(WEB_VM, None, qemu(queues=queues, device=device)))

    assert statuses(outcomes) == ["found" if wrong else "clear"]
    if wrong:
        assert [entry.value for entry in outcomes[0].evidence] == wrong


def test_a_guest_that_uses_fewer_queues_than_it_was_given() -> None:
    guest = qemu(queues=4, device=",mq=on,vectors=10")

    found = only(queues_unused(see(WEB_VM, None, guest, vms=[row("running", queues_running=1)])))
    assert "ethtool -L DEVICE combined 4" in found.fix.command
    assert statuses(queues_unused(see(WEB_VM, None, guest, vms=[row("running", queues_running=4)]))) == [
        "clear"
    ]
    assert statuses(queues_unused(see(WEB_VM, None, qemu()))) == ["not_applicable"]


def test_the_firewall_sees_bridged_frames() -> None:
    tap = '[uplink.lan]\nkind = "tap"\ndevice = "t"\nbridge = "br0"\n'
    key = "net.bridge.bridge-nf-call-iptables"

    found = only(inspected(see(tap, host("0", sysctls={key: "1"}))))
    assert (found.fix.command, found.undo) == (f"sysctl -w {key}=0", f"sysctl -w {key}=1")
    assert statuses(inspected(see(tap, host("0", sysctls={key: "0"})))) == ["clear"]
    assert statuses(inspected(see(LAN, host("0", sysctls={key: "1"}, links=links(nic("eth0")))))) == [
        "not_applicable"
    ]
