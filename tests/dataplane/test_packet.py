# SPDX-License-Identifier: Apache-2.0
"""Lanes on packet sockets. Most rules need no packet socket: a pair of datagram sockets carries the same messages."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from tests.dataplane.harness_wire import ETHER, PacketLane, Round, data_of, payload, plain
from vmq.abi.linux import (
    PACKET_AUXDATA,
    SOL_PACKET,
    TP_STATUS_VLAN_VALID,
    cmsghdr,
    iovec,
    mmsghdr,
    tpacket_auxdata,
)
from vmq.abi.virtio import (
    NET_HDR_F_DATA_VALID,
    NET_HDR_F_NEEDS_CSUM,
    NET_HDR_GSO_ECN,
    NET_HDR_GSO_TCPV4,
    NET_HDR_GSO_TCPV6,
    NET_HDR_GSO_UDP,
    NET_HDR_GSO_UDP_L4,
)
from vmq.dataplane import state
from vmq.dataplane.packet import CONTROL, HEADER
from vmq.jit import at

V4 = IP(src="10.0.0.1", dst="10.0.0.2")
V6 = IPv6(src="fd00::1", dst="fd00::2")


def unfinished(packet: Ether, transport: int) -> bytes:
    """The frame with a checksum left to hardware: the sum of the pseudo-header is in place."""
    whole = bytes(packet)
    layer = packet[TCP] if TCP in packet else packet[UDP]
    place = transport + (16 if TCP in packet else 6)
    network = packet[IP] if IP in packet else packet[IPv6]
    addresses = b"".join(socket.inet_pton(socket.AF_INET if IP in packet else socket.AF_INET6, text)
                         for text in (network.src, network.dst))  # fmt: skip
    words = addresses + (6 if TCP in packet else 17).to_bytes(2, "big") + len(bytes(layer)).to_bytes(2, "big")
    total = sum(int.from_bytes(words[index : index + 2], "big") for index in range(0, len(words), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return whole[:place] + total.to_bytes(2, "big") + whole[place + 2 :]


@pytest.fixture
def lane() -> Iterator[PacketLane]:
    with PacketLane() as made:
        yield made


def test_a_burst_is_taken_in_one_round_and_in_order(lane: PacketLane) -> None:
    worker, sent = Round(), [plain(number) for number in range(5)]
    for frame in sent:
        lane.deliver(frame)

    assert worker.receive(lane.row) == 5
    assert worker.received() == sent
    assert worker.receive(lane.row) == 0
    assert worker.state_of(lane.row)["frames_from_wire"] == 5
    assert worker.state_of(lane.row)["bytes_from_wire"] == 300


def test_frames_lie_on_a_boundary_of_sixteen_bytes(lane: PacketLane) -> None:
    worker = Round()
    lane.deliver(plain(1))
    worker.receive(lane.row)

    assert worker.frames[0]["address"] % 16 == 0


def test_message_headers_are_put_right_before_each_call(lane: PacketLane) -> None:
    """recvmmsg writes over what it was given: lengths of names and control data, and flags."""
    worker = Round()
    for number in range(3):
        lane.deliver(plain(number))
        worker.receive(lane.row)
        messages = at(int(lane.row["messages"]), state.BURST, mmsghdr)["hdr"]
        assert messages["controllen"][0] == 0
        assert set(messages["controllen"][1:]) == {CONTROL}
        messages["flags"][:] = -1
        messages["namelen"][:] = 9
    assert worker.state_of(lane.row)["frames_from_wire"] == 3


@pytest.mark.parametrize("length", range(14))
def test_a_runt_is_a_named_drop(lane: PacketLane, length: int) -> None:
    worker = Round()
    lane.deliver(plain(1)[:length])
    lane.deliver(plain(2))

    assert worker.drain(lane.row) == [plain(2)]
    assert worker.drops(lane.row) == {"runt": 1}


@pytest.mark.parametrize(("length", "passes"), [(14, True), (1514, True), (1515, False), (65549, False)])
def test_length_is_judged_without_tag(lane: PacketLane, length: int, passes: bool) -> None:
    """The frame's own bytes count against the MTU; its tag does not."""
    worker, frame = Round(), plain(1, length)
    tagged = frame[:12] + b"\x81\x00\x60\x07" + frame[12:]
    lane.deliver(frame)
    lane.deliver(tagged)

    assert worker.drain(lane.row) == ([frame, tagged] if passes else [])
    assert worker.drops(lane.row) == ({} if passes else {"from_wire_too_long": 2})


def test_a_message_cut_by_its_buffer_is_too_long(lane: PacketLane) -> None:
    lane.row["frame_max"] = 1 << 20
    worker = Round()
    lane.deliver(plain(1, 70000))
    lane.deliver(plain(1, 70000), flags=NET_HDR_F_NEEDS_CSUM, csum_start=34, csum_offset=6)
    lane.deliver(plain(1, 70000), gso_type=NET_HDR_GSO_TCPV4, gso_size=1000)

    assert worker.drain(lane.row) == []
    assert worker.drops(lane.row) == {"from_wire_too_long": 3}


def test_a_tag_that_ends_with_the_frame_is_a_named_drop(lane: PacketLane) -> None:
    worker = Round()
    lane.deliver(plain(1)[:12] + b"\x81\x00\x00\x07\x08")

    assert worker.drain(lane.row) == []
    assert worker.drops(lane.row) == {"vlan_truncated": 1}


def forge_tag(lane: PacketLane, index: int, tpid: int, tci: int, status: int = TP_STATUS_VLAN_VALID) -> None:
    """What the kernel says about a tag it took out."""
    message = at(int(lane.row["messages"]), state.BURST, mmsghdr)[index]["hdr"]
    message["controllen"] = cmsghdr.itemsize + tpacket_auxdata.itemsize
    control = at(int(message["control"]), 1, cmsghdr)[0]
    control["level"], control["type"] = SOL_PACKET, PACKET_AUXDATA
    told = at(int(message["control"]) + cmsghdr.itemsize, 1, tpacket_auxdata)[0]
    told["status"], told["vlan_tpid"], told["vlan_tci"] = status, tpid, tci


def open_forged(lane: PacketLane, frame: bytes, tpid: int, tci: int, status: int, **header: int) -> Round:
    """Receive a frame with control data of our own: the socket's call is made first, its turn comes after."""
    worker = Round(frame_limit=1)
    lane.deliver(plain(0))
    lane.deliver(frame, **header)
    worker.receive(lane.row)
    forge_tag(lane, 1, tpid, tci, status)
    worker.receive(lane.row)
    return worker


@pytest.mark.parametrize("tci", [0, 7, 0x6007, 0xE000])
def test_the_tag_comes_back_from_the_control_data(lane: PacketLane, tci: int) -> None:
    """linux-if_packet.h: struct tpacket_auxdata."""
    worker = open_forged(lane, plain(1), 0x8100, tci, TP_STATUS_VLAN_VALID)

    assert worker.received() == [plain(1)[:12] + b"\x81\x00" + tci.to_bytes(2, "big") + plain(1)[12:]]


def test_a_tag_inside_a_tag_stays_inside(lane: PacketLane) -> None:
    inner = plain(1)[:12] + b"\x81\x00\x00\x09" + plain(1)[12:]
    worker = open_forged(lane, inner, 0x8100, 5, TP_STATUS_VLAN_VALID)

    assert worker.frames[0]["vid"] == 5
    assert worker.received() == [plain(1)[:12] + b"\x81\x00\x00\x05\x81\x00\x00\x09" + plain(1)[12:]]


def test_a_service_tag_is_payload_again(lane: PacketLane) -> None:
    """Only 802.1Q tags are ours; the kernel takes 802.1ad tags out as well."""
    worker = open_forged(lane, plain(1), 0x88A8, 5, TP_STATUS_VLAN_VALID)

    assert worker.received() == [plain(1)[:12] + b"\x88\xa8\x00\x05" + plain(1)[12:]]
    assert not worker.frames[0]["tagged"]


def test_a_service_tag_in_front_of_an_unfinished_checksum(lane: PacketLane) -> None:
    packet = ETHER / V4 / UDP() / Raw(payload(101))
    header = {"flags": NET_HDR_F_NEEDS_CSUM, "csum_start": 34, "csum_offset": 6}
    worker = open_forged(lane, unfinished(packet, 34), 0x88A8, 5, TP_STATUS_VLAN_VALID, **header)

    assert worker.received() == [bytes(ETHER / Dot1AD(vlan=5) / V4 / UDP() / Raw(payload(101)))]


def test_control_data_without_a_valid_tag_means_none(lane: PacketLane) -> None:
    assert open_forged(lane, plain(1), 0x8100, 5, 0).received() == [plain(1)]


def test_control_data_of_another_kind_is_no_tag(lane: PacketLane) -> None:
    worker = Round(frame_limit=1)
    lane.deliver(plain(0))
    lane.deliver(plain(1))
    worker.receive(lane.row)
    forge_tag(lane, 1, 0x8100, 5)
    at(int(at(int(lane.row["messages"]), 2, mmsghdr)[1]["hdr"]["control"]), 1, cmsghdr)["level"] = 1
    worker.receive(lane.row)

    assert worker.received() == [plain(1)]


def test_a_message_that_the_kernel_cannot_describe_is_a_named_drop(lane: PacketLane) -> None:
    """EINVAL: the frame is gone. It is counted, and what follows is received."""
    worker = Round()
    vector = at(int(at(int(lane.row["messages"]), 1, mmsghdr)[0]["hdr"]["iov"]), 1, iovec)
    kept, vector["len"] = int(vector["len"][0]), 1 << 63
    assert worker.receive(lane.row) == 1
    assert worker.drops(lane.row) == {"from_wire_offload": 1}
    vector["len"] = kept
    lane.deliver(plain(1))
    assert worker.drain(lane.row) == [plain(1)]


def test_a_runt_with_a_tag_beside_it_is_a_runt(lane: PacketLane) -> None:
    worker = open_forged(lane, plain(1)[:13], 0x8100, 5, TP_STATUS_VLAN_VALID)

    assert worker.received() == []
    assert worker.drops(lane.row) == {"runt": 1}


@pytest.mark.parametrize("tagged", [False, True])
def test_an_unfinished_checksum_is_finished(lane: PacketLane, tagged: bool) -> None:
    """virtio-1.2 §5.1.6.2 Packet Transmission: NEEDS_CSUM. `csum_start` counts from the frame as it came."""
    worker = Round()
    for head, start in ((V4, 34), (V6, 54)):
        ether = ETHER / Dot1Q(vlan=7) if tagged else ETHER
        packet = ether / head / UDP(sport=1, dport=2) / Raw(payload(101))
        start += 4 if tagged else 0
        lane.deliver(unfinished(packet, start), flags=NET_HDR_F_NEEDS_CSUM, csum_start=start, csum_offset=6)

        assert worker.drain(lane.row) == [bytes(packet)]
    assert worker.state_of(lane.row)["completed"] == 2


@pytest.mark.parametrize(
    ("start", "offset"), [(0, 6), (13, 0), (34, 65535), (65535, 6), (59, 0), (60, 0), (54, 5)]
)
def test_a_checksum_outside_the_frame_is_a_named_drop(lane: PacketLane, start: int, offset: int) -> None:
    worker = Round()
    lane.deliver(plain(1), flags=NET_HDR_F_NEEDS_CSUM, csum_start=start, csum_offset=offset)
    lane.deliver(plain(2))

    assert worker.drain(lane.row) == [plain(2)]
    assert worker.drops(lane.row) == {"from_wire_offload": 1}


def test_a_checksum_called_valid_is_passed_as_it_is(lane: PacketLane) -> None:
    worker = Round()
    lane.deliver(plain(1), flags=NET_HDR_F_DATA_VALID, csum_start=9999, csum_offset=9999)

    assert worker.drain(lane.row) == [plain(1)]


SUPER = {
    "tcp v4": (V4 / TCP(sport=1, dport=2, seq=9, flags="PA"), NET_HDR_GSO_TCPV4, 34, 16),
    "tcp v4 ecn": (
        V4 / TCP(sport=1, dport=2, seq=9, flags="PAC"),
        NET_HDR_GSO_TCPV4 | NET_HDR_GSO_ECN,
        34,
        16,
    ),
    "tcp v6": (V6 / TCP(sport=1, dport=2, seq=9, flags="PA"), NET_HDR_GSO_TCPV6, 54, 16),
    "udp": (V4 / UDP(sport=1, dport=2), NET_HDR_GSO_UDP_L4, 34, 6),
}


@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("shape", SUPER)
def test_a_super_frame_is_cut_into_frames(lane: PacketLane, shape: str, tagged: bool) -> None:
    head, kind, start, offset = SUPER[shape]
    ether, start = (ETHER / Dot1Q(vlan=7), start + 4) if tagged else (ETHER, start)
    frame = unfinished(ether / head / Raw(payload(30001)), start)
    worker = Round()
    lane.deliver(
        frame, flags=NET_HDR_F_NEEDS_CSUM, gso_type=kind, gso_size=1000, csum_start=start, csum_offset=offset
    )
    lane.deliver(plain(2))

    frames = worker.drain(lane.row)

    assert frames.pop() == plain(2)
    assert len(frames) == 31
    assert {int(frame[15]) if tagged else 7 for frame in frames} == {7}
    assert data_of(frames) == payload(30001)
    assert worker.state_of(lane.row)["segmented"] == 1
    assert worker.drops(lane.row) == {}


@pytest.mark.parametrize("limit", [1, 4, 7, 256])
def test_what_exceeds_a_round_waits_for_the_next(limit: int) -> None:
    """Segments of a super-frame, and the messages behind it, come in order over as many rounds as it takes."""
    worker, expected = Round(frame_limit=limit), b""
    with PacketLane() as lane:
        for number in range(3):
            frame = bytes(ETHER / V4 / TCP(seq=number) / Raw(payload(9000 + number)))
            lane.deliver(frame, gso_type=NET_HDR_GSO_TCPV4, gso_size=700)
            expected += payload(9000 + number)
        frames, most = [], 0
        while worker.receive(lane.row):
            most = max(most, int(worker.w["frame_count"]))
            frames += worker.received()

    assert data_of(frames) == expected
    assert most == min(limit, 39)


def test_the_arena_bounds_a_round() -> None:
    """Headers of 60 kB make segments of 60 kB: a round takes as many as ARENA holds, the next goes on."""
    worker = Round()
    options = b"".join(b"\0\xff" + bytes(2046) for _ in range(7)) + b"\x06\xff" + bytes(2046)
    head = ETHER / IPv6(src="fd00::1", dst="fd00::2", nh=0) / Raw(options)
    frame = bytes(head / Raw(bytes(TCP(seq=1)) + payload(2000)))
    with PacketLane(frame_max=65535) as lane:
        lane.deliver(frame, gso_type=NET_HDR_GSO_TCPV6, gso_size=1)
        counts = []
        while worker.receive(lane.row):
            counts.append(int(worker.w["frame_count"]))
            assert int(worker.w["arena_used"]) <= state.ARENA

    assert sum(counts) == 2000
    assert max(counts) < state.FRAMES


@pytest.mark.parametrize(
    "header",
    [
        {"gso_type": NET_HDR_GSO_UDP, "gso_size": 1000},
        {"gso_type": NET_HDR_GSO_TCPV6, "gso_size": 1000},
        {"gso_type": NET_HDR_GSO_TCPV4, "gso_size": 0},
        {"gso_type": NET_HDR_GSO_ECN, "gso_size": 1000},
        {"gso_type": 0x20, "gso_size": 1000},
        {"gso_type": NET_HDR_GSO_TCPV4, "gso_size": 1000, "flags": 1, "csum_start": 30, "csum_offset": 16},
        {"gso_type": NET_HDR_GSO_TCPV4, "gso_size": 1000, "flags": 1, "csum_start": 34, "csum_offset": 6},
    ],
)
def test_metadata_that_does_not_fit_is_a_named_drop(lane: PacketLane, header: dict[str, int]) -> None:
    worker = Round()
    lane.deliver(bytes(ETHER / V4 / TCP() / Raw(payload(3000))), **header)
    lane.deliver(plain(2))

    assert worker.drain(lane.row) == [plain(2)]
    assert worker.drops(lane.row) == {"from_wire_offload": 1}
    assert worker.state_of(lane.row)["frames_from_wire"] == 2


def test_segments_longer_than_the_mtu_are_dropped_each(lane: PacketLane) -> None:
    worker = Round()
    frame = bytes(ETHER / V4 / TCP() / Raw(payload(6000)))
    lane.deliver(frame, gso_type=NET_HDR_GSO_TCPV4, gso_size=2500)

    assert [len(frame) for frame in worker.drain(lane.row)] == [1054]
    assert worker.drops(lane.row) == {"from_wire_too_long": 2}


def test_frames_leave_with_an_empty_header_and_their_tag(lane: PacketLane) -> None:
    worker = Round()
    worker.put(plain(1))
    worker.put(plain(2), tci=0x6007)
    worker.put(plain(3, 999), cuts=(60, 61, 500))
    worker.put(plain(4, 999), tci=1, cuts=(60,))

    worker.transmit(lane.row)

    tagged = [
        plain(2)[:12] + b"\x81\x00\x60\x07" + plain(2)[12:],
        plain(4, 999)[:12] + b"\x81\0\0\x01" + plain(4, 999)[12:],
    ]
    assert lane.sent() == [
        (bytes(HEADER), frame) for frame in (plain(1), tagged[0], plain(3, 999), tagged[1])
    ]
    assert worker.state_of(lane.row)["frames_to_wire"] == 4
    assert worker.state_of(lane.row)["bytes_to_wire"] == 60 + 60 + 999 + 999


def test_more_than_a_burst_leaves_in_order(lane: PacketLane) -> None:
    worker = Round()
    frames = [plain(number) for number in range(state.FRAMES)]
    for frame in frames:
        worker.put(frame, cuts=tuple(range(20, 50)))
    got: list[bytes] = []
    reader_done = threading.Event()

    def read() -> None:
        while len(got) < len(frames) and not reader_done.wait(0.001):
            got.extend(frame for _, frame in lane.sent())

    reader = threading.Thread(target=read)
    reader.start()
    state_row = worker.state_of(lane.row)
    worker.transmit(lane.row)
    deadline = time.monotonic() + 10
    while len(got) < state_row["frames_to_wire"] and time.monotonic() < deadline:
        time.sleep(0.001)
    reader_done.set()
    reader.join()

    lost = worker.drops(lane.row).get("to_wire_full", 0)  # a socket of datagrams takes few at a time
    assert len(got) + lost == len(frames)
    assert got == sorted(got)


def test_frames_in_too_many_pieces_leave_whole(lane: PacketLane) -> None:
    """UIO_MAXIOV: what has more parts than one system call takes is made contiguous, one frame at a time."""
    worker = Round()
    frames = [plain(number, 1514) for number in range(4)]
    worker.put(frames[0])
    worker.put(frames[1], cuts=tuple(range(60, 1400)))
    worker.put(frames[2], cuts=tuple(range(60, 1400)), tci=5)
    worker.put(frames[3], cuts=tuple(range(60, 1050)))

    worker.transmit(lane.row)

    frames[2] = frames[2][:12] + b"\x81\x00\x00\x05" + frames[2][12:]
    assert [frame for _, frame in lane.sent()] == frames


def test_a_refused_frame_is_dropped_by_name_and_the_rest_goes_on(lane: PacketLane) -> None:
    worker = Round()
    lane.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel's least: 4608 bytes and less
    frames = [plain(1), plain(2, 60000), plain(3)]
    for frame in frames:
        worker.put(frame)

    worker.transmit(lane.row)

    assert [frame for _, frame in lane.sent()] == [frames[0], frames[2]]
    assert worker.drops(lane.row) == {"to_wire_error": 1}  # EMSGSIZE
    assert worker.state_of(lane.row)["frames_to_wire"] == 2


def test_a_full_socket_is_a_named_drop_and_never_waited_for(lane: PacketLane) -> None:
    worker = Round()
    lane.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for number in range(100):
        worker.put(plain(number))

    worker.transmit(lane.row)

    sent = len(lane.sent())
    assert 0 < sent < 100
    assert worker.drops(lane.row) == {"to_wire_full": 100 - sent}


def test_a_closed_peer_is_a_named_drop(lane: PacketLane) -> None:
    worker = Round()
    lane.peer.close()
    worker.put(plain(1))

    worker.transmit(lane.row)

    assert worker.drops(lane.row) == {"to_wire_error": 1}
