# SPDX-License-Identifier: Apache-2.0
"""System calls that Python does not wrap."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vmq import linux
from vmq.errors import HostError
from vmq.jit import at

WHERE = "vmq.toml: [vm.web] socket"


def test_private_memory_is_zero_and_ours():
    address = linux.map_private(1 << 20)
    rows = at(address, 1 << 20, np.uint8)
    assert not rows.any()
    rows[:] = 1
    del rows
    linux.unmap(address, 1 << 20)


def test_shared_memory_is_the_file():
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 8192)
    address = linux.map_shared(fd, 8192)
    at(address, 3, np.uint8)[:] = (1, 2, 3)
    assert os.pread(fd, 3, 0) == b"\1\2\3"
    linux.unmap(address, 8192)
    os.close(fd)


def test_failures_are_errors_of_the_system():
    with pytest.raises(OSError, match="Bad file descriptor"):
        linux.map_shared(-1, 4096)
    with pytest.raises(OSError, match="Invalid argument"):
        linux.unmap(1, 4096)
    with pytest.raises(OSError, match="Invalid argument"):
        linux.install_handler(signal.SIGKILL, 0)


def test_fixed_memory_may_be_there_already():
    """The anchor of a second engine in one process."""
    place = linux.map_private(linux.PAGE)
    at(place, 1, np.int64)[0] = 7
    linux.map_fixed(place, linux.PAGE)
    assert at(place, 1, np.int64)[0] == 7
    linux.unmap(place, linux.PAGE)
    linux.map_fixed(place, linux.PAGE)
    assert at(place, 1, np.int64)[0] == 0
    linux.unmap(place, linux.PAGE)


def test_an_eventfd_is_known_from_all_else():
    """Only an eventfd can neither kill who writes to it nor block once it is told not to."""
    event, (end, other), file = os.eventfd(0), os.pipe(), os.memfd_create("[eventfd]")
    assert linux.is_eventfd(event)
    assert not any(map(linux.is_eventfd, (end, other, file)))
    for fd in (event, end, other, file):
        os.close(fd)


def test_a_full_eventfd_is_known_without_touching_it():
    event, file = os.eventfd(0, os.EFD_NONBLOCK), os.memfd_create("x")
    os.eventfd_write(event, 3)
    assert not linux.eventfd_is_full(event)
    os.eventfd_write(event, (1 << 64) - 2 - 3)
    assert linux.eventfd_is_full(event)
    assert os.eventfd_read(event) == (1 << 64) - 2
    assert not linux.eventfd_is_full(file)
    os.close(event)
    os.close(file)
    with pytest.raises(FileNotFoundError):
        linux.eventfd_is_full(event)


def test_nonblocking_is_set_on_the_open_file():
    event = os.eventfd(0)
    copy = os.dup(event)
    linux.set_nonblocking(copy)
    assert not os.get_blocking(event)
    os.close(event)
    os.close(copy)


def test_a_signal_gets_a_handler_of_c():
    """In a process of its own: handlers are the process's. `abort` serves as the handler."""
    script = (
        "import ctypes, os, signal\n"
        "from vmq import linux\n"
        "libc = ctypes.CDLL(None)\n"
        "linux.install_handler(signal.SIGUSR1, ctypes.cast(libc._exit, ctypes.c_void_p).value)\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], timeout=60)
    assert ended.returncode == signal.SIGUSR1  # _exit(signal number)


# --- sockets ----------------------------------------------------------------------------------------------------


def test_a_socket_has_its_mode_and_its_directories(tmp_path: Path):
    """design §4: 0660, and the directories it creates."""
    path = tmp_path / "run" / "vmq" / "web.sock"
    with linux.listen(WHERE, str(path), -1):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.root
def test_socket_and_new_directories_belong_to_the_group(tmp_path: Path):
    """design §4, `group`: directories that were there stay as they are."""
    path = tmp_path / "run" / "vmq" / "web.sock"
    before = tmp_path.stat()
    with linux.listen(WHERE, str(path), 7):
        for place in (path, path.parent, path.parent.parent):
            assert place.stat().st_gid == 7
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    assert (tmp_path.stat().st_gid, tmp_path.stat().st_mode) == (before.st_gid, before.st_mode)


def test_a_stale_socket_is_replaced(tmp_path: Path):
    path = str(tmp_path / "web.sock")
    linux.listen(WHERE, path, -1).close()
    assert Path(path).exists()
    linux.listen(WHERE, path, -1).close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_in_use_is_left_alone(tmp_path: Path, kind: socket.SocketKind):
    path = str(tmp_path / "web.sock")
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(path)
        if kind != socket.SOCK_DGRAM:
            other.listen(1)
        with pytest.raises(HostError, match="in use by another process"):
            linux.listen(WHERE, path, -1)
        assert Path(path).exists()


def test_a_busy_listener_is_not_taken_for_a_dead_one(tmp_path: Path):
    """Its backlog is full: that is no refusal."""
    path = str(tmp_path / "web.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            with pytest.raises(HostError, match="in use by another process"):
                linux.listen(WHERE, path, -1)
        assert Path(path).exists()


def test_what_is_no_socket_is_left_alone(tmp_path: Path):
    (tmp_path / "web.sock").write_text("precious")
    with pytest.raises(HostError, match="exists and is no socket"):
        linux.listen(WHERE, str(tmp_path / "web.sock"), -1)
    assert (tmp_path / "web.sock").read_text() == "precious"


def test_what_cannot_be_made_is_one_line_with_the_remedy(tmp_path: Path):
    """A directory that is a file, a path that is too long."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "web.sock", tmp_path / ("x" * 120)):
        with pytest.raises(HostError) as refused:
            linux.listen(WHERE, str(path), -1)
        assert str(refused.value).startswith(f"{WHERE}: {path}: ")
        assert "None" not in str(refused.value)
        assert refused.value.remedy


def test_a_socket_that_cannot_be_shared_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing half-started."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("vmq.linux.os.chown", refuse)
    with pytest.raises(HostError, match="not permitted"):
        linux.listen(WHERE, str(tmp_path / "web.sock"), 7)
    assert list(tmp_path.iterdir()) == []
