# SPDX-License-Identifier: Apache-2.0
"""Messages as bytes and descriptors; descriptors are mere numbers here, but for the two tests with a socket."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.abi.vhost_user import FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, HEADER, Request
from vmq.errors import ProtocolError
from vmq.vhost import message as wire
from vmq.vhost.message import PAYLOAD_MAX, Decoder, Log, Message, Region, VringAddr, VringFd, VringState


def packed(request: int, payload: bytes = b"", flags: int = FLAG_VERSION) -> bytes:
    return struct.pack("=III", request, flags, len(payload)) + payload


def refused(parse, message: Message) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        parse(message)
    assert not caught.value.fatal
    return caught.value


def fatal(decoder: Decoder, data: bytes, fds: list[int] | None = None) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decoder.feed(data, fds or [])
    assert caught.value.fatal
    return caught.value


# --- framing (H18) --------------------------------------------------------------------------------------------


def test_truncated_header_is_a_fault_at_the_end_of_the_stream():
    """H18.1: refused, and the connection is closed."""
    decoder = Decoder()
    assert decoder.feed(packed(1)[:7], [9]) == []

    with pytest.raises(ProtocolError, match="5 bytes more due") as caught:
        decoder.finish()
    assert caught.value.fatal
    assert decoder.release() == [9]


def test_truncated_payload_is_a_fault_at_the_end_of_the_stream():
    """H18.1, for the payload."""
    decoder = Decoder()
    assert decoder.feed(packed(2, bytes(8))[:-1], []) == []

    with pytest.raises(ProtocolError, match="1 bytes more due"):
        decoder.finish()


def test_end_between_messages_is_none():
    """A front-end may leave at any time (H24.6)."""
    decoder = Decoder()
    decoder.feed(packed(1), [])
    decoder.finish()


@pytest.mark.parametrize("size", [PAYLOAD_MAX + 1, 1 << 31, (1 << 32) - 1])
def test_size_beyond_any_message_is_fatal_before_the_payload_comes(size):
    """H18.2: refused and closed; nothing is allocated for it."""
    decoder = Decoder()

    error = fatal(decoder, HEADER.pack(Request.SET_MEM_TABLE, FLAG_VERSION, size), [3, 4])

    assert str(size) in str(error)
    assert decoder.release() == [3, 4]


def test_largest_payload_passes():
    """The bound itself is allowed."""
    (message,) = Decoder().feed(packed(99, bytes(PAYLOAD_MAX)), [])
    assert len(message.payload) == PAYLOAD_MAX


def test_two_messages_in_one_write_come_in_order():
    """H18.5; descriptors are those of the first byte's message."""
    first, second = Decoder().feed(packed(2, bytes(8)) + packed(1), [5])
    assert first == Message(2, FLAG_VERSION, bytes(8), (5,))
    assert second == Message(1, FLAG_VERSION, b"", ())


def test_message_byte_by_byte_is_one_message():
    """H18.6; descriptors came with the first byte."""
    data = packed(Request.SET_VRING_KICK, bytes(8))
    decoder = Decoder()

    got = [
        message for i in range(len(data)) for message in decoder.feed(data[i : i + 1], [7] if i == 0 else [])
    ]

    assert got == [Message(Request.SET_VRING_KICK, FLAG_VERSION, bytes(8), (7,))]


@pytest.mark.parametrize("version", [0, 2, 3])
def test_wrong_version_is_fatal(version):
    """H18.8."""
    assert f"version {version}" in str(fatal(Decoder(), packed(1, flags=version)))


def test_reply_bit_is_fatal():
    """H18.9."""
    fatal(Decoder(), packed(1, flags=FLAG_VERSION | FLAG_REPLY))


def test_need_reply_is_read_and_unknown_flags_are_not():
    """vhost-user "Header": bits above 3 mean nothing yet."""
    (message,) = Decoder().feed(packed(1, flags=FLAG_VERSION | FLAG_NEED_REPLY | 0x80), [])
    assert message.need_reply
    assert not Message(1).need_reply


def test_unknown_request_is_a_message():
    """H18.7: framing does not know requests."""
    (message,) = Decoder().feed(packed(4711, bytes(8)), [])
    assert message.name == "request 4711"
    assert Message(8).name == "SET_VRING_NUM"


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=PAYLOAD_MAX)), max_size=5),
    st.lists(st.integers(0, 600), max_size=20),
)
def test_segmentation_does_not_matter(messages, cuts):
    """A stream has no boundaries: any cut gives the same messages (H18.5, H18.6)."""
    data = b"".join(packed(request, payload) for request, payload in messages)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    decoder = Decoder()

    got = [message for start, end in pairwise(edges) for message in decoder.feed(data[start:end], [])]

    assert [(message.request, message.payload) for message in got] == messages
    decoder.finish()


@given(st.binary(max_size=4096), st.lists(st.integers(3, 99), max_size=3, unique=True))
def test_garbage_gives_messages_or_a_fault_and_keeps_every_descriptor(data, fds):
    """H18: nothing else can come out, and no descriptor is lost (O7)."""
    decoder = Decoder()
    handed_out: list[int] = []

    with suppress(ProtocolError):
        handed_out = [fd for message in decoder.feed(data, fds) for fd in message.fds]

    assert sorted(handed_out + decoder.release()) == sorted(fds)


# --- descriptors (H19) ----------------------------------------------------------------------------------------


def test_too_many_descriptors_are_fatal_and_all_can_be_closed():
    """H19.2: 32 of them, at once or one by one."""
    decoder = Decoder()
    fatal(decoder, packed(1), list(range(10, 42)))
    assert decoder.release() == list(range(10, 42))

    drop_by_drop = Decoder()
    for i in range(8):
        drop_by_drop.feed(packed(5, bytes(264))[i : i + 1], [i + 3])
    fatal(drop_by_drop, packed(5, bytes(264))[8:9], [99])
    assert drop_by_drop.release() == [3, 4, 5, 6, 7, 8, 9, 10, 99]


def test_descriptors_of_finished_messages_come_back_with_a_fault_behind_them():
    """H19.4 and the like: the call that fails hands out nothing, so all are released."""
    decoder = Decoder()
    fatal(decoder, packed(2, bytes(8)) + packed(1, flags=0), [5, 6])
    assert decoder.release() == [5, 6]
    assert decoder.release() == []


def test_wanted_never_crosses_the_end_of_a_message():
    """vhost-user "Communication": so that descriptors cannot be taken for another message's."""
    decoder = Decoder()
    assert decoder.wanted == 12
    decoder.feed(packed(2, bytes(8))[:5], [])
    assert decoder.wanted == 7
    decoder.feed(packed(2, bytes(8))[5:12], [])
    assert decoder.wanted == 8
    decoder.feed(bytes(8), [])
    assert decoder.wanted == 12


@pytest.mark.parametrize("one_write", [True, False])
def test_descriptors_reach_their_message_through_a_real_socket(one_write):
    """Linux joins what was written apart and parts what was written together; reading `wanted` bytes is exact."""
    ours, theirs = socket.socketpair()
    plain, with_fd = packed(Request.GET_FEATURES), packed(Request.SET_VRING_CALL, bytes(8))
    with ours, theirs:
        if one_write:
            socket.send_fds(theirs, [with_fd + plain], [theirs.fileno()])
        else:
            theirs.sendall(plain)
            socket.send_fds(theirs, [with_fd], [theirs.fileno()])
        decoder = Decoder()
        got: list[Message] = []
        while len(got) < 2:
            data, fds, _, _ = socket.recv_fds(ours, decoder.wanted, 8)
            got += decoder.feed(data, fds)
        for fd in (fd for message in got for fd in message.fds):
            os.close(fd)

    assert {message.request: len(message.fds) for message in got} == {
        Request.GET_FEATURES: 0,
        Request.SET_VRING_CALL: 1,
    }


# --- replies --------------------------------------------------------------------------------------------------


def test_reply_has_the_request_exact_flags_and_its_payload():
    """vhost-user "Header": need_reply is not echoed."""
    assert wire.reply(1, b"12345678") == struct.pack("=III", 1, 5, 8) + b"12345678"


# --- payloads: syntax before meaning --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parse", "size"),
    [
        (wire.u64, 8),
        (wire.vring_state, 8),
        (wire.vring_addr, 40),
        (wire.vring_fd, 8),
        (wire.added_region, 40),
        (wire.removed_region, 40),
        (wire.log, 16),
        (wire.regions, 40),
        (wire.nothing, 0),
    ],
)
def test_payload_of_any_other_size_is_refused(parse, size):
    """H18.3, H18.4: empty, short by one, long by one."""
    for wrong in {0, 1, size - 1, size + 1, 2 * size} - {size, -1}:
        refused(parse, Message(1, payload=b"\x01" + bytes(wrong - 1) if wrong else b"", fds=(3,)))


def test_fields_are_read_where_they_are():
    """vhost-user "Payload"."""
    addr = struct.pack("=IIQQQQ", 5, 1, 0x1000, 0x3000, 0x2000, 0x99)
    assert wire.u64(Message(1, payload=struct.pack("=Q", 1 << 63))) == 1 << 63
    assert wire.vring_state(Message(1, payload=struct.pack("=II", 65536, 7))) == VringState(65536, 7)
    assert wire.vring_addr(Message(9, payload=addr)) == VringAddr(
        5, 1, desc=0x1000, used=0x3000, avail=0x2000, log=0x99
    )
    assert wire.log(Message(6, payload=struct.pack("=QQ", 8192, 64), fds=(4,))) == Log(8192, 64, 4)
    region = struct.pack("=QQQQQ", 0, 1, 2, 3, 4)
    assert wire.added_region(Message(37, payload=region, fds=(9,))) == Region(1, 2, 3, 4, fd=9)
    assert wire.removed_region(Message(38, payload=region)) == Region(1, 2, 3, 4, fd=-1)


def test_removed_region_may_bring_a_useless_descriptor():
    """Older QEMUs send one with REM_MEM_REG; whoever got the message closes it."""
    assert wire.removed_region(Message(38, payload=bytes(40), fds=(9,))).fd == -1


def test_ring_descriptor_or_the_bit_that_there_is_none():
    """vhost-user SET_VRING_KICK, CALL, ERR: bit 8; H19.1."""
    assert wire.vring_fd(Message(12, payload=struct.pack("=Q", 3), fds=(9,))) == VringFd(3, 9)
    assert wire.vring_fd(Message(12, payload=struct.pack("=Q", 0x103))) == VringFd(3, -1)
    refused(wire.vring_fd, Message(12, payload=struct.pack("=Q", 3)))
    refused(wire.vring_fd, Message(12, payload=struct.pack("=Q", 3), fds=(8, 9)))
    refused(wire.vring_fd, Message(12, payload=struct.pack("=Q", 0x103), fds=(9,)))


@pytest.mark.parametrize("value", [65536, 1 << 32, 1 << 63, 512])
def test_ring_index_keeps_all_its_bits(value):
    """H21.1: an index that is cut becomes another ring's."""
    assert wire.vring_fd(Message(12, payload=struct.pack("=Q", value), fds=(9,))).index == value


def table(count: int, regions: int, fds: int) -> Message:
    payload = struct.pack("=II", count, 0) + struct.pack("=QQQQ", 1, 2, 3, 4) * regions
    return Message(Request.SET_MEM_TABLE, payload=payload, fds=tuple(range(3, 3 + fds)))


def test_memory_table_pairs_regions_with_descriptors_in_order():
    """vhost-user "Multiple Memory regions description"."""
    assert wire.regions(table(2, 2, 2)) == (Region(1, 2, 3, 4, 3), Region(1, 2, 3, 4, 4))
    assert len(wire.regions(table(8, 8, 8))) == 8


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(table(9, 9, 8), id="H20.2 nine regions"),
        pytest.param(table(9, 8, 8), id="H20.2 nine regions, eight given"),
        pytest.param(table(2**32 - 1, 8, 8), id="H20.3 4294967295 regions"),
        pytest.param(table(2, 2, 1), id="H19.1 one descriptor missing"),
        pytest.param(table(2, 2, 3), id="H19.2 one descriptor too many"),
        pytest.param(table(1, 2, 2), id="H18.4 more regions than counted"),
        pytest.param(table(2, 1, 2), id="H18.4 fewer regions than counted"),
    ],
)
def test_memory_table_that_does_not_add_up_is_refused(message):
    """H20.2, H20.3, H19, H18.4: counts, size and descriptors agree, or nothing is taken."""
    refused(wire.regions, message)


@pytest.mark.parametrize(
    ("parse", "message"),
    [
        pytest.param(wire.regions, table(0, 0, 0), id="H20.1 no region"),
        pytest.param(wire.regions, table(0, 0, 1), id="H20.1 no region but a descriptor"),
        pytest.param(wire.regions, table(1, 1, 0), id="a region without its file"),
        pytest.param(
            wire.added_region, Message(37, payload=bytes(40)), id="one more region without its file"
        ),
    ],
)
def test_memory_without_a_file_is_not_shared_and_the_remedy_is_told(parse, message):
    """The most common mistake of users: guest memory without share=on (H19.1, H20.1)."""
    error = refused(parse, message)
    assert "not shared" in error.wrong
    assert "share=on" in error.remedy
    assert "<access mode='shared'/>" in error.remedy


def test_a_second_descriptor_where_one_is_due_is_refused():
    """H19.2."""
    refused(wire.added_region, Message(37, payload=bytes(40), fds=(3, 4)))
    refused(wire.log, Message(6, payload=bytes(16), fds=(3, 4)))
    refused(wire.log, Message(6, payload=bytes(16)))
