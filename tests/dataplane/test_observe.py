# SPDX-License-Identifier: Apache-2.0
"""Captures and latencies: blocks that say what the guest got, times that include rings, and nothing where nobody looks."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane.rig import BROADCAST, A, B, C, Rig, Vm, frame, interpreted
from vmq.dataplane import state
from vmq.dataplane.observe import latency_bin
from vmq.dataplane.sink import drain_blocks
from vmq.jit import address_of, at, int64
from vmq.worker import make_ring, unmap_rings

BOTH = state.TO_GUEST | state.FROM_GUEST
INBOUND, OUTBOUND = 1, 2
OFFSET = 1 << 60


class Capture:
    """A capture of the first receive queue of a VM port, linked as control does it."""

    def __init__(
        self, rig: Rig, vm: Vm, directions: int = BOTH, snaplen: int = 1 << 18, size: int = 1 << 16
    ) -> None:
        self.rig, self.vm = rig, vm
        self.memory = make_ring(size)
        rig._rings.append(self.memory)
        self.ring = at(self.memory[0], 1, state.byte_ring)[0]
        self.row = np.zeros(1, state.capture)
        watch = rig.segment.rows["watches"][vm.first_queue]
        self.row[0] = (watch["captures"], self.memory[0], snaplen, directions, 7, OFFSET)
        watch["captures"] = address_of(self.row)
        observe(vm)

    def blocks(self, room: int = 1 << 16) -> list[tuple[bytes, int, int]]:
        """(frame, original length, direction) of what was captured; each block is judged by its layout."""
        out = np.zeros(room, np.uint8)
        content = out[: int(drain_blocks(self.memory[0], address_of(out), room))].tobytes()
        found, last = [], 0
        while content:
            kind, length, number, high, low, captured, original = struct.unpack("<7I", content[:28])
            padded = -(-captured // 4) * 4
            assert (kind, number, length) == (6, 7, 28 + padded + 16)
            assert content[28 + captured : 28 + padded] == bytes(padded - captured)
            code, size, flags, end, again = struct.unpack("<HHIII", content[28 + padded : length])
            assert (code, size, end, again) == (2, 4, 0, length)
            assert (high << 32 | low) - OFFSET >= last
            last = (high << 32 | low) - OFFSET
            found.append((content[28 : 28 + captured], original, flags))
            content = content[length:]
        return found


def observe(*vms: Vm) -> None:
    """Show workers that somebody looks."""
    for vm in vms:
        for ring in (vm.to_guest, vm.from_guest):
            ring.features |= state.RING_OBSERVED


def latency(vm: Vm) -> Any:
    return vm.rig.segment.rows["latencies"][vm.first_queue]


def measure(rig: Rig, *vms: Vm) -> None:
    rig.segment.engine["measured"] = 1
    observe(*vms)
    for vm in vms:
        rig.segment.rows["watches"][vm.first_queue]["measured"] = 1


@pytest.mark.parametrize("cuts", [[], [3, 30, 60, 71]])
def test_a_capture_has_every_byte_that_went_in_and_out(cuts: list[int]):
    """In the order of the rounds, however a guest cuts its buffers; lengths that need padding too."""
    with Rig() as rig:
        one, other = rig.vm(A), rig.vm(B)
        capture = Capture(rig, other)
        other.post(8)
        one.post(8)
        there = [frame(B, A, size) for size in (60, 61, 62, 63, 300)]
        for data in there:
            one.send(data, cuts=cuts)
        rig.publish()
        rig.run()
        back = frame(A, B, 70)
        other.send(back, cuts=cuts)
        rig.run()
        assert other.received() == there
        expected = [(data, len(data), INBOUND) for data in there] + [(back, len(back), OUTBOUND)]
        assert capture.blocks() == expected
        assert [int(capture.ring[name]) for name in ("kept", "lost")] == [6, 0]


@pytest.mark.parametrize(("vlan", "sees_tag"), [(0, True), (5, False)])
def test_a_tag_is_captured_where_the_guest_sees_it(vlan: int, sees_tag: bool):
    """A priority tag reaches guests without a VLAN; the tag of a VLAN is the engine's."""
    with Rig() as rig:
        tci = 0x6000 | vlan
        wire = rig.uplink(frames=[frame(A, C, 61, vlan=tci)])
        vm = rig.vm(A, uplink=wire, vlan=vlan)
        capture = Capture(rig, vm)
        vm.post(2)
        rig.publish()
        rig.run()
        (received,) = vm.received()
        assert (len(received) == 65) == sees_tag
        assert capture.blocks() == [(received, len(received), INBOUND)]


@given(
    snaplen=st.integers(1, 120),
    size=st.integers(14, 110),
    tag=st.booleans(),
    cuts=st.lists(st.integers(1, 60), max_size=3, unique=True),
)
def test_the_snap_length_cuts_any_frame_anywhere(snaplen: int, size: int, tag: bool, cuts: list[int]):
    """In the addresses, inside the tag, between two pieces."""
    with Rig() as rig:
        one, other = rig.vm(A), rig.vm(B)
        captures = [Capture(rig, vm, snaplen=snaplen) for vm in (one, other)]
        data = frame(B, A, size, vlan=0x2000 if tag else None)
        other.post(1)
        one.send(data, cuts=sorted(cut for cut in cuts if cut < len(data)))
        rig.publish()
        rig.run()
        assert captures[0].blocks() == [(data[:snaplen], len(data), OUTBOUND)]
        assert captures[1].blocks() == [(data[:snaplen], len(data), INBOUND)]


def test_what_is_refused_or_dropped_is_captured_where_it_was_sent_and_nowhere_else():
    """Before the guest's frame is judged; at the receiver, what it got."""
    with Rig() as rig:
        one, other = rig.vm(A), rig.vm(B)
        sent, got = Capture(rig, one), Capture(rig, other)
        other.post(1)
        frames = [frame(B, C), frame(B, A, 60, vlan=0x0005), frame(B, A), frame(B, A, 80)]
        for data in frames:
            one.send(data)
        rig.publish()
        rig.run()
        assert [data for data, _, _ in sent.blocks()] == frames
        assert [data for data, _, _ in got.blocks()] == [frames[2]] == other.received()
        assert one.sent_drops() == {"from_guest_spoofed": 1, "from_guest_vlan": 1}
        assert other.drops() == {"to_guest_no_buffer": 1}


def test_captures_do_not_disturb_each_other():
    """Each has its own directions, length and ring; one that is taken out of the list gets nothing more."""
    with Rig() as rig:
        one, other = rig.vm(A), rig.vm(B)
        small = Capture(rig, other, size=256)
        inward, outward = Capture(rig, other, state.TO_GUEST), Capture(rig, other, state.FROM_GUEST, 20)
        one.post(8)
        other.post(8)
        rig.publish()
        for _ in range(3):
            one.send(frame(B, A))
            other.send(frame(A, B))
            rig.run()
        assert [flags for _, _, flags in inward.blocks()] == [INBOUND] * 3
        assert [(len(data), flags) for data, _, flags in outward.blocks()] == [(20, OUTBOUND)] * 3
        assert [int(small.ring[name]) for name in ("kept", "lost")] == [2, 4]
        rig.segment.rows["watches"][other.first_queue]["captures"] = address_of(inward.row)
        one.send(frame(B, A))
        rig.run()
        assert (len(inward.blocks()), outward.blocks()) == (1, [])


def test_a_ring_that_is_emptied_in_time_goes_round_without_loss():
    """Also when less room is asked for than is full: whole blocks come, and the rest later."""
    with Rig() as rig:
        one, other = rig.vm(A), rig.vm(B)
        capture = Capture(rig, other, size=1024)
        rig.publish()
        got: list[bytes] = []
        for size in range(60, 160, 3):
            other.post(1)
            one.send(frame(B, A, size))
            rig.run()
            got += [data for data, _, _ in capture.blocks(256)]
        while more := capture.blocks(256):
            got += [data for data, _, _ in more]
        assert got == other.received()
        assert int(capture.ring["head"]) > 4 * 1024
        assert int(capture.ring["lost"]) == 0


@interpreted
@given(st.lists(st.integers(1, 300), max_size=60), st.integers(300, 900))
def test_blocks_come_out_as_they_went_in(lengths: list[int], room: int):
    """`drain_blocks` alone, against records written by this test."""
    memory = make_ring(2048)
    try:
        ring = at(memory[0], 1, state.byte_ring)[0]
        data, out, got, wanted = int(ring["data"]), np.zeros(1024, np.uint8), b"", b""
        for number, length in enumerate(lengths):
            need = (16 + length + 15) & ~15
            place = int(ring["head"]) % 2048
            if 2048 - place < need:
                at(data + place, 1, np.int64)[0] = place - 2048
                ring["head"] += 2048 - place
                place = 0
            block = bytes([number & 255]) * length
            at(data + place, 2, np.int64)[:] = need, length
            at(data + place + 16, length, np.uint8)[:] = np.frombuffer(block, np.uint8)
            ring["head"] += need
            wanted += block
            got += out[: int(drain_blocks(memory[0], address_of(out), room))].tobytes()
        assert got == wanted
        assert ring["tail"] == ring["head"]
    finally:
        unmap_rings([memory])


# --- latencies -----------------------------------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize(
    ("time", "place"),
    [(0, 0), (511, 0), (512, 1), (1023, 1), (1024, 2), ((1 << 31) - 1, 22), (1 << 31, 23), (1 << 62, 23)],
)
def test_bins_are_powers_of_two(time: int, place: int):
    assert latency_bin(int64(time)) == place < state.LATENCY_BINS


def test_every_frame_that_is_shown_is_in_one_bin():
    """From the wire, from a guest, as a copy; dropped ones are in none."""
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(B, C)] * 5)
        one, other = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
        measure(rig, one, other)
        other.post(9)
        for to in (B, BROADCAST, B, B):
            one.send(frame(to, A))
        for _ in range(3):
            one.send(frame(B, A))
        rig.publish()
        rig.run()
        assert len(other.received()) == 9
        assert int(latency(other)["bins"].sum()) == int(other.books()["frames_to_guest"]) == 9
        assert int(latency(other)["unstamped"]) == 0
        assert int(latency(one)["bins"].sum()) == 0


def test_time_in_a_hand_over_ring_counts():
    """The stamp is the sender's: what waits for its processor has waited."""
    with Rig(workers=2) as rig:
        one, other = rig.vm(A), rig.vm(B, workers=(1,))
        measure(rig, other)
        other.post(2)
        one.send(frame(B, A))
        rig.publish()
        rig.step(0)
        ring = at(int(rig.segment.rows["rings"][1]), 1, state.byte_ring)[0]
        parcel = at(int(ring["data"]), 1, state.parcel)[0]
        assert int(parcel["taken"]) > 0
        parcel["taken"] -= 1 << 30
        rig.step(1)
        assert int(latency(other)["bins"][22:].sum()) == 1
        assert int(latency(other)["total"]) >= 1 << 30


def test_time_in_the_default_queue_counts_and_a_frame_from_before_has_none():
    """What was taken before anybody asked is shown all the same, and counted apart."""
    with Rig() as rig:
        one, other = rig.vm(A), rig.vm(B)
        other.shared = True
        other.post(4)
        one.send(frame(B, A))
        rig.publish()
        rig.step()
        measure(rig, other)
        rig.publish()
        rig.run()
        one.send(frame(B, A))
        rig.run()
        assert len(other.received()) == 2
        assert (int(latency(other)["unstamped"]), int(latency(other)["bins"].sum())) == (1, 1)


def test_nobody_pays_for_what_nobody_asked():
    """No clock is read: w["taken"] stays 0, and no row of watches is looked at."""
    with Rig() as rig:
        one, other = rig.vm(A), rig.vm(B)
        rig.segment.rows["watches"]["captures"] = 1  # would be an address, if it were looked at
        other.post(2)
        one.send(frame(B, A))
        rig.publish()
        rig.run()
        assert other.received() == [frame(B, A)]
        assert int(rig.worker()["taken"]) == int(rig.worker()["captures"]) == 0


def test_time_that_a_frame_waits_for_buffers_counts():
    """It came from another processor, waited here in a ring of its own, and has the stamp of the first."""
    with Rig(workers=2) as rig:
        one, other = rig.vm(A), rig.vm(B, workers=(1,))
        other.keep = 4
        measure(rig, other)
        one.send(frame(B, A))
        rig.publish()
        rig.run()
        other.post(1)
        ring = at(
            int(rig.segment.rows["rings"][(state.MAX_WORKERS + 1) * state.MAX_WORKERS + 1]),
            1,
            state.byte_ring,
        )[0]
        parcel = at(int(ring["data"]), 1, state.parcel)[0]
        assert int(parcel["taken"]) > 0
        parcel["taken"] -= 1 << 30
        rig.run()
        assert other.received() == [frame(B, A)]
        assert int(latency(other)["bins"][22:].sum()) == 1
