# SPDX-License-Identifier: Apache-2.0
"""A capture of a running engine, judged by scapy: what the guest got and sent, byte for byte, and what was lost."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scapy.utils import RawPcapNgReader

from tests.engine.running import MACS, Running, frame, until
from vmq.cli import main
from vmq.cli.client import capturing
from vmq.control.answers import CapturePiece
from vmq.control.capture import CAPTURES_MAX, RINGS_MAX, Pieces, capture
from vmq.control.requests import Capture as Asked
from vmq.control.requests import understood
from vmq.control.server import Server
from vmq.control.session import Session
from vmq.engine import observed
from vmq.errors import ApiError
from vmq.guest.guest import Guest

A, B = MACS[:2]
PATIENCE = 10.0
INBOUND, OUTBOUND = 1, 2


class Captured:
    """A client of the API without its socket."""

    def __init__(self, running: Running, **params: Any) -> None:
        self.running, self.session = running, Session()
        asked = understood("capture", Asked, params)
        self.result = running.do(capture, running.engine, self.session, asked)
        self.content = b""
        self.counts: list[tuple[int, int]] = []

    def take(self) -> bool:
        """The next piece; whether there was one."""
        assert isinstance(self.session.stream, Pieces)
        taken = asyncio.run_coroutine_threadsafe(self.session.stream.take(), self.running.loop)
        records = taken.result(PATIENCE)
        for record in records:
            piece = msgspec.convert(record, CapturePiece)  # as the schema has it
            self.content += base64.b64decode(piece.blocks)
            self.counts.append((piece.captured, piece.lost))
        return bool(records)

    def whole(self, count: int = 0) -> bytes:
        """The file, when the client has enough: so many frames, as a guest may see one before it is captured."""
        assert self.session.stream is not None
        while count > (self.counts[-1][0] if self.counts else 0):
            assert self.take()
        self.running.do(self.session.stream.end)
        while self.take():
            pass
        self.leave()
        return self.content

    def leave(self) -> None:
        self.running.do(self.session.leaving.close)


def packets(content: bytes) -> list[tuple[bytes, Any]]:
    """What scapy reads of a file."""
    return list(RawPcapNgReader(io.BytesIO(content)))


def test_the_file_has_what_the_guest_got_and_sent_byte_for_byte(tmp_path: Path):
    """In order, with direction, name and a time that goes on; odd lengths too."""
    with Running(tmp_path) as running:
        running.pair()
        with running.guest("a") as one, running.guest("b") as other:
            until(lambda: running.show("vms", "b")["state"] == "running")
            captured = Captured(running, vm="b")
            assert captured.result == {"interfaces": ["b:0"]}
            there = [frame(B, A, number, 60 + number) for number in range(20)]
            back = [frame(A, B, number, 99) for number in range(5)]
            one.send(there)
            assert other.receive(len(there), PATIENCE) == there
            other.send(back)
            assert one.receive(len(back), PATIENCE) == back
            read = packets(captured.whole(25))
        assert [data for data, _ in read] == there + back
        assert captured.counts[-1] == (25, 0)
        times = [(meta.tshigh << 32) | meta.tslow for _, meta in read]
        assert times == sorted(times)
        assert {meta.tsresol for _, meta in read} == {1_000_000_000}
        assert {meta.ifname for _, meta in read} == {b"b:0"}
        assert [meta.direction for _, meta in read] == [INBOUND] * 20 + [OUTBOUND] * 5


@pytest.mark.parametrize(("direction", "count"), [("to_guest", 3), ("from_guest", 4)])
def test_one_direction_and_the_first_bytes_of_a_frame(tmp_path: Path, direction: str, count: int):
    """What is kept is cut at the snap length; the original length is told."""
    with Running(tmp_path) as running:
        running.pair()
        with running.guest("a") as one, running.guest("b") as other:
            captured = Captured(running, vm="b", queue=0, direction=direction, snaplen=33)
            exchange(one, other, 3, 4)
            read = packets(captured.whole())
        assert len(read) == count
        assert {len(data) for data, _ in read} == {33}
        assert {meta.wirelen for _, meta in read} == {60}


def exchange(one: Guest, other: Guest, there: int, back: int) -> None:
    for sender, receiver, count in ((one, other, there), (other, one, back)):
        sender.send([frame(receiver.mac, sender.mac, number) for number in range(count)])
        assert len(receiver.receive(count, PATIENCE)) == count


def test_several_captures_have_rings_of_their_own_and_end_by_themselves(tmp_path: Path):
    with Running(tmp_path) as running:
        running.pair()
        with running.guest("a") as one, running.guest("b") as other:
            first, second = Captured(running, vm="b"), Captured(running, vm="b")
            exchange(one, other, 2, 0)
            assert len(packets(first.whole(2))) == 2
            exchange(one, other, 3, 0)
            assert len(packets(second.whole(5))) == 5
            exchange(one, other, 1, 0)
            assert running.engine.vms["b"].observed.captures == []
            watches = running.engine.segment.rows["watches"]
            assert not watches["captures"].any()


def test_a_frame_that_is_refused_is_captured_where_it_was_sent(tmp_path: Path):
    """What somebody looks for when nothing arrives: a spoofed source."""
    with Running(tmp_path) as running:
        running.pair()
        with running.guest("a") as one, running.guest("b"):
            captured = Captured(running, vm="a")
            spoofed = frame(B, MACS[5])
            one.send([spoofed])
            until(lambda: running.show("vms", "a")["drops"])
            assert [data for data, _ in packets(captured.whole())] == [spoofed]


def test_a_full_ring_loses_frames_of_the_capture_and_none_of_the_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They are counted, in each piece and in the statistics of the file."""
    monkeypatch.setattr(observed, "RING", 4096)
    with Running(tmp_path) as running:
        running.pair()
        with running.guest("a") as one, running.guest("b") as other:
            captured = Captured(running, vm="b", direction="to_guest")
            exchange(one, other, 50, 0)
            content = captured.whole()
        kept, lost = captured.counts[-1]
        assert (kept, lost) == (4096 // 128, 50 - 4096 // 128)
        assert len(packets(content)) == kept
        assert lost.to_bytes(8, "little") in content[-80:]


def test_a_capture_ends_with_its_vm_port(tmp_path: Path):
    """And another VM in its place is not captured."""
    with Running(tmp_path) as running:
        running.pair()
        with running.guest("a") as one, running.guest("b") as other:
            captured = Captured(running, vm="b")
            exchange(one, other, 2, 0)
            running.configure(a=running.vm("a", 1))
            while captured.take():
                pass
            assert len(packets(captured.content)) == 2
        running.pair()
        with running.guest("a") as one, running.guest("b") as other:
            exchange(one, other, 1, 1)
            assert captured.counts[-1] == (2, 0)
        captured.leave()


def test_a_client_that_is_gone_leaves_nothing_behind(tmp_path: Path):
    """In the middle of it: with frames in the rings that nobody has taken."""
    with Running(tmp_path) as running:
        running.pair()
        with running.guest("a") as one, running.guest("b") as other:
            captured = Captured(running, vm="b")
            exchange(one, other, 3, 3)
            captured.leave()
            exchange(one, other, 3, 3)
            assert running.engine.vms["b"].observed.captures == []
            rings = running.engine.publisher
            assert rings.reached() == rings.epoch


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"vm": "c"}, "no VM 'c'"),
        ({"vm": "a", "queue": 1}, "no receive queue 1"),
        ({"vm": "a", "queue": -1}, "no receive queue -1"),
        ({"vm": "a", "snaplen": 0}, "snaplen"),
        ({"vm": "a", "snaplen": 1 << 40}, "snaplen"),
        ({"vm": "a", "direction": "in"}, "direction"),
        ({"vm": "a", "file": "/etc/passwd"}, "unknown field `file`"),
    ],
)
def test_what_cannot_be_captured_is_refused_by_name(tmp_path: Path, params: dict[str, Any], words: str):
    with Running(tmp_path) as running:
        running.pair()
        with pytest.raises(ApiError, match=words) as refused:
            Captured(running, **params)
        assert refused.value.status == "INVALID_PARAMETER"


def test_rings_are_limited(tmp_path: Path):
    with Running(tmp_path) as running:
        running.configure(a=running.vm("a", 1, queue_pairs=16))
        captures = [Captured(running, vm="a") for _ in range(RINGS_MAX // 16)]
        with pytest.raises(ApiError, match="rings are in use") as refused:
            Captured(running, vm="a", queue=0)
        assert refused.value.status == "RESOURCES"
        captures.pop().leave()
        captures.append(Captured(running, vm="a", queue=0))
        for one in captures:
            one.leave()
        assert int(running.engine.segment.rows["watches"]["captures"].max()) == 0


def test_captures_are_limited_so_that_a_person_gets_in(tmp_path: Path):
    with Running(tmp_path) as running:
        running.pair()
        captures = [Captured(running, vm="a") for _ in range(CAPTURES_MAX)]
        with pytest.raises(ApiError, match="captures run") as refused:
            Captured(running, vm="b")
        assert refused.value.status == "RESOURCES"
        for one in captures:
            one.leave()


def test_no_queue_waits_for_another_and_each_keeps_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """More than one piece holds: rings take turns."""
    monkeypatch.setattr(observed, "ROOM", 512)
    with Running(tmp_path) as running:
        running.configure(a=running.vm("a", 1, queue_pairs=2), b=running.vm("b", 2))
        with running.guest("a") as one, running.guest("b") as other:
            captured = Captured(running, vm="a")
            exchange(one, other, 30, 30)
            read = packets(captured.whole(60))
        for direction in (INBOUND, OUTBOUND):
            found = [int.from_bytes(data[14:18], "big") for data, meta in read if meta.direction == direction]
            assert found == list(range(30))


def test_a_capture_survives_a_guest_that_starts_anew(tmp_path: Path):
    """The rings are others; who looks is the same."""
    with Running(tmp_path) as running:
        running.pair()
        with running.guest("a") as one:
            captured = Captured(running, vm="b")
            for _ in range(2):
                with running.guest("b") as other:
                    until(lambda: running.show("vms", "b")["state"] == "running")
                    exchange(one, other, 2, 0)
            assert len(packets(captured.whole(4))) == 4


@contextlib.contextmanager
def served(running: Running) -> Iterator[str]:
    """The method behind a real socket: its path."""
    path = running.path("api")

    def method(session: Session, params: dict[str, Any]) -> Any:
        return capture(running.engine, session, understood("capture", Asked, params))

    server = Server(path, -1, {"capture": method})
    asyncio.run_coroutine_threadsafe(server.start("a test"), running.loop).result(PATIENCE)
    try:
        yield path
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), running.loop).result(PATIENCE)


def test_the_command_writes_the_same_file_over_a_socket(tmp_path: Path):
    """It has enough after so many frames, and gets what belongs to the end of a file."""
    with Running(tmp_path) as running, served(running) as path:
        running.pair()
        with running.guest("a") as one, running.guest("b") as other:
            until(lambda: running.show("vms", "b")["state"] == "running")
            file = tmp_path / "b.pcapng"
            words = ["capture", "b", str(file), "--api", path, "--count", "7", "--direction", "to_guest"]
            with ThreadPoolExecutor(1) as pool:
                sending = pool.submit(send_when_captured, running, one, other)
                assert main(words) == 0
                sent = sending.result(PATIENCE)
            assert [data for data, _ in packets(file.read_bytes())] == sent[:7]
            assert file.read_bytes()[-76:-68] == struct.pack("<II", 5, 76)  # the statistics are the end
            until(lambda: running.engine.vms["b"].observed.captures == [])


def send_when_captured(running: Running, one: Guest, other: Guest) -> list[bytes]:
    until(lambda: running.engine.vms["b"].observed.captures)
    running.barrier()  # and the processors know
    frames = [frame(other.mac, one.mac, number) for number in range(20)]
    one.send(frames)
    assert other.receive(len(frames), PATIENCE) == frames
    return frames


def test_a_client_that_hangs_up_in_the_middle_ends_its_capture(tmp_path: Path):
    """Without a word, while frames come: guests lose none."""
    with Running(tmp_path) as running, served(running) as path:
        running.pair()
        with running.guest("a") as one, running.guest("b") as other:
            with capturing(path, vm="b") as pieces:
                exchange(one, other, 3, 3)
                assert next(iter(pieces))[0]
            exchange(one, other, 3, 3)
            until(lambda: running.engine.vms["b"].observed.captures == [])
            exchange(one, other, 3, 3)
