# SPDX-License-Identifier: Apache-2.0
"""Guest memory: what is mapped, and what is refused before it could hurt."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from tests.engine.running import open_files
from vmq.errors import ProtocolError
from vmq.jit import at
from vmq.vhost.memory import PORT_BYTES_MAX, is_empty, map_region, unmap
from vmq.vhost.message import Region

PAGE = mmap.PAGESIZE


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as one:
        yield one


def memfd(stack: ExitStack, size: int, flags: int = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING) -> int:
    fd = os.memfd_create("guest", flags)
    stack.callback(os.close, fd)
    os.ftruncate(fd, size)
    return fd


def maps() -> int:
    with open("/proc/self/maps") as table:
        return table.read().count("memfd:guest")


def test_a_region_is_mapped_where_its_offset_says(stack: ExitStack):
    """vhost-user "Memory region description": the region begins at `offset` of the file, aligned or not."""
    fd = memfd(stack, 4 * PAGE)
    os.pwrite(fd, b"here", PAGE + 64)

    mapping = map_region(Region(0x1000, 2 * PAGE, 0x7000_0000, PAGE + 64, fd))

    assert at(mapping.host, 4, np.uint8).tobytes() == b"here"
    at(mapping.host, 4, np.uint8)[:] = np.frombuffer(b"back", np.uint8)
    assert os.pread(fd, 4, PAGE + 64) == b"back"
    unmap(mapping)
    assert maps() == 0


def test_a_mapping_ends_with_its_file(stack: ExitStack):
    """A page behind the end of a file is a SIGBUS: none is mapped."""
    fd = memfd(stack, 3 * PAGE)

    mapping = map_region(Region(0, PAGE, 0, PAGE, fd))

    assert mapping.length == 2 * PAGE
    unmap(mapping)


def test_a_region_larger_than_its_file_is_refused(stack: ExitStack):
    """H20.8, by one byte or by far: compared with the file before it is mapped."""
    fd = memfd(stack, 2 * PAGE)
    for size, offset in ((2 * PAGE + 1, 0), (PAGE, PAGE + 1), (1 << 40, 0), (PAGE, 1 << 62)):
        with pytest.raises(ProtocolError, match="too short"):
            map_region(Region(0, size, 0, offset, fd))
    assert maps() == 0


def test_an_empty_file_is_refused(stack: ExitStack):
    with pytest.raises(ProtocolError, match="4096 bytes too short"):
        map_region(Region(0, 4096, 0, 0, memfd(stack, 0)))


@pytest.mark.parametrize("kind", ["pipe", "directory", "eventfd", "tty", "null", "socket"])
def test_what_is_no_memory_file_is_refused_with_the_remedy(stack: ExitStack, kind: str):
    """H19.3: and the operator reads how memory is shared."""
    if kind == "pipe":
        fd, other = os.pipe()
        stack.callback(os.close, other)
    elif kind == "eventfd":
        fd = os.eventfd(0)
    elif kind == "tty":
        other, fd = os.openpty()
        stack.callback(os.close, other)
    elif kind == "socket":
        import socket

        fd = socket.socket(socket.AF_UNIX).detach()
    else:
        fd = os.open("/tmp" if kind == "directory" else "/dev/zero", os.O_RDONLY)
    stack.callback(os.close, fd)

    with pytest.raises(ProtocolError, match="no memory file") as refused:
        map_region(Region(0, PAGE, 0, 0, fd))

    assert "share=on" in refused.value.remedy


def test_a_file_that_cannot_be_written_is_refused(stack: ExitStack):
    """H19.3: O_RDONLY, and a memfd sealed against writing."""
    fd = os.open(f"/proc/self/fd/{memfd(stack, PAGE)}", os.O_RDONLY)
    stack.callback(os.close, fd)
    sealed = memfd(stack, PAGE)
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)

    for one in (fd, sealed):
        with pytest.raises(ProtocolError, match="cannot be mapped"):
            map_region(Region(0, PAGE, 0, 0, one))


def test_a_file_on_a_disk_is_refused(stack: ExitStack):
    """Its owner (FUSE, NFS) could hold up a page fault, and with it a worker and its neighbours."""
    fd = os.open(__file__, os.O_RDONLY)
    stack.callback(os.close, fd)
    with pytest.raises(ProtocolError, match="on a disk"):
        map_region(Region(0, 1, 0, 0, fd))


def test_a_path_only_descriptor_is_refused(stack: ExitStack, tmp_path):
    (tmp_path / "memory").write_bytes(bytes(PAGE))
    fd = os.open(tmp_path / "memory", os.O_PATH)
    stack.callback(os.close, fd)
    with pytest.raises(ProtocolError):
        map_region(Region(0, PAGE, 0, 0, fd))


def test_one_port_cannot_take_the_whole_address_space(stack: ExitStack):
    fd = memfd(stack, 1 << 44)
    unmap(map_region(Region(0, 1 << 44, 0, 0, fd)))
    with pytest.raises(ProtocolError, match="more than 16 TiB for one VM port"):
        map_region(Region(0, 1 << 43, 0, 0, fd), PORT_BYTES_MAX // 2 + 1)


def test_a_region_that_finds_no_room_is_refused(stack: ExitStack, monkeypatch: pytest.MonkeyPatch):
    """vm.max_map_count, or a memory limit: the remedy is another than for what cannot be shared."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("vmq.vhost.memory.linux.map_shared", full)
    with pytest.raises(ProtocolError, match="cannot be mapped") as refused:
        map_region(Region(0, PAGE, 0, 0, memfd(stack, PAGE)))
    assert "vm.max_map_count" in refused.value.remedy


def test_memory_sealed_against_shrinking_is_welcome(stack: ExitStack):
    fd = memfd(stack, PAGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    unmap(map_region(Region(0, PAGE, 0, 0, fd)))


def test_memory_in_which_nobody_has_written_is_told_apart(stack: ExitStack):
    """A front-end that maps its memory privately sends a file that stays empty."""
    fd = memfd(stack, 4 * PAGE)
    region = Region(0, 2 * PAGE, 0, 2 * PAGE, fd)
    os.pwrite(fd, b"another region's", 0)
    assert is_empty(region)
    os.pwrite(fd, b"ours", 2 * PAGE + 100)
    assert not is_empty(region)
    assert not is_empty(Region(0, PAGE, 0, 0, -1))


def test_mapping_opens_and_closes_no_descriptor(stack: ExitStack):
    """The descriptor stays the session's."""
    fd = memfd(stack, PAGE)
    before = open_files()
    mapping = map_region(Region(0, PAGE, 0, 0, fd))
    assert open_files() == before
    unmap(mapping)
    assert open_files() == before
