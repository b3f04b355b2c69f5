# SPDX-License-Identifier: Apache-2.0
"""Maps and programs of an uplink: what they hold follows what is asked for, and is gone with them."""

from __future__ import annotations

import os
import socket

import pytest

from vmq.abi.ethernet import mac_number
from vmq.abi.xdp import AF_XDP
from vmq.dataplane.state import VID_SHIFT
from vmq.uplink import xdp_steering
from vmq.uplink.xdp_program import to_own_queue
from vmq.uplink.xdp_steering import XdpSteering

pytestmark = pytest.mark.root
A, B, GROUP = (mac_number(mac) for mac in ("52:54:00:00:00:01", "52:54:00:00:00:02", "33:33:00:00:00:01"))


def keys(steering: XdpSteering) -> tuple[set[int], set[int]]:
    """What the two maps hold."""
    filters, addresses = (
        {int.from_bytes(key, "little") for key in list(one.keys())}
        for one in (steering.filters, steering.addresses)
    )
    return filters, addresses


def test_a_filter_that_becomes_direct_leads_elsewhere_and_back() -> None:
    steering = XdpSteering(1, 1514)
    try:
        assert steering.follow({(A, 0), (A, 5)}, direct={(A, 5): 7}) == ""
        values = {key: steering.filters.lookup(key) for key in list(steering.filters.keys())}
        assert {int.from_bytes(key, "little"): int.from_bytes(value or b"", "little") for key, value in values.items()} == {
            A: 0, A | 5 << 48: 7
        }  # fmt: skip
        steering.follow({(A, 0), (A, 5)})
        assert steering.filters.lookup((A | 5 << 48).to_bytes(8, "little")) == bytes(4)
    finally:
        steering.close()


def test_maps_follow_what_is_asked_for_and_hold_no_group():
    steering = XdpSteering(1, 1518)
    assert keys(steering) == (set(), set())
    for filters in ({(A, 0), (A, 5), (GROUP, 0)}, {(A, 5), (B, 0)}, set()):
        assert steering.follow(filters) == ""
        unicast = {(mac, vid) for mac, vid in filters if mac != GROUP}
        assert keys(steering) == (
            {mac | vid << VID_SHIFT for mac, vid in unicast},
            {mac for mac, _ in unicast},
        )
    steering.close()


def test_more_than_fit_is_said_and_comes_right_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(xdp_steering, "FILTERS_MAX", 2)
    steering = XdpSteering(1, 1518)
    assert "no more than 2 addresses fit" in steering.follow({(A, 0), (A, 5), (B, 0)})
    assert len(keys(steering)[0]) == 2
    assert steering.follow({(A, 0), (B, 0)}) == ""
    assert keys(steering) == ({A, B}, {A, B})
    steering.close()


def test_what_is_led_away_is_so_however_many_others_do_not_fit(monkeypatch: pytest.MonkeyPatch):
    """Else frames of one VM would go on into a socket that is another's by then."""
    monkeypatch.setattr(xdp_steering, "FILTERS_MAX", 4)
    steering = XdpSteering(1, 1518)
    few, many = {(A, 0), (B, 0)}, {(B + (number << 40), 0) for number in range(1, 40)}
    own = to_own_queue(2, 1514)
    assert steering.follow(few, direct={(A, 0): own}) == ""
    for wanted in (many | few, [*many, *few], [*few, *many]):
        assert "fit" in steering.follow(wanted, direct={(A, 0): own})
        assert "fit" in steering.follow(wanted)
        assert steering.filters.lookup(A.to_bytes(8, "little")) == bytes(4)
        assert steering.follow(few, direct={(A, 0): own}) == ""
        assert steering.filters.lookup(A.to_bytes(8, "little")) == own.to_bytes(4, "little")
    steering.close()


def test_closing_gives_everything_back_and_may_be_repeated():
    before = os.listdir("/proc/self/fd")
    steering = XdpSteering(1, 1518)
    assert set(steering.verdicts().values()) == {0}
    steering.close()
    steering.close()
    assert os.listdir("/proc/self/fd") == before


def test_a_vms_own_socket_stands_in_a_map_of_its_own() -> None:
    """A program that is run sees queue 0."""
    steering, told = XdpSteering(2, 1514), []
    data = A.to_bytes(6, "little") + bytes(54)
    with socket.socket(AF_XDP, socket.SOCK_RAW) as one:
        try:
            steering.follow({(A, 0)}, direct={(A, 0): to_own_queue(0, 1514)})
            for change in (lambda: steering.serve_own(0, one.fileno()), lambda: steering.forget_own(0)):
                change()
                steering.program.run(data)
                told.append({name: count for name, count in steering.verdicts().items() if count})
        finally:
            steering.close()
    assert told == [{"own_queue": 1}, {"own_queue": 1, "no_socket": 1}]
