# SPDX-License-Identifier: Apache-2.0
"""The control contract of NDIS VMQ: receive queues, filters and who owns them, as plain Python without I/O.

    contract      the operations: who may do what, when, with which status
    registry      what exists, and the order in which a change reaches the data plane (Effects)
    parameters    what is asked for          capabilities   what can be done
    budget        what is scarce, shared     rivals         filters that could quarrel
    status        each operation's words     views          records for people

The table of states is vmq/queues.py, what a filter means vmq/filters/. `conformance/` holds scripts of operations with
what must come out, for this implementation and any other.
"""

from __future__ import annotations

from vmq.contract.budget import Budget, Grant
from vmq.contract.capabilities import Capabilities, Property
from vmq.contract.contract import Completion, Contract
from vmq.contract.parameters import Moderation, Parameters
from vmq.contract.registry import CONFIG, DEFAULT_QUEUE, DROP_QUEUE, Effects
from vmq.contract.status import COMPLETION_STATUSES, STATUSES, Operation

__all__ = [
    "COMPLETION_STATUSES",
    "CONFIG",
    "DEFAULT_QUEUE",
    "DROP_QUEUE",
    "STATUSES",
    "Budget",
    "Capabilities",
    "Completion",
    "Contract",
    "Effects",
    "Grant",
    "Moderation",
    "Operation",
    "Parameters",
    "Property",
]
