# SPDX-License-Identifier: Apache-2.0
"""The guest against a back-end double: bytes both ways in every layout, and its life."""

from __future__ import annotations

import os
import struct
import subprocess
import time

import pytest

from tests.guest.backend import EVENT_IDX, FEATURES, MERGEABLE, RING_INDIRECT, Backend
from tests.guest.conftest import MAC
from vmq.errors import ProtocolError
from vmq.guest.guest import Guest
from vmq.guest.memory import PAGE
from vmq.guest.rings import WRITE, Shape
from vmq.guest.traffic import Traffic

FRAMES = [bytes([number]) * (60 + 40 * number) for number in range(1, 30)]
LAYOUTS = {
    "plain": {},
    "small mergeable buffers": {"buffer_bytes": 256},
    "not mergeable": {"mergeable": False},
    "flags instead of events": {"event_idx": False},
    "header apart": {"receive_shape": Shape(2048, 2), "transmit_shape": Shape(2048, 2)},
    "many pieces": {"receive_shape": Shape(2048, 5), "transmit_shape": Shape(2048, 7)},
    "tables": {"receive_shape": Shape(2048, 3, True), "transmit_shape": Shape(2048, 4, True)},
    "tiny virtqueue": {"size": 2},
    "adjacent regions": {"regions": 7, "room": 0},
    "hole": {"regions": [(0, 16 * PAGE), (16 * PAGE, 64 * PAGE), (1 << 32, 600 * PAGE)]},
}


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_frames_arrive_both_ways_in_order(backend, make_guest, options):
    guest = make_guest(**options)
    for frame in FRAMES:
        assert backend.deliver(frame) == 1
        assert guest.receive(1) == [frame]
        guest.send([frame])
        assert backend.collect() == [bytes(12) + frame]
        assert guest.sent()
    counters = guest.counters
    assert counters.frames_received == counters.frames_sent == len(FRAMES)
    assert counters.bytes_received == counters.bytes_sent == sum(map(len, FRAMES))
    assert (counters.bad, counters.empty) == (0, 0)


def test_ring_goes_round_many_times(backend, make_guest):
    guest = make_guest(size=16)
    for number in range(40):
        frames = [struct.pack("=II", number, place) * 16 for place in range(16)]
        assert backend.deliver(*frames) == 16
        assert guest.receive(16) == frames
        guest.send(frames)
        assert [frame[12:] for frame in backend.collect()] == frames


def test_frame_of_many_buffers_is_put_together(backend, make_guest):
    """virtio-1.2 §5.1.6.4 Processing of Incoming Packets"""
    guest = make_guest(buffer_bytes=256)
    backend.deliver(FRAMES[-1])
    (packet,) = guest.receive_packets(1)
    assert packet.frame == FRAMES[-1]
    assert packet.chains == -(-(len(FRAMES[-1]) + 12) // 256)
    assert packet.header == bytes(10) + struct.pack("=H", packet.chains)


def test_receive_returns_what_came_until_the_timeout(backend, make_guest):
    guest = make_guest()
    backend.deliver(b"x" * 60)
    assert guest.receive(2, timeout=0.05) == [b"x" * 60]
    assert guest.receive(1, timeout=0) == []


def test_frames_beyond_those_asked_for_are_kept(backend, make_guest):
    guest = make_guest()
    backend.deliver(*FRAMES[:3])
    assert guest.receive(1) == FRAMES[:1]
    assert guest.receive(2) == FRAMES[1:3]


@pytest.mark.parametrize("event_idx", [True, False])
def test_guest_kicks_only_when_wanted(backend, make_guest, event_idx):
    guest = make_guest(event_idx=event_idx)
    before = guest.counters.kicks
    backend.want_kicks(1, wanted=False)
    guest.send(FRAMES[:2])
    assert guest.counters.kicks == before
    backend.collect()
    backend.want_kicks(1)
    guest.send(FRAMES[:2])
    assert guest.counters.kicks == before + 1


def test_full_virtqueue_makes_send_wait_then_give_up(make_guest):
    guest = make_guest(size=4, timeout=0.2)
    with pytest.raises(TimeoutError, match="2 frames left"):
        guest.send(FRAMES[:6])
    assert not guest.sent(timeout=0)


def test_frame_that_no_buffer_holds_is_not_sent(make_guest):
    with pytest.raises(ValueError, match="transmit_shape"):
        make_guest().send([b"x" * 3000])


def test_post_bounds_the_receive_buffers(backend, make_guest):
    guest = make_guest(post=1)
    assert backend.deliver(*FRAMES[:3]) == 1
    assert guest.receive(1) == FRAMES[:1]
    assert backend.deliver(*FRAMES[1:3]) == 1


def test_guest_without_receive_buffers_has_room_for_raw_ones(backend, make_guest):
    guest = make_guest(post=0)
    assert backend.available(0) == 0
    buffer = guest.memory.allocate(2000)
    guest.raw_chain([(buffer, 1, WRITE)] * 11 + [(buffer, 1989, WRITE)], to_guest=True)
    assert backend.deliver(FRAMES[0]) == 1
    assert guest.receive(1, timeout=0) == []
    assert guest.virtqueue(to_guest=True).raw_used[0][1] == 12 + len(FRAMES[0])


def test_buffer_returned_unused_is_counted_and_posted_again(backend, make_guest):
    guest = make_guest(size=4)
    head, _ = backend.chain(0)
    backend.give_back(0, [(head, 0)])
    assert guest.receive(1, timeout=0) == []
    assert guest.counters.empty == 1
    assert backend.available(0) == 4


@pytest.mark.parametrize(
    ("header", "options", "wrong"),
    [
        (b"\1" + bytes(9), {}, "offloads"),
        (b"\0\1" + bytes(8), {}, "offloads"),
        (b"\1" + bytes(9), {"strict": False}, ""),
    ],
)
def test_header_that_was_not_agreed_on_is_the_device_s_fault(backend, make_guest, header, options, wrong):
    guest = make_guest(**options)
    backend.deliver(FRAMES[0], header=header)
    if wrong:
        with pytest.raises(ProtocolError, match=wrong):
            guest.receive(1)
    else:
        assert guest.receive(1) == FRAMES[:1]


@pytest.mark.parametrize(
    ("mergeable", "count", "wrong"),
    [(True, 0, "is 0"), (True, 2, "2 chains was shown with 1"), (False, 2, "not 1")],
)
def test_wrong_number_of_buffers_is_the_device_s_fault(backend, make_guest, mergeable, count, wrong):
    guest = make_guest(mergeable=mergeable)
    head, ((address, _, _),) = backend.chain(0)
    backend.guest(address, 72, bytes(10) + struct.pack("=H", count) + b"x" * 60)
    backend.give_back(0, [(head, 72)])
    with pytest.raises(ProtocolError, match=wrong):
        guest.receive(1)


def test_back_end_decides_what_is_negotiated(backend, make_guest):
    backend.features = FEATURES & ~(MERGEABLE | EVENT_IDX | RING_INDIRECT)
    guest = make_guest()
    row = guest.virtqueue().row
    assert (int(row["mergeable"]), int(row["event_idx"])) == (0, 0)
    backend.deliver(FRAMES[0])
    assert guest.receive(1) == FRAMES[:1]


def test_pairs_are_apart(backend, make_guest):
    guest = make_guest(queues=3)
    assert backend.chosen >> 22 & 1
    for queue in range(3):
        backend.deliver(FRAMES[queue], queue=queue)
        guest.send([FRAMES[queue]], queue)
    assert sorted((p.queue, p.frame) for p in guest.receive_packets(3)) == list(enumerate(FRAMES[:3]))
    assert [backend.collect(queue)[0][12:] for queue in range(3)] == FRAMES[:3]


def test_guest_may_start_fewer_pairs(backend, make_guest):
    guest = make_guest(queues=2)
    guest.stop()
    guest.reset()
    backend.log.clear()
    guest.start(1)
    assert backend.log.count(12) == 2
    backend.deliver(FRAMES[0])
    assert guest.receive(1) == FRAMES[:1]


def test_stop_and_start_go_on_where_they_were(backend, make_guest):
    guest = make_guest(size=8)
    backend.deliver(*FRAMES[:5])
    assert guest.receive(5) == FRAMES[:5]
    guest.send(FRAMES[:3])
    guest.stop()
    guest.start()
    assert [frame[12:] for frame in backend.collect()] == FRAMES[:3]
    assert backend.deliver(*FRAMES) == 8
    assert guest.receive(8) == FRAMES[:8]
    assert backend.log.count(37) == 1, "the memory table stays over stop and start"


def test_reconnect_goes_on_at_the_used_index(backend, make_guest):
    """As QEMU does when the back-end is gone and cannot be asked: vhost-user "Ring states"."""
    guest = make_guest(size=8)
    backend.deliver(*FRAMES[:5])
    assert guest.receive(5) == FRAMES[:5]
    guest.send(FRAMES[:2])
    guest.reconnect()
    assert (backend.rings[0].base, backend.rings[1].base) == (5, 0)
    assert [frame[12:] for frame in backend.collect()] == FRAMES[:2]
    assert backend.deliver(FRAMES[5]) == 1
    assert guest.receive(1) == FRAMES[5:6]


def test_mtu_is_told(backend, make_guest):
    make_guest(mtu=1400)
    assert backend.mtu == 1400


def test_server_guest_waits_for_the_back_end(tmp_path):
    path = str(tmp_path / "s")
    guest = Guest(path, MAC, server=True)
    with Backend(path, connects=True) as device, guest:
        device.deliver(FRAMES[0])
        assert guest.receive(1) == FRAMES[:1]


def test_guest_leaves_no_descriptor_behind(backend):
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    with Guest(backend.path, MAC, queues=2) as guest:
        guest.send(FRAMES[:1])
    with pytest.raises(ProtocolError), Guest(backend.path, MAC, features=0):
        pass
    deadline = time.monotonic() + 5
    while count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert count() == before


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Two vhost-user back-ends that are not ours, wired to each other: sockets `a` and `b`."""
    folder = tmp_path_factory.mktemp("dpdk")
    command = [
        "dpdk-testpmd",
        "--lcores",
        "(0,1)@1",
        "--no-pci",
        "--no-huge",
        f"--file-prefix=guest{os.getpid()}",
    ]
    command += ["-m", "256", "--vdev", f"net_vhost0,iface={folder}/a,queues=2"]
    command += [
        "--vdev",
        f"net_vhost1,iface={folder}/b,queues=2",
        "--",
        "-i",
        "--nb-cores=1",
        "--rxq=2",
        "--txq=2",
    ]
    command += ["--forward-mode=io", "--auto-start", "--total-num-mbufs=16384", "--no-flush-rx"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log) as one,
    ):
        assert one.stdin
        try:
            yield folder
        finally:
            one.stdin.close()
            try:
                one.wait(10)
            except subprocess.TimeoutExpired:
                one.kill()


@pytest.mark.dpdk
@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_foreign_back_end_carries_frames(foreign, options):
    """The same driver's side that tests our engine is understood by another one.

    Not strict: DPDK 22.11 leaves num_buffers 0 without VIRTIO_NET_F_MRG_RXBUF.
    """
    if options.get("size", 64) < 64:
        options = {"size": 64}
    ends = {"timeout": 30.0, "queues": 2, "strict": False, **options}
    with Guest(foreign / "a", MAC, **ends) as near, Guest(foreign / "b", MAC, **ends) as far:
        for source, target in ((near, far), (far, near)):
            for queue in (0, 1):
                source.send(FRAMES, queue)
                assert target.receive(len(FRAMES), 10) == FRAMES
        with Traffic(near, transmit=FRAMES, rate=4000, limit=1000), Traffic(far, FRAMES) as traffic:
            deadline = time.monotonic() + 10
            while traffic.counters()["frames"] < 1000 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert traffic.counters()["verified"] == 1000
