# SPDX-License-Identifier: Apache-2.0
"""What may be asked for: the parameters of every method, as records.

One declaration does two things: `understood` makes the record of what a client has sent, or says why it is none, and
schema.py describes it for machines. So what the schema says and what is accepted cannot differ. What a value means
(whose receive queue, which state, how many) is not of a record's form: the contract judges it, with the statuses of
NDIS. A member of another name, or of another type, is refused before that: INVALID_PARAMETER, whatever the method.

    uplink   whose contract; "": that of VMs without uplink. Left out: the only uplink's, or that one if there is none
    owner    in a query: only what is this owner's. Left out: everything, as the administrator sees it
             in a change: who asks. Left out: who this connection has claimed to be
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from vmq.contract import Parameters
from vmq.contract.parameters import CHANGEABLE, Moderation
from vmq.control.words import FilterWords, FlagName
from vmq.errors import ApiError
from vmq.filters import Field, Kind

SNAPLEN_MAX = 1 << 18  # more than any frame
# What a filter is written with: its members, and their words.
WORDS = {"field": Field, "kind": Kind, "flags": FlagName}
NO_WORD = re.compile(r"Invalid enum value .*\.(\w+)(?:\[[^]]*\])?`")


class Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """No parameters."""


Asked = TypeVar("Asked", bound=Request)


class Ping(Request):
    """Whether the engine answers, and which process it is."""


class Schema(Request):
    """This description, of the engine that runs."""


class Show(Request):
    """The rows of one view: vms, queues, filters, uplinks, processors, misses, settings, histograms or configuration."""

    what: str = "vms"


class Explain(Request):
    """Where a frame would go, and why. It is given by mac, by hex, or by both."""

    mac: str | None = None
    vlan: int | None = None
    uplink: str | None = None
    source: str | None = None
    hex: str | None = None


class Prove(Request, kw_only=True):
    """Begin to measure what a receive queue of its own is worth to a VM; `proof` says how far it is."""

    vm: str
    pairs: Annotated[int, msgspec.Meta(ge=1, le=256)] = 16


class ProofAsked(Request):
    """The last measurement, done or under way."""


class Events(Request):
    """What has happened since the record of a number; all that is kept, without one."""

    since: int = 0


class Subscribe(Request):
    """The same, and then what happens, for as long as the connection is read. It answers nothing else any more."""

    since: int = 0


class Capture(Request, kw_only=True):
    """Frames of a VM as a pcapng file in pieces, until this side of the connection is closed or the VM port goes."""

    vm: str
    queue: int | None = None  # left out: all of its receive queues
    direction: Literal["to_guest", "from_guest", "both"] = "both"
    snaplen: Annotated[int, msgspec.Meta(ge=1, le=SNAPLEN_MAX)] = (
        SNAPLEN_MAX  # bytes of a frame that are kept
    )


class Measure(Request, kw_only=True):
    """Measure how long frames to a VM are under way, or leave off. To begin once more is to begin anew."""

    vm: str
    on: bool = True


class ClaimOwner(Request):
    """Bind an owner to this connection: when it ends, for whatever reason, all that is the owner's is taken down."""

    owner: str


class OfUplink(Request):
    """What concerns one contract."""

    uplink: str | None = None


class Owned(OfUplink):
    """What concerns an owner."""

    owner: str | None = None


class HardwareCapabilities(OfUplink):
    """All that the uplink can do."""


class CurrentCapabilities(OfUplink):
    """What of it is in force."""


class GlobalParameters(OfUplink):
    """The types of receive queues and filters that are in force."""


class Reset(OfUplink):
    """Begin anew: queues and filters stay, counters and frames that wait do not."""


class AllocateQueue(Owned):
    """A new receive queue: an id, and nothing scarce until its allocation is complete."""

    parameters: Parameters = Parameters()


class QueueAllocationComplete(Owned, kw_only=True):
    """Give a batch of receive queues what they need, balanced over the batch."""

    queues: list[int]


class QueueParameters(Owned, kw_only=True):
    """One receive queue: requested, effective, and why they differ."""

    queue: int


def _changes(name: str, form: type[msgspec.Struct], members: Collection[str], **other: Any) -> Any:
    """A record of members of `form` that may all be left out; `other` says which of them have another type."""
    return msgspec.defstruct(
        name,
        [
            (field.name, other.get(field.name, field.type) | msgspec.UnsetType, msgspec.UNSET)
            for field in msgspec.structs.fields(form)
            if field.name in members
        ],
        namespace={"__doc__": "The members that change; the others stay as they are."},
        forbid_unknown_fields=True,
        kw_only=True,
    )


ModerationChanges = _changes("ModerationChanges", Moderation, Moderation.__struct_fields__)
Changes = _changes("Changes", Parameters, CHANGEABLE, moderation=ModerationChanges)


class SetQueueParameters(Owned, kw_only=True):
    """Change members of a receive queue, while frames flow."""

    queue: int
    parameters: Changes  # type: ignore[valid-type]  # made from Parameters, so that they agree


class FreeQueue(Owned, kw_only=True):
    """Stop a receive queue without filters. PENDING: buffers are still to come back, and an event will say so."""

    queue: int


class EnumQueues(Owned):
    """Receive queues."""


class SetFilter(Owned, kw_only=True):
    """Frames that pass the filter belong to this receive queue, once it is complete."""

    queue: int
    filter: FilterWords


class ClearFilter(Owned, kw_only=True):
    """Take a filter away. Without its last one a receive queue pauses."""

    filter: int


class MoveFilter(Owned, kw_only=True):
    """Let a filter point to another receive queue, between two frames."""

    filter: int
    queue: int


class FilterParameters(Owned, kw_only=True):
    """One filter."""

    filter: int


class EnumFilters(Owned):
    """The filters of one receive queue, or of all."""

    queue: int | None = None


class ResetStatistics(Owned, kw_only=True):
    """Let the counters of one receive queue begin anew."""

    queue: int


def understood(method: str, form: type[Asked], params: dict[str, Any]) -> Asked:
    """The record of what was sent; ApiError if it is none."""
    try:
        return msgspec.convert(params, form)
    except (msgspec.ValidationError, UnicodeError) as error:
        known = ", ".join(field.encode_name for field in msgspec.structs.fields(form))
        remedy = f"{method} takes {known or 'no parameters'}; `vmq schema api` says what each may be"
        if (found := NO_WORD.search(str(error))) and found[1] in WORDS:
            remedy = f"{found[1]}: one of {', '.join(WORDS[found[1]])}"
        raise ApiError("INVALID_PARAMETER", f"{method}: {error}", remedy) from error
