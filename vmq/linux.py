# SPDX-License-Identifier: Apache-2.0
"""System calls that Python does not wrap: memory by address, signal handlers, what a descriptor is.

Set-up only; nothing here runs in the data plane. Failures are OSError, as in the standard library, except where a
path came from the operator.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

from vmq.abi.linux import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    SA_SIGINFO,
)
from vmq.errors import HostError

SOCKET_MODE = 0o660
DIRECTORY_MODE = 0o750
BACKLOG = 8  # connections that wait to be accepted
EVENTFD_MAX = (1 << 64) - 2
PAGE = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


class _Action(ctypes.Structure):
    """struct sigaction as glibc declares it (linux-signal.h)."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_char * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


def _map(address: int, length: int, flags: int, descriptor: int, offset: int) -> int:
    got = _libc.mmap(address, length, PROT_READ | PROT_WRITE, flags, descriptor, offset)
    if got == _FAILED or got is None:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(got)


def map_shared(descriptor: int, length: int) -> int:
    """Map the first `length` bytes of a file, readable and writable; the address."""
    return _map(0, length, MAP_SHARED | MAP_NORESERVE, descriptor, 0)


def map_private(length: int) -> int:
    """Zeroed memory of our own, taken from the host as it is touched; the address."""
    return _map(0, length, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)


def map_fixed(address: int, length: int) -> None:
    """Zeroed memory at exactly this address; nothing if it is there already."""
    try:
        _map(address, length, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0)
    except FileExistsError:
        return


def unmap(address: int, length: int) -> None:
    """Undo a mapping; it never fails for a mapping of ours."""
    if _libc.munmap(address, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def install_handler(number: int, address: int) -> None:
    """Make the C function at `address` the handler of a signal, with siginfo."""
    action = _Action(address, b"", SA_SIGINFO, None)
    if _libc.sigaction(number, ctypes.byref(action), None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def is_eventfd(descriptor: int) -> bool:
    """Whether a descriptor is an eventfd: the only kind that can neither block nor kill the one who writes it."""
    return os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:[eventfd]"


def eventfd_is_full(descriptor: int) -> bool:
    """Whether a blocking write of 1 would wait; False for what is no eventfd. linux-eventfd.h"""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "eventfd-count":
            return int(value, 16) == EVENTFD_MAX
    return False


def set_nonblocking(descriptor: int) -> None:
    """O_NONBLOCK, on the open file that we share with whoever sent it."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_NONBLOCK)


def listen(where: str, path: str, group: int) -> socket.socket:
    """A listening socket at `path`, mode 0660, of `group` (-1: ours); HostError, and no file, when it cannot be."""
    place = Path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        _make_directory(place.parent, group)
        _clear(where, place)
        sock.bind(path)
        _share(sock, place, group)
    except OSError as error:
        sock.close()
        wrong = f"{path}: {error.strerror or error}"
        raise HostError(where, wrong, "choose a path that this user may write") from error
    except HostError:
        sock.close()
        raise
    return sock


def _share(sock: socket.socket, place: Path, group: int) -> None:
    """Open a bound socket to its group; nobody can connect before."""
    try:
        os.chmod(place, SOCKET_MODE)
        if group >= 0:
            os.chown(place, -1, group)
        sock.listen(BACKLOG)
    except OSError:
        place.unlink(missing_ok=True)
        raise


def _make_directory(place: Path, group: int) -> None:
    """Make a directory and what is missing above it, for the group of the sockets."""
    if place.is_dir():
        return
    _make_directory(place.parent, group)
    place.mkdir()
    if group >= 0:
        os.chown(place, -1, group)
        place.chmod(DIRECTORY_MODE)


def _clear(where: str, place: Path) -> None:
    """Remove a socket file that nobody listens on. Only a refused connection says so: a busy listener does not."""
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise HostError(where, f"{place} exists and is no socket", "choose another path, or remove it")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with contextlib.closing(probe):
        code = probe.connect_ex(str(place))
    if code in (errno.EACCES, errno.EPERM):
        raise PermissionError(code, os.strerror(code))
    if code != errno.ECONNREFUSED:
        raise HostError(
            where, f"{place} is in use by another process", "stop that process, or choose another path"
        )
    place.unlink()
