# SPDX-License-Identifier: Apache-2.0
"""Operations in any order, right and wrong, against a model that knows no states.

The model keeps facts: who owns a receive queue, whether it is complete, which filters it has, how far it is gone.
From them follow the state, which statuses an operation may be refused with, and what the engine must have been told.
After a refusal nothing has changed; at the end everything is taken down, and nothing is left anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.contract.double import Bench, filter_of
from vmq.contract import DROP_QUEUE, STATUSES, Budget, Operation
from vmq.errors import ApiError
from vmq.filters import Filter

BUDGET = Budget(queues=3, processors={1: 2, 2: 1}, locked_memory=20 * 2048)
QUEUES_MAX, FILTERS_MAX = 5, 6
OWNERS = ("a", "b")

Address = tuple[int, int | None, int]  # last byte of the MAC, VLAN as in filter_of, priority


@dataclass
class Queue:
    owner: str
    processor: int | None
    buffers: int
    weight: int
    grant: int | None = None  # its processor, once it is complete
    filters: set[int] = field(default_factory=set)
    gone: str = ""  # StopDMA, Freeing: how far

    @property
    def step(self) -> str:
        if self.gone:
            return self.gone
        words = {(False, False): "Allocated", (False, True): "Set", (True, False): "Paused"}
        return words.get((self.grant is not None, bool(self.filters)), "Running")


def meet(one: Address, other: Address) -> bool:
    """Whether a frame passes both, and neither comes first."""
    vlans = one[1] == other[1] or None in {one[1], other[1]}
    return one[0] == other[0] and vlans and one[2] == other[2]


class AnyOrder(RuleBasedStateMachine):
    """The contract of two owners."""

    owners = st.sampled_from(OWNERS)
    picks = st.integers(0, 59)  # of ids, mostly good ones: refusals alone would lead nowhere
    addresses = st.tuples(st.integers(1, 3), st.sampled_from([None, 0, 10, 11]), st.integers(0, 1))

    @initialize()
    def begin(self) -> None:
        self.bench = Bench(BUDGET, queues_max=QUEUES_MAX, filters_max=FILTERS_MAX)
        self.queues: dict[int, Queue] = {}
        self.filters: dict[int, tuple[str, int, Address]] = {}  # owner, receive queue, what
        self.queue_ids: list[int] = [0]
        self.filter_ids: list[int] = [0]
        self.stops = 0
        for owner, last in (("a", 1), ("a", 2), ("b", 3), ("b", 1)):
            self.allocate(owner, None, 8, 100)
            self.set_one(owner, self.queue_ids[-1], (last, 10, 0))
        for name in self.queue_ids[2:]:
            self.complete_one(self.queues[name].owner, name, refuses=False)

    # --- asking

    def queue_id(self, owner: str, pick: int) -> int:
        mine = [name for name in self.queues if self.alive(owner, name)]
        return self.one_of(mine, [*self.queue_ids[-6:], *self.queues], pick)

    def filter_id(self, owner: str, pick: int) -> int:
        mine = [one for one, (whose, _, _) in self.filters.items() if whose == owner]
        return self.one_of(mine, self.filter_ids[-6:], pick)

    def one_of(self, mine: list[int], known: list[int], pick: int) -> int:
        """One of the owner's as a rule; else any that was ever given out, the default queue, or nonsense."""
        if mine and pick % 4:
            return mine[pick // 4 % len(mine)]
        others = [*known, 0, -1, 999, 1 << 40]
        return others[pick // 4 % len(others)]

    def ask(self, operation: Operation, expected: str, call: Callable[..., Any], *values: Any) -> Any:
        """The answer; if a refusal was expected, that it came and left no trace."""
        assert expected in STATUSES[operation]
        before = self.bench.everything()
        try:
            status, answer = expected, call(*values)
        except ApiError as error:
            status, answer = error.status, None
        assert status == expected, f"{operation.value}: {status} instead of {expected}"
        if expected not in {"SUCCESS", "PENDING"}:
            assert answer is None, f"{operation.value}: done instead of {expected}"
            assert self.bench.everything() == before
        return answer

    def mine(self, owner: str, name: int) -> bool:
        return name in self.queues and self.queues[name].owner == owner

    def alive(self, owner: str, name: int) -> bool:
        return self.mine(owner, name) and not self.queues[name].gone

    def quarrels(self, name: int, address: Address, besides: int = 0) -> bool:
        return any(
            where != name and filter_id != besides and meet(what, address)
            for filter_id, (_, where, what) in self.filters.items()
        )

    def held(self) -> list[Queue]:
        return [queue for queue in self.queues.values() if queue.grant is not None]

    def room(self, processor: int | None, without: Queue | None = None) -> bool:
        """Whether a processor, or any, has room."""
        taken = [queue.grant for queue in self.held() if queue is not without]
        return any(
            taken.count(number) < most
            for number, most in BUDGET.processors.items()
            if processor in {None, number}
        )

    def memory(self) -> int:
        return 20 - sum(grant.buffers for grant in self.bench.double.grants.values())

    # --- receive queues

    @rule(
        owner=owners,
        processor=st.sampled_from([None, 1, 2]),
        buffers=st.sampled_from([1, 8, 16]),
        weight=st.sampled_from([100, 1, 0]),
    )
    def allocate(self, owner: str, processor: int | None, buffers: int, weight: int) -> None:
        values = {"processor": processor, "suggested_buffers": buffers, "weight": weight}
        expected = "FAILURE" if len(self.queues) == QUEUES_MAX else "SUCCESS"
        name = self.ask(Operation.ALLOCATE_QUEUE, expected, self.bench.contract.allocate, owner, values)
        if name is not None:
            assert name not in self.queue_ids
            self.queue_ids.append(name)
            self.queues[name] = Queue(owner, processor, buffers, weight)

    @rule(bad=st.sampled_from([{"processor": 9}, {"suggested_buffers": 0}, {"weight": 101}, {"colour": 1}]))
    def allocate_nonsense(self, bad: dict[str, int]) -> None:
        self.ask(Operation.ALLOCATE_QUEUE, "INVALID_PARAMETER", self.bench.contract.allocate, "a", bad)

    @rule(owner=owners, pick=picks, refuses=st.sampled_from([False, False, False, True]))
    def complete(self, owner: str, pick: int, refuses: bool) -> None:
        self.complete_one(owner, self.queue_id(owner, pick), refuses)

    def complete_one(self, owner: str, name: int, refuses: bool) -> None:
        queue = self.queues.get(name)
        expected = "INVALID_PARAMETER"
        if queue and self.alive(owner, name) and queue.grant is None:
            least = (queue.buffers + 1) // 2
            enough = queue.weight and len(self.held()) < BUDGET.queues and self.memory() >= least
            served = enough and self.room(queue.processor) and not refuses
            expected = "SUCCESS" if served else "RESOURCES"
        self.bench.double.refuses = refuses
        (answer,) = self.bench.contract.allocation_complete(owner, [name])
        self.bench.double.refuses = False
        assert (answer.queue, answer.status, bool(answer.why)) == (name, expected, expected != "SUCCESS")
        if queue and expected == "SUCCESS":
            queue.grant = self.bench.double.grants[name].processor
            assert queue.processor in {None, queue.grant}

    @rule(owner=owners, picks=st.lists(picks, max_size=5))
    def complete_batch(self, owner: str, picks: list[int]) -> None:
        """Which of them are served is the matter of tests/contract/test_budget.py; here, that all is consistent."""
        names = [self.queue_id(owner, pick) for pick in picks]
        if not names:
            operation = Operation.QUEUE_ALLOCATION_COMPLETE
            self.ask(operation, "INVALID_LENGTH", self.bench.contract.allocation_complete, owner, names)
            return
        answers = self.bench.contract.allocation_complete(owner, names)
        assert [answer.queue for answer in answers] == names
        seen = set()
        for answer in answers:
            name = answer.queue
            fits = self.alive(owner, name) and self.queues[name].grant is None and name not in seen
            assert (answer.status != "INVALID_PARAMETER") == fits
            seen.add(name)
        for answer in answers:
            if answer.status == "SUCCESS":
                self.queues[answer.queue].grant = self.bench.double.grants[answer.queue].processor

    @rule(
        owner=owners,
        pick=picks,
        member=st.sampled_from(["weight", "vm"]),
        weight=st.sampled_from([0, 1, 50, 100, 101]),
    )
    def change(self, owner: str, pick: int, member: str, weight: int) -> None:
        name = self.queue_id(owner, pick)
        good = self.alive(owner, name) and member == "weight" and weight <= 100
        call = self.bench.contract.set_parameters
        expected = "SUCCESS" if good else "INVALID_PARAMETER"
        self.ask(Operation.QUEUE_PARAMETERS, expected, call, owner, name, {member: weight})
        if good:
            self.queues[name].weight = weight

    @rule(owner=owners, pick=picks, processor=st.sampled_from([None, 1, 2, 9]))
    def move_queue(self, owner: str, pick: int, processor: int | None) -> None:
        name = self.queue_id(owner, pick)
        queue = self.queues.get(name)
        expected = "INVALID_PARAMETER"
        if queue and self.alive(owner, name) and processor != 9:
            stays = queue.grant is None or processor in {None, queue.grant}
            expected = "SUCCESS" if stays or self.room(processor, without=queue) else "FAILURE"
        call = self.bench.contract.set_parameters
        self.ask(Operation.QUEUE_PARAMETERS, expected, call, owner, name, {"processor": processor})
        if queue and expected == "SUCCESS":
            queue.processor = processor
            if queue.grant is not None and processor is not None:
                queue.grant = processor

    @rule(owner=owners, pick=picks, clear=st.booleans(), busy=st.booleans(), out=st.integers(0, 2))
    def free(self, owner: str, pick: int, clear: bool, busy: bool, out: int) -> None:
        name = self.queue_id(owner, pick)
        if clear and self.alive(owner, name):
            for filter_id in list(self.queues[name].filters):
                self.bench.contract.clear_filter(owner, filter_id)
                self.drop(filter_id)
        expected = "INVALID_PARAMETER"
        if self.alive(owner, name) and not self.queues[name].filters:
            if self.queues[name].grant is not None:
                self.bench.double.out[name] = out
                self.bench.double.busy |= {name} if busy else set()
            expected = "PENDING" if self.waits(name) else "SUCCESS"
        answer = self.ask(Operation.FREE_QUEUE, expected, self.bench.contract.free, owner, name)
        assert answer in {None, expected}
        if answer:
            self.go(name)

    def waits(self, name: int) -> bool:
        """Whether something of a receive queue is still in use."""
        return name in self.bench.double.busy or bool(self.bench.double.out.get(name))

    def go(self, name: int) -> None:
        """Being freed, as far as its buffers let it."""
        before = self.queues[name].gone
        self.queues[name].gone = "StopDMA" if name in self.bench.double.busy else "Freeing"
        self.stops += self.queues[name].gone == "Freeing" != before
        if not self.waits(name):
            del self.queues[name]

    @rule(pick=picks, still=st.booleans(), back=st.integers(0, 2))
    def progress(self, pick: int, still: bool, back: int) -> None:
        going = [name for name, queue in self.queues.items() if queue.gone]
        name, double = self.one_of(going, self.queue_ids, pick), self.bench.double
        gone = name in self.queues and self.queues[name].gone
        if gone:
            double.busy -= set() if still else {name}
            double.out[name] = max(double.out.get(name, 0) - back, 0)
        self.bench.contract.progress(name)
        if gone:
            self.go(name)

    # --- filters

    @rule(owner=owners, pick=picks, address=addresses)
    def set_filter(self, owner: str, pick: int, address: Address) -> None:
        self.set_one(owner, self.queue_id(owner, pick), address)

    def set_one(self, owner: str, name: int, address: Address) -> None:
        expected = "INVALID_PARAMETER"
        if (name == 0 or self.alive(owner, name)) and not self.quarrels(name, address):
            expected = "FAILURE" if len(self.filters) == FILTERS_MAX else "SUCCESS"
        last, vlan, priority = address
        new = filter_of(last, vlan, priority)
        filter_id = self.ask(Operation.SET_FILTER, expected, self.bench.contract.set_filter, owner, name, new)
        if filter_id is not None:
            assert filter_id not in self.filter_ids
            self.filter_ids.append(filter_id)
            self.filters[filter_id] = (owner, name, address)
            if name:
                self.queues[name].filters.add(filter_id)

    @rule(owner=owners, pick=picks)
    def set_no_filter(self, owner: str, pick: int) -> None:
        """Without an address: refused whatever else is right."""
        call, name = self.bench.contract.set_filter, self.queue_id(owner, pick)
        self.ask(Operation.SET_FILTER, "INVALID_PARAMETER", call, owner, name, Filter(()))

    @rule(owner=owners, pick=picks)
    def clear_filter(self, owner: str, pick: int) -> None:
        filter_id = self.filter_id(owner, pick)
        good = filter_id in self.filters and self.filters[filter_id][0] == owner
        expected = "SUCCESS" if good else "FILE_NOT_FOUND"
        self.ask(Operation.CLEAR_FILTER, expected, self.bench.contract.clear_filter, owner, filter_id)
        if good:
            self.drop(filter_id)

    def drop(self, filter_id: int) -> None:
        _, name, _ = self.filters.pop(filter_id)
        if name:
            self.queues[name].filters.remove(filter_id)

    @rule(owner=owners, pick=picks, to=picks)
    def move_filter(self, owner: str, pick: int, to: int) -> None:
        filter_id, name = self.filter_id(owner, pick), self.queue_id(owner, to)
        expected = "INVALID_PARAMETER"
        if filter_id in self.filters and (name == 0 or self.alive(owner, name)):
            whose, _, address = self.filters[filter_id]
            if whose == owner and not self.quarrels(name, address, besides=filter_id):
                expected = "SUCCESS"
        self.ask(Operation.MOVE_FILTER, expected, self.bench.contract.move_filter, owner, filter_id, name)
        if expected == "SUCCESS":
            _, _, address = self.filters[filter_id]
            self.drop(filter_id)
            self.filters[filter_id] = (owner, name, address)
            if name:
                self.queues[name].filters.add(filter_id)

    # --- looking, owners, resets

    @rule(owner=owners, pick=picks)
    def look(self, owner: str, pick: int) -> None:
        """Queries change nothing, and show an owner its own."""
        contract, name, filter_id = (
            self.bench.contract,
            self.queue_id(owner, pick),
            self.filter_id(owner, pick),
        )
        before = self.bench.everything()
        good = name == 0 or self.alive(owner, name)
        rows = self.ask(
            Operation.ENUM_FILTERS, "SUCCESS" if good else "FAILURE", contract.enum_filters, owner, name
        )
        if good:
            mine = [one for one, (whose, where, _) in self.filters.items() if (whose, where) == (owner, name)]
            assert sorted(row["filter"] for row in rows) == sorted(mine)
        expected = "SUCCESS" if good else "INVALID_PARAMETER"
        self.ask(Operation.QUEUE_PARAMETERS, expected, contract.queue_parameters, owner, name)
        known = filter_id in self.filters and self.filters[filter_id][0] == owner
        expected = "SUCCESS" if known else "INVALID_PARAMETER"
        self.ask(Operation.PARAMETERS, expected, contract.filter_parameters, owner, filter_id)
        assert self.bench.everything() == before

    @rule(owner=owners)
    def release_owner(self, owner: str) -> None:
        self.bench.contract.release_owner(owner)
        for filter_id in [one for one, (whose, _, _) in self.filters.items() if whose == owner]:
            self.drop(filter_id)
        for name in [name for name, queue in self.queues.items() if queue.owner == owner]:
            if not self.queues[name].gone:
                self.go(name)

    @rule()
    def reset(self) -> None:
        self.bench.contract.reset()

    # --- what always holds

    @invariant()
    def states_follow_from_the_facts(self) -> None:
        rows = self.bench.contract.enum_queues(None)
        assert {row["queue"]: row["step"] for row in rows} == {
            0: "Running",
            **{name: queue.step for name, queue in self.queues.items()},
        }
        for row in rows[1:]:
            assert (row["owner"], row["filters"]) == (
                self.queues[row["queue"]].owner,
                len(self.queues[row["queue"]].filters),
            )

    @invariant()
    def the_engine_was_told_exactly_that(self) -> None:
        double = self.bench.double
        running = {name for name, queue in self.queues.items() if queue.step == "Running"} | {0, DROP_QUEUE}
        assert double.running == running
        in_effect: dict[int, set[int]] = {}
        for filter_id, (_, name, _) in self.filters.items():
            if name in running:
                in_effect.setdefault(name, set()).add(filter_id)
        assert {name: set(kept) for name, kept in double.filters.items()} == in_effect
        places = {name: queue.grant for name, queue in self.queues.items() if queue.grant is not None}
        assert {name: grant.processor for name, grant in double.grants.items()} == places
        assert self.memory() >= 0
        assert len(places) <= BUDGET.queues

    @invariant()
    def events_tell_the_same_story(self) -> None:
        """Who follows them knows the state of everything; dma_stopped comes once for each that is freed."""
        events = self.bench.events
        assert [event["number"] for event in events] == list(range(1, len(events) + 1))
        told = {event["queue"]: event["step"] for event in events if "step" in event}
        assert {name: word for name, word in told.items() if word != "Undefined"} == {
            name: queue.step for name, queue in self.queues.items()
        }
        assert [event["event"] for event in events].count("dma_stopped") == self.stops

    def teardown(self) -> None:
        """Everything goes, whatever happened: then there is nothing."""
        if not hasattr(self, "bench"):
            return
        for owner in OWNERS:
            self.release_owner(owner)
        self.bench.double.busy.clear()
        self.bench.double.out.clear()
        for name in list(self.queues):
            self.bench.contract.progress(name)
            self.go(name)
        registry, double = self.bench.contract._registry, self.bench.double
        assert (len(registry.queues), len(registry.filters), registry.rivals._filters) == (0, 0, {})
        assert (double.grants, double.filters, double.running, double.stopping) == (
            {},
            {},
            {0, DROP_QUEUE},
            set(),
        )
