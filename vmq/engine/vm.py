# SPDX-License-Identifier: Apache-2.0
"""One VM port of a running engine: its configuration, its session, its rows.

It is the `Owner` of its connection: `follow` turns a vhost-user session into table entries, hands the rings over
to the kernels and takes them back. While a ring runs a kernel owns its `ring_state`; before and after, this file.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from vmq.abi import virtio
from vmq.abi.ethernet import ETH_HLEN, mac_number, mac_text
from vmq.config import Vm as VmConfig
from vmq.dataplane import state
from vmq.errors import ProtocolError
from vmq.jit import at
from vmq.publisher import PortEntry, RingEntry
from vmq.vhost.memory import Mapping
from vmq.vhost.message import Region
from vmq.vhost.port import Port
from vmq.vhost.session import Area, Offer, Session, obstacle, ring_placement

if TYPE_CHECKING:
    from vmq.engine.engine import Engine

_RING_FEATURES = (
    (virtio.VIRTIO_RING_F_EVENT_IDX, state.RING_EVENT_IDX),
    (virtio.VIRTIO_RING_F_INDIRECT_DESC, state.RING_INDIRECT),
    (virtio.VIRTIO_NET_F_MRG_RXBUF, state.RING_MERGEABLE),
)
DEFAULT_MTU = 1500


def prefix_of(text: str) -> tuple[int, int]:
    """(mask, value) of a learn prefix such as 0e:fc:00:00:00:00/24, in the byte order of vmq.abi.ethernet."""
    address, _, length = text.partition("/")
    bits = ((1 << int(length)) - 1) << (48 - int(length))
    mask = int.from_bytes(bits.to_bytes(6, "big"), "little")
    return mask, mac_number(address) & mask


class Vm:
    """A VM port. `number` is its row, `first_queue` the first of its `queue_pairs` receive queues."""

    def __init__(self, engine: Engine, name: str, config: VmConfig, number: int, first_queue: int) -> None:
        self.engine, self.name, self.config = engine, name, config
        self.number, self.first_queue = number, first_queue
        self.worker = 0
        self.learned: list[int] = []
        self.session = Session.new(Offer(max_pairs=config.queue_pairs))
        self.error: tuple[str, str] | None = None  # what, remedy
        self.connects = 0
        self._rings: dict[int, tuple[RingEntry, RingEntry]] = {}
        self._regions: tuple[tuple[int, int, int], ...] = ()
        self._kicks: dict[int, int] = {}
        where = f'{engine.where}: vm "{name}": socket'
        self.port = Port(where, config.socket, config.mode, engine.group, self.session.offer, self)
        self.port.changed = self._changed

    # --- what the tables say -------------------------------------------------------------------------------

    @property
    def macs(self) -> tuple[int, ...]:
        """Its receive filters: configured, then learned."""
        return (*(mac_number(mac) for mac in self.config.mac), *self.learned)

    @property
    def mtu(self) -> int:
        """The largest packet it may get or send: the smallest of what configuration, uplink and guest say."""
        uplink = self.engine.uplink_of(self)
        own = self.config.mtu or (uplink.mtu if uplink else DEFAULT_MTU)
        return min(own, self.session.mtu) if self.session.mtu else own

    def entry(self) -> PortEntry:
        """Its rows of the next version."""
        learn = tuple(prefix_of(text) for text in self.config.learn)
        return PortEntry(
            number=self.number,
            first_queue=self.first_queue,
            workers=(self.worker,) * self.config.queue_pairs,
            uplink=self.engine.uplink_number(self.config.uplink),
            vlan=self.config.vlan or 0,
            macs=self.macs,
            frame_max=self.mtu + ETH_HLEN,
            spoof_check=self.config.spoof_check,
            learn=learn,
            learn_left=max(self.config.learn_max - len(self.learned), 0) if learn else 0,
            regions=self._regions,
            rings=self._rings,
        )

    # --- Owner: what the connection asks ---------------------------------------------------------------------

    def follow(self, session: Session, mappings: dict[Region, Mapping]) -> dict[int, int]:
        """See `vhost.connection.Owner`."""
        before = set(self.session.started)
        self.session = session
        regions = [mappings[region] for region in session.regions]
        self._regions = tuple(sorted((one.region.gpa, one.region.size, one.host) for one in regions))
        entries = {index: self._ring(index, mappings) for index in session.started}
        for index in set(entries) - before:
            self._begin(index, entries[index])
        none = RingEntry()
        self._rings = {
            pair: (entries.get(2 * pair, none), entries.get(2 * pair + 1, none))
            for pair in {index // 2 for index in entries}
        }
        if entries and not before:
            self._clear_fault()
        self.engine.publish()
        self._watch(session)
        ended = before - set(entries)
        return {index: int(self._state(index)["next_avail"]) for index in ended}

    def mapped(self, mapping: Mapping) -> None:
        """See `vhost.connection.Owner`."""
        self.engine.segment.add_mapping(self.number, mapping.address, mapping.length)

    def unmapping(self, mapping: Mapping) -> None:
        """See `vhost.connection.Owner`."""
        self.engine.segment.drop_mapping(mapping.address)

    def announce(self, mac: int) -> None:
        """See `vhost.connection.Owner`."""
        self.engine.announce(self, mac)

    def refused(self, error: ProtocolError) -> None:
        """See `vhost.connection.Owner`."""
        self.fail(f"{error.rule}: {error.wrong}", error.remedy)

    # --- rings ---------------------------------------------------------------------------------------------

    def _state(self, index: int) -> np.void:
        row: np.void = self.engine.segment.rows["ring_state"][2 * self.first_queue + index]
        return row

    def _ring(self, index: int, mappings: dict[Region, Mapping]) -> RingEntry:
        session, ring = self.session, self.session.rings[index]

        def host(area: Area) -> int:
            return mappings[area.region].host + area.offset

        place = ring_placement(session, index)
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
        )

    def _begin(self, index: int, entry: RingEntry) -> None:
        """Hand a ring to the kernels: where it stands, as the front-end and guest memory say."""
        row = self._state(index)
        used = at(entry.used, 1, virtio.vring_used)[0]
        row["next_avail"] = self.session.rings[index].base & state.M16
        # The used index is read from guest memory, never assumed: the driver counts on (vhost-user.md, hazard 3).
        row["next_used"] = row["shown"] = used["idx"]
        row["first"], row["asleep"], row["region"] = 1, 0, state.NONE
        if not entry.features & state.RING_EVENT_IDX:
            receive = index % 2 == 0  # nobody waits for receive buffers
            used["flags"] = virtio.VRING_USED_F_NO_NOTIFY if receive else 0

    def _watch(self, session: Session) -> None:
        """Have the processor watch the kicks of the from_guest rings that run."""
        worker = self.engine.workers[self.worker]
        wanted = {i: session.rings[i].kick for i in session.started if i % 2 and session.rings[i].kick >= 0}
        for index, fd in list(self._kicks.items()):
            if wanted.get(index) != fd:
                worker.forget(fd)
                del self._kicks[index]
        for index, fd in wanted.items():
            if index not in self._kicks:
                worker.watch(fd, edge=True)
                self._kicks[index] = fd
        if wanted:
            os.eventfd_write(worker.doorbell, 1)  # a kick may have come before we watched

    # --- life ----------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """The front-end came or went."""
        if self.port.connection is not None:
            self.connects += 1
            self.error = None
            self._clear_fault()
        elif self.learned:
            self.learned.clear()
            self.engine.publish()

    def _clear_fault(self) -> None:
        self.engine.segment.rows["port_state"][self.number]["fault"] = state.NO_FAULT

    def learn(self, mac: int) -> bool:
        """Add a source address to its filters; False if it is there, there is no room, or another VM has it."""
        if mac in self.macs or len(self.learned) >= self.config.learn_max:
            return False
        segment = (self.config.uplink, self.config.vlan)
        for other in self.engine.vms.values():
            if (
                other is not self
                and segment == (other.config.uplink, other.config.vlan)
                and mac in other.macs
            ):
                self.fail(f"{mac_text(mac)} is {other.name}'s", "give each VM addresses of its own")
                return False
        self.learned.append(mac)
        return True

    def fail(self, what: str, remedy: str) -> None:
        """Remember the last error, and log it once."""
        if self.error != (what, remedy):
            self.error = (what, remedy)
            self.engine.log(f"vm {self.name}: {what}" + (f". Remedy: {remedy}" if remedy else ""))

    @property
    def fault(self) -> int:
        """The fault that stopped it, NO_FAULT without."""
        return int(self.engine.segment.rows["port_state"][self.number]["fault"])

    @property
    def running(self) -> list[int]:
        """Receive queues whose to_guest ring runs and is enabled."""
        return [pair for pair, rings in self._rings.items() if rings[0].running and rings[0].enabled]

    @property
    def state(self) -> str:
        """listening, connecting, connected, running or faulted."""
        if self.fault:
            return "faulted"
        return "running" if self.port.connection is not None and self.running else self.port.state

    @property
    def obstacle(self) -> str:
        """Why its first receive queue does not run, in words; empty if it does."""
        if self.port.connection is None:
            return "no front-end is connected"
        return obstacle(self.session, 0) or ("" if self.running else "the driver has not enabled the queue")

    def queue_rows(self) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        """The counters of its receive queues."""
        first = self.first_queue
        rows: np.ndarray[tuple[int], np.dtype[np.void]] = self.engine.segment.rows["queue_state"]
        return rows[first : first + self.config.queue_pairs]
