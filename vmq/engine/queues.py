# SPDX-License-Identifier: Apache-2.0
"""The receive queues of one uplink: the contract (vmq/contract) above, VM ports and tables below.

Every VM port has its addresses from the configuration, and frames to them reach it whatever happens here. A receive
queue of its own decides how: with one, its frames are sorted out before a byte is written, and its processor places
them; without one (weight 0, or receive queues are scarce), they go through the default queue.

    the configuration, owner "config":     one receive queue a VM port, its first, with a filter for each address
    owners of the API:                     more receive queues of a VM port, its second and so on, with any filters

Both ask the same contract. This file does what it says (Effects), and asks in the name of the configuration. Data
plane numbers of receive queues come from VM ports; ids of the contract never reach a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmq.abi.ethernet import mac_text
from vmq.contract import CONFIG, DEFAULT_QUEUE, DROP_QUEUE, Budget, Capabilities, Contract, Grant, Parameters
from vmq.dataplane.reasons import DROP_QUEUE as DROPPED
from vmq.dataplane.state import NONE, TO_DEFAULT_QUEUE, TO_DROP_QUEUE
from vmq.engine.counted import Counted
from vmq.engine.mover import Move
from vmq.errors import ApiError, VmqError
from vmq.filters import Field, FieldTest, Filter, Flag, Kind
from vmq.filters.compiled import Arranger, rows
from vmq.publisher import FilterEntry

if TYPE_CHECKING:
    from vmq.engine.engine import Engine
    from vmq.engine.vm import Vm

QUEUES_MAX = 4096  # of an uplink: more than there can be VMs
LOCKED_MEMORY = 1 << 40  # frames are copied into guest memory: nothing is locked
STANDING = ("cursor", "lap", "pending", "began", "due", "have", "taken", "refused")  # of a lane: no counters
NOWHERE = {DEFAULT_QUEUE: TO_DEFAULT_QUEUE, DROP_QUEUE: TO_DROP_QUEUE}


def address_filter(mac: int, vlan: int | None) -> Filter:
    """What a VM port's own address means."""
    tests = [FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, mac)]
    if vlan is None:
        return Filter(tuple(tests), flags=Flag.VLAN_UNTAGGED_OR_ZERO)
    return Filter((*tests, FieldTest(Field.VLAN_ID, Kind.EQUAL, vlan)))


@dataclass
class Bound:
    """A receive queue that is complete: a queue pair of a VM port, the worker that was granted, the weight that counted."""

    vm: Vm
    pair: int
    worker: int
    weight: int


class TableEffects:
    """What the contract of an uplink does to VM ports and tables (`Effects` of contract/registry.py)."""

    def __init__(self, engine: Engine, uplink: str | None) -> None:
        self.engine, self.uplink = engine, uplink
        self.bound: dict[int, Bound] = {}
        self.first: dict[int, Vm] = {}  # receive queues that the configuration asks for
        self._arranger = Arranger()
        self._entry = FilterEntry(NONE, {}, rows([]))
        self.lanes = Counted(self._lanes, STANDING)

    @property
    def entry(self) -> FilterEntry:
        """The filters in effect, for the next version of the tables."""
        return replace(self._entry, uplink=self.engine.uplink_number(self.uplink))

    @property
    def in_effect(self) -> dict[int, Mapping[int, Filter]]:
        """The same filters, by receive queue of the contract and id."""
        return self._arranger.filters

    def target(self, queue: int) -> int:
        """What stands for a receive queue of the contract in the tables."""
        if queue in NOWHERE:
            return NOWHERE[queue]
        bound = self.bound[queue]
        return bound.vm.first_queue + bound.pair

    def acquire(self, queue: int, grant: Grant, parameters: Parameters) -> None:
        worker = self.engine.worker_of(grant.processor)
        vm = self.first.get(queue) or self.engine.vms.get(parameters.vm)
        if vm is None or vm.home.effects is not self:
            raise VmqError(f"no VM {parameters.vm!r} on this uplink", "name the VM that it is for")
        pair = 0 if queue in self.first else self._free_pair(vm)
        one = self.bound[queue] = Bound(vm, pair, worker, parameters.weight)
        vm.moderate(one.pair, parameters.moderation.indications, parameters.moderation.frames)

    def _free_pair(self, vm: Vm) -> int:
        taken = {0, *(one.pair for one in self.bound.values() if one.vm is vm)}
        free = sorted(
            set(range(vm.config.queue_pairs)) - taken, key=lambda pair: (pair not in vm.running, pair)
        )
        if not free:
            wrong = f"all {vm.config.queue_pairs} queue pairs of {vm.name} are taken"
            raise VmqError(wrong, f"raise queue_pairs of [vm.{vm.name}]")
        return free[0]

    def release(self, queue: int) -> None:
        one = self.bound.pop(queue)
        one.vm.moderate(one.pair, 0, 0)

    def start(self, queues: Sequence[int]) -> None:
        bound = [self.bound[queue] for queue in queues if queue in self.bound and not self._led(queue)]
        self.engine.mover.move_all([Move(one.vm, one.pair, one.worker) for one in bound])

    def _led(self, queue: int) -> bool:
        """Whether its way is somebody else's to choose."""
        vm = self.first.get(queue)
        return vm is not None and bool(self.engine.guarding.fallen(vm) or self.engine.proving.busy == vm.name)

    def spread(self, vm: Vm) -> None:
        """Queue pairs of a VM that no receive queue has, only sent on, follow its processor."""
        taken = {one.pair for one in self.bound.values() if one.vm is vm} | {0}
        free, worker = set(range(vm.config.queue_pairs)) - taken, self.engine.worker_of(vm.cpu)
        self.engine.mover.move_all([Move(vm, pair, worker) for pair in sorted(free)])

    def install(self, filters: Mapping[int, Mapping[int, Filter]]) -> None:
        self._arranger.change({name: (kept, self.target(name)) for name, kept in filters.items()})
        arranged = self._arranger.arranged()
        self._entry = FilterEntry(NONE, arranged.plain, rows(arranged.generic))
        self.engine.publish()

    def pause(self, queues: Sequence[int]) -> None:
        first = [self.first[queue] for queue in queues if queue in self.first]
        # Their addresses are the VM port's: the default queue goes on with them.
        self.engine.mover.move_all([Move(vm, 0, self.engine.default, shared=True) for vm in first])
        self.discard([queue for queue in queues if queue not in self.first])

    def discard(self, queues: Sequence[int]) -> None:
        for queue in self.bound.keys() & queues:
            self.bound[queue].vm.renew(self.bound[queue].pair)
        self.engine.publish()

    def stop(self, queue: int) -> None:
        """Nothing points to it any more, and every processor has adopted that."""

    def stopped(self, queue: int) -> bool:
        return queue in self.bound

    def outstanding(self, queue: int) -> int:
        """None: a buffer is given back in the round that took it."""
        del queue
        return 0

    def change(self, queue: int, grant: Grant, parameters: Parameters) -> None:
        one = self.bound[queue]
        one.worker = self.engine.worker_of(grant.processor)
        one.vm.moderate(one.pair, parameters.moderation.indications, parameters.moderation.frames)
        if not one.vm.queues[one.pair].shared:
            self.engine.mover.move_all([Move(one.vm, one.pair, one.worker)])
        self.engine.publish()

    def clear_counters(self, queue: int) -> None:
        """A VM port's first receive queue has the counters of all queue pairs that are no other's.

        The default queue has the uplink's, and those of the VM ports that it serves; the drop queue its drop, everywhere.
        """
        if queue in self.first:
            self._clear(self.first[queue])
        elif queue in self.bound:
            self.bound[queue].vm.counters.clear(self.bound[queue].pair)
        elif queue == DEFAULT_QUEUE:
            self.lanes.clear(*range(len(self._lanes())))
            for vm in self.first.values():
                if vm.queues[0].shared:
                    self._clear(vm)
        elif queue == DROP_QUEUE:
            for counters in (self.lanes, *(vm.counters for vm in self.first.values())):
                counters.clear_drop(DROPPED)

    def _clear(self, vm: Vm) -> None:
        others = {one.pair for queue, one in self.bound.items() if one.vm is vm and queue not in self.first}
        vm.counters.clear(*(pair for pair in range(vm.config.queue_pairs) if pair not in others))

    def _lanes(self) -> Any:
        """The state rows of the uplink's lanes; none of VM ports without uplink."""
        opened, count = self.engine.uplinks.get(self.uplink or ""), len(self.engine.workers)
        first, last = (opened.number * count, (opened.number + 1) * count) if opened else (0, 0)
        return self.engine.segment.rows["lane_state"][first:last]


class UplinkQueues:
    """The contract of one uplink, and what the configuration asks of it. `queues`: of their own, at most."""

    def __init__(self, engine: Engine, uplink: str | None, queues: int | None) -> None:
        self.engine, self.effects = engine, TableEffects(engine, uplink)
        self._hardware = Capabilities(queues=QUEUES_MAX)
        processors = {worker.cpu: QUEUES_MAX for worker in engine.workers}
        budget = Budget(QUEUES_MAX, processors, LOCKED_MEMORY)

        def tell(record: dict[str, Any]) -> None:
            engine.journal.tell(uplink=uplink, **{key: record[key] for key in record if key != "number"})

        self.contract = Contract(
            budget, self._hardware, self.effects, tell, current=self._limited(queues), queues_max=QUEUES_MAX
        )

    def _limited(self, queues: int | None) -> Capabilities:
        return self._hardware if queues is None else replace(self._hardware, queues=queues)

    def limit(self, queues: int | None) -> None:
        """So many receive queues of their own. Who has one keeps it."""
        self.contract.change_capabilities(self._hardware, self._limited(queues))

    def add(self, vm: Vm) -> None:
        """Ask for the first receive queue of a VM port."""
        values = {"name": vm.name, "vm": vm.name, **self._wishes(vm)}
        vm.queue_id = self.contract.allocate(CONFIG, values)
        self.effects.first[vm.queue_id] = vm
        self.effects.spread(vm)
        self.follow(vm)

    def _wishes(self, vm: Vm) -> dict[str, Any]:
        vm.cpu = self.engine.places[vm.name].cpu
        moderation = {"indications": vm.config.indications, "frames": vm.config.indication_frames}
        return {"processor": vm.cpu, "weight": vm.config.weight, "moderation": moderation}

    def change(self, vm: Vm) -> None:
        """The configuration says something else now. What may be refused comes first."""
        self.follow(vm)
        self.contract.set_parameters(CONFIG, vm.queue_id, self._wishes(vm))
        self.effects.spread(vm)
        if vm.config.weight == 0 and self.owns(vm):
            self.give_up(vm, "weight 0 asks for no receive queue of its own")

    def follow(self, vm: Vm) -> None:
        """A filter for each address of a VM port, and no others; new ones first, so that it never has none."""
        wanted = {mac: address_filter(mac, vm.config.vlan) for mac in vm.macs}
        gone = [number for mac, (number, one) in vm.filters.items() if wanted.get(mac) != one]
        kept = {mac: found for mac, found in vm.filters.items() if wanted.get(mac) == found[1]}
        vm.filters = kept
        try:
            for mac, one in wanted.items():
                if mac not in kept:
                    self._set(vm, mac, one)
        finally:  # when one is refused, those before it are there, and told as such
            for number in gone:
                self.contract.clear_filter(CONFIG, number)

    def _set(self, vm: Vm, mac: int, one: Filter) -> None:
        """An address of the configuration is refused to who asks; one that the guest has come by is forgotten."""
        try:
            vm.filters[mac] = self.contract.set_filter(CONFIG, vm.queue_id, one), one
        except ApiError as error:
            if vm.source(mac) == "config":
                raise
            vm.forget(mac, error.wrong)
            vm.fail(f"{mac_text(mac)}: {error.wrong}", error.remedy)

    def complete(self, vms: Iterable[Vm] | None = None) -> None:
        """Give VM ports without a receive queue of their own one each, as far as they go: by weight, then in order."""
        vms = list(self.effects.first.values()) if vms is None else vms
        waiting = {vm.queue_id: vm for vm in vms if not self.owns(vm)}
        if not waiting:
            return
        for done in self.contract.allocation_complete(CONFIG, list(waiting)):
            self._lack(waiting[done.queue], done.why)

    def _lack(self, vm: Vm, why: str) -> None:
        """Why a VM port has no receive queue of its own; empty: it has one."""
        if why != vm.lack:
            vm.lack = why
            self.engine.journal.tell("queue_lack", vm=vm.name, what=why or None)

    def give_up(self, vm: Vm, why: str) -> None:
        """Take the receive queue of a VM port, for another; the default queue goes on with its frames."""
        before = vm.queue_id
        self._lack(vm, why)
        self.contract.withdraw([before])
        vm.filters = {}
        del self.effects.first[before]
        self.add(vm)

    def id_of(self, vm: Vm, pair: int) -> int | None:
        """The receive queue of a queue pair, if it has one in the contract."""
        if pair == 0:
            return vm.queue_id
        bound = self.effects.bound.items()
        return next((name for name, one in bound if one.vm is vm and one.pair == pair), None)

    def owns(self, vm: Vm) -> bool:
        """Whether a VM port has a receive queue of its own."""
        return vm.queue_id in self.effects.bound

    def remove(self, vm: Vm) -> None:
        """The VM port is gone, and with it all its receive queues, whoever asked for them. It does not fail."""
        gone = [name for name, one in self.effects.bound.items() if one.vm is vm]
        self.effects.first.pop(vm.queue_id, None)
        self.contract.withdraw([vm.queue_id, *gone])

    def close(self) -> None:
        """The uplink is gone, and with it everybody's receive queues and filters. It does not fail."""
        every = [row["queue"] for row in self.contract.enum_queues(None)]
        self.contract.withdraw([DROP_QUEUE, *every])
