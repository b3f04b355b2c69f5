# SPDX-License-Identifier: Apache-2.0
"""Versions of the tables: build one whole, publish it with one store, free the old one when nobody uses it.

`Segment` is the shared memory of all state rows; it lives as long as the engine. `Publisher.publish(entries)`
lays a new version out in memory of its own and stores its address; every worker adopts it between two bursts and
announces its epoch. `settle` waits for that; then nobody uses what only older versions show (mappings,
descriptors), their owners may give it back, and `reclaim` frees the versions themselves. docs/adr/0003
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from vmq import linux
from vmq.dataplane import state
from vmq.dataplane.classify import GROUP_KEYS, slot_of
from vmq.dataplane.match import field_test
from vmq.errors import ProtocolError
from vmq.jit import address_of, at, python_of, store_release

Rows = npt.NDArray[Any]
SETTLE_SECONDS = 5.0
MAPPINGS_FAIR, MAPPINGS_KEPT = 16, 2048  # regions that every VM port may have; rows kept for those
MEMORY = 'vhost-user "Memory region description"'


@dataclass(frozen=True)
class RingEntry:
    """One virtqueue as the kernels see it; the default is one that no driver has started."""

    running: bool = False
    enabled: bool = False
    size: int = 0
    desc: int = 0
    avail: int = 0
    used: int = 0
    features: int = 0
    call_fd: int = state.NONE
    error_fd: int = state.NONE
    polled: bool = False


@dataclass(frozen=True)
class QueueEntry:
    """One receive queue of a VM port: who serves it, and how (state.queue)."""

    worker: int
    former: int = state.NONE
    shared: bool = False
    generation: int = 0
    gap: int = 0
    gather: int = 0
    keep: int = 0
    oldest: bool = False
    late: bool = False
    direct: int = 0
    led: int = 0
    nic: int = 0
    tap: int = state.NONE
    straight: bool = False


_QUEUE = [one.name for one in fields(QueueEntry)]


@dataclass(frozen=True)
class PortEntry:
    """One VM port: `macs` are its receive filters in `vlan`; `rings` holds (to_guest, from_guest) per queue."""

    number: int
    first_queue: int
    queues: tuple[QueueEntry, ...]
    uplink: int
    vlan: int
    macs: tuple[int, ...]
    frame_max: int
    spoof_check: bool = True
    storm_limit: int = 0  # broadcast and multicast frames a second; 0: any number
    accept: tuple[str, ...] = ("broadcast", "multicast")  # of GROUP_KEYS
    learn: tuple[tuple[int, int], ...] = ()  # (mask, value)
    learn_left: int = 0
    regions: tuple[tuple[int, int, int], ...] = ()  # (guest, size, host), sorted
    rings: dict[int, tuple[RingEntry, RingEntry]] = field(default_factory=dict)


@dataclass(frozen=True)
class UplinkEntry:
    """One uplink: its number in filters, and one lane row a worker (lane = number * workers + worker)."""

    number: int
    lanes: tuple[Rows, ...]


@dataclass(frozen=True)
class FilterEntry:
    """Receive filters of one uplink that were set beside its ports' own: plain ones, and rows for match.py."""

    uplink: int
    plain: dict[tuple[int, int], int]  # (address, VLAN id) → receive queue
    tests: Rows


class Segment:
    """The state rows, and the addresses every worker starts from."""

    def __init__(self, worker_count: int) -> None:
        parts = {
            "engine": (state.engine, 1),
            "workers": (state.worker, worker_count),
            "queue_state": (state.queue_state, state.MAX_QUEUES),
            "ring_state": (state.ring_state, 2 * state.MAX_QUEUES),
            "lane_state": (state.lane_state, state.MAX_LANES),
            "port_state": (state.port_state, state.MAX_VPORTS),
            "misses": (state.near_miss, worker_count * state.MAX_VPORTS),
            "strangers": (state.stranger, worker_count * state.STRANGERS),
            "watches": (state.watch, state.MAX_QUEUES),
            "latencies": (state.latency, state.MAX_QUEUES),
            "rings": (np.dtype(np.int64), state.HANDOVER_RINGS),
            "mappings": (state.mapping, state.MAX_MAPPINGS),
        }
        self.length = sum(_aligned(dtype.itemsize * count) for dtype, count in parts.values())
        self.address = linux.map_private(self.length)
        place = self.address
        self.rows: dict[str, Rows] = {}
        for name, (dtype, count) in parts.items():
            self.rows[name] = at(place, count, dtype)
            place += _aligned(dtype.itemsize * count)
        self.engine = self.rows["engine"][0]
        for name in parts:
            if name != "engine":
                self.engine[name] = address_of(self.rows[name])
        self.engine["worker_count"] = worker_count
        self.engine["control_fd"] = self.control_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._anchor(0, self.address)

    def _anchor(self, old: int, new: int) -> None:
        """Tell the SIGBUS handler where this engine is (state.ANCHOR)."""
        linux.map_fixed(state.ANCHOR, linux.PAGE)
        slots = at(state.ANCHOR, state.ANCHOR_SLOTS, np.int64)
        slots[list(slots).index(old)] = new

    def add_mapping(self, vport: int, host: int, length: int) -> None:
        """Guest memory that the SIGBUS handler may replace; ProtocolError when too much is mapped already.

        The last MAPPINGS_KEPT rows are for VM ports with few regions: no port leaves its neighbours without.
        """
        rows = self.rows["mappings"]
        free = np.flatnonzero(rows["length"] == 0)
        own = np.count_nonzero((rows["length"] > 0) & (rows["vport"] == vport))
        if len(free) <= (MAPPINGS_KEPT if own >= MAPPINGS_FAIR else 0):
            raise ProtocolError(
                MEMORY,
                f"{state.MAX_MAPPINGS - len(free)} memory regions of {state.MAX_MAPPINGS} are in use, {own} of them by this VM port",
                "give each VM fewer memory slots",
            )
        rows[free[0]] = (host, length, vport, 0)

    def drop_mapping(self, host: int) -> None:
        """Forget a mapping before it is undone."""
        self.rows["mappings"]["length"][self.rows["mappings"]["host"] == host] = 0

    def close(self) -> None:
        """Give everything back; no worker runs any more."""
        self._anchor(self.address, 0)
        os.close(self.control_fd)
        self.rows.clear()
        linux.unmap(self.address, self.length)


def _aligned(size: int) -> int:
    return (size + 63) & ~63


class Block:
    """One version: its rows in one piece of memory."""

    def __init__(self, arrays: dict[str, Rows], header: dict[str, int]) -> None:
        offsets, place = {}, _aligned(state.tables.itemsize)
        for name, rows in arrays.items():
            offsets[name] = place
            place += _aligned(rows.nbytes)
        self.memory = np.zeros(place + 64, np.uint8)
        base = self.base = (address_of(self.memory) + 63) & ~63
        self.tables = at(base, 1, state.tables)[0]
        for name, rows in arrays.items():
            at(base + offsets[name], rows.nbytes, np.uint8)[:] = rows.view(np.uint8).reshape(-1)
            self.tables[name] = base + offsets[name]
        for name, value in header.items():
            self.tables[name] = value


def _filters(ports: Iterable[PortEntry], filters: Iterable[FilterEntry]) -> tuple[Rows, Rows, Rows]:
    """Hash table of all plain receive filters, the groups of the segments, and their members."""
    keys = [(mac, vlan, one.uplink, queue) for one in filters for (mac, vlan), queue in one.plain.items()]
    keys += [(mac, port.vlan, port.uplink, port.first_queue) for port in ports for mac in port.macs]
    accepting: dict[tuple[int, int, int], list[int]] = {}
    for port in ports:
        for name in port.accept:
            accepting.setdefault((GROUP_KEYS[name], port.vlan, port.uplink), []).append(port.number)
    shared: dict[tuple[int, ...], int] = {}  # members → group: most segments need one
    for key, numbers in accepting.items():
        keys.append((*key, shared.setdefault(tuple(numbers), len(shared))))
    groups = np.zeros(len(shared), state.group)
    groups["count"] = [len(numbers) for numbers in shared]
    groups["first"] = np.cumsum(groups["count"]) - groups["count"]
    return _table(keys), groups, np.array(list(chain(*shared)), np.int64)


def _nearly(ports: list[PortEntry], filters: list[FilterEntry]) -> list[tuple[int, int, int, int]]:
    """Whose an address is, whatever the VLAN: a VM port's own before a filter's, the first of several."""
    plain = [(mac, one.uplink, queue) for one in filters for (mac, _), queue in one.plain.items()]
    own = [(mac, port.uplink, port.first_queue) for port in ports for mac in port.macs]
    owners = {(mac, uplink): queue for mac, uplink, queue in reversed([*own, *plain])}
    return [(mac, 0, uplink, queue) for (mac, uplink), queue in owners.items()]


def _table(keys: list[tuple[int, int, int, int]]) -> Rows:
    """Hash table of (MAC, VLAN id, uplink) → value, at most half full; the first of equal keys is found.

    All keys at once: each tries its slot; of those that want the same free one the first gets it, and the others go on
    to the next. So every slot that a key has passed is taken, as the search expects.
    """
    size = 1 << max(3, (2 * len(keys)).bit_length())
    buckets = np.zeros(size, state.bucket)
    buckets["key"] = state.KEY_EMPTY
    mac, vlan, uplink, value = np.array(keys, np.int64).reshape(-1, 4).T
    key = mac | vlan << state.VID_SHIFT
    slot = python_of(slot_of)(key, uplink, size - 1)
    waiting = np.arange(len(keys))
    while len(waiting):
        wanted = slot[waiting]
        _, first = np.unique(np.where(buckets["key"][wanted] < 0, wanted, -1 - wanted), return_index=True)
        first = first[buckets["key"][wanted[first]] < 0]
        placed = waiting[first]
        buckets["key"][slot[placed]], buckets["uplink"][slot[placed]] = key[placed], uplink[placed]
        buckets["value"][slot[placed]] = value[placed]
        waiting = np.delete(waiting, first)
        slot[waiting] = (slot[waiting] + 1) % size
    return buckets


def _rules(filters: list[FilterEntry]) -> tuple[Rows, Rows]:
    """Where the rows of each uplink begin, and all of them; nothing if nobody has any."""
    generic = [one for one in filters if len(one.tests)]
    rules = np.zeros(max((one.uplink + 2 for one in generic), default=0), state.rule)
    first = 0
    for one in generic:
        rules[one.uplink + 1] = (first, len(one.tests))
        first += len(one.tests)
    tests = np.concatenate([one.tests for one in generic]) if generic else np.zeros(0, field_test)
    return rules, tests


class _Builder:
    """Fills the arrays of one version from entries."""

    def __init__(
        self,
        ports: list[PortEntry],
        uplinks: list[UplinkEntry],
        filters: list[FilterEntry],
        worker_count: int,
    ) -> None:
        self.ports, self.uplinks, self.filters, self.worker_count = ports, uplinks, filters, worker_count
        queue_count = max((port.first_queue + len(port.queues) for port in ports), default=0)
        self.vports = np.zeros(max((port.number + 1 for port in ports), default=0), state.vport)
        self.queues = np.zeros(queue_count, state.queue)
        self.queues["vport"] = state.NONE  # numbers between VM ports are nobody's
        self.virtqueues = np.zeros(2 * queue_count, state.virtqueue)
        self.regions = np.zeros(sum(len(port.regions) for port in ports), state.region)
        self.learns = np.zeros(sum(len(port.learn) for port in ports), state.learn)
        self.lanes = np.zeros(max((one.number + 1 for one in uplinks), default=0) * worker_count, state.lane)
        self.first_lane = {state.NONE: state.NONE}
        self.polls: list[list[int]] = [[] for _ in range(worker_count)]
        self.own_lanes: list[list[int]] = [[] for _ in range(worker_count)]
        self.moderated: list[list[int]] = [[] for _ in range(worker_count)]
        self.directs: list[list[int]] = [[] for _ in range(worker_count)]

    def build(self, epoch: int, *, timed: bool) -> Block:
        """The version with this epoch."""
        self._lanes()
        region = learn = 0
        for port in self.ports:
            self._port(port, region, learn)
            self._rings(port)
            region, learn = region + len(port.regions), learn + len(port.learn)
        buckets, groups, members = _filters(self.ports, self.filters)
        rules, tests = _rules(self.filters)
        near = _table(_nearly(self.ports, self.filters))
        jobs, lists = self._jobs()
        arrays = {
            "vports": self.vports, "queues": self.queues, "virtqueues": self.virtqueues, "regions": self.regions,
            "buckets": buckets, "near_buckets": near,
            "rules": rules, "field_tests": tests, "groups": groups, "members": members, "learns": self.learns, "lanes": self.lanes,
            "jobs": jobs, "polls": lists["poll"], "own_lanes": lists["lane"], "moderated": lists["moderated"],
            "directs": lists["direct"],
        }  # fmt: skip
        largest = max([int(count) for count in groups["count"]], default=1)
        header = {
            "epoch": epoch, "vport_count": len(self.vports), "queue_count": len(self.queues),
            "region_count": len(self.regions), "bucket_mask": len(buckets) - 1, "near_mask": len(near) - 1,
            "rule_count": len(rules), "field_test_count": len(tests), "group_count": len(groups),
            "unknown_count": sum("unknown" in port.accept for port in self.ports),
            "member_count": len(members), "learn_count": len(self.learns), "lane_count": len(self.lanes),
            "poll_count": len(lists["poll"]), "own_lane_count": len(lists["lane"]),
            "moderated_count": len(lists["moderated"]), "direct_count": len(lists["direct"]), "timed": timed,
            "frame_limit": min(state.FRAMES, state.DELIVERIES // max(largest, 1)),
        }  # fmt: skip
        return Block(arrays, header)

    def _lanes(self) -> None:
        for uplink in self.uplinks:
            self.first_lane[uplink.number] = uplink.number * self.worker_count
            for worker, row in enumerate(uplink.lanes):
                number = uplink.number * self.worker_count + worker
                self.lanes[number] = row
                self.lanes[number]["uplink"], self.lanes[number]["worker"] = uplink.number, worker
                self.own_lanes[worker].append(number)

    def _port(self, port: PortEntry, region: int, learn: int) -> None:
        row = self.vports[port.number]
        row["active"] = 1
        row["uplink"], row["vlan"] = port.uplink, port.vlan
        row["mac"] = port.macs[0] if port.macs else 0
        row["first_queue"], row["queue_count"] = port.first_queue, len(port.queues)
        row["region_first"], row["region_count"] = region, len(port.regions)
        row["frame_max"] = port.frame_max
        row["learn_first"], row["learn_count"], row["learn_left"] = learn, len(port.learn), port.learn_left
        row["spoof_check"] = port.spoof_check
        row["storm_gap"] = 10**9 // port.storm_limit if port.storm_limit else 0
        row["first_lane"] = self.first_lane[port.uplink]
        for index, (guest, size, host) in enumerate(port.regions):
            self.regions[region + index] = (guest, size, host, port.number)
        for index, prefix in enumerate(port.learn):
            self.learns[learn + index] = prefix

    def _rings(self, port: PortEntry) -> None:
        rows = self.queues[port.first_queue : port.first_queue + len(port.queues)]
        rows["vport"], rows["index"] = port.number, range(len(rows))
        for name in _QUEUE:
            rows[name] = [getattr(one, name) for one in port.queues]
        for index, one in enumerate(port.queues):
            if (one.gap or one.gather) and one.former == state.NONE:
                self.moderated[one.worker].append(port.first_queue + index)
            if one.direct or one.nic or one.tap != state.NONE:
                self.directs[one.worker].append(port.first_queue + index)
        for index, pair in port.rings.items():
            for direction, ring in enumerate(pair):
                row = self.virtqueues[2 * (port.first_queue + index) + direction]
                row["running"], row["enabled"], row["size"] = ring.running, ring.enabled, ring.size
                row["desc"], row["avail"], row["used"] = ring.desc, ring.avail, ring.used
                row["features"], row["call_fd"], row["error_fd"] = ring.features, ring.call_fd, ring.error_fd
                row["polled"] = ring.polled
            if pair[1].running and port.queues[index].former == state.NONE:  # on its way, it has no owner
                self.polls[port.queues[index].worker].append(port.first_queue + index)

    def _jobs(self) -> tuple[Rows, dict[str, Rows]]:
        """Where each worker's numbers begin in the lists of all, and these lists."""
        lists = {
            "poll": self.polls,
            "lane": self.own_lanes,
            "moderated": self.moderated,
            "direct": self.directs,
        }
        jobs = np.zeros(self.worker_count, state.job)
        for name, parts in lists.items():
            counts = [len(part) for part in parts]
            jobs[f"{name}_count"] = counts
            jobs[f"{name}_first"] = np.cumsum([0, *counts[:-1]])
        return jobs, {name: np.array(list(chain(*parts)), np.int64) for name, parts in lists.items()}


class Publisher:
    """Publishes versions and knows when an old one is free."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.epoch = 0
        self._blocks: dict[int, Block] = {}
        self.doorbells: list[int] = []
        self.timed = False  # whether workers measure how long they work

    def publish(
        self, ports: list[PortEntry], uplinks: list[UplinkEntry], filters: Sequence[FilterEntry] = ()
    ) -> int:
        """Make these entries what the workers see; the epoch that says so."""
        self.epoch += 1
        builder = _Builder(ports, uplinks, list(filters), int(self.segment.engine["worker_count"]))
        block = builder.build(self.epoch, timed=self.timed)
        self._blocks[self.epoch] = block
        # us: the version's rows, then its address | worker: address, then rows.
        store_release(self.segment.engine, "tables", block.base)
        self.ring()
        return self.epoch

    def ring(self) -> None:
        """Wake every worker."""
        for doorbell in self.doorbells:
            os.eventfd_write(doorbell, 1)

    def reached(self) -> int:
        """The oldest epoch that some worker may still use."""
        return int(self.segment.rows["workers"]["epoch"].min()) if self.doorbells else self.epoch

    def settle(self, epoch: int) -> None:
        """Wait until every worker has adopted `epoch`; TimeoutError when one is stuck."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self.reached() < epoch:
            if time.monotonic() > deadline:
                raise TimeoutError(f"a processor did not adopt epoch {epoch} within {SETTLE_SECONDS:g} s")
            time.sleep(0.00002)

    def reclaim(self) -> None:
        """Free the versions that all workers have let go of."""
        reached = self.reached()
        for epoch in [epoch for epoch in self._blocks if epoch < reached and epoch != self.epoch]:
            del self._blocks[epoch]
