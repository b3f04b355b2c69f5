# SPDX-License-Identifier: Apache-2.0
"""The frames that the systems replay: flows, addresses and bytes as real traffic has them."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from bench.systems import FLOWS, WORKING_SET, Served, compared, frames_for, mac
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
    assert frames_for(2, 1514) == frames_for(2, 1514)


def test_net_vhost_is_compared_with_one_guest_only() -> None:
    assert compared(1) == ("vmq", "net_vhost", "ovs")
    assert compared(4) == ("vmq", "ovs")


def test_last_lines_of_a_log_are_quoted(tmp_path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))

    assert Served([], False, log).complaints().splitlines()[-1] == "line 99"
    assert len(Served([], False, log).complaints().splitlines()) == 12
