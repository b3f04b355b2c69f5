# SPDX-License-Identifier: Apache-2.0
"""Members of a receive queue: limits, and what may change."""

from __future__ import annotations

import pytest

from vmq.contract.parameters import CHANGEABLE, NAME_MAX, Moderation, Parameters, changed, parameters
from vmq.errors import ApiError

FULL = {
    "name": "web-0",
    "vm": "web",
    "processor": 2,
    "suggested_buffers": 512,
    "weight": 50,
    "moderation": {"indications": 8000, "frames": 32},
}


def status(call, *values) -> str:
    with pytest.raises(ApiError) as refused:
        call(*values)
    assert str(refused.value)
    return refused.value.status


def test_what_is_given_is_what_is_asked_for():
    asked = parameters(FULL)
    assert asked == Parameters(
        name="web-0",
        vm="web",
        processor=2,
        suggested_buffers=512,
        weight=50,
        moderation=Moderation(indications=8000, frames=32),
    )
    assert parameters({}) == Parameters()


@pytest.mark.parametrize(
    "values",
    [
        {"weight": 101},
        {"weight": -1},
        {"weight": True},
        {"weight": "7"},
        {"suggested_buffers": 0},
        {"suggested_buffers": 65537},
        {"processor": -1},
        {"processor": 1.5},
        {"moderation": {"frames": -1}},
        {"moderation": {"colour": 1}},
        {"moderation": 5},
        {"name": 5},
        {"name": None},
        {"unheard_of": 1},
        {"lookahead_size": 64},
        {"lookahead_size": -1},
    ],
)
def test_a_member_that_cannot_be_is_refused(values):
    """NDIS_RECEIVE_QUEUE_PARAMETERS; a lookahead size without the flag is invalid."""
    assert status(parameters, values) == "INVALID_PARAMETER"


@pytest.mark.parametrize("member", ["name", "vm"])
def test_a_name_that_is_too_long_has_a_status_of_its_own(member):
    assert status(parameters, {member: "x" * (NAME_MAX + 1)}) == "INVALID_LENGTH"
    assert getattr(parameters({member: "x" * NAME_MAX}), member) == "x" * NAME_MAX


def test_lookahead_split_is_refused_in_words():
    """S6: not silently ignored."""
    assert status(parameters, {"lookahead_split": True, "lookahead_size": 64}) == "NOT_SUPPORTED"


def test_a_change_leaves_the_members_that_it_does_not_name():
    before = parameters(FULL)
    after = changed(before, {"weight": 7})
    assert after == parameters({**FULL, "weight": 7})
    assert changed(before, {}) == before
    assert changed(before, {"processor": None}).processor is None


def test_one_half_of_moderation_leaves_the_other():
    """Both ways, and a member of it that is none is refused with the whole change."""
    before = parameters({**FULL, "moderation": {"indications": 9, "frames": 4}})
    for half, whole in (
        ({"indications": 7}, Moderation(indications=7, frames=4)),
        ({"frames": 0}, Moderation(indications=9, frames=0)),
        ({}, Moderation(indications=9, frames=4)),
        (Moderation(frames=1), Moderation(indications=0, frames=1)),
    ):
        assert changed(before, {"moderation": half}).moderation == whole
    for wrong in ({"frame": 1}, {"frames": -1}, None):
        assert status(changed, before, {"moderation": wrong}) == "INVALID_PARAMETER"


@pytest.mark.parametrize("member", sorted(set(Parameters.__struct_fields__) - set(CHANGEABLE)))
def test_what_must_stay_cannot_be_changed(member):
    """Only members with a _CHANGED flag may change, and what vmq adds to them."""
    assert status(changed, parameters(FULL), {member: "x"}) == "INVALID_PARAMETER"
    assert status(changed, parameters(FULL), {"weight": 1, member: "x"}) == "INVALID_PARAMETER"


@pytest.mark.parametrize("member", CHANGEABLE)
def test_a_changed_value_has_the_same_limits(member):
    assert status(changed, parameters(FULL), {member: object()}) == "INVALID_PARAMETER"


def test_a_changed_name_may_be_too_long_too():
    assert status(changed, parameters(FULL), {"name": "x" * 1000}) == "INVALID_LENGTH"
