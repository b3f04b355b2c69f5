# SPDX-License-Identifier: Apache-2.0
"""Hugepages of 2 MiB for a block: reserved, mounted in a place of their own, and given back.

The engine needs none; its peers may. What a program leaves in the mount goes with it.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

SIZE_KIB = 2048
POOL = Path(f"/sys/kernel/mm/hugepages/hugepages-{SIZE_KIB}kB")


class NoHugepagesError(Exception):
    """This machine has none to give."""


def _read(name: str) -> int:
    return int((POOL / name).read_text())


@contextlib.contextmanager
def hugepages(mebibytes: int) -> Iterator[Path]:
    """A folder where so much can be mapped."""
    if not POOL.exists():
        raise NoHugepagesError("the kernel has no pages of 2 MiB")
    before, free = _read("nr_hugepages"), _read("free_hugepages")
    wanted = before + max(mebibytes * 1024 // SIZE_KIB - free, 0)
    with tempfile.TemporaryDirectory(prefix="vmq-huge-") as folder:
        try:
            try:
                (POOL / "nr_hugepages").write_text(str(wanted))
            except OSError as error:
                raise NoHugepagesError(f"they cannot be reserved: {error}") from error
            if _read("nr_hugepages") < wanted:
                raise NoHugepagesError(f"{mebibytes} MiB of them cannot be had")
            command = ["mount", "-t", "hugetlbfs", "-o", f"pagesize={SIZE_KIB}K", "hugetlbfs", folder]
            subprocess.run(command, check=True, timeout=30)
            try:
                yield Path(folder)
            finally:
                subprocess.run(["umount", "--lazy", folder], check=True, timeout=30)
        finally:
            (POOL / "nr_hugepages").write_text(str(before))
