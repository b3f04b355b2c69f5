# SPDX-License-Identifier: Apache-2.0
"""TAPs made and found, in bridges and out of them, and frames through the compiled lane."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.dataplane.harness_wire import Round, plain
from tests.hostile.arena import until
from tests.vm.lab.netns import Namespace
from vmq.abi.ethernet import mac_number
from vmq.abi.linux import IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUNSETIFF
from vmq.config.records import Tap
from vmq.errors import ConfigError
from vmq.uplink import link
from vmq.uplink.tap import TapUplink

pytestmark = pytest.mark.root


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace("host") as made:
        made.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        yield made


def opened(host: Namespace, workers: int = 1, **config: Any) -> TapUplink:
    return host.call(lambda: TapUplink("lan", Tap(**{"device": "vmqtap0", **config}), workers))


def exists(host: Namespace, device: str = "vmqtap0") -> bool:
    return bool(host.call(lambda: link.index_of(device)))


def refusal(host: Namespace, workers: int = 1, **config: Any) -> str:
    """The line that an uplink is refused with; no descriptor stays open, and no device."""
    before = os.listdir("/proc/self/fd"), host.run("ip", "-brief", "link")
    with pytest.raises(ConfigError) as caught:
        opened(host, workers, **config)
    assert (os.listdir("/proc/self/fd"), host.run("ip", "-brief", "link")) == before
    return str(caught.value)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_tap_is_made_and_goes_away(host: Namespace, workers: int) -> None:
    with closing(opened(host, workers, mtu=1400)) as uplink:
        told = host.call(uplink.status)
        assert (told["kind"], told["device"], told["mtu"], told["queues"]) == (
            "tap",
            "vmqtap0",
            1400,
            workers,
        )
        features = ["tap", "no_pi", "vnet_hdr", "multi_queue"]
        assert [setting["effective"] for setting in told["settings"]] == ["vmqtap0", 1400, None, features, 12]
        assert all(setting["why"] == "" for setting in told["settings"])
        assert len({*uplink.descriptors()}) == workers
        assert [int(row["frame_max"]) for row in uplink.lanes] == [1414] * workers
        assert all(int(row["buffers"]) % 16 == 4 for row in uplink.lanes)
    assert not exists(host)
    assert uplink.descriptors() == [None] * workers
    uplink.close()


def test_a_tap_to_persist_stays_and_is_found_again(host: Namespace) -> None:
    opened(host, persist=True).close()
    assert exists(host)
    opened(host, create=False).close()
    assert exists(host)


def test_a_tap_to_persist_that_is_not_to_serve_after_all_is_gone(
    host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for one that was there before."""

    def full(_: TapUplink) -> None:
        raise MemoryError

    with closing(opened(host, persist=True)) as uplink:
        host.call(uplink.discard)
        assert not exists(host)
    with monkeypatch.context() as patch:
        patch.setattr(TapUplink, "_buffers", full)
        with pytest.raises(MemoryError):
            opened(host, persist=True)
    assert not exists(host)
    host.run("ip", "tuntap", "add", "vmqtap0", "mode", "tap")
    host.call(opened(host, persist=True).discard)
    assert exists(host)


def test_a_tap_joins_its_bridge_and_leaves_it(host: Namespace) -> None:
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("ip", "tuntap", "add", "vmqtap0", "mode", "tap")
    with closing(opened(host, bridge="br0")) as uplink:
        assert host.call(uplink.status)["bridge"] == "br0"
        host.run("ip", "link", "set", "vmqtap0", "nomaster")
        told = host.call(uplink.status)
        assert told["settings"][2] == {"name": "bridge", "requested": "br0", "effective": None, "why": ""}
        host.run("ip", "link", "set", "vmqtap0", "master", "br0")
        host.call(uplink.close)
        known = host.call(lambda: link.describe(link.index_of("vmqtap0")))
        assert known is not None
        assert known.master == 0


def test_what_cannot_be_opened_is_refused_in_one_line(host: Namespace) -> None:
    host.run("ip", "link", "add", "dummy0", "type", "veth", "peer", "name", "dummy1")
    assert refusal(host, create=False) == (
        "[uplink.lan] device: there is no device vmqtap0. "
        "Remedy: Set create = true, or: ip tuntap add vmqtap0 mode tap"
    )
    assert "Use 1 to 15 characters" in refusal(host, device="sixteen-letters0")
    assert "is no TAP" in refusal(host, device="dummy0")
    assert "lo is no Ethernet device" in refusal(host, device="lo")
    assert refusal(host, bridge="nobr0").startswith(
        "[uplink.lan] bridge: there is no bridge nobr0. Remedy: Make it"
    )
    assert refusal(host, bridge="dummy1", persist=True).endswith("Remedy: Name a bridge")
    assert refusal(host, mtu=65535).startswith("[uplink.lan] mtu: vmqtap0 does not take 65535")
    host.run("ip", "tuntap", "add", "single0", "mode", "tap")
    assert refusal(host, 2, device="single0").endswith("is no TAP, or one with a single queue")
    with closing(opened(host, device="single0")):
        assert "Stop the program that has the device open" in refusal(host, device="single0")


def test_a_tap_that_is_removed_is_told_and_closes(host: Namespace) -> None:
    with closing(opened(host)) as uplink:
        host.run("ip", "link", "delete", "vmqtap0")
        assert host.call(uplink.status)["state"] == "gone"
        uplink.send(plain(1))
        worker = Round()
        worker.put(plain(1))
        worker.transmit(uplink.lanes[0])
        assert worker.drops(uplink.lanes[0]) == {"to_wire_error": 1}
        assert worker.drain(uplink.lanes[0]) == []


def host_socket(host: Namespace) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind(("vmqtap0", 3))
        made.settimeout(5)
        return made

    return host.call(make)


def wait_for(worker: Round, lane: Any, count: int) -> list[bytes]:
    frames: list[bytes] = []
    deadline = time.monotonic() + 10
    while len(frames) < count and time.monotonic() < deadline:
        frames += worker.drain(lane)
    return frames


def test_frames_cross_a_tap_both_ways_with_their_tags(host: Namespace) -> None:
    tags = ["", "81000007", "81006007", "81000000", "88a80005", "8100000581000006"]
    frames = [plain(1)[:12] + bytes.fromhex(tag) + plain(1)[12:] for tag in tags]
    with closing(opened(host)) as uplink, host_socket(host) as kernel:
        worker, lane = Round(), uplink.lanes[0]
        for frame in [*frames, plain(3, 1514), plain(4, 60)]:
            kernel.send(frame)
        assert wait_for(worker, lane, 8) == [*frames, plain(3, 1514), plain(4, 60)]

        worker.begin()
        worker.put(plain(1, 1514))
        worker.put(plain(2, 1514), tci=0x6007, cuts=(60, 700))
        worker.put(plain(5, 1514), cuts=tuple(range(60, 1400)))
        worker.put(plain(6)[:13])
        worker.transmit(lane)
        assert kernel.recv(2000) == plain(1, 1514)
        assert kernel.recv(2000) == plain(2, 1514)  # the kernel took the tag out
        assert kernel.recv(2000) == plain(5, 1514)
        assert worker.drops(lane) == {"to_wire_error": 1}
        uplink.send(plain(7))
        assert kernel.recv(2000) == plain(7)


def test_a_burst_is_bounded_by_what_the_tables_allow(host: Namespace) -> None:
    with closing(opened(host)) as uplink, host_socket(host) as kernel:
        worker = Round(frame_limit=3)
        for number in range(7):
            kernel.send(plain(number))
        counts = [worker.receive(uplink.lanes[0]) for _ in range(4)]
        assert counts == [3, 3, 1, 0]


def test_a_frame_longer_than_the_mtu_of_its_start_is_dropped(host: Namespace) -> None:
    with closing(opened(host)) as uplink, host_socket(host) as kernel:
        host.run("ip", "link", "set", "vmqtap0", "mtu", "9000")
        for length in (1514, 1515, 1550, 9014):
            kernel.send(plain(1, length))
        worker = Round()
        assert wait_for(worker, uplink.lanes[0], 1) == [plain(1, 1514)]
        assert worker.drain(uplink.lanes[0]) == []
        assert worker.drops(uplink.lanes[0]) == {"from_wire_too_long": 3}
        assert "frames above 1500 are dropped" in host.call(uplink.status)["settings"][1]["why"]


def test_a_device_that_is_down_takes_nothing(host: Namespace) -> None:
    with closing(opened(host)) as uplink:
        host.run("ip", "link", "set", "vmqtap0", "down")
        worker = Round()
        worker.put(plain(1))
        worker.transmit(uplink.lanes[0])
        assert worker.drops(uplink.lanes[0]) == {"to_wire_error": 1}
        assert host.call(uplink.status)["state"] == "down"


# --- queues of VMs -------------------------------------------------------------------------------------------

A, B = mac_number("52:54:00:00:00:01"), mac_number("52:54:00:00:00:03")


def read_all(descriptor: int) -> list[bytes]:
    frames = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frames.append(os.read(descriptor, 4000)[12:])
    return frames


def to(number: int) -> bytes:
    """A frame to 52:54:00:00:00:`number`."""
    return plain(number)[:5] + bytes([number]) + plain(number)[6:]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_vms_queue_gets_the_frames_to_its_addresses_and_no_others(host: Namespace, workers: int) -> None:
    with closing(opened(host, workers)) as uplink, host_socket(host) as kernel:
        queues = [host.call(uplink.own_queue) for _ in range(2)]
        assert [(number, fresh) for number, _, fresh in queues] == [(workers, True), (workers + 1, True)]
        uplink.lead({(A, 0): workers, (B, 0): workers + 1})
        for number in (1, 3, 5, 3):
            kernel.send(to(number))
        assert [read_all(descriptor) for _, descriptor, _ in queues] == [[to(1)], [to(3), to(3)]]
        assert [frame for row in uplink.lanes for frame in read_all(int(row["fd"]))] == [to(5)]
        told = host.call(uplink.status)
        assert (told["queues"], told["verdicts"]) == (workers + 2, {"own_queue": 3, "ordinary": 1})


def test_a_queue_that_is_given_back_is_empty_and_the_next_vms(host: Namespace) -> None:
    with closing(opened(host)) as uplink, host_socket(host) as kernel:
        (first, _, _), (second, other, _) = (host.call(uplink.own_queue) for _ in range(2))
        uplink.lead({(A, 0): first, (B, 0): second})
        kernel.send(to(1))
        uplink.lead({(B, 0): second})
        uplink.give_back(first)
        number, descriptor, fresh = host.call(uplink.own_queue)
        assert (number, fresh) == (first, False)
        uplink.lead({(A, 0): number, (B, 0): second})
        assert read_all(descriptor) == []
        kernel.send(to(3))
        kernel.send(to(1))
        assert (read_all(descriptor), read_all(other)) == ([to(1)], [to(3)])


def test_a_device_that_stays_asks_no_program_of_ours_and_one_queue_is_all_that_some_have(
    host: Namespace,
) -> None:
    host.run("ip", "tuntap", "add", "vmqtap0", "mode", "tap", "multi_queue")
    with closing(opened(host)) as uplink:
        host.call(uplink.own_queue)
        assert uplink.several
    host.run("ip", "tuntap", "add", "single0", "mode", "tap")
    with closing(opened(host, device="single0")) as uplink:
        assert not uplink.several
        with pytest.raises(OSError, match="busy"):
            host.call(uplink.own_queue)


def test_whoever_else_has_queues_of_the_device_is_seen(host: Namespace) -> None:
    """Numbers of queues change when they go, so before that they are refused, and afterwards none of ours count."""
    with closing(opened(host)) as uplink:
        assert "somebody has it open" in refusal(host)
        host.call(uplink.own_queue)
        host.call(uplink.tick)
        assert not uplink.shared
        with closing(Namesake(host)):
            until(lambda: looked(host, uplink))
        assert looked(host, uplink)
        with pytest.raises(OSError, match="somebody else has queues"):
            host.call(uplink.own_queue)


def looked(host: Namespace, uplink: TapUplink) -> bool:
    host.call(uplink.tick)
    return uplink.shared


class Namesake:
    """Another program with a queue of the same device."""

    def __init__(self, host: Namespace) -> None:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE

        def attach() -> int:
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(descriptor, TUNSETIFF, link.interface_request("vmqtap0", flags))
            return descriptor

        self._descriptor = host.call(attach)

    def close(self) -> None:
        os.close(self._descriptor)
