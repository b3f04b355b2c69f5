# SPDX-License-Identifier: Apache-2.0
"""Plans: what leads from one session to another, and in which order."""

from __future__ import annotations

from dataclasses import replace

from vmq.abi.vhost_user import Request
from vmq.vhost.actions import (
    Apply,
    CheckEventFd,
    CloseFd,
    MapLog,
    MapRegion,
    SignalCall,
    UnmapLog,
    UnmapRegion,
    plan,
)
from vmq.vhost.message import Log, Message, Region
from vmq.vhost.session import FEATURES, Addresses, Offer, Ring, RingState, Session

OLD = Region(gpa=0, size=0x10000, uaddr=0x7000_0000, offset=0, fd=10)
NEW = replace(OLD, fd=11)
STARTED = Ring(
    RingState.STARTED, size=256, addresses=Addresses(OLD.uaddr, OLD.uaddr + 0x1000, OLD.uaddr + 0x2000, 0, 0),
    kick=20, call=21, err=22,
)  # fmt: skip
RUNNING = replace(
    Session.new(Offer()), features=FEATURES, regions=(OLD,), rings=(STARTED, Ring()), log=Log(4096, 0, 30)
)
IDLE = replace(RUNNING, rings=(replace(STARTED, state=RingState.KICKED), Ring()))


def with_ring(session: Session, **changes) -> Session:
    return replace(session, rings=(replace(session.rings[0], **changes), session.rings[1]))


def test_no_change_needs_no_action():
    """Plan, then apply: the plan for no change is empty."""
    assert plan(RUNNING, RUNNING) == ()
    assert plan(IDLE, IDLE) == ()


def test_memory_is_mapped_before_and_unmapped_after_the_data_plane_follows():
    """Hazard 1, hazard 2, H20.12: nobody looks at memory that has gone; the driver is woken afterwards."""
    message = Message(Request.SET_MEM_TABLE, fds=(11,))
    assert plan(RUNNING, replace(RUNNING, regions=(NEW,)), message) == (
        MapRegion(NEW), Apply(), UnmapRegion(OLD), CloseFd(10), SignalCall(0),
    )  # fmt: skip


def test_new_call_descriptor_is_checked_used_and_signalled_once():
    """Hazard 2: an interrupt may have been lost on the old one; it is closed when nobody writes there."""
    message = Message(Request.SET_VRING_CALL, fds=(40,))
    assert plan(RUNNING, with_ring(RUNNING, call=40), message) == (
        CheckEventFd(40), Apply(), CloseFd(21), SignalCall(0),
    )  # fmt: skip


def test_a_ring_without_call_descriptor_is_not_signalled():
    """vhost-user SET_VRING_CALL, bit 8: the driver polls."""
    assert plan(RUNNING, with_ring(RUNNING, call=-1)) == (Apply(), CloseFd(21))


def test_what_no_kernel_has_needs_no_data_plane():
    """A ring that is not started is protocol code's own."""
    assert plan(IDLE, with_ring(IDLE, call=-1)) == (CloseFd(21),)
    assert plan(IDLE, replace(IDLE, mtu=1400)) == ()


def test_what_the_data_plane_reads_is_applied():
    """Features, MTU, log and enabled bits change while rings run (hazards 8 and 11)."""
    for after in (
        replace(RUNNING, mtu=1400),
        replace(RUNNING, features=FEATURES | 1 << 26),
        with_ring(RUNNING, enabled=True),
    ):
        assert Apply() in plan(RUNNING, after)
    assert plan(RUNNING, replace(RUNNING, status=15, protocol_features=9)) == ()


def test_start_is_signalled_and_stop_is_not():
    """Hazard 2: after a start one call in any case."""
    assert plan(IDLE, RUNNING) == (Apply(), SignalCall(0))
    assert plan(RUNNING, IDLE) == (Apply(),)


def test_log_is_swapped_without_a_gap():
    """Hazard 9: pending marks end in the old log before it goes."""
    bigger = Log(8192, 0, 31)
    assert plan(RUNNING, replace(RUNNING, log=bigger), Message(Request.SET_LOG_BASE, fds=(31,))) == (
        MapLog(bigger), Apply(), UnmapLog(Log(4096, 0, 30)), CloseFd(30),
    )  # fmt: skip


def test_descriptors_that_nobody_took_are_closed():
    """H19.5, O7."""
    assert plan(RUNNING, RUNNING, Message(Request.GET_FEATURES, fds=(50, 51))) == (CloseFd(50), CloseFd(51))


def test_end_of_a_connection_lets_go_of_everything_once():
    """H24.6: rings first, then memory, log and descriptors."""
    actions = plan(RUNNING, Session.new(Offer()))
    assert actions[0] == Apply()
    assert set(actions[1:]) == {
        UnmapRegion(OLD), UnmapLog(Log(4096, 0, 30)), *(CloseFd(fd) for fd in (10, 20, 21, 22, 30)),
    }  # fmt: skip
    assert len(actions) == len(set(actions))
