# SPDX-License-Identifier: Apache-2.0
"""Maps: tables that a program in the kernel and this process share. One descriptor each; closed, it is gone.

Keys and values are bytes of the sizes that the map was made with. A per-CPU map has a value for each processor that
the host may ever have, and a program touches that of its own: counters need no atomic instruction.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vmq import linux
from vmq.abi import bpf
from vmq.bpf.descriptor import Descriptor

PER_CPU_ALIGN = 8  # bytes that a processor's value is rounded up to
POSSIBLE = Path("/sys/devices/system/cpu/possible")


def attribute(structure: np.dtype[Any], **values: int | bytes) -> bytearray:
    """A structure of a command, its other fields zero."""
    row = np.zeros(1, structure)
    for name, value in values.items():
        row[name] = value
    return bytearray(row.tobytes())


def possible_cpus() -> int:
    """How many values a per-CPU map holds for a key."""
    last = POSSIBLE.read_text().strip().rpartition(",")[2].rpartition("-")[2]
    return int(last) + 1


class Map(Descriptor):
    """A map of `entries` pairs at most."""

    def __init__(self, kind: int, name: str, entries: int, key_size: int = 4, value_size: int = 4) -> None:
        self.kind, self.name, self.entries = kind, name, entries
        self.key_size, self.value_size = key_size, value_size
        self._copies = possible_cpus() if kind == bpf.BPF_MAP_TYPE_PERCPU_ARRAY else 1
        asked = attribute(
            bpf.map_create,
            map_type=kind,
            key_size=key_size,
            value_size=value_size,
            max_entries=entries,
            map_name=name.encode()[: bpf.BPF_OBJ_NAME_LEN - 1],
        )
        self.fd = linux.bpf(bpf.BPF_MAP_CREATE, asked)

    def _stride(self) -> int:
        if self._copies == 1:
            return self.value_size
        return (self.value_size + PER_CPU_ALIGN - 1) // PER_CPU_ALIGN * PER_CPU_ALIGN

    def _do(self, command: int, key: bytes | None, value: Any = None, flags: int = 0) -> None:
        if key is not None and len(key) != self.key_size:
            raise ValueError(f"a key of {self.name} has {self.key_size} bytes, not {len(key)}")
        stored = np.frombuffer(key, np.uint8) if key is not None else None
        asked = attribute(
            bpf.map_element,
            map_fd=self.fd,
            key=0 if stored is None else stored.ctypes.data,
            value=0 if value is None else value.ctypes.data,
            flags=flags,
        )
        linux.bpf(command, asked)

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key, None without one; of a per-CPU map all of them, one behind the other."""
        found = np.zeros(self._stride() * self._copies, np.uint8)
        try:
            self._do(bpf.BPF_MAP_LOOKUP_ELEM, key, found)
        except FileNotFoundError:
            return None
        return found.tobytes()

    def update(self, key: bytes, value: bytes) -> None:
        """Set the value of a key, there or not. A full map refuses another key: E2BIG."""
        if len(value) != self._stride() * self._copies:
            raise ValueError(f"a value of {self.name} has {self._stride() * self._copies} bytes")
        self._do(bpf.BPF_MAP_UPDATE_ELEM, key, np.frombuffer(value, np.uint8))

    def delete(self, key: bytes) -> None:
        """Take a key out; nothing if it is not there."""
        try:
            self._do(bpf.BPF_MAP_DELETE_ELEM, key)
        except FileNotFoundError:
            return

    def keys(self) -> Iterator[bytes]:
        """Every key, in no order, while nobody changes the map."""
        key: bytes | None = None
        while True:
            following = np.zeros(self.key_size, np.uint8)
            try:
                self._do(bpf.BPF_MAP_GET_NEXT_KEY, key, following)
            except FileNotFoundError:
                return
            key = following.tobytes()
            yield key

    def total(self, index: int) -> int:
        """The sum over all processors of one 64-bit counter of a per-CPU array."""
        found = self.lookup(index.to_bytes(4, "little")) or b""
        return int(np.frombuffer(found, np.uint64).sum())


def hash_map(name: str, entries: int, key_size: int, value_size: int) -> Map:
    return Map(bpf.BPF_MAP_TYPE_HASH, name, entries, key_size, value_size)


def counters(name: str, entries: int) -> Map:
    """64-bit counters under the numbers from 0, one a processor: `total`."""
    return Map(bpf.BPF_MAP_TYPE_PERCPU_ARRAY, name, entries, 4, 8)


def device_map(name: str, entries: int) -> Map:
    """Devices by number, to be redirected to: values are interface indices."""
    return Map(bpf.BPF_MAP_TYPE_DEVMAP, name, entries)


def socket_map(name: str, entries: int) -> Map:
    """AF_XDP sockets by number, to be redirected to: values are descriptors, and a closed socket leaves the map."""
    return Map(bpf.BPF_MAP_TYPE_XSKMAP, name, entries)
