# SPDX-License-Identifier: Apache-2.0
"""Rules that lead addresses to queues, on a NIC of the test's own: ours come and go, and those of others stay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.test_ethtool import Table
from tests.vm.lab.netns import Namespace
from vmq import ethtool
from vmq.abi.ethernet import mac_number
from vmq.errors import HostError
from vmq.uplink.nic_rules import NTUPLE, NicRules

A, B, C = (mac_number(f"02:00:00:00:00:0{number}") for number in (1, 2, 3))


class Nic(Table):
    """With a switch for such filters."""

    def __init__(self, size: int = 16, *, on: bool = False) -> None:
        super().__init__(size, finds=False)
        self.on = on

    def queues(self) -> dict[int, int]:
        return {int.from_bytes(address, "little"): queue for address, queue in self.rules.values()}

    def switch(self, _device: str, feature: str, *, on: bool) -> None:
        assert feature == NTUPLE
        self.on = on

    def describe(self, _device: str) -> Any:
        return SimpleNamespace(features={NTUPLE: self.on})


def nic(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Nic:
    made = Nic(**options)
    monkeypatch.setattr(ethtool, "_ask", made)
    monkeypatch.setattr(ethtool, "switch", made.switch)
    monkeypatch.setattr(ethtool, "describe", made.describe)
    return made


@pytest.mark.parametrize("on", [False, True])
def test_rules_follow_what_is_wanted_and_leave_the_switch_as_it_was(
    monkeypatch: pytest.MonkeyPatch, on: bool
) -> None:
    device, rules = nic(monkeypatch, on=on), NicRules("eth1")
    for wanted in ({A: 4}, {A: 4, B: 4}, {A: 5, B: 4, C: 6}, {C: 6}):
        rules.follow(wanted)
        assert (device.queues(), device.on, rules.why) == (wanted, True, "")
    rules.follow({})
    assert (device.queues(), device.on) == ({}, on)
    rules.follow({A: 4})
    rules.close()
    rules.close()
    assert (device.queues(), device.on) == ({}, on)


def test_a_rule_from_before_is_used_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an owner, or of an engine that crashed."""
    device, rules = nic(monkeypatch, on=True), NicRules("eth1")
    ethtool.add_rule("eth1", A, 4, 0)
    rules.follow({A: 4, B: 5})
    assert (device.queues(), rules.why) == ({A: 4, B: 5}, "")
    rules.close()
    assert device.queues() == {A: 4}


def test_a_rule_from_before_that_leads_elsewhere_is_said_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    device, rules = nic(monkeypatch, on=True), NicRules("eth1")
    ethtool.add_rule("eth1", A, 7, 0)
    rules.follow({A: 4, B: 5})
    assert rules.why == "a rule that is not ours leads 02:00:00:00:00:01 to queue 7"
    assert device.queues() == {A: 7, B: 5}


def test_a_full_table_is_said_and_what_fits_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    device, rules = nic(monkeypatch, size=1, on=True), NicRules("eth1")
    rules.follow({A: 4, B: 5})
    assert (device.queues(), rules.why) == (
        {A: 4},
        "eth1 takes no rule: the table of rules has no free place",
    )
    rules.follow({B: 5})
    assert (device.queues(), rules.why) == ({B: 5}, "")


def test_a_device_without_rules_is_asked_once_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*_: object, **__: object) -> None:
        asked.append(1)
        raise HostError("ethtool -K", "eth1 has no such filters", "another NIC")

    nic(monkeypatch)
    monkeypatch.setattr(ethtool, "switch", refuse)
    rules = NicRules("eth1")
    for wanted in ({A: 4}, {A: 4}, {A: 4, B: 4}):
        rules.follow(wanted)
        assert rules.why == "eth1 takes no rules: eth1 has no such filters"
    assert len(asked) == 2
    rules.close()
    assert rules.why == ""


@pytest.mark.root
def test_a_veth_takes_none() -> None:
    with Namespace("host") as host:
        host.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        rules = NicRules("v0")
        host.call(lambda: rules.follow({A: 1}))
        assert rules.why.startswith("v0 takes no rules: ")
        host.call(rules.close)


def test_a_rule_that_somebody_put_in_the_place_of_ours_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    device, rules = nic(monkeypatch), NicRules("eth1")
    rules.follow({A: 4})
    (place,) = device.rules
    device.rules[place] = B.to_bytes(6, "little"), 7
    rules.close()
    assert device.queues() == {B: 7}


def test_filters_stay_switched_on_while_others_have_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    device, rules = nic(monkeypatch), NicRules("eth1")
    rules.follow({A: 4})
    device.rules[0] = B.to_bytes(6, "little"), 7
    rules.close()
    assert (device.queues(), device.on) == ({B: 7}, True)
