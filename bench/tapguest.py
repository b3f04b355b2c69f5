# SPDX-License-Identifier: Apache-2.0
"""A guest whose network is a TAP of its namespace, compiled: so that a kernel's TCP is in a VM, and costs what it costs.

    python -m bench.tapguest TAP --socket S --mac M      virtqueues of an engine ⇄ TAP
    python -m bench.tapguest TAP --tap OTHER             a TAP ⇄ TAP, without a VM: what a reader of TAPs takes at least

It sleeps when there is nothing to do, moves frames one by one, and says "ready"; SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import select
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from vmq.abi.layout import i64, rows
from vmq.abi.linux import IFF_NO_PI, IFF_TAP, TUNSETIFF, epoll_event
from vmq.guest.driver import (
    HEADER,
    RING,
    ask_for_calls,
    claim,
    describe,
    kick,
    offer,
    refuse_calls,
    release,
    show,
    take,
    used,
)
from vmq.guest.guest import Guest
from vmq.jit import address_of, at, c_epoll_wait, c_read, c_write, compile_for, int64, kernel
from vmq.uplink import link

BATCH, SLEEP_MS, LONGEST = 64, 50, 1 << 16

BETWEEN = rows(
    ("stop", i64), ("tap", i64), ("other", i64),  # descriptors of TAPs
    ("receive", i64), ("transmit", i64),  # RING rows
    ("epoll", i64), ("events", i64), ("scratch", i64),
)  # fmt: skip


@kernel
def to_tap(row: Any, ring: Any) -> int:
    """Frames that the engine has delivered."""
    count = min(used(ring), BATCH)
    for _ in range(count):
        slot, length = take(ring)
        if slot >= 0:
            c_write(
                row["tap"], int64(ring["buffers"]) + slot * int64(ring["stride"]) + HEADER, length - HEADER
            )
            offer(ring, slot)
    if show(ring):
        kick(ring)
    return count


@kernel
def from_tap(row: Any, ring: Any) -> int:
    """Frames of the TAP, into the transmit ring as far as it has room."""
    for _ in range(used(ring)):
        slot, _length = take(ring)
        if slot >= 0:
            release(ring, slot)
    moved = int64(0)
    while moved < BATCH and ring["free_count"] > 0:
        slot = claim(ring)
        place = slot * int64(ring["stride"])
        length = c_read(row["tap"], int64(ring["buffers"]) + place + HEADER, int64(ring["stride"]) - HEADER)
        if length <= 0:
            release(ring, slot)
            break
        describe(ring, slot, int64(ring["buffers_guest"]) + place, length + HEADER)
        offer(ring, slot)
        moved += 1
    if show(ring):
        kick(ring)
    return moved


@kernel
def serve(address: int) -> None:
    """Virtqueues ⇄ TAP, until `stop`."""
    row = at(address, 1, BETWEEN)[0]
    receive, transmit = at(row["receive"], 1, RING)[0], at(row["transmit"], 1, RING)[0]
    while not row["stop"]:
        if to_tap(row, receive) + from_tap(row, transmit) > 0:
            continue
        waiting = ask_for_calls(receive)
        if transmit["free_count"] == 0:
            waiting |= ask_for_calls(transmit)
        if not waiting:
            c_epoll_wait(row["epoll"], row["events"], 1, SLEEP_MS)
        for ring in (receive, transmit):
            refuse_calls(ring)
            c_read(ring["call_fd"], row["scratch"], 8)


@kernel
def carry(source: int, target: int, scratch: int) -> int:
    """A batch of frames from one TAP to another."""
    for moved in range(BATCH):
        length = c_read(source, scratch, LONGEST)
        if length <= 0:
            return int64(moved)
        c_write(target, scratch, length)
    return int64(BATCH)


@kernel
def patch(address: int) -> None:
    """TAP ⇄ TAP, until `stop`."""
    row = at(address, 1, BETWEEN)[0]
    while not row["stop"]:
        moved = carry(row["tap"], row["other"], row["scratch"]) + carry(
            row["other"], row["tap"], row["scratch"]
        )
        if moved == 0:
            c_epoll_wait(row["epoll"], row["events"], 1, SLEEP_MS)


def open_tap(name: str) -> int:
    """A TAP of this namespace, up; its descriptor, which does not block."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, link.interface_request(name, IFF_TAP | IFF_NO_PI))
    link.set_up(name)
    return descriptor


def run(loop: Callable[[int], None], row: Any, descriptors: list[int]) -> None:
    """Let the compiled loop work until SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    memory = np.zeros(1, epoll_event), np.zeros(LONGEST, np.uint8)
    with select.epoll() as epoll:
        for one in descriptors:
            epoll.register(one, select.EPOLLIN)
        row["epoll"], row["events"], row["scratch"] = epoll.fileno(), *map(address_of, memory)
        thread = threading.Thread(target=loop, args=(address_of(row),))
        thread.start()
        print("ready", flush=True)
        signal.sigwait([signal.SIGTERM])
        row["stop"] = 1
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tapguest")
    parser.add_argument("device")
    parser.add_argument("--tap")
    parser.add_argument("--socket")
    parser.add_argument("--mac")
    options = parser.parse_args()
    compile_for(serve, "int64")
    compile_for(patch, "int64")
    row = np.zeros(1, BETWEEN)
    row["tap"] = tap = open_tap(options.device)
    if options.tap:
        row["other"] = other = open_tap(options.tap)
        run(patch, row, [tap, other])
        return
    with contextlib.closing(Guest(options.socket, options.mac, indirect=False)) as guest:
        guest.start()
        receive, transmit = guest.virtqueue(to_guest=True), guest.virtqueue()
        row["receive"], row["transmit"] = receive.row_address, transmit.row_address
        run(serve, row, [tap, receive.call_fd, transmit.call_fd])


if __name__ == "__main__":
    main()
