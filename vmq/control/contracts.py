# SPDX-License-Identifier: Apache-2.0
"""The operations on receive queues and filters, over the API: whose contract, in whose name, and what is answered.

    params ──► uplink: which contract ──► owner: who asks ──► the contract's operation ──► its record, or its status

Nothing is decided about receive queues here: vmq/contract does that, and what it refuses goes to the client in its own
status. Two things are refused before it is asked: an uplink that has no contract, with the names of those that have
(INVALID_PARAMETER), and a change in the name of somebody else (session.py; in the operation's status for a bad owner).
A connection that has claimed an owner changes nothing as the administrator.

When an owner goes, it goes in every contract. That never fails: what breaks in one does not keep the others.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from vmq.contract import DEFAULT_QUEUE, DROP_QUEUE, Contract, Operation
from vmq.control import requests
from vmq.control.schema import METHODS, Function
from vmq.control.session import Owners, Session
from vmq.control.words import filter_of
from vmq.errors import ApiError

LOG = logging.getLogger("vmq")
NO_UPLINK = ""
DONE = {"status": "SUCCESS"}
Answer = dict[str, Any]


class HasContracts(Protocol):
    """An engine, as far as it matters here: a contract for each uplink, and one for VMs without."""

    @property
    def contracts(self) -> Mapping[str, Contract]: ...


class Contracts:
    """The methods that concern receive queues and filters; each has the name of an operation."""

    def __init__(self, engine: HasContracts) -> None:
        self._engine = engine
        self.owners = Owners(self.release)

    def functions(self) -> dict[str, Function]:
        """What answers the methods of the API that are operations here."""
        return {name: getattr(self, name) for name in METHODS if hasattr(self, name)}

    def release(self, owner: str) -> None:
        """Take down all that was the owner's."""
        for uplink, contract in list(self._engine.contracts.items()):
            try:
                contract.release_owner(owner)
            except Exception:  # whoever asked is gone, and the other contracts are not to wait
                LOG.exception("what owner %r had on %r was not taken down by a fault of vmq", owner, uplink)

    def contract(self, uplink: str | None) -> Contract:
        """The contract of an uplink; if none is named, of the only one, or of VMs without where there is none."""
        contracts = self._engine.contracts
        if uplink is None:
            named = [name for name in contracts if name]
            uplink = named[0] if len(named) == 1 else NO_UPLINK if not named else None
        if uplink is not None and uplink in contracts:
            return contracts[uplink]
        wrong = "there are several" if uplink is None else f"no uplink {uplink[:80]!r}"
        known = ", ".join(name or '"" (VMs without uplink)' for name in contracts)
        raise ApiError("INVALID_PARAMETER", f"uplink: {wrong}", f"one of {known}")

    def _changing(
        self, operation: Operation, session: Session, asked: requests.Owned
    ) -> tuple[Contract, str]:
        return self.contract(asked.uplink), self.owners.changing(operation, session, asked.owner)

    # --- owners

    def claim_owner(self, session: Session, asked: requests.ClaimOwner) -> Answer:
        self.owners.claim(session, asked.owner)
        return {"owner": asked.owner}

    # --- receive queues

    def allocate_queue(self, session: Session, asked: requests.AllocateQueue) -> Answer:
        contract, owner = self._changing(Operation.ALLOCATE_QUEUE, session, asked)
        return {"queue": contract.allocate(owner, msgspec.structs.asdict(asked.parameters))}

    def queue_allocation_complete(
        self, session: Session, asked: requests.QueueAllocationComplete
    ) -> list[Answer]:
        contract, owner = self._changing(Operation.QUEUE_ALLOCATION_COMPLETE, session, asked)
        batch = contract.allocation_complete(owner, asked.queues)
        return [{"queue": one.queue, "status": one.status, "why": one.why} for one in batch]

    def queue_parameters(self, _: Session, asked: requests.QueueParameters) -> Answer:
        return self.contract(asked.uplink).queue_parameters(asked.owner, asked.queue)

    def set_queue_parameters(self, session: Session, asked: requests.SetQueueParameters) -> Answer:
        contract, owner = self._changing(Operation.QUEUE_PARAMETERS, session, asked)
        contract.set_parameters(owner, asked.queue, msgspec.to_builtins(asked.parameters))
        return DONE

    def free_queue(self, session: Session, asked: requests.FreeQueue) -> Answer:
        contract, owner = self._changing(Operation.FREE_QUEUE, session, asked)
        return {"status": contract.free(owner, asked.queue)}

    def enum_queues(self, _: Session, asked: requests.EnumQueues) -> list[Answer]:
        return list(self.contract(asked.uplink).enum_queues(asked.owner))

    def reset_statistics(self, session: Session, asked: requests.ResetStatistics) -> Answer:
        """Where no owner is named or claimed the administrator asks, who may do this to everybody's."""
        owner = asked.owner
        if owner is not None or session.owner is not None:
            owner = self.owners.changing(Operation.RESET_STATISTICS, session, owner)
        self.contract(asked.uplink).reset_statistics(owner, asked.queue)
        return DONE

    # --- filters

    def set_filter(self, session: Session, asked: requests.SetFilter) -> Answer:
        contract, owner = self._changing(Operation.SET_FILTER, session, asked)
        return {"filter": contract.set_filter(owner, asked.queue, filter_of(asked.filter))}

    def clear_filter(self, session: Session, asked: requests.ClearFilter) -> Answer:
        contract, owner = self._changing(Operation.CLEAR_FILTER, session, asked)
        contract.clear_filter(owner, asked.filter)
        return DONE

    def move_filter(self, session: Session, asked: requests.MoveFilter) -> Answer:
        contract, owner = self._changing(Operation.MOVE_FILTER, session, asked)
        contract.move_filter(owner, asked.filter, asked.queue)
        return DONE

    def filter_parameters(self, _: Session, asked: requests.FilterParameters) -> Answer:
        return self.contract(asked.uplink).filter_parameters(asked.owner, asked.filter)

    def enum_filters(self, _: Session, asked: requests.EnumFilters) -> list[Answer]:
        """Of all receive queues, if none is named: an owner's own filters are on its own ones and on everybody's."""
        contract = self.contract(asked.uplink)
        names = [asked.queue] if asked.queue is not None else [DEFAULT_QUEUE, DROP_QUEUE]
        if asked.queue is None:
            rows = contract.enum_queues(asked.owner)
            names += [row["queue"] for row in rows if row["filters"] and row["queue"] != DEFAULT_QUEUE]
        return [record for name in names for record in contract.enum_filters(asked.owner, name)]

    # --- the uplink as a whole

    def hardware_capabilities(self, _: Session, asked: requests.HardwareCapabilities) -> Answer:
        return self.contract(asked.uplink).hardware_capabilities()

    def current_capabilities(self, _: Session, asked: requests.CurrentCapabilities) -> Answer:
        return self.contract(asked.uplink).current_capabilities()

    def global_parameters(self, _: Session, asked: requests.GlobalParameters) -> Answer:
        return self.contract(asked.uplink).global_parameters()

    def reset(self, session: Session, asked: requests.Reset) -> Answer:
        """It is everybody's, so no owner's."""
        contract = self.contract(asked.uplink)
        if session.owner is not None:
            wrong = f"reset: everybody's counters begin anew, and this connection is {session.owner[:80]!r}"
            raise ApiError("INVALID_PARAMETER", wrong, "ask on a connection that has claimed no owner")
        contract.reset()
        return DONE
