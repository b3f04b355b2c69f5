# SPDX-License-Identifier: Apache-2.0
"""The front-end against a back-end double: what it says, in which order, and what it does without."""

from __future__ import annotations

import struct

import pytest

from tests.guest.backend import FEATURES, PROTOCOL, Backend
from vmq.abi.vhost_user import Request
from vmq.errors import ProtocolError
from vmq.guest.frontend import Frontend
from vmq.guest.memory import PAGE, Memory

HANDSHAKE = [1, 15, 16, 17, 36, 3]  # as QEMU: features, protocol features, queue pairs, slots, owner


@pytest.fixture
def frontend(backend):
    front = Frontend(backend.path)
    front.connect()
    yield front
    front.close()


@pytest.fixture
def memory():
    three = Memory([(0, PAGE), (PAGE, PAGE), (8 * PAGE, PAGE)])
    yield three
    three.close()


def test_handshake_follows_qemu(backend, frontend):
    """vhost-user "Front-end message types", in the order that QEMU sends them."""
    frontend.handshake(FEATURES)
    frontend.barrier()
    assert backend.log == [*HANDSHAKE, 1]
    assert (frontend.max_pairs, frontend.mem_slots) == (4, 32)


def test_only_what_both_sides_know_is_agreed_on(backend, frontend):
    backend.features = FEATURES & ~(1 << 15)
    frontend.handshake(1 << 15 | 1 << 32 | PROTOCOL | 1 << 60)
    assert frontend.features == 1 << 32 | PROTOCOL


def test_back_end_without_protocol_features_is_asked_for_none(backend, frontend, memory):
    """Then rings start enabled and there is no SET_VRING_ENABLE (vhost-user "Ring states")."""
    backend.features = FEATURES & ~PROTOCOL
    frontend.handshake(FEATURES)
    frontend.set_mtu(1500)
    frontend.set_features()
    frontend.set_memory(memory)
    frontend.enable(0)
    frontend.barrier()
    assert backend.log == [1, 3, 2, 5, 1]
    assert len(backend.regions) == 3


def test_legacy_back_end_is_refused(backend, frontend):
    backend.features = FEATURES & ~(1 << 32)
    with pytest.raises(ProtocolError, match="VIRTIO_F_VERSION_1"):
        frontend.handshake(FEATURES)


@pytest.mark.parametrize("add_regions", [True, False])
def test_memory_is_handed_over_once_a_connection(backend, memory, add_regions):
    front = Frontend(backend.path, add_regions=add_regions)
    front.connect()
    front.handshake(FEATURES)
    front.set_memory(memory)
    front.set_memory(memory)
    rows = [row[:4] for row in backend.regions]
    messages = backend.log[len(HANDSHAKE) - (not add_regions) :]
    front.close()
    assert rows == [(region.guest, region.size, region.own, region.offset) for region in memory.regions]
    assert messages == ([37] * 3 if add_regions else [5])


def test_refused_change_is_a_protocol_error(backend, frontend, memory):
    frontend.handshake(FEATURES)
    backend.answer = 22
    with pytest.raises(ProtocolError, match="SET_FEATURES: the back-end answered 22"):
        frontend.set_features()


def test_reply_to_another_request_is_a_protocol_error(frontend):
    frontend.send(Request.GET_FEATURES)
    with pytest.raises(ProtocolError, match="reply to request 15 expected"):
        frontend.reply(Request.GET_PROTOCOL_FEATURES)


def test_silent_back_end_times_out(backend):
    front = Frontend(backend.path, timeout=0.1)
    front.connect()
    front.send(Request.SET_OWNER)
    with pytest.raises(TimeoutError):
        front.reply(Request.SET_OWNER)
    front.close()


def test_missing_back_end_times_out(tmp_path):
    front = Frontend(tmp_path / "nobody", timeout=0.1)
    with pytest.raises(TimeoutError, match="no back-end within"):
        front.connect()
    front.close()


def test_hung_up_connection_is_noticed(backend, frontend):
    frontend.handshake(FEATURES)
    frontend.barrier()
    assert frontend.connected
    backend.hang_up()
    assert not frontend.connected
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        frontend.barrier()


def test_server_waits_for_the_back_end_and_removes_its_socket(tmp_path):
    path = tmp_path / "s"
    front = Frontend(path, server=True)
    with Backend(str(path), connects=True):
        front.connect()
        front.handshake(FEATURES)
        front.close()
    assert not path.exists()


def test_raw_message_says_anything(backend, frontend):
    frontend.send(99, struct.pack("=Q", 1), need_reply=True)
    assert frontend.reply(99) == bytes(8)
