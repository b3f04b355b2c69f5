# SPDX-License-Identifier: Apache-2.0
"""Devices as the kernel describes them; iproute2 is the oracle."""

from __future__ import annotations

import json

import pytest

from tests.vm.lab.netns import Namespace
from vmq.abi import bpf
from vmq.bpf.assembler import R0, Code
from vmq.bpf.link import Link
from vmq.bpf.program import Program
from vmq.uplink import link


def test_a_device_that_is_not_there() -> None:
    assert link.index_of("nosuch0") == 0
    assert link.describe(1 << 30) is None


@pytest.mark.root
def test_a_device_is_described_as_iproute2_does() -> None:
    with Namespace("host") as host:
        host.run("ip", "link", "add", "br0", "type", "bridge")
        host.run("ip", "link", "add", "v0", "mtu", "1400", "type", "veth", "peer", "name", "v1")
        index = host.call(lambda: link.index_of("v0"))
        bridge = host.call(lambda: link.index_of("br0"))

        host.call(lambda: link.set_mtu("v0", 1300))
        host.call(lambda: link.set_up("v0"))
        host.call(lambda: link.set_up("v0"))
        host.call(lambda: link.join_bridge("br0", index))

        told = host.call(lambda: link.describe(index))
        (shown,) = json.loads(host.run("ip", "-json", "-details", "link", "show", "v0"))
        assert told is not None
        assert (told.name, told.index, told.mtu) == ("v0", shown["ifindex"], 1300)
        assert (told.master, told.promiscuity, told.up) == (bridge, shown["promiscuity"], True)
        assert told.state.replace(" ", "") == shown["operstate"].lower()
        host.call(lambda: link.leave_bridge("br0", index))
        left = host.call(lambda: link.describe(index))
        assert left is not None
        assert (left.master, left.promiscuity) == (0, 0)
        with pytest.raises(OSError):
            host.call(lambda: link.join_bridge("v1", index))
        for _ in range(2):
            host.call(lambda: link.set_down("v0"))
            told = host.call(lambda: link.describe(index))
            assert told is not None
            assert not told.up


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "flags"), [("native", bpf.XDP_FLAGS_DRV_MODE), ("generic", bpf.XDP_FLAGS_SKB_MODE)]
)
def test_a_program_on_a_device_is_told_with_its_mode(mode: str, flags: int) -> None:
    code = Code()
    code.let(R0, "=", bpf.XDP_PASS)
    code.exit()
    with Namespace("host") as host:
        host.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        index = host.call(lambda: link.index_of("v0"))
        with Program(bpf.BPF_PROG_TYPE_XDP, "passes", code) as program:
            with host.call(lambda: Link(program, index, flags=flags)):
                told = host.call(lambda: link.describe(index))
                (shown,) = json.loads(host.run("ip", "-json", "link", "show", "v0"))
            left = host.call(lambda: link.describe(index))

    assert told is not None
    assert left is not None
    assert told.programs == {mode: shown["xdp"]["prog"]["id"]}
    assert left.programs == {}
