# SPDX-License-Identifier: Apache-2.0
"""The processors that this process may use, and the one of a thread."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def on_processor(cpu: int) -> Iterator[None]:
    """This thread runs there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def processors() -> frozenset[int]:
    """Those that this process may use: of all its threads, as some keep to one and control keeps off those."""
    found = set(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            found |= os.sched_getaffinity(int(thread))
    return frozenset(found)
