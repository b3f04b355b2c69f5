# SPDX-License-Identifier: Apache-2.0
"""AF_XDP uplinks at one end of a veth pair, and what a test does at the other."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from tests.dataplane.harness_wire import Round
from tests.vm.lab.netns import Namespace
from vmq.abi import bpf
from vmq.abi.ethernet import mac_number
from vmq.abi.linux import PACKET_AUXDATA, SOL_PACKET, TP_STATUS_VLAN_VALID
from vmq.bpf.assembler import Code
from vmq.bpf.link import Link
from vmq.bpf.program import Program
from vmq.config.records import Xdp
from vmq.errors import ConfigError
from vmq.uplink import link
from vmq.uplink.xdp import XdpUplink

PATIENCE = 20
VM = mac_number("52:54:00:00:00:01")  # whom `plain` addresses
BROADCAST = b"\xff" * 6


def opened(engine: Namespace, workers: int = 1, **settings: Any) -> XdpUplink:
    config = Xdp(**{"device": "left0", "prepared": True, **settings})
    return engine.call(lambda: XdpUplink("lan", config, workers))


def raw(host: Namespace, device: str) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        made.bind((device, 3))
        made.settimeout(PATIENCE)
        return made

    return host.call(make)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for(worker: Round, lane: object, count: int) -> list[bytes]:
    frames: list[bytes] = []

    def enough() -> bool:
        frames.extend(worker.drain(lane))
        return len(frames) >= count

    until(enough)
    return frames


def program_on(host: Namespace, device: str = "left0") -> dict[str, Any] | None:
    (shown,) = json.loads(host.run("ip", "-json", "link", "show", device))
    found: dict[str, Any] | None = shown.get("xdp")
    return found


def settings(engine: Namespace, uplink: XdpUplink) -> dict[str, tuple[Any, Any, str]]:
    return {
        row["name"]: (row["requested"], row["effective"], row["why"])
        for row in engine.call(uplink.status)["settings"]
    }


def with_tag(host: socket.socket) -> bytes:
    """The next frame, its tag where it was on the wire: the kernel has put it beside the frame."""
    frame, told, _, _ = host.recvmsg(2000, 100)
    (status, *_, tci, tpid) = struct.unpack("=IIIHHHH", told[0][2])
    return tagged(frame, f"{tpid:04x}{tci:04x}") if status & TP_STATUS_VLAN_VALID else frame


def tagged(data: bytes, tag: str) -> bytes:
    return data[:12] + bytes.fromhex(tag) + data[12:]


def refusal(engine: Namespace, **keys: Any) -> str:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ConfigError) as caught:
        opened(engine, **keys)
    assert os.listdir("/proc/self/fd") == before
    return str(caught.value)


def on_egress(host: Namespace, code: Code) -> closing[Link]:
    with Program(bpf.BPF_PROG_TYPE_SCHED_CLS, "test", code) as program:
        return closing(host.call(lambda: Link(program, link.index_of("peer0"), hook=bpf.BPF_TCX_EGRESS)))
