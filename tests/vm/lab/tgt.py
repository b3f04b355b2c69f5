# SPDX-License-Identifier: Apache-2.0
"""The host's iSCSI target: tgtd in a namespace, with a file as its disk.

tgtd is steered by tgtadm over a UNIX socket in the file system, which namespaces share: each instance has a number
of its own. The disk is LUN 1 of the target `recipes.ISCSI_TARGET`, open to every initiator.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.lab.errors import LabTimeoutError
from tests.vm.lab.netns import Namespace
from tests.vm.lab.recipes import ISCSI_TARGET

START_SECONDS = 10
SOCKET = "/var/run/tgtd/socket"
_NUMBERS = itertools.count(1 + os.getpid() % 16384)  # tgtd takes 16 bits


@contextmanager
def iscsi_server(namespace: Namespace, folder: Path, mebibytes: int = 16) -> Iterator[Path]:
    """Serve a disk on port 3260 of every address of the namespace; gives the file behind the disk."""
    number = next(str(i) for i in _NUMBERS if not Path(f"{SOCKET}.{i}").exists())
    disk, log = folder / "disk", folder / "tgtd.log"
    with disk.open("wb") as file:
        file.truncate(mebibytes << 20)
    process = namespace.popen("tgtd", "-f", "-C", number, log=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "State: ready" not in _tgtadm(namespace, number, "show", "sys", check=False):
            if process.poll() is not None or time.monotonic() > deadline:
                raise LabTimeoutError(f"tgtd did not start:\n{log.read_text()}")
            time.sleep(0.1)
        _tgtadm(namespace, number, "new", "target", "--tid", "1", "-T", ISCSI_TARGET)
        _tgtadm(namespace, number, "new", "logicalunit", "--tid", "1", "--lun", "1", "-b", str(disk))
        _tgtadm(namespace, number, "bind", "target", "--tid", "1", "-I", "ALL")
        yield disk
    finally:
        process.kill()  # it ends only after its sessions when asked politely
        process.wait(10)
        for suffix in ("", ".lock"):
            Path(f"{SOCKET}.{number}{suffix}").unlink(missing_ok=True)


def _tgtadm(
    namespace: Namespace, number: str, operation: str, mode: str, *more: str, check: bool = True
) -> str:
    command = ("tgtadm", "-C", number, "--lld", "iscsi", "--op", operation, "--mode", mode, *more)
    return namespace.run(*command, check=check)
