# SPDX-License-Identifier: Apache-2.0
"""The operations over a real socket: every status by its cause, owners of connections, and any nonsense."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.contract.double import BUDGET
from tests.control.daemon import Process
from tests.control.from_schema import ANYTHING, allowed, nearly
from tests.control.serving import Client, Serving, until
from vmq.contract import DROP_QUEUE, Budget, Capabilities, Property
from vmq.contract.contract import QUEUES_MAX
from vmq.control import answers
from vmq.control.schema import METHODS, schema
from vmq.filters import Capabilities as FilterCapabilities
from vmq.filters import Field

SCHEMA = schema()
OPERATIONS = [name for name, declared in METHODS.items() if declared.operation or name == "reset"]


def words(last: int = 1, **more: Any) -> dict[str, Any]:
    """A filter of one address."""
    return {"tests": [{"field": "mac_destination", "value": f"52:54:00:00:00:{last:02x}"}]} | more


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving() as one:
        yield one


@pytest.fixture
def client(serving: Serving) -> Iterator[Client]:
    with serving.client() as one:
        yield one


def queue(client: Client, owner: str = "a", *, complete: bool = True, **parameters: Any) -> int:
    number: int = client.ask("allocate_queue", owner=owner, parameters=parameters)["queue"]
    if complete:
        done = client.ask("queue_allocation_complete", owner=owner, queues=[number])
        assert done == [{"queue": number, "status": "SUCCESS", "why": ""}]
    return number


# --- what they do


def test_a_receive_queue_lives_over_the_api(client: Client):
    """Allocated, complete, with a filter, changed, moved away from, freed: and each step can be seen."""
    number = queue(client, name="x", vm="web", weight=50, processor=2, complete=False)
    row = client.ask("queue_parameters", queue=number)
    assert (row["owner"], row["step"], row["requested"]["weight"]) == ("a", "Allocated", 50)
    (done,) = client.ask("queue_allocation_complete", owner="a", queues=[number])
    assert done["status"] == "SUCCESS"
    filter_id = client.ask("set_filter", owner="a", queue=number, filter=words())["filter"]
    assert client.ask("queue_parameters", owner="a", queue=number)["state"] == "Running"
    client.ask("set_queue_parameters", owner="a", queue=number, parameters={"processor": 1, "name": "y"})
    row = client.ask("queue_parameters", queue=number)
    assert (row["effective"]["processor"], row["name"], row["vm"]) == (1, "y", "web")
    assert client.ask("filter_parameters", filter=filter_id)["in_effect"] is True
    client.ask("move_filter", owner="a", filter=filter_id, queue=0)
    assert [row["filter"] for row in client.ask("enum_filters", queue=0)] == [filter_id]
    assert client.ask("reset_statistics", owner="a", queue=number) == {"status": "SUCCESS"}
    assert client.ask("free_queue", owner="a", queue=number) == {"status": "SUCCESS"}
    assert client.ask("clear_filter", owner="a", filter=filter_id) == {"status": "SUCCESS"}
    assert [row["queue"] for row in client.ask("enum_queues")] == [0]


def test_only_members_that_are_named_change(client: Client):
    """null is a value: any processor."""
    number = queue(client, processor=2, weight=7)
    client.ask("set_queue_parameters", owner="a", queue=number, parameters={})
    assert client.ask("queue_parameters", queue=number)["requested"]["processor"] == 2
    client.ask("set_queue_parameters", owner="a", queue=number, parameters={"processor": None})
    asked = client.ask("queue_parameters", queue=number)["requested"]
    assert (asked["processor"], asked["weight"]) == (None, 7)


def test_one_half_of_moderation_changes_alone(client: Client):
    number = queue(client, moderation={"indications": 9, "frames": 4})
    client.ask("set_queue_parameters", owner="a", queue=number, parameters={"moderation": {"indications": 7}})
    asked = client.ask("queue_parameters", queue=number)["requested"]
    assert asked["moderation"] == {"indications": 7, "frames": 4}


def test_freeing_may_take_a_while_and_an_event_says_when(serving: Serving, client: Client):
    number = queue(client)
    serving.bench.double.out[number] = 1
    assert client.ask("free_queue", owner="a", queue=number) == {"status": "PENDING"}
    serving.bench.double.out.clear()
    serving.do(serving.bench.contract.progress, number)
    told = [(row["event"], row.get("step")) for row in client.ask("events")]
    assert told[-2:] == [("dma_stopped", "Freeing"), ("queue_state", "Undefined")]


def test_filters_of_all_receive_queues_are_listed_when_none_is_named(client: Client):
    """An owner's: its own, also those on everybody's."""
    mine, other = queue(client), queue(client, "b")
    first = client.ask("set_filter", owner="a", queue=mine, filter=words(1))["filter"]
    second = client.ask("set_filter", owner="b", queue=0, filter=words(2))["filter"]
    third = client.ask("set_filter", owner="b", queue=other, filter=words(3))["filter"]
    fourth = client.ask("set_filter", owner="a", queue=DROP_QUEUE, filter=words(4))["filter"]
    listed = {None: {first, second, third, fourth}, "a": {first, fourth}, "b": {second, third}, "c": set()}
    for owner, ids in listed.items():
        assert {row["filter"] for row in client.ask("enum_filters", owner=owner)} == ids


def test_answers_have_the_members_that_are_declared(client: Client):
    """No more and no less: the schema is read by machines."""
    number = queue(client)
    filter_id = client.ask("set_filter", owner="a", queue=number, filter=words(flags=["encapsulation"]))[
        "filter"
    ]
    for method, params, form in (
        ("queue_parameters", {"queue": number}, answers.QueueRecord),
        ("filter_parameters", {"filter": filter_id}, answers.FilterRecord),
        ("hardware_capabilities", {}, answers.CapabilitiesRecord),
        ("current_capabilities", {}, answers.CapabilitiesRecord),
        ("global_parameters", {}, answers.GlobalRecord),
    ):
        answer = client.ask(method, **params)
        assert msgspec.to_builtins(msgspec.convert(answer, form)) == answer
    client.ask("reset")
    for record in client.ask("events"):
        msgspec.convert(record, answers.AnyEvent)


# --- uplinks


def test_the_uplink_is_named_where_there_are_several():
    """The empty name is that of VMs without uplink."""
    with Serving("lan", "", "wan") as serving, serving.client() as client:
        for params in ({}, {"uplink": "dmz"}, {"uplink": None}):
            error = client.say("enum_queues", **params)["error"]
            assert error["status"] == "INVALID_PARAMETER"
            assert error["remedy"] == 'one of lan, "" (VMs without uplink), wan'
        client.ask("allocate_queue", uplink="", owner="a")
        counts = [len(client.ask("enum_queues", uplink=name)) for name in ("lan", "", "wan")]
        assert counts == [1, 2, 1]


@pytest.mark.parametrize(("uplinks", "meant"), [(("", "lan"), "lan"), (("lan",), "lan"), (("",), "")])
def test_the_only_uplink_is_meant_if_none_is_named(uplinks: tuple[str, ...], meant: str):
    """And VMs without uplink where there is none."""
    with Serving(*uplinks) as serving, serving.client() as client:
        client.ask("allocate_queue", owner="a")
        assert len(client.ask("enum_queues", uplink=meant)) == 2


# --- statuses

WITHOUT_ARP = FilterCapabilities(fields=frozenset(Field) - {Field.ARP_TPA})
OFF = Capabilities(queues=4, properties=frozenset(), filters=WITHOUT_ARP)
FIXED = Capabilities(queues=4, properties=frozenset({Property.VM_QUEUE}), filters=WITHOUT_ARP)
ARP = {"tests": [*words()["tests"], {"field": "arp_tpa", "value": "10.0.0.1"}]}
LIVE, SET, FREED, NOBODYS = 1, 2, 3, 9  # receive queues of the scene below; filters: 1, on SET, and 2 of b


def refusals() -> list[tuple[str, dict[str, Any], str]]:
    """(method, parameters, status): each row of the table of docs/queues.md by its cause."""
    invalid, length, unsupported, failure = (
        "INVALID_PARAMETER",
        "INVALID_LENGTH",
        "NOT_SUPPORTED",
        "FAILURE",
    )
    return [
        ("allocate_queue", {"parameters": {"weight": 101}}, invalid),
        ("allocate_queue", {"parameters": {"processor": 99}}, invalid),
        ("allocate_queue", {"owner": ""}, invalid),
        ("allocate_queue", {"owner": "x" * 257}, invalid),
        ("allocate_queue", {"parameters": {"name": "x" * 257}}, length),
        ("allocate_queue", {"parameters": {"vm": "x" * 257}}, length),
        ("allocate_queue", {"parameters": {"lookahead_split": True}}, unsupported),
        ("queue_allocation_complete", {"queues": []}, length),
        ("queue_allocation_complete", {"queues": [LIVE] * (QUEUES_MAX + 1)}, length),
        ("queue_parameters", {"queue": NOBODYS}, invalid),
        ("queue_parameters", {"queue": LIVE, "owner": "b"}, invalid),
        ("queue_parameters", {"queue": FREED}, invalid),
        ("set_queue_parameters", {"queue": LIVE, "owner": "b", "parameters": {}}, invalid),
        ("set_queue_parameters", {"queue": 0, "parameters": {}}, invalid),
        ("set_queue_parameters", {"queue": FREED, "parameters": {}}, invalid),
        ("set_queue_parameters", {"queue": LIVE, "parameters": {"weight": -1}}, invalid),
        ("set_queue_parameters", {"queue": LIVE, "parameters": {"vm": "other"}}, invalid),
        ("set_queue_parameters", {"queue": LIVE, "parameters": {"name": "x" * 257}}, length),
        ("set_queue_parameters", {"queue": LIVE, "parameters": {"processor": 2}}, failure),
        ("free_queue", {"queue": NOBODYS}, invalid),
        ("free_queue", {"queue": 0}, invalid),
        ("free_queue", {"queue": SET}, invalid),
        ("free_queue", {"queue": FREED}, invalid),
        ("free_queue", {"queue": LIVE, "owner": "b"}, invalid),
        ("set_filter", {"queue": NOBODYS, "filter": words(5)}, invalid),
        ("set_filter", {"queue": FREED, "filter": words(5)}, invalid),
        ("set_filter", {"queue": LIVE, "owner": "b", "filter": words(5)}, invalid),
        ("set_filter", {"queue": LIVE, "filter": words(1)}, invalid),
        ("set_filter", {"queue": LIVE, "filter": {"tests": []}}, invalid),
        ("set_filter", {"queue": LIVE, "filter": ARP}, unsupported),
        ("clear_filter", {"filter": 99}, "FILE_NOT_FOUND"),
        ("clear_filter", {"filter": 2}, "FILE_NOT_FOUND"),
        ("move_filter", {"filter": 99, "queue": LIVE}, invalid),
        ("move_filter", {"filter": 2, "queue": LIVE}, invalid),
        ("move_filter", {"filter": 1, "queue": NOBODYS}, invalid),
        ("move_filter", {"filter": 1, "queue": FREED}, invalid),
        ("filter_parameters", {"filter": 99}, invalid),
        ("filter_parameters", {"filter": 1, "owner": "b"}, invalid),
        ("enum_filters", {"queue": NOBODYS}, failure),
        ("enum_filters", {"queue": FREED}, failure),
        ("reset_statistics", {"queue": NOBODYS}, invalid),
        ("reset_statistics", {"queue": LIVE, "owner": "b"}, invalid),
        ("reset_statistics", {"queue": 0}, invalid),
    ]


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[Serving, Client]]:
    """One receive queue that is complete, one with a filter, one that waits for its buffers; a filter of b."""
    with Serving() as serving, serving.client() as client:
        assert queue(client, processor=1) == LIVE
        assert queue(client, complete=False) == SET
        assert queue(client) == FREED
        client.ask("set_filter", owner="a", queue=SET, filter=words(1))
        client.ask("set_filter", owner="b", queue=0, filter=words(2))
        serving.bench.double.busy.add(FREED)
        assert client.ask("free_queue", owner="a", queue=FREED) == {"status": "PENDING"}
        serving.do(serving.bench.contract.change_capabilities, FIXED, FIXED)
        yield serving, client


@pytest.mark.parametrize(("method", "params", "status"), refusals())
def test_each_status_has_its_cause_and_leaves_everything_as_it_was(
    scene: tuple[Serving, Client], method: str, params: dict[str, Any], status: str
):
    """docs/queues.md "Operations and statuses", over the socket."""
    serving, client = scene
    before = serving.everything()
    answer = client.say(method, **{"owner": "a"} | params)
    assert answer["error"]["status"] == status, answer
    assert status in METHODS[method].statuses
    assert serving.everything() == before


def test_a_batch_has_a_status_for_each():
    scarce = Budget(queues=1, processors={1: 2}, locked_memory=BUDGET.locked_memory)
    with Serving(budget=scarce) as serving, serving.client() as client:
        first, second = (queue(client, complete=False) for _ in range(2))
        batch = [first, second, first, 99]
        done = client.ask("queue_allocation_complete", owner="a", queues=batch)
        assert [one["queue"] for one in done] == batch
        refused = ["INVALID_PARAMETER"] * 2
        assert [one["status"] for one in done] == ["SUCCESS", "RESOURCES", *refused]
        assert done[1]["why"] == "all 1 receive queues are taken"
        assert client.ask("queue_parameters", queue=second)["why"] == done[1]["why"]


def test_what_is_full_is_a_failure_and_what_is_off_not_supported():
    with Serving(queues_max=1, filters_max=1) as serving, serving.client() as client:
        queue(client, complete=False)
        assert client.status("allocate_queue", owner="a") == "FAILURE"
        client.ask("set_filter", owner="a", queue=0, filter=words(1))
        assert client.status("set_filter", owner="a", queue=0, filter=words(2)) == "FAILURE"
        serving.do(serving.bench.contract.change_capabilities, serving.bench.hardware, OFF)
        assert client.status("allocate_queue", owner="a") == "NOT_SUPPORTED"
        assert client.status("set_filter", owner="a", queue=0, filter=words(2)) == "NOT_SUPPORTED"


# --- owners


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("allocate_queue", {}),
        ("queue_allocation_complete", {"queues": [1]}),
        ("set_queue_parameters", {"queue": 1, "parameters": {}}),
        ("free_queue", {"queue": 1}),
        ("set_filter", {"queue": 0, "filter": words(7)}),
        ("clear_filter", {"filter": 1}),
        ("move_filter", {"filter": 1, "queue": 1}),
        ("reset_statistics", {"queue": 1}),
    ],
)
def test_nobody_changes_anything_in_the_name_of_another_connection_or_of_the_file(
    serving: Serving, client: Client, method: str, params: dict[str, Any]
):
    """In the operation's own status; its own connection may, and need not say who it is."""
    with serving.client() as other:
        assert client.ask("claim_owner", owner="a") == {"owner": "a"}
        number = client.ask("allocate_queue")["queue"]
        client.ask("queue_allocation_complete", queues=[number])
        client.ask("set_filter", queue=0, filter=words())
        before = serving.everything()
        for owner, remedy in (("a", "use a name of your own"), ("config", "SIGHUP")):
            error = other.say(method, owner=owner, **params)["error"]
            expected = "FILE_NOT_FOUND" if method == "clear_filter" else "INVALID_PARAMETER"
            assert (error["status"], remedy in error["remedy"]) == (expected, True)
        assert serving.everything() == before
        assert client.status(method, **params) == "SUCCESS"


def test_a_change_needs_somebody_who_asks(client: Client):
    """A query does not: it is the administrator's."""
    assert client.say("allocate_queue")["error"]["message"] == "ALLOCATE_QUEUE: nobody asks"
    assert client.status("enum_queues") == "SUCCESS"
    assert client.status("reset_statistics", queue=0) == "SUCCESS"


def test_a_claimed_owner_is_not_the_administrator(serving: Serving, client: Client):
    """Neither by leaving its name out, nor for what is everybody's."""
    theirs = queue(client, "b")
    with serving.client() as mine:
        mine.ask("claim_owner", owner="m")
        own = mine.ask("allocate_queue")["queue"]
        before = serving.everything()
        for number in (0, DROP_QUEUE, theirs):
            assert mine.status("reset_statistics", queue=number) == "INVALID_PARAMETER"
        error = mine.say("reset")["error"]
        assert (error["status"], "'m'" in error["message"]) == ("INVALID_PARAMETER", True)
        assert serving.everything() == before
        assert mine.status("reset_statistics", queue=own) == "SUCCESS"
    assert client.status("reset_statistics", queue=0) == client.status("reset") == "SUCCESS"


def test_an_owner_is_bound_to_one_connection_and_a_connection_to_one_owner(serving: Serving, client: Client):
    with serving.client() as other:
        for _ in range(2):
            assert client.ask("claim_owner", owner="a") == {"owner": "a"}
        assert client.status("claim_owner", owner="b") == "INVALID_PARAMETER"
        assert other.status("claim_owner", owner="a") == "INVALID_PARAMETER"
        for name in ("config", "", "x" * 257, "a\n"):
            assert other.status("claim_owner", owner=name) == "INVALID_PARAMETER"
        assert other.status("claim_owner", owner="b") == "SUCCESS"
    client.close()
    with serving.client() as later:
        until(lambda: later.status("claim_owner", owner="a") == "SUCCESS")


@pytest.mark.parametrize(
    "last",
    [b"", b'{"api":1,"method":"free_q', b"nonsense\n", b"x" * (3 << 20), b'{"api":1,"method":"subscribe"}\n'],
)
def test_when_a_connection_ends_all_of_its_owner_is_taken_down_everywhere(last: bytes):
    """Filters first, in every contract, however it ends; others keep what they have, and so does a lasting owner."""
    with Serving("lan", "") as serving, serving.client() as other:
        for uplink in ("lan", ""):
            kept = other.ask("allocate_queue", uplink=uplink, owner="lasting")["queue"]
        before = {name: bench.everything()[:2] for name, bench in serving.benches.items()}
        client = serving.client()
        client.ask("claim_owner", owner="a")
        for uplink in ("lan", ""):
            number = client.ask("allocate_queue", uplink=uplink)["queue"]
            client.ask("queue_allocation_complete", uplink=uplink, queues=[number])
            client.ask("set_filter", uplink=uplink, queue=number, filter=words(1))
            client.ask("set_filter", uplink=uplink, queue=0, filter=words(2))
            client.ask("set_filter", uplink=uplink, queue=number, filter=words(3))
        with contextlib.suppress(BrokenPipeError):  # of a line that is too long not all is read
            client.raw(last)
        client.close()
        until(lambda: not serving.of_contracts.owners._claimed)
        assert {name: bench.everything()[:2] for name, bench in serving.benches.items()} == before
        assert other.ask("queue_parameters", uplink="lan", queue=kept)["owner"] == "lasting"


def test_buffers_that_are_out_when_the_owner_goes_come_back_later(serving: Serving, client: Client):
    """It never fails: the receive queue waits for them, as with any other that is freed."""
    mine = serving.client()
    mine.ask("claim_owner", owner="a")
    number = mine.ask("allocate_queue")["queue"]
    mine.ask("queue_allocation_complete", queues=[number])
    serving.bench.double.out[number] = 2
    mine.close()
    until(lambda: serving.bench.step(number) == "Freeing")
    assert client.status("claim_owner", owner="a") == "SUCCESS"
    serving.bench.double.out.clear()
    serving.do(serving.bench.contract.progress, number)
    assert [row["queue"] for row in client.ask("enum_queues")] == [0]


def test_an_owner_that_was_there_is_bound_with_all_that_it_had(serving: Serving, client: Client):
    """What a command has set can be handed to a program."""
    queue(client)
    mine = serving.client()
    mine.ask("claim_owner", owner="a")
    assert len(client.ask("enum_queues")) == 2
    mine.close()
    until(lambda: len(client.ask("enum_queues")) == 1)


def test_a_fault_in_one_contract_keeps_no_other(caplog: pytest.LogCaptureFixture):
    with Serving("lan", "wan") as serving, serving.client() as other:
        mine = serving.client()
        mine.ask("claim_owner", owner="a")
        for uplink in ("lan", "wan"):
            mine.ask("allocate_queue", uplink=uplink)

        def broken(_: str) -> None:
            raise KeyError("ours")

        serving.benches["lan"].contract.release_owner = broken  # type: ignore[method-assign,assignment]
        mine.close()
        until(lambda: len(other.ask("enum_queues", uplink="wan")) == 1)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


# --- a real engine


def test_an_engine_answers_as_it_is_declared(tmp_path: Path):
    """Allocated, running, gone with its connection; every record has the members that the schema gives it."""
    more = '[vm.c]\nmac = "52:54:00:00:00:33"\nqueue_pairs = 2'
    with Process(tmp_path) as process:
        process.write("a", more=more).start().ready()
        with Client(process.api) as looks:
            before = looks.ask("enum_queues")
            mine = Client(process.api)
            mine.ask("claim_owner", owner="x")
            number = mine.ask("allocate_queue", parameters={"vm": "c"})["queue"]
            (done,) = mine.ask("queue_allocation_complete", queues=[number])
            assert done["status"] == "SUCCESS"
            mine.ask("set_filter", queue=number, filter=words(7))
            mine.ask("set_queue_parameters", queue=number, parameters={"name": "y"})
            rows = msgspec.convert(looks.ask("enum_queues"), list[answers.QueueRecord])
            assert [(row.owner, row.name, row.state) for row in rows][-1] == ("x", "y", "Running")
            msgspec.convert(looks.ask("enum_filters"), list[answers.FilterRecord])
            mine.raw(b'{"api": 1, "method": "free_qu')
            mine.close()
            until(lambda: looks.ask("enum_queues") == before)
            assert looks.ask("schema") == SCHEMA
            told = msgspec.convert(looks.ask("events"), list[answers.AnyEvent])
            assert any(isinstance(one, answers.DmaStopped) and one.queue == number for one in told)
            with Client(process.api) as stream:
                stream.ask("subscribe", since=0)
                read = [stream.line()["event"] for _ in told]
            assert read == looks.ask("events")
        assert process.end() == 0
        assert "fault" not in process.log


# --- any nonsense


@pytest.fixture(scope="module")
def arena() -> Iterator[Serving]:
    with Serving("lan", queues_max=12, filters_max=12) as serving:
        yield serving


@st.composite
def requests(draw: st.DrawFn, methods: list[str]) -> tuple[str, Any]:
    """A method and parameters that its schema allows, or nearly."""
    method = draw(st.sampled_from(methods))
    good = allowed(SCHEMA["methods"][method]["params"], SCHEMA["$defs"])
    return method, draw(good | nearly(good) | st.dictionaries(st.text(max_size=3), ANYTHING, max_size=3))


@given(asked=st.lists(requests(list(METHODS)), max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_request_gets_a_documented_answer_and_a_refused_one_changes_nothing(
    arena: Serving, asked: list[tuple[str, Any]]
):
    """Of whatever form, in whatever order; what is left by one is what the next one meets."""
    arena.do(arena.bench.forget)
    with arena.client() as client:
        for method, params in asked:
            before = arena.everything()
            answer = client.say(method, **{str(name): value for name, value in params.items()})
            if "error" in answer:
                assert answer["error"]["status"] in METHODS[method].statuses, (method, params, answer)
                assert answer["error"]["message"] != "the engine failed to answer", (method, params)
                assert arena.everything() == before
            elif method == "subscribe":
                break
    until(lambda: not arena.of_contracts.owners._claimed)


@given(
    line=st.binary(max_size=80)
    | requests(OPERATIONS).flatmap(
        lambda one: st.tuples(
            st.just(json.dumps({"api": 1, "method": one[0], "params": one[1]}).encode()),
            st.integers(0, 200),
            st.binary(max_size=3),
        ).map(lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + 1 :])
    )
)
@settings(max_examples=150, deadline=None)
def test_any_line_gets_one_answer(arena: Serving, line: bytes):
    """Bytes, and requests that were spoiled somewhere."""
    line = line.replace(b"\n", b"")
    with arena.client() as client:
        client.raw(line + b"\n")
        answer = client.line()
        if "error" in answer:
            assert answer["error"]["message"] != "the engine failed to answer"
            assert answer["error"]["status"] in {"NOT_SUPPORTED", "NOT_FOUND"}.union(
                *(declared.statuses for declared in METHODS.values())
            )
        if b"subscribe" not in line:
            assert client.say("ping") == {"result": {"pid": 1, "compiled_after_start": []}}


class Clients(RuleBasedStateMachine):
    """Two programs that come and go, and an owner that lasts, against a model that only knows who has what."""

    owners = st.sampled_from(["a", "b", "lasting"])
    picks = st.integers(0, 20)

    def __init__(self) -> None:
        super().__init__()
        self.serving = Serving("lan")
        self.looks = self.serving.client()
        self.clients: dict[str, Client] = {}
        self.queues: dict[int, str] = {}
        self.complete: set[int] = set()
        self.filters: dict[int, tuple[str, int]] = {}  # owner, receive queue
        self.last = 0

    def teardown(self) -> None:
        for client in [self.looks, *self.clients.values()]:
            client.close()
        self.serving.__exit__()

    def of(self, owner: str) -> tuple[Client, dict[str, str]]:
        """A connection that may ask for the owner, and how."""
        if owner == "lasting":
            return self.looks, {"owner": owner}
        if owner not in self.clients:
            self.clients[owner] = self.serving.client()
            self.clients[owner].ask("claim_owner", owner=owner)
        return self.clients[owner], {}

    def pick(self, pick: int, ids: dict[int, Any]) -> int:
        return [*ids, 99][pick % (len(ids) + 1)]

    @rule(owner=owners)
    def allocate(self, owner: str) -> None:
        client, named = self.of(owner)
        self.queues[client.ask("allocate_queue", **named)["queue"]] = owner

    @rule(owner=owners, pick=picks)
    def finish(self, owner: str, pick: int) -> None:
        number = self.pick(pick, self.queues)
        client, named = self.of(owner)
        (done,) = client.ask("queue_allocation_complete", queues=[number], **named)
        mine = self.queues.get(number) == owner and number not in self.complete
        room = len(self.complete) < BUDGET.queues
        assert done["status"] == ("INVALID_PARAMETER" if not mine else "SUCCESS" if room else "RESOURCES")
        if mine and room:
            self.complete.add(number)

    @rule(owner=owners, pick=picks)
    def free(self, owner: str, pick: int) -> None:
        number = self.pick(pick, self.queues)
        client, named = self.of(owner)
        may = self.queues.get(number) == owner and all(on != number for _, on in self.filters.values())
        assert client.status("free_queue", queue=number, **named) == (
            "SUCCESS" if may else "INVALID_PARAMETER"
        )
        if may:
            del self.queues[number]
            self.complete.discard(number)

    @rule(owner=owners, pick=picks)
    def set(self, owner: str, pick: int) -> None:
        number = self.pick(pick, {0: "", **self.queues})
        client, named = self.of(owner)
        self.last += 1
        tests = [{"field": "mac_destination", "value": 2 + (self.last << 8)}]
        answer = client.say("set_filter", queue=number, filter={"tests": tests}, **named)
        assert ("result" in answer) == (number == 0 or self.queues.get(number) == owner)
        if "result" in answer:
            self.filters[answer["result"]["filter"]] = (owner, number)

    @rule(owner=owners, pick=picks)
    def clear(self, owner: str, pick: int) -> None:
        number = self.pick(pick, self.filters)
        client, named = self.of(owner)
        may = self.filters.get(number, ("", 0))[0] == owner
        assert client.status("clear_filter", filter=number, **named) == (
            "SUCCESS" if may else "FILE_NOT_FOUND"
        )
        if may:
            del self.filters[number]

    @rule(owner=st.sampled_from(["a", "b"]), cut=st.sampled_from([b"", b'{"api":1', b"x\n"]))
    def leave(self, owner: str, cut: bytes) -> None:
        """The program is killed, perhaps in the middle of a line."""
        if owner in self.clients:
            client = self.clients.pop(owner)
            client.raw(cut)
            client.close()
            until(lambda: owner not in self.serving.of_contracts.owners._claimed)
            self.queues = {number: whose for number, whose in self.queues.items() if whose != owner}
            self.complete &= set(self.queues)
            self.filters = {number: one for number, one in self.filters.items() if one[0] != owner}

    @rule(owner=st.sampled_from(["a", "b"]))
    def pretend(self, owner: str) -> None:
        """To be somebody who is there."""
        if owner in self.clients:
            assert self.looks.status("allocate_queue", owner=owner) == "INVALID_PARAMETER"

    @invariant()
    def all_is_as_the_model_has_it(self) -> None:
        rows = self.looks.ask("enum_queues")
        assert {row["queue"]: row["owner"] for row in rows} == {0: "", **self.queues}
        assert {row["queue"] for row in rows if row["effective"]} == self.complete
        listed = self.looks.ask("enum_filters")
        assert {row["filter"]: (row["owner"], row["queue"]) for row in listed} == self.filters


def test_clients_that_come_and_go_in_any_order():
    run_state_machine_as_test(
        Clients, settings=settings(max_examples=30, stateful_step_count=25, deadline=None)
    )
