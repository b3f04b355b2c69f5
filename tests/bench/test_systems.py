# SPDX-License-Identifier: Apache-2.0
"""The frames that the systems replay: flows, addresses and bytes as real traffic has them."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from bench.systems import (
    FLOWS,
    MIXES,
    WORKING_SET,
    Counts,
    Load,
    Served,
    compared,
    frames_for,
    frames_in_turns,
    mac,
    named,
    net_vhost,
    read_counts,
)
from tests.dpdk.frames import mac_bytes


@pytest.mark.parametrize(("guests", "size"), [(1, 1514), (4, 64)])
def test_frames_reach_past_the_caches_in_many_flows(guests: int, size: int) -> None:
    """8 MiB at least, no two alike, at least 4096 flows, guests served alike and in no order."""
    frames = frames_for(guests, size)

    assert {len(one) for one in frames} == {size}
    assert len(frames) * size > WORKING_SET - size
    assert len(set(frames)) == len(frames)
    assert len({one[26:38] for one in frames}) == FLOWS >= 4096
    assert {one[6:12] for one in frames} == {frames[0][6:12]}
    shares = Counter(one[:6] for one in frames)
    assert set(shares) == {mac_bytes(mac(number)) for number in range(guests)}
    assert max(shares.values()) - min(shares.values()) < len(frames) // 100
    turns = sum(one[:6] == other[:6] for one, other in itertools.pairwise(frames))
    assert abs(turns / len(frames) - 1 / guests) < 0.01


def test_mix_is_the_same_for_each_guest() -> None:
    """7 frames of 64 bytes, 4 of 570, 1 of 1514; sizes and guests have nothing to do with each other."""
    frames = frames_for(4, "imix")
    wanted = {size: count / 12 for size, count in Counter(MIXES["imix"]).items()}

    assert sum(map(len, frames)) > WORKING_SET - sum(MIXES["imix"])
    assert len(set(frames)) == len(frames)
    for number in range(4):
        sizes = Counter(len(one) for one in frames if one[:6] == mac_bytes(mac(number)))
        assert sizes.keys() == wanted.keys()
        assert all(abs(sizes[size] / sizes.total() - share) < 0.02 for size, share in wanted.items())
    assert (named("imix"), named(64)) == ("IMIX", "64 B")


@pytest.mark.parametrize("guests", [1, 32])
def test_frames_in_turns_go_to_every_guest_before_one_gets_its_next(guests: int) -> None:
    """The same frames as in random order."""
    frames = frames_in_turns(guests, 64)
    turns = [frames[place : place + guests] for place in range(0, 64 * guests, guests)]

    assert set(frames) == set(frames_for(guests, 64))
    assert all(len({one[:6] for one in turn}) == guests for turn in turns)
    assert guests == 1 or len({tuple(one[:6] for one in turn) for turn in turns}) == len(turns)


def test_flow_belongs_to_one_guest() -> None:
    owners: dict[bytes, set[bytes]] = {}
    for one in frames_for(4, 64):
        owners.setdefault(one[26:38], set()).add(one[:6])

    assert {len(found) for found in owners.values()} == {1}


def test_frame_is_a_valid_ipv4_datagram() -> None:
    """The header sums to zero; its lengths are those of the frame."""
    one = frames_for(1, 64)[5]
    total = sum(int.from_bytes(one[place : place + 2], "big") for place in range(14, 34, 2))

    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    assert int.from_bytes(one[16:18], "big") == 50
    assert int.from_bytes(one[38:40], "big") == 30


def test_frames_are_the_same_in_every_run() -> None:
    first = frames_for(2, 1514)
    frames_for.cache_clear()

    assert frames_for(2, 1514) == first


PORTS = """OFPST_PORT reply (xid=0x2): 3 ports
  port 11: rx pkts=0, bytes=0, drop=0, errs=0, frame=?, over=?, crc=?
           tx pkts=90, bytes=5760, drop=10, errs=?, coll=?
  port  1: rx pkts=0, bytes=0, drop=2, errs=0, frame=?, over=?, crc=?
           tx pkts=70, bytes=4480, drop=0, errs=0, coll=?
  port LOCAL: rx pkts=3, bytes=270, drop=0, errs=0, frame=0, over=0, crc=0
           tx pkts=5, bytes=0, drop=?, errs=0, coll=0
"""
COVERAGE = """Event coverage, avg rate over last: 5 seconds, last minute, last hour,  hash=5d30d87b:
datapath_drop_upcall_error   0.0/sec     0.000/sec        0.0000/sec   total: 3
datapath_drop_lock_error   0.0/sec     0.000/sec        0.0000/sec   total: 1
dpif_port_add              0.0/sec     0.000/sec        0.0014/sec   total: 5
"""


def test_counts_of_the_switch_are_those_of_its_uplink_and_all_drops() -> None:
    """A counter that a port does not have is a question mark."""
    assert read_counts(PORTS, COVERAGE) == Counts(to_wire=70, dropped=16)
    assert read_counts("", "") == Counts(0, 0)


def test_net_vhost_serves_one_guest_that_receives(tmp_path) -> None:
    for load in (Load(2, [b""]), Load(1)):
        with pytest.raises(ValueError, match="one guest"), net_vhost(tmp_path, load):
            pass


def test_net_vhost_is_compared_with_one_guest_only() -> None:
    assert compared(1) == ("vmq", "net_vhost", "ovs")
    assert compared(4) == ("vmq", "ovs")


def test_last_lines_of_a_log_are_quoted(tmp_path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))

    assert Served([], False, log).complaints().splitlines()[-1] == "line 99"
    assert len(Served([], False, log).complaints().splitlines()) == 12
