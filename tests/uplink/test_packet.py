# SPDX-License-Identifier: Apache-2.0
"""Packet sockets on real veth pairs: set-up, what the kernel says of it, and frames through the compiled lane."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Self

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.dataplane.harness_wire import ETHER, Round, data_of, payload, plain
from tests.vm.lab.netns import Namespace
from vmq.abi.ethernet import mac_number
from vmq.abi.linux import PACKET_AUXDATA, SOL_PACKET
from vmq.config.records import Packet
from vmq.errors import ConfigError
from vmq.jit import INTERPRETED
from vmq.uplink import link
from vmq.uplink.packet import UNICAST_MAX, PacketUplink


@pytest.fixture
def wires() -> Iterator[tuple[Namespace, Namespace]]:
    """Two hosts, each at the end of a veth pair whose other end the engine's host has: `left0`, `right0`."""
    with Namespace("engine") as engine, Namespace("peer") as peer:
        engine.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        peer.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        engine.veth("left0", peer, "peer0")
        yield engine, peer


def opened(engine: Namespace, device: str, workers: int = 1) -> PacketUplink:
    return engine.call(lambda: PacketUplink("lan", Packet(device=device), workers))


def peer_socket(peer: Namespace, device: str) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind((device, 3))
        made.settimeout(5)
        return made

    return peer.call(make)


def wait_for(worker: Round, lane: object, count: int) -> list[bytes]:
    frames: list[bytes] = []
    deadline = time.monotonic() + 10
    while len(frames) < count and time.monotonic() < deadline:
        frames += worker.drain(lane)
    return frames


@pytest.mark.root
def test_frames_cross_a_veth_both_ways_with_their_tags(wires: tuple[Namespace, Namespace]) -> None:
    engine, peer = wires
    tags = ["", "81000007", "81006007", "81000000", "88a80005", "8100000581000006", "88a8000581000006"]
    frames = [plain(1)[:12] + bytes.fromhex(tag) + plain(1)[12:] for tag in tags]
    with closing(opened(engine, "left0")) as uplink, peer_socket(peer, "peer0") as host:
        worker, lane = Round(), uplink.lanes[0]
        for frame in frames:
            host.send(frame)
        assert wait_for(worker, lane, len(frames)) == frames
        assert [int(row["vid"]) for row in worker.frames[: len(frames)]] == [0, 7, 7, 0, 0, 5, 0]

        worker.put(plain(1, 1514))
        worker.put(plain(2, 1514), tci=0x6007, cuts=(60, 700))
        worker.put(plain(3, 1515))
        worker.transmit(lane)
        host.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        assert host.recv(2000) == plain(1, 1514)
        assert host.recv(2000) == plain(2, 1514)  # its tag beside it
        assert worker.drops(lane) == {"to_wire_error": 1}  # longer than the device's MTU

        assert worker.drain(lane) == []  # what we sent ourselves does not come back


@pytest.mark.root
def test_a_device_that_is_down_is_a_named_drop_and_comes_back(wires: tuple[Namespace, Namespace]) -> None:
    engine, peer = wires
    with closing(opened(engine, "left0")) as uplink, peer_socket(peer, "peer0") as host:
        worker, lane = Round(), uplink.lanes[0]
        engine.run("ip", "link", "set", "left0", "down")
        worker.put(plain(1))
        worker.transmit(lane)
        assert worker.drops(lane) == {"to_wire_error": 1}
        assert worker.drain(lane) == []

        engine.run("ip", "link", "set", "left0", "up")
        deadline = time.monotonic() + 10
        got: list[bytes] = []
        while not got and time.monotonic() < deadline:
            host.send(plain(2))
            got = worker.drain(lane)
        assert set(got) == {plain(2)}


@pytest.mark.root
def test_lanes_share_what_comes_in_and_none_is_seen_twice(wires: tuple[Namespace, Namespace]) -> None:
    """PACKET_FANOUT_HASH: a frame comes to one socket, frames of a flow to the same."""
    engine, peer = wires
    with closing(opened(engine, "left0", 3)) as uplink, peer_socket(peer, "peer0") as host:
        worker = Round()
        frames = [
            bytes(
                ETHER / IP(src=f"10.0.{flow}.1", dst="10.1.0.1") / UDP(sport=flow) / Raw(bytes([number] * 30))
            )
            for number in range(4)
            for flow in range(32)
        ]
        for frame in frames:
            host.send(frame)
        shares: list[list[bytes]] = [[], [], []]
        deadline = time.monotonic() + 10
        while sum(map(len, shares)) < len(frames) and time.monotonic() < deadline:
            for share, lane in zip(shares, uplink.lanes, strict=True):
                share += worker.drain(lane)

    assert sorted(frame for share in shares for frame in share) == sorted(frames)
    assert sum(1 for share in shares if share) > 1
    for flow in range(32):
        own = [[frame for frame in share if Ether(frame)[UDP].sport == flow] for share in shares]
        assert sorted(map(len, own)) == [0, 0, 4]
        assert max(own) == [frame for frame in frames if Ether(frame)[UDP].sport == flow]


class Bridge:
    """Two packet lanes joined by our kernels: what comes in at one leaves at the other."""

    def __init__(self, lanes: list[object]) -> None:
        self.lanes, self.worker = lanes, Round()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            moved = 0
            for one, other in (self.lanes, self.lanes[::-1]):
                moved += self.worker.receive(one)
                self.worker.send_received(other)
            if not moved:
                time.sleep(0.0002)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)


def stream(left: Namespace, right: Namespace, address: str, data: bytes) -> bytes:
    """What a TCP server in `right` gets of what a client in `left` sends."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        right.call(lambda: socket.create_server((address, 7000), family=family)) as server,
        left.call(lambda: socket.socket(family, socket.SOCK_STREAM)) as client,
    ):
        server.settimeout(20)
        client.settimeout(20)

        def send() -> None:
            client.connect((address, 7000))
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        connection, _ = server.accept()
        got = b""
        with connection:
            connection.settimeout(20)
            while part := connection.recv(1 << 16):
                got += part
        sender.join(20)
    return got


@pytest.mark.root
@pytest.mark.parametrize(
    ("left_address", "right_address"), [("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2")]
)
def test_a_sender_may_leave_its_offloads_on(left_address: str, right_address: str) -> None:
    """A stack that hands super-frames with unfinished checksums to its device reaches one that does not take them."""
    data = payload(100_000 if INTERPRETED else 4_000_000)
    with Namespace("engine") as engine, Namespace("left") as left, Namespace("right") as right:
        for name, host, own in (("left0", left, left_address), ("right0", right, right_address)):
            engine.veth(name, host, "eth0")
            host.address("eth0", own + ("/64" if ":" in own else "/24"))
        with (
            closing(opened(engine, "left0")) as one,
            closing(opened(engine, "right0")) as other,
            Bridge([one.lanes[0], other.lanes[0]]) as bridge,
        ):
            one.follow({(2, 0)})
            got = stream(left, right, right_address, data)
            state_row = bridge.worker.state_of(one.lanes[0])

    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    assert state_row["segmented"] > 0
    assert state_row["completed"] > 0
    assert bridge.worker.drops(one.lanes[0]).keys() <= {"to_wire_full"}


@pytest.mark.root
def test_datagrams_cut_by_the_sender_s_device_are_cut_by_us(wires: tuple[Namespace, Namespace]) -> None:
    """UDP_SEGMENT leaves segmentation of datagrams to the device, and the device to us."""
    engine, peer = wires
    peer.address("peer0", "10.9.0.1/24")
    peer.run("ip", "neigh", "add", "10.9.0.2", "lladdr", "52:54:00:00:00:01", "dev", "peer0")
    with (
        closing(opened(engine, "left0")) as uplink,
        peer.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender,
    ):
        sender.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT
        sender.sendto(payload(20001), ("10.9.0.2", 9))
        worker, lane = Round(), uplink.lanes[0]
        frames = wait_for(worker, lane, 21)
        assert data_of(frames) == payload(20001)
        assert worker.state_of(lane)["segmented"] == 1


def refusal(engine: Namespace, config: Packet, workers: int = 1) -> str:
    """The line that an uplink is refused with; no descriptor stays open."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ConfigError) as caught:
        engine.call(lambda: PacketUplink("lan", config, workers))
    assert os.listdir("/proc/self/fd") == before
    return str(caught.value)


@pytest.mark.root
def test_what_cannot_be_opened_is_refused_in_one_line() -> None:
    with Namespace("engine") as engine:
        assert refusal(engine, Packet(device="nosuch0")) == (
            "[uplink.lan] device: there is no device nosuch0. Remedy: Name one that ip link shows"
        )
        assert refusal(engine, Packet(device="lo")).startswith(
            "[uplink.lan] device: lo is no Ethernet device"
        )
        assert "is no name of a network device" in refusal(engine, Packet(device="a-name-too-long0"))


def promiscuity(engine: Namespace) -> int:
    known = engine.call(lambda: link.describe(link.index_of("left0")))
    assert known is not None
    return known.promiscuity


@pytest.mark.root
def test_memberships_follow_the_receive_filters(wires: tuple[Namespace, Namespace]) -> None:
    """Promiscuity is the kernel's count of who asks for all frames: a veth asks itself, it filters no addresses."""
    engine, _ = wires
    first, second = mac_number("52:54:00:00:00:01"), mac_number("52:54:00:00:00:02")
    with closing(opened(engine, "left0")) as uplink:
        uplink.follow({(first, 0), (second, 5), (mac_number("33:33:00:00:00:01"), 0)})
        assert engine.call(uplink.status)["membership"] == ["52:54:00:00:00:01", "52:54:00:00:00:02"]
        uplink.follow({(second, 5)})
        assert engine.call(uplink.status)["membership"] == ["52:54:00:00:00:02"]
        told = engine.call(uplink.status)
        assert told["promiscuity"] == 1
        assert told["settings"][2]["why"].startswith("the device filters no addresses")

        uplink.follow({(mac, 0) for mac in range(0, 4 * UNICAST_MAX + 4, 4)})
        told = engine.call(uplink.status)
        assert (told["membership"], told["promiscuity"]) == ("promiscuous", 2)
        assert told["settings"][2] == {
            "name": "promiscuous",
            "requested": False,
            "effective": True,
            "why": f"more than {UNICAST_MAX} receive filters",
        }
        uplink.follow({(first, 0)})
        told = engine.call(uplink.status)
        assert (told["membership"], told["promiscuity"]) == (["52:54:00:00:00:01"], 1)
    assert promiscuity(engine) == 0


@pytest.mark.root
def test_promiscuous_is_asked_of_the_kernel_and_given_back(wires: tuple[Namespace, Namespace]) -> None:
    engine, _ = wires
    with closing(
        engine.call(lambda: PacketUplink("lan", Packet(device="left0", promiscuous=True), 1))
    ) as uplink:
        uplink.follow({(2, 0)})
        assert engine.call(uplink.status)["promiscuity"] == 1
    assert promiscuity(engine) == 0


@pytest.mark.root
def test_status_is_what_the_kernel_says_now(wires: tuple[Namespace, Namespace]) -> None:
    engine, peer = wires
    with closing(engine.call(lambda: PacketUplink("lan", Packet(device="left0", mtu=1400), 2))) as uplink:
        told = engine.call(uplink.status)
        assert (told["kind"], told["device"], told["mtu"], told["state"]) == ("packet", "left0", 1400, "up")
        assert [int(row["frame_max"]) for row in uplink.lanes] == [1414, 1414]
        engine.run("ip", "link", "set", "left0", "mtu", "9000")
        assert engine.call(uplink.status)["settings"][1] == {
            "name": "mtu",
            "requested": 1400,
            "effective": 9000,
            "why": "the device changed after vmq started; frames above 1400 are dropped",
        }
        peer.run("ip", "link", "set", "peer0", "down")
        deadline = time.monotonic() + 10
        while engine.call(uplink.status)["state"] == "up" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine.call(uplink.status)["state"] == "down"
        engine.run("ip", "link", "delete", "left0")
        assert engine.call(uplink.status)["state"] == "gone"
        uplink.follow({(2, 0), (4, 0)})  # nothing to ask any more, and nothing fails
        uplink.send(plain(1))


@pytest.mark.root
def test_frames_that_the_kernel_lost_are_counted(wires: tuple[Namespace, Namespace]) -> None:
    engine, peer = wires
    with closing(opened(engine, "left0")) as uplink, peer_socket(peer, "peer0") as host:
        uplink._sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for number in range(200):
            host.send(plain(number, 1500))
        kept = len(wait_for(Round(), uplink.lanes[0], 1))
        assert kept < 200
        assert engine.call(uplink.status)["lost"] == 200 - kept
        assert engine.call(uplink.status)["lost"] == 200 - kept


@pytest.mark.root
def test_an_announcement_leaves_at_once(wires: tuple[Namespace, Namespace]) -> None:
    engine, peer = wires
    with closing(opened(engine, "left0")) as uplink, peer_socket(peer, "peer0") as host:
        uplink.send(plain(7))
        assert host.recv(2000) == plain(7)
        uplink.close()
        uplink.send(plain(8))
        assert uplink.descriptors() == [None]


@pytest.mark.root
def test_a_successor_is_opened_beside_the_one_that_serves_and_may_be_discarded(
    wires: tuple[Namespace, Namespace],
) -> None:
    """Its device is as it was, and frames go where they went."""
    engine, peer = wires
    with closing(opened(engine, "left0", 2)) as uplink, peer_socket(peer, "peer0") as host:
        other = engine.call(lambda: PacketUplink("lan", Packet(device="left0", mtu=1400), 2))
        assert engine.call(uplink.status)["mtu"] == 1400
        engine.call(other.discard)
        assert (engine.call(uplink.status)["mtu"], other.descriptors()) == (1500, [None, None])
        worker = Round()
        host.send(plain(1))
        found: list[bytes] = []  # of several lanes one gets it
        deadline = time.monotonic() + 10
        while not found and time.monotonic() < deadline:
            found = [data for lane in uplink.lanes for data in worker.drain(lane)]
        assert found == [plain(1)]
