# SPDX-License-Identifier: Apache-2.0
"""Owners of connections, without any: who may be whom, and what is done when one goes."""

from __future__ import annotations

import pytest

from vmq.contract import Operation
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
