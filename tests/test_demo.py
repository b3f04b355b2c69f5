# SPDX-License-Identifier: Apache-2.0
"""The demo: what it expects is worked out from the capture alone, and its verdict can be a bad one."""

from __future__ import annotations

import json

import pytest

from vmq import demo
from vmq.uplink.pcapfile import read_capture

GROUP = bytes.fromhex("01005e000001")
LINK_LOCAL = bytes.fromhex("0180c2000000")
HOST = bytes.fromhex("0200000000fe")


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def frame(destination: bytes, source: bytes, vlan: int = 0) -> bytes:
    tag = bytes.fromhex("8100") + vlan.to_bytes(2, "big") if vlan else b""
    return destination + source + tag + bytes.fromhex("0800") + bytes(46)


def test_frames_are_shared_out_by_address_and_vlan() -> None:
    """vmq-semantics §5.2: MAC and VLAN id both match; a group goes to all of the VLAN; the tag is gone."""
    vms = demo.members()
    target, initiator, red, blue = vms
    frames = [
        frame(mac(target.macs[0]), HOST),
        frame(mac(target.macs[0]), HOST, 10),  # right address, wrong VLAN
        frame(mac(red.macs[0]), HOST, 10),
        frame(GROUP, HOST),
        frame(LINK_LOCAL, HOST),
        frame(HOST, mac(target.macs[0])),
    ]

    demo.share_out(frames, vms)

    assert target.expected == [frames[0], frames[3]]
    assert initiator.expected == [frames[3]]
    assert red.expected == [frame(mac(red.macs[0]), HOST)]
    assert blue.expected == []
    assert target.sends == [frames[5]]


def test_the_bundled_capture_has_real_traffic_for_every_vm() -> None:
    """Recorded between two guests: ARP, IPv4, IPv6, FCoE and FIP, tagged and untagged; below a mebibyte."""
    packets = [packet.data for packet in read_capture(str(demo.CAPTURE), "demo")]
    vms = demo.members()
    demo.share_out(packets, vms)
    types = {demo.untagged(one)[1][12:14].hex() for one in packets}

    assert {"0806", "0800", "86dd", "8906", "8914"} <= types
    assert all(vm.expected for vm in vms)
    assert any(vm.sends for vm in vms)
    assert any(b"\x0c\xbc" in one for one in packets), "no iSCSI"
    assert demo.CAPTURE.stat().st_size < 1 << 20


@pytest.mark.compiled
@pytest.mark.timeout(180)
def test_demo_delivers_every_frame_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Four guest processes behind real sockets; no root, no QEMU."""
    assert demo.run(0.5, True, True) == 0

    result = json.loads(capsys.readouterr().out)
    assert result["ok"], result["complaints"]
    assert result["frames_to_guests"] > 0
    assert result["uplink"]["frames_from_wire"] == result["rounds"] * result["capture_frames"]


def test_verdict_is_bad_when_one_frame_is_missing() -> None:
    """No check cannot fail."""
    vm = demo.members()[0]
    vm.expected = [b"x"] * 10
    vm.counters = {"frames": 19, "verified": 19}
    row = {"frames_to_guest": 20, "drops": {}}

    assert demo.Demo.judge(demo.Demo.__new__(demo.Demo), vm, 2, row) == [
        f"{vm.name}: 19 of 20 frames arrived intact and in order"
    ]
