# SPDX-License-Identifier: Apache-2.0
"""What drivers say, asked of this kernel; the program ethtool is the other opinion."""

from __future__ import annotations

import errno
import struct
from typing import Any

import numpy as np
import pytest

from tests.vm.lab.netns import Namespace
from vmq import ethtool
from vmq.abi import ethtool as et
from vmq.abi.ethernet import mac_number
from vmq.errors import HostError
from vmq.ethtool import (
    add_rule,
    delete_rule,
    describe,
    place_for_rule,
    receive_queues,
    rule,
    rule_at,
    rules,
    rules_to,
    switch,
)


def test_the_loopback_device_has_features() -> None:
    """It has no VLANs to take off, and always does GRO's like."""
    said = describe("lo")

    assert said is not None
    assert said.features["tx-scatter-gather"]
    assert not said.features["rx-vlan-filter"]
    assert "rx-vlan-hw-parse" in said.features


def test_a_device_that_is_not_there_says_nothing() -> None:
    assert describe("none0") is None


@pytest.mark.root
def test_a_veth_says_what_ethtool_prints() -> None:
    """Names, and which are on; another program's reading of the same kernel."""
    with Namespace("host") as host:
        host.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        said = host.call(lambda: describe("v0"))
        lines = host.run("ethtool", "-k", "v0").splitlines()[1:]
        printed = {name.strip(): on.startswith("on") for name, on in (line.split(": ", 1) for line in lines)}
        host.run("ethtool", "-K", "v0", "rxvlan", "off")
        after = host.call(lambda: describe("v0"))

    assert said is not None
    assert after is not None
    assert said.name == "veth"
    both = printed.keys() & said.features.keys()
    assert len(both) > 30
    assert {name: printed[name] for name in both} == {name: said.features[name] for name in both}
    assert (said.features["rx-vlan-hw-parse"], after.features["rx-vlan-hw-parse"]) == (True, False)


@pytest.mark.root
def test_receive_queues_are_those_that_ethtool_counts() -> None:
    assert receive_queues("none0") == (1, 1)
    with Namespace("host") as host:
        host.run(
            "ip",
            "link",
            "add",
            "v0",
            "numrxqueues",
            "4",
            "numtxqueues",
            "4",
            "type",
            "veth",
            "peer",
            "name",
            "v1",
        )
        assert host.call(lambda: receive_queues("v0")) == (4, 4)
        host.run("ethtool", "-L", "v0", "rx", "2")
        assert host.call(lambda: receive_queues("v0")) == (2, 4)


@pytest.mark.root
def test_a_feature_is_switched_and_read_again() -> None:
    """ethtool -K's order by another way; what a driver keeps is a refusal, not a success."""

    def vlan() -> bool:
        said = describe("v0")
        assert said is not None
        return said.features["rx-vlan-hw-parse"]

    with Namespace("host") as host:
        host.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        before = host.call(vlan)
        host.call(lambda: switch("v0", "rx-vlan-hw-parse", on=False))
        after = host.call(vlan)
        printed = host.run("ethtool", "-k", "v0")
        with pytest.raises(HostError, match="the driver did not switch it on"):
            host.call(lambda: switch("v0", "rx-vlan-filter", on=True))
        with pytest.raises(HostError, match="no such feature"):
            host.call(lambda: switch("v0", "none", on=True))
        with pytest.raises(HostError, match="No such device"):
            host.call(lambda: switch("none0", "rx-gro", on=True))

    assert (before, after) == (True, False)
    assert "rx-vlan-offload: off" in printed


def test_a_rule_is_laid_out_as_c_does() -> None:
    """Each field by hand: linux-ethtool.h, struct ethtool_rxnfc."""
    body = rule(mac_number("02:00:00:00:00:01"), 3, 7)
    body["cmd"] = et.ETHTOOL_SRXCLSRLINS
    address = bytes((2, 0, 0, 0, 0, 1))

    assert body.tobytes() == struct.pack(
        "=II8xI52s20s52s20s4xQI4xI4x",
        0x32, 0, 0x12,
        address + bytes(46), bytes(20),
        b"\xff" * 6 + bytes(46), bytes(20),
        3, 7, 0,
    )  # fmt: skip


class Table:
    """A NIC with a table of `size` places, behind the kernel's request."""

    def __init__(self, size: int, *, finds: bool) -> None:
        self.size, self.finds, self.kind = size, finds, et.ETHER_FLOW
        self.also = (0, 0)  # masks of a source and a tag
        self.rules: dict[int, tuple[bytes, int]] = {}

    def __call__(self, _: object, _device: str, body: Any, command: int) -> Any:
        row = body[0]
        spec, place = row["fs"], int(row["fs"]["location"])
        if command == et.ETHTOOL_GRXCLSRLCNT:
            row["rule_cnt"], row["data"] = len(self.rules), et.RX_CLS_LOC_SPECIAL if self.finds else 0
        elif command == et.ETHTOOL_GRXCLSRLALL:
            assert row["rule_cnt"] == len(self.rules), "mlx5 fails when it is asked for more than it has"
            row["rule_locs"][: len(self.rules)] = sorted(self.rules)
            row["rule_cnt"], row["data"] = len(self.rules), self.size
        elif command == et.ETHTOOL_SRXCLSRLINS:
            place = self.size - 2 if place == et.RX_CLS_LOC_ANY else place
            self.rules[place] = (spec["h_u"]["dst"].tobytes(), int(spec["ring_cookie"]))
            spec["location"] = place
        elif place not in self.rules:
            raise OSError(errno.ENOENT, "no such rule")
        elif command == et.ETHTOOL_SRXCLSRLDEL:
            del self.rules[place]
        else:
            address, spec["ring_cookie"] = self.rules[place]
            spec["h_u"]["dst"] = np.frombuffer(address, np.uint8)
            spec["flow_type"], spec["m_u"]["dst"] = self.kind, 255
            spec["m_u"]["rest"][0], spec["m_ext"]["vlan_tci"] = self.also
        return body


@pytest.mark.parametrize(("finds", "asked", "stands"), [(True, 0xFFFFFFFF, 14), (False, 15, 15)])
def test_a_rule_is_added_where_there_is_a_place_and_deleted(
    finds: bool, asked: int, stands: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver finds a place, or it is the last free one."""
    table, mac = Table(16, finds=finds), mac_number("02:00:00:00:00:01")
    monkeypatch.setattr(ethtool, "_ask", table)

    assert place_for_rule("eth1") == asked
    assert add_rule("eth1", mac, 3, asked) == stands
    assert (rules("eth1"), rule_at("eth1", stands)) == (1, (mac, 3))
    assert table.rules == {stands: (bytes((2, 0, 0, 0, 0, 1)), 3)}
    if not finds:
        assert place_for_rule("eth1") == 14
    delete_rule("eth1", stands)
    assert rules("eth1") == 0


def test_a_full_table_has_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(2, finds=False)
    table.rules = {0: (bytes(6), 0), 1: (bytes(6), 0)}
    monkeypatch.setattr(ethtool, "_ask", table)
    with pytest.raises(OSError, match="no free place"):
        place_for_rule("eth1")
    table.rules = dict.fromkeys(range(et.RULES_MAX + 1), (bytes(6), 0))
    with pytest.raises(OSError, match="4097 rules, too many"):
        place_for_rule("eth1")


def test_rules_of_this_kind_are_listed_by_address_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    table, mac = Table(16, finds=False), mac_number("02:00:00:00:00:01")
    monkeypatch.setattr(ethtool, "_ask", table)
    assert rules_to("eth1") == {}
    add_rule("eth1", mac, 3, 5)
    add_rule("eth1", mac + 1, 4, 6)
    assert rules_to("eth1") == {mac: 3, mac + 1: 4}
    for also in ((255, 0), (0, 0xFFFF)):  # those lead some of its frames only
        table.also = also
        assert rules_to("eth1") == {}
    table.also = 0, 0
    table.kind = et.ETHER_FLOW + 1
    assert rules_to("eth1") == {}


@pytest.mark.root
def test_a_driver_without_a_table_refuses() -> None:
    with Namespace("host") as host:
        host.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        with pytest.raises(OSError, match="not supported"):
            host.call(lambda: rules("v0"))
        with pytest.raises(OSError, match="not supported"):
            host.call(lambda: place_for_rule("v0"))
