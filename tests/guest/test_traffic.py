# SPDX-License-Identifier: Apache-2.0
"""Starting and ending the compiled loop."""

from __future__ import annotations

import pytest

from vmq.guest.flood import FLOOD
from vmq.guest.guest import Guest
from vmq.guest.traffic import Traffic, compile_kernels, table_of, transmit_room
from vmq.jit import at

FRAMES = [bytes([number]) * 100 for number in range(40)]


def test_all_kernels_compile_before_traffic():
    compile_kernels()


def test_duration_ends_it(make_guest):
    with Traffic(make_guest(), duration=0.05) as traffic:
        assert traffic.join(10)
        assert not traffic.running
        assert traffic.counters()["elapsed_ns"] >= 50_000_000


def test_rings_are_the_guest_s_again_afterwards(backend, make_guest):
    guest: Guest = make_guest(size=8)
    backend.deliver(FRAMES[0])
    assert guest.receive(1) == FRAMES[:1]
    with Traffic(guest, transmit=FRAMES, limit=3) as traffic:
        backend.deliver(FRAMES[1])
        while traffic.counters()["returned"] < 3 or traffic.counters()["frames"] < 1:
            backend.collect()
    for frame in FRAMES[2:22]:
        backend.deliver(frame)
        assert guest.receive(1) == [frame]
        guest.send([frame])
        assert [one[12:] for one in backend.collect()] == [frame]
    assert guest.counters.bad == 0


def test_stop_twice_is_one_stop(make_guest):
    traffic = Traffic(make_guest()).start()
    assert traffic.stop() == traffic.stop()


def test_never_started_traffic_can_be_stopped(make_guest):
    assert Traffic(make_guest()).stop()["rounds"] == 0


def test_room_for_frames_to_send_suffices(make_guest):
    guest = make_guest(room=transmit_room(FRAMES))
    Traffic(guest, transmit=FRAMES).stop()


def test_row_is_what_a_loop_of_somebody_else_s_drives(make_guest):
    """Traffic that is not started: its counters are in the row."""
    traffic = Traffic(make_guest(), transmit=FRAMES, limit=3, hold=True)
    row = at(traffic.row_address, 1, FLOOD)[0]

    assert (int(row["hold"]), int(row["limit"])) == (1, 3)
    row["frames"] = 7
    assert traffic.counters()["frames"] == 7
    traffic.stop()


def test_frames_without_room_are_refused(make_guest):
    with pytest.raises(MemoryError):
        Traffic(make_guest(room=0), transmit=[b"x" * 1000] * 100)


def test_table_points_to_the_frames():
    rows, data = table_of([b"one", b"", b"three"])
    assert data.tobytes() == b"onethree"
    assert (rows["address"] - rows["address"][0]).tolist() == [0, 3, 3]
    assert rows["length"].tolist() == [3, 0, 5]
