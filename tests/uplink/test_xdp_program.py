# SPDX-License-Identifier: Apache-2.0
"""The kernel's verdict on a frame against the engine's, on the same frames: what one steers to a VM, so does the other."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterator
from typing import Self

import pytest

from tests.dataplane.rig import BROADCAST, LINK_LOCAL, MULTICAST, NOBODY, A, B, C, D, Rig, frame
from vmq.abi import bpf
from vmq.abi.ethernet import mac_number
from vmq.abi.xdp import AF_XDP
from vmq.bpf.maps import counters, device_map, hash_map, socket_map
from vmq.bpf.program import Program
from vmq.dataplane.state import MAX_VPORTS, VID_SHIFT
from vmq.uplink import xdp_program
from vmq.uplink.xdp_program import VERDICTS, steering, to_own_queue, to_pair, watcher

pytestmark = pytest.mark.root
LONGEST = 1792
PRESENT, PAIR = bytes(4), 3
REDIRECTED = ("steered", "direct", "own_queue")


class Kernel:
    """The program with its maps, and a socket on NIC queue 0."""

    def __init__(self, filters: list[tuple[str, int]], *, with_socket: bool = True) -> None:
        self.filters, self.addresses = hash_map("filters", 64, 8, 4), hash_map("addresses", 64, 8, 4)
        self.sockets, self.counted = socket_map("sockets", 1), counters("verdicts", len(VERDICTS))
        for mac, vlan in filters:
            self.filters.update((mac_number(mac) | vlan << VID_SHIFT).to_bytes(8, "little"), PRESENT)
            self.addresses.update(mac_number(mac).to_bytes(8, "little"), PRESENT)
        self.pairs = device_map("pairs", 8)
        self.own = socket_map("own", 2)
        code = steering(self.filters, self.sockets, self.pairs, self.own, self.counted, LONGEST)
        self.steer = Program(bpf.BPF_PROG_TYPE_XDP, "steer", code)
        self.watch = Program(bpf.BPF_PROG_TYPE_SOCKET_FILTER, "watch", watcher(self.addresses))
        self.socket = socket.socket(AF_XDP, socket.SOCK_RAW)
        if with_socket:
            self.sockets.update(bytes(4), self.socket.fileno().to_bytes(4, "little"))

    def verdict(self, data: bytes) -> str:
        """What the program makes of a frame: its return value, and the one counter that moved."""
        before = [self.counted.total(index) for index in range(len(VERDICTS))]
        run = self.steer.run(data)
        assert run.frame == data
        moved = [self.counted.total(index) - count for index, count in enumerate(before)]
        assert sorted(moved) == [0] * (len(VERDICTS) - 1) + [1]
        name = VERDICTS[moved.index(1)][0]
        assert run.verdict == (bpf.XDP_REDIRECT if name in REDIRECTED else bpf.XDP_PASS)
        return name

    def lead(self, mac: str, vlan: int, value: int) -> None:
        """Have a filter lead somewhere else."""
        key = (mac_number(mac) | vlan << VID_SHIFT).to_bytes(8, "little")
        self.filters.update(key, value.to_bytes(4, "little"))

    def own_socket(self, queue: int) -> None:
        """A VM has a socket on this NIC queue."""
        self.own.update(queue.to_bytes(4, "little"), self.socket.fileno().to_bytes(4, "little"))

    def watched(self, data: bytes) -> bool:
        """Whether a packet socket takes the frame."""
        return self.watch.run(data).verdict != 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (
            self.filters,
            self.addresses,
            self.sockets,
            self.pairs,
            self.own,
            self.counted,
            self.steer,
            self.watch,
            self.socket,
        ):
            one.close()


# Two VMs without a VLAN, one address in two VLANs, one only in a VLAN.
FILTERS = [(A, 0), (B, 0), (C, 5), (C, 6), (D, 7)]
TAGS = [None, 0, 0x6000, 5, 0x6005, 6, 7, 0xE007, 4094, 4095]


def untagged(data: bytes) -> bytes:
    """A frame without its VLAN: a VM gets none to see."""
    return data[:12] + data[16:] if data[12:14] == b"\x81\x00" else data


def verdicts_of_the_engine(frames: list[bytes]) -> list[bool]:
    """Whether a VM gets each of the frames from its wire. They differ in more than their tags."""
    with Rig() as rig:
        wire = rig.uplink(frames=frames)
        room = {"size": 256, "regions": ((0x10000, 1 << 20),)}
        vms = [rig.vm(mac, uplink=wire, vlan=vlan, accept=(), **room) for mac, vlan in FILTERS]
        for vm in vms:
            vm.post(len(frames))
        rig.publish()
        rig.run()
        got = {untagged(data) for vm in vms for data in vm.received()}
    return [untagged(data) in got for data in frames]


def test_the_kernel_steers_what_the_engine_steers():
    """Every address in every VLAN, priority and service tags too."""
    cases = list(itertools.product([A, B, C, D, NOBODY, BROADCAST, MULTICAST, LINK_LOCAL], TAGS))
    frames = [frame(to, NOBODY, vlan=tag, fill=number) for number, (to, tag) in enumerate(cases)]
    frames += [frame(A, NOBODY, size=size) for size in (14, 60, 1514)]
    frames.append(frame(A, NOBODY, kind=0x88A8))  # a service tag is payload
    with Kernel(FILTERS) as kernel:
        steered = [kernel.verdict(data) == "steered" for data in frames]
    assert steered == verdicts_of_the_engine(frames)
    assert sum(steered) == 2 * 3 + 2 + 1 + 2 + 4  # VIDs 0; 5 and 6, priority or not; 7; the rest


def test_the_same_of_frames_drawn_at_random():
    """Addresses that differ from a VM's in one bit, and every VLAN near by."""
    draw = random.Random(1)
    frames = []
    for number in range(200):
        mac = bytearray.fromhex(draw.choice([A, B, C, D]).replace(":", ""))
        if draw.random() < 0.5:
            bit = draw.randrange(48)
            mac[bit // 8] ^= 1 << bit % 8
        tag = draw.choice([None, draw.randrange(1 << 16), draw.randrange(10) | draw.randrange(16) << 12])
        data = frame(mac.hex(":"), NOBODY, vlan=tag, size=64)
        frames.append(data[:-4] + number.to_bytes(4, "big"))
    with Kernel(FILTERS) as kernel:
        steered = [kernel.verdict(data) == "steered" for data in frames]
    assert steered == verdicts_of_the_engine(frames)
    assert 10 < sum(steered) < 150


@pytest.mark.parametrize(("data", "verdict"), [
    (frame(BROADCAST, A), "group"),
    (frame(LINK_LOCAL, A), "group"),
    (frame(NOBODY, A), "nobody"),
    (frame(A, B, vlan=9), "nobody"),
    (frame(A, B, size=LONGEST), "steered"),
    (frame(A, B, size=LONGEST + 1), "too_long"),
    (frame(A, B, vlan=0, size=LONGEST - 3), "too_long"),
    (frame(A, B, vlan=0)[:18], "steered"),
    (frame(A, B, vlan=0)[:17], "runt"),
    (frame(A, B, vlan=5)[:14], "runt"),
    (frame(A, B)[:14], "steered"),
], ids=str)  # fmt: skip
def test_each_verdict_is_counted_once(data: bytes, verdict: str):
    with Kernel(FILTERS) as kernel:
        assert kernel.verdict(data) == verdict


def test_a_queue_without_a_socket_leaves_its_frames_to_the_kernel():
    with Kernel(FILTERS, with_socket=False) as kernel:
        assert kernel.verdict(frame(A, B)) == "no_socket"


def addressed() -> Iterator[tuple[str, bool]]:
    yield from ((mac, True) for mac in (A, B, C, D, BROADCAST, MULTICAST, LINK_LOCAL))
    yield NOBODY, False


def test_a_packet_socket_watches_groups_and_addresses_of_vms_in_any_vlan():
    with Kernel(FILTERS) as kernel:
        for mac, wanted in addressed():
            assert kernel.watched(frame(mac, NOBODY)) == wanted, mac
            assert kernel.watched(frame(mac, NOBODY, vlan=99)) == wanted, mac


def test_verdicts_have_the_numbers_of_their_names():
    assert [getattr(xdp_program, name.upper()) for name, _ in VERDICTS] == list(range(len(VERDICTS)))


def test_a_direct_filter_leads_to_its_pair_and_without_one_to_the_kernel() -> None:
    """The loopback device stands for a near end: a program is run, and nothing sent."""
    with Kernel([(A, 0), (B, 0)]) as kernel:
        kernel.lead(A, 0, to_pair(PAIR))
        assert kernel.verdict(frame(A, B)) == "no_socket"
        kernel.pairs.update(PAIR.to_bytes(4, "little"), socket.if_nametoindex("lo").to_bytes(4, "little"))
        assert kernel.verdict(frame(A, B)) == "direct"
        assert kernel.verdict(frame(B, A)) == "steered"
        assert kernel.verdict(frame(BROADCAST, A)) == "group"


def test_frames_to_a_vm_with_a_queue_of_its_own_reach_its_socket_and_no_others_do() -> None:
    """A program that is run sees queue 0. Every address in every VLAN: what was steered goes to the VM's own socket, if it is that VM's."""
    cases = list(itertools.product([A, B, C, D, NOBODY, BROADCAST, MULTICAST, LINK_LOCAL], TAGS))
    frames = [frame(to, NOBODY, vlan=tag, fill=number) for number, (to, tag) in enumerate(cases)]
    with Kernel(FILTERS) as kernel:
        before = [kernel.verdict(data) for data in frames]
        kernel.lead(C, 5, to_own_queue(0, LONGEST))
        kernel.own_socket(0)
        after = [kernel.verdict(data) for data in frames]
    own = [to == C and tag is not None and tag & 4095 == 5 for to, tag in cases]
    assert sum(own) == 2
    assert after == ["own_queue" if mine else verdict for mine, verdict in zip(own, before, strict=True)]
    assert all(verdict == "steered" for mine, verdict in zip(own, before, strict=True) if mine)


def test_by_another_queue_they_come_as_ever_and_without_a_socket_to_the_kernel() -> None:
    with Kernel([(A, 0), (B, 0)]) as kernel:
        kernel.lead(A, 0, to_own_queue(0, LONGEST))
        assert kernel.verdict(frame(A, B)) == "no_socket"
        kernel.own_socket(1)
        kernel.lead(A, 0, to_own_queue(1, LONGEST))
        assert kernel.verdict(frame(A, B)) == "steered"
    with Kernel([(A, 0), (B, 0)], with_socket=False) as kernel:
        kernel.own_socket(0)
        kernel.lead(A, 0, to_own_queue(0, LONGEST))
        assert (kernel.verdict(frame(A, B)), kernel.verdict(frame(B, A))) == ("own_queue", "no_socket")


@pytest.mark.parametrize(("data", "verdict"), [
    (frame(A, B, size=1000), "own_queue"),
    (frame(A, B, size=1001), "too_long"),
    (frame(A, B, vlan=0, size=1000), "own_queue"),
    (frame(A, B, vlan=0, size=1001), "too_long"),
    (frame(A, B)[:14], "own_queue"),
    (frame(A, B, vlan=0)[:17], "runt"),
], ids=str)  # fmt: skip
def test_longer_frames_than_its_guest_takes_go_to_the_kernel(data: bytes, verdict: str) -> None:
    """A tag does not count, and `frame` adds one to so many bytes."""
    with Kernel([(A, 0)]) as kernel:
        kernel.own_socket(0)
        kernel.lead(A, 0, to_own_queue(0, 1000))
        assert kernel.verdict(data) == verdict


def test_the_value_of_a_filter_has_room_for_any_queue_and_length() -> None:
    values = {to_own_queue(queue, length) for queue in (0, 1, 65535) for length in (14, 1518, 32767)}
    assert len(values) == 9
    assert min(values) > to_pair(MAX_VPORTS)
    assert max(values) < 1 << 32
