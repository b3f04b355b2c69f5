# SPDX-License-Identifier: Apache-2.0
"""Versions of the tables: what is in one, when it is seen, when it is free."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq import linux, publisher
from vmq.abi.ethernet import MAC_BROADCAST, mac_number
from vmq.dataplane import match, state
from vmq.dataplane.classify import GROUP_KEYS
from vmq.errors import ProtocolError
from vmq.jit import at, int64
from vmq.publisher import (
    MAPPINGS_FAIR,
    MAPPINGS_KEPT,
    Block,
    FilterEntry,
    PortEntry,
    Publisher,
    QueueEntry,
    RingEntry,
    Segment,
    UplinkEntry,
)

A, B = (mac_number(f"52:54:00:00:00:0{digit}") for digit in "12")


@pytest.fixture
def segment() -> Iterator[Segment]:
    one = Segment(2)
    yield one
    one.close()


def port(number: int = 0, **keys: object) -> PortEntry:
    entry: dict[str, object] = {
        "number": number,
        "first_queue": 2 * number,
        "queues": (QueueEntry(0), QueueEntry(1)),
        "uplink": state.NONE,
        "vlan": 0,
        "macs": (A + number,),
        "frame_max": 1514,
    }
    return PortEntry(**(entry | keys))  # type: ignore[arg-type]


def published(segment: Segment, ports: list[PortEntry], uplinks: list[UplinkEntry]) -> Block:
    one = Publisher(segment)
    return one._blocks[one.publish(ports, uplinks)]


def table(block: Block, name: str, count: str, dtype: object) -> np.ndarray:
    return at(int(block.tables[name]), int(block.tables[count]), dtype)


def look_up(block: Block, mac: int, vlan: int, uplink: int) -> list[int]:
    """All rows of the hash table with this key."""
    rows = at(int(block.tables["buckets"]), int(block.tables["bucket_mask"]) + 1, state.bucket)
    key = mac | vlan << state.VID_SHIFT
    return [int(row["value"]) for row in rows if row["key"] == key and row["uplink"] == uplink]


def test_a_port_becomes_rows(segment: Segment):
    """Filters, receive queues, virtqueues, regions, learn prefixes, polls of its processors."""
    ring = RingEntry(True, True, 256, 1, 2, 3, state.RING_EVENT_IDX, 40, 41)
    one = port(
        1,
        uplink=0,
        vlan=10,
        macs=(A, B),
        learn=((255, 1), (255, 2)),
        learn_left=4,
        regions=((0, 4096, 1 << 40), (8192, 4096, 2 << 40)),
        rings={0: (ring, ring), 1: (RingEntry(), ring)},
    )

    lanes = tuple(np.zeros(1, state.lane)[0] for _ in range(2))
    block = published(segment, [port(0), one], [UplinkEntry(0, lanes)])

    row = table(block, "vports", "vport_count", state.vport)[1]
    assert (row["active"], row["vlan"], row["mac"], row["frame_max"]) == (1, 10, A, 1514)
    assert (row["first_queue"], row["queue_count"]) == (2, 2)
    regions = table(block, "regions", "region_count", state.region)
    assert [tuple(r) for r in regions[row["region_first"] :][: row["region_count"]]] == [
        (0, 4096, 1 << 40, 1),
        (8192, 4096, 2 << 40, 1),
    ]
    learns = table(block, "learns", "learn_count", state.learn)
    assert [tuple(r) for r in learns[row["learn_first"] :][: row["learn_count"]]] == [(255, 1), (255, 2)]
    queues = table(block, "queues", "queue_count", state.queue)
    assert queues[["vport", "index", "worker"]].tolist() == [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)]
    virtqueues = at(int(block.tables["virtqueues"]), 2 * len(queues), state.virtqueue)
    assert list(virtqueues["running"]) == [0, 0, 0, 0, 1, 1, 0, 1]
    assert (virtqueues[5]["call_fd"], virtqueues[5]["error_fd"]) == (40, 41)
    jobs = at(int(block.tables["jobs"]), 2, state.job)
    polls = table(block, "polls", "poll_count", np.int64)
    assert [list(polls[j["poll_first"] :][: j["poll_count"]]) for j in jobs] == [[2], [3]]
    assert look_up(block, A, 10, 0) == look_up(block, B, 10, 0) == [2]


def test_members_of_a_segment_stand_under_the_broadcast_address(segment: Segment):
    """A segment is (uplink, VLAN)."""
    block = published(segment, [port(0), port(1), port(2, vlan=5)], [])

    groups = table(block, "groups", "group_count", state.group)
    members = table(block, "members", "member_count", np.int64)
    (number,) = look_up(block, MAC_BROADCAST, 0, state.NONE)
    assert list(members[groups[number]["first"] :][: groups[number]["count"]]) == [0, 1]
    assert int(block.tables["frame_limit"]) == state.FRAMES


def test_a_segment_has_a_group_for_each_way_of_accepting_and_all_who_agree_share_one(segment: Segment):
    """Without unknown frames nothing stands under their address, and nobody looks there."""
    agreed = published(segment, [port(0), port(1)], [])
    assert (
        len(table(agreed, "groups", "group_count", state.group)),
        int(agreed.tables["unknown_count"]),
    ) == (1, 0)
    assert [look_up(agreed, key, 0, state.NONE) for key in GROUP_KEYS.values()] == [[0], [0], []]

    block = published(segment, [port(0), port(1, accept=("broadcast", "unknown")), port(2, accept=())], [])
    groups = table(block, "groups", "group_count", state.group)
    members = table(block, "members", "member_count", np.int64)
    found = {}
    for name, key in GROUP_KEYS.items():
        (number,) = look_up(block, key, 0, state.NONE)
        found[name] = list(members[groups[number]["first"] :][: groups[number]["count"]])
    assert found == {"broadcast": [0, 1], "multicast": [0], "unknown": [1]}
    assert int(block.tables["unknown_count"]) == 1


def test_a_flood_never_overruns_the_deliveries_of_a_round(segment: Segment):
    """frame_limit × the largest segment fits."""
    block = published(segment, [port(n, first_queue=n, queues=(QueueEntry(0),)) for n in range(2000)], [])
    limit = int(block.tables["frame_limit"])
    assert 1 <= limit <= state.DELIVERIES // 2000


def test_lanes_of_an_uplink_are_numbered_by_worker(segment: Segment):
    lanes = tuple(np.zeros(1, state.lane)[0] for _ in range(2))
    for number, lane in enumerate(lanes):
        lane["fd"] = 50 + number

    block = published(segment, [port(0, uplink=1)], [UplinkEntry(1, lanes)])

    rows = table(block, "lanes", "lane_count", state.lane)
    assert rows[2:][["uplink", "worker", "fd"]].tolist() == [(1, 0, 50), (1, 1, 51)]
    assert table(block, "vports", "vport_count", state.vport)[0]["first_lane"] == 2
    assert list(table(block, "own_lanes", "own_lane_count", np.int64)) == [2, 3]


@given(
    st.lists(
        st.tuples(st.integers(1, (1 << 48) - 2), st.integers(0, 4094), st.integers(-1, 20)),
        unique=True,
        max_size=60,
    )
)
def test_every_filter_is_found_and_nothing_else(keys: list[tuple[int, int, int]]):
    """The table is at most half full, and a search starts at slot_of and ends at a gap."""
    from vmq.dataplane.classify import slot_of

    ports = [port(n, macs=(mac,), vlan=vlan, uplink=up) for n, (mac, vlan, up) in enumerate(keys)]
    buckets, _, _ = publisher._filters(ports, [])
    size = len(buckets)
    assert np.count_nonzero(buckets["key"] != state.KEY_EMPTY) <= size // 2
    for number, (mac, vlan, uplink) in enumerate(keys):
        key = mac | vlan << state.VID_SHIFT
        slot = int(slot_of(int64(key), int64(uplink), int64(size - 1)))
        while (buckets[slot]["key"], buckets[slot]["uplink"]) != (key, uplink):
            assert buckets[slot]["key"] != state.KEY_EMPTY
            slot = (slot + 1) % size
        assert buckets[slot]["value"] == 2 * number


def test_an_empty_version_can_be_published(segment: Segment):
    """Every table may be empty."""
    block = published(segment, [], [])
    assert int(segment.engine["tables"]) == block.base
    assert int(block.tables["epoch"]) == 1


# --- epochs -----------------------------------------------------------------------------------------------------


def with_workers(segment: Segment) -> Publisher:
    """As if two workers ran: their rows are the test's."""
    one = Publisher(segment)
    one.publish([], [])
    one.doorbells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    return one


def test_an_old_version_is_freed_when_all_have_announced_a_newer_one(segment: Segment):
    """And not before: somebody may be reading."""
    one = with_workers(segment)
    epochs = segment.rows["workers"]["epoch"]
    one.publish([port(0)], [])
    one.publish([], [])
    epochs[0], epochs[1] = 3, 1
    one.reclaim()
    assert set(one._blocks) == {1, 2, 3}
    epochs[1] = 2
    one.reclaim()
    assert set(one._blocks) == {2, 3}
    epochs[1] = 3
    one.reclaim()
    assert set(one._blocks) == {3}
    for fd in one.doorbells:
        os.close(fd)


def test_publishing_rings_every_doorbell(segment: Segment):
    one = with_workers(segment)
    one.publish([], [])
    assert [os.eventfd_read(fd) for fd in one.doorbells] == [1, 1]
    for fd in one.doorbells:
        os.close(fd)


def test_settling_waits_for_the_slowest(segment: Segment):
    one = with_workers(segment)
    epochs = segment.rows["workers"]["epoch"]
    epoch = one.publish([], [])
    epochs[0] = epoch

    def announce() -> None:
        time.sleep(0.05)
        epochs[1] = epoch

    late = threading.Thread(target=announce)
    late.start()
    one.settle(epoch)
    assert epochs[1] == epoch
    late.join()
    for fd in one.doorbells:
        os.close(fd)


def test_a_stuck_processor_is_an_error_not_a_hang(segment: Segment, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(publisher, "SETTLE_SECONDS", 0.01)
    one = with_workers(segment)
    with pytest.raises(TimeoutError, match="did not adopt epoch 2"):
        one.settle(one.publish([], []))
    for fd in one.doorbells:
        os.close(fd)


def test_without_workers_nobody_is_waited_for(segment: Segment):
    one = Publisher(segment)
    for _ in range(3):
        one.settle(one.publish([port(0)], []))
        one.reclaim()
    assert set(one._blocks) == {3}


def test_an_address_of_many_vlans_is_one_near_miss(segment: Segment):
    """The first of its VM ports; the search stays short, however many share it."""
    publisher = Publisher(segment)
    ports = [
        PortEntry(number, number, (QueueEntry(0),), state.NONE, number + 1, (0x0254,), 1514)
        for number in range(300)
    ]
    publisher.publish(ports, [])
    tables = at(int(segment.engine["tables"]), 1, state.tables)[0]
    rows = at(int(tables["near_buckets"]), int(tables["near_mask"]) + 1, state.bucket)
    assert [(int(row["key"]), int(row["value"])) for row in rows if row["key"] >= 0] == [(0x0254, 0)]


def test_the_address_of_a_filter_is_a_near_miss_of_its_receive_queue(segment: Segment):
    """A VM port's own address comes before it, and the first of several filters."""
    filters = [
        FilterEntry(state.NONE, {(A, 7): 5, (B + 8, 7): 3, (B + 8, 9): 2}, np.zeros(0, match.field_test))
    ]
    one = Publisher(segment)
    one.publish([port(), port(1)], [], filters)
    tables = at(int(segment.engine["tables"]), 1, state.tables)[0]
    rows = at(int(tables["near_buckets"]), int(tables["near_mask"]) + 1, state.bucket)
    found = {int(row["key"]): int(row["value"]) for row in rows if row["key"] >= 0}
    assert found == {A: 0, A + 1: 2, B + 8: 3}


# --- the segment ------------------------------------------------------------------------------------------------


def test_one_port_cannot_take_all_mappings(segment: Segment):
    """Rows are kept for VM ports with few regions; what does not fit is the front-end's refusal, not our fault."""
    most = state.MAX_MAPPINGS - MAPPINGS_KEPT
    for number in range(most):
        segment.add_mapping(0, 4096 * (number + 1), 4096)
    with pytest.raises(
        ProtocolError, match=f"{most} memory regions of {state.MAX_MAPPINGS} .* {most} of them by this VM"
    ):
        segment.add_mapping(0, 1 << 40, 4096)
    for number in range(MAPPINGS_FAIR):
        segment.add_mapping(1, (1 << 41) + 4096 * number, 4096)
    with pytest.raises(ProtocolError, match="memory regions"):
        segment.add_mapping(1, 1 << 40, 4096)
    segment.drop_mapping(4096 * 7)
    segment.add_mapping(3, 1 << 40, 8192)
    row = segment.rows["mappings"][6]
    assert (row["host"], row["length"], row["vport"]) == (1 << 40, 8192, 3)


def test_the_table_of_mappings_is_full_in_words(segment: Segment):
    rows = segment.rows["mappings"]
    rows["length"], rows["vport"] = 4096, 7
    with pytest.raises(ProtocolError, match="memory regions"):
        segment.add_mapping(0, 1 << 40, 4096)
    rows["length"] = 0


def test_the_signal_handler_finds_each_engine_and_forgets_it():
    """state.ANCHOR: one page for all engines of a process."""
    linux.map_fixed(state.ANCHOR, linux.PAGE)
    anchor = at(state.ANCHOR, state.ANCHOR_SLOTS, np.int64)
    before = set(anchor.tolist())
    first, second = Segment(1), Segment(1)
    assert set(anchor.tolist()) - before == {first.address, second.address}
    first.close()
    assert first.address not in anchor
    second.close()
    assert set(anchor.tolist()) == before


def test_rows_do_not_share_a_cache_line(segment: Segment):
    """Two writers on one line would slow each other."""
    for name in ("workers", "queue_state", "ring_state", "lane_state"):
        rows = segment.rows[name]
        assert rows.itemsize % 64 == 0, name
        assert rows.ctypes.data % 64 == 0, name
