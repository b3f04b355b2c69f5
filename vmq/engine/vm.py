# SPDX-License-Identifier: Apache-2.0
"""One VM port of a running engine: its configuration, its session, its rows.

It is the `Owner` of its connection: `follow` turns a vhost-user session into table entries, hands the rings over
to the kernels and takes them back (rings.py).
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from vmq.abi import virtio
from vmq.abi.ethernet import ETH_HLEN, mac_number, mac_text
from vmq.config import Vm as VmConfig
from vmq.dataplane import reasons
from vmq.dynamic import Guard, Verdict
from vmq.engine.counted import Counted
from vmq.engine.following import Following
from vmq.engine.observed import Observed
from vmq.engine.rings import Rings
from vmq.engine.said import SILENCE_SECONDS, Said
from vmq.errors import ProtocolError
from vmq.filters import Filter
from vmq.jit import at
from vmq.publisher import PortEntry, QueueEntry, RingEntry
from vmq.vhost.memory import Mapping, is_empty
from vmq.vhost.message import Region
from vmq.vhost.port import Port
from vmq.vhost.session import Offer, Session, obstacle, remedy

if TYPE_CHECKING:
    from vmq.engine.engine import Engine
    from vmq.engine.queues import UplinkQueues

Rows = npt.NDArray[Any]
DEFAULT_MTU = 1500
STATES_MAX = 32  # that are told of one VM port in SILENCE_SECONDS


@lru_cache(maxsize=1024)
def prefix_of(text: str) -> tuple[int, int]:
    """(mask, value) of a learn prefix such as 0e:fc:00:00:00:00/24, in the byte order of vmq.abi.ethernet."""
    address, _, length = text.partition("/")
    bits = ((1 << int(length)) - 1) << (48 - int(length))
    mask = int.from_bytes(bits.to_bytes(6, "big"), "little")
    return mask, mac_number(address) & mask


def _overload(config: VmConfig) -> dict[str, Any]:
    """What becomes of frames that find no buffer."""
    waits = config.overload != "drop-newest"
    return {"keep": config.overload_frames if waits else 0, "oldest": config.overload == "drop-oldest"}


class Vm:
    """A VM port. `number` is its row, `first_queue` the first of its `queue_pairs` receive queues."""

    def __init__(self, engine: Engine, name: str, config: VmConfig, number: int, first_queue: int) -> None:
        self.engine, self.name, self.config = engine, name, config
        self.number, self.first_queue = number, first_queue
        self.queues = [
            QueueEntry(engine.default, shared=pair == 0, generation=engine.generation(), **_overload(config))
            for pair in range(config.queue_pairs)
        ]
        self.cpu = -1  # the processor that is to serve its own receive queue
        self.home: UplinkQueues = engine.queues[config.uplink]  # the receive queues of its uplink
        self.queue_id = -1  # of its first receive queue in the contract of its uplink
        self.filters: dict[int, tuple[int, Filter]] = {}  # its addresses: ids there, and what they mean
        self.guard: Guard | None = None  # whether that queue is worth it
        self.verdict: Verdict | None = None  # what the last measurement of it said
        self.lack = ""  # why it has no receive queue of its own
        self.counters = Counted(self._counters)
        self.learned: list[int] = []
        self.parting = frozenset[tuple[int, int]]()  # of its keys, what another VM has in a moment
        self.following = Following(self, Said().fresh)
        self.error: tuple[str, str] | None = None  # what, remedy
        self._told, self._told_since, self._told_count = "", 0.0, 0  # the state that the journal knows
        self.connects = 0
        self._offer = Offer(max_pairs=config.queue_pairs)
        self._said = Said()
        self._memory: set[int] = set()  # addresses of what is mapped
        self._gone: set[int] | None = None  # of it, what was there when a file was found truncated
        self.rings = Rings(self)
        self.observed = Observed(self)
        self._regions: tuple[tuple[int, int, int], ...] = ()
        where = f"{engine.where}: [vm.{name}] socket"
        self.port = Port(where, config.socket, config.mode, engine.group, self._offer, self)
        self.port.changed = self._changed
        self._told = self.state

    # --- what the tables say -------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """What its front-end has agreed on so far."""
        connection = self.port.connection
        return connection.session if connection is not None else Session.new(self._offer)

    @property
    def macs(self) -> tuple[int, ...]:
        """Its receive filters: configured, then followed, then learned."""
        return (*map(mac_number, self.config.mac), *self.following.addresses, *self.learned)

    @property
    def keys(self) -> tuple[tuple[int, int], ...]:
        """The (address, VLAN id) that lead to it: its receive filters, and those that the next owner does not have yet."""
        vlan, macs = self.config.vlan or 0, dict.fromkeys(self.macs)
        macs |= dict.fromkeys(mac for mac, vid in self.parting if vid == vlan)
        return tuple((mac, vlan) for mac in macs)

    def source(self, mac: int) -> str:
        """Where one of them comes from: config, followed or learned."""
        if mac in self.macs[: len(self.config.mac)]:
            return "config"
        return "followed" if mac in self.following.addresses else "learned"

    @property
    def room(self) -> int:
        """How many addresses more it may learn."""
        return max(self.config.learn_max - len(self.learned) - len(self.following.addresses), 0)

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
            queues=tuple(self.queues),
            uplink=self.engine.uplink_number(self.config.uplink),
            vlan=self.config.vlan or 0,
            macs=tuple(mac for mac, _ in self.keys),
            frame_max=self.mtu + ETH_HLEN,
            spoof_check=self.config.spoof_check,
            storm_limit=self.config.storm_limit,
            accept=self.config.accept,
            learn=learn,
            learn_left=self.room if learn else 0,
            regions=self._regions,
            rings=self.observed.marked(self.rings.entries),
        )

    # --- Owner: what the connection asks ---------------------------------------------------------------------

    def follow(self, session: Session, mappings: dict[Region, Mapping]) -> dict[int, int]:
        """See `vhost.connection.Owner`."""
        self.engine.directing.leave(self, "its driver or front-end changes its rings or its memory")
        before, entries = self.rings.started, dict(self.rings.entries)
        regions = [mappings[region] for region in session.regions]
        self._regions = tuple(sorted((one.region.gpa, one.region.size, one.host) for one in regions))
        if session.started and not before:
            self._clear_fault()  # before guest memory is read: it may be gone
        self.rings.follow(session, mappings)
        self.engine.publish()
        self.rings.watch()
        for index in before - self.rings.started:
            ring, progress = entries[index // 2][0], self.rings.state(index)
            if index % 2 == 0 and progress["owed"]:  # an indication that nobody would make any more
                progress["owed"] = 0  # its processor may sleep
                if ring.call_fd >= 0:
                    self.engine.watchdog.call(ring.call_fd)
        self._tell_state()
        return {index: int(self.rings.state(index)["next_avail"]) for index in before - self.rings.started}

    def mapped(self, mapping: Mapping) -> None:
        """See `vhost.connection.Owner`."""
        self.engine.segment.add_mapping(self.number, mapping.address, mapping.length)
        self._memory.add(mapping.address)

    def unmapping(self, mapping: Mapping) -> None:
        """See `vhost.connection.Owner`."""
        self.engine.segment.drop_mapping(mapping.address)
        self._memory.discard(mapping.address)
        if self._gone is not None:
            self._gone.discard(mapping.address)

    def call(self, descriptor: int) -> None:
        """See `vhost.connection.Owner`."""
        self.engine.watchdog.call(descriptor)

    def announce(self, mac: int) -> None:
        """See `vhost.connection.Owner`."""
        self.engine.announce(self, mac)

    def refused(self, error: ProtocolError) -> None:
        """See `vhost.connection.Owner`."""
        self.fail(f"{error.rule}: {error.wrong}", error.remedy)

    # --- receive queues --------------------------------------------------------------------------------------

    @property
    def worker(self) -> int:
        """The processor of its first receive queue."""
        return self.queues[0].worker

    def started(self, pair: int) -> bool:
        """Whether a driver has started a queue pair."""
        return any(ring.running for ring in self.rings.entries.get(pair, ()))

    def renew(self, pair: int) -> None:
        """Another generation: what is on its way to this receive queue is dropped."""
        self.queues[pair] = replace(self.queues[pair], generation=self.engine.generation())

    def reconfigure(self, config: VmConfig) -> None:
        """Other filters, limits or processors, same socket."""
        if self.config.vlan != config.vlan:  # what is on its way belongs to another segment
            for pair in range(config.queue_pairs):
                self.renew(pair)
        self.queues = [replace(entry, **_overload(config)) for entry in self.queues]
        self.config = config

    def moderate(self, pair: int, indications: int, frames: int) -> None:
        """So many indications a second, and one more for every so many frames that wait; 0: no limit of that kind."""
        gap = 10**9 // indications if indications else 0
        before = self.queues[pair]
        self.queues[pair] = replace(before, gap=gap, gather=frames)
        if (before.gap or before.gather) and not (gap or frames):
            self.engine.afterwards.append(lambda: self._call(pair))  # an indication may be owed

    def _call(self, pair: int) -> None:
        """Let the driver of a receive queue look, whether there is something or not."""
        ring = self.rings.entries.get(pair, (RingEntry(),))[0]
        if ring.running and ring.call_fd >= 0:
            self.engine.watchdog.call(ring.call_fd)

    def traffic(self) -> tuple[int, int]:
        """Frames that were for its guest, and frames from it, since it is there."""
        rows = self._counters()
        return int(rows["offered_to_guest"].sum()), int(rows["frames_from_guest"].sum())

    def received(self) -> tuple[int, int]:
        """Frames that its guest has got, and bytes of them, since it is there."""
        rows = self._counters()
        return int(rows["frames_to_guest"].sum()), int(rows["bytes_to_guest"].sum())

    def _counters(self) -> Rows:
        first = self.first_queue
        rows: Rows = self.engine.segment.rows["queue_state"][first : first + self.config.queue_pairs]
        return rows

    def queue_rows(self) -> Rows:
        """The counters of its receive queues, since they were cleared."""
        return self.counters.rows()

    # --- life ----------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """The front-end came or went."""
        if self.port.connection is not None:
            self.connects += 1
            self.error = None
            self._clear_fault()
            self.following.start()
        else:
            added = bool(self.learned or self.following.addresses)
            self.learned.clear()
            self.following.close()
            if added:
                self.home.follow(self)
                self.engine.publish()
        self._tell_state()

    def _tell_state(self) -> None:
        """Tell the journal of another state; a guest that changes without end does not fill it."""
        now, state = time.monotonic(), self.state
        if now - self._told_since > SILENCE_SECONDS:
            self._told_since, self._told_count = now, 0
        if state != self._told and self._told_count < STATES_MAX:
            self.engine.journal.tell("vm_state", vm=self.name, state=state, before=self._told)
            self._told, self._told_count = state, self._told_count + 1

    def _clear_fault(self) -> None:
        """The driver starts anew. Memory that was truncated stays gone until it is mapped anew."""
        if self.fault and (self.fault != reasons.MEMORY_GONE or not self._gone):
            self.error = None
            self.engine.segment.rows["port_state"][self.number]["fault"] = reasons.NO_FAULT
            self._gone = None

    def judge(self) -> None:
        """Say what stopped it."""
        if self.fault == reasons.MEMORY_GONE and self._gone is None:
            self._gone = set(self._memory)
        if self.fault:
            remedy = "restart the guest's driver or let the front-end reconnect"
            self.fail(reasons.FAULTS[self.fault][1], remedy)
        self._tell_state()

    def learn(self, mac: int) -> bool:
        """Add a source address to its filters; False if it is there, there is no room, or another VM has it."""
        if mac in self.macs or not self.room:
            return False
        if not any(mac & mask == value for mask, value in map(prefix_of, self.config.learn)):
            return False
        for other in self.engine.vms.values():
            if other is not self and other.segment == self.segment and mac in other.macs:
                self.fail(f"{mac_text(mac)} is {other.name}'s", "give each VM addresses of its own")
                return False
        self.learned.append(mac)
        self.engine.journal.tell("learned", vm=self.name, mac=mac_text(mac))
        return True

    def forget(self, mac: int, why: str) -> None:
        """An address that its guest has come by cannot be its filter."""
        self.learned = [one for one in self.learned if one != mac]
        self.following.forget(mac, why)

    def fail(self, what: str, remedy: str) -> None:
        """Remember the last error, and log it, unless that would repeat or flood."""
        self.error = (what, remedy)
        line = f"vm {self.name}: {what}" + (f". Remedy: {remedy}" if remedy else "")
        if self._said.fresh(line):
            self.engine.log(line)
            self.engine.journal.tell("vm_error", vm=self.name, what=what, remedy=remedy)

    @property
    def segment(self) -> tuple[str | None, int | None]:
        """Its neighbours have the same."""
        return self.config.uplink, self.config.vlan

    @property
    def fault(self) -> int:
        """The fault that stopped it, NO_FAULT without."""
        return int(self.engine.segment.rows["port_state"][self.number]["fault"])

    @property
    def spoofed(self) -> int:
        """The last source address that the spoof check refused and would refuse now; 0 without."""
        mac = int(self.engine.segment.rows["port_state"][self.number]["spoofed"])
        return mac if self.config.spoof_check and mac not in self.macs else 0

    @property
    def running(self) -> list[int]:
        """Receive queues whose to_guest ring runs and is enabled."""
        return [pair for pair, rings in self.rings.entries.items() if rings[0].running and rings[0].enabled]

    @property
    def state(self) -> str:
        """listening, connecting, connected, running or faulted."""
        if self.port.connection is None:
            return self.port.state
        return "faulted" if self.fault else "running" if self.running else "connected"

    @property
    def obstacle(self) -> str:
        """Why its first receive queue does not run, in words; empty if it does."""
        if self.port.connection is None:
            return "no front-end is connected"
        return obstacle(self.session, 0) or ("" if self.running else "the driver has not enabled the queue")

    @property
    def remedy(self) -> str:
        """What to do about the obstacle; empty where nobody knows."""
        return remedy(self.session, 0)

    @property
    def unseen(self) -> bool:
        """Whether frames find no buffer because nothing that the guest writes reaches us.

        A front-end that maps its memory privately sends us the file all the same, and it stays empty.
        """
        ring = self.rings.entries[0][0] if 0 in self.rings.entries else RingEntry()
        if not ring.running or not self.queue_rows()[0]["to_guest_drops"][reasons.TO_GUEST_NO_BUFFER]:
            return False
        posted = int(at(ring.avail, 1, virtio.vring_avail)[0]["idx"])
        return posted == 0 and all(map(is_empty, self.session.regions))
