# SPDX-License-Identifier: Apache-2.0
"""An engine that is a note of what it was told, and fails a test at once when it is told it in a wrong order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from vmq.abi.ethernet import mac_number
from vmq.contract import DEFAULT_QUEUE, DROP_QUEUE, Budget, Capabilities, Contract, Grant, Parameters
from vmq.errors import ApiError, VmqError
from vmq.filters import Field, FieldTest, Filter, Flag, Kind

BUDGET = Budget(queues=4, processors={1: 2, 2: 2}, locked_memory=1024 * 2048)
UNTAGGED = 0


def mac(last: int) -> int:
    return mac_number(f"52:54:00:00:00:{last:02x}")


def filter_of(last: int, vlan: int | None = None, priority: int = 0) -> Filter:
    """A filter of one address, and of one VLAN; 0: of frames without one; None: of any."""
    tests = [FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, mac(last))]
    if vlan:
        tests.append(FieldTest(Field.VLAN_ID, Kind.EQUAL, vlan))
    flags = Flag.VLAN_UNTAGGED_OR_ZERO if vlan == UNTAGGED else Flag(0)
    return Filter(tuple(tests), priority=priority, flags=flags)


class Double:
    """Effects, with the books of an engine."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.grants: dict[int, Grant] = {}
        self.asked: dict[int, Parameters] = {}
        self.running = {DEFAULT_QUEUE, DROP_QUEUE}
        self.filters: dict[int, Mapping[int, Filter]] = {}  # in effect; no empty ones
        self.busy: set[int] = set()  # something still writes to their buffers
        self.out: dict[int, int] = {}  # buffers that are not given back
        self.stopping: set[int] = set()
        self.refuses = False  # to acquire

    def acquire(self, queue: int, grant: Grant, parameters: Parameters) -> None:
        if self.refuses:
            raise VmqError("no such ring")
        assert queue not in self.grants
        self.grants[queue], self.asked[queue] = grant, parameters
        self.told.append(("acquire", queue, grant.processor, grant.buffers))

    def release(self, queue: int) -> None:
        assert queue in self.stopping
        assert queue not in self.busy
        assert not self.out.get(queue)
        del self.grants[queue], self.asked[queue]
        self.stopping.remove(queue)
        self.told.append(("release", queue))

    def start(self, queues: Sequence[int]) -> None:
        assert self.grants.keys() | {DEFAULT_QUEUE, DROP_QUEUE} >= set(queues)
        assert not (self.running | self.stopping) & set(queues)
        self.running.update(queues)
        self.told.append(("start", list(queues)))

    def install(self, filters: Mapping[int, Mapping[int, Filter]]) -> None:
        assert filters
        assert set(filters) <= self.running, "filters point to a receive queue that is not ready"
        self.filters = {name: kept for name, kept in {**self.filters, **filters}.items() if kept}
        everywhere = [name for kept in self.filters.values() for name in kept]
        assert len(everywhere) == len(set(everywhere)), "a frame would be delivered twice"
        self.told.append(("install", {queue: sorted(names) for queue, names in filters.items()}))

    def pause(self, queues: Sequence[int]) -> None:
        assert not self.filters.keys() & queues, "frames would be steered to nobody"
        assert self.running >= set(queues)
        self.running.difference_update(queues)
        self.told.append(("pause", list(queues)))

    def discard(self, queues: Sequence[int]) -> None:
        assert not self.running & set(queues)
        self.told.append(("discard", list(queues)))

    def stop(self, queue: int) -> None:
        assert queue in self.grants
        assert queue not in self.running
        self.stopping.add(queue)
        self.told.append(("stop", queue))

    def stopped(self, queue: int) -> bool:
        assert queue in self.stopping
        return queue not in self.busy

    def outstanding(self, queue: int) -> int:
        assert queue in self.stopping
        return self.out.get(queue, 0)

    def change(self, queue: int, grant: Grant, parameters: Parameters) -> None:
        assert queue in self.grants
        self.grants[queue], self.asked[queue] = grant, parameters
        self.told.append(("change", queue, grant.processor, grant.buffers))

    def clear_counters(self, queue: int) -> None:
        self.told.append(("clear_counters", queue))


class Bench:
    """A contract on a double, its events, and shorthand for two owners."""

    def __init__(self, budget: Budget = BUDGET, **options: Any) -> None:
        self.double = Double()
        self.events: list[dict[str, Any]] = []
        self.hardware = Capabilities(queues=budget.queues)
        self.contract = Contract(budget, self.hardware, self.double, self.events.append, **options)

    def queue(self, owner: str = "a", *filters: Filter, complete: bool = True, **values: Any) -> int:
        """A receive queue with filters."""
        name = self.contract.allocate(owner, values)
        for one in filters:
            self.contract.set_filter(owner, name, one)
        if complete:
            assert [done.status for done in self.contract.allocation_complete(owner, [name])] == ["SUCCESS"]
        return name

    def step(self, name: int) -> str:
        """The state as the table has it; gone ones are Undefined."""
        return next(
            (row["step"] for row in self.contract.enum_queues(None) if row["queue"] == name), "Undefined"
        )

    def forget(self) -> None:
        """What happened so far is not the matter."""
        self.events.clear()
        self.double.told.clear()

    def everything(self) -> Any:
        """All that a client could see, and all that an engine was told."""
        queues = self.contract.enum_queues(None)
        filters = [
            self.contract.enum_filters(None, row["queue"])
            for row in queues
            if row["step"] not in {"StopDMA", "Freeing"}
        ]
        return queues, filters, list(self.events), list(self.double.told)

    def refused(self, call: Any, *values: Any) -> str:
        """The status that the call is refused with; nothing has changed."""
        before = self.everything()
        with pytest.raises(ApiError) as refused:
            call(*values)
        assert str(refused.value)
        assert self.everything() == before
        return refused.value.status
