# SPDX-License-Identifier: Apache-2.0
"""Addresses and the receive queues behind them, against dictionaries; what is remembered of frames that nobody got."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.dataplane.rig import BROADCAST, MULTICAST, NOBODY, A, B, C, D, Rig, frame
from vmq.abi.ethernet import MAC_BROADCAST, mac_number, mac_text
from vmq.dataplane import state
from vmq.dataplane.classify import lookup, mac_at, slot_of
from vmq.jit import address_of, at, int64
from vmq.publisher import PortEntry, Publisher, QueueEntry, Segment, UplinkEntry

SMALL = [(0x10000, 1 << 13)]


def test_a_mac_is_read_as_it_is_written():
    data = np.frombuffer(bytes.fromhex("0102030405ff") + bytes(2), np.uint8)
    assert int(mac_at(address_of(data))) == mac_number("01:02:03:04:05:ff")


def test_the_search_begins_inside_the_table_for_any_key():
    """No key, uplink or size makes a product that wraps, or a slot outside the table."""
    for key in (0, MAC_BROADCAST, (4095 << state.VID_SHIFT) | MAC_BROADCAST, 1 << 59):
        for uplink in (state.NONE, 0, 1, 1023):
            for mask in (7, 1023, (1 << 20) - 1):
                assert 0 <= int(slot_of(int64(key), int64(uplink), int64(mask))) <= mask


@pytest.mark.parametrize("count", [0, 1, 3, 60, 700])
def test_filters_are_found_and_nothing_else_is(count):
    """Against a dictionary: (MAC, VLAN id, uplink) → receive queue, with many keys that differ in one part only."""
    rng = random.Random(count)
    macs = [rng.getrandbits(48) & ~1 for _ in range(max(count // 4, 1))]
    keys = {(rng.choice(macs), rng.choice((0, 1, 2, 4094)), rng.choice((-1, 0, 1))) for _ in range(count)}
    ports, model = [], {}
    for number, (mac, vlan, uplink) in enumerate(sorted(keys)):
        model[mac, vlan, uplink] = number + 5
        ports.append(PortEntry(number, number + 5, (QueueEntry(0),), uplink, vlan, (mac,), 1514))
    uplinks = [UplinkEntry(number, (np.zeros(1, state.lane)[0],)) for number in range(2)]
    segment = Segment(1)
    try:
        publisher = Publisher(segment)
        publisher.publish(ports, uplinks)
        tables = at(int(segment.engine["tables"]), 1, state.tables)[0]
        for mac in macs:
            for vlan in (0, 1, 2, 3, 4094):
                for uplink in (-1, 0, 1, 2):
                    got = lookup(tables, int64(mac), int64(vlan), int64(uplink))
                    assert int(got) == model.get((mac, vlan, uplink), state.NONE)
        groups = {(vlan, uplink) for _, vlan, uplink in keys}
        found = [int(lookup(tables, int64(MAC_BROADCAST), int64(vlan), int64(up))) for vlan, up in groups]
        assert sorted(found) == list(range(len(groups)))
    finally:
        segment.close()


# --- near misses -------------------------------------------------------------------------------------------------


def test_the_right_address_in_the_wrong_vlan_is_counted_at_its_port_with_the_vlan_seen():
    """From the wire and from a neighbour; a frame that arrives is no miss."""
    with Rig() as rig:
        wire = rig.uplink(
            frames=[frame(A, D, vlan=5), frame(A, D, vlan=7), frame(A, D), frame(A, D, vlan=9)], laps=1
        )
        vm = rig.vm(A, uplink=wire, vlan=9)
        vm.post(4, 128)
        lonely, other = rig.vm(B), rig.vm(C, vlan=3)
        rig.publish()
        lonely.send(frame(C, B))
        rig.step()
        rig.step()
        missed = rig.workers[0].misses
        assert [int(missed[vm.number][name]) for name in ("wrong_vlan", "seen_vlan")] == [3, 0]
        assert [int(missed[other.number][name]) for name in ("wrong_vlan", "seen_vlan")] == [1, 0]
        assert not missed[lonely.number]["wrong_vlan"]
        assert len(vm.received()) == 1
        assert not rig.workers[0].strangers["count"].any()


def test_addresses_that_nobody_has_are_kept_by_how_often_they_are_seen():
    """Few rows: a new one takes the place of the rarest, so whoever is frequent stays."""
    rare = [mac_text(0x0200_0000_0000 + (number << 8)) for number in range(40)]
    frames = [frame(to, D) for number in range(40) for to in (NOBODY, rare[number], NOBODY)]
    with Rig() as rig:
        rig.uplink(frames=frames, laps=1)
        rig.publish()
        for _ in range(3):
            rig.step()
        rows = rig.workers[0].strangers
        counts = {int(row["mac"]): int(row["count"]) for row in rows}
        assert len(counts) == state.STRANGERS
        assert counts[mac_number(NOBODY)] == 80
        assert sum(counts.values()) == 120


def test_a_station_that_sends_from_the_address_of_a_vm_is_counted():
    """Broadcast and multicast only: those every station sends, and they cost no other frame a search."""
    with Rig() as rig:
        wire = rig.uplink(
            frames=[frame(BROADCAST, A), frame(MULTICAST, A), frame(BROADCAST, D), frame(B, A)], laps=1
        )
        vm, other = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire)
        for one in (vm, other):
            one.post(8, 128)
        rig.publish()
        vm.send(frame(BROADCAST, A))
        rig.step()
        rig.step()
        assert [int(rig.workers[0].misses[one.number]["duplicate"]) for one in (vm, other)] == [2, 0]
