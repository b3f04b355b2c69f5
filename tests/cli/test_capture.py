# SPDX-License-Identifier: Apache-2.0
"""`vmq capture`: pieces become a file; what ends it, ends it whole."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from vmq.cli.capture import blocks

HEADER = b"\x0a\x0d\x0d\x0a" + struct.pack("<I", 12) + struct.pack("<I", 12)


def packet(number: int) -> bytes:
    return struct.pack("<II", 6, 16) + struct.pack("<II", number, 16)


STATISTICS = struct.pack("<III", 5, 12, 12)


class Telling:
    """An engine with one capture: packets in `pieces`; when the client has enough, more packets and the statistics."""

    def __init__(
        self, path: Path, pieces: list[int], *, endless: bool = False, word: str = "capture"
    ) -> None:
        self.path, self.pieces, self.word = str(path), pieces, word
        self.endless = endless
        self.asked: dict[str, Any] = {}
        self.told = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join(10)

    def _line(self, content: bytes, lost: int = 0) -> bytes:
        record = {"blocks": base64.b64encode(content).decode(), "captured": 1, "lost": lost}
        return json.dumps({self.word: record}).encode() + b"\n"

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with contextlib.suppress(ConnectionError), connection, connection.makefile("rb") as lines:
            self.asked = json.loads(lines.readline())
            connection.sendall(b'{"result": {"interfaces": ["web:0"]}}\n' + self._line(HEADER))
            first = 0
            for count in self.pieces:
                connection.sendall(self._line(b"".join(map(packet, range(first, first + count)))))
                first += count
            self.told.set()
            if self.endless:
                assert lines.read() == b""  # it has closed its side
            connection.sendall(self._line(packet(99)) + self._line(STATISTICS, lost=4))


@pytest.fixture
def telling(tmp_path: Path) -> Iterator[Any]:
    made: list[Telling] = []

    def make(*pieces: int, **options: Any) -> Telling:
        one = Telling(tmp_path / "api.sock", list(pieces), **options)
        made.append(one.__enter__())
        return one

    yield make
    for one in made:
        one.__exit__()


def numbers(content: bytes) -> list[int]:
    """The packets of a file that begins with its header and ends with its statistics."""
    found = list(blocks(content))
    assert found[0][1] == HEADER
    assert found[-1][1] == STATISTICS
    assert [kind for kind, _ in found[1:-1]] == [6] * (len(found) - 2)
    return [struct.unpack_from("<I", block, 8)[0] for _, block in found[1:-1]]


def test_the_file_has_what_is_told(vmq, telling, tmp_path: Path):
    engine = telling(2, 3)
    path = tmp_path / "web.pcapng"
    code, out, error = vmq(
        "capture", "web", str(path), "--api", engine.path, "--queue", "1", "--snaplen", "96"
    )
    assert (code, out, error) == (0, "", "6 frames captured, 4 lost by the capture\n")
    assert numbers(path.read_bytes()) == [0, 1, 2, 3, 4, 99]
    assert engine.asked["method"] == "capture"
    assert engine.asked["params"] == {"vm": "web", "queue": 1, "direction": "both", "snaplen": 96}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_it_ends_after_so_many_frames_with_the_statistics(vmq, telling, tmp_path: Path, count: int):
    """In the middle of a piece too."""
    engine = telling(2, 3, endless=True)
    path = tmp_path / "web.pcapng"
    code, _, error = vmq("capture", "web", str(path), "--api", engine.path, "--count", str(count))
    assert (code, error) == (0, f"{count} frames captured, 4 lost by the capture\n")
    assert numbers(path.read_bytes()) == list(range(count))


def test_it_ends_after_so_long_though_nothing_comes(vmq, telling, tmp_path: Path):
    engine = telling(endless=True)
    path = tmp_path / "web.pcapng"
    code, _, _ = vmq("capture", "web", str(path), "--api", engine.path, "--seconds", "0.1", "--dir", "to")
    assert code == 0
    assert numbers(path.read_bytes()) == [99]
    assert engine.asked["params"]["direction"] == "to_guest"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_in_order(telling, number: int):
    """Standard output has the whole file; the words are elsewhere."""
    engine = telling(2, endless=True)
    child = subprocess.Popen(
        [sys.executable, "-m", "vmq", "capture", "web", "-", "--api", engine.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout
    begun = child.stdout.read(len(HEADER) + 32)
    os.kill(child.pid, number)
    rest, error = child.communicate(timeout=30)
    assert child.returncode == 0
    assert numbers(begun + rest) == [0, 1, 99]
    assert error == b"3 frames captured, 4 lost by the capture\n"


def test_a_reader_that_has_enough_ends_it(telling):
    """vmq capture web - | tcpdump -c 1 -r -"""
    engine = telling(1, endless=True)
    child = subprocess.Popen(
        [sys.executable, "-m", "vmq", "capture", "web", "-", "--api", engine.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout
    assert engine.told.wait(30)
    child.stdout.read(8)
    child.stdout.close()
    os.kill(child.pid, signal.SIGINT)  # what comes next finds nobody
    assert child.wait(30) == 0


def test_a_file_that_cannot_be_written_is_said_with_its_name(vmq, telling):
    engine = telling(endless=True)
    code, _, error = vmq("capture", "web", "/nonexistent/a", "--api", engine.path)
    assert code == 2
    assert "cannot write /nonexistent/a" in error


def test_no_file_is_touched_before_the_engine_agrees(vmq, engine, tmp_path: Path):
    engine.refuse(status="INVALID_PARAMETER", message="capture: no VM 'web'", remedy="name a VM: a")
    path = tmp_path / "kept"
    path.write_text("before")
    code, _, error = vmq("capture", "web", str(path))
    assert code != 0
    assert "no VM 'web'" in error
    assert path.read_text() == "before"


def test_what_is_no_capture_is_refused(vmq, telling, tmp_path: Path):
    engine = telling(1, word="event")
    code, _, error = vmq("capture", "web", str(tmp_path / "a"), "--api", engine.path)
    assert code == 1
    assert "no capture" in error


@pytest.mark.parametrize(
    "words", [("--count", "0"), ("--snaplen", "-1"), ("--seconds", "0"), ("--dir", "in")]
)
def test_limits_are_checked_before_anything_is_asked(vmq, tmp_path: Path, words: tuple[str, str]):
    assert vmq("capture", "web", str(tmp_path / "a"), *words)[0] == 2


def test_blocks_that_lie_about_their_length_end_nothing():
    """What answers is trusted no further than its size."""
    assert [kind for kind, _ in blocks(struct.pack("<IIII", 6, 0, 5, 1 << 31) + b"abc")] == [6, 5]
