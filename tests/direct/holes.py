# SPDX-License-Identifier: Apache-2.0
"""Pages given back to the host, as a front-end does with those of a balloon: fallocate(2)."""

from __future__ import annotations

import ctypes

from vmq.linux import PAGE

PUNCH_HOLE, KEEP_SIZE = 2, 1


def punch(descriptor: int, place: int) -> None:
    """Give the page at `place` of a file back; it is still as long."""
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    assert call(descriptor, PUNCH_HOLE | KEEP_SIZE, place, PAGE) == 0
