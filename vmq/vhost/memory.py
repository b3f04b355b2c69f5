# SPDX-License-Identifier: Apache-2.0
"""Guest memory in our address space: map what a front-end shares, refuse what could hurt.

A region is mapped from the start of its file (an offset need not be aligned to a huge page), rounded up to the
file's block size, and never beyond the file: a page behind its end is a SIGBUS. A file may still be truncated later;
dataplane/faults.py contains that, and a memfd sealed against shrinking cannot be. Guest addresses lie below 2^63
(protocol.py), so kernels compare them as signed numbers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from dataclasses import dataclass

from vmq import linux
from vmq.errors import ProtocolError
from vmq.vhost.message import MEMORY_REMEDY, Region

MEMORY = 'vhost-user "Memory region description"'
PORT_BYTES_MAX = 1 << 44  # that one VM port may have mapped: an eighth of what a process can address
SAMPLE_BYTES = 1 << 16  # of a region: firmware, interrupt vectors or a kernel lie in the first of every guest


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapped region: `host` is where its first guest byte lies, `address` and `length` what to unmap."""

    region: Region
    address: int
    length: int
    host: int


def map_region(region: Region, mapped: int = 0) -> Mapping:
    """Map one region; ProtocolError if its descriptor is no shared memory that holds it.

    `mapped`: bytes that its VM port has mapped already.
    """
    about = os.fstat(region.fd)
    where = f"region at guest address {region.gpa:#x}"
    if not stat.S_ISREG(about.st_mode):
        raise ProtocolError(MEMORY, f"{where}: its descriptor is no memory file", MEMORY_REMEDY)
    if not _is_memory(region.fd):
        raise ProtocolError(MEMORY, f"{where}: its file is on a disk, which may stall", MEMORY_REMEDY)
    if about.st_size < region.offset + region.size:
        missing = region.offset + region.size - about.st_size
        raise ProtocolError(MEMORY, f"{where}: its file is {missing} bytes too short")
    if mapped + region.offset + region.size > PORT_BYTES_MAX:
        raise ProtocolError(MEMORY, f"{where}: more than {PORT_BYTES_MAX >> 40} TiB for one VM port")
    block = max(about.st_blksize, linux.PAGE)
    length = -(-(region.offset + region.size) // block) * block
    try:
        address = linux.map_shared(region.fd, length)
    except OSError as error:
        full = error.errno == errno.ENOMEM
        remedy = "raise vm.max_map_count, or the memory limit of vmq" if full else MEMORY_REMEDY
        raise ProtocolError(MEMORY, f"{where}: it cannot be mapped: {error.strerror}", remedy) from error
    return Mapping(region, address, length, address + region.offset)


def _is_memory(descriptor: int) -> bool:
    """Whether a file is tmpfs, memfd or hugetlbfs: only those have seals. Another's owner could hold up a page fault."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def unmap(mapping: Mapping) -> None:
    """Undo `map_region`; no worker looks there any more."""
    linux.unmap(mapping.address, mapping.length)


def is_empty(region: Region) -> bool:
    """Whether a region begins with nothing but zeros: no guest that has started leaves the memory that we see so."""
    try:
        return not os.pread(region.fd, SAMPLE_BYTES, region.offset).strip(b"\0")
    except OSError:
        return False  # it cannot be told
