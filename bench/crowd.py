# SPDX-License-Identifier: Apache-2.0
"""Built-in guests of one thread, on the guests' processor: one compiled loop does the work of each in turn.

    crowd ─► work of guest 0 ─► work of guest 1 ─► … ─► and again          no scheduler between a sender and a receiver

Guests in processes of their own share a processor by time slices of milliseconds: a sender that is never idle fills its
receiver's ring while that one waits for its turn. Here each gets a batch, then the next; so the processor is divided
in the same way for every system, however many guests there are, and frames do not wait for a scheduler.

With `stamped` the loop drives one pair, and what is measured is time: the sender writes into each frame when it was
due, the receiver compares that with the same clock when it has seen the frame. Times go into buckets of 3 % width.

    due        a frame each 1 / rate; shown at once, or as soon as the ring has room: the wait counts as its time
    skipped    due while a whole ring of frames was due already: never shown, and counted
    away       due while the processor was somebody else's (AWAY_NS): offered to nobody, and not counted

So a system that stops taking frames is not asked less often while it does. Without a rate a frame is due when shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bench.systems import GUEST_CPU, Served, mac
from vmq.abi.layout import i64, rows
from vmq.abi.virtio import vring_used_elem
from vmq.affinity import on_processor
from vmq.clock import now
from vmq.guest import traffic
from vmq.guest.driver import HEADER, RING, USED, kick, show, used
from vmq.guest.flood import (
    BATCH,
    FLOOD,
    FRAME,
    FRAME_BYTES,
    NS,
    SENDER,
    receive_frame,
    reclaim,
    room,
    send,
    work,
)
from vmq.guest.guest import ROOM, Guest
from vmq.guest.traffic import Traffic, transmit_room
from vmq.jit import (
    address_of,
    at,
    c_sched_yield,
    compile_for,
    int64,
    kernel,
    load_acquire,
    load_once,
    peek,
    poke,
)

RING_SIZE = 1024
CONNECT_SECONDS, DRAIN_SECONDS, STILL_SECONDS = 30.0, 10.0, 0.1
STAMP = 44  # where in a frame: behind the headers, on a whole word in guest memory
SUBS = 32  # buckets an octave
BUCKETS = 48 * SUBS
AWAY_NS = 50_000  # a turn of the loop takes a few µs: in a longer one the processor was somebody else's

CROWD = rows(("stop", i64), ("floods", i64), ("count", i64), ("to_own", i64), ("times", i64),
             ("skipped", i64), ("paced", i64), ("looked", i64))  # fmt: skip


@kernel
def crowd(address: int) -> None:
    """A batch of work for each guest, again and again, until `stop`."""
    row = at(address, 1, CROWD)[0]
    floods = at(row["floods"], row["count"], np.int64)
    while not load_acquire(row, "stop"):
        moved = int64(0)
        for index in range(row["count"]):
            moved += work(at(floods[index], 1, FLOOD)[0])
        if moved == 0:
            c_sched_yield()


@kernel
def bucket(value: int) -> int:
    """The bucket of a number of nanoseconds; exact below 2 * SUBS."""
    shift = int64(0)
    while value >= 2 * SUBS:
        value >>= 1
        shift += 1
    return min(shift * SUBS + value, BUCKETS - 1)


def middle(number: int) -> float:
    """The nanoseconds that a bucket stands for."""
    shift = max(number // SUBS - 1, 0)
    return float((number - shift * SUBS) << shift) + ((1 << shift) - 1) / 2


@kernel
def receive_stamped(row: Any, flood: Any, ring: Any) -> int:
    """Take what has come, and note how long ago it was due; frames."""
    count = min(used(ring), BATCH)
    if count == 0:
        return count
    times, seen = at(row["times"], BUCKETS, np.int64), now(flood)
    elements = at(ring["used"] + USED, ring["size"], vring_used_elem)
    for _ in range(count):
        element, last = elements[ring["next_used"] & (int64(ring["size"]) - 1)], int64(ring["slots"]) - 1
        place = int64(ring["buffers"]) + min(int64(load_once(element, "id")), last) * int64(ring["stride"])
        times[bucket(max(seen - int64(peek(place + HEADER + STAMP, np.int64)), 0))] += 1
        receive_frame(flood, ring, count)
    if show(ring):
        kick(ring)
    return count


@kernel
def skip(row: Any, flood: Any) -> None:
    """Move the schedule on: past what is due beyond a ring, which is skipped; to where it is, while held.

    What became due while this loop was not running at all was never offered, to whichever system.
    """
    rate, hold = int64(flood["rate"]), load_once(flood, "hold")
    looked = int64(flood["started_ns"] + flood["elapsed_ns"])
    away = looked - int64(row["looked"])
    row["looked"] = looked
    if rate > 0:
        # In doubles, as in the guest: frames times nanoseconds may pass 2^63.
        behind = int64(float(flood["elapsed_ns"]) / NS * float(rate)) - int64(flood["sent"])
        beyond = behind if hold else max(behind - RING_SIZE, 0)
        moved = int64(float(beyond) / float(rate) * NS)
        flood["started_ns"] += moved
        flood["elapsed_ns"] -= moved
        absent = min(beyond, int64(float(away) / NS * float(rate))) if away > AWAY_NS else int64(0)
        row["skipped"] += int64(0) if hold else beyond - absent
    if hold:
        row["paced"] = rate


@kernel
def due(flood: Any, later: int) -> int:
    """When the frame that is sent after so many others is due; without a rate, now."""
    if flood["rate"] == 0:
        return int64(flood["started_ns"] + flood["elapsed_ns"])
    number = float(flood["sent"] + later + 1)
    return int64(flood["started_ns"]) + int64(number / float(flood["rate"]) * NS)


@kernel
def send_stamped(row: Any, flood: Any, ring: Any, sender: Any) -> None:
    """Write into the frames that may be sent now when they were due, and send them."""
    reclaim(flood, ring)
    flood["elapsed_ns"] = now(flood) - flood["started_ns"]
    skip(row, flood)
    count, place = room(flood, ring), int64(sender["cursor"])
    table = at(int64(flood["transmit"]) + int64(sender["first"]) * FRAME_BYTES, sender["count"], FRAME)
    for later in range(count):
        stamp = int64(table[place]["address"]) + row["to_own"] + HEADER + STAMP
        poke(stamp, np.int64, np.int64(due(flood, later)))
        place = 0 if place + 1 == sender["count"] else place + 1
    send(flood, ring, sender, count)


@kernel
def pair(address: int) -> None:
    """The first guest sends, the second receives, until `stop`."""
    row = at(address, 1, CROWD)[0]
    floods = at(row["floods"], 2, np.int64)
    source, sink = at(floods[0], 1, FLOOD)[0], at(floods[1], 1, FLOOD)[0]
    outgoing, incoming = at(source["rings"], 2, RING)[1], at(sink["rings"], 2, RING)[0]
    sender = at(source["senders"], 1, SENDER)[0]
    source["started_ns"] = now(source)
    while not load_acquire(row, "stop"):
        send_stamped(row, source, outgoing, sender)
        receive_stamped(row, sink, incoming)


def compile_kernels() -> None:
    traffic.compile_kernels()
    compile_for(crowd, "int64")
    compile_for(pair, "int64")


class Crowd:
    """Guests of all sockets of a system; `sends`: what some of them send, round and round.

    `options`: of their Traffic. They hold what they send until `hold(on=False)`.
    """

    def __init__(
        self,
        served: Served,
        sends: Mapping[int, Sequence[bytes]] | None = None,
        *,
        stamped: bool = False,
        options: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        compile_kernels()
        self._served, self._sends, self._stamped = served, sends or {}, stamped
        self._options, self._stack = options or {}, ExitStack()
        self.members: list[Traffic] = []
        self.times: npt.NDArray[np.int64] = np.zeros(BUCKETS, np.int64)
        self._row = np.zeros(1, CROWD)
        self._thread = threading.Thread(target=self._run, name="crowd")

    def _guest(self, number: int) -> Guest:
        guest = Guest(
            self._served.sockets[number],
            mac(number),
            size=RING_SIZE,
            indirect=False,
            server=self._served.guests_listen,
            room=ROOM + transmit_room(self._sends.get(number, ())),
            timeout=CONNECT_SECONDS,
        )
        self._stack.callback(guest.close)
        return guest

    def _member(self, number: int, guest: Guest) -> Traffic:
        options = self._options.get(number, {})
        member = Traffic(guest.start(), transmit=self._sends.get(number, ()), hold=True, **options)
        self._stack.callback(member.stop)
        return member

    def _run(self) -> None:
        (pair if self._stamped else crowd)(address_of(self._row))

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(on_processor(GUEST_CPU))
            guests = [self._guest(number) for number in range(len(self._served.sockets))]
            self.members = [self._member(number, guest) for number, guest in enumerate(guests)]
            self._floods = np.array([member.row_address for member in self.members], np.int64)
            region = guests[0].memory.regions[0]
            fields = {"floods": address_of(self._floods), "count": len(guests), "to_own": region.own - region.guest,
                      "times": address_of(self.times)}  # fmt: skip
            for name, value in fields.items():
                self._row[name] = value
            self._thread.start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._row["stop"] = 1
        self._thread.join()
        self._stack.close()

    def hold(self, *, on: bool = True) -> None:
        """Pause sending, or go on."""
        for member in self.members:
            member.hold(on=on)

    def pace(self, rate: int) -> None:
        """Hold, and offer so many frames a second from the next `hold(on=False)` on; of a stamped pair."""
        self.hold()
        at(self.members[0].row_address, 1, FLOOD)[0]["rate"] = rate
        deadline = time.monotonic() + CONNECT_SECONDS
        self._row["paced"] = -1
        while self._row["paced"][0] != rate:  # the schedule of the old rate is no more
            if time.monotonic() > deadline:
                raise TimeoutError("the loop of the guests does not run")
            time.sleep(0.001)

    @property
    def skipped(self) -> int:
        """Frames that were due and never shown."""
        return int(self._row["skipped"][0])

    def count(self, name: str) -> int:
        """A counter of all members together."""
        return sum(member.counters()[name] for member in self.members)

    def meter(self) -> list[tuple[int, float]]:
        """Frames that have arrived at each guest, and when that was so."""
        return [(member.counters()["frames"], time.monotonic()) for member in self.members]

    def settle(self) -> bool:
        """Pause sending and wait until nothing moves any more; whether all that was sent came back from the system."""
        self.hold()
        deadline, before = time.monotonic() + DRAIN_SECONDS, (-1, -1)
        while time.monotonic() < deadline:
            now_ = self.count("frames"), self.count("returned")
            if now_ == before and now_[1] == self.count("sent"):
                return True
            before = now_
            time.sleep(STILL_SECONDS)
        return False


def percentile_of(times: npt.NDArray[np.int64], share: float) -> float:
    """The µs that `share` (0 to 1) of the times in the buckets do not exceed; ValueError without any."""
    total = int(times.sum())
    if not total:
        raise ValueError("no frame arrived, no time is known")
    place = int(np.searchsorted(np.cumsum(times), min(share * total, total)))
    return middle(place) / 1000
