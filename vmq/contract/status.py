# SPDX-License-Identifier: Apache-2.0
"""The operations and the words that each may answer with.

NDIS documents for every operation which statuses it returns, and a client switches on them, so an operation never
answers with another one, however well it would fit: a bad id is FILE_NOT_FOUND where a filter is cleared,
INVALID_PARAMETER where it is moved, and FAILURE where the filters of a queue are listed. `refusal` knows.

What NDIS lists and vmq never answers: NOT_ACCEPTED and REQUEST_ABORTED, because a reset is one step and nothing is
asked in the middle of it; PENDING other than for FREE_QUEUE, because everything else is done when it is answered.
"""

from __future__ import annotations

from enum import Enum

from vmq.errors import ApiError


class Operation(Enum):
    """The requests of NDIS, without their prefix."""

    HARDWARE_CAPABILITIES = "HARDWARE_CAPABILITIES"
    CURRENT_CAPABILITIES = "CURRENT_CAPABILITIES"
    GLOBAL_PARAMETERS = "GLOBAL_PARAMETERS"
    ALLOCATE_QUEUE = "ALLOCATE_QUEUE"
    QUEUE_ALLOCATION_COMPLETE = "QUEUE_ALLOCATION_COMPLETE"
    QUEUE_PARAMETERS = "QUEUE_PARAMETERS"
    FREE_QUEUE = "FREE_QUEUE"
    SET_FILTER = "SET_FILTER"
    CLEAR_FILTER = "CLEAR_FILTER"
    MOVE_FILTER = "MOVE_FILTER"
    PARAMETERS = "PARAMETERS"
    ENUM_FILTERS = "ENUM_FILTERS"
    ENUM_QUEUES = "ENUM_QUEUES"
    RESET_STATISTICS = "RESET_STATISTICS"  # not of NDIS, which has no statistics of a receive queue


_QUERY = frozenset({"SUCCESS", "PENDING", "INVALID_LENGTH", "NOT_SUPPORTED", "FAILURE"})
_METHOD = _QUERY | {"INVALID_PARAMETER"}

STATUSES: dict[Operation, frozenset[str]] = {
    Operation.HARDWARE_CAPABILITIES: _QUERY,
    Operation.CURRENT_CAPABILITIES: _QUERY,
    Operation.GLOBAL_PARAMETERS: _METHOD - {"NOT_SUPPORTED"},
    Operation.ALLOCATE_QUEUE: _METHOD,
    Operation.QUEUE_ALLOCATION_COMPLETE: _METHOD,
    Operation.QUEUE_PARAMETERS: _METHOD - {"NOT_SUPPORTED"},
    Operation.FREE_QUEUE: frozenset(
        {"SUCCESS", "PENDING", "NOT_ACCEPTED", "REQUEST_ABORTED", "INVALID_PARAMETER", "INVALID_LENGTH"}
    ),
    Operation.SET_FILTER: _METHOD,
    Operation.CLEAR_FILTER: frozenset(
        {"SUCCESS", "PENDING", "NOT_ACCEPTED", "FILE_NOT_FOUND", "INVALID_LENGTH"}
    ),
    Operation.MOVE_FILTER: _METHOD - {"PENDING"},
    Operation.PARAMETERS: frozenset({"SUCCESS", "INVALID_PARAMETER", "INVALID_LENGTH", "FAILURE"}),
    Operation.ENUM_FILTERS: frozenset({"SUCCESS", "INVALID_LENGTH", "FAILURE"}),
    Operation.ENUM_QUEUES: frozenset({"SUCCESS", "INVALID_LENGTH", "FAILURE"}),
    Operation.RESET_STATISTICS: frozenset({"SUCCESS", "INVALID_PARAMETER"}),
}

# The status of one receive queue within QUEUE_ALLOCATION_COMPLETE.
COMPLETION_STATUSES = frozenset({"SUCCESS", "RESOURCES", "INVALID_PARAMETER"})

_REFUSAL = {Operation.CLEAR_FILTER: "FILE_NOT_FOUND", Operation.ENUM_FILTERS: "FAILURE"}


def refusal(operation: Operation, wrong: str, remedy: str = "") -> ApiError:
    """A bad id, state, owner or value, in the operation's own word for that."""
    status = _REFUSAL.get(operation, "INVALID_PARAMETER")
    return ApiError(status, f"{operation.value}: {wrong}", remedy)
