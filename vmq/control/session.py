# SPDX-License-Identifier: Apache-2.0
"""A connection as methods see it, and the owners that are bound to one.

An owner of receive queues and filters is a name. Whoever may open the socket may use any name that is free, and what
it sets stays when it hangs up: that is for commands, whose owner ("cli") lasts. A program that must not leave anything
behind claims its name first. Then

    nobody else      changes anything in its name
    its connection   is not closed for its silence
    its end          takes down all that is the owner's, in every contract: a normal end, a crash, half a request

An owner that was there before and is claimed is bound from then on, with all that it had. A connection has one owner.
Nobody is "config": what the configuration file set is changed there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from vmq.contract import CONFIG, Operation
from vmq.contract.parameters import NAME_MAX
from vmq.contract.status import refusal
from vmq.control.stream import Stream, Telling
from vmq.engine.journal import Journal
from vmq.errors import ApiError

# Connections that may be silent for ever; the server has room for others (CLIENTS_MAX), so that a person gets in.
OWNERS_MAX = STREAMS_MAX = 24
RELOAD = "change it in the configuration file, and let vmq run read that again: SIGHUP"


class Session:
    """One connection: who it is, what it gets from now on, and what is done when it has gone."""

    def __init__(self) -> None:
        self.owner: str | None = None
        self.stream: Telling | None = None  # if there is one, nothing else is answered
        self.leaving = ExitStack()

    @property
    def may_be_silent(self) -> bool:
        return self.owner is not None


def subscribe(journal: Journal, session: Session, since: int) -> dict[str, int]:
    """Make the connection a stream of events."""
    if len(journal.watchers) >= STREAMS_MAX:
        raise ApiError("RESOURCES", f"subscribe: {STREAMS_MAX} streams are open", "end one of them")
    stream = session.stream = Stream(journal, since)
    session.leaving.callback(stream.close)
    return {"number": stream.number}


class Owners:
    """Which connection an owner is bound to; `release` takes down what is an owner's, and does not fail."""

    def __init__(self, release: Callable[[str], None]) -> None:
        self._release = release
        self._claimed: dict[str, Session] = {}

    def claim(self, session: Session, owner: str) -> None:
        """Bind the owner to the connection, until that ends."""
        if not (0 < len(owner) <= NAME_MAX and owner.isprintable()):
            wrong = f"claim_owner: owner: {owner[:80]!r}"
            raise ApiError("INVALID_PARAMETER", wrong, f"a name of 1 to {NAME_MAX} printable characters")
        if owner == CONFIG:
            raise ApiError("INVALID_PARAMETER", f"claim_owner: {CONFIG} is the configuration file", RELOAD)
        if session.owner not in (None, owner):
            wrong = f"claim_owner: this connection is {session.owner!r} already"
            raise ApiError("INVALID_PARAMETER", wrong, "open another connection for another owner")
        if self._claimed.get(owner, session) is not session:
            wrong = f"claim_owner: {owner!r} is another connection's"
            raise ApiError("INVALID_PARAMETER", wrong, "use another name, or wait until that one has gone")
        if session.owner is None:
            if len(self._claimed) >= OWNERS_MAX:
                raise ApiError(
                    "RESOURCES", f"claim_owner: {OWNERS_MAX} owners are claimed", "end one of them"
                )
            session.owner = owner
            self._claimed[owner] = session
            session.leaving.callback(self._left, owner)

    def _left(self, owner: str) -> None:
        del self._claimed[owner]
        self._release(owner)

    def changing(self, operation: Operation, session: Session, named: str | None) -> str:
        """In whose name a change is asked for; ApiError, in the operation's own status, if not this connection's."""
        owner = session.owner if named is None else named
        if owner is None:
            raise refusal(operation, "nobody asks", "name an owner, or claim one for this connection")
        if owner == CONFIG:
            raise refusal(operation, f"owner {CONFIG} is the configuration file", RELOAD)
        if self._claimed.get(owner, session) is not session:
            wrong = f"owner {owner[:80]!r} is another connection's"
            raise refusal(operation, wrong, "use a name of your own")
        return owner
