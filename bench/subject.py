# SPDX-License-Identifier: Apache-2.0
"""One side of a comparison (compare.py): it reads the name of a row a line, and writes ns a frame a line.

The rows are of the engine alone, so that a figure takes milliseconds and no peer has a part in it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import partial

from bench.core import Core, compile_kernels
from bench.cost import with_guests, with_queues
from bench.systems import ENGINE_CPU
from vmq.affinity import on_processor

ROWS: dict[str, Callable[[], Core]] = {
    "own-64-4": partial(with_guests, 64, 4, shared=False),
    "own-1514-4": partial(with_guests, 1514, 4, shared=False),
    "queues-256": partial(with_queues, 256),
}


def main() -> None:
    compile_kernels()
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_processor(ENGINE_CPU))
        cores = {name: stack.enter_context(make()) for name, make in ROWS.items()}
        for core in cores.values():
            core.nanoseconds()
        sys.stdout.write("ready\n")
        for line in iter(sys.stdin.readline, ""):
            sys.stdout.write(f"{cores[line.strip()].nanoseconds():.3f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
