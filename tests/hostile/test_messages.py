# SPDX-License-Identifier: Apache-2.0
"""A hostile front-end's messages: each is refused, ignored or answered as the list of hostile inputs demands.

Pure: no engine, no socket. What a stream of bytes can do wrong (H18, H19) begins in tests/vhost/test_message.py.
"""

from __future__ import annotations

import struct

import pytest

from tests.vhost.executor import BASE, GUEST, HIGH, LOG_OFFER, Port, R, refused
from vmq.abi.ethernet import mac_number
from vmq.vhost.actions import Announce, CheckEventFd, MapLog
from vmq.vhost.session import FEATURES, Offer, mask

# --- framing and descriptors (H18, H19), as far as the protocol sees them -------------------------------------


def test_h18_3_and_4_a_payload_that_does_not_fit_is_refused_by_name():
    port = Port().hello()
    port.send(R.SET_VRING_NUM, b"", ask=True)
    refused(port, "SET_VRING_NUM: payload of 0 bytes, exactly 8 due")
    port.send(R.SET_VRING_ADDR, bytes(39), ask=True)
    refused(port)
    assert port.value == 1


@pytest.mark.parametrize("request_id", [0, 44, 99, 2**32 - 1])
def test_h18_7_an_unknown_request_is_ignored_or_answered_no(request_id):
    """H18.7: and its descriptors are closed."""
    port = Port().running()
    before = port.session
    port.send(request_id, b"what", fds=2)
    refused(port, f"request {request_id}")
    assert port.replies == []
    port.send(request_id, b"what", fds=2, ask=True)
    assert port.value == 1
    assert port.session == before


@pytest.mark.parametrize("request_id", range(48))
@pytest.mark.parametrize("payload", [b"", bytes(8), bytes(16), bytes(40)])
@pytest.mark.parametrize("fds", [0, 1, 8])
def test_h18_10_every_request_with_need_reply_gets_exactly_one_answer(request_id, payload, fds):
    """H18.10, O7: whatever it is, however wrong; and no descriptor is left."""
    port = Port().running()
    port.send(request_id, payload, fds=fds, ask=True)
    assert len(port.replies) == 1


def test_answers_are_given_only_when_due():
    """vhost-user "Communication": without need_reply only a question is answered."""
    port = Port().running()
    assert port.num(R.SET_STATUS, 15).replies == []
    assert port.num(R.SET_STATUS, 999).replies == []
    assert len(port.send(R.GET_STATUS).replies) == 1


def test_a_question_that_cannot_be_answered_gets_an_empty_answer():
    """Any number would be taken for the answer: QEMU would restart a ring at base 0."""
    port = Port().running()
    port.state(R.GET_VRING_BASE, 4, 0)
    assert port.replies == [struct.pack("=III", R.GET_VRING_BASE, 5, 0)]
    port.send(R.GET_FEATURES, b"?")
    assert port.replies == [struct.pack("=III", R.GET_FEATURES, 5, 0)]


def test_h19_1_a_missing_descriptor_is_refused():
    port = Port().hello()
    for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
        port.num(request, 0, ask=True)
        refused(port, "descriptors, exactly one due")
        assert port.value == 1


def test_h19_1_memory_that_is_not_shared_is_refused_with_the_remedy():
    """The most common mistake: the port says what to change."""
    port = Port().hello()
    port.send(R.ADD_MEM_REG, struct.pack("=QQQQQ", 0, *GUEST))
    refused(port, "share=on")


def test_h19_3_a_descriptor_that_is_no_eventfd_is_refused():
    """H19.3: the old one stays in use."""
    port = Port().running()
    before = port.session
    port.broken = {CheckEventFd}
    for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
        port.fd(request, 0, ask=True)
        refused(port)
        assert port.value == 1
        assert port.session == before


def test_h19_5_descriptors_on_messages_that_take_none_are_closed_and_the_message_is_done():
    port = Port().hello()
    port.send(R.GET_FEATURES, fds=8)
    assert (port.value, port.error) == (FEATURES, None)
    port.send(R.SET_VRING_ENABLE, struct.pack("=II", 0, 1), fds=3)
    assert port.session.enabled(0)


def test_h19_ten_thousand_messages_with_descriptors_leave_none():
    """O7: the books of Port are checked after each."""
    port = Port().running()
    open_before = len(port.open)
    for i in range(2500):
        port.fd(R.SET_VRING_CALL, i % 4).fd(R.SET_VRING_KICK, i % 2).add(GUEST)
        port.fd(R.SET_VRING_ERR, i % 6)
    assert len(port.open) == open_before
    port.leave()


# --- memory (H20) ---------------------------------------------------------------------------------------------

TOP = 1 << 63


@pytest.mark.parametrize(
    "region",
    [
        pytest.param((0, 0, BASE, 0), id="H20.4 size 0"),
        pytest.param((0, 0x1000, BASE, (1 << 64) - 0x1000), id="H20.5 size + offset overflows"),
        pytest.param((0, (1 << 64) - 1, BASE, 1), id="H20.5 size overflows"),
        pytest.param(((1 << 64) - 0x1000, 0x2000, BASE, 0), id="guest address overflows"),
        pytest.param((0, 0x2000, (1 << 64) - 0x1000, 0), id="user address overflows"),
        pytest.param((TOP, 0x1000, BASE, 0), id="N1 guest address 2^63"),
        pytest.param((0x1000, TOP, BASE, 0), id="N1 size 2^63"),
        pytest.param(
            (0, 0x1000, BASE + 1, 0), id="ring addresses would not be aligned where they are mapped"
        ),
    ],
)
def test_h20_regions_that_cannot_be_are_refused(region):
    """H20.4, H20.5: one by one or in a table; memory is as it was."""
    for port in (Port().hello().add(HIGH), Port().hello().table(HIGH)):
        before = port.session
        port.add(region, ask=True)
        refused(port, "ADD_MEM_REG: region at guest address")
        assert port.value == 1
        port.table(HIGH, region, ask=True)
        refused(port)
        assert port.session == before


def test_regions_may_end_at_the_last_address():
    """The bound itself is allowed."""
    port = Port().hello().add((TOP - 0x1000, 0x1000, BASE, 0))
    assert port.error is None


@pytest.mark.parametrize("gpa", [0xFF000, 0x1000, 0])
def test_h20_6_overlapping_guest_addresses_are_refused(gpa):
    port = Port().hello().add(GUEST)
    port.add((gpa, 0x2000, 0x5000_0000, 0), ask=True)
    refused(port, "overlaps the region at 0x0")
    port.table(GUEST, (gpa, 0x2000, 0x5000_0000, 0))
    refused(port, "overlaps")


def test_regions_side_by_side_do_not_overlap():
    port = Port().hello().add(GUEST).add((GUEST[1], 0x1000, 0x5000_0000, 0))
    assert (port.error, len(port.session.regions)) == (None, 2)


def test_h20_7_a_region_twice_in_one_table_is_one_region():
    port = Port().hello().table(GUEST, GUEST)
    assert (port.error, len(port.session.regions)) == (None, 1)


def test_h20_1_and_2_tables_of_none_or_too_many_regions_are_refused():
    """H20.1, H20.2."""
    port = Port().hello().table(GUEST)
    before = port.session
    port.table()
    refused(port, "not shared")
    regions = [(i << 20, 0x1000, BASE, 0) for i in range(9)]
    port.table(*regions)
    refused(port, "9 regions")
    assert port.session == before
    port.table(*regions[:8])
    assert len(port.session.regions) == 8


def test_memory_slots_are_bounded_as_told():
    """vhost-user GET_MAX_MEM_SLOTS."""
    port = Port(Offer(max_pairs=2, mem_slots=32)).hello()
    for i in range(32):
        port.add((i << 20, 0x1000, BASE, 0))
    assert port.error is None
    port.add((32 << 20, 0x1000, BASE, 0), ask=True)
    refused(port, "more than 32")


# --- virtqueues (H21) -----------------------------------------------------------------------------------------


def every_ring_message(port: Port, index: int) -> list[Port]:
    """Each of them in turn, as a check that all take the same way to their ring."""
    return [
        port.state(R.SET_VRING_NUM, index, 256),
        port.state(R.SET_VRING_BASE, index, 0),
        port.state(R.SET_VRING_ENABLE, index, 1),
        port.addr(index, BASE),
    ]


@pytest.mark.parametrize("index", [65536, 255, 4, 5, 1 << 31, 2**32 - 1])
def test_h21_1_to_3_rings_that_do_not_exist_are_refused_by_every_message(index):
    """H21.1, H21.2, H21.3: all bits of the index count, and the bound is exact."""
    port = Port().running()
    before = port.session
    for send in (
        lambda: port.state(R.SET_VRING_NUM, index, 256, ask=True),
        lambda: port.state(R.SET_VRING_BASE, index, 0, ask=True),
        lambda: port.state(R.SET_VRING_ENABLE, index, 1, ask=True),
        lambda: port.state(R.GET_VRING_BASE, index, 0, ask=True),
        lambda: port.addr(index, BASE, ask=True),
        lambda: port.fd(R.SET_VRING_KICK, index & ~0x100, ask=True),
        lambda: port.fd(R.SET_VRING_CALL, index & ~0x100, ask=True),
        lambda: port.fd(R.SET_VRING_ERR, index & ~0x100, ask=True),
    ):
        send()
        refused(port, "does not exist")
        assert port.session == before


def test_h21_3_the_last_ring_exists():
    port = Port().hello()
    for sent in every_ring_message(port, 3):
        assert sent.error is None


@pytest.mark.parametrize("size", [0, 300, 3, 32769, 65536, 2**32 - 1])
def test_h21_4_to_6_ring_sizes_that_cannot_be_are_refused(size):
    """virtio-1.2 §2.7 Split Virtqueues: a power of two, at most 32768."""
    port = Port().hello()
    port.state(R.SET_VRING_NUM, 1, size, ask=True)
    refused(port, "virtio-1.2 §2.7 Split Virtqueues: SET_VRING_NUM: ring 1: size")
    assert (port.value, port.session.rings[1].size) == (1, 0)


@pytest.mark.parametrize("size", [1, 2, 256, 1024, 32768])
def test_h21_powers_of_two_are_accepted(size):
    assert Port().hello().state(R.SET_VRING_NUM, 1, size).session.rings[1].size == size


def test_h21_7_size_and_base_of_a_started_ring_stay():
    port = Port().running()
    for request in (R.SET_VRING_NUM, R.SET_VRING_BASE):
        port.state(request, 0, 128, ask=True)
        refused(port, "ring 0: not while the ring is started")


@pytest.mark.parametrize(("part", "off"), [("desc", 8), ("desc", 1), ("avail", 1), ("used", 2), ("used", 1)])
def test_h21_8_unaligned_ring_addresses_are_refused(part, off):
    """virtio-1.2 §2.7 Split Virtqueues: 16, 2 and 4."""
    at = {"desc": BASE, "avail": BASE + 0x2000, "used": BASE + 0x3000}
    at[part] += off
    port = Port().hello()
    port.send(
        R.SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 0, at["desc"], at["used"], at["avail"], 0), ask=True
    )
    refused(port, "is not aligned to")
    assert port.session.rings[0].addresses is None


def test_h21_9_and_10_a_running_ring_cannot_be_moved_to_a_wrong_place():
    """Outside memory, or onto itself: refused, and it runs on where it was."""
    port = Port().running()
    before = port.session
    port.addr(0, 0x10000, ask=True)
    refused(port, "not within one memory region")
    port.send(R.SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 0, BASE, BASE, BASE, 0))
    refused(port, "overlap")
    assert port.session == before


def test_h21_9_a_size_that_makes_a_kicked_ring_leave_its_region_is_refused():
    port = Port().hello().table(GUEST)
    port.addr(0, BASE + 0xFC000).fd(R.SET_VRING_KICK, 0)
    port.state(R.SET_VRING_NUM, 0, 32768, ask=True)
    refused(port, "not within one memory region")
    port.state(R.SET_VRING_NUM, 0, 16)
    assert port.started() == [0]


def test_unknown_address_flags_and_enable_values_are_refused():
    port = Port().hello()
    refused(port.addr(0, BASE, flags=2))
    refused(port.state(R.SET_VRING_ENABLE, 0, 2))
    assert not port.session.enabled(0)


# --- log (H22) ------------------------------------------------------------------------------------------------


def test_h22_log_is_refused_with_an_answer_when_it_was_not_negotiated():
    """SET_LOG_BASE is always answered."""
    port = Port().hello()
    port.log(8192)
    refused(port, "protocol feature 1")
    assert port.value == 1


@pytest.mark.parametrize(("size", "offset"), [(0, 0), (1 << 63, 1), (8, (1 << 64) - 8), ((1 << 64) - 1, 1)])
def test_h22_1_logs_that_cannot_be_are_refused_with_an_answer(size, offset):
    port = Port(LOG_OFFER).hello()
    port.log(size, offset)
    refused(port, "SET_LOG_BASE")
    assert port.value == 1


def test_h22_3_the_offset_is_handed_on_once():
    port = Port(LOG_OFFER).hello().log(8192, 4096)
    assert port.session.log is not None
    assert (port.session.log.size, port.session.log.offset) == (8192, 4096)


def test_h22_4_a_log_that_cannot_be_mapped_is_refused_and_the_old_one_stays():
    port = Port(LOG_OFFER).hello().log(8192)
    before = port.session
    port.broken = {MapLog}
    port.log(4096)
    assert port.value == 1
    assert port.session == before


def test_log_eventfd_is_closed_unused():
    """vhost-user SET_LOG_FD: optional."""
    port = Port(LOG_OFFER).hello().send(R.SET_LOG_FD, fds=1)
    assert port.error is None


# --- out of place (H25, H23) ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_id", "answer"),
    [
        pytest.param(R.POSTCOPY_ADVISE, b"", id="H25.1 advise"),
        pytest.param(R.POSTCOPY_LISTEN, None, id="H25.1 listen"),
        pytest.param(R.POSTCOPY_END, struct.pack("=Q", 1), id="H25.1 end"),
        pytest.param(R.IOTLB_MSG, struct.pack("=Q", 1), id="H25.2 IOTLB"),
        pytest.param(R.GET_INFLIGHT_FD, b"", id="H23.5 get inflight"),
        pytest.param(R.SET_INFLIGHT_FD, None, id="H23.5 set inflight"),
        pytest.param(R.GET_CONFIG, b"", id="config"),
        pytest.param(R.SET_BACKEND_REQ_FD, None, id="back-end requests"),
        pytest.param(R.CHECK_DEVICE_STATE, struct.pack("=Q", 1), id="device state"),
    ],
)
def test_h25_messages_of_features_that_are_not_offered_are_refused(request_id, answer):
    """H25.1, H25.2, H23.5: who waits for an answer gets one that cannot be taken for a yes."""
    port = Port().running()
    before = port.session
    port.send(request_id, bytes(16), fds=1)
    refused(port, f"{request_id.name}: this back-end does not offer it")
    assert port.session == before
    assert port.replies == (
        [] if answer is None else [struct.pack("=III", request_id, 5, len(answer)) + answer]
    )


@pytest.mark.parametrize(
    ("request_id", "payload"),
    [
        (R.NET_SET_MTU, struct.pack("=Q", 1500)),
        (R.SEND_RARP, bytes(8)),
        (R.SET_STATUS, bytes(8)),
        (R.RESET_DEVICE, b""),
        (R.ADD_MEM_REG, bytes(40)),
        (R.REM_MEM_REG, bytes(40)),
    ],
)
def test_changes_need_their_protocol_feature(request_id, payload):
    """vhost-user "Protocol features": what was not negotiated is not done."""
    port = Port()
    port.num(R.SET_PROTOCOL_FEATURES, mask(3))
    before = port.session
    port.send(request_id, payload, ask=True)
    refused(port, "was not chosen")
    assert port.session == before


def test_rarp_announces_the_address():
    """vhost-user SEND_RARP: the first six bytes."""
    port = Port().running()
    port.send(R.SEND_RARP, bytes.fromhex("02000000000a0000"), ask=True)
    assert port.actions[0] == Announce(mac_number("02:00:00:00:00:0a"))
    assert port.value == 0
    assert not port.idle


@pytest.mark.parametrize("mac", ["0000000000000000", "01005e0000010000", "ffffffffffff0000"])
def test_h25_3_a_rarp_for_nobody_is_ignored(mac):
    port = Port().running()
    port.send(R.SEND_RARP, bytes.fromhex(mac))
    assert (port.actions, port.error, port.idle) == ([], None, True)


@pytest.mark.parametrize(
    ("mtu", "answer"), [(0, 1), (67, 1), (68, 0), (1400, 0), (65535, 0), (65536, 1), (1 << 63, 1)]
)
def test_h25_4_to_6_mtu_is_within_bounds_or_refused(mtu, answer):
    port = Port().hello()
    assert port.num(R.NET_SET_MTU, mtu, ask=True).value == answer
    assert port.session.mtu == (0 if answer else mtu)


def test_status_is_one_byte():
    port = Port().hello()
    assert port.num(R.SET_STATUS, 256, ask=True).value == 1
    assert port.num(R.SET_STATUS, 255, ask=True).value == 0
    assert port.send(R.GET_STATUS).value == 255
