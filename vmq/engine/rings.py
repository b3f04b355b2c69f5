# SPDX-License-Identifier: Apache-2.0
"""The virtqueues of one VM port on their way between protocol and kernels: entries, where they begin, who watches kicks.

While a ring runs a kernel owns its `ring_state`; before and after, this file.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from vmq.abi import virtio
from vmq.dataplane import state
from vmq.jit import at
from vmq.publisher import RingEntry
from vmq.vhost.memory import Mapping
from vmq.vhost.message import Region
from vmq.vhost.session import Area, Session, ring_placement

if TYPE_CHECKING:
    from vmq.engine.vm import Vm

_RING_FEATURES = (
    (virtio.VIRTIO_RING_F_EVENT_IDX, state.RING_EVENT_IDX),
    (virtio.VIRTIO_RING_F_INDIRECT_DESC, state.RING_INDIRECT),
    (virtio.VIRTIO_NET_F_MRG_RXBUF, state.RING_MERGEABLE),
)


class Rings:
    """Those of `vm`. `entries` holds (to_guest, from_guest) by queue pair."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.entries: dict[int, tuple[RingEntry, RingEntry]] = {}
        self._wanted: dict[int, int] = {}  # kicks of the rings that run
        self._kicks: dict[int, tuple[int, int]] = {}  # those that are watched, and by which processor

    def follow(self, session: Session, mappings: dict[Region, Mapping]) -> None:
        """Let the entries be those of a session; what begins is handed to the kernels, which have not seen it yet."""
        before = self.started
        entries = {index: self._entry(session, index, mappings) for index in session.started}
        for index in set(entries) - before:
            self._begin(index, entries[index], session.rings[index].base)
        none = RingEntry()
        self.entries = {
            pair: (entries.get(2 * pair, none), entries.get(2 * pair + 1, none))
            for pair in {index // 2 for index in entries}
        }
        self._wanted = {i: session.rings[i].kick for i in entries if i % 2 and session.rings[i].kick >= 0}

    @property
    def started(self) -> set[int]:
        """The rings that the kernels have."""
        return {
            2 * pair + half
            for pair, rings in self.entries.items()
            for half, ring in enumerate(rings)
            if ring.running
        }

    def state(self, index: int) -> np.void:
        row: np.void = self.vm.engine.segment.rows["ring_state"][2 * self.vm.first_queue + index]
        return row

    def _entry(self, session: Session, index: int, mappings: dict[Region, Mapping]) -> RingEntry:
        def host(area: Area) -> int:
            return mappings[area.region].host + area.offset

        ring, place = session.rings[index], ring_placement(session, index)
        return RingEntry(
            running=True,
            enabled=session.enabled(index),
            size=ring.size,
            desc=host(place.desc),
            avail=host(place.avail),
            used=host(place.used),
            features=sum(flag for bit, flag in _RING_FEATURES if session.acked(bit)),
            call_fd=ring.call,
            error_fd=ring.err,
            polled=index % 2 == 1 and ring.kick < 0,
        )

    def _begin(self, index: int, entry: RingEntry, base: int) -> None:
        """Hand a ring to the kernels: where it stands, as the front-end and guest memory say."""
        row = self.state(index)
        used = at(entry.used, 1, virtio.vring_used)[0]
        # The used index is read from guest memory, never assumed: the driver counts on (vhost-user.md, hazard 3).
        stands = int(used["idx"])
        row["next_used"] = row["shown"] = stands
        # DPDK's virtio_user, listening, says 0 after its back-end was away, though its rings go on. Chains are used in
        # order: all before the used index are done, and none after it.
        row["next_avail"] = base & state.M16 or stands
        row["first"], row["asleep"], row["region"] = 1, 0, state.NONE
        row["owed"] = row["indicated"] = 0
        if not entry.features & state.RING_EVENT_IDX:
            receive = index % 2 == 0  # nobody waits for receive buffers
            used["flags"] = virtio.VRING_USED_F_NO_NOTIFY if receive else 0

    def watch(self) -> None:
        """Have processors watch the kicks of the from_guest rings that run; nobody those of a queue on its way."""
        workers = self.vm.engine.workers
        entries = {index: self.vm.queues[index // 2] for index in self._wanted}
        wanted = {
            index: (fd, entries[index].worker)
            for index, fd in self._wanted.items()
            if entries[index].former == state.NONE
        }
        for index, (fd, worker) in list(self._kicks.items()):
            if wanted.get(index) != (fd, worker):
                workers[worker].forget(fd)
                del self._kicks[index]
        for index, (fd, worker) in wanted.items():
            if index not in self._kicks:
                workers[worker].watch(fd)
                self._kicks[index] = fd, worker
        for worker in {worker for _, worker in wanted.values()}:
            os.eventfd_write(workers[worker].doorbell, 1)  # a kick may have come before we watched
