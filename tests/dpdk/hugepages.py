# SPDX-License-Identifier: Apache-2.0
"""Hugepages of 2 MiB, reserved and given back; the engine needs none, its peers may."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

SIZE_KIB = 2048
_POOL = Path(f"/sys/kernel/mm/hugepages/hugepages-{SIZE_KIB}kB")


def _read(name: str) -> int:
    return int((_POOL / name).read_text())


def can_reserve() -> bool:
    """Whether this kernel has such pages and lets us ask for them, with a place to put them."""
    try:
        return (_POOL / "nr_hugepages").exists() and "/dev/hugepages" in Path("/proc/mounts").read_text()
    except OSError:
        return False


@contextlib.contextmanager
def reserved(mebibytes: int) -> Iterator[bool]:
    """At least so much that is free, inside the block; False if the kernel has no room for it."""
    before = _read("nr_hugepages")
    wanted = before + max(mebibytes * 1024 // SIZE_KIB - _read("free_hugepages"), 0)
    try:
        (_POOL / "nr_hugepages").write_text(str(wanted))
        yield _read("nr_hugepages") >= wanted
    finally:
        (_POOL / "nr_hugepages").write_text(str(before))
