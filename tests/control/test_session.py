# SPDX-License-Identifier: Apache-2.0
"""Owners of connections: who may be whom, and what is done when one goes; without connections, over the API, in any order."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.contract.double import BUDGET
from tests.control.serving import Client, Serving, queue, until, words
from vmq.contract import DROP_QUEUE, Operation
from vmq.control.server import CLIENTS_MAX
from vmq.control.session import OWNERS_MAX, STREAMS_MAX, Owners, Session, subscribe
from vmq.engine.journal import Journal
from vmq.errors import ApiError


def test_an_owner_is_released_once_when_its_session_ends():
    """And its name is free."""
    gone: list[str] = []
    owners, session, other = Owners(gone.append), Session(), Session()
    owners.claim(session, "a")
    owners.claim(session, "a")
    assert session.may_be_silent
    session.leaving.close()
    assert gone == ["a"]
    owners.claim(other, "a")
    assert owners.changing(Operation.FREE_QUEUE, other, None) == "a"


def test_a_session_without_an_owner_names_one_that_is_free():
    owners, session = Owners(lambda _: None), Session()
    assert owners.changing(Operation.FREE_QUEUE, session, "cli") == "cli"
    assert not session.may_be_silent
    with pytest.raises(ApiError, match="nobody asks"):
        owners.changing(Operation.FREE_QUEUE, session, None)


@pytest.mark.parametrize(
    ("operation", "status"),
    [(Operation.CLEAR_FILTER, "FILE_NOT_FOUND"), (Operation.SET_FILTER, "INVALID_PARAMETER")],
)
def test_somebody_else_s_name_is_refused_in_the_operation_s_status(operation: Operation, status: str):
    owners, session = Owners(lambda _: None), Session()
    owners.claim(Session(), "a")
    for name in ("a", "config"):
        with pytest.raises(ApiError) as refused:
            owners.changing(operation, session, name)
        assert refused.value.status == status


def test_a_stream_is_closed_with_its_session():
    journal, session = Journal(), Session()
    assert subscribe(journal, session, 0) == {"number": 0}
    assert session.stream
    assert len(journal.watchers) == 1
    session.leaving.close()
    assert journal.watchers == []


def test_owners_and_streams_leave_room_for_others():
    """Together they are fewer than the connections that a server has."""
    owners, journal = Owners(lambda _: None), Journal()
    sessions = [Session() for _ in range(OWNERS_MAX)]
    for number, session in enumerate(sessions):
        owners.claim(session, str(number))
        subscribe(journal, session, 0)
    for refused in (lambda: owners.claim(Session(), "one more"), lambda: subscribe(journal, Session(), 0)):
        with pytest.raises(ApiError) as error:
            refused()
        assert error.value.status == "RESOURCES"
    owners.claim(sessions[0], "0")
    sessions[0].leaving.close()
    owners.claim(Session(), "one more")
    subscribe(journal, Session(), 0)
    assert OWNERS_MAX + STREAMS_MAX < CLIENTS_MAX


# --- over the API


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


# --- in any order


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
