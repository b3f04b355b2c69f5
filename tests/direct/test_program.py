# SPDX-License-Identifier: Apache-2.0
"""What the far end lets into a VM's memory: its own frames, as it is to get them; run on frames, without any device."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import pytest

from tests.dataplane.rig import BROADCAST, MULTICAST, A, B, frame
from vmq.abi import bpf
from vmq.abi.ethernet import mac_number
from vmq.abi.xdp import AF_XDP
from vmq.bpf.maps import counters, hash_map, socket_map
from vmq.bpf.program import Program
from vmq.dataplane.state import VID_SHIFT
from vmq.direct.polling import greeting
from vmq.direct.program import VERDICTS, landing, mark

pytestmark = pytest.mark.root
LONGEST = 1514


class Kernel:
    """The program of a VM with filters, and its socket."""

    def __init__(self, filters: list[tuple[str, int]], *, strip: bool) -> None:
        self.filters, self.sockets = hash_map("filters", 8, 8, 4), socket_map("sockets", 1)
        self.counted = counters("verdicts", len(VERDICTS))
        for mac, vlan in filters:
            self.filters.update((mac_number(mac) | vlan << VID_SHIFT).to_bytes(8, "little"), bytes(4))
        code = landing(self.filters, self.sockets, self.counted, LONGEST, strip=strip)
        self.program = Program(bpf.BPF_PROG_TYPE_XDP, "landing", code)
        self.socket = socket.socket(AF_XDP, socket.SOCK_RAW)
        self.lead()

    def lead(self) -> None:
        self.sockets.update(bytes(4), self.socket.fileno().to_bytes(4, "little"))

    def run(self, data: bytes) -> tuple[str, bytes]:
        """The one counter that moved, and the frame as it goes on."""
        before = [self.counted.total(index) for index in range(len(VERDICTS))]
        run = self.program.run(data)
        moved = [self.counted.total(index) - count for index, count in enumerate(before)]
        assert sorted(moved) == [0] * (len(VERDICTS) - 1) + [1]
        name = VERDICTS[moved.index(1)][0]
        assert run.verdict == (bpf.XDP_REDIRECT if name == "placed" else bpf.XDP_DROP)
        return name, run.frame

    def close(self) -> None:
        for one in (self.filters, self.sockets, self.counted, self.program, self.socket):
            one.close()


@pytest.fixture
def plain() -> Iterator[Kernel]:
    made = Kernel([(A, 0)], strip=False)
    yield made
    made.close()


@pytest.fixture
def tagged() -> Iterator[Kernel]:
    made = Kernel([(A, 5)], strip=True)
    yield made
    made.close()


@pytest.mark.parametrize("size", [60, 61, 1000, LONGEST])
def test_a_frame_to_the_vm_is_placed_as_it_is(plain: Kernel, size: int) -> None:
    data = frame(A, B, size)
    assert plain.run(data) == ("placed", data)


@pytest.mark.parametrize("size", [60, 63, 1000, LONGEST])
@pytest.mark.parametrize("tci", [5, 0x6005, 0xE005])
def test_a_vm_in_a_vlan_gets_its_frames_without_the_tag(tagged: Kernel, size: int, tci: int) -> None:
    assert tagged.run(frame(A, B, size, tci)) == ("placed", frame(A, B, size))


@pytest.mark.parametrize("to", [BROADCAST, MULTICAST])
def test_groups_are_placed_since_nobody_else_leads_them_here(plain: Kernel, tagged: Kernel, to: str) -> None:
    assert plain.run(frame(to, B)) == ("placed", frame(to, B))
    assert tagged.run(frame(to, B, 60, 5)) == ("placed", frame(to, B))


def test_a_priority_tag_stays_with_a_vm_without_a_vlan(plain: Kernel) -> None:
    data = frame(A, B, 60, 0x6000)
    assert plain.run(data) == ("placed", data)


def test_a_priority_tag_does_not_count_for_the_length_of_a_frame(plain: Kernel) -> None:
    """As where the engine places it: it stays with the frame, and the posted buffers have room for it."""
    data = frame(A, B, LONGEST, 0x6000)
    assert plain.run(data) == ("placed", data)
    assert plain.run(frame(A, B, LONGEST + 1, 0x6000))[0] == "too_long"


def test_frames_of_others_never_get_in(plain: Kernel, tagged: Kernel) -> None:
    """Whatever led them here: another address, another VLAN, none, or another kind of tag."""
    outer = frame(A, B)[:12] + b"\x88\xa8\0\5" + frame(A, B)[12:]
    for data in (frame(B, A), frame(A, B, 60, 5), frame(A, B, 60, 0xF001)):
        assert plain.run(data) == ("foreign", data)
    for data in (frame(B, A, 60, 5), frame(A, B), frame(A, B, 60, 6), frame(A, B, 60, 0), outer):
        assert tagged.run(data) == ("foreign", data)


def test_what_no_posted_buffer_could_take_is_too_long(plain: Kernel, tagged: Kernel) -> None:
    """By the length that the guest gets, without the tag."""
    assert plain.run(frame(A, B, LONGEST + 1))[0] == "too_long"
    assert tagged.run(frame(A, B, LONGEST + 1, 5))[0] == "too_long"
    assert plain.run(frame(BROADCAST, B, 3000))[0] == "too_long"


def test_a_frame_that_ends_in_its_headers_is_a_runt(plain: Kernel, tagged: Kernel) -> None:
    """PROG_TEST_RUN gives no frame shorter than an Ethernet header."""
    for kernel, length in itertools.product((plain, tagged), (14, 15, 17)):
        assert kernel.run(frame(A, B, 60, 5)[:length])[0] == "runt"
    assert tagged.run(frame(BROADCAST, B, 60, 5)[:17])[0] == "runt"


def test_a_mark_is_counted_and_goes_nowhere(plain: Kernel, tagged: Kernel) -> None:
    assert plain.run(mark()) == ("mark", mark())
    assert tagged.run(mark()) == ("mark", mark())
    assert plain.run(mark()[:4] + b"\2" + mark()[5:])[0] == "foreign"  # an address, if a strange one


def test_a_queue_that_is_not_direct_any_more_loses_frames_by_name(plain: Kernel) -> None:
    plain.sockets.delete(bytes(4))
    assert plain.run(frame(A, B))[0] == "no_socket"
    plain.lead()
    assert plain.run(frame(A, B))[0] == "placed"


def test_a_greeting_goes_up_to_everybody_and_is_counted_nowhere(plain: Kernel, tagged: Kernel) -> None:
    for kernel in (plain, tagged):
        before = [kernel.counted.total(index) for index in range(len(VERDICTS))]
        run = kernel.program.run(greeting())
        assert (run.verdict, run.frame) == (bpf.XDP_PASS, b"\xff" * 6 + greeting()[6:])
        assert [kernel.counted.total(index) for index in range(len(VERDICTS))] == before
