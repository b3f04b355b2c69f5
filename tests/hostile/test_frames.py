# SPDX-License-Identifier: Apache-2.0
"""Frames that no station should send (H15): lengths, tags, sources, floods of them."""

from __future__ import annotations

from functools import partial

import pytest

from tests.hostile.arena import MACS, frame, until
from tests.hostile.attack import Attack
from vmq.guest.rings import Shape
from vmq.guest.traffic import Traffic

SHAPES = {"direct": Shape(2048), "in_pieces": Shape(2048, 3), "indirect": Shape(2048, 4, indirect=True)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
BROADCAST = "ff:ff:ff:ff:ff:ff"


def tagged(data: bytes, tci: int, tpid: int = 0x8100) -> bytes:
    """The frame with an outer tag."""
    return data[:12] + tpid.to_bytes(2, "big") + tci.to_bytes(2, "big") + data[12:]


def refused(attack: Attack, data: bytes, drop: str, count: int = 1) -> None:
    """Class *drop*: counted once each, the port runs on."""
    attack.guest().send([data] * count)
    attack.counts(**{attack.name: {"frames_from_guest": count, drop: count}})
    assert attack.guest().sent()
    assert attack.row["state"] == "running"


def passes(attack: Attack, data: bytes, as_seen: bytes | None = None) -> None:
    """Class *accept*: byte for byte."""
    attack.guest().send([data])
    assert attack.peer.receive(1) == [data if as_seen is None else as_seen]
    ours = {"frames_from_guest": 1, "forwarded": 1, "copies": 1}
    attack.counts(**{attack.name: ours, attack.partner: {"offered_to_guest": 1, "frames_to_guest": 1}})


# --- lengths --------------------------------------------------------------------------------------------------


@each_shape
@pytest.mark.parametrize("size", range(14))
def test_h15_1_frames_shorter_than_an_ethernet_header_are_dropped(attack: Attack, shape: Shape, size: int):
    attack.guest(transmit_shape=shape)
    refused(attack, frame("peer", "attacker", size=size), "from_guest_short")


@each_shape
@pytest.mark.parametrize("size", [14, 15, 59, 60, 64, 65, 1514])
def test_h15_2_frames_of_a_legal_length_pass(attack: Attack, shape: Shape, size: int):
    attack.guest(transmit_shape=shape)
    passes(attack, frame("peer", "attacker", size=size))


@each_shape
@pytest.mark.parametrize("size", [1515, 1518, 1519, 1522, 9018])
def test_h15_3_and_h15_4_frames_beyond_the_mtu_are_dropped(attack: Attack, shape: Shape, size: int):
    """1500 and an Ethernet header; only a tag may come on top."""
    attack.guest(transmit_shape=Shape(9216, shape.parts, shape.indirect))
    refused(attack, frame("peer", "attacker", size=size), "from_guest_too_long")


@pytest.mark.parametrize(("size", "fits"), [(1518, True), (1519, False)])
def test_h15_3_a_tag_does_not_count_against_the_mtu(attack: Attack, size: int, fits: bool):
    attack.guest()
    data = tagged(frame("peer", "attacker", size=size - 4), 3 << 13)
    if fits:
        passes(attack, data)
    else:
        refused(attack, data, "from_guest_too_long")


@pytest.mark.parametrize(("size", "fits"), [(1518, True), (1522, True), (9018, True), (9019, False)])
def test_h15_3_and_h15_4_a_larger_mtu_lets_them_pass(attack_on, size: int, fits: bool):
    """9004 and an Ethernet header."""
    attack = attack_on("wide", "widepeer")
    attack.guest(transmit_shape=Shape(9216))
    data = frame("widepeer", "wide", size=size)
    if fits:
        passes(attack, data)
    else:
        refused(attack, data, "from_guest_too_long")


def test_h15_4_a_frame_beyond_the_receivers_mtu_is_dropped_there(attack: Attack):
    """NET_SET_MTU of the receiving guest: the sender is not to blame."""
    attack.guest("peer", mtu=1000)
    attack.guest().send([frame("peer", "attacker", size=1014), frame("peer", "attacker", size=1015)])
    attack.counts(
        attacker={"frames_from_guest": 2, "forwarded": 2, "copies": 2},
        peer={"offered_to_guest": 2, "frames_to_guest": 1, "to_guest_too_long": 1},
    )
    assert attack.peer.receive(1) == [frame("peer", "attacker", size=1014)]


@pytest.mark.parametrize("size", [65535, 65536, 70000])
def test_h15_5_frames_of_64_kib_are_dropped(attack: Attack, size: int):
    attack.guest(size=16, transmit_shape=Shape(70016), room=1 << 20)
    refused(attack, frame("peer", "attacker", size=size), "from_guest_too_long")


@pytest.mark.parametrize(("size", "fits"), [(65535, True), (65549, True), (65550, False), (70000, False)])
def test_h15_5_not_even_the_largest_mtu_lets_more_than_65549_bytes_pass(attack_on, size: int, fits: bool):
    """65535 and an Ethernet header; the receiver has mergeable buffers of 2048."""
    attack = attack_on("giant", "giantpeer")
    attack.guest(size=16, transmit_shape=Shape(70016), room=1 << 20)
    data = frame("giantpeer", "giant", size=size)
    if fits:
        passes(attack, data)
    else:
        refused(attack, data, "from_guest_too_long")


# --- tags -----------------------------------------------------------------------------------------------------


@each_shape
@pytest.mark.parametrize("size", [14, 15, 16, 17])
def test_h15_6_a_frame_that_ends_inside_its_tag_is_dropped(attack: Attack, shape: Shape, size: int):
    attack.guest(transmit_shape=shape)
    refused(attack, tagged(frame("peer", "attacker"), 0)[:size], "vlan_truncated")


@each_shape
@pytest.mark.parametrize("tci", [1, 7, 4094, 4095, 5 << 13 | 7])
def test_h15_7_a_tag_of_its_own_takes_a_guest_nowhere(attack: Attack, shape: Shape, tci: int):
    """Not into the neighbours' VLAN 7 either; inside the tag there may be another."""
    attack.guest(transmit_shape=shape)
    data = frame("left", "attacker")
    attack.guest().send([tagged(data, tci), tagged(tagged(data, 7), tci)])
    attack.counts(attacker={"frames_from_guest": 2, "from_guest_vlan": 2})


def test_h15_7_a_service_tag_takes_a_guest_nowhere(attack: Attack):
    """ieee 802.1ad: a provider's switch would believe it."""
    refused(attack, tagged(frame("peer", "attacker"), 7, 0x88A8), "from_guest_vlan")


@pytest.mark.parametrize("inner", [7, 8])
def test_h15_7_behind_a_priority_tag_a_second_tag_takes_a_guest_nowhere(attack_on, inner: int):
    """The next switch takes off the priority tag and believes the one behind it."""
    attack = attack_on("attacker", "peer")
    refused(attack, tagged(tagged(frame("peer", "attacker"), inner), 0), "from_guest_vlan")


@each_shape
def test_h15_8_a_priority_tag_is_no_tag_to_a_filter(attack: Attack, shape: Shape):
    attack.guest(transmit_shape=shape)
    passes(attack, tagged(frame("peer", "attacker"), 5 << 13))


def test_h15_8_in_a_vlan_the_priority_tag_gives_way_to_the_vlan(attack_on):
    """The guest of a VLAN sees its own frames untagged."""
    attack = attack_on("wide", "widepeer")
    data = frame("widepeer", "wide")
    passes(attack, tagged(data, 5 << 13), as_seen=data)


# --- sources --------------------------------------------------------------------------------------------------


@each_shape
@pytest.mark.parametrize(
    "source", [BROADCAST, "01:00:5e:00:00:01", "33:33:00:00:00:01", "00:00:00:00:00:00", "53:54:00:00:00:0a"]
)
def test_h15_9_sources_that_are_no_station_are_dropped(attack: Attack, shape: Shape, source: str):
    """A group address, or none; the last is the attacker's own with the group bit."""
    attack.guest(transmit_shape=shape)
    refused(attack, frame("peer", source), "from_guest_source", count=3)


@each_shape
@pytest.mark.parametrize("source", ["peer", "third", "02:00:00:00:00:01"], ids=["peer", "third", "gateway"])
def test_h15_10_and_h15_11_a_source_that_is_somebody_elses_is_dropped(
    attack: Attack, shape: Shape, source: str
):
    """Spoofed: unicast and broadcast. The filters stay as they are; the port tells which address, and the remedy."""
    filters = attack.arena.engine.show("filters")
    attack.guest(transmit_shape=shape)
    attack.guest().send([frame(to, source) for to in ("peer", "third", BROADCAST)])
    attack.counts(attacker={"frames_from_guest": 3, "from_guest_spoofed": 3})
    assert attack.row["spoofed_mac"] == MACS.get(source, source)
    assert "spoof_check" in attack.row["last_error"]["remedy"]
    assert attack.arena.engine.show("filters") == filters


def has_learned(attack: Attack, mac: str) -> bool:
    return mac in attack.row["learned"]


def test_h15_12_a_flood_of_addresses_fills_a_bounded_table(attack_on):
    """Beyond `learn_max` each frame with a new source is dropped and counted; what was learned stays."""
    attack = attack_on("learner", "peer")
    guest = attack.guest()
    learned = [f"0e:fc:00:00:00:{number:02x}" for number in range(1, 5)]
    for source in learned:
        guest.send([frame("peer", source)])
        until(partial(has_learned, attack, source))
    before = attack.moved("learner")
    flood = [frame("peer", f"0e:fc:00:00:{n >> 8:02x}:{n & 255:02x}") for n in range(1000, 1300)]
    guest.send(flood)
    after = {**before, "frames_from_guest": 4 + len(flood), "from_guest_spoofed": len(flood)}
    until(lambda: attack.moved("learner") == after, f"{after}")
    assert attack.row["learned"] == learned
    attack.peer.send([frame(mac, "peer") for mac in learned])
    assert guest.receive(4) == [frame(mac, "peer") for mac in learned]


def test_h15_13_a_storm_beyond_its_limit_is_dropped(attack_on):
    """With `storm_limit`; without, the default, the next test holds."""
    attack = attack_on("stormer", "stormpeer")
    with Traffic(attack.guest(), transmit=[frame(BROADCAST, "stormer")], poll=True, limit=5000) as storm:
        until(lambda: storm.counters()["returned"] == 5000, "the end of the storm")
        attack.arena_neighbours.advance()
    until(lambda: attack.moved("stormer")["frames_from_guest"] >= 5000)
    moved = attack.moved("stormer")
    assert moved["from_guest_storm"] > 1000
    assert moved["forwarded"] + moved["from_guest_storm"] == moved["frames_from_guest"]
    attack.guest().send([frame("stormpeer", "stormer", 7)])
    until(lambda: attack.moved("stormer")["forwarded"] == moved["forwarded"] + 1)  # unicast is no storm


def test_h15_13_a_broadcast_storm_costs_only_those_who_are_to_hear_it(attack: Attack):
    """As fast as it can: every copy is delivered or counted, and the neighbours on the processor lose nothing."""
    attack.guest("third", post=8)
    with Traffic(attack.guest(), transmit=[frame(BROADCAST, "attacker")], poll=True, limit=20000) as storm:
        until(lambda: storm.counters()["returned"] == 20000, "the end of the storm")
        attack.arena_neighbours.advance()
    ours, peers, third = (attack.arena.books(name) for name in ("attacker", "peer", "third"))
    assert attack.moved("attacker")["forwarded"] == 20000
    for books in (peers, third):
        assert books["offered_to_guest"] >= 20000
    assert ours["frames_from_guest"] >= 20000
