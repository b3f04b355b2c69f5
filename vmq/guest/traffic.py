# SPDX-License-Identifier: Apache-2.0
"""Start, watch and end the compiled loop of `flood` for a guest that has been started.

    with Traffic(guest, expected=frames, transmit=others, rate=10_000) as traffic:
        …
        traffic.counters()

The loop runs on a thread of its own without the GIL. While it runs, the rings belong to it: the guest's own
`receive` and `send` are for before and after.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from vmq.abi.ethernet import mac_number
from vmq.abi.linux import epoll_event, timespec
from vmq.guest import driver, flood
from vmq.guest.driver import HEADER
from vmq.guest.flood import BATCH, BOUNCE, COUNTERS, FLOOD, FRAME, REST_CALL, REST_YIELD, SENDER, run
from vmq.guest.guest import Guest
from vmq.guest.memory import Array
from vmq.guest.rings import private
from vmq.jit import address_of

LINE = 64  # frames to send begin on lines of their own


def compile_kernels() -> None:
    """Everything a guest runs, compiled or loaded."""
    driver.compile_kernels()
    flood.compile_kernels()


def transmit_room(frames: Sequence[bytes]) -> int:
    """Guest memory (`Guest(room=…)`) that frames to send take."""
    return sum(len(frame) + HEADER + LINE for frame in frames)


class Traffic:
    """Traffic of one guest.

    `expected`: what must arrive, in this order, round and round; nothing: frames are only counted. `transmit`: what
    is sent, round and round, on queue pair 0, or a mapping from queue pair to frames. `rate` frames a second, `limit`
    frames in all, at most `window` in flight a virtqueue, for `duration` seconds; 0 stands for no bound. `poll`:
    never sleep, only yield the processor to others; otherwise sleep after `spins` rounds without work. `hold`:
    nothing is sent until `hold(on=False)`. Unicast frames to an address that is neither the guest's nor one of
    `macs`, and frames with a tag other than `vlan`, are counted as stray.
    """

    def __init__(
        self,
        guest: Guest,
        expected: Sequence[bytes] = (),
        transmit: Sequence[bytes] | Mapping[int, Sequence[bytes]] = (),
        *,
        rate: int = 0,
        limit: int = 0,
        window: int = 0,
        duration: float = 0,
        poll: bool = False,
        spins: int = 32,
        vlan: int = 0,
        macs: Sequence[str] = (),
        hold: bool = False,
    ) -> None:
        self.guest = guest
        self._expected, self._bytes = table_of(expected)
        self._transmit, self._senders = self._place(
            transmit if isinstance(transmit, Mapping) else {0: transmit}
        )
        self._macs = np.array([mac_number(mac) for mac in (guest.mac, *macs)], np.int64)
        self._scratch = {
            "bounce": private(BOUNCE, np.uint8),
            "clock": private(1, timespec),
            "events": private(BATCH, epoll_event),
            "scratch": private(1, np.int64),
        }
        self._epoll = select.epoll()
        for virtqueue in guest.virtqueues[: 2 * guest.pairs]:
            self._epoll.register(virtqueue.call_fd, select.EPOLLIN)
        slots = guest.virtqueue().slots
        self._row = private(1, FLOOD)
        fields = {
            "rings": address_of(guest.rows),
            "pairs": guest.pairs,
            "expected": address_of(self._expected),
            "expected_count": len(expected),
            "macs": address_of(self._macs),
            "mac_count": len(self._macs),
            "vid": vlan,
            "transmit": address_of(self._transmit),
            "senders": address_of(self._senders),
            "window": min(window or slots, slots),
            "rate": rate,
            "limit": limit,
            "duration_ns": int(duration * flood.NS),
            "rest": REST_YIELD if poll else REST_CALL,
            "spins": spins,
            "hold": int(hold),
            "epoll_fd": self._epoll.fileno(),
            **{name: address_of(array) for name, array in self._scratch.items()},
        }
        for name, value in fields.items():
            self._row[name] = value
        self._thread = threading.Thread(target=run, args=(address_of(self._row),), name=f"guest {guest.mac}")

    def _place(self, transmit: Mapping[int, Sequence[bytes]]) -> tuple[Array, Array]:
        """Frames to send in guest memory: their rows, and which of them each pair sends."""
        rows = private(sum(len(frames) for frames in transmit.values()), FRAME)
        senders = private(self.guest.pairs, SENDER)
        place = 0
        for pair, frames in transmit.items():
            senders[pair]["first"], senders[pair]["count"] = place, len(frames)
            for frame in frames:
                data = bytes(HEADER) + frame
                rows[place]["address"] = self.guest.memory.store(data, LINE)
                rows[place]["length"] = len(data)
                place += 1
        return rows, senders

    def start(self) -> Self:
        compile_kernels()
        self._thread.start()
        return self

    def hold(self, *, on: bool = True) -> None:
        """Pause sending, or go on."""
        self._row["hold"] = int(on)

    @property
    def row_address(self) -> int:
        """Of its FLOOD row, for a loop that drives several guests: then this one is not started."""
        return address_of(self._row)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def counters(self) -> dict[str, int]:
        """A snapshot, at any time."""
        now = {name: int(self._row[name][0]) for name in COUNTERS}
        rings = self.guest.rows[: 2 * self.guest.pairs]
        return now | {"kicks": int(rings["kicks"].sum()), "bad": int(rings["bad"].sum())}

    def join(self, timeout: float) -> bool:
        """Wait until the duration is over; whether it is."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def stop(self) -> dict[str, int]:
        """End it; the last counters."""
        self._row["stop"] = 1
        if self._thread.ident is not None:
            self._thread.join()
        self._epoll.close()
        return self.counters()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def table_of(frames: Sequence[bytes]) -> tuple[Array, Array]:
    """Frames as rows of a table, and the bytes that the rows point to."""
    data = private(sum(len(frame) for frame in frames), np.uint8)
    joined = b"".join(frames)
    data[: len(joined)] = np.frombuffer(joined, np.uint8)
    lengths = np.array([len(frame) for frame in frames], np.int64)
    rows = private(len(frames), FRAME)
    rows["length"][: len(frames)] = lengths
    rows["address"][: len(frames)] = address_of(data) + np.cumsum(lengths) - lengths
    return rows, data
