# SPDX-License-Identifier: Apache-2.0
"""vmq runs the vectors of conformance/, and so would whoever follows conformance/README.md.

The runner knows the format and the public operations, nothing of their inside. That a vector can fail is shown by
giving vmq each flaw that the vectors of flaws.json are about. A frame's way is asked twice: of the definition of
filters, and of the data plane itself.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contract.double import Bench
from tests.dataplane.rig import NOBODY, Rig
from vmq.abi.ethernet import mac_number
from vmq.contract import DEFAULT_QUEUE, DROP_QUEUE, Budget, Contract
from vmq.engine.queues import NOWHERE
from vmq.errors import ApiError
from vmq.filters import Field, FieldTest, Filter, Flag, Kind, matches
from vmq.filters.compiled import arrange, rows
from vmq.publisher import FilterEntry
from vmq.queues import PUBLIC, Event, State, step

FOLDER = Path(__file__).resolve().parents[1] / "conformance"
FILES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
VECTORS = [
    (f"{stem}: {vector['name']}", vector)
    for stem, content in FILES.items()
    for vector in content.get("vectors", [])
]
GIVEN = {"queues": 4, "processors": {"1": 2, "2": 2}, "buffers": 4096, "queue_ids": 64, "filter_ids": 64}
MAC_FIELDS = {Field.MAC_DESTINATION, Field.MAC_SOURCE}


def filter_of(written: dict[str, Any]) -> Filter:
    def number(field: Field, value: int | str) -> int:
        return mac_number(value) if isinstance(value, str) and field in MAC_FIELDS else int(value)

    tests = []
    for test in written["tests"]:
        field, kind = Field(test["field"]), Kind(test["kind"])
        tests.append(FieldTest(field, kind, number(field, test["value"]), number(field, test.get("mask", 0))))
    flags = Flag(0)
    for flag in written.get("flags", []):
        flags |= Flag[flag.upper()]
    return Filter(tuple(tests), priority=written.get("priority", 0), flags=flags)


class Runner:
    """One vector: its labels, and an operation for each `do`."""

    def __init__(self, given: dict[str, Any]) -> None:
        limits = {**GIVEN, **given}
        budget = Budget(
            queues=limits["queues"],
            processors={int(number): most for number, most in limits["processors"].items()},
            locked_memory=limits["buffers"] * 2048,
        )
        self.bench = Bench(budget, queues_max=limits["queue_ids"], filters_max=limits["filter_ids"])
        self.contract = self.bench.contract
        self.labels: dict[str, int] = {}
        self.names: dict[tuple[str, int], str] = {}  # kind and id → label

    def run(self, steps: list[dict[str, Any]]) -> None:
        for number, one in enumerate(steps):
            where = f"step {number}: {json.dumps(one)}"
            self.bench.forget()
            before = self.seen()
            do: Callable[[dict[str, Any]], str] = getattr(self, f"do_{one['do']}")
            try:
                status = do(one)
            except ApiError as error:
                status = error.status
                assert self.seen() == before, f"{where}: refused, and something has changed"
            assert status == one.get("status", "SUCCESS"), where
            assert self.events() == one.get("events", []), where
            for label, state in one.get("states", {}).items():
                assert self.bench.step(self.labels[label]) == state, where

    def seen(self) -> Any:
        return self.bench.everything()[:2]

    def events(self) -> list[dict[str, Any]]:
        """The events, as far as the vector has words for them."""
        words = {"event", "queue", "step"}
        found = [{word: event[word] for word in words & set(event)} for event in self.bench.events]
        for event in found:
            if "queue" in event:
                event["queue"] = self.names.get(("queue", event["queue"]), event["queue"])
        return found

    def id(self, value: int | str) -> int:
        return self.labels[value] if isinstance(value, str) else value

    def label(self, kind: str, one: dict[str, Any], name: int) -> str:
        if "as" in one:
            self.labels[one["as"]] = name
            self.names[kind, name] = one["as"]
        return "SUCCESS"

    # --- operations

    def do_allocate(self, one: dict[str, Any]) -> str:
        return self.label("queue", one, self.contract.allocate(one["owner"], one["parameters"]))

    def do_complete(self, one: dict[str, Any]) -> str:
        queues = [self.id(queue) for queue in one["queues"]]
        answers = self.contract.allocation_complete(one["owner"], queues)
        assert [answer.status for answer in answers] == one["statuses"], one
        return "SUCCESS"

    def do_set_parameters(self, one: dict[str, Any]) -> str:
        self.contract.set_parameters(one["owner"], self.id(one["queue"]), one["changes"])
        return "SUCCESS"

    def do_query_parameters(self, one: dict[str, Any]) -> str:
        row = self.contract.queue_parameters(one["owner"], self.id(one["queue"]))
        for word in ("requested", "effective"):
            assert row[word] == {**row[word], **one.get(word, {})}, one
        return "SUCCESS"

    def do_free(self, one: dict[str, Any]) -> str:
        return self.contract.free(one["owner"], self.id(one["queue"]))

    def do_set_filter(self, one: dict[str, Any]) -> str:
        new = filter_of(one["filter"])
        return self.label("filter", one, self.contract.set_filter(one["owner"], self.id(one["queue"]), new))

    def do_clear_filter(self, one: dict[str, Any]) -> str:
        self.contract.clear_filter(one["owner"], self.id(one["filter"]))
        return "SUCCESS"

    def do_move_filter(self, one: dict[str, Any]) -> str:
        self.contract.move_filter(one["owner"], self.id(one["filter"]), self.id(one["queue"]))
        return "SUCCESS"

    def do_filter_parameters(self, one: dict[str, Any]) -> str:
        self.contract.filter_parameters(one["owner"], self.id(one["filter"]))
        return "SUCCESS"

    def do_enum_queues(self, one: dict[str, Any]) -> str:
        rows = self.contract.enum_queues(one["owner"])
        assert [row["queue"] for row in rows] == [self.id(label) for label in one["gives"]], one
        return "SUCCESS"

    def do_enum_filters(self, one: dict[str, Any]) -> str:
        rows = self.contract.enum_filters(one["owner"], self.id(one["queue"]))
        assert [row["filter"] for row in rows] == [self.id(label) for label in one["gives"]], one
        return "SUCCESS"

    def do_release_owner(self, one: dict[str, Any]) -> str:
        self.contract.release_owner(one["owner"])
        return "SUCCESS"

    def do_reset(self, _: dict[str, Any]) -> str:
        self.contract.reset()
        return "SUCCESS"

    # --- what is no operation

    def do_look(self, _: dict[str, Any]) -> str:
        return "SUCCESS"

    def do_stale(self, one: dict[str, Any]) -> str:
        assert self.contract.stale_ids["queues"] == one["queues"], one
        return "SUCCESS"

    def do_device(self, one: dict[str, Any]) -> str:
        name, double = self.id(one["queue"]), self.bench.double
        double.busy = double.busy | {name} if one["dma"] else double.busy - {name}
        double.out[name] = one["buffers"]
        self.contract.progress(name)
        return "SUCCESS"

    def do_frame(self, one: dict[str, Any]) -> str:
        """Where a frame goes: to the queue of the matching filter in effect that has the highest priority."""
        addresses = (mac_number(one["destination"]), mac_number("52:54:00:00:00:ff"))
        data = b"".join(number.to_bytes(6, "little") for number in addresses)
        data += one.get("ethertype", 2048).to_bytes(2, "big") + bytes(46)
        vid, tagged = one["vlan"] or 0, one["vlan"] is not None
        found = [
            (one_filter.priority, queue)
            for queue, filters in self.bench.double.filters.items()
            for one_filter in filters.values()
            if matches(one_filter, data, vid, vid, tagged)
        ]
        best = {queue for priority, queue in found if priority == max(found)[0]} or {0}
        assert best == {self.id(one["to"])}, one
        tag = struct.pack("!HH", 0x8100, vid) if tagged else b""
        assert placed(self.bench.double.filters, data[:12] + tag + data[12:]) == self.id(one["to"]), one
        return "SUCCESS"


def placed(filters: Mapping[int, Mapping[int, Filter]], data: bytes) -> int:
    """Where the data plane places a frame from the wire, a guest for each receive queue: that one's id."""
    with Rig() as rig:
        wire = rig.uplink([data])
        guests = {name: rig.vm(NOBODY, uplink=wire) for name in filters if name not in NOWHERE}
        targets = NOWHERE | {name: guest.first_queue for name, guest in guests.items()}
        arranged = arrange((one, targets[name]) for name, kept in filters.items() for one in kept.values())
        rig.filters = [FilterEntry(wire, arranged.plain, rows(arranged.generic))]
        for guest in guests.values():
            guest.post()
        rig.publish()
        rig.run()
        found = [name for name, guest in guests.items() if guest.received()]
        dropped = {"default_queue": DEFAULT_QUEUE, "drop_queue": DROP_QUEUE}
        (name,) = found + [dropped[drop] for drop in rig.wire_drops(wire)]
    return name


@pytest.mark.parametrize("vector", [pytest.param(vector, id=name) for name, vector in VECTORS])
def test_vmq_does_what_the_vector_says(vector):
    Runner(vector.get("given", {})).run(vector["steps"])


@pytest.mark.parametrize(
    "pair",
    [pytest.param(pair, id=f"{pair['event']} in {pair['state']}") for pair in FILES["life_cycle"]["pairs"]],
)
def test_vmq_has_the_table_of_the_vectors(pair):
    state, event = State(pair["state"]), Event(pair["event"])
    if pair["next"] is None:
        with pytest.raises(ApiError):
            step(state, event)
    else:
        assert step(state, event) is State(pair["next"])


def test_the_vectors_have_every_event_in_every_state():
    pairs = {(pair["state"], pair["event"]) for pair in FILES["life_cycle"]["pairs"]}
    assert pairs == {(state.value, event.value) for state in State for event in Event}
    assert {a.value: b.value for a, b in PUBLIC.items()} == FILES["life_cycle"]["public"]


def test_the_page_explains_every_word_of_the_format():
    """A vector that another implementation could not read is none."""
    page = (FOLDER / "README.md").read_text()
    words = {word for _, vector in VECTORS for one in vector["steps"] for word in (one["do"], *one)}
    words |= set(GIVEN)
    assert not sorted(word for word in words if f"`{word}`" not in page)
    assert not sorted(stem for stem in FILES if f"{stem}.json" not in page)


# --- each flaw of the sample driver fails its vector, and no other --------------------------------------------


def first_test_only(contract: Contract) -> None:
    """Flaw 1: the flag is seen only if the address is tested first."""
    right = contract.set_filter

    def wrong(owner: str, name: int, new: Filter) -> int:
        first = new.tests and new.tests[0].field is Field.MAC_DESTINATION
        return right(owner, name, new if first else replace(new, flags=Flag(0)))

    contract.set_filter = wrong  # type: ignore[method-assign]


def no_address(contract: Contract) -> None:
    """Flaw 2: a missing address is 00:00:00:00:00:00."""
    right = contract.set_filter

    def wrong(owner: str, name: int, new: Filter) -> int:
        if not any(test.field is Field.MAC_DESTINATION for test in new.tests):
            new = replace(new, tests=(*new.tests, FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, 0)))
        return right(owner, name, new)

    contract.set_filter = wrong  # type: ignore[method-assign]


def wrong_word(contract: Contract) -> None:
    """Flaw 3."""
    right = contract.clear_filter

    def wrong(owner: str, filter_id: int) -> None:
        try:
            right(owner, filter_id)
        except ApiError as error:
            raise ApiError("INVALID_PARAMETER", error.wrong, error.remedy) from error

    contract.clear_filter = wrong  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("flaw", "fails"), [(first_test_only, 0), (no_address, 1), (wrong_word, 2)], ids=["1", "2", "3"]
)
def test_each_flaw_fails_its_vector_and_no_other(flaw, fails):
    """B12."""
    failed = []
    for number, vector in enumerate(FILES["flaws"]["vectors"]):
        runner = Runner({})
        flaw(runner.contract)
        try:
            runner.run(vector["steps"])
        except AssertionError:
            failed.append(number)
    assert failed == [fails]
