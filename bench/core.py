# SPDX-License-Identifier: Apache-2.0
"""What one frame costs one processor: the loop of a worker in a thread of our own, and guests that cost nothing.

    recording in memory ─► all_rounds (the worker's own) ─► receive rings whose buffers are always there

Nothing else runs: no other processor writes the rings, no descriptor wakes anybody. Between two measured spans the
available index of every ring moves on to what was used, which is all that a driver would tell; its entries and
descriptors stay, as they name each buffer in turn. So the figure has no guest in it, and no cache line that comes from
another processor. Compare lines of one table with each other, and with nothing else.

All guests of a core share POSTED buffers, however many they are: what frames are written to is as large for one queue
as for 256. The recording is as large for one address as for 4096. Both reach past the second-level cache.

A `Stage` is what a worker needs beside its thread; a `Core` is the stage with one processor that most rows measure.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bench.stats import Figure
from bench.systems import ENGINE_CPU, GUEST_CPU, SEED
from vmq.abi.ethernet import ETH_ALEN, ETH_HLEN, mac_number
from vmq.abi.layout import i64, rows
from vmq.abi.virtio import split_ring_bytes, vring_avail, vring_desc
from vmq.affinity import on_processor
from vmq.clock import now
from vmq.config import Memory
from vmq.dataplane import state
from vmq.dataplane.loop import all_rounds
from vmq.jit import address_of, at, compile_for, int64, kernel, poke
from vmq.publisher import FilterEntry, PortEntry, Publisher, QueueEntry, RingEntry, Segment, UplinkEntry
from vmq.uplink.memory import MemoryUplink
from vmq.uplink.recording import Recording, generate
from vmq.worker import Worker, link_rings, unmap_rings

POSTED = 32768  # receive buffers of all guests together
STRIDE, PAGE = 2048, 4096
GUEST_BASE = 1 << 20  # where guest memory begins, for the guest
ROUNDS = 64  # of one span; rings have buffers for as many
SPANS = 40  # of one value
FLOWS = 1024
FRAME_MAX = 9000 + ETH_HLEN
FIRST_MAC = mac_number("52:54:00:00:00:00")
FEATURES = state.RING_EVENT_IDX | state.RING_INDIRECT | state.RING_MERGEABLE
Order = npt.NDArray[np.int64]
SPAN = rows(
    ("worker", i64), ("tables", i64), ("rings", i64),
    ("first", i64), ("queues", i64),  # receive queues that have all their buffers again after a span
    ("rounds", i64), ("spans", i64),  # of a span; of one value
    ("slow", i64), ("rest", i64),  # this one has them only after `rest` spans; NONE without
)  # fmt: skip


@kernel
def refill(row: Any, t: Any, number: int) -> None:
    """After span `number`, every receive ring has all its buffers again."""
    virtqueues = at(t["virtqueues"], 2 * t["queue_count"], state.virtqueue)
    rings = at(row["rings"], 2 * t["queue_count"], state.ring_state)
    for queue in range(row["first"], row["first"] + row["queues"]):
        if queue == row["slow"] and number % row["rest"]:
            continue
        vq = virtqueues[2 * queue]
        index = (int64(rings[2 * queue]["next_avail"]) + int64(vq["size"])) & state.M16
        poke(vq["avail"] + 2, np.uint16, np.uint16(index))


@kernel
def play(address: int) -> int:
    """ns of all spans; what lies between them is not measured."""
    row = at(address, 1, SPAN)[0]
    w = at(row["worker"], 1, state.worker)[0]
    t = at(row["tables"], 1, state.tables)[0]
    taken = int64(0)
    for number in range(row["spans"]):
        began = now(w)
        for _ in range(row["rounds"]):
            all_rounds(t, w)
        taken += now(w) - began
        refill(row, t, number)
    return taken


def compile_kernels() -> None:
    compile_for(play, "int64")


def mac(number: int) -> int:
    """The address of a number, from 0 on."""
    return FIRST_MAC + (number >> 8 << 32) + ((number & 255) << 40)


def recording(
    size: int, macs: Sequence[int], order: Order, vlans: Sequence[int] = (), flows: int = FLOWS
) -> Recording:
    """Frame n goes to macs[order[n]], in its VLAN if there are `vlans`."""
    count = len(order)
    made = generate(size, flows, count, ())
    octets = np.array(macs, "<u8").view(np.uint8).reshape(-1, 8)[:, :ETH_ALEN]
    places = made.rows["address"] - address_of(made.block)
    made.block[places[:, None] + np.arange(ETH_ALEN)] = octets[order]
    if vlans:
        made.rows["tci"], made.rows["tagged"] = np.array(vlans)[order], 1
    return made


def scattered(count: int, targets: int) -> Order:
    """Each target as often as any other, in random order."""
    return np.random.default_rng(SEED).permutation(count) % targets


def in_runs(count: int, targets: int) -> Order:
    """A burst to one target, then one to the next: as many frames an indication, however many targets."""
    return np.arange(count) // state.BURST % targets


class Rings:
    """Guest memory: a receive ring with buffers posted, and a transmit ring in which nothing stands."""

    def __init__(self, size: int, stride: int = STRIDE) -> None:
        ring = -(-sum(split_ring_bytes(size)) // PAGE) * PAGE
        self.stride, self.length = stride, 2 * ring + size * stride
        # Shared: small pages, as guests' memory has, however large it is.
        self._memory = mmap.mmap(-1, self.length)
        self.host = address_of(np.frombuffer(self._memory, np.uint8))
        self.receive, self.transmit = self._ring(size, self.host), self._ring(size, self.host + ring)
        self.buffers = self.host + 2 * ring
        table = at(self.receive.desc, size, vring_desc)
        table["addr"], table["len"] = self.guest_address(self.buffers) + stride * np.arange(size), stride
        table["flags"] = 2
        at(self.receive.avail + vring_avail.itemsize, size, np.uint16)[:] = np.arange(size)
        at(self.receive.avail, 1, vring_avail)["idx"] = size

    def guest_address(self, place: int) -> int:
        """What the guest calls a place of its memory."""
        return place - self.host + GUEST_BASE

    def _ring(self, size: int, place: int) -> RingEntry:
        desc, avail, _ = split_ring_bytes(size)
        used = -(-(place + desc + avail) // state.LINE) * state.LINE
        return RingEntry(
            running=True,
            enabled=True,
            size=size,
            desc=place,
            avail=place + desc,
            used=used,
            features=FEATURES,
        )

    def port(
        self,
        number: int,
        macs: Sequence[int],
        queue: QueueEntry,
        *,
        uplink: int = 0,
        vlan: int = 0,
        sends: bool = True,
    ) -> PortEntry:
        """VM port `number` with this memory and one receive queue of the same number."""
        return PortEntry(
            number=number,
            first_queue=number,
            queues=(queue,),
            uplink=uplink,
            vlan=vlan,
            macs=tuple(macs),
            frame_max=FRAME_MAX,
            regions=((GUEST_BASE, self.length, self.host),),
            rings={0: (self.receive, self.transmit if sends else RingEntry())},
        )


class Stage:
    """Processors whose threads are the caller's, uplinks that play without end, and tables for them."""

    def __init__(self, processors: int = 1) -> None:
        self.segment = Segment(processors)
        self._workers = [
            Worker(self.segment, index, (ENGINE_CPU, GUEST_CPU)[index]) for index in range(processors)
        ]
        self._links = link_rings(self.segment)
        self._publisher = Publisher(self.segment)
        self._uplinks: list[MemoryUplink] = []
        self._entries: list[UplinkEntry] = []

    def play(self, played: Recording, processor: int = 0, *, waits: bool = False) -> None:
        """One more uplink, that this processor reads; one that `waits` is not read while a ring is full."""
        number = len(self._uplinks)
        uplink = MemoryUplink(f"source{number}", Memory(count=0, lossless=waits), len(self._workers))
        uplink.play(played, 0)
        lanes = uplink.lanes
        self._uplinks.append(uplink)
        self._entries.append(
            UplinkEntry(number, (*lanes[len(lanes) - processor :], *lanes[: len(lanes) - processor]))
        )

    def publish(self, ports: list[PortEntry], filters: Sequence[FilterEntry] = ()) -> None:
        """Make these the tables."""
        self._publisher.publish(ports, self._entries, filters)
        rings = self.segment.rows["ring_state"]
        rings["first"], rings["region"] = 1, state.NONE

    def span(self, processor: int, first: int, queues: int, rounds: int = ROUNDS) -> npt.NDArray[Any]:
        """What `play` is told: a processor, and the receive queues that it fills."""
        made = np.zeros(1, SPAN)
        made["worker"] = address_of(self.segment.rows["workers"][processor : processor + 1])
        made["tables"] = self.segment.engine["tables"]
        made["rings"] = address_of(self.segment.rows["ring_state"])
        made["first"], made["queues"] = first, queues
        made["rounds"], made["spans"], made["slow"] = rounds, SPANS, state.NONE
        return made

    def forwarded(self) -> int:
        """Frames from the wire that a receive queue was named for, and that do not wait."""
        lanes = self.segment.rows["lane_state"]
        return int(lanes["account"]["forwarded"].sum()) - int(lanes["pending"].sum())

    def arrived(self, queues: slice = slice(None)) -> int:
        """Frames in receive rings."""
        return int(self.segment.rows["queue_state"]["frames_to_guest"][queues].sum())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()
        unmap_rings(self._links)
        for uplink in self._uplinks:
            uplink.close()
        self.segment.close()


class Core(Stage):
    """One processor, one uplink that plays without end, `queues` guests. `macs`: of the guests, in turn; so `vlans`.

    With `sends`, guests have a transmit ring, too, in which nothing ever stands. `entry`: of every receive queue.
    """

    def __init__(
        self,
        played: Recording,
        macs: Sequence[int],
        queues: int = 1,
        *,
        vlans: Sequence[int] = (0,),
        filters: Sequence[FilterEntry] = (),
        entry: QueueEntry = QueueEntry(0, generation=1),  # noqa: B008 - it never changes
        sends: bool = True,
        posted: int = POSTED,
        stride: int = STRIDE,
        rounds: int = ROUNDS,
    ) -> None:
        super().__init__()
        self.queues, self.played = queues, played
        self.guests = [Rings(posted // queues, stride) for _ in range(queues)]
        self.play(played)
        ports = [
            guest.port(number, macs[number::queues], entry, vlan=vlans[number % len(vlans)], sends=sends)
            for number, guest in enumerate(self.guests)
        ]
        self.publish(ports, filters)
        self.row = self.span(0, 0, queues, rounds)

    def nanoseconds(self, spans: int = SPANS, kernel: Callable[[int], int] = play) -> float:
        """ns a frame, on this thread; ValueError if a frame did not arrive."""
        before = self.arrived(), self.forwarded()
        self.row["spans"] = spans
        taken = int(kernel(address_of(self.row)))
        frames, forwarded = self.arrived() - before[0], self.forwarded() - before[1]
        if not frames or frames != forwarded:
            raise ValueError(f"{frames} of {forwarded} frames arrived")
        return taken / frames


def in_turn(makers: Mapping[str, Callable[[], Core]], runs: int) -> dict[str, Figure]:
    """ns a frame of each core: one value each, again and again."""
    compile_kernels()
    values: dict[str, list[float]] = {name: [] for name in makers}
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_processor(ENGINE_CPU))
        cores = {name: stack.enter_context(make()) for name, make in makers.items()}
        for core in cores.values():
            core.nanoseconds()
        for _ in range(runs):
            for name, core in cores.items():
                values[name].append(core.nanoseconds())
    return {name: Figure.of(several) for name, several in values.items()}
