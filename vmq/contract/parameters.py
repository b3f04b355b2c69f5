# SPDX-License-Identifier: Apache-2.0
"""What is asked for with a receive queue: the members, their limits, and which of them may change later.

A change names the members that it changes; the others stay, whatever they are, and so do those of moderation. A value
that does not fit refuses the whole change. What is asked for is a request: what a receive queue has got is its grant (`budget`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from vmq.contract.status import Operation, refusal
from vmq.errors import ApiError

NAME_MAX = 256  # characters of a name, as in NDIS
CHANGEABLE = ("processor", "name", "weight", "suggested_buffers", "moderation")

Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class Moderation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When the guest is told about its frames. 0: no limit of that kind."""

    indications: Count = 0  # at most so many a second
    frames: Count = 0  # one as soon as so many frames wait


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The members that a client gives. They never change: a change makes others."""

    name: str = ""
    vm: str = ""
    processor: Annotated[int, msgspec.Meta(ge=0)] | None = None  # None: any
    suggested_buffers: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 256  # a hint: half will do
    weight: Annotated[int, msgspec.Meta(ge=0, le=100)] = 100  # 0: never a receive queue of its own
    moderation: Moderation = Moderation()
    lookahead_split: bool = False
    lookahead_size: Count = 0


def parameters(values: Mapping[str, Any]) -> Parameters:
    """The members of a new receive queue; ApiError if one cannot be."""
    made = _converted(Operation.ALLOCATE_QUEUE, values)
    if made.lookahead_split:
        raise ApiError(
            "NOT_SUPPORTED",
            "ALLOCATE_QUEUE: lookahead_split: vmq checks a frame before it writes any of it to the guest",
            "leave lookahead_split out: the split existed to check a header after the frame was written",
        )
    if made.lookahead_size:
        wrong = f"lookahead_size is {made.lookahead_size} without lookahead_split"
        raise refusal(Operation.ALLOCATE_QUEUE, wrong, "leave lookahead_size out")
    return made


def changed(before: Parameters, changes: Mapping[str, Any]) -> Parameters:
    """The members after a change; ApiError if it cannot be."""
    fixed = [str(member) for member in changes if member not in CHANGEABLE]
    if fixed:
        wrong = f"{', '.join(fixed)}: not a member that can change"
        raise refusal(Operation.QUEUE_PARAMETERS, wrong, f"change {', '.join(CHANGEABLE)} only")
    values = {**msgspec.structs.asdict(before), **changes}
    if isinstance(moderation := values["moderation"], Mapping):
        values["moderation"] = {**msgspec.structs.asdict(before.moderation), **moderation}
    return _converted(Operation.QUEUE_PARAMETERS, values)


def _converted(operation: Operation, values: Mapping[str, Any]) -> Parameters:
    for member in ("name", "vm"):
        text = values.get(member, "")
        if isinstance(text, str) and len(text) > NAME_MAX:
            wrong = f"{operation.value}: {member} has {len(text)} characters"
            raise ApiError("INVALID_LENGTH", wrong, f"use {NAME_MAX} at most")
    try:
        return msgspec.convert(dict(values), Parameters)
    except msgspec.ValidationError as error:
        raise refusal(operation, str(error), "the members and their limits are in docs/queues.md") from error
