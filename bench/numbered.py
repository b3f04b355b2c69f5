# SPDX-License-Identifier: Apache-2.0
"""Numbered frames from an uplink into guests that notice what is lost, doubled, overtaken, or late.

    capture of NUMBERS frames, number n to address n % addresses, for ever ─► engine ─► guests ─► follow

`follow` is the driver of all guests in one: compiled, in a thread of real-time priority, so that neither an
interpreter nor control, which runs on the same processor, is in a gap. It looks every 50 µs, and that is how exact a
gap is. When the source has stopped, its cursor says how often each number was sent; every number must have arrived
as often, and where it belongs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from bench.core import mac
from bench.systems import GUEST_CPU, SOURCE
from tests.dpdk.frames import frame, write_capture
from vmq.abi.ethernet import ETH_HLEN, mac_text
from vmq.abi.layout import i64, rows
from vmq.abi.linux import timespec
from vmq.clock import now
from vmq.config import Pcap
from vmq.guest.driver import HEADER, RING, offer, show, take, used
from vmq.guest.guest import Guest
from vmq.jit import address_of, at, compile_for, int64, kernel, system_call

NUMBERS, SIZE = 8192, 64
RATE = 1_000_000  # frames a second: a processor that plays them does not sleep between two
BUFFERS = 8192  # of a guest: 8 ms of frames
LOOK_NS = 50_000
PRIORITY = 50

FOLLOWER = rows(
    ("ring", i64),  # of the driver
    ("count", i64),  # of rows, in the first of them; and so the next four
    ("clock", i64), ("pause", i64), ("stop", i64), ("looks", i64),
    ("arrived", i64),  # i64 a number
    ("addresses", i64), ("may", i64),  # addresses in use, and a bit for each that is this guest's
    ("own", i64),  # the address whose frames never go elsewhere: they come in order
    ("last", i64), ("frames", i64), ("strays", i64), ("overtaken", i64),
    ("seen", i64), ("longest", i64),  # when the last frame was found, and the longest time between two, ns
)  # fmt: skip

c_nanosleep = system_call("nanosleep", 2)


@kernel
def number_at(place: int) -> int:
    """The number of a frame."""
    octets = at(place + ETH_HLEN, 4, np.uint8)
    return int64(octets[0]) << 24 | int64(octets[1]) << 16 | int64(octets[2]) << 8 | int64(octets[3])


@kernel
def note(row: Any, number: int) -> None:
    """One frame has arrived."""
    row["frames"] += 1
    address = number % row["addresses"]
    if number >= NUMBERS or not (row["may"] >> address) & 1:
        row["strays"] += 1
        return
    at(row["arrived"], NUMBERS, np.int64)[number] += 1
    if address == row["own"]:
        ahead = (number - row["last"]) % NUMBERS
        if row["last"] >= 0 and (ahead == 0 or ahead > NUMBERS // 2):
            row["overtaken"] += 1
        row["last"] = number


@kernel
def look(row: Any, now: int) -> None:
    """Take what has arrived at one guest, and post its buffers again."""
    ring = at(row["ring"], 1, RING)[0]
    count = used(ring)
    if count == 0:
        return
    for _ in range(count):
        slot, _ = take(ring)
        if slot >= 0:
            note(row, number_at(int64(ring["buffers"]) + slot * int64(ring["stride"]) + HEADER))
            offer(ring, slot)
    show(ring)
    if row["seen"] > 0:
        row["longest"] = max(int64(row["longest"]), now - int64(row["seen"]))
    row["seen"] = now


@kernel
def follow(address: int) -> None:
    """Look at all guests until `stop`."""
    first = at(address, 1, FOLLOWER)[0]
    every = at(address, first["count"], FOLLOWER)
    while not first["stop"]:
        for index in range(first["count"]):
            look(every[index], now(first))
        first["looks"] += 1
        c_nanosleep(first["pause"], 0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the frames."""

    frames: int
    lost: int
    doubled: int
    strays: int
    overtaken: int

    @property
    def perfect(self) -> bool:
        return not (self.lost or self.doubled or self.strays or self.overtaken)


def addresses(count: int) -> list[str]:
    """The first so many."""
    return [mac_text(mac(number)) for number in range(count)]


def source(folder: Path, count: int) -> Pcap:
    """An uplink that plays numbered frames to so many addresses in turn."""
    macs = addresses(count)
    frames = [frame(macs[number % count], SOURCE, SIZE, number) for number in range(NUMBERS)]
    capture = write_capture(folder / "numbered.pcap", frames)
    return Pcap(read=str(capture), repeat=0, rate=RATE, lossless=False)


class Followers:
    """Guests that are followed. `may`: for each of them the addresses whose frames it may get, its own first."""

    def __init__(
        self, guests: Sequence[Guest], may: Sequence[Sequence[int]], count: int, look_ns: int = LOOK_NS
    ) -> None:
        compile_for(follow, "int64")
        self.arrived = np.zeros(NUMBERS, np.int64)
        self._clock, self._pause = np.zeros(1, timespec), np.zeros(1, timespec)
        self._pause["nsec"] = look_ns
        self.rows = np.zeros(len(guests), FOLLOWER)
        self.rows["count"], self.rows["addresses"], self.rows["last"] = len(guests), count, -1
        self.rows["clock"], self.rows["pause"] = address_of(self._clock), address_of(self._pause)
        self.rows["arrived"] = address_of(self.arrived)
        for row, guest, numbers in zip(self.rows, guests, may, strict=True):
            row["ring"] = guest.virtqueue(to_guest=True).row_address
            row["own"], row["may"] = numbers[0], sum(1 << number for number in numbers)
        self._thread = threading.Thread(target=self._follow, name="followers")

    def _follow(self) -> None:
        os.sched_setaffinity(0, {GUEST_CPU})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        follow(address_of(self.rows))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rows["stop"] = 1
        self._thread.join()

    @property
    def frames(self) -> int:
        """That have arrived so far."""
        return int(self.rows["frames"].sum())

    def begin(self) -> None:
        """Look for the longest gap from here on."""
        self.rows["longest"] = 0

    def longest(self) -> float:
        """The longest gap since, in µs, at the guest that had it."""
        return int(self.rows["longest"].max()) / 1000

    def verdict(self, sent: int) -> Verdict:
        """What became of `sent` frames; the source has stopped."""
        due = sent // NUMBERS + (np.arange(NUMBERS) < sent % NUMBERS)
        missing = due - self.arrived
        return Verdict(
            self.frames,
            int(np.maximum(missing, 0).sum()),
            int(np.maximum(-missing, 0).sum()),
            int(self.rows["strays"].sum()),
            int(self.rows["overtaken"].sum()),
        )
