# SPDX-License-Identifier: Apache-2.0
"""How much of the machine others take: a run begins when it is quiet, and says so when it never was; progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

LOOK_SECONDS, PATIENCE_SECONDS = 0.5, 120.0
QUIET = 0.1  # of all processors, at most


def say(line: str) -> None:
    """Progress."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def read() -> tuple[int, int]:
    """Ticks that all processors were idle, and all ticks: proc(5), /proc/stat."""
    return ticks(Path("/proc/stat").read_text())


def ticks(stat: str) -> tuple[int, int]:
    """(idle, all) of the first line: user nice system idle iowait irq softirq steal."""
    numbers = [int(word) for word in stat.splitlines()[0].split()[1:9]]
    return numbers[3] + numbers[4], sum(numbers)


def load(look: Callable[[], tuple[int, int]] = read, seconds: float = LOOK_SECONDS) -> float:
    """The share of all processors that is in use, over some time."""
    idle, total = look()
    time.sleep(seconds)
    idle_then, total_then = look()
    return 1 - (idle_then - idle) / max(total_then - total, 1)


def wait(patience: float = PATIENCE_SECONDS, measure: Callable[[], float] = load) -> float:
    """Wait until the machine is quiet, but not longer than `patience`; the load that is left."""
    deadline = time.monotonic() + patience
    while (share := measure()) > QUIET and time.monotonic() < deadline:
        pass
    return share
