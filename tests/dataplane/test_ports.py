# SPDX-License-Identifier: Apache-2.0
"""Calls that never block, events that are never waited for, a fault that stops one VM port once."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.dataplane.rig import MERGEABLE, NOBODY, A, B, C, Rig, frame
from vmq.dataplane import reasons, state
from vmq.dataplane.ports import call, fault, report, signal
from vmq.jit import int64
from vmq.publisher import RingEntry

FULL = (1 << 64) - 2  # the most that an eventfd holds


@pytest.fixture
def rig() -> Any:
    with Rig() as rig:
        yield rig


def test_one_is_added_to_an_eventfd(rig):
    vm = rig.vm(A)
    assert int(signal(rig.worker(), int64(vm.to_guest.call_fd))) == 8
    assert vm.to_guest.called() == 1
    assert int(signal(rig.worker(), int64(state.NONE))) < 0


def test_a_full_eventfd_is_a_lost_call_and_never_waited_for(rig):
    """H12.5: the driver has a call pending anyway."""
    wire = rig.uplink(frames=[frame(A, B)])
    vm = rig.vm(A, uplink=wire, features=MERGEABLE)
    vm.post(1)
    os.eventfd_write(vm.to_guest.call_fd, FULL)
    rig.publish()
    rig.step()
    assert vm.received() == [frame(A, B)]
    assert int(vm.books()["call_lost"]) == 1
    assert int(rig.worker()["calling"]) == 0
    assert os.eventfd_read(vm.to_guest.call_fd) == FULL


def test_a_driver_without_an_eventfd_polls(rig):
    vm = rig.vm(A)
    rig.publish()
    vq = rig.rows(vm, to_guest=True)[3]
    vq["call_fd"] = state.NONE
    call(rig.worker(), vq, vm.books())
    assert int(vm.books()["call_lost"]) == 0
    assert vm.to_guest.called() == 0


def test_the_descriptor_being_called_is_shown_to_the_watchdog(rig):
    """`calling` is the descriptor + 1 while it is written, 0 otherwise: 0 is a descriptor too."""
    vm = rig.vm(A)
    rig.publish()
    vq = rig.rows(vm, to_guest=True)[3]
    rig.worker()["calling"] = 99
    call(rig.worker(), vq, vm.books())
    assert int(rig.worker()["calling"]) == 0
    assert vm.to_guest.called() == 1


def test_events_are_kept_in_order_and_control_is_woken(rig):
    for number in range(3):
        report(rig.worker(), int64(state.EVENT_LEARN), int64(number), int64(number << 40))
    assert os.eventfd_read(rig.segment.control_fd) == 3
    assert rig.events() == [(state.EVENT_LEARN, number, number << 40) for number in range(3)]
    assert rig.events() == []


def test_more_events_than_the_ring_holds_lose_the_oldest(rig):
    """A guest that floods control with new addresses loses events, never frames."""
    for number in range(state.EVENTS + 10):
        report(rig.worker(), int64(state.EVENT_SPOOFED), int64(0), int64(number))
    seen = [value for _, _, value in rig.events()]
    assert seen == list(range(seen[0], state.EVENTS + 10))
    assert len(seen) in (state.EVENTS - 1, state.EVENTS)  # one row may be in the writing


def test_the_first_fault_of_a_port_is_kept_and_told_once(rig):
    vm, other = rig.vm(A), rig.vm(B)
    rig.publish()
    vq = rig.rows(vm, to_guest=False)[3]
    for code in (reasons.NEXT_RANGE, reasons.CHAIN_LOOP):
        fault(rig.worker(), int64(vm.number), vq, int64(code))
    assert (vm.fault, other.fault) == ("next_range", "none")
    assert vm.from_guest.errors() == 1
    assert rig.events() == [(state.EVENT_FAULT, vm.number, reasons.NEXT_RANGE)]


def test_a_front_end_that_gave_no_error_descriptor_is_told_by_nobody(rig):
    vm = rig.vm(A)
    rig.publish()
    vq = rig.rows(vm, to_guest=False)[3]
    vq["error_fd"] = RingEntry().error_fd
    fault(rig.worker(), int64(vm.number), vq, int64(reasons.HEAD_RANGE))
    assert vm.fault == "head_range"
    assert vm.from_guest.errors() == 0


def test_a_stopped_port_neither_sends_nor_receives_and_works_after_a_new_start(rig):
    """O6, O8: its rings are left alone; its driver starts anew, and everything works; its neighbour never noticed."""
    vm, neighbour = rig.vm(A), rig.vm(B)
    neighbour.post(8)
    vm.post(4)
    vm.from_guest.show(1000)
    vm.send(frame(B, A))
    vm.from_guest.show(1000)
    rig.publish()
    rig.step()
    assert vm.fault == "avail_jump"
    neighbour.send(frame(A, B))
    neighbour.send(frame(C, B))
    rig.run()
    assert vm.drops() == {"to_guest_not_running": 1}
    assert vm.received() == []
    assert neighbour.sent_drops() == {"no_filter": 1}
    for ring in (vm.to_guest, vm.from_guest):
        ring.reset()
    vm.begin()
    vm.post(1)
    vm.send(frame(B, A))
    vm.send(frame(NOBODY, A))
    neighbour.send(frame(A, B))
    rig.run()
    assert neighbour.received() == [frame(B, A)]
    assert vm.received() == [frame(A, B)]
