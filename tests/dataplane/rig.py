# SPDX-License-Identifier: Apache-2.0
"""An engine without threads, sockets and descriptors of peers: tables, state rows, workers' scratch, guests, wires.

A guest is memory, and a driver in plain Python that writes it with `struct`: of its own, so that a wrong layout in
vmq.abi shows. Memory outside what the driver posted is compared with a shadow, and host memory around each region with
a pattern: nothing else may have changed. `close` checks that, and the laws of the counters, in every test.

        with Rig() as rig:
            wire = rig.uplink(frames=[frame(A, B)])
            web = rig.vm(A, uplink=wire)
            web.post(4)
            rig.publish()
            rig.step()                 # one `all_rounds` of worker 0
            web.received()             # [frame(A, B)]
"""

from __future__ import annotations

import itertools
import os
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pytest

from tests.dataplane.laws import check_laws
from vmq.abi.ethernet import mac_number
from vmq.dataplane import loop, reasons, state
from vmq.jit import address_of, at
from vmq.publisher import FilterEntry, PortEntry, Publisher, QueueEntry, RingEntry, Segment, UplinkEntry
from vmq.worker import Worker, link_rings, make_ring, unmap_rings

NEXT, WRITE, INDIRECT = 1, 2, 4
MERGEABLE, EVENT_IDX, INDIRECT_TABLES = state.RING_MERGEABLE, state.RING_EVENT_IDX, state.RING_INDIRECT
ALL_FEATURES = MERGEABLE | EVENT_IDX | INDIRECT_TABLES
DROP = {name: code for code, (name, _) in enumerate(reasons.DROPS)}
FAULT = {name: code for code, (name, _) in enumerate(reasons.FAULTS)}
GUARD = 4096
PATTERN = 0xA5
HEADER = 12
A, B, C, D, NOBODY = (f"52:54:00:00:00:0{digit}" for digit in "12349")
BROADCAST, MULTICAST, LINK_LOCAL = "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "01:80:c2:00:00:0e"

# Leaf kernels called from Python each compile (or load) one more signature.
interpreted = pytest.mark.interpreted


def frame(
    to: str, source: str, size: int = 60, vlan: int | None = None, kind: int = 0x0800, fill: int = 1
) -> bytes:
    """A frame of `size` bytes, not counting the tag; `vlan` is its tag control information."""
    addresses = bytes.fromhex((to + source).replace(":", ""))
    tag = b"" if vlan is None else struct.pack(">HH", 0x8100, vlan)
    payload = bytes((fill + index * 7) & 255 for index in range(max(size - 14, 0)))
    return (addresses + tag + struct.pack(">H", kind) + payload)[: size + len(tag)]


def numbered(to: str, source: str, number: int, size: int = 60) -> bytes:
    """A frame that carries its number behind the headers."""
    return frame(to, source, size)[:14] + struct.pack(">I", number) + bytes(size - 18)


def number_of(data: bytes) -> int:
    return int(struct.unpack(">I", data[14:18])[0])


class Memory:
    """Guest memory: regions of (guest address, size), each between guards, with a shadow of what it should hold."""

    def __init__(self, regions: Sequence[tuple[int, int]]) -> None:
        self.regions = sorted(regions)
        self._host = [np.full(size + 2 * GUARD, PATTERN, np.uint8) for _, size in self.regions]
        self._shadow = [array.copy() for array in self._host]
        self._allowed = [np.zeros(len(array), np.bool_) for array in self._host]
        self._next = self.regions[0][0]
        self._region = 0
        self._free: dict[int, list[int]] = {}

    def table(self) -> tuple[tuple[int, int, int], ...]:
        """(guest, size, host) as the publisher wants it."""
        pairs = zip(self.regions, self._host, strict=True)
        return tuple((guest, size, address_of(array) + GUARD) for (guest, size), array in pairs)

    def _parts(self, guest: int, length: int) -> list[tuple[int, slice]]:
        parts = []
        while length > 0:
            index = next(i for i, (first, size) in enumerate(self.regions) if first <= guest < first + size)
            first, size = self.regions[index]
            part = min(length, first + size - guest)
            begin = GUARD + guest - first
            parts.append((index, slice(begin, begin + part)))
            guest, length = guest + part, length - part
        return parts

    def host(self, guest: int) -> int:
        """Host address of a guest address."""
        ((index, place),) = self._parts(guest, 1)
        return address_of(self._host[index]) + place.start

    def write(self, guest: int, data: bytes) -> None:
        """What the driver writes."""
        values = np.frombuffer(data, np.uint8)
        for index, place in self._parts(guest, len(data)):
            count = place.stop - place.start
            self._host[index][place] = self._shadow[index][place] = values[:count]
            values = values[count:]

    def read(self, guest: int, length: int) -> bytes:
        return b"".join(self._host[index][place].tobytes() for index, place in self._parts(guest, length))

    def allow(self, guest: int, length: int, allowed: bool = True) -> None:
        """Whether the device may write here."""
        for index, place in self._parts(guest, length):
            self._allowed[index][place] = allowed

    def accept(self, guest: int, length: int) -> None:
        """What the device wrote here is what should be there."""
        for index, place in self._parts(guest, length):
            self._shadow[index][place] = self._host[index][place]

    def allocate(self, size: int, align: int = 16) -> int:
        """Guest address of memory of the driver; never across regions."""
        if self._free.get(size):
            return self._free[size].pop()
        place = -(-self._next // align) * align
        first, room = self.regions[self._region]
        if place + size > first + room:
            self._region += 1
            self._next = self.regions[self._region][0]
            return self.allocate(size, align)
        self._next = place + size
        return place

    def release(self, guest: int, size: int) -> None:
        self._free.setdefault(size, []).append(guest)

    def check(self) -> None:
        """Nothing changed but what the device may write."""
        for number, (host, shadow, allowed) in enumerate(
            zip(self._host, self._shadow, self._allowed, strict=True)
        ):
            wrong = np.flatnonzero((host != shadow) & ~allowed)
            assert len(wrong) == 0, f"region {number}: written at {[hex(int(i) - GUARD) for i in wrong[:8]]}"

    def contents(self) -> list[bytes]:
        """All guest memory, region after region."""
        return [array[GUARD:-GUARD].tobytes() for array in self._host]


class Virtqueue:
    """The driver's side of one split virtqueue; raw memory for those who want to misbehave."""

    def __init__(self, memory: Memory, size: int, features: int, to_guest: bool) -> None:
        self.memory, self.size, self.features, self.to_guest = memory, size, features, to_guest
        self.desc = memory.allocate(16 * size)
        self.avail = memory.allocate(6 + 2 * size)
        self.used = memory.allocate(6 + 8 * size)
        self.call_fd, self.error_fd = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        self.running = self.enabled = True
        self.calls = 0
        self.reset()

    def reset(self, index: int = 0) -> None:
        """As a driver that was loaded again: everything is free, both indices are `index`."""
        self.free = deque(range(self.size))
        self.chains: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        self.index = self.seen = index
        self.memory.write(self.desc, bytes(16 * self.size))
        self.memory.write(self.avail, struct.pack("<HH", 0, index) + bytes(2 * self.size + 2))
        self.memory.write(self.used, struct.pack("<HH", 0, index) + bytes(8 * self.size + 2))
        self.memory.allow(self.used, 6 + 8 * self.size)

    def entry(self) -> RingEntry:
        host = self.memory.host
        return RingEntry(
            running=self.running,
            enabled=self.enabled,
            size=self.size,
            desc=host(self.desc),
            avail=host(self.avail),
            used=host(self.used),
            features=self.features,
            call_fd=self.call_fd,
            error_fd=self.error_fd,
        )

    # --- raw -------------------------------------------------------------------------------------------------

    def describe(self, place: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.memory.write(self.desc + 16 * place, struct.pack("<QIHH", address, length, flags, following))

    def offer(self, head: int) -> None:
        """Put `head` into the available ring and show it."""
        self.memory.write(self.avail + 4 + 2 * (self.index % self.size), struct.pack("<H", head))
        self.index = (self.index + 1) & 0xFFFF
        self.show(self.index)

    def show(self, index: int) -> None:
        self.memory.write(self.avail + 2, struct.pack("<H", index & 0xFFFF))

    def set_flags(self, flags: int) -> None:
        self.memory.write(self.avail, struct.pack("<H", flags))

    def set_used_event(self, event: int) -> None:
        self.memory.write(self.avail + 4 + 2 * self.size, struct.pack("<H", event & 0xFFFF))

    @property
    def used_flags(self) -> int:
        return int(struct.unpack("<H", self.memory.read(self.used, 2))[0])

    @property
    def used_index(self) -> int:
        return int(struct.unpack("<H", self.memory.read(self.used + 2, 2))[0])

    @property
    def avail_event(self) -> int:
        return int(struct.unpack("<H", self.memory.read(self.used + 4 + 8 * self.size, 2))[0])

    # --- as a driver does it -----------------------------------------------------------------------------------

    def chain(
        self, buffers: Sequence[tuple[int, int]], table: int | None = None, flags: int | None = None
    ) -> int:
        """Offer (address, length) buffers as one chain; with `table` in an indirect table there. Its head."""
        own = (WRITE if self.to_guest else 0) if flags is None else flags
        if self.to_guest:
            for address, length in buffers:
                self.memory.allow(address, length)
        if table is None:
            places = [self.free.popleft() for _ in buffers]
        else:
            places = [self.free.popleft()]
            self.describe(places[0], table, 16 * len(buffers), INDIRECT)
        for step, (address, length) in enumerate(buffers):
            last = step == len(buffers) - 1
            following = step + 1 if table is not None else places[min(step + 1, len(places) - 1)]
            row = struct.pack("<QIHH", address, length, own | (0 if last else NEXT), 0 if last else following)
            self.memory.write(self.desc + 16 * places[step] if table is None else table + 16 * step, row)
        self.chains[places[0]] = (places, list(buffers))
        self.offer(places[0])
        return places[0]

    def harvest(self) -> list[tuple[int, int, list[tuple[int, int]]]]:
        """(head, length, buffers) of what the device has used since the last call."""
        found = []
        while self.seen != self.used_index:
            place = self.used + 4 + 8 * (self.seen % self.size)
            head, length = struct.unpack("<II", self.memory.read(place, 8))
            self.seen = (self.seen + 1) & 0xFFFF
            places, buffers = self.chains.pop(head, ([], []))
            self.free.extend(places)
            left = length
            for address, size in buffers:
                if self.to_guest:
                    self.memory.accept(address, min(left, size))
                    self.memory.allow(address, size, allowed=False)
                    left -= min(left, size)
            found.append((head, length, buffers))
        return found

    def called(self) -> int:
        """Notifications since the last call."""
        try:
            return os.eventfd_read(self.call_fd)
        except BlockingIOError:
            return 0

    def errors(self) -> int:
        try:
            return os.eventfd_read(self.error_fd)
        except BlockingIOError:
            return 0


class Vm:
    """A VM port with its driver."""

    def __init__(
        self,
        rig: Rig,
        macs: Sequence[str],
        *,
        vlan: int = 0,
        uplink: int = state.NONE,
        workers: tuple[int, ...] = (0,),
        size: int = 64,
        features: int = ALL_FEATURES,
        regions: Sequence[tuple[int, int]] = ((0x10000, 1 << 18),),
        frame_max: int = 1514,
        spoof_check: bool = True,
        storm_limit: int = 0,
        accept: tuple[str, ...] = ("broadcast", "multicast"),
        learn: Sequence[tuple[int, int]] = (),
        learn_left: int = 0,
    ) -> None:
        self.rig, self.number = rig, len(rig.vms)
        self.first_queue = sum(len(vm.queues) for vm in rig.vms)
        self.macs = [mac_number(mac) for mac in macs]
        self.vlan, self.uplink, self.workers = vlan, uplink, workers
        self.former, self.shared, self.generation = state.NONE, False, 1
        self.gap = self.gather = self.keep = self.nic = self.led = 0
        self.oldest = self.straight = False
        self.tap = state.NONE
        self.memory = Memory(regions)
        self.queues: list[tuple[Virtqueue, Virtqueue]] = [
            (Virtqueue(self.memory, size, features, True), Virtqueue(self.memory, size, features, False))
            for _ in workers
        ]
        self.to_guest, self.from_guest = self.queues[0]
        self.frame_max, self.spoof_check, self.storm_limit = frame_max, spoof_check, storm_limit
        self.learn, self.learn_left, self.accept = learn, learn_left, accept
        self.present = True
        self.num_buffers: list[int] = []
        self.begin()

    def entry(self) -> PortEntry:
        return PortEntry(
            number=self.number,
            first_queue=self.first_queue,
            queues=tuple(
                QueueEntry(
                    worker,
                    self.former,
                    self.shared,
                    self.generation,
                    self.gap,
                    self.gather,
                    self.keep,
                    self.oldest,
                    tap=self.tap,
                    straight=self.straight,
                    nic=self.nic,
                    led=self.led,
                )
                for worker in self.workers
            ),
            uplink=self.uplink,
            vlan=self.vlan,
            macs=tuple(self.macs),
            frame_max=self.frame_max,
            spoof_check=self.spoof_check,
            storm_limit=self.storm_limit,
            accept=self.accept,
            learn=tuple(self.learn),
            learn_left=self.learn_left,
            regions=self.memory.table(),
            rings={index: (pair[0].entry(), pair[1].entry()) for index, pair in enumerate(self.queues)},
        )

    def begin(self) -> None:
        """Hand the rings to the kernels, as control does when a driver starts."""
        for index, (to_guest, from_guest) in enumerate(self.queues):
            for direction, ring in enumerate((to_guest, from_guest)):
                row = self.rig.segment.rows["ring_state"][2 * (self.first_queue + index) + direction]
                row["next_avail"] = row["next_used"] = row["shown"] = ring.index
                row["first"], row["asleep"], row["region"] = 0, 0, state.NONE
        self.rig.segment.rows["port_state"][self.number]["fault"] = 0

    # --- frames ------------------------------------------------------------------------------------------------

    def post(self, count: int = 1, size: int = 2048) -> None:
        """Post receive buffers of one descriptor each."""
        for _ in range(count):
            self.to_guest.chain([(self.memory.allocate(size), size)])

    def received(self) -> list[bytes]:
        """Frames that arrived, in order, tags inside; their buffers are free again. Headers are checked."""
        frames: list[bytes] = []
        used = deque(self.to_guest.harvest())
        while used:
            data = self._filled(used.popleft())
            if not data:
                continue
            assert data[:10] == bytes(10), "the packet header asks for something"
            (count,) = struct.unpack("<H", data[10:12])
            self.num_buffers.append(count)
            for _ in range(count - 1):
                data += self._filled(used.popleft())
            frames.append(data[HEADER:])
        return frames

    def _filled(self, element: tuple[int, int, list[tuple[int, int]]]) -> bytes:
        data = b"".join(self.memory.read(address, size) for address, size in element[2])[: element[1]]
        assert len(data) == element[1], "the device claims to have written more than there was room for"
        for address, size in element[2]:
            self.memory.release(address, size)
        return data

    def send(
        self, data: bytes, header: bytes = bytes(HEADER), cuts: Sequence[int] = (), indirect: bool = False
    ) -> int:
        """Offer one frame, header first, cut into buffers at `cuts`; the head of its chain."""
        whole = header + data
        places = [0, *cuts, len(whole)]
        start = self.memory.allocate(len(whole))
        self.memory.write(start, whole)
        buffers = [(start + first, end - first) for first, end in itertools.pairwise(places)]
        table = self.memory.allocate(16 * len(buffers)) if indirect else None
        return self.from_guest.chain(buffers, table)

    def sent(self) -> list[tuple[int, int]]:
        """(head, length) of the transmit chains that came back."""
        return [(head, length) for head, length, _ in self.from_guest.harvest()]

    # --- what the engine says --------------------------------------------------------------------------------

    def books(self, queue: int = 0) -> Any:
        return self.rig.segment.rows["queue_state"][self.first_queue + queue]

    def ring_state(self, to_guest: bool) -> Any:
        return self.rig.segment.rows["ring_state"][2 * self.first_queue + (0 if to_guest else 1)]

    @property
    def fault(self) -> str:
        return reasons.FAULTS[int(self.rig.segment.rows["port_state"][self.number]["fault"])][0]

    def drops(self) -> dict[str, int]:
        """Drops of what was sent here."""
        return named(self.books()["to_guest_drops"])

    def sent_drops(self) -> dict[str, int]:
        """Drops of what was sent from here."""
        return named(self.books()["account"]["drops"])


def named(row: Any) -> dict[str, int]:
    return {name: int(row[code]) for name, code in DROP.items() if row[code]}


class Rig:
    """The engine's memory, and everybody around it."""

    def __init__(self, workers: int = 1, handover: int = 1 << 16) -> None:
        self.segment = Segment(workers)
        self.publisher = Publisher(self.segment)
        self.workers = [Worker(self.segment, index, 0) for index in range(workers)]
        self._rings = link_rings(self.segment)
        self.vms: list[Vm] = []
        self.uplinks: list[UplinkEntry] = []
        self.filters: list[FilterEntry] = []
        self.sinks: list[list[int]] = []
        self._kept: list[Any] = []
        self.limit_handover(handover)

    def limit_handover(self, size: int) -> None:
        """Hand-over rings of `size` bytes."""
        rings = self.segment.rows["rings"]
        for index in np.flatnonzero(rings):
            ring = make_ring(size)
            self._rings.append(ring)
            rings[index] = ring[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        try:
            if kind is None:
                self.check()
        finally:
            self.close()

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        unmap_rings(self._rings)
        for vm in self.vms:
            for ring in itertools.chain.from_iterable(vm.queues):
                os.close(ring.call_fd)
                os.close(ring.error_fd)
        self.segment.close()

    def check(self) -> None:
        """Guest memory, and the laws of the counters."""
        for vm in self.vms:
            vm.memory.check()
        check_laws(self.segment)

    # --- who is there ------------------------------------------------------------------------------------------

    def vm(self, *macs: str, **settings: Any) -> Vm:
        vm = Vm(self, macs, **settings)
        self.vms.append(vm)
        return vm

    def uplink(
        self,
        frames: Sequence[bytes] = (),
        *,
        laps: int = 1,
        lossless: bool = False,
        sink: int = 0,
        forward_link_local: bool = False,
        kind: int = state.LANE_REPLAY,
        receives: bool = False,
    ) -> int:
        """A replaying uplink: lane 0 plays `frames`, every lane keeps what leaves in a byte ring of `sink` bytes.

        `receives`: frames come, though not by its lanes.
        """
        lanes = []
        self.sinks.append([])
        for worker in range(len(self.workers)):
            row = np.zeros(1, state.lane)[0]
            row["kind"], row["fd"], row["receives"] = kind, state.NONE, receives
            row["frame_max"], row["forward_link_local"] = 1514, forward_link_local
            if worker == 0 and frames:
                self._play(row, frames)
                row["lossless"], row["laps"], row["receives"] = lossless, laps, 1
            if sink:
                ring = make_ring(sink)
                self._rings.append(ring)
                self.sinks[-1].append(ring[0])
                row["sink"] = ring[0]
            lanes.append(row)
        self.uplinks.append(UplinkEntry(len(self.uplinks), tuple(lanes)))
        return len(self.uplinks) - 1

    def _play(self, row: Any, frames: Sequence[bytes]) -> None:
        items = np.zeros(len(frames), state.recorded)
        for item, data in zip(items, frames, strict=True):
            tci = 0
            tagged = data[12:14] == b"\x81\x00"
            if tagged:
                tci, data = int.from_bytes(data[14:16], "big"), data[:12] + data[16:]
            block = np.frombuffer(data, np.uint8).copy()
            self._kept.append(block)
            item["address"], item["length"] = address_of(block), len(data)
            item["tci"], item["tagged"] = tci, tagged
        backlog = np.zeros(state.DELIVERIES, state.waiting)
        self._kept += [items, backlog]
        row["source"], row["source_count"] = address_of(items), len(items)
        row["backlog"] = address_of(backlog)

    def publish(self) -> None:
        self.publisher.publish([vm.entry() for vm in self.vms if vm.present], self.uplinks, self.filters)

    # --- one step ----------------------------------------------------------------------------------------------

    def tables(self) -> Any:
        return at(int(self.segment.engine["tables"]), 1, state.tables)[0]

    def rows(self, vm: Vm, to_guest: bool) -> tuple[Any, Any, Any, Any, Any]:
        """What leaf kernels take: tables, worker, VM port, virtqueue, ring state."""
        tables = self.tables()
        port = at(int(tables["vports"]), int(tables["vport_count"]), state.vport)[vm.number]
        number = 2 * vm.first_queue + (0 if to_guest else 1)
        virtqueue = at(int(tables["virtqueues"]), 2 * int(tables["queue_count"]), state.virtqueue)[number]
        return tables, self.worker(), port, virtqueue, vm.ring_state(to_guest)

    def worker(self, index: int = 0) -> Any:
        return self.segment.rows["workers"][index]

    def step(self, worker: int = 0) -> int:
        """One round of everything; whether anything moved."""
        row, tables = self.worker(worker), self.tables()
        row["tables"], row["epoch"] = int(self.segment.engine["tables"]), tables["epoch"]
        return int(loop.all_rounds(tables, row))

    def run(self, rounds: int = 1000) -> None:
        """Steps of all workers until nothing moves."""
        for _ in range(rounds):
            if sum(self.step(index) for index in range(len(self.workers))) == 0:
                return
        raise AssertionError(f"still moving after {rounds} rounds")

    # --- what became of it -------------------------------------------------------------------------------------

    def lane_state(self, uplink: int = 0, worker: int = 0) -> Any:
        return self.segment.rows["lane_state"][uplink * len(self.workers) + worker]

    def wire_drops(self, uplink: int = 0) -> dict[str, int]:
        """Drops of what came from the wire."""
        return named(self.lane_state(uplink)["account"]["drops"])

    def left(self, uplink: int = 0, worker: int = 0) -> list[bytes]:
        """Frames in the sink of a lane, tags inside; the sink is empty afterwards."""
        ring = at(self.sinks[uplink][worker], 1, state.byte_ring)[0]
        frames = []
        tail, size = int(ring["tail"]), int(ring["size"])
        while tail < int(ring["head"]):
            place = int(ring["data"]) + tail % size
            record = at(place, 48, np.uint8).tobytes()
            total, length, _vid, tci, tagged = struct.unpack("<qiiii", record[:24])
            if total < 0:
                tail -= total
                continue
            data = at(place + 48, length, np.uint8).tobytes()
            tag = struct.pack(">HH", 0x8100, tci) if tagged else b""
            frames.append(data[:12] + tag + data[12:])
            tail += total
        ring["tail"] = tail
        return frames

    def events(self, worker: int = 0) -> list[tuple[int, int, int]]:
        return self.workers[worker].events()
