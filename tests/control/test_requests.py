# SPDX-License-Identifier: Apache-2.0
"""Parameters: what is none is refused by name, and nothing is guessed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from vmq.contract import Parameters
from vmq.contract.parameters import CHANGEABLE, Moderation
from vmq.control import requests
from vmq.control.requests import understood
from vmq.errors import ApiError


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
