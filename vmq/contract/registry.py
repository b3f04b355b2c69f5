# SPDX-License-Identifier: Apache-2.0
"""What exists: receive queues, filters, who owns them; and how a change of them reaches the data plane.

A receive queue moves through the table of `queues` only here. Its filters are in effect while it runs and at no
other time: filters of a receive queue that is not complete steer nothing. So every change, of one receive queue or
of two at once, comes down to `carry`, in this order:

    start       who will run, before its filters point there
    install     the filters in effect of all that change, in one publication: a frame is steered by the old ones
                or by the new ones, never by none or by both
    pause       who runs no more, when nothing points there; what it holds is discarded
    states      and one event each

Effects are the engine's, called from the one thread that asks. Only `acquire` may fail, and it disturbs nobody: what
takes things away cannot fail, for whatever reason. Events are plain records with a running number; who gets them
notes them and does not ask back.

Two are everybody's: they have no owner, always run, and hold filters of all. The default queue is slot 0 of
generation 0; the drop queue is the last slot there could be, and what its filters match is counted and written nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vmq.contract.budget import Grant
from vmq.contract.parameters import Parameters
from vmq.contract.rivals import Rivals
from vmq.contract.status import Operation, refusal
from vmq.errors import ApiError
from vmq.filters import Filter
from vmq.queues import NEXT, PUBLIC, SLOTS_MAX, Event, Public, Slots, State, step

DEFAULT_QUEUE, DROP_QUEUE = 0, SLOTS_MAX - 1
CONFIG = "config"  # the owner whose wishes stand in the configuration file


class Effects(Protocol):
    """What the engine does. Receive queues and filters are named by id; a queue is known from acquire to release."""

    def acquire(self, queue: int, grant: Grant, parameters: Parameters) -> None:
        """Reserve all that the receive queue will need. VmqError: nothing was reserved."""

    def release(self, queue: int) -> None:
        """Give everything back; the id is stale from now on."""

    def start(self, queues: Sequence[int]) -> None:
        """Get ready for frames; no filter points here yet. What is everybody's is always ready."""

    def install(self, filters: Mapping[int, Mapping[int, Filter]]) -> None:
        """Let exactly these filters point to these receive queues, all at once; others stay as they are."""

    def pause(self, queues: Sequence[int]) -> None:
        """Nothing is steered to them any more; what they hold is discarded, or goes to who has their filters now."""

    def discard(self, queues: Sequence[int]) -> None:
        """Forget all frames that are on their way to them."""

    def stop(self, queue: int) -> None:
        """Let nothing write to its buffers any more; `stopped` says when that is so."""

    def stopped(self, queue: int) -> bool: ...

    def outstanding(self, queue: int) -> int:
        """Buffers that were taken and are not given back yet."""

    def change(self, queue: int, grant: Grant, parameters: Parameters) -> None:
        """Follow a change while frames flow: none is lost, none overtakes another."""

    def clear_counters(self, queue: int) -> None: ...


@dataclass(slots=True, eq=False)
class ReceiveQueue:
    """A receive queue that exists, and all that is known of it."""

    owner: str  # "": nobody, the default queue
    parameters: Parameters
    id: int = -1  # until it has one
    state: State = State.UNDEFINED
    grant: Grant | None = None  # None: it is not complete, and the engine does not know it
    lack: str = ""  # why it got nothing when it was last completed
    filters: dict[int, Filter] = field(default_factory=dict)

    @property
    def is_everybodys(self) -> bool:
        """The default queue and the drop queue."""
        return self.id in (DEFAULT_QUEUE, DROP_QUEUE)

    def after(self, event: Event) -> State:
        """The state that follows; ApiError if none does. What is everybody's runs, with filters or without."""
        return self.state if self.is_everybodys else step(self.state, event)

    def allows(self, event: Event) -> bool:
        return self.state in NEXT[event]

    def clearing(self) -> Event:
        """The event that clearing one filter is."""
        return Event.CLEAR_LAST_FILTER if len(self.filters) == 1 else Event.CLEAR_FILTER


@dataclass(slots=True, eq=False)
class Installed:
    """A filter that was set: who may clear it, and where it is."""

    owner: str
    filter: Filter
    queue: ReceiveQueue
    id: int = 0

    @property
    def place(self) -> int:
        return self.queue.id


def sees(asker: str | None, owner: str) -> bool:
    """An owner sees its own, the administrator everything."""
    return asker is None or asker == owner


class Registry:
    """Receive queues and filters by id. Every look-up names the operation that asks, for its statuses."""

    def __init__(
        self, effects: Effects, events: Callable[[dict[str, Any]], None], queues: int, filters: int
    ) -> None:
        self.effects, self._events = effects, events
        self.everybodys = {
            number: ReceiveQueue("", Parameters(name=name), number, State.RUNNING)
            for number, name in ((DEFAULT_QUEUE, "default"), (DROP_QUEUE, "drop"))
        }
        self.queues: Slots[ReceiveQueue] = Slots(DEFAULT_QUEUE + 1, queues)
        self.filters: Slots[Installed] = Slots(1, filters)  # filter id 0 is invalid
        self.rivals = Rivals()
        self.number = 0

    def queue(self, operation: Operation, asker: str | None, name: int) -> ReceiveQueue:
        """The receive queue, if it is the asker's or everybody's; None asks for the administrator."""
        if type(name) is int and name in self.everybodys:
            return self.everybodys[name]
        queue = self.queues.find(name)
        if queue is None or not sees(asker, queue.owner):
            remedy = RELOAD if queue is not None and queue.owner == CONFIG else LIST_QUEUES
            raise refusal(operation, f"receive queue {name!r:.80}: no such receive queue of yours", remedy)
        return queue

    def filter(self, operation: Operation, asker: str | None, name: int) -> Installed:
        """The filter, if it is the asker's."""
        installed = self.filters.find(name)
        if installed is None or not sees(asker, installed.owner):
            remedy = RELOAD if installed is not None and installed.owner == CONFIG else LIST_FILTERS
            raise refusal(operation, f"filter {name!r:.80}: no such filter of yours", remedy)
        return installed

    def follow(self, operation: Operation, queue: ReceiveQueue, event: Event) -> State:
        """The state after the event, in the operation's own status if there is none."""
        try:
            return queue.after(event)
        except ApiError as error:
            wrong = f"receive queue {queue.id} is {queue.state.value}"
            raise refusal(operation, wrong, error.remedy) from None

    def carry(self, steps: Mapping[ReceiveQueue, State]) -> None:
        """Carry receive queues to these states with the filters that they have now."""
        running = State.RUNNING
        disturbed = [queue for queue, state in steps.items() if running in {queue.state, state}]
        if begun := [queue.id for queue in disturbed if queue.state is not running]:
            self.effects.start(begun)
        if disturbed:
            self.effects.install({queue.id: dict(queue.filters) for queue in disturbed})
        if ended := [queue.id for queue in disturbed if steps[queue] is not running]:
            self.effects.pause(ended)
        for queue, state in steps.items():
            self.enter(queue, state)

    def enter(self, queue: ReceiveQueue, state: State) -> None:
        """The receive queue is in this state now; an event says so, if it was not."""
        if state is queue.state:
            return
        queue.state = state
        public = PUBLIC[state]
        kind = "dma_stopped" if public is Public.DMA_STOPPED else "queue_state"
        self.tell(kind, queue=queue.id, owner=queue.owner, state=public.value, step=state.value)

    def progress(self, queue: ReceiveQueue) -> None:
        """Go on with freeing, as far as the data plane has got."""
        known = queue.grant is not None
        if queue.state is State.STOP_DMA and not (known and not self.effects.stopped(queue.id)):
            self.enter(queue, queue.after(Event.DMA_STOPPED))
        if queue.state is State.FREEING and not (known and self.effects.outstanding(queue.id)):
            if known:
                self.effects.release(queue.id)
            self.queues.give_back(queue.id)
            self.enter(queue, queue.after(Event.RESOURCES_FREED))

    def restart(self) -> None:
        """Begin anew with the same filters: counters at nothing, and no frame from before."""
        every = (*self.everybodys.values(), *self.queues)
        running = [queue for queue in every if queue.state is State.RUNNING]
        self.effects.install({queue.id: {} for queue in running})
        names = [queue.id for queue in running]
        self.effects.pause(names)
        self.effects.discard(names)
        for queue in every:
            self.clear_counters(queue)
        self.effects.start(names)
        self.effects.install({queue.id: dict(queue.filters) for queue in running})
        self.tell("reset")

    def clear_counters(self, queue: ReceiveQueue) -> None:
        self.effects.clear_counters(queue.id)

    def tell(self, kind: str, **what: Any) -> None:
        self.number += 1
        self._events({"number": self.number, "event": kind, **what})


RELOAD = "it is the configuration's: change that file, and let vmq run read it again: SIGHUP"
LIST_QUEUES = "list them with vmq queue list"
LIST_FILTERS = "list them with vmq filter list"
