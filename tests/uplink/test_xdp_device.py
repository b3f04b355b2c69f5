# SPDX-License-Identifier: Apache-2.0
"""Devices whose frames are not the wire's bytes are refused, or told to change that, and left as they were."""

from __future__ import annotations

import errno
from contextlib import closing
from typing import Any

import pytest

from tests.dataplane.harness_wire import Round, plain
from tests.uplink.harness_xdp import (
    VM,
    on_egress,
    opened,
    program_on,
    raw,
    refusal,
    settings,
    tagged,
    wait_for,
)
from tests.vm.lab.netns import Namespace
from vmq import ethtool
from vmq.abi import bpf
from vmq.bpf.assembler import R0, R2, R3, Code
from vmq.config.records import Xdp
from vmq.errors import HostError
from vmq.uplink.xdp import XdpUplink
from vmq.uplink.xdp_device import STRIPPING
from vmq.uplink.xdp_steering import XdpSteering

pytestmark = pytest.mark.root


def pushes(tpid: int, vid: int) -> Code:
    """A program that sets a tag as a VLAN device does: beside the frame, where the device takes it so. `tpid`: as in memory."""
    code = Code()
    code.let(R2, "=", tpid)
    code.let(R3, "=", vid)
    code.call(bpf.BPF_FUNC_skb_vlan_push)
    code.let(R0, "=", bpf.TCX_NEXT)
    code.exit()
    return code


def test_a_veth_hands_over_tags_beside_the_frame_which_is_why_it_is_not_taken_unprepared(
    wires: tuple[Namespace, Namespace],
) -> None:
    """The fact that the refusal rests on: a tag that the other end's stack has set is invisible to a program."""
    engine, peer = wires
    with on_egress(peer, pushes(0x0081, 5)), raw(peer, "peer0") as host:
        with closing(opened(engine)) as uplink:
            uplink.follow({(VM, 0)})
            host.send(plain(1))
            assert wait_for(Round(), uplink.lanes[0], 1) == [plain(1)]  # and the tag is gone
        with closing(opened(engine, prepared=False)) as uplink:
            uplink.follow({(VM, 0)})
            host.send(plain(1))
            assert wait_for(Round(), uplink.lanes[0], 1) == [tagged(plain(1), "81000005")]
            asked, used, why = settings(engine, uplink)["mode"]
            assert (asked, used) == ("auto", "packet sockets")
            assert "ethtool -K PEER txvlan off tx-vlan-stag-hw-insert off tx off" in why


def test_who_takes_tags_out_behind_our_back_is_overruled(wires: tuple[Namespace, Namespace]) -> None:
    engine, _ = wires
    with closing(opened(engine)) as uplink:
        engine.run("ethtool", "-K", "left0", "rxvlan", "on")
        assert settings(engine, uplink)["vlan_stripping"][1] == "rx-vlan-hw-parse"
        engine.call(uplink.tick)
        assert settings(engine, uplink)["vlan_stripping"][1] == "off"


def test_a_device_is_left_as_it_was_under_another_name(wires: tuple[Namespace, Namespace]) -> None:
    engine, _ = wires
    uplink = opened(engine)
    engine.run("ip", "link", "set", "left0", "down")
    engine.run("ip", "link", "set", "left0", "name", "renamed0")
    engine.up("renamed0")
    assert settings(engine, uplink)["device"][:2] == ("left0", "renamed0")
    uplink.close()
    said = engine.call(lambda: ethtool.describe("renamed0"))
    assert said is not None
    assert all(said.features[name] for name in STRIPPING)


def test_a_device_that_cannot_leave_tags_in_is_served_by_packet_sockets(
    wires: tuple[Namespace, Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start, or from when that is found out: frames come by another way then."""
    engine, peer = wires

    def fixed(device: str, feature: str, **_: Any) -> None:
        raise HostError(feature, "the driver did not switch it off", f"ethtool -k {device} says [fixed]")

    with closing(opened(engine)) as uplink, raw(peer, "peer0") as host:
        uplink.follow({(VM, 0)})
        monkeypatch.setattr(ethtool, "switch", fixed)
        engine.run("ethtool", "-K", "left0", "rxvlan", "on")
        engine.call(uplink.tick)
        assert program_on(engine) is None
        asked, used, why = settings(engine, uplink)["mode"]
        assert (asked, used) == ("auto", "packet sockets")
        assert "takes VLAN tags out of its frames: the driver did not" in why
        host.send(plain(1))
        assert wait_for(Round(), uplink.lanes[0], 1) == [plain(1)]
    with closing(opened(engine)) as uplink:
        assert settings(engine, uplink)["mode"][1] == "packet sockets"
    assert "takes VLAN tags out" in refusal(engine, mode="native")


def test_a_driver_that_takes_no_program_is_served_by_packet_sockets_unless_somebody_vouches(
    wires: tuple[Namespace, Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A veth as a NIC whose driver knows no XDP."""
    engine, peer = wires
    attach = XdpSteering._attach

    def refused(one: XdpSteering, index: int, mode: str) -> None:
        if mode == "native":
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        attach(one, index, mode)

    monkeypatch.setattr(XdpSteering, "_attach", refused)
    with closing(opened(engine)) as uplink:
        assert settings(engine, uplink)["mode"][1:] == (
            "generic",
            "the driver takes no program: Operation not supported",
        )
    monkeypatch.setattr("vmq.uplink.xdp_device.check", lambda *_: None)
    with closing(opened(engine, prepared=False)) as uplink, raw(peer, "peer0") as host:
        asked, used, why = settings(engine, uplink)["mode"]
        assert (asked, used) == ("auto", "packet sockets")
        assert "behind the driver of left0" in why
        assert "the driver takes no program" in why
        assert program_on(engine) is None
        uplink.follow({(VM, 0)})
        host.send(plain(1))
        assert wait_for(Round(), uplink.lanes[0], 1) == [plain(1)]
    assert "behind the driver of left0" in refusal(engine, mode="generic", prepared=False)


@pytest.mark.parametrize("way", ["native", "generic"])
def test_who_writes_to_a_tap_may_leave_checksums_unfinished_which_is_why_somebody_vouches(
    wires: tuple[Namespace, Namespace], way: str
) -> None:
    engine, _ = wires
    engine.run("ip", "tuntap", "add", "tap0", "mode", "tap")
    assert "tap0 is a TAP" in refusal(engine, device="tap0", mode=way, prepared=False)
    with closing(opened(engine, device="tap0", mode=way)) as uplink:
        assert settings(engine, uplink)["mode"][1] == way


def test_a_device_on_top_of_others_is_served_by_packet_sockets(wires: tuple[Namespace, Namespace]) -> None:
    engine, _ = wires
    engine.run("ip", "link", "add", "br0", "type", "bridge")
    with closing(engine.call(lambda: XdpUplink("lan", Xdp(device="br0"), 1))) as uplink:
        assert "br0 is a bridge" in settings(engine, uplink)["mode"][2]
        assert program_on(engine, "br0") is None
