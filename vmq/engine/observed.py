# SPDX-License-Identifier: Apache-2.0
"""Who looks at the frames of a VM port: captures, each with a ring for every receive queue, and the measurement.

A capture is linked where the worker of the queue looks (state.watch) and a version is published that has the worker
look there; to end it, the same backwards. Its memory is given back when every worker has adopted that version.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vmq import __version__, linux
from vmq.dataplane import state
from vmq.dataplane.sink import drain_blocks
from vmq.jit import address_of, at, compile_for, store_release
from vmq.publisher import RingEntry
from vmq.uplink import pcapng
from vmq.worker import make_ring

if TYPE_CHECKING:
    from vmq.engine.vm import Vm

Rows = npt.NDArray[Any]
Rings = dict[int, tuple[RingEntry, RingEntry]]
RING = 1 << 22  # bytes a receive queue: some 2600 frames of 1514 bytes between two looks
ROOM = 1 << 20  # bytes taken out at a time


def compile_captures() -> None:
    """Compile or load what empties a capture, before any worker starts."""
    compile_for(drain_blocks, "int64", "int64", "int64")


class Capture:
    """Frames of some receive queues of a VM port, from now on, as a pcapng file in pieces."""

    def __init__(self, vm: Vm, pairs: tuple[int, ...], directions: int, snaplen: int) -> None:
        self.vm, self.pairs, self.directions = vm, pairs, directions
        self._memory = [make_ring(RING) for _ in pairs]
        self._rings = [at(address, 1, state.byte_ring)[0] for address, _ in self._memory]
        self._out = np.empty(ROOM, np.uint8)
        self._turn = 0  # whose ring is emptied first
        self.began = time.time_ns()
        self.rows = np.zeros(len(pairs), state.capture)
        self.rows["ring"] = [address for address, _ in self._memory]
        self.rows["snaplen"], self.rows["directions"] = snaplen, directions
        self.rows["interface"] = range(len(pairs))
        # Once: a clock that is set in the middle of it moves no frame before another.
        self.rows["offset"] = self.began - time.monotonic_ns()
        comment = f"vmq capture; inbound: to the guest; addresses {', '.join(vm.config.mac)}"
        self.header = pcapng.section(f"vmq {__version__}") + b"".join(
            pcapng.interface(f"{vm.name}:{pair}", f"receive queue {pair} of VM {vm.name}", comment, snaplen)
            for pair in pairs
        )
        vm.observed.captures.append(self)
        vm.observed.link()

    @property
    def there(self) -> bool:
        """Whether its VM port is."""
        return self.vm.engine.vms.get(self.vm.name) is self.vm

    @property
    def kept(self) -> int:
        """Frames that went into its rings."""
        return sum(int(ring["kept"]) for ring in self._rings)

    @property
    def lost(self) -> int:
        """Frames for which there was no room."""
        return sum(int(ring["lost"]) for ring in self._rings)

    def blocks(self) -> bytes:
        """What was captured since the last call, ROOM bytes at most: whole blocks, queue after queue, each first in turn."""
        taken = b""
        self._turn = (self._turn + 1) % max(len(self._memory), 1)
        for address, _ in self._memory[self._turn :] + self._memory[: self._turn]:
            moved = int(drain_blocks(address, address_of(self._out), ROOM - len(taken)))
            taken += self._out[:moved].tobytes()
        return taken

    def statistics(self) -> bytes:
        """The end of the file."""
        now = time.time_ns()
        counts = [(int(ring["kept"]), int(ring["lost"])) for ring in self._rings]
        return b"".join(
            pcapng.statistics(number, self.began, now, kept + lost, lost)
            for number, (kept, lost) in enumerate(counts)
        )

    def stop(self) -> None:
        """Nothing more goes into its rings; TimeoutError if a processor is stuck."""
        if self in self.vm.observed.captures:
            self.vm.observed.captures.remove(self)
            self.vm.observed.link()

    def close(self) -> None:
        """Give everything back. It does not fail: what a stuck processor may still use stays as it is."""
        try:
            self.stop()
        except TimeoutError:
            return
        self._rings.clear()
        while self._memory:
            linux.unmap(*self._memory.pop())


class Observed:
    """What is captured and measured of one VM port."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.captures: list[Capture] = []
        self.measured = False
        self._before: Rows | None = None  # what the histograms stood at when the measurement began

    @property
    def any(self) -> bool:
        """Whether anybody looks at its frames."""
        return bool(self.captures) or self.measured

    def link(self) -> None:
        """Have the workers look at what there is now; go on when all do."""
        engine = self.vm.engine
        if engine.vms.get(self.vm.name) is self.vm:  # its rows may be another one's by now
            for pair in range(self.vm.config.queue_pairs):
                self._link(pair)
        engine.publish()

    def _link(self, pair: int) -> None:
        """The captures of one receive queue, in a list that a worker may walk meanwhile."""
        following = 0
        for one in reversed(self.captures):
            if pair in one.pairs:
                row = one.rows[one.pairs.index(pair)]
                # us: the row, then what leads to it | worker: what leads to it, then the row.
                store_release(row, "next", following)
                following = address_of(one.rows) + one.pairs.index(pair) * state.capture.itemsize
        watch = self.vm.engine.segment.rows["watches"][self.vm.first_queue + pair]
        watch["measured"] = self.measured
        store_release(watch, "captures", following)

    def marked(self, rings: Rings) -> Rings:
        """Rings of which somebody wants to know."""
        if not self.captures and not self.measured:
            return rings
        return {
            pair: (
                _mark(to_guest, wanted=self.measured or self._wanted(pair, state.TO_GUEST)),
                _mark(from_guest, wanted=self._wanted(pair, state.FROM_GUEST)),
            )
            for pair, (to_guest, from_guest) in rings.items()
        }

    def _wanted(self, pair: int, direction: int) -> bool:
        return any(pair in one.pairs and one.directions & direction for one in self.captures)

    def measure(self, *, on: bool) -> None:
        """Begin a measurement of how long frames are under way, or end it. What was measured stays until the next."""
        if on:
            self._before = self._latencies().copy()
        self.measured = on
        self.link()

    def _latencies(self) -> Rows:
        first = self.vm.first_queue
        rows: Rows = self.vm.engine.segment.rows["latencies"][first : first + self.vm.config.queue_pairs]
        return rows

    def latencies(self) -> Rows:
        """A row for each receive queue since the measurement began."""
        now = self._latencies().copy()
        before = now if self._before is None else self._before
        now.view(np.int64)[:] -= before.view(np.int64)
        return now


def _mark(ring: RingEntry, *, wanted: bool) -> RingEntry:
    return replace(ring, features=ring.features | state.RING_OBSERVED) if wanted else ring
