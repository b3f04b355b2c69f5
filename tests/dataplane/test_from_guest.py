# SPDX-License-Identifier: Apache-2.0
"""What a guest sends: taken in order, judged on a copy, let in or dropped under a name; chains come back."""

from __future__ import annotations

import ctypes
import struct
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.dataplane.rig import (
    BROADCAST,
    HEADER,
    LINK_LOCAL,
    MULTICAST,
    NOBODY,
    A,
    B,
    C,
    D,
    Rig,
    Vm,
    frame,
    interpreted,
    numbered,
)
from vmq.abi.ethernet import mac_number
from vmq.dataplane import state
from vmq.dataplane.from_guest import ADMITTED, collect, take, take_at_once
from vmq.dataplane.rounds import begin, forward
from vmq.dataplane.split import read_ahead, walk
from vmq.jit import at, int64

NULL = "00:00:00:00:00:00"
PREFIX = (0x0000_00FF_FFFF, 0x0000_0000_FC0E)  # 0e:fc:00/24
FCOE = "0e:fc:00:01:02:03"


def exchange(rig: Rig, sender: Vm, receiver: Vm) -> list[bytes]:
    """One round; what the receiver got, after the sender's chains came back with length 0."""
    rig.publish()
    before = len(sender.from_guest.chains)
    rig.step()
    assert [length for _, length in sender.sent()] == [0] * before
    return receiver.received()


@given(
    size=st.integers(14, 600),
    cuts=st.sets(st.integers(1, 25), max_size=20),
    more=st.sets(st.integers(26, 611)),
    indirect=st.booleans(),
)
def test_a_frame_arrives_however_its_chain_is_cut(size, cuts, more, indirect):
    """H6.3, H6.4: the packet header and the head of the frame may lie in any number of buffers (ANY_LAYOUT)."""
    data = frame(B, A, size)
    places = sorted(cut for cut in cuts | more if cut < size + HEADER)
    with Rig() as rig:
        sender, receiver = rig.vm(A, size=1024), rig.vm(B)
        receiver.post(1)
        sender.send(data, cuts=places, indirect=indirect)
        assert exchange(rig, sender, receiver) == [data]


@pytest.mark.parametrize("indirect", [False, True])
def test_a_header_of_one_byte_a_descriptor_is_legal(indirect):
    """H6.3."""
    with Rig() as rig:
        sender, receiver = rig.vm(A), rig.vm(B)
        receiver.post(1)
        sender.send(frame(B, A), cuts=range(1, HEADER + 1), indirect=indirect)
        assert exchange(rig, sender, receiver) == [frame(B, A)]


@pytest.mark.parametrize("total", [0, 1, 9, 10, 11, 12, 13, 25])
def test_a_chain_without_a_whole_header_and_ethernet_header_is_dropped(total):
    """H6.1, H6.2, H15.1: nothing, part of a header, a header alone, 0 … 13 bytes of a frame."""
    with Rig() as rig:
        sender, receiver = rig.vm(A), rig.vm(B)
        receiver.post(2)
        place = sender.memory.allocate(64)
        sender.memory.write(place, (bytes(HEADER) + frame(B, A))[:64])
        sender.from_guest.chain([(place, total)])
        sender.send(frame(B, A))
        assert exchange(rig, sender, receiver) == [frame(B, A)]
        assert sender.sent_drops() == {"from_guest_short": 1}
        assert int(sender.books()["frames_from_guest"]) == 2
        assert int(sender.books()["bytes_from_guest"]) == 60 + max(total - HEADER, 0)


@pytest.mark.parametrize(
    ("size", "vlan", "accepted"),
    [
        (14, None, True), (59, None, True), (60, None, True), (1514, None, True), (1515, None, False),
        (1514, 0, True), (1515, 0, False), (1519, None, False), (9018, None, False), (14, 0, True), (70000, None, False),
    ],
)  # fmt: skip
def test_frames_up_to_the_mtu_are_taken_and_a_tag_does_not_count(size, vlan, accepted):
    """H4.2, H15.2 to H15.5; 65535 bytes and more are longer than any MTU that is not configured for it."""
    with Rig() as rig:
        sender, receiver = rig.vm(A), rig.vm(B)
        receiver.post(1)
        data = frame(B, A, size, vlan=vlan)
        sender.send(data)
        got = exchange(rig, sender, receiver)
        assert got == ([data] if accepted else [])
        assert sender.sent_drops() == ({} if accepted else {"from_guest_too_long": 1})


@pytest.mark.parametrize("size", [14, 15, 16, 17])
def test_a_frame_that_ends_inside_its_tag_is_dropped(size):
    """H15.6."""
    with Rig() as rig:
        sender, receiver = rig.vm(A), rig.vm(B)
        receiver.post(1)
        sender.send(frame(B, A, 60, vlan=0)[:size])
        assert exchange(rig, sender, receiver) == []
        assert sender.sent_drops() == {"vlan_truncated": 1}


@pytest.mark.parametrize("vlan", [0, 7])
def test_a_tag_behind_a_priority_tag_or_a_service_tag_is_refused(vlan):
    """H15.7: the next switch would take off the priority tag and believe the one behind it: VLAN hopping."""
    inner = struct.pack(">HH", 0x8100, 99)
    double = frame(B, A, 60, vlan=0x2000)[:16] + inner + bytes(40)
    hidden = frame(B, A, 60, vlan=0x2000)[:16] + struct.pack(">HH", 0x88A8, 99) + bytes(40)
    provider = frame(B, A, 60)[:12] + struct.pack(">HH", 0x88A8, 99) + bytes(40)
    with Rig() as rig:
        sender, receiver = rig.vm(A, vlan=vlan), rig.vm(B, vlan=vlan)
        receiver.post(4)
        for one in (double, hidden, provider):
            sender.send(one)
        assert exchange(rig, sender, receiver) == []
        assert sender.sent_drops() == {"from_guest_vlan": 3}


def test_chains_of_nothing_cost_a_round_a_bounded_number_of_descriptors():
    """CVE-2019-3900 and its like: what one guest makes a round walk does not grow with what it offers."""
    with Rig() as rig:
        sender, receiver = rig.vm(A), rig.vm(B)
        receiver.post(1)
        table, place = sender.memory.allocate(16 * 1000), sender.memory.allocate(16)
        for _ in range(40):
            sender.from_guest.chain([(place, 0)] * 1000, table)
        sender.send(frame(B, A, 60))
        rig.publish()
        rig.step()
        assert int(rig.worker()["steps_left"]) < 0
        taken = sum(sender.sent_drops().values())
        assert 0 < taken <= state.STEPS // 1000

        rig.run()
        assert receiver.received() == [frame(B, A, 60)]
        assert sum(sender.sent_drops().values()) == 40


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("flags", 1, False), ("flags", 2, True), ("gso_type", 1, False), ("gso_type", 0x80, False), ("gso_type", 0xFF, False),
        ("hdr_len", 0xFFFF, True), ("csum_start", 0xFFFF, True), ("num_buffers", 7, True),
    ],
)  # fmt: skip
def test_offloads_that_were_not_negotiated_are_refused(field, value, accepted):
    """H10.4, H10.6, H10.15: hints and what belongs to no request are not looked at."""
    place = {"flags": 0, "gso_type": 1, "hdr_len": 2, "csum_start": 6, "num_buffers": 10}[field]
    header = bytearray(HEADER)
    header[place : place + (1 if place < 2 else 2)] = value.to_bytes(1 if place < 2 else 2, "little")
    with Rig() as rig:
        sender, receiver = rig.vm(A), rig.vm(B)
        receiver.post(1)
        sender.send(frame(B, A), header=bytes(header))
        assert exchange(rig, sender, receiver) == ([frame(B, A)] if accepted else [])
        assert sender.sent_drops() == ({} if accepted else {"from_guest_offload": 1})


# --- the source --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("source", [NULL, BROADCAST, MULTICAST])
def test_no_frame_comes_from_a_group_or_from_nobody(check, source):
    """H15.9."""
    with Rig() as rig:
        sender, receiver = rig.vm(A, spoof_check=check), rig.vm(B)
        receiver.post(1)
        sender.send(frame(B, source))
        assert exchange(rig, sender, receiver) == []
        assert sender.sent_drops() == {"from_guest_source": 1}


def test_nobody_is_no_source_of_a_port_without_filters_either():
    with Rig() as rig:
        sender, receiver = rig.vm(), rig.vm(B)
        receiver.post(1)
        sender.send(frame(B, NULL))
        assert exchange(rig, sender, receiver) == []
        assert sender.sent_drops() == {"from_guest_source": 1}


def test_every_filter_of_the_vm_is_a_source():
    with Rig() as rig:
        sender, receiver = rig.vm(A, C, uplink=rig.uplink(), vlan=3), rig.vm(B, uplink=0, vlan=3)
        receiver.post(2)
        for source in (A, C):
            sender.send(frame(B, source))
        assert exchange(rig, sender, receiver) == [frame(B, A), frame(B, C)]


@pytest.mark.parametrize("source", [C, NOBODY], ids=["of a neighbour", "of nobody"])
def test_a_spoofed_source_is_dropped_and_reported_once(source):
    """H15.10, H15.11: and the neighbour's filter is untouched."""
    with Rig() as rig:
        sender, receiver, neighbour = rig.vm(A), rig.vm(B), rig.vm(C)
        receiver.post(4)
        neighbour.post(4)
        for to in (B, B, C, BROADCAST):
            sender.send(frame(to, source))
        assert exchange(rig, sender, receiver) == []
        assert neighbour.received() == []
        assert sender.sent_drops() == {"from_guest_spoofed": 4}
        assert rig.events() == [(state.EVENT_SPOOFED, sender.number, mac_number(source))]
        receiver.send(frame(C, B))
        rig.step()
        assert neighbour.received() == [frame(C, B)]


def test_a_storm_is_cut_to_its_limit_and_a_burst_and_unicast_is_none():
    """H15.13: 64 frames at once, then one each time that the rate allows."""
    with Rig() as rig:
        sender, receiver = rig.vm(A, size=256, storm_limit=1), rig.vm(B, size=256)
        receiver.post(200, 128)
        for to in [BROADCAST] * 70 + [MULTICAST, B, LINK_LOCAL]:
            sender.send(frame(to, A))
        rig.publish()
        for _ in range(2):
            rig.step()
        assert len(receiver.received()) == state.BURST + 2  # at once a burst and one; the unicast frame
        assert sender.sent_drops() == {"from_guest_storm": 7}
        health = rig.segment.rows["port_state"][sender.number]
        assert int(health["storm_due"]) > time.monotonic_ns()
        health["storm_due"] -= 3 * 10**9
        for _ in range(5):
            sender.send(frame(BROADCAST, A))
        rig.step()
        assert len(receiver.received()) == 3


def test_without_a_limit_broadcasts_are_not_counted():
    with Rig() as rig:
        sender, receiver = rig.vm(A, size=256), rig.vm(B, size=256)
        receiver.post(200, 128)
        for _ in range(100):
            sender.send(frame(BROADCAST, A))
        rig.publish()
        for _ in range(2):
            rig.step()
        assert len(receiver.received()) == 100
        assert int(rig.segment.rows["port_state"][sender.number]["storm_due"]) == 0


def test_without_the_check_any_unicast_source_is_let_in_and_nothing_is_reported():
    with Rig() as rig:
        sender, receiver = rig.vm(A, spoof_check=False), rig.vm(B)
        rig.vm(C)
        receiver.post(2)
        for source in (C, NOBODY):
            sender.send(frame(B, source))
        assert exchange(rig, sender, receiver) == [frame(B, C), frame(B, NOBODY)]
        assert rig.events() == []


@pytest.mark.parametrize(("left", "taken"), [(1, True), (0, False)])
def test_a_new_source_in_a_learn_prefix_is_let_in_and_reported_while_there_is_room(left, taken):
    with Rig() as rig:
        other = (0xFF, 0x02)
        sender, receiver = rig.vm(A, learn=[other, PREFIX], learn_left=left), rig.vm(B)
        receiver.post(2)
        sender.send(frame(B, FCOE))
        assert exchange(rig, sender, receiver) == ([frame(B, FCOE)] if taken else [])
        kind = state.EVENT_LEARN if taken else state.EVENT_SPOOFED
        assert rig.events() == [(kind, sender.number, mac_number(FCOE))]


def test_an_address_of_a_neighbour_is_not_learnt():
    """A prefix gives no right to what another VM has; and what is learnt needs no report any more."""
    with Rig() as rig:
        sender, receiver, owner = rig.vm(A, learn=[PREFIX], learn_left=9), rig.vm(B), rig.vm(FCOE)
        receiver.post(4)
        sender.send(frame(B, FCOE))
        assert exchange(rig, sender, receiver) == []
        assert [kind for kind, _, _ in rig.events()] == [state.EVENT_SPOOFED]
        owner.macs, sender.macs = [mac_number(D)], [mac_number(A), mac_number(FCOE)]
        sender.send(frame(B, FCOE))
        assert exchange(rig, sender, receiver) == [frame(B, FCOE)]
        assert rig.events() == []


# --- a burst -----------------------------------------------------------------------------------------------


def test_a_round_takes_a_burst_and_the_next_round_the_rest_in_order():
    with Rig() as rig:
        sender, receiver = rig.vm(A, size=256), rig.vm(B, size=256)
        receiver.post(200, 128)
        for number in range(150):
            sender.send(numbered(B, A, number))
        rig.publish()
        for done in (64, 128, 150):
            rig.step()
            assert int(sender.books()["frames_from_guest"]) == done
        assert rig.step() == 0
        assert receiver.received() == [numbered(B, A, number) for number in range(150)]
        assert [head for head, _ in sender.sent()] == list(range(150))


def test_a_fault_in_the_middle_of_a_burst_lets_what_was_before_it_through():
    with Rig() as rig:
        sender, receiver = rig.vm(A), rig.vm(B)
        receiver.post(8)
        for number in range(3):
            sender.send(numbered(B, A, number))
        sender.from_guest.offer(77)
        rig.publish()
        rig.step()
        assert receiver.received() == [numbered(B, A, number) for number in range(3)]
        assert (sender.fault, receiver.fault) == ("head_range", "none")
        assert len(sender.sent()) == 3
        assert int(sender.books()["frames_from_guest"]) == 3


def test_a_chain_in_too_many_pieces_for_what_is_left_of_a_round_waits_for_the_next():
    """It is legal, so how full a round is must not decide about it."""
    with Rig() as rig:
        sender = rig.vm(A, size=16384, regions=[(0x10000, 1 << 21)], frame_max=9000)
        receiver = rig.vm(B, frame_max=9000)
        receiver.post(3, 9000)
        frames = [frame(B, A, 5900, fill=number) for number in range(2)]
        for data in frames:
            sender.send(data, cuts=range(HEADER, len(data) + HEADER))
        rig.publish()
        rig.step()
        assert receiver.received() == frames[:1]
        rig.step()
        assert receiver.received() == frames[1:]
        assert sender.sent_drops() == {}


@interpreted
@pytest.mark.parametrize("vlan", [None, 0x2000])
def test_what_was_checked_is_what_is_delivered(vlan):
    """H9: a guest that rewrites its buffer meanwhile changes bytes behind the first 64, never what was judged."""
    with Rig() as rig:
        sender, receiver = rig.vm(A), rig.vm(B)
        receiver.post(1)
        data = frame(B, A, 200, vlan=vlan)
        sender.send(data)
        rig.publish()
        tables, worker, port, vq, ring = rig.rows(sender, to_guest=False)
        begin(worker)
        taken = collect(tables, worker, int64(sender.number), port, vq, ring, sender.books(), int64(1))
        assert int(taken) == 1
        ((_, ((address, length),)),) = sender.from_guest.chains.values()
        sender.memory.write(address, bytes([0xEE]) * length)
        forward(tables, worker, int64(sender.first_queue), port)
        assert receiver.received() == [data[: state.HEAD] + bytes([0xEE]) * (len(data) - state.HEAD)]


@interpreted
def test_each_field_of_a_chain_is_read_once():
    """H9, N5: descriptors that change after the walk change nothing; `walk` keeps addresses, not descriptors."""
    with Rig() as rig:
        sender, receiver = rig.vm(A), rig.vm(B)
        receiver.post(1)
        data = frame(B, A, 200)
        sender.send(data, cuts=[12, 40, 100])
        rig.publish()
        tables, worker, port, vq, ring = rig.rows(sender, to_guest=False)
        begin(worker)
        collect(tables, worker, int64(sender.number), port, vq, ring, sender.books(), int64(1))
        sender.memory.write(sender.from_guest.desc, b"\xff" * 16 * sender.from_guest.size)
        sender.memory.write(sender.from_guest.avail + 4, b"\xff" * 2 * sender.from_guest.size)
        forward(tables, worker, int64(sender.first_queue), port)
        assert receiver.received() == [data]
        assert int(at(worker["chains"], 1, state.chain)[0]["head"]) == 0


# --- the common case -------------------------------------------------------------------------------------------------


@interpreted
@example(14, 0, 0, A, B, b"\x08\x00", 0, 1514)
@example(63, 0, 0, A, B, b"\x08\x00", 9, 1514)
@example(64, 0, 0, A, B, b"\x08\x00", 9, 64)
@given(
    size=st.sampled_from([13, 14, 15, 60, 63, 64, 65, 66, 199, 200, 201, 204, 205]),
    flags=st.sampled_from([0, 0, 0, 1, 2, 3]),
    kind=st.sampled_from([0, 0, 0, 1, 3, 0x80]),
    source=st.sampled_from([A, A, A, B, C, NULL, BROADCAST, FCOE]),
    target=st.sampled_from([B, B, A, MULTICAST, BROADCAST]),
    following=st.sampled_from([b"\x08\x00", b"\x08\x06", b"\x81\x00", b"\x88\xa8"]),
    vlan=st.sampled_from([0, 0, 9]),
    frame_max=st.sampled_from([60, 200, 1514]),
)
def test_what_is_taken_at_once_is_taken_as_always_and_the_rest_is_left_alone(
    size, flags, kind, source, target, following, vlan, frame_max
):
    """The plain way is the model: the same frame, copied and in pieces; or nothing was noted, and `take` judges it."""
    macs = [bytes.fromhex(one.replace(":", "")) for one in (target, source)]
    data = (b"".join(macs) + following + bytes(range(256)))[:size]
    taken, always = frames_taken(data, bytes((flags, kind)), vlan, frame_max)
    plain = source == A and target in (A, B) and following[0] == 8 and not flags & 1 and not kind
    assert (taken is not None) == (plain and 14 <= size <= frame_max)
    assert taken in (None, always)


def frames_taken(data: bytes, header: bytes, vlan: int, frame_max: int) -> list[tuple[object, ...] | None]:
    """What `take_at_once` makes of a frame, and what `walk` and `take` do: its row and its bytes; None of nothing."""
    made: list[tuple[object, ...] | None] = []
    for at_once in (True, False):
        with Rig() as rig:
            sender = rig.vm(A, size=16, vlan=vlan, frame_max=frame_max)
            head = sender.send(data, header.ljust(HEADER, b"\0"))
            rig.publish()
            tables, worker, port, vq, ring = rig.rows(sender, to_guest=False)
            begin(worker)
            worker["steps_left"] = state.STEPS
            row, pieces = np.zeros(1, state.frame)[0], at(worker["pieces"], 8, state.piece)
            if at_once:
                chains = np.zeros(1, state.chain)
                read_ahead(tables, port, vq, ring, 0, chains, 1)
                done = take_at_once(worker, port, sender.number, row, chains[0])
                assert done or (not row.tobytes().strip(b"\0") and worker["piece_count"] == 0)
                assert worker["piece_count"] == row["piece_count"]
            else:
                end = int(walk(tables, worker, port, vq, ring, head, 0, pieces, 0))
                done = take(tables, worker, port, sender.number, row, 0, end) == ADMITTED
            made.append(told(row, pieces) if done else None)
    return made


def told(row: Any, pieces: Any) -> tuple[object, ...]:
    """A frame without addresses: its fields, the part of it that was copied, the part that was not."""
    names = ("head", "length", "piece_count", "vid", "tci", "tagged", "source", "uplink")
    rest = [pieces[row["piece_first"] + place] for place in range(row["piece_count"])]
    parts = [(row["address"], row["head"])] + [(one["address"], one["length"]) for one in rest]
    return (
        *(int(row[name]) for name in names),
        b"".join(ctypes.string_at(int(place), int(size)) for place, size in parts),
    )
