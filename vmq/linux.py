# SPDX-License-Identifier: Apache-2.0
"""System calls that Python does not wrap: memory by address, signal handlers, what a descriptor is, bpf(2).

Set-up only; nothing here runs in the data plane. Failures are OSError, as in the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
from pathlib import Path

from vmq.abi.bpf import NR_BPF
from vmq.abi.linux import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MEMBARRIER_CMD_GLOBAL,
    NR_MEMBARRIER,
    PROT_READ,
    PROT_WRITE,
    SA_SIGINFO,
)

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
_libc.syscall.restype = ctypes.c_long
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


def map_ring(descriptor: int, length: int, offset: int) -> int:
    """Map a ring that the kernel shares under an offset of a socket, its pages there at once; the address."""
    return _map(0, length, MAP_SHARED | MAP_POPULATE, descriptor, offset)


def map_over(address: int, descriptor: int, length: int, offset: int) -> None:
    """Map `length` bytes of a file, from `offset` on, in the place of memory of ours."""
    _map(address, length, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, descriptor, offset)


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


def eventfd_empty(descriptor: int) -> None:
    """Take what an eventfd holds (of a semaphore: one), in whatever mode it is; nothing when it is empty."""
    with contextlib.suppress(BlockingIOError):
        os.preadv(descriptor, [bytearray(8)], -1, os.RWF_NOWAIT)


def set_nonblocking(descriptor: int) -> None:
    """O_NONBLOCK, on the open file that we share with whoever sent it."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_NONBLOCK)


def bpf(command: int, attribute: bytearray) -> int:
    """Give the kernel a command of its bpf system call; what it answers. It reads and writes `attribute`, and what that points to."""
    memory = (ctypes.c_char * len(attribute)).from_buffer(attribute)
    given = _libc.syscall(ctypes.c_long(NR_BPF), ctypes.c_int(command), memory, ctypes.c_uint(len(attribute)))
    if given < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(given)


def unshare(flags: int) -> None:
    """Give this thread namespaces of its own."""
    _done(_libc.unshare(flags))


def setns(descriptor: int, kind: int) -> None:
    """Let this thread enter a namespace."""
    _done(_libc.setns(descriptor, kind))


def grace_period() -> None:
    """Wait until no processor runs what it had begun to run in the kernel: programs and polls of devices (RCU).

    To close a packet socket waits for that: linux, net/packet/af_packet.c, packet_release(). Without a descriptor for one, membarrier(2) does,
    which kernels with `nohz_full` refuse. OSError: the kernel cannot be waited for.
    """
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except OSError:
        _done(_libc.syscall(ctypes.c_long(NR_MEMBARRIER), ctypes.c_int(MEMBARRIER_CMD_GLOBAL), 0, 0))


def _done(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def bind_socket(descriptor: int, address: bytes) -> None:
    """bind(2) with an address of a family that Python does not know."""
    if _libc.bind(descriptor, address, len(address)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
