# SPDX-License-Identifier: Apache-2.0
"""The description of the API: whole, JSON, and what is accepted is what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.control.from_schema import allowed
from tests.control.serving import Serving
from vmq.contract import STATUSES
from vmq.control.requests import understood
from vmq.control.schema import MEANINGS, METHODS, NOT_ANSWERED, bound, schema

SCHEMA = schema()
REQUESTED = {"ping", "schema", "show", "explain", "events", "subscribe", "claim_owner"}


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_it_is_answered_over_the_socket_and_needs_no_engine():
    with Serving() as serving, serving.client() as client:
        assert client.ask("schema") == SCHEMA
    assert SCHEMA["api"] == 1
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def test_every_method_is_described():
    """Those of receive queues have the name of their operation."""
    assert set(SCHEMA["methods"]) == set(METHODS) >= REQUESTED
    for says in SCHEMA["methods"].values():
        assert says["description"].endswith(".")
        assert says["params"]
        assert says["result"]
    assert {says["operation"] for says in SCHEMA["methods"].values()} - {None} == {
        operation.value for operation in STATUSES
    }


def test_every_reference_leads_somewhere():
    assert references(SCHEMA) <= {f"#/$defs/{name}" for name in SCHEMA["$defs"]}


def test_statuses_are_those_of_the_contract_and_have_a_meaning():
    """Without those that vmq never answers; PENDING of one operation only."""
    for name, says in SCHEMA["methods"].items():
        assert set(says["statuses"]) <= set(MEANINGS)
        assert not NOT_ANSWERED & set(says["statuses"])
        assert ("PENDING" in says["statuses"]) == (name == "free_queue")
        assert {"SUCCESS", "INVALID_PARAMETER", "FAILURE"} <= set(says["statuses"])
    assert "FILE_NOT_FOUND" in SCHEMA["methods"]["clear_filter"]["statuses"]


def test_parameters_are_closed():
    """A word that is misspelt is not ignored."""
    for says in SCHEMA["methods"].values():
        record = SCHEMA["$defs"][says["params"]["$ref"].rpartition("/")[2]]
        assert record["additionalProperties"] is False


@given(st.data())
@settings(deadline=None)
def test_what_the_schema_allows_is_understood(data: st.DataObject):
    method = data.draw(st.sampled_from(list(METHODS)))
    params = data.draw(allowed(SCHEMA["methods"][method]["params"], SCHEMA["$defs"]))
    understood(method, METHODS[method].form, params)


def test_what_is_declared_has_a_function_and_nothing_else_has():
    functions = dict.fromkeys(METHODS, lambda _, __: None)
    assert list(bound(functions)) == list(METHODS)
    for wrong in (functions | {"more": lambda _, __: None}, {"ping": functions["ping"]}):
        with pytest.raises(ValueError, match="not both declared and bound"):
            bound(wrong)
