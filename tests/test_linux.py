# SPDX-License-Identifier: Apache-2.0
"""System calls that Python does not wrap."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import subprocess
import sys

import numpy as np
import pytest

from vmq import linux
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


def test_bpf_gives_descriptors_or_errors_of_the_system():
    with pytest.raises(OSError, match="Invalid argument"):
        linux.bpf(999, bytearray(8))


def test_a_socket_is_bound_to_an_address_of_any_family():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        linux.bind_socket(one.fileno(), struct.pack("=HH4s8x", socket.AF_INET, 0, bytes([127, 0, 0, 1])))
        assert one.getsockname()[0] == "127.0.0.1"
        with pytest.raises(OSError, match="Invalid argument"):
            linux.bind_socket(one.fileno(), struct.pack("=HH4s8x", socket.AF_INET, 0, bytes(4)))


def test_a_ring_is_the_file_from_an_offset():
    fd = os.memfd_create("ring")
    os.ftruncate(fd, 3 * linux.PAGE)
    os.pwrite(fd, b"here", linux.PAGE)
    address = linux.map_ring(fd, linux.PAGE, linux.PAGE)
    assert bytes(at(address, 4, np.uint8)) == b"here"
    linux.unmap(address, linux.PAGE)
    os.close(fd)


def test_the_kernel_is_waited_for_without_a_descriptor_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As root by closing a socket; where there is none to be had, by a call that needs none."""

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("vmq.linux.socket.socket", none_left)
    linux.grace_period()
    monkeypatch.setattr(linux, "MEMBARRIER_CMD_GLOBAL", 1 << 30)
    with pytest.raises(OSError, match="Invalid argument"):
        linux.grace_period()
