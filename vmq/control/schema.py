# SPDX-License-Identifier: Apache-2.0
"""The methods of the API: one table, from which requests are judged and the machine-readable description is made.

`bound` puts functions behind the methods. A function gets the connection that asks (session.py) and the record of its
parameters, and returns what is sent; every method that is declared has a function, and nothing else has one.

The description (`schema`) is one JSON object: the version of the API, each method with the JSON Schema of its
parameters and of its result and the statuses that it may answer with, the events, and the records that they share.
It needs no engine, so a client in another language can be made from `vmq schema api`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from vmq import __version__
from vmq.contract import STATUSES, Operation
from vmq.control import answers, requests
from vmq.control.requests import Request, understood
from vmq.control.server import API, Method
from vmq.control.session import Session

Function = Callable[[Session, Any], Any]

MEANINGS = {
    "SUCCESS": "it is done",
    "PENDING": "it goes on, and an event says when it is done",
    "RESOURCES": "something is scarce; `why` says what",
    "INVALID_PARAMETER": "the request is none, or names what it may not",
    "INVALID_LENGTH": "something is too long, too short or too many",
    "NOT_SUPPORTED": "there is no such method, or it cannot be done here",
    "NOT_FOUND": "there is no such thing to show",
    "FILE_NOT_FOUND": "there is no such filter of this owner",
    "FAILURE": "it could not be done",
}
# Of every method: the request is not what its schema says, or the engine failed to answer it.
ALWAYS = frozenset({"INVALID_PARAMETER", "FAILURE"})
NOT_ANSWERED = frozenset({"NOT_ACCEPTED", "REQUEST_ABORTED"})  # vmq/contract/status.py says why
MAY_PEND = Operation.FREE_QUEUE


class Declared(NamedTuple):
    """A method: the form of its parameters, the record of its result, and the operation whose statuses it has."""

    form: type[Request]
    result: Any
    operation: Operation | None = None
    more: frozenset[str] = frozenset()  # statuses besides

    @property
    def statuses(self) -> frozenset[str]:
        own = (STATUSES[self.operation] if self.operation else frozenset({"SUCCESS"})) - NOT_ANSWERED
        if self.operation is not MAY_PEND:
            own -= {"PENDING"}
        return own | self.more | ALWAYS


METHODS: dict[str, Declared] = {
    "ping": Declared(requests.Ping, answers.Pong),
    "schema": Declared(requests.Schema, dict[str, Any]),
    "show": Declared(requests.Show, answers.Rows, more=frozenset({"NOT_FOUND"})),
    "explain": Declared(requests.Explain, dict[str, Any]),
    "events": Declared(requests.Events, answers.Rows),
    "subscribe": Declared(requests.Subscribe, answers.Subscribed, more=frozenset({"RESOURCES"})),
    "capture": Declared(requests.Capture, answers.Capturing, more=frozenset({"RESOURCES"})),
    "measure": Declared(requests.Measure, answers.Done),
    "prove": Declared(requests.Prove, answers.Done, more=frozenset({"NOT_FOUND"})),
    "proof": Declared(requests.ProofAsked, answers.ProofRecord, more=frozenset({"NOT_FOUND"})),
    "claim_owner": Declared(requests.ClaimOwner, answers.Claimed, more=frozenset({"RESOURCES"})),
    "hardware_capabilities": Declared(
        requests.HardwareCapabilities, answers.CapabilitiesRecord, Operation.HARDWARE_CAPABILITIES
    ),
    "current_capabilities": Declared(
        requests.CurrentCapabilities, answers.CapabilitiesRecord, Operation.CURRENT_CAPABILITIES
    ),
    "global_parameters": Declared(
        requests.GlobalParameters, answers.GlobalRecord, Operation.GLOBAL_PARAMETERS
    ),
    "reset": Declared(requests.Reset, answers.Done),
    "allocate_queue": Declared(requests.AllocateQueue, answers.NewQueue, Operation.ALLOCATE_QUEUE),
    "queue_allocation_complete": Declared(
        requests.QueueAllocationComplete,
        list[answers.CompletionRecord],
        Operation.QUEUE_ALLOCATION_COMPLETE,
    ),
    "queue_parameters": Declared(requests.QueueParameters, answers.QueueRecord, Operation.QUEUE_PARAMETERS),
    "set_queue_parameters": Declared(requests.SetQueueParameters, answers.Done, Operation.QUEUE_PARAMETERS),
    "free_queue": Declared(requests.FreeQueue, answers.Done, Operation.FREE_QUEUE),
    "enum_queues": Declared(requests.EnumQueues, list[answers.QueueRecord], Operation.ENUM_QUEUES),
    "reset_statistics": Declared(requests.ResetStatistics, answers.Done, Operation.RESET_STATISTICS),
    "set_filter": Declared(requests.SetFilter, answers.NewFilter, Operation.SET_FILTER),
    "clear_filter": Declared(requests.ClearFilter, answers.Done, Operation.CLEAR_FILTER),
    "move_filter": Declared(requests.MoveFilter, answers.Done, Operation.MOVE_FILTER),
    "filter_parameters": Declared(requests.FilterParameters, answers.FilterRecord, Operation.PARAMETERS),
    "enum_filters": Declared(requests.EnumFilters, list[answers.FilterRecord], Operation.ENUM_FILTERS),
}


def bound(functions: Mapping[str, Function]) -> dict[str, Method]:
    """The methods of a server: what a client sends is understood, then the function answers."""
    if set(functions) != set(METHODS):
        raise ValueError(f"not both declared and bound: {sorted(set(functions) ^ set(METHODS))}")
    return {name: _method(name, declared.form, functions[name]) for name, declared in METHODS.items()}


def _method(name: str, form: type[Request], function: Function) -> Method:
    def method(session: Session, params: dict[str, Any]) -> Any:
        return function(session, understood(name, form, params))

    return method


def schema() -> dict[str, Any]:
    """The description of the API."""
    kinds = [kind for declared in METHODS.values() for kind in (declared.form, declared.result)]
    told = [answers.CapturePiece, answers.AnyEvent]
    made, records = msgspec.json.schema_components([*kinds, *told], ref_template="#/$defs/{name}")
    pairs = zip(made[:-2:2], made[1:-2:2], strict=True)
    methods = {
        name: {
            "description": declared.form.__doc__,
            "operation": declared.operation.value if declared.operation else None,
            "params": params,
            "result": result,
            "statuses": sorted(declared.statuses),
        }
        for (name, declared), (params, result) in zip(METHODS.items(), pairs, strict=True)
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "api": API,
        "vmq": __version__,
        "statuses": MEANINGS,
        "methods": methods,
        "capture": made[-2],
        "event": made[-1],
        "$defs": records,
    }
