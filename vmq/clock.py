# SPDX-License-Identifier: Apache-2.0
"""The time, as kernels read it."""

from __future__ import annotations

from typing import Any

from vmq.abi.linux import CLOCK_MONOTONIC, timespec
from vmq.jit import at, int64, kernel, system_call

c_clock_gettime = system_call("clock_gettime", 2)


@kernel
def now(w: Any) -> int:
    """CLOCK_MONOTONIC in nanoseconds."""
    c_clock_gettime(CLOCK_MONOTONIC, w["clock"])
    row = at(w["clock"], 1, timespec)[0]
    return int64(row["sec"]) * 1_000_000_000 + int64(row["nsec"])
