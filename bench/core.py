# SPDX-License-Identifier: Apache-2.0
"""What one frame costs one processor: the loop of a worker in a thread of our own, and guests that cost nothing.

    recording in memory ─► all_rounds (the worker's own) ─► receive rings whose buffers are always there

Nothing else runs: no other processor writes the rings, no descriptor wakes anybody. Between two measured spans the
available index of every ring moves on to what was used, which is all that a driver would tell; its entries and
descriptors stay, as they name each buffer in turn. So the figure has no guest in it, and no cache line that comes from
another processor. Compare lines of one table with each other, and with nothing else.

All guests of a core share POSTED buffers, however many they are: what frames are written to is as large for one queue
as for 256. The recording is as large for one address as for 4096. Both reach past the second-level cache.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from bench.engine import on_processor
from bench.stats import Figure
from bench.systems import ENGINE_CPU, SEED
from vmq.abi.ethernet import ETH_ALEN, ETH_HLEN, mac_number
from vmq.abi.layout import i64, rows
from vmq.abi.virtio import split_ring_bytes, vring_avail, vring_desc
from vmq.config import Memory
from vmq.dataplane import state
from vmq.dataplane.clock import now
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
FIRST_MAC = mac_number("52:54:00:00:00:00")
FEATURES = state.RING_EVENT_IDX | state.RING_INDIRECT | state.RING_MERGEABLE
Order = npt.NDArray[np.int64]
SPAN = rows(("worker", i64), ("tables", i64), ("rings", i64), ("queues", i64))


@kernel
def span(address: int) -> int:
    """ns of ROUNDS rounds; then every receive ring has all its buffers again."""
    row = at(address, 1, SPAN)[0]
    w = at(row["worker"], 1, state.worker)[0]
    t = at(row["tables"], 1, state.tables)[0]
    began = now(w)
    for _ in range(ROUNDS):
        all_rounds(t, w)
    taken = now(w) - began
    virtqueues = at(t["virtqueues"], 2 * t["queue_count"], state.virtqueue)
    rings = at(row["rings"], 2 * t["queue_count"], state.ring_state)
    for number in range(row["queues"]):
        vq = virtqueues[2 * number]
        index = (int64(rings[2 * number]["next_avail"]) + int64(vq["size"])) & state.M16
        poke(vq["avail"] + 2, np.uint16, np.uint16(index))
    return taken


def compile_kernels() -> None:
    compile_for(span, "int64")


def mac(number: int) -> int:
    """The address of a number, from 0 on."""
    return FIRST_MAC + (number >> 8 << 32) + ((number & 255) << 40)


def recording(size: int, macs: Sequence[int], order: Order, vlans: Sequence[int] = ()) -> Recording:
    """Frame n goes to macs[order[n]], in its VLAN if there are `vlans`."""
    count = len(order)
    made = generate(size, FLOWS, count, ())
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

    def __init__(self, size: int) -> None:
        parts = [-(-sum(split_ring_bytes(size)) // PAGE) * PAGE, size * STRIDE]
        self.length = 2 * parts[0] + parts[1]
        self._memory = mmap.mmap(
            -1, self.length
        )  # shared: small pages, as guests' memory has, however large it is
        self.host = address_of(np.frombuffer(self._memory, np.uint8))
        self.receive = self._ring(size, self.host)
        self.transmit = self._ring(size, self.host + parts[0])
        self._post(size, GUEST_BASE + 2 * parts[0])

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

    def _post(self, size: int, buffers: int) -> None:
        table = at(self.receive.desc, size, vring_desc)
        table["addr"], table["len"], table["flags"] = buffers + STRIDE * np.arange(size), STRIDE, 2
        at(self.receive.avail + vring_avail.itemsize, size, np.uint16)[:] = np.arange(size)
        at(self.receive.avail, 1, vring_avail)["idx"] = size


class Core:
    """One processor, one uplink that plays without end, `queues` guests. `macs`: of the guests, in turn; so `vlans`.

    With `sends`, guests have a transmit ring, too, in which nothing ever stands.
    """

    def __init__(
        self,
        played: Recording,
        macs: Sequence[int],
        queues: int = 1,
        *,
        vlans: Sequence[int] = (0,),
        filters: Sequence[FilterEntry] = (),
        shared: bool = False,
        sends: bool = True,
        posted: int = POSTED,
    ) -> None:
        self.segment = Segment(1)
        self._worker = Worker(self.segment, 0, ENGINE_CPU)
        self._links = link_rings(self.segment)
        self._publisher = Publisher(self.segment)
        self._played = MemoryUplink("source", Memory(count=0, lossless=False), 1)
        self._played.play(played, 0)
        self._sends = sends
        self.queues, self._guests = queues, [Rings(posted // queues) for _ in range(queues)]
        ports = [
            self._port(number, tuple(macs[number::queues]), vlans[number % len(vlans)], shared=shared)
            for number in range(queues)
        ]
        self._publisher.publish(ports, [UplinkEntry(0, tuple(self._played.lanes))], filters)
        rings = self.segment.rows["ring_state"]
        rings["first"], rings["region"] = 1, state.NONE
        self._row = np.zeros(1, SPAN)
        worker = self.segment.rows["workers"][:1]
        worker["tables"] = self.segment.engine["tables"]
        self._row["worker"], self._row["tables"] = address_of(worker), self.segment.engine["tables"]
        self._row["rings"], self._row["queues"] = address_of(rings), queues

    def _port(self, number: int, macs: tuple[int, ...], vlan: int, *, shared: bool) -> PortEntry:
        guest = self._guests[number]
        return PortEntry(
            number=number,
            first_queue=number,
            queues=(QueueEntry(0, shared=shared, generation=1),),
            uplink=0,
            vlan=vlan,
            macs=macs,
            frame_max=self._played.mtu + ETH_HLEN,
            regions=((GUEST_BASE, guest.length, guest.host),),
            rings={0: (guest.receive, guest.transmit if self._sends else RingEntry())},
        )

    def nanoseconds(self, spans: int = SPANS) -> float:
        """ns a frame, on this thread; ValueError if a frame did not arrive."""
        books = self.segment.rows["queue_state"][: self.queues]
        lane = self.segment.rows["lane_state"][0]["account"]
        before = int(books["frames_to_guest"].sum()), int(lane["forwarded"])
        taken = sum(int(span(address_of(self._row))) for _ in range(spans))
        frames = int(books["frames_to_guest"].sum()) - before[0]
        if not frames or frames != int(lane["forwarded"]) - before[1]:
            raise ValueError(f"{frames} of {int(lane['forwarded']) - before[1]} frames arrived")
        return taken / frames

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()
        unmap_rings(self._links)
        self._played.close()
        self.segment.close()


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
