# SPDX-License-Identifier: Apache-2.0
"""The protocol against front-ends that do what real ones do. Hostile ones: tests/hostile/test_messages.py.

"Hazard n" is one of the traps that real back-ends and real QEMUs have fallen into; Hn.m a hostile input.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.vhost.executor import BASE, GUEST, HIGH, LOG_OFFER, Port, R, refused
from vmq.abi import virtio
from vmq.abi.vhost_user import Request
from vmq.vhost import protocol
from vmq.vhost.actions import (
    Apply,
    CheckEventFd,
    CloseFd,
    MapLog,
    MapRegion,
    Reply,
    ReplyRingBase,
    SignalCall,
    UnmapLog,
    UnmapRegion,
)
from vmq.vhost.session import FEATURES, PROTOCOL_FEATURES, RingState, Session, mask

# --- the traces of real front-ends ----------------------------------------------------------------------------


def qemu_start(port: Port, memory: bool = True, bases: tuple[int, ...] = (0, 0, 0, 0)) -> None:
    """QEMU 7.2 with two queue pairs, CONFIGURE_MEM_SLOTS: everything once per pair."""
    port.num(R.NET_SET_MTU, 1400, ask=True)
    assert port.value == 0
    for index in (0, 1):
        port.state(R.SET_VRING_ENABLE, index, 1)
    for pair in (0, 1):
        port.num(R.SET_FEATURES, FEATURES)
        port.send(R.GET_STATUS)
        if not pair and not port.value & 8:
            port.num(R.SET_STATUS, 8)
        for region in (GUEST, HIGH) if memory else ():
            port.add(region, ask=True)
            assert port.value == 0
        for index in (2 * pair, 2 * pair + 1):
            port.ring(index, bases[index])
            port.reached[index] = bases[index]
    port.num(R.SET_STATUS, 15)
    assert port.error is None


def qemu_stop(port: Port) -> list[int]:
    """Status 0 comes before the last pair has stopped."""
    bases = []
    for index in (0, 1, None, 2, 3):
        if index is None:
            port.num(R.SET_STATUS, 0)
        else:
            port.state(R.GET_VRING_BASE, index, 0)
            bases.append(port.value >> 32)
    return bases


def test_qemu_starts_stops_continues_and_reconnects():
    """Hazards 4, 5, 6, 7, 12: the measured trace of QEMU 7.2, message by message."""
    port = Port()
    port.hello()
    for index in range(4):
        port.state(R.SET_VRING_ENABLE, index, int(index < 2))
    qemu_start(port)
    assert port.started() == [0, 1, 2, 3]
    assert [port.session.enabled(i) for i in range(4)] == [True, True, False, False]
    assert len(port.session.regions) == 2

    port.reached = {0: 9, 1: 5, 2: 0, 3: 7}
    assert qemu_stop(port) == [9, 5, 0, 7]
    assert port.started() == []

    qemu_start(port, memory=False, bases=(9, 5, 0, 7))
    assert port.started() == [0, 1, 2, 3]
    port.leave()

    again = Port()
    again.hello()
    qemu_start(again, bases=(0, 6, 0, 1))
    assert [ring.base for ring in again.session.rings] == [0, 6, 0, 1]
    assert [again.session.enabled(i) for i in range(4)] == [True, True, False, False]


def test_virtio_user_starts_and_renegotiates_on_one_connection():
    """dpdk-testpmd: RX rings first, few protocol features, other features later with the same memory."""
    port = Port()
    port.send(R.SET_OWNER)
    port.num(R.SET_PROTOCOL_FEATURES, mask(0, 3, 16))
    for index in (0, 2, 1, 3):
        port.fd(R.SET_VRING_CALL, index)
    for features in (mask(32, 30, 15, 22), mask(32, 30)):
        port.num(R.SET_FEATURES, features)
        port.num(R.SET_STATUS, 11)
        port.table(GUEST)
        for index in (0, 2, 1, 3):
            port.state(R.SET_VRING_NUM, index, 256).state(R.SET_VRING_BASE, index, 0)
            port.addr(index, BASE + index * 0x10000).fd(R.SET_VRING_KICK, index)
            port.state(R.SET_VRING_ENABLE, index, 1)
            assert port.error is None
        assert port.started() == [0, 1, 2, 3]
        for index in range(4):
            port.state(R.SET_VRING_ENABLE, index, 0).state(R.GET_VRING_BASE, index, 0)
    port.leave()


# --- hazards --------------------------------------------------------------------------------------------------


def test_hazard_1_memory_may_change_under_running_rings():
    """Map, let the data plane follow, then unmap; rings keep their user addresses and are placed anew (H20.12)."""
    port = Port().running()
    port.table((0, 0x200000, BASE, 0x4000), ask=True)

    kinds = [type(action) for action in port.actions]
    assert kinds == [MapRegion, Apply, UnmapRegion, CloseFd, SignalCall, SignalCall, Reply]
    assert port.value == 0
    assert port.started() == [0, 1]


def test_hazard_1_a_table_without_the_rings_stops_them_and_their_place_is_kept():
    """A ring whose memory has gone waits; it goes on where it was when the memory is back."""
    port = Port().running()
    port.reached[0] = 33
    port.table(HIGH)
    assert (port.error, port.session.started) == (None, ())
    port.table(GUEST)
    assert port.started() == [0, 1]
    assert port.session.rings[0].base == 33


def test_hazard_2_the_driver_is_called_once_after_every_change():
    """Start, new call descriptor, new kick descriptor, new memory: one spurious call each."""
    port = Port().running()
    for change in (
        lambda: port.fd(R.SET_VRING_CALL, 0),
        lambda: port.fd(R.SET_VRING_KICK, 0),
        lambda: port.state(R.SET_VRING_ENABLE, 0, 0),
    ):
        change()
        assert port.actions.count(SignalCall(0)) == 1
        assert SignalCall(1) not in port.actions


def test_hazard_3_nothing_is_said_about_the_used_index():
    """It is read from guest memory at the start; SET_VRING_BASE gives the available index only."""
    port = Port().running(base=7)
    assert port.session.rings[0].base == 7


def test_hazard_4_rings_restart_where_the_front_end_says():
    """After a crash QEMU restores the base from the used index; a new connection knows nothing else."""
    port = Port().running(base=65535)
    port.leave()
    again = Port().running(base=6)
    assert [ring.base for ring in again.session.rings[:2]] == [6, 6]


def test_hazard_5_a_region_added_again_is_the_same_region():
    """H20.7, H20.10: 1000 times; every new descriptor is closed, nothing grows."""
    port = Port().hello().add(GUEST)
    before = port.session
    for _ in range(1000):
        port.add(GUEST, ask=True)
        assert port.value == 0
        assert port.idle
    assert port.session is before


def test_hazard_5_removing_an_unknown_region_is_no_fault():
    """H20.11: accepted, and visible as without effect."""
    port = Port().hello().add(GUEST)
    port.send(R.REM_MEM_REG, struct.pack("=QQQQQ", 0, *HIGH), ask=True)
    assert (port.value, port.idle, len(port.session.regions)) == (0, True, 1)
    port.send(R.REM_MEM_REG, struct.pack("=QQQQQ", 0, 0, 0x100000, BASE, 0xDEAD), fds=1)
    assert not port.session.regions


def test_hazard_6_status_zero_touches_no_ring():
    """QEMU 7.2 sends it before GET_VRING_BASE of the last pair."""
    port = Port().running(base=5)
    port.reached = {0: 50, 1: 51}
    port.num(R.SET_STATUS, 15)
    port.num(R.SET_STATUS, 0)
    assert port.started() == [0, 1]
    assert Apply() not in port.actions
    port.state(R.GET_VRING_BASE, 1, 0)
    assert port.value == 1 | 51 << 32


def test_hazard_7_status_does_not_outlive_the_connection():
    """QEMU skips SET_STATUS when the bits seem to be there."""
    port = Port().running()
    port.num(R.SET_STATUS, 15)
    port.leave()
    assert port.session.status == 0
    assert Port().send(R.GET_STATUS).value == 0


def test_hazard_8_logging_without_a_log_is_no_fault():
    """H22.6: a device that starts while logging is on gets its log last."""
    port = Port(LOG_OFFER).hello(LOG_OFFER.features).table(GUEST)
    port.ring(0)
    assert port.session.acked(virtio.VHOST_F_LOG_ALL)
    assert (port.session.started, port.session.log) == ((0,), None)
    port.log(8192)
    assert port.value == 0
    assert port.session.log is not None
    assert Apply() in port.actions


def test_hazard_8_logging_starts_and_stops_while_rings_run():
    """H22.8: SET_FEATURES with LOG_ALL, then SET_VRING_ADDR with the log flag; no ring stops."""
    port = Port(LOG_OFFER).running()
    for _ in range(1000):
        port.num(R.SET_FEATURES, FEATURES | mask(26), ask=True)
        port.addr(0, BASE, flags=1, ask=True)
        assert port.session.rings[0].addresses is not None
        assert port.session.rings[0].addresses.flags == 1
        port.num(R.SET_FEATURES, FEATURES)
        port.addr(0, BASE)
        assert port.started() == [0, 1]


def test_hazard_9_a_new_log_replaces_the_old_one_after_the_data_plane_follows():
    """Also when the same size comes once per pair, as QEMU 7.2 does."""
    port = Port(LOG_OFFER).running()
    port.log(8192)
    port.log(8192)
    assert [type(action) for action in port.actions] == [MapLog, Apply, UnmapLog, CloseFd, Reply]
    assert port.value == 0


def test_hazard_10_the_ring_base_is_answered_after_the_data_plane_let_go():
    """QEMU saves guest memory right after the answer."""
    port = Port().running()
    port.reached[0] = 77
    kick = port.session.rings[0].kick
    port.state(R.GET_VRING_BASE, 0, 0)
    assert port.actions == [Apply(), CloseFd(kick), ReplyRingBase(0)]
    assert port.replies == [struct.pack("=IIIII", R.GET_VRING_BASE, 5, 8, 0, 77)]
    port.state(R.GET_VRING_BASE, 0, 0)
    assert port.value == 77 << 32


def test_hazard_11_an_enable_is_acknowledged_once_it_is_in_force():
    """Control and data take different ways; the front-end may kick right after the answer."""
    port = Port().running()
    for request in (
        lambda: port.state(R.SET_VRING_ENABLE, 0, 0, ask=True),
        lambda: port.fd(R.SET_VRING_KICK, 0, ask=True),
        lambda: port.fd(R.SET_VRING_CALL, 0, ask=True),
    ):
        request()
        assert Apply() in port.actions
        assert isinstance(port.actions[-1], Reply)


def test_hazard_12_memory_outlives_stop_and_start():
    """After `cont` QEMU sends no memory; it goes with the connection, or with a new owner."""
    port = Port().running()
    port.state(R.GET_VRING_BASE, 0, 0).state(R.GET_VRING_BASE, 1, 0)
    assert len(port.session.regions) == 1
    port.send(R.SET_OWNER)
    assert not port.session.regions


def test_hazard_13_rings_are_found_by_user_address_in_any_region():
    """Guest addresses of a region are of no use for that."""
    port = Port().hello().table(GUEST, HIGH)
    port.ring(0, at=HIGH[2])
    assert port.started() == [0]


@pytest.mark.parametrize("uaddr", [0, (1 << 64) - 16, BASE - 16, GUEST[1] + BASE])
def test_hazard_14_a_ring_outside_memory_is_refused_by_the_message_that_completes_it(uaddr):
    """H21.9: state is unchanged, the descriptor closed, the ring can still be put right."""
    port = Port().hello().table(GUEST)
    port.state(R.SET_VRING_NUM, 0, 256)
    payload = struct.pack("=IIQQQQ", 0, 0, uaddr, BASE, BASE + 0x4000, 0)
    port.send(R.SET_VRING_ADDR, payload)
    port.fd(R.SET_VRING_KICK, 0, ask=True)
    refused(port, "SET_VRING_KICK: ring 0: descriptor table")
    assert port.value == 1
    port.addr(0, BASE).fd(R.SET_VRING_KICK, 0)
    assert port.started() == [0]


def test_hazard_15_a_mapping_that_fails_leaves_everything_as_it_was():
    """H20.8: a file that is too short; the old memory still serves the rings."""
    port = Port().running()
    before = port.session
    port.broken = {MapRegion}
    port.table((0, 1 << 40, BASE, 0), (1 << 40, 0x1000, 0x5000_0000, 0), ask=True)
    refused(port, "SET_MEM_TABLE: it is none")
    assert port.value == 1
    assert port.session == before
    assert Apply() not in port.actions


# --- start, stop and reconnect as a checklist -----------------------------------------------------------------


def test_enable_survives_the_stop_of_its_ring():
    """vhost-user "Ring states": GET_VRING_BASE stops and does not disable."""
    port = Port().running()
    port.state(R.GET_VRING_BASE, 0, 0)
    assert port.session.rings[0].state is RingState.STOPPED
    assert port.session.enabled(0)


def test_disconnect_lets_go_of_everything_from_a_running_port():
    """Rings stop, descriptors are closed, memory goes, in this order."""
    Port(LOG_OFFER).running().log(4096).leave()


def test_features_are_told_the_same_at_any_time():
    """GET_FEATURES is also QEMU's barrier; a set that shrinks drops the connection."""
    port = Port().running()
    assert port.send(R.GET_FEATURES).value == FEATURES
    assert port.send(R.GET_PROTOCOL_FEATURES).value == PROTOCOL_FEATURES
    assert port.send(R.GET_MAX_MEM_SLOTS).value == 512
    assert port.send(R.GET_QUEUE_NUM).value == 2


def test_only_rings_set_up_since_the_last_stop_run_again():
    """H14.2: a guest that reboots into firmware uses fewer rings; stale addresses are forgotten."""
    port = Port().running()
    for index in (0, 1):
        port.state(R.GET_VRING_BASE, index, 0)
    port.ring(0)
    port.fd(R.SET_VRING_KICK, 1)
    assert port.started() == [0]


# --- features (H16) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [34, 57, 60, 26, 63])
def test_h16_1_features_that_were_not_offered_are_refused(bit):
    """H16.1, H11: packed rings, RSS, hash, LOG_ALL: none of them is offered."""
    port = Port().hello()
    port.num(R.SET_FEATURES, FEATURES | 1 << bit, ask=True)
    refused(port, f"[{bit}]")
    assert port.value == 1


def test_h16_2_a_legacy_driver_is_refused_in_words_and_a_modern_one_works_again():
    """H16.2: QEMU asks for no answer to SET_FEATURES, so the rings are held back; a modern driver clears it."""
    port = Port().hello(FEATURES & ~mask(32))
    refused(port, "legacy driver (virtio 0.95)")
    assert "disable-legacy=on" in port.session.refused
    port.table(GUEST).ring(0)
    assert (port.session.started, port.session.rings[0].state) == ((), RingState.KICKED)

    port.state(R.GET_VRING_BASE, 0, 0)
    port.num(R.SET_FEATURES, FEATURES)
    assert port.session.refused == ""
    port.ring(0)
    assert port.started() == [0]


def test_refused_features_stop_rings_that_run():
    """Driver and device would no longer mean the same by a ring."""
    port = Port().running()
    port.num(R.SET_FEATURES, mask(32, 30), ask=True)
    refused(port, "while rings are started")
    assert port.started() == []
    port.num(R.SET_FEATURES, FEATURES)
    assert port.started() == [0, 1]


def test_h16_3_without_protocol_features_rings_are_enabled_at_once():
    """H16.3: and SET_VRING_ENABLE is not needed."""
    port = Port().hello(FEATURES & ~mask(30)).table(GUEST)
    port.ring(0)
    assert port.started() == [0]
    assert port.session.enabled(0)


@pytest.mark.parametrize("bit", [1, 5, 8, 9, 12, 14, 19, 63])
def test_protocol_features_that_were_not_offered_are_refused(bit):
    """vhost-user "Protocol features": log, back-end requests, postcopy, config, inflight, in-band, state."""
    port = Port()
    port.num(R.SET_PROTOCOL_FEATURES, 1 << bit, ask=True)
    refused(port)
    assert (port.value, port.session.protocol_features) == (1, 0)


# --- order (H24) ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["features", "memory", "size", "addresses", "kick"])
def test_h24_1_a_ring_starts_with_its_last_part_whatever_that_is(last):
    """H24.1: KICK before the others included."""
    port = Port()
    port.num(R.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES)
    parts = {
        "kick": lambda: port.fd(R.SET_VRING_KICK, 0),
        "addresses": lambda: port.addr(0, BASE),
        "size": lambda: port.state(R.SET_VRING_NUM, 0, 256),
        "memory": lambda: port.add(GUEST),
        "features": lambda: port.num(R.SET_FEATURES, FEATURES),
    }
    for part in (*(part for part in parts if part != last), last):
        assert port.started() == []
        parts[part]()
        assert port.error is None
    assert port.started() == [0]
    assert Apply() in port.actions


def test_h24_1_memory_that_misses_the_ring_is_accepted_and_the_ring_waits():
    """It comes region by region: another one may have the ring."""
    port = Port().hello()
    port.state(R.SET_VRING_NUM, 0, 256).addr(0, BASE).fd(R.SET_VRING_KICK, 0)
    port.add(HIGH)
    assert (port.error, port.session.started) == (None, ())
    port.add(GUEST)
    assert port.started() == [0]


def test_h24_2_enable_before_kick_and_before_features_is_recorded():
    port = Port()
    port.state(R.SET_VRING_ENABLE, 0, 1, ask=True).state(R.SET_VRING_ENABLE, 0, 1, ask=True)
    assert port.value == 0
    assert port.session.enabled(0)


def test_h24_3_a_ring_that_never_was_answers_base_0():
    port = Port()
    port.state(R.GET_VRING_BASE, 3, 0)
    assert port.value == 3
    assert port.error is None


def test_h24_3_a_ring_that_never_ran_answers_the_base_it_was_given():
    port = Port().state(R.SET_VRING_BASE, 2, 9)
    assert port.state(R.GET_VRING_BASE, 2, 0).value == 2 | 9 << 32


def test_h24_4_a_new_owner_starts_afresh_and_keeps_the_protocol_features():
    """H24.4: QEMU sets protocol features before SET_OWNER."""
    port = Port().running()
    port.num(R.SET_STATUS, 15)
    port.send(R.SET_OWNER, ask=True)
    assert port.value == 0
    fresh = Session.new(port.session.offer)
    assert port.session == replace(fresh, owned=True, protocol_features=PROTOCOL_FEATURES)


def test_h24_5_reset_owner_disables_rings_and_keeps_all_else():
    """H24.5: QEMU 7.2 sends it for a device reset."""
    port = Port().running()
    regions, status = port.session.regions, port.session.status
    port.send(R.RESET_OWNER)
    assert not any(port.session.enabled(i) for i in range(4))
    assert (port.session.regions, port.session.status) == (regions, status)
    assert port.started() == [0, 1]
    assert Apply() in port.actions


def test_reset_device_stops_and_disables_and_keeps_connection_owner_and_memory():
    """vhost-user RESET_DEVICE: QEMU 10 sends it at every reset; call and err came once, at connect."""
    port = Port().running()
    call, err = port.session.rings[0].call, port.session.rings[0].err
    port.send(R.RESET_DEVICE, ask=True)
    ring = port.session.rings[0]
    assert (ring.state, ring.enabled, ring.kick, ring.base) == (RingState.STOPPED, False, -1, 0)
    assert (ring.call, ring.err) == (call, err)
    assert port.session.owned
    assert len(port.session.regions) == 1
    port.num(R.SET_FEATURES, FEATURES).ring(0)
    assert port.started() == [0]


def test_h24_6_a_front_end_may_leave_after_every_single_message():
    """H24.6: clean from every state; Port.leave asserts that nothing is left."""

    def steps(port: Port) -> list:
        return [
            lambda: port.num(R.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES),
            lambda: port.send(R.SET_OWNER),
            lambda: port.fd(R.SET_VRING_CALL, 0),
            lambda: port.fd(R.SET_VRING_ERR, 0),
            lambda: port.num(R.SET_FEATURES, FEATURES),
            lambda: port.add(GUEST),
            lambda: port.state(R.SET_VRING_NUM, 0, 256),
            lambda: port.addr(0, BASE),
            lambda: port.fd(R.SET_VRING_KICK, 0),
            lambda: port.state(R.SET_VRING_ENABLE, 0, 1),
            lambda: port.table(GUEST, HIGH),
            lambda: port.state(R.GET_VRING_BASE, 0, 0),
        ]

    for count in range(len(steps(Port())) + 1):
        port = Port()
        for step in steps(port)[:count]:
            step()
        port.leave()


def test_h24_7_a_new_connection_is_a_new_device():
    """H24.7: other features, other memory, other rings."""
    port = Port().running()
    port.leave()
    assert port.session == Session.new(port.session.offer)


def test_rules_are_data():
    """Documentation is drawn from them: each has a name, and each answer is one of three."""
    assert {Request(request).name for request in protocol.RULES} | {
        Request(request).name for request in protocol.REFUSED_WITH
    } <= {request.name for request in Request}
    assert not set(protocol.RULES) & set(protocol.REFUSED_WITH)


# --- any order ------------------------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Messages in any order against a model that knows, of each ring, only which parts it has.

    Port checks descriptors, mappings, order of actions and number of answers after each message.
    """

    rings = st.integers(0, 5)  # 4 and 5 do not exist
    places = st.sampled_from([BASE, HIGH[2], 0x1000])

    @initialize()
    def connect(self) -> None:
        self.port = Port(LOG_OFFER).num(R.SET_PROTOCOL_FEATURES, LOG_OFFER.protocol_features)
        self.kicked: set[int] = set()
        self.sizes: dict[int, int] = {}
        self.places_of: dict[int, int] = {}
        self.memory: set[tuple[int, int, int, int]] = set()
        self.modern = False

    def _runs(self, index: int) -> bool:
        inside = {region[2] for region in self.memory}
        parts = index in self.kicked and index in self.sizes and self.places_of.get(index) in inside
        return parts and self.modern

    @rule(index=rings, size=st.sampled_from([256, 64, 300]))
    def num(self, index: int, size: int) -> None:
        ran = self._runs(index)
        self.port.state(R.SET_VRING_NUM, index, size)
        if index < 4 and size != 300 and not ran and not self.port.error:
            self.sizes[index] = size

    @rule(index=rings, at=places)
    def addr(self, index: int, at: int) -> None:
        self.port.addr(index, at + (index << 16))
        if not self.port.error:
            self.places_of[index] = at

    @rule(index=rings)
    def kick(self, index: int) -> None:
        self.port.fd(R.SET_VRING_KICK, index)
        if not self.port.error:
            self.kicked.add(index)

    @rule(index=rings, request=st.sampled_from([R.SET_VRING_CALL, R.SET_VRING_ERR]))
    def descriptor(self, index: int, request: Request) -> None:
        self.port.fd(request, index)

    @rule(index=rings, on=st.integers(0, 1))
    def enable(self, index: int, on: int) -> None:
        self.port.state(R.SET_VRING_ENABLE, index, on, ask=True)

    @rule(index=rings)
    def stop(self, index: int) -> None:
        self.port.reached[index] = 7
        self.port.state(R.GET_VRING_BASE, index, 0)
        self.kicked.discard(index)
        self.places_of.pop(index, None)

    @rule(region=st.sampled_from([GUEST, HIGH]))
    def add(self, region: tuple[int, int, int, int]) -> None:
        self.port.add(region)
        self.memory.add(region)

    @rule(region=st.sampled_from([GUEST, HIGH]))
    def remove(self, region: tuple[int, int, int, int]) -> None:
        self.port.send(R.REM_MEM_REG, struct.pack("=QQQQQ", 0, *region))
        self.memory.discard(region)

    @rule(regions=st.sets(st.sampled_from([GUEST, HIGH]), min_size=1))
    def table(self, regions: set[tuple[int, int, int, int]]) -> None:
        self.port.table(*regions)
        self.memory = regions

    @rule(
        features=st.sampled_from([FEATURES, FEATURES | mask(26), FEATURES & ~mask(32), FEATURES | mask(34)])
    )
    def choose(self, features: int) -> None:
        self.port.num(R.SET_FEATURES, features)
        self.modern = features in (FEATURES, FEATURES | mask(26))

    @rule(size=st.sampled_from([0, 4096]))
    def log(self, size: int) -> None:
        self.port.log(size)

    @rule(request=st.sampled_from([R.RESET_DEVICE, R.SET_OWNER]))
    def reset(self, request: Request) -> None:
        self.port.send(request)
        self.kicked, self.sizes, self.places_of, self.modern = set(), {}, {}, False
        if request is R.SET_OWNER:
            self.memory = set()

    @rule(
        request=st.integers(0, 50), payload=st.binary(max_size=48), fds=st.integers(0, 8), ask=st.booleans()
    )
    def garbage(self, request: int, payload: bytes, fds: int, ask: bool) -> None:
        meaningful = (R.SET_OWNER, R.RESET_DEVICE, R.SET_FEATURES, R.SET_PROTOCOL_FEATURES)
        if request not in meaningful and len(payload) not in (8, 40):
            self.port.send(request, payload, fds, ask)

    @rule(kind=st.sampled_from([MapRegion, MapLog, CheckEventFd]))
    def host_refuses(self, kind: type) -> None:
        before, self.port.broken = self.port.session, {kind}
        self.port.table(GUEST, HIGH).log(4096).fd(R.SET_VRING_KICK, 0)
        self.port.broken = set()
        if kind is MapRegion and self.port.session.regions != before.regions:
            raise AssertionError("a table that cannot be mapped must not replace the old one")
        if kind is not MapRegion:
            self.memory = {GUEST, HIGH}
        if self.port.session.rings[0].kick != before.rings[0].kick:
            self.kicked.add(0)

    @invariant()
    def started_rings_are_those_with_all_parts(self) -> None:
        assert self.port.started() == [index for index in range(4) if self._runs(index)]

    def teardown(self) -> None:
        if hasattr(self, "port"):
            self.port.leave()


TestAnyOrder = AnyOrder.TestCase
