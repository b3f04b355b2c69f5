# SPDX-License-Identifier: Apache-2.0
"""Parameters: what is none is refused by name, and nothing is guessed; and any nonsense over the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.control.from_schema import ANYTHING, allowed, nearly
from tests.control.serving import Serving, until
from vmq.contract import Parameters
from vmq.contract.parameters import CHANGEABLE, Moderation
from vmq.control import requests
from vmq.control.requests import understood
from vmq.control.schema import METHODS, schema
from vmq.errors import ApiError

SCHEMA = schema()
OPERATIONS = [name for name, declared in METHODS.items() if declared.operation or name == "reset"]


@pytest.mark.parametrize(
    ("form", "params", "words"),
    [
        (requests.Ping, {"x": 1}, "unknown field `x`"),
        (requests.Show, {"what": 1}, "`$.what`"),
        (requests.ClaimOwner, {}, "required field `owner`"),
        (requests.FreeQueue, {"queue": True}, "`$.queue`"),
        (requests.FreeQueue, {"queue": "1"}, "`$.queue`"),
        (requests.FreeQueue, {"queue": 1.0}, "`$.queue`"),
        (requests.QueueAllocationComplete, {"queues": 1}, "`$.queues`"),
        (requests.AllocateQueue, {"weight": 1}, "unknown field `weight`"),
        (requests.AllocateQueue, {"parameters": {"wait": 1}}, "unknown field `wait`"),
        (requests.SetQueueParameters, {"queue": 1}, "required field `parameters`"),
        (requests.SetQueueParameters, {"queue": 1, "parameters": {"vm": "x"}}, "unknown field `vm`"),
        (requests.Ping, {"\ud800": 1}, "surrogates"),
        *((requests.Events, {"since": since}, "`$.since`") for since in ("3", 1.5, None, True)),
    ],
)
def test_what_is_not_declared_is_refused_with_its_name(
    form: type[requests.Request], params: dict[str, Any], words: str
):
    with pytest.raises(ApiError) as refused:
        understood("a_method", form, params)
    assert refused.value.status == "INVALID_PARAMETER"
    assert refused.value.wrong.startswith("a_method: ")
    assert words in refused.value.wrong
    assert refused.value.remedy.startswith("a_method takes ")


def test_the_remedy_names_what_a_method_takes():
    with pytest.raises(ApiError) as refused:
        understood("free_queue", requests.FreeQueue, {})
    assert refused.value.remedy.startswith("free_queue takes uplink, owner, queue; ")
    with pytest.raises(ApiError, match="ping takes no parameters; "):
        understood("ping", requests.Ping, {"x": 1})


@pytest.mark.parametrize(
    ("spoiled", "remedy"),
    [
        ({"tests": [{"field": "foo", "value": 1}]}, "field: one of mac_destination, mac_source, ethertype, "),
        (
            {"tests": [{"field": "vlan_id", "kind": "is", "value": 1}]},
            "kind: one of equal, not_equal, mask_equal",
        ),
        ({"tests": [], "flags": ["x"]}, "flags: one of vlan_untagged_or_zero, encapsulation"),
    ],
)
def test_a_word_that_is_none_is_answered_with_those_that_there_are(spoiled: dict[str, Any], remedy: str):
    with pytest.raises(ApiError) as refused:
        understood("set_filter", requests.SetFilter, {"queue": 8, "filter": spoiled})
    assert refused.value.remedy.startswith(remedy)


def test_a_change_has_the_members_that_may_change_and_none_of_its_own():
    """Left out and null are not the same: null is any processor."""
    members = {field.name: field.type for field in msgspec.structs.fields(Parameters)}
    members["moderation"] = requests.ModerationChanges
    for field in msgspec.structs.fields(requests.Changes):
        assert field.default is msgspec.UNSET
        assert field.type == members[field.name] | msgspec.UnsetType
    halves = msgspec.structs.fields(requests.ModerationChanges)
    assert [field.name for field in halves] == list(Moderation.__struct_fields__)
    assert all(field.default is msgspec.UNSET for field in halves)
    assert {field.name for field in msgspec.structs.fields(requests.Changes)} == set(CHANGEABLE)


def test_every_form_says_what_it_is_for():
    """Its docstring is the description in the schema."""
    forms = [
        one for one in vars(requests).values() if isinstance(one, type) and issubclass(one, requests.Request)
    ]
    assert len(forms) > 20
    assert all(form.__doc__ for form in forms)


# --- any nonsense


@pytest.fixture(scope="module")
def arena() -> Iterator[Serving]:
    with Serving("lan", queues_max=12, filters_max=12) as serving:
        yield serving


@st.composite
def questions(draw: st.DrawFn, methods: list[str]) -> tuple[str, Any]:
    """A method and parameters that its schema allows, or nearly."""
    method = draw(st.sampled_from(methods))
    good = allowed(SCHEMA["methods"][method]["params"], SCHEMA["$defs"])
    return method, draw(good | nearly(good) | st.dictionaries(st.text(max_size=3), ANYTHING, max_size=3))


@given(asked=st.lists(questions(list(METHODS)), max_size=8))
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
    | questions(OPERATIONS).flatmap(
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
