# SPDX-License-Identifier: Apache-2.0
"""The operations over a real socket: what they do, every status by its cause, and who has an address that two want."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.contract.double import BUDGET
from tests.control.daemon import Process
from tests.control.serving import Client, Serving, queue, until, words
from tests.engine.running import MACS, PATIENCE, Running, frame
from vmq.contract import DEFAULT_QUEUE, DROP_QUEUE, Budget, Capabilities, Property
from vmq.contract.contract import QUEUES_MAX
from vmq.control import answers
from vmq.control.contracts import Contracts
from vmq.control.requests import understood
from vmq.control.schema import METHODS, schema
from vmq.control.session import Session
from vmq.errors import ApiError, ConfigError
from vmq.filters import Capabilities as FilterCapabilities
from vmq.filters import Field
from vmq.guest.guest import Guest

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
            assert looks.ask("schema") == schema()
            told = msgspec.convert(looks.ask("events"), list[answers.AnyEvent])
            assert any(isinstance(one, answers.DmaStopped) and one.queue == number for one in told)
            with Client(process.api) as stream:
                stream.ask("subscribe", since=0)
                read = [stream.line()["event"] for _ in told]
            assert read == looks.ask("events")
        assert process.end() == 0
        assert "fault" not in process.log


# --- one address, wanted by a client and by the configuration


class Engine:
    """The operations of the API on an engine that runs here, for a client "x" that is no connection."""

    def __init__(self, folder: Path) -> None:
        self.running = Running(folder)
        self._functions = Contracts(self.running.engine).functions()

    def ask(self, method: str, **params: Any) -> Any:
        asked = understood(method, METHODS[method].form, {"owner": "x", **params})
        return self.running.do(self._functions[method], Session(), asked)

    def filter(self, queue: int, last: int, **more: Any) -> int:
        number: int = self.ask("set_filter", queue=queue, filter=words(last) | more)["filter"]
        return number

    def taken(self, vm: str) -> str:
        """What `vmq show settings` says of the addresses of a VM that are another's."""
        rows = self.running.show("settings")
        return next(str(row["why"]) for row in rows if (row["of"], row["name"]) == (f"vm {vm}", "filters"))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """VMs a and b; the client has a receive queue of VM c, which has none for its addresses."""
    one = Engine(tmp_path)
    with one.running as running:
        running.configure(
            a=running.vm("a", 1), b=running.vm("b", 2), c=running.vm("c", 3, queue_pairs=2, weight=0)
        )
        yield one


def test_priority_decides_between_a_client_and_the_configuration(engine: Engine):
    """The configuration has 0. The same: refused. Higher: the client's. Lower: none of it. And back, when it is cleared."""
    running = engine.running
    mine = engine.ask("allocate_queue", parameters={"vm": "c"})["queue"]
    engine.ask("queue_allocation_complete", queues=[mine])
    with running.guest("a") as a, running.guest("b") as b, running.guest("c", queues=2) as c:
        until(lambda: running.show("vms", "c")["queues_running"] == 2)

        def sent(number: int, to: Guest) -> None:
            """The frame arrives there, and nowhere else."""
            one = frame(MACS[1], MACS[0], number)
            a.send([one])
            assert to.receive(1, PATIENCE) == [one]
            until(lambda: sum(row["frames_to_guest"] for row in running.show("vms")) == number)

        # Also where nobody would get it, and for another receive queue of the VM itself.
        for queue, last in ((mine, 2), (DEFAULT_QUEUE, 2), (DROP_QUEUE, 2), (mine, 3)):
            with pytest.raises(ApiError, match=r"filter \d+ of config, of another receive queue") as refused:
                engine.filter(queue, last)
            assert refused.value.status == "INVALID_PARAMETER"
        sent(1, b)

        lower = engine.filter(mine, 2, priority=-1)
        sent(2, b)
        assert engine.taken("b") == ""
        higher = engine.filter(mine, 2, priority=1)
        sent(3, c)
        assert engine.taken("b") == f"filter {higher} of owner x (priority 1) takes all frames to {MACS[1]}"
        engine.ask("clear_filter", filter=higher)
        engine.ask("clear_filter", filter=lower)
        sent(4, b)
        assert engine.taken("b") == ""


def test_an_address_that_a_client_has_is_refused_to_a_configuration_that_comes_later(engine: Engine):
    """The old one stays in force whole; the error names the filter, and what to do. Another priority is no quarrel."""
    running = engine.running
    vms = {name: vm.config for name, vm in running.engine.vms.items()}
    number = engine.filter(DROP_QUEUE, 9)
    before = running.show("filters")
    for changed in ({"d": running.vm("d", 9)}, {"a": running.vm("a", mac=(MACS[0], MACS[8]))}):
        with pytest.raises(ConfigError) as refused:
            running.configure(**vms | changed)
        assert f"filter {number} of x" in refused.value.wrong
        assert f"vmq filter clear {number} --owner x" in refused.value.remedy
        assert running.show("filters") == before

    engine.ask("clear_filter", filter=number)
    number = engine.filter(DROP_QUEUE, 9, priority=1)
    running.configure(**vms | {"d": running.vm("d", 9)})
    assert engine.taken("d").startswith(f"filter {number} of owner x (priority 1) takes all frames")
