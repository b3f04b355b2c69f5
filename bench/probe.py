# SPDX-License-Identifier: Apache-2.0
"""The time from a kick to the call that answers it, in compiled code, so that no interpreter is in the figure.

    wait_for_call     write kick, epoll_wait on call, read the clock         on the guests' processor
    echo              epoll_wait on kick, write call, without end            on the engine's: what this machine takes at least

`echo` stands in the engine's place for a floor: two wake-ups of a sleeping thread and nothing else.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from vmq.abi.layout import i64, rows
from vmq.abi.linux import epoll_event, timespec
from vmq.clock import now
from vmq.guest.driver import RING, show
from vmq.jit import (
    address_of,
    at,
    c_epoll_wait,
    c_read,
    c_write,
    compile_for,
    int64,
    kernel,
    poke,
)

LONGEST_MS = 1000
PROBE = rows(
    ("kick", i64), ("call", i64), ("epoll", i64), ("events", i64), ("clock", i64), ("token", i64), ("stop", i64),
    ("ring", i64),  # of a guest: what was offered is shown to its device before the kick; 0 without
)  # fmt: skip


@kernel
def wait_for_call(address: int) -> int:
    """Nanoseconds from before a kick until the call is seen; -1 if there was none."""
    probe = at(address, 1, PROBE)[0]
    poke(probe["token"], np.int64, np.int64(1))
    began = now(probe)
    if probe["ring"]:
        show(at(probe["ring"], 1, RING)[0])
    c_write(probe["kick"], probe["token"], 8)
    if c_epoll_wait(probe["epoll"], probe["events"], 1, LONGEST_MS) != 1:
        return int64(-1)
    return now(probe) - began


@kernel
def echo(address: int) -> None:
    """Answer kicks until `stop`."""
    probe = at(address, 1, PROBE)[0]
    while not probe["stop"]:
        if c_epoll_wait(probe["epoll"], probe["events"], 1, LONGEST_MS // 10) == 1:
            c_read(probe["kick"], probe["token"], 8)
            poke(probe["token"], np.int64, np.int64(1))
            c_write(probe["call"], probe["token"], 8)


def compile_probe() -> None:
    compile_for(wait_for_call, "int64")
    compile_for(echo, "int64")


class Probe:
    """One side: the descriptors it writes and the one it waits for."""

    def __init__(self, kick: int, call: int, awaited: int, ring: int = 0) -> None:
        self._epoll = select.epoll()
        self._epoll.register(awaited, select.EPOLLIN)
        self._memory = np.zeros(1, epoll_event), np.zeros(1, timespec), np.zeros(1, np.int64)
        self.row = np.zeros(1, PROBE)
        events, clock, token = map(address_of, self._memory)
        fields = {"kick": kick, "call": call, "epoll": self._epoll.fileno(), "events": events, "clock": clock}
        for name, value in (fields | {"token": token, "ring": ring}).items():
            self.row[name] = value

    def nanoseconds(self) -> int:
        """Kick, and wait; ValueError if nothing came."""
        taken = int(wait_for_call(address_of(self.row)))
        if taken < 0:
            raise ValueError("a kick was not answered within a second")
        return taken

    def close(self) -> None:
        self._epoll.close()


@contextmanager
def echoing(cpu: int) -> Iterator[Probe]:
    """A probe whose kicks are answered by a thread on another processor."""
    kick, call = (os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2))
    asker, answerer = Probe(kick, call, call), Probe(kick, call, kick)

    def answer() -> None:
        os.sched_setaffinity(0, {cpu})
        echo(address_of(answerer.row))

    thread = threading.Thread(target=answer, name="echo")
    thread.start()
    try:
        yield asker
    finally:
        answerer.row["stop"] = 1
        thread.join()
        for probe in (asker, answerer):
            probe.close()
        for descriptor in (kick, call):
            os.close(descriptor)
