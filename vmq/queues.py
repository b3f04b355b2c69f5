# SPDX-License-Identifier: Apache-2.0
"""The life of a receive queue: the state table and the ids, and nothing else.

Two things happen to a receive queue in any order: its allocation is completed, and receive filters are set and
cleared. Two bits, four states; only with both are frames received. Freeing adds two states, because memory that
frames are written to may be given back only when nobody writes any more, and then only when nobody reads:

                 no filter     filters          FREE_QUEUE                DMA stopped
    not complete Allocated ◄─► Set              no filter ──► StopDMA ────────────────► Freeing
                     │          │                                                          │
    complete     Paused    ◄─► Running          Undefined ◄────────────────────────────────┘
                                                              all buffers are back

NEXT is the whole table: a pair that it does not list is refused, and nothing has changed. `diagram` and `grid` draw
it for the documents. Users see four states, PUBLIC. Receive queue 0, the default queue, has no life: it always runs.

An id is a slot and its generation in one integer, so that numbers of slots can be rows of tables while an id that
outlives its receive queue, in a buffer that comes back late or with a client that was not looking, is recognised:
it names nobody, is never followed, and is counted. The ids of a first generation are the numbers of their slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import Generic, TypeVar

from vmq.errors import ApiError

Item = TypeVar("Item")

SLOT_BITS = 16
GENERATION_BITS = 32  # both together stay below 2**53: an id is exact in everybody's JSON
SLOTS_MAX = 1 << SLOT_BITS


class State(Enum):
    """What has happened to a receive queue, so what may happen next."""

    UNDEFINED = "Undefined"  # not allocated: before, and after the last buffer came back
    ALLOCATED = "Allocated"  # an id and parameters; no resources
    SET = "Set"  # has filters that steer nothing yet: their frames go to the default queue
    RUNNING = "Running"  # the only state that receives
    PAUSED = "Paused"  # has resources and no filter; holds no frame
    STOP_DMA = "StopDMA"  # to be freed, while something may still write to its buffers
    FREEING = "Freeing"  # nothing writes any more; buffers are still to come back


class Public(Enum):
    """What users see."""

    UNDEFINED = "Undefined"
    RUNNING = "Running"
    PAUSED = "Paused"
    DMA_STOPPED = "DmaStopped"


class Event(Enum):
    """What can happen to a receive queue: operations, and what the data plane reports."""

    ALLOCATE_QUEUE = "ALLOCATE_QUEUE"
    QUEUE_PARAMETERS = "QUEUE_PARAMETERS query/set"
    SET_FILTER = "SET_FILTER"
    CLEAR_LAST_FILTER = "CLEAR_FILTER (last)"
    CLEAR_FILTER = "CLEAR_FILTER (not last)"
    ENUM_FILTERS = "ENUM_FILTERS"
    FILTER_PARAMETERS = "FILTER_PARAMETERS query"
    ALLOCATION_COMPLETE = "ALLOCATION_COMPLETE"
    RECEIVE = "Receive packet"
    FREE_QUEUE = "FREE_QUEUE"
    DMA_STOPPED = "DMA stopped + status sent"
    RESOURCES_FREED = "all buffers returned, resources freed"


NEXT: dict[Event, dict[State, State]] = {
    Event.ALLOCATE_QUEUE: {State.UNDEFINED: State.ALLOCATED},
    Event.QUEUE_PARAMETERS: {
        State.ALLOCATED: State.ALLOCATED,
        State.SET: State.SET,
        State.RUNNING: State.RUNNING,
        State.PAUSED: State.PAUSED,
    },
    Event.SET_FILTER: {
        State.ALLOCATED: State.SET,
        State.SET: State.SET,
        State.RUNNING: State.RUNNING,
        State.PAUSED: State.RUNNING,
    },
    Event.CLEAR_LAST_FILTER: {State.SET: State.ALLOCATED, State.RUNNING: State.PAUSED},
    Event.CLEAR_FILTER: {State.SET: State.SET, State.RUNNING: State.RUNNING},
    Event.ENUM_FILTERS: {
        State.ALLOCATED: State.ALLOCATED,
        State.SET: State.SET,
        State.RUNNING: State.RUNNING,
        State.PAUSED: State.PAUSED,
    },
    Event.FILTER_PARAMETERS: {State.SET: State.SET, State.RUNNING: State.RUNNING},
    Event.ALLOCATION_COMPLETE: {State.ALLOCATED: State.PAUSED, State.SET: State.RUNNING},
    Event.RECEIVE: {State.RUNNING: State.RUNNING},
    # Not with filters: the frames that they steer would have nowhere to go.
    Event.FREE_QUEUE: {State.ALLOCATED: State.STOP_DMA, State.PAUSED: State.STOP_DMA},
    Event.DMA_STOPPED: {State.STOP_DMA: State.FREEING},
    Event.RESOURCES_FREED: {State.FREEING: State.UNDEFINED},
}

# StopDMA has no filters, which is what Paused means; DmaStopped is promised only once it was said.
PUBLIC = {
    State.UNDEFINED: Public.UNDEFINED,
    State.ALLOCATED: Public.PAUSED,
    State.SET: Public.PAUSED,
    State.RUNNING: Public.RUNNING,
    State.PAUSED: Public.PAUSED,
    State.STOP_DMA: Public.PAUSED,
    State.FREEING: Public.DMA_STOPPED,
}


def step(state: State, event: Event) -> State:
    """The state that follows; ApiError if none does."""
    following = NEXT[event].get(state)
    if following is None:
        wrong = f"{event.value}: the receive queue is {state.value}"
        allowed = " or ".join(before.value for before in NEXT[event])
        raise ApiError("INVALID_PARAMETER", wrong, f"it is for a receive queue that is {allowed}")
    return following


def diagram() -> str:
    """The table as a drawing, in Mermaid's language. Events that leave a state as it is are not drawn."""
    edges: dict[tuple[State, State], list[str]] = {}
    for event, row in NEXT.items():
        for before, after in row.items():
            if before is not after:
                edges.setdefault((before, after), []).append(event.value)
    lines = [f"    {a.value} --> {b.value}: {', '.join(events)}" for (a, b), events in edges.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {State.UNDEFINED.value}", *lines])


def grid() -> str:
    """The table as Markdown: `=` stays, `✗` is refused."""
    lines = [["event", *(state.value for state in State)], ["---"] * (1 + len(State))]
    lines += [[event.value, *(_cell(event, state) for state in State)] for event in Event]
    lines.append(["*users see*", *(PUBLIC[state].value for state in State)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(event: Event, state: State) -> str:
    following = NEXT[event].get(state)
    if following is None:
        return "✗"
    return "=" if following is state else following.value


class Slots(Generic[Item]):
    """Items by generation-tagged id. A slot that was given back waits behind all others before it is used again."""

    def __init__(self, first: int, capacity: int) -> None:
        """Slots `first` to `first + capacity - 1`."""
        if not 0 <= first < first + capacity <= SLOTS_MAX:
            raise ValueError(f"slots {first} to {first + capacity - 1} of {SLOTS_MAX}")
        self._generations = dict.fromkeys(range(first, first + capacity), 0)
        self._free = deque(self._generations)
        self._items: dict[int, Item] = {}
        self.stale = 0  # look-ups by an id whose item is gone

    def take(self, item: Item) -> int | None:
        """The item's new id; None if every slot is taken."""
        if not self._free:
            return None
        slot = self._free.popleft()
        name = self._generations[slot] << SLOT_BITS | slot
        self._items[name] = item
        return name

    def find(self, name: object) -> Item | None:
        """The item, if this is its id, whatever a client may have sent; a former id is counted."""
        if not isinstance(name, int) or isinstance(name, bool):
            return None
        item = self._items.get(name)
        if item is None and self._was_given(name):
            self.stale += 1
        return item

    def _was_given(self, name: int) -> bool:
        slot, generation = name % SLOTS_MAX, name >> SLOT_BITS
        return 0 <= generation < self._generations.get(slot, 0)

    def give_back(self, name: int) -> None:
        """The id is stale from now on. A slot without another generation is not used again."""
        del self._items[name]
        slot = name % SLOTS_MAX
        self._generations[slot] += 1
        if self._generations[slot] < 1 << GENERATION_BITS:
            self._free.append(slot)

    def __iter__(self) -> Iterator[Item]:
        """The items, oldest first."""
        return iter(list(self._items.values()))

    def __len__(self) -> int:
        return len(self._items)
