# SPDX-License-Identifier: Apache-2.0
"""A thread that frees whoever hangs in a call.

A call is a write to an eventfd that a front-end has given us, in non-blocking mode. The mode belongs to the open file,
so the front-end can take it back, fill the counter, and the next call never returns: neither a worker's nor control's.
No other way to write to an eventfd refuses to wait. So everybody notes the descriptor before a call, and this thread
looks; for one who has been in the same call for a whole interval the mode is set again and the counter emptied. The
call itself then goes through: whoever hung in it writes it now. Nothing here waits: the counter is read with
RWF_NOWAIT, whatever mode the other end has set meanwhile.

It does nothing else: what becomes of the VM port is decided by control, which finds the descriptor in `freed`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Sequence

from vmq import linux
from vmq.worker import Worker

INTERVAL = 0.05  # seconds; a look costs some 50 µs


class Watchdog:
    """Looks after the calls of `workers` and of control."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers
        self.freed: deque[int] = deque(maxlen=64)  # descriptors that somebody hung in
        self._calling = (0, 0)  # descriptor + 1 and number of control's call
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="vmq-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop looking; twice is once."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def call(self, descriptor: int) -> None:
        """Call a driver from control."""
        number = self._calling[1] + 1
        self._calling = (descriptor + 1, number)
        with contextlib.suppress(BlockingIOError):  # a full counter is a call already
            os.eventfd_write(descriptor, 1)
        self._calling = (0, number)

    def _places(self) -> list[tuple[int, int]]:
        """Descriptor + 1, and a number that changes from call to call; control first."""
        return [self._calling, *((int(one.row["calling"]), int(one.row["rounds"])) for one in self.workers)]

    def _look(self) -> None:
        before = self._places()
        while not self._stop.wait(INTERVAL):
            now = self._places()
            for place, earlier in zip(now, before, strict=True):
                if place[0] and place == earlier:
                    self._free(place[0] - 1)
            before = now

    def _free(self, descriptor: int) -> None:
        """Free whoever hangs in a call; one that is merely slow, or over by now, finds its counter not full."""
        with contextlib.suppress(OSError):
            if linux.eventfd_is_full(descriptor):
                linux.set_nonblocking(descriptor)
                self.freed.append(descriptor)
                linux.eventfd_empty(descriptor)
