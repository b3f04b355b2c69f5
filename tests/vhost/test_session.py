# SPDX-License-Identifier: Apache-2.0
"""The record of a connection, its table of ring states, and where rings are."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from vmq.abi import virtio
from vmq.abi.vhost_user import Request
from vmq.errors import ProtocolError
from vmq.vhost.message import Region
from vmq.vhost.session import (
    FEATURES,
    MEM_SLOTS,
    NEXT,
    PROTOCOL_FEATURES,
    Addresses,
    Offer,
    Ring,
    RingState,
    Session,
    Settled,
    lacking,
    mask,
    obstacle,
    remedy,
    ring_placement,
    settle,
    stopped_at,
)

LOW = Region(gpa=0, size=0x10000, uaddr=0x7000_0000, offset=0, fd=10)
HIGH = Region(gpa=0x100000, size=0x10000, uaddr=0x7001_0000, offset=0x10000, fd=11)  # user addresses go on
AT = Addresses(desc=LOW.uaddr, avail=LOW.uaddr + 0x1000, used=LOW.uaddr + 0x2000, flags=0, log=0)
READY = Ring(state=RingState.KICKED, size=256, addresses=AT, kick=20)


def session(ring: Ring = READY, regions=(LOW, HIGH), **changes) -> Session:
    fresh = Session.new(Offer())
    return replace(fresh, features=FEATURES, regions=regions, rings=(ring, Ring()), **changes)


def test_new_session_has_everything_off():
    """vhost-user.md §6, on connect: status 0, no memory, all rings stopped and disabled."""
    fresh = Session.new(Offer(max_pairs=16))
    assert fresh.rings == (Ring(RingState.STOPPED, enabled=False),) * 32
    assert (fresh.status, fresh.regions, fresh.features, fresh.fds) == (0, (), None, frozenset())


def test_a_session_is_plain_data():
    """It can be handed over and shown: nothing in it but numbers, text and enumerations."""
    record = asdict(session())
    assert record["rings"][0]["addresses"] == AT
    assert record["regions"][0]["fd"] == 10


def test_offer_is_what_the_data_plane_does():
    """vhost-user.md §2, key point 2: no RSS, hash, ring reset, packed rings; no log."""
    assert mask(3, 15, 21, 22, 27, 28, 29, 30, 32) == FEATURES
    assert mask(0, 2, 3, 4, 13, 15, 16) == PROTOCOL_FEATURES
    assert (MEM_SLOTS, Offer().mem_slots, Offer().ring_size_max) == (512, 512, 32768)


# --- states ---------------------------------------------------------------------------------------------------


def test_every_state_can_be_left_by_every_stopping_message():
    """vhost-user "Ring states": GET_VRING_BASE stops; so do a new owner and a reset."""
    for state in RingState:
        for request in (Request.GET_VRING_BASE, Request.RESET_DEVICE, Request.SET_OWNER):
            assert NEXT[state, request] is RingState.STOPPED


def test_nothing_a_kernel_counts_on_changes_in_a_started_ring():
    """H21.7: size and base cannot be set while a kernel owns the indices."""
    assert (RingState.STARTED, Request.SET_VRING_NUM) not in NEXT
    assert (RingState.STARTED, Request.SET_VRING_BASE) not in NEXT


def test_only_a_kicked_and_complete_ring_starts():
    """H24.1."""
    starts = {key for key, state in NEXT.items() if state is RingState.STARTED and key[0] is not state}
    assert starts == {(RingState.KICKED, Settled.COMPLETE)}


def test_settling_starts_what_is_complete_and_nothing_else():
    """H24.1: each part in turn is the missing one."""
    assert settle(session()).started == (0,)
    for lacks in (
        session(replace(READY, size=0)),
        session(replace(READY, addresses=None)),
        session(regions=()),
        session(refused="no"),
        replace(session(), features=None),
        session(replace(READY, state=RingState.STOPPED)),
    ):
        assert settle(lacks).started == ()
        assert settle(lacks) == lacks


def test_a_started_ring_that_loses_a_part_waits_and_comes_back():
    """Hazard 1: memory may go and come under a ring."""
    running = settle(session())
    gone = settle(replace(running, regions=(HIGH,)))
    assert (gone.started, gone.rings[0].state) == ((), RingState.KICKED)
    assert settle(replace(gone, regions=(HIGH, LOW))).started == (0,)


def test_settling_twice_changes_nothing():
    running = settle(session())
    assert settle(running) == running


def test_enabled_is_what_was_said_or_always_without_protocol_features():
    """vhost-user "Ring states"; H16.3. The mask is asked, not the number 30."""
    assert not session().enabled(0)
    assert session(replace(READY, enabled=True)).enabled(0)
    assert replace(session(), features=mask(virtio.VIRTIO_F_VERSION_1)).enabled(0)
    assert replace(session(), features=30 | mask(virtio.VIRTIO_F_VERSION_1)).enabled(0)
    assert not replace(session(), features=None).enabled(0)


def test_places_where_the_data_plane_stopped_are_kept():
    """vhost-user GET_VRING_BASE: the answer is what the kernel has reached."""
    assert [ring.base for ring in stopped_at(session(), {0: 77}).rings] == [77, 0]


def test_every_descriptor_is_counted():
    """O7: what the session owns is what is closed at the end."""
    ring = replace(READY, call=21, err=22)
    assert session(ring).fds == {10, 11, 20, 21, 22}


# --- words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("incomplete", "word"),
    [
        (session(replace(READY, state=RingState.STOPPED)), "has not started"),
        (session(replace(READY, size=0)), "SET_VRING_NUM"),
        (session(replace(READY, addresses=None)), "SET_VRING_ADDR"),
        (session(regions=()), "not shared"),
        (replace(session(), features=None), "SET_FEATURES"),
        (session(refused="legacy driver"), "legacy driver"),
        (session(regions=(HIGH,)), "not within one memory region"),
    ],
)
def test_a_ring_that_does_not_run_says_why(incomplete, word):
    """The last error of a VM port, in words."""
    assert word in obstacle(incomplete, 0)


def test_the_remedy_for_memory_that_does_not_come_is_to_share_it():
    """QEMU sends no region of memory that is not shared, and starts the rings all the same."""
    assert "share=on" in remedy(session(regions=()), 0)
    assert remedy(session(), 0) == ""
    assert remedy(session(regions=(), refused="legacy driver"), 0) == ""
    assert remedy(session(replace(READY, state=RingState.STOPPED), regions=()), 0) == ""


def test_a_ring_that_runs_has_no_obstacle():
    assert obstacle(settle(session()), 0) == ""
    assert lacking(settle(session()), 0) == ""


# --- placement ------------------------------------------------------------------------------------------------


def test_ring_areas_are_found_by_user_address():
    """Hazard 13: rings are user addresses; each area may be in a region of its own."""
    split = replace(READY, addresses=AT._replace(used=HIGH.uaddr + 0x40))
    placed = ring_placement(session(split), 0)
    assert placed.desc == (LOW, 0)
    assert placed.avail == (LOW, 0x1000)
    assert placed.used == (HIGH, 0x40)


def bytes_of(size: int) -> tuple[int, int, int]:
    return 16 * size, 6 + 2 * size, 6 + 8 * size


@pytest.mark.parametrize("part", ["desc", "avail", "used"])
def test_ring_area_must_lie_within_one_region(part):
    """H21.9: exactly at the end is inside; one step further crosses into the next region, or leaves."""
    size = bytes_of(256)[("desc", "avail", "used").index(part)]
    last = LOW.uaddr + LOW.size - size
    step = 16
    fits = replace(READY, addresses=AT._replace(**{part: last - last % step}))
    crosses = replace(READY, addresses=AT._replace(**{part: last - last % step + step}))
    before = replace(READY, addresses=AT._replace(**{part: LOW.uaddr - step}))
    beyond = replace(READY, addresses=AT._replace(**{part: HIGH.uaddr + HIGH.size}))

    ring_placement(session(fits), 0)
    for wrong in (crosses, before, beyond):
        with pytest.raises(ProtocolError, match="not within one memory region"):
            ring_placement(session(wrong), 0)


@pytest.mark.parametrize("uaddr", [(1 << 64) - 16, 1 << 63, 0])
def test_ring_address_near_the_end_of_the_number_range_does_not_wrap(uaddr):
    """Hazard 14, N1: arithmetic that cannot wrap."""
    with pytest.raises(ProtocolError):
        ring_placement(session(replace(READY, addresses=AT._replace(desc=uaddr))), 0)


def test_overlapping_ring_areas_are_refused():
    """H21.10: no driver lays them so, and each would write into the other."""
    for wrong in (
        AT._replace(avail=AT.desc),
        AT._replace(used=AT.desc + 16),
        AT._replace(used=AT.avail + 512),
    ):
        with pytest.raises(ProtocolError, match="overlap"):
            ring_placement(session(replace(READY, addresses=wrong)), 0)
    touching = AT._replace(avail=AT.desc + 4096, used=AT.desc + 4096 + 520)
    assert ring_placement(session(replace(READY, addresses=touching)), 0).used.offset == 4096 + 520


def test_ring_without_addresses_has_no_place():
    with pytest.raises(ProtocolError):
        ring_placement(Session.new(Offer()), 0)
