# SPDX-License-Identifier: Apache-2.0
"""What drivers say, asked of this kernel; the program ethtool is the other opinion."""

from __future__ import annotations

import pytest

from tests.vm.lab.netns import Namespace
from vmq.errors import HostError
from vmq.ethtool import describe, receive_queues, switch


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
