# SPDX-License-Identifier: Apache-2.0
"""Recordings played to guests: laps and order; a lossless lane against lists; sinks for what leaves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane.rig import BROADCAST, NOBODY, A, B, C, D, Rig, Vm, frame, number_of, numbered
from vmq.dataplane import reasons, state
from vmq.dataplane.loop import prepare_sleep


def test_a_recording_is_played_as_often_as_it_is_asked_for():
    with Rig() as rig:
        frames = [numbered(A, B, number) for number in range(30)]
        wire = rig.uplink(frames=frames, laps=4)
        vm = rig.vm(A, uplink=wire, size=256)
        vm.post(200, 128)
        rig.publish()
        assert [rig.step() for _ in range(3)] == [64, 56, 0]
        assert vm.received() == frames * 4
        assert [int(rig.lane_state()[name]) for name in ("cursor", "lap")] == [0, 4]
        assert [int(rig.lane_state()[name]) for name in ("frames_from_wire", "bytes_from_wire")] == [
            120,
            7200,
        ]


def test_without_a_number_of_laps_it_is_played_for_ever():
    with Rig() as rig:
        wire = rig.uplink(frames=[numbered(A, B, number) for number in range(10)], laps=0)
        vm = rig.vm(A, uplink=wire, size=256)
        rig.publish()
        got: list[int] = []
        for _ in range(20):
            vm.post(len(vm.to_guest.free), 64 + 12)
            assert rig.step() == state.BURST
            got += [number_of(data) for data in vm.received()]
        assert got == [number % 10 for number in range(20 * state.BURST)]


def test_a_paced_recording_is_played_frame_by_frame_at_its_rate():
    """Never early; what a busy processor could not send in time is made up for, 10 ms of it at most."""
    with Rig() as rig:
        wire = rig.uplink(frames=[numbered(A, B, number) for number in range(400)], laps=1)
        rig.uplinks[wire].lanes[0]["gap"] = 1_000_000 * state.GAP_PARTS  # a frame a millisecond
        vm = rig.vm(A, uplink=wire, size=256)
        vm.post(200, 128)
        rig.publish()
        books = rig.lane_state()
        assert rig.step() == 1
        assert int(books["due"]) == 1_000_000 * state.GAP_PARTS
        books["began"] += 10**12
        assert rig.step() == 0
        books["began"] -= 2 * 10**12
        assert rig.step() == 11
        assert [number_of(data) for data in vm.received()] == list(range(12))


def test_a_worker_sleeps_until_the_next_frame_of_a_paced_recording_is_due():
    """A second at most; without frames to come, or while its lane does not receive, for ever."""
    with Rig() as rig:
        wire = rig.uplink(frames=[numbered(A, B, 0), numbered(A, B, 1)], laps=1)
        lane = rig.uplinks[wire].lanes[0]
        lane["gap"] = 10**9 * state.GAP_PARTS // 4
        rig.vm(A, uplink=wire)
        rig.publish()
        assert rig.step() == 1
        assert 1 <= int(prepare_sleep(rig.tables(), rig.worker())) <= 250
        rig.lane_state()["due"] += 10**12 * state.GAP_PARTS
        assert int(prepare_sleep(rig.tables(), rig.worker())) == 1000
        lane["receives"] = 0
        rig.publish()
        assert int(prepare_sleep(rig.tables(), rig.worker())) == 0  # other tables
        rig.step()
        assert int(prepare_sleep(rig.tables(), rig.worker())) == -1


# --- lossless ------------------------------------------------------------------------------------------------

TO = st.sampled_from([A, B, C, BROADCAST, NOBODY])


@given(
    targets=st.lists(TO, min_size=1, max_size=150),
    posts=st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30
    ),
    laps=st.integers(1, 3),
    workers=st.sampled_from([1, 2]),
)
def test_a_lossless_lane_loses_and_doubles_nothing(targets, posts, laps, workers):
    """Against a list for each receive queue: whatever is full whenever, each gets its frames, once, in order."""
    frames = [numbered(to, D, number) for number, to in enumerate(targets)]
    with Rig(workers=workers, handover=4096) as rig:
        wire = rig.uplink(frames=frames, laps=laps, lossless=True)
        vms = {
            mac: rig.vm(mac, uplink=wire, workers=(place % workers,)) for place, mac in enumerate((A, B, C))
        }
        rig.publish()
        got: dict[str, list[int]] = {mac: [] for mac in vms}

        def turn(counts: tuple[int, ...]) -> int:
            moved = 0
            for vm, count in zip(vms.values(), counts, strict=True):
                vm.post(min(count, len(vm.to_guest.free)), 128)
            for worker in range(workers):
                moved += rig.step(worker)
            for mac, vm in vms.items():
                got[mac] += [number_of(data) for data in vm.received()]
            return moved

        for counts in posts:
            turn(counts)
        while turn((64, 64, 64)):
            pass
        for mac, vm in vms.items():
            assert got[mac] == [number for number, to in enumerate(targets) if to in (mac, BROADCAST)] * laps
            assert vm.drops() == {}
        assert int(rig.lane_state()["pending"]) == 0
        assert int(rig.lane_state()["frames_from_wire"]) == len(frames) * laps


def waiting(rig: Rig, count: int = 5) -> Vm:
    """A VM for which `count` frames wait."""
    wire = rig.uplink(frames=[numbered(A, D, number) for number in range(count)], lossless=True)
    vm = rig.vm(A, uplink=wire)
    rig.publish()
    rig.run()
    assert int(rig.lane_state()["pending"]) == count
    return vm


def test_a_lane_whose_destination_is_full_is_not_read():
    with Rig() as rig:
        wire = rig.uplink(frames=[numbered(A, D, number) for number in range(500)], lossless=True)
        vm = rig.vm(A, uplink=wire)
        rig.publish()
        assert rig.step() == state.BURST
        assert [rig.step() for _ in range(3)] == [0, 0, 0]
        assert int(rig.lane_state()["cursor"]) == state.BURST
        vm.post(10)
        assert rig.step() == 10
        assert int(rig.lane_state()["pending"]) == state.BURST - 10
        assert vm.drops() == {}


def test_a_backlog_longer_than_a_round_is_worked_off_in_order():
    """A flood of a burst makes more deliveries than a round has frames."""
    with Rig() as rig:
        wire = rig.uplink(frames=[numbered(BROADCAST, D, number) for number in range(64)], lossless=True)
        vms = [rig.vm(f"52:54:00:00:01:{last:02x}", uplink=wire) for last in range(6)]
        rig.publish()
        rig.step()
        assert int(rig.lane_state()["pending"]) == 6 * 64 > state.FRAMES
        for vm in reversed(vms):
            vm.post(64, 128)
        rig.run()
        assert [[number_of(data) for data in vm.received()] for vm in vms] == [list(range(64))] * 6


def test_a_receive_queue_that_does_not_run_is_no_reason_to_wait():
    with Rig() as rig:
        wire = rig.uplink(frames=[frame(A, D), frame(B, D)], lossless=True)
        stopped, vm = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
        stopped.to_guest.running = False
        vm.post(1)
        rig.publish()
        rig.run()
        assert stopped.drops() == {"to_guest_not_running": 1}
        assert vm.received() == [frame(B, D)]


def test_what_waits_for_a_port_that_is_gone_is_a_named_drop():
    with Rig() as rig:
        vm = waiting(rig)
        vm.present = False
        rig.publish()
        rig.run()
        assert int(rig.lane_state()["pending"]) == 0
        assert rig.wire_drops() == {"handover_moved": 5}


def test_what_waits_never_reaches_a_vm_that_has_its_receive_queue_now():
    """Filter before write: the number is another queue's."""
    with Rig() as rig:
        vm = waiting(rig)
        vm.generation += 1
        vm.post(8)
        rig.publish()
        rig.run()
        assert vm.received() == []
        assert rig.wire_drops() == {"handover_moved": 5}


def test_what_waits_is_still_delivered_under_new_tables():
    with Rig() as rig:
        vm = waiting(rig)
        rig.vm(B)
        rig.publish()
        vm.post(8)
        rig.run()
        assert [number_of(data) for data in vm.received()] == list(range(5))


# --- what leaves ---------------------------------------------------------------------------------------------


def test_what_leaves_lies_in_the_sink_in_order_until_it_is_full():
    """A full sink is a named drop of the lane, and no frame in it is harmed."""
    with Rig() as rig:
        wire = rig.uplink(sink=1024)
        vm = rig.vm(A, uplink=wire)
        for number in range(10):
            vm.send(numbered(NOBODY, A, number, 100), cuts=[30, 90])
        rig.publish()
        rig.run()
        assert [number_of(data) for data in rig.left()] == list(range(6))
        assert int(rig.lane_state()["to_wire_drops"][reasons.TO_WIRE_FULL]) == 4
        assert [int(rig.lane_state()[name]) for name in ("frames_to_wire", "bytes_to_wire")] == [6, 600]
        vm.send(numbered(NOBODY, A, 10, 100))
        rig.run()
        assert [number_of(data) for data in rig.left()] == [10]


def test_without_a_sink_what_leaves_is_counted():
    with Rig() as rig:
        vm = rig.vm(A, uplink=rig.uplink())
        vm.send(frame(NOBODY, A, 333))
        rig.publish()
        rig.run()
        assert [int(rig.lane_state()[name]) for name in ("frames_to_wire", "bytes_to_wire")] == [1, 333]


def test_every_worker_sends_on_its_own_lane():
    with Rig(workers=2) as rig:
        wire = rig.uplink(sink=1 << 12)
        vms = [rig.vm(mac, uplink=wire, workers=(worker,)) for worker, mac in enumerate((A, B))]
        for vm, mac in zip(vms, (A, B), strict=True):
            vm.send(frame(NOBODY, mac))
        rig.publish()
        rig.run()
        assert [rig.left(wire, worker) for worker in range(2)] == [[frame(NOBODY, mac)] for mac in (A, B)]
