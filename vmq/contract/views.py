# SPDX-License-Identifier: Apache-2.0
"""Receive queues and filters as records for people and JSON: what was asked for, what is in force, and why."""

from __future__ import annotations

from typing import Any

import msgspec

from vmq.contract.registry import Installed, ReceiveQueue
from vmq.filters import Filter, Flag
from vmq.queues import PUBLIC, State

WHY = {
    State.ALLOCATED: "its allocation is not complete",
    State.SET: "its allocation is not complete: what its filters match goes to the default queue",
    State.PAUSED: "it has no filter",
    State.STOP_DMA: "it is being freed: something may still write to its buffers",
    State.FREEING: "it is being freed: buffers are still to come back",
}


def queue_record(queue: ReceiveQueue) -> dict[str, Any]:
    """One receive queue."""
    asked, grant = queue.parameters, queue.grant
    return {
        "queue": queue.id,
        "owner": queue.owner,
        "name": asked.name,
        "vm": asked.vm,
        "state": PUBLIC[queue.state].value,
        "step": queue.state.value,
        "why": queue.lack or WHY.get(queue.state, ""),
        "filters": len(queue.filters),
        "requested": msgspec.to_builtins(asked),
        "effective": {"processor": grant.processor, "suggested_buffers": grant.buffers} if grant else {},
        "difference": _difference(queue),
    }


def _difference(queue: ReceiveQueue) -> dict[str, str]:
    """For each member that is not as it was asked for, why."""
    asked, grant = queue.parameters, queue.grant
    if grant is None:
        return {}
    found = {}
    if asked.processor is None:
        found["processor"] = "none was named: the one with most room when it was completed"
    if grant.buffers != asked.suggested_buffers:
        found["suggested_buffers"] = "locked memory is scarce: a suggestion is met by its half"
    return found


def filter_record(installed: Installed) -> dict[str, Any]:
    """One filter."""
    return {
        "filter": installed.id,
        "owner": installed.owner,
        "queue": installed.place,
        "in_effect": installed.queue.state is State.RUNNING,
        **_words(installed.filter),
    }


def _words(words: Filter) -> dict[str, Any]:
    return {
        "text": str(words),
        "priority": words.priority,
        "flags": [str(flag.name).lower() for flag in Flag if flag in words.flags],
        "tests": [
            {"field": str(t.field), "kind": str(t.kind), "value": t.value, "mask": t.mask}
            for t in words.tests
        ],
    }
