# SPDX-License-Identifier: Apache-2.0
"""The operations on receive queues and filters: who may do what, when, and what it answers.

Every operation first finds out whether it can be done (who asks, the state table, the values, what is scarce) and
then does it; an ApiError in its documented status means that nothing has changed. An operation is done when it
returns, except that a receive queue that is freed waits for its last buffers: `progress` goes on.

Asking is an owner, a name that nobody checks here, or None, the administrator, who sees everything and owns
nothing. When an owner goes, all that it had is taken down. Taking down never fails for reasons of policy: not for
quotas, capabilities, weights or who is waiting; only what the table forbids is refused, and nothing to
`release_owner`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vmq.contract.budget import Budget, Grant, Need, balance, regrant
from vmq.contract.capabilities import Capabilities, Property, enabled
from vmq.contract.parameters import NAME_MAX, Parameters, changed, parameters
from vmq.contract.registry import CONFIG, DEFAULT_QUEUE, Effects, Installed, ReceiveQueue, Registry, sees
from vmq.contract.status import Operation, refusal
from vmq.contract.views import filter_record, queue_record
from vmq.errors import ApiError, VmqError
from vmq.filters import Filter, check
from vmq.queues import Event, State

QUEUES_MAX = 4096
FILTERS_MAX = 8192


@dataclass(frozen=True, slots=True)
class Completion:
    """What became of one receive queue of a batch."""

    queue: int
    status: str
    why: str = ""


class Contract:
    """The receive queues and filters of one uplink, as NDIS has them."""

    def __init__(
        self,
        budget: Budget,
        capabilities: Capabilities,
        effects: Effects,
        events: Callable[[dict[str, Any]], None],
        *,
        current: Capabilities | None = None,
        queues_max: int = QUEUES_MAX,
        filters_max: int = FILTERS_MAX,
    ) -> None:
        self._budget, self._effects = budget, effects
        self._hardware, self._current = capabilities, current or capabilities
        self._registry = Registry(effects, events, queues_max, filters_max)

    # --- receive queues

    def allocate(self, owner: str, values: Mapping[str, Any]) -> int:
        """A new receive queue with an id and nothing else; what is scarce is given out when it is completed."""
        operation = Operation.ALLOCATE_QUEUE
        _check_owner(operation, owner)
        self._check_enabled(operation)
        asked = parameters(values)
        self._check_processor(operation, asked)
        queue = ReceiveQueue(owner, asked)
        after = self._registry.follow(operation, queue, Event.ALLOCATE_QUEUE)
        name = self._registry.queues.take(queue)
        if name is None:
            wrong = f"ALLOCATE_QUEUE: {len(self._registry.queues)} receive queues exist"
            raise ApiError("FAILURE", wrong, "free one first")
        queue.id = name
        self._registry.enter(queue, after)
        return name

    def allocation_complete(self, owner: str, batch: Sequence[int]) -> tuple[Completion, ...]:
        """Give a batch what it needs, balanced over all of it; a status for each, in the order asked."""
        if not 0 < len(batch) <= QUEUES_MAX:
            wrong = f"QUEUE_ALLOCATION_COMPLETE: {len(batch)} receive queues in a batch"
            raise ApiError("INVALID_LENGTH", wrong, f"name 1 to {QUEUES_MAX}")
        found: dict[ReceiveQueue, int] = {}  # with its place in the batch
        answers: list[Completion] = []
        for place, name in enumerate(batch):
            try:
                queue = self._completable(owner, name)
                if queue in found:
                    raise refusal(Operation.QUEUE_ALLOCATION_COMPLETE, f"receive queue {name} is named twice")
                found[queue] = place
                answers.append(Completion(name, "SUCCESS"))
            except ApiError as error:
                answers.append(Completion(name, error.status, str(error)))
        for queue, lack in self._acquire(list(found)).items():
            queue.lack = lack
            answers[found.pop(queue)] = Completion(queue.id, "RESOURCES", lack)
        self._registry.carry({queue: queue.after(Event.ALLOCATION_COMPLETE) for queue in found})
        return tuple(answers)

    def _completable(self, owner: str, name: int) -> ReceiveQueue:
        operation = Operation.QUEUE_ALLOCATION_COMPLETE
        queue = self._owned(operation, owner, name)
        self._registry.follow(operation, queue, Event.ALLOCATION_COMPLETE)
        return queue

    def _acquire(self, queues: Sequence[ReceiveQueue]) -> dict[ReceiveQueue, str]:
        """Grant what can be granted; those that get nothing, with the words for it."""
        needs = [_need(queue.parameters) for queue in queues]
        lacks: dict[ReceiveQueue, str] = {}
        for queue, verdict in zip(queues, balance(self._available(), self._grants(), needs), strict=True):
            if isinstance(verdict, str):
                lacks[queue] = verdict
                continue
            try:
                self._effects.acquire(queue.id, verdict, queue.parameters)
            except VmqError as error:
                lacks[queue] = str(error)
            else:
                queue.grant, queue.lack = verdict, ""
        return lacks

    def set_parameters(self, owner: str, name: int, changes: Mapping[str, Any]) -> None:
        """Change the members that are named. A receive queue that runs goes on: nothing is lost or overtaken."""
        operation = Operation.QUEUE_PARAMETERS
        queue = self._owned(operation, owner, name)
        self._registry.follow(operation, queue, Event.QUEUE_PARAMETERS)
        asked = changed(queue.parameters, changes)
        self._check_processor(operation, asked)
        if queue.grant is not None:
            others = self._grants(without=queue)
            verdict = regrant(self._available(), others, queue.grant, _need(asked))
            grant = self._movable(queue.grant, verdict)
            if (grant, asked) != (queue.grant, queue.parameters):
                self._effects.change(queue.id, grant, asked)
            queue.grant = grant
        queue.parameters = asked

    def _movable(self, before: Grant, verdict: Grant | str) -> Grant:
        """The new grant, if the receive queue can have it while it runs."""
        if isinstance(verdict, str):
            raise ApiError("FAILURE", f"QUEUE_PARAMETERS: {verdict}", "name a processor that has room")
        can_move = Property.DYNAMIC_PROCESSOR_AFFINITY_CHANGE in self._current.properties
        if verdict.processor != before.processor and not can_move:
            wrong = "QUEUE_PARAMETERS: this uplink cannot move a receive queue to another processor"
            raise ApiError("FAILURE", wrong, "free it, and allocate one on that processor")
        return verdict

    def queue_parameters(self, asker: str | None, name: int) -> dict[str, Any]:
        """One receive queue: what was asked for, what it has, and why they differ."""
        operation = Operation.QUEUE_PARAMETERS
        queue = self._registry.queue(operation, asker, name)
        if not queue.is_everybodys:
            self._registry.follow(operation, queue, Event.QUEUE_PARAMETERS)
        return queue_record(queue)

    def enum_queues(self, asker: str | None) -> tuple[dict[str, Any], ...]:
        """An owner's own; for the administrator all, the default queue first. The drop queue receives nothing."""
        if asker is None:
            every = (self._registry.everybodys[DEFAULT_QUEUE], *self._registry.queues)
            return tuple(map(queue_record, every))
        return tuple(queue_record(queue) for queue in self._registry.queues if queue.owner == asker)

    def free(self, owner: str, name: int) -> str:
        """Stop, then wait for the last buffer. SUCCESS if nothing was out, else PENDING: an event says when."""
        operation = Operation.FREE_QUEUE
        queue = self._owned(operation, owner, name)
        if queue.filters:
            wrong = f"receive queue {name} has {len(queue.filters)} filters"
            raise refusal(operation, wrong, "clear its filters first")
        self._registry.follow(operation, queue, Event.FREE_QUEUE)
        self._free(queue)
        return "SUCCESS" if queue.state is State.UNDEFINED else "PENDING"

    def _free(self, queue: ReceiveQueue) -> None:
        self._registry.enter(queue, queue.after(Event.FREE_QUEUE))
        if queue.grant is not None:
            self._effects.stop(queue.id)
        self._registry.progress(queue)

    def progress(self, name: int) -> None:
        """The data plane has stopped, or buffers came back. A stale id is counted and names nobody."""
        queue = self._registry.queues.find(name)
        if queue is not None:
            self._registry.progress(queue)

    # --- filters

    def set_filter(self, owner: str, name: int, new: Filter) -> int:
        """Frames that pass every test of the filter belong to this receive queue, once it is complete."""
        operation = Operation.SET_FILTER
        _check_owner(operation, owner)
        queue = self._registry.queue(operation, owner, name)
        after = self._registry.follow(operation, queue, Event.SET_FILTER)
        self._check_enabled(operation)
        check(new, self._current.filters)
        self._check_rivals(operation, queue, new)
        installed = Installed(owner, new, queue)
        filter_id = self._registry.filters.take(installed)
        if filter_id is None:
            wrong = f"SET_FILTER: {len(self._registry.filters)} filters exist"
            raise ApiError("FAILURE", wrong, "clear one first")
        installed.id = filter_id
        self._registry.rivals.add(filter_id, installed)
        queue.filters[filter_id] = new
        self._registry.carry({queue: after})
        return filter_id

    def clear_filter(self, owner: str, filter_id: int) -> None:
        """When the last one is cleared, the receive queue discards what it holds and pauses."""
        _check_owner(Operation.CLEAR_FILTER, owner)
        installed = self._registry.filter(Operation.CLEAR_FILTER, owner, filter_id)
        self._clear([installed])

    def _clear(self, gone: Sequence[Installed]) -> None:
        """Take away filters of any receive queues in one publication."""
        steps: dict[ReceiveQueue, State] = {}
        for installed in gone:
            queue = installed.queue
            steps[queue] = queue.after(queue.clearing())
            del queue.filters[installed.id]
            self._registry.rivals.remove(installed.id, installed.filter)
            self._registry.filters.give_back(installed.id)
        self._registry.carry(steps)

    def move_filter(self, owner: str, filter_id: int, name: int) -> None:
        """Every frame goes where it went before or where it goes from now on: none to both, none to neither."""
        operation = Operation.MOVE_FILTER
        _check_owner(operation, owner)
        installed = self._registry.filter(operation, owner, filter_id)
        target = self._registry.queue(operation, owner, name)
        source = installed.queue
        after = self._registry.follow(operation, target, Event.SET_FILTER)
        if target is source:
            return
        self._check_rivals(operation, target, installed.filter, besides=filter_id)
        steps = {source: source.after(source.clearing()), target: after}
        del source.filters[filter_id]
        target.filters[filter_id] = installed.filter
        installed.queue = target
        self._registry.carry(steps)

    def filter_parameters(self, asker: str | None, filter_id: int) -> dict[str, Any]:
        return filter_record(self._registry.filter(Operation.PARAMETERS, asker, filter_id))

    def enum_filters(self, asker: str | None, name: int) -> tuple[dict[str, Any], ...]:
        """The filters of a receive queue that are the asker's; the default queue has filters of everybody."""
        operation = Operation.ENUM_FILTERS
        queue = self._registry.queue(operation, asker, name)
        self._registry.follow(operation, queue, Event.ENUM_FILTERS)
        return tuple(
            filter_record(installed)
            for installed in self._registry.filters
            if installed.queue is queue and sees(asker, installed.owner)
        )

    def _check_rivals(self, operation: Operation, queue: ReceiveQueue, new: Filter, besides: int = 0) -> None:
        rival = self._registry.rivals.quarrel(new, queue.id, besides)
        if rival is not None:
            owner = self._registry.filter(operation, None, rival).owner
            wrong = f"a frame could pass this filter and filter {rival} of {owner}, of another receive queue"
            remedy = "make them exclude each other, or give one the higher priority"
            if queue.owner == CONFIG:  # what a file says has no priority
                remedy = f"vmq filter clear {rival} --owner {owner}, or set that one with another priority"
            raise refusal(operation, wrong, remedy)

    # --- owners

    def release_owner(self, owner: str) -> tuple[int, ...]:
        """The owner is gone, and with it all that it had. It never fails; the ids that wait for buffers."""
        filters = [installed for installed in self._registry.filters if installed.owner == owner]
        return self._take_down(filters, [queue for queue in self._registry.queues if queue.owner == owner])

    def withdraw(self, names: Collection[int]) -> tuple[int, ...]:
        """What these receive queues fill is gone, and they go with it, whoever owns them. It never fails."""
        filters = [installed for installed in self._registry.filters if installed.place in names]
        return self._take_down(filters, [queue for queue in self._registry.queues if queue.id in names])

    def _take_down(self, filters: Sequence[Installed], queues: Sequence[ReceiveQueue]) -> tuple[int, ...]:
        self._clear(filters)
        for queue in queues:
            if queue.allows(Event.FREE_QUEUE):
                self._free(queue)
        return tuple(queue.id for queue in queues if queue.state is not State.UNDEFINED)

    # --- the uplink as a whole

    def hardware_capabilities(self) -> dict[str, Any]:
        return self._hardware.record()

    def current_capabilities(self) -> dict[str, Any]:
        return self._current.record()

    def global_parameters(self) -> dict[str, Any]:
        return dict(enabled(self._current))

    def change_capabilities(self, hardware: Capabilities, current: Capabilities) -> None:
        """The device was replaced, or something lost or switched. Filters stay, even those that it could not set.

        An event for each set that is another one now. If the current one has lost something, counters begin anew.
        """
        if excess := hardware.lacks(current):
            wrong = f"current capabilities exceed the hardware's: {', '.join(excess)}"
            raise refusal(Operation.CURRENT_CAPABILITIES, wrong)
        old, self._hardware = self._hardware, hardware
        if hardware != old:
            self._registry.tell("hardware_capabilities", capabilities=hardware.record())
        old, self._current = self._current, current
        if current != old:
            lost = current.lacks(old)
            self._registry.tell("current_capabilities", capabilities=current.record(), lost=lost)
            if lost:
                self._registry.restart()

    def reset(self) -> None:
        """Everything stays as it was asked for; counters begin anew, frames that wait are discarded."""
        self._registry.restart()

    def reset_statistics(self, asker: str | None, name: int) -> None:
        """Let the counters of one receive queue begin anew; those of the default queue are the administrator's."""
        operation = Operation.RESET_STATISTICS
        if asker is None:
            queue = self._registry.queue(operation, None, name)
        else:
            queue = self._owned(operation, asker, name)
        if not queue.is_everybodys:
            self._registry.follow(operation, queue, Event.QUEUE_PARAMETERS)
        self._registry.clear_counters(queue)

    @property
    def stale_ids(self) -> dict[str, int]:
        """How often somebody came with the id of what is gone."""
        return {"queues": self._registry.queues.stale, "filters": self._registry.filters.stale}

    # --- shared by operations

    def _owned(self, operation: Operation, owner: str, name: int) -> ReceiveQueue:
        """The receive queue, if the owner may change it."""
        _check_owner(operation, owner)
        queue = self._registry.queue(operation, owner, name)
        if queue.is_everybodys:
            raise refusal(operation, "that receive queue is everybody's", "name a receive queue of your own")
        return queue

    def _available(self) -> Budget:
        """What there is, as far as it is switched on."""
        return replace(self._budget, queues=min(self._budget.queues, self._current.queues))

    def _check_enabled(self, operation: Operation) -> None:
        if Property.VM_QUEUE not in self._current.properties:
            wrong = f"{operation.value}: receive queues are switched off"
            raise ApiError("NOT_SUPPORTED", wrong, "the current capabilities say what is switched on")

    def _grants(self, without: ReceiveQueue | None = None) -> list[Grant]:
        return [queue.grant for queue in self._registry.queues if queue.grant and queue is not without]

    def _check_processor(self, operation: Operation, asked: Parameters) -> None:
        if asked.processor is not None and asked.processor not in self._budget.processors:
            known = ", ".join(map(str, self._budget.processors))
            raise refusal(
                operation, f"processor {asked.processor} is not one of vmq's", f"name one of {known}"
            )


def _need(asked: Parameters) -> Need:
    return Need(asked.processor, asked.suggested_buffers, asked.weight)


def _check_owner(operation: Operation, owner: object) -> None:
    if not (isinstance(owner, str) and 0 < len(owner) <= NAME_MAX and owner.isprintable()):
        raise refusal(operation, f"owner: {owner!r:.80}", f"a name of 1 to {NAME_MAX} printable characters")
