# SPDX-License-Identifier: Apache-2.0
"""A processor: a CPU and the one pinned thread that stays in the compiled loop (dataplane/loop.py).

The thread's scratch memory, its epoll set and its doorbell are made here, before it starts. Descriptors are added
to and taken from the epoll set by control at any time; they are watched edge-triggered, so that nobody has to read
a kick, a peer that fills its eventfd stops only its own kicks, and a device that is gone does not wake us for ever.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
import time

from vmq import linux
from vmq.abi.linux import UIO_MAXIOV, epoll_event, iovec, rusage
from vmq.dataplane import loop, state
from vmq.dataplane.match import columns
from vmq.jit import address_of, at, compile_for
from vmq.publisher import Segment

HANDOVER_BYTES = 1 << 20  # a hand-over ring: about 700 frames of 1514 bytes
JOIN_SECONDS = 5.0

_SCRATCH = {
    "frames": state.FRAMES * state.frame.itemsize,
    "heads": (state.FRAMES + 1) * state.HEAD_STRIDE,
    "pieces": state.PIECES * state.piece.itemsize,
    "targets": state.PIECES * state.piece.itemsize,
    "deliveries": state.DELIVERIES * state.delivery.itemsize,
    "todo": state.MAX_QUEUES * state.todo.itemsize,
    "touched": state.DELIVERIES * 8,
    "outgoing": state.FRAMES * 8,
    "claims": state.CLAIMS * state.claim.itemsize,
    "chains": state.BURST * state.chain.itemsize,
    "posted": state.FRAMES * state.chain.itemsize,
    "iovecs": UIO_MAXIOV * iovec.itemsize,
    "header": 64,
    "scratch": 64,
    "clock": 64,
    "usage": rusage.itemsize,
    "columns": columns.itemsize,
    "order": state.MAX_QUEUES * 8,
    "quiet": state.MAX_QUEUES * 4,
    "bounce": state.BOUNCE,
    "arena": state.ARENA,
    "ready": state.READY * epoll_event.itemsize,
    "events": state.EVENTS * state.event.itemsize,
}


def compile_loop() -> None:
    """Compile or load the loop and everything below it."""
    compile_for(loop.run, "int64")


def link_rings(segment: Segment) -> list[tuple[int, int]]:
    """Make the hand-over rings of every ordered pair of workers, and of each with itself: its default queue.

    (address, length) of each to undo.
    """
    made = []
    workers = range(int(segment.engine["worker_count"]))
    for hold, sender, owner in itertools.product(range(2), workers, workers):
        address, length = make_ring(HANDOVER_BYTES)
        segment.rows["rings"][(hold * state.MAX_WORKERS + sender) * state.MAX_WORKERS + owner] = address
        made.append((address, length))
    return made


def make_ring(size: int) -> tuple[int, int]:
    """An empty byte ring of `size` bytes (a power of two): its address and the length of its mapping."""
    length = state.byte_ring.itemsize + size
    address = linux.map_private(length)
    ring = at(address, 1, state.byte_ring)[0]
    ring["size"], ring["data"] = size, address + state.byte_ring.itemsize
    return address, length


class Worker:
    """One processor. `index` is its row; `cpu` where its thread is pinned."""

    def __init__(self, segment: Segment, index: int, cpu: int) -> None:
        self.segment, self.index, self.cpu = segment, index, cpu
        self.row = segment.rows["workers"][index]
        self.epoll = select.epoll()
        self.doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.epoll.register(self.doorbell, select.EPOLLIN | select.EPOLLET)
        self.failure: BaseException | None = None
        self.thread_id = 0
        self._length = sum((size + 63) & ~63 for size in _SCRATCH.values())
        self._scratch = place = linux.map_private(self._length)
        for name, size in _SCRATCH.items():
            self.row[name] = place
            place += (size + 63) & ~63
        at(int(self.row["todo"]), state.MAX_QUEUES, state.todo)["first"] = state.NONE
        self.row["index"], self.row["engine"] = index, segment.address
        self.misses = segment.rows["misses"][index * state.MAX_VPORTS : (index + 1) * state.MAX_VPORTS]
        self.strangers = segment.rows["strangers"][index * state.STRANGERS : (index + 1) * state.STRANGERS]
        self.row["misses"], self.row["strangers"] = address_of(self.misses), address_of(self.strangers)
        self.row["epoll_fd"], self.row["doorbell_fd"] = self.epoll.fileno(), self.doorbell
        self._seen_events = self._began = 0
        self._thread = threading.Thread(target=self._run, name=f"vmq-cpu{cpu}", daemon=True)

    def start(self) -> None:
        """Start the thread; the engine's tables have been published once."""
        self._began = time.monotonic_ns()
        self._thread.start()

    def _run(self) -> None:
        try:
            os.sched_setaffinity(0, {self.cpu})
            self.thread_id = threading.get_native_id()
            loop.run(address_of(self.segment.rows["workers"][self.index : self.index + 1]))
        except BaseException as problem:  # noqa: BLE001 - the daemon ends the process: a worker never dies in silence
            self.failure = problem
            self.row["epoch"] = state.EPOCH_GONE  # nobody waits for it
            os.eventfd_write(self.segment.control_fd, 1)

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def busy_ns(self) -> int:
        """Time awake so far, without that in which it looked for work; the kernels add it up when they fall asleep."""
        woke, idle = int(self.row["woke"]), int(self.row["idle_since"])
        if self.row["sleeping"] or not woke:
            return int(self.row["busy_ns"])
        return int(self.row["busy_ns"]) + max((idle or time.monotonic_ns()) - woke, 0)

    @property
    def busy_ratio(self) -> float | None:
        """The share of its life in which it had work; None before it began."""
        return self.busy_ns / (time.monotonic_ns() - self._began) if self._began else None

    def watch(self, descriptor: int) -> None:
        """Wake the worker when `descriptor` becomes readable."""
        self.epoll.register(descriptor, select.EPOLLIN | select.EPOLLET)

    def forget(self, descriptor: int) -> None:
        """Undo `watch`; before the descriptor is closed, since a peer may hold the same open file. It does not fail."""
        with contextlib.suppress(FileNotFoundError):
            self.epoll.unregister(descriptor)

    def events(self) -> list[tuple[int, int, int]]:
        """(kind, vport, value) of every event since the last call that the worker has not overwritten meanwhile."""
        head = int(self.row["event_head"])
        first, self._seen_events = self._seen_events, head
        rows = at(int(self.row["events"]), state.EVENTS, state.event).copy()
        # us: copy the rows, then read head again | worker: writes a row, then head. Row `head` may be half written.
        oldest = int(self.row["event_head"]) - state.EVENTS + 1
        return [
            (int(row["kind"]), int(row["vport"]), int(row["value"]))
            for row in (rows[index % state.EVENTS] for index in range(max(first, oldest), head))
        ]

    def join(self) -> None:
        """Wait for the thread to leave the loop (engine["stop"] is set and its doorbell rung)."""
        if self._thread.ident is not None:
            self._thread.join(JOIN_SECONDS)

    def close(self) -> None:
        """Give everything back; after `join`. A thread that did not leave keeps what it uses."""
        if not self._thread.is_alive():
            self.epoll.close()
            os.close(self.doorbell)
            linux.unmap(self._scratch, self._length)


def unmap_rings(made: list[tuple[int, int]]) -> None:
    """Undo `link_rings`; no worker runs any more."""
    for address, length in made:
        linux.unmap(address, length)
