# SPDX-License-Identifier: Apache-2.0
"""What is answered and what is told: results and events, as records for the schema.

Results are made where the facts are (`contract/views.py`, `views.py`, `explain.py`) as plain dictionaries, and sent as
they are. The records here say for machines which members those have; tests compare the two. A later version may add
members, so a client ignores those that it does not know.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vmq.contract import Parameters
from vmq.control.words import FlagName
from vmq.filters import Field, Kind


class Done(msgspec.Struct):
    """SUCCESS, or PENDING for what goes on and is told by an event."""

    status: str


class NewQueue(msgspec.Struct):
    queue: int


class NewFilter(msgspec.Struct):
    filter: int


class Claimed(msgspec.Struct):
    owner: str


class Pong(msgspec.Struct):
    """The process, and the kernels that were compiled while it ran: none."""

    pid: int
    compiled_after_start: list[str]


class Subscribed(msgspec.Struct):
    """From here on the connection is a stream, one line a record: {"event": …}. `number` is the last one so far."""

    number: int


class Capturing(msgspec.Struct):
    """From here on the connection is a capture, one line a piece: {"capture": …}, a CapturePiece."""

    interfaces: list[str]


class CapturePiece(msgspec.Struct):
    """Whole blocks of a pcapng file, in base64; so many frames were captured so far, and so many lost by the capture."""

    blocks: str
    captured: int
    lost: int


class CompletionRecord(msgspec.Struct):
    """What became of one receive queue of a batch: SUCCESS, RESOURCES or INVALID_PARAMETER."""

    queue: int
    status: str
    why: str


class QueueRecord(msgspec.Struct):
    """A receive queue. `effective` is empty until it is complete; `difference` says why, for what is not as requested."""

    queue: int
    owner: str
    name: str
    vm: str
    state: str  # Undefined, Running, Paused, DmaStopped
    step: str  # the state of the whole table
    why: str
    filters: int
    requested: Parameters
    effective: dict[str, int]
    difference: dict[str, str]


class FieldTestRecord(msgspec.Struct):
    field: Field
    kind: Kind
    value: int
    mask: int


class FilterRecord(msgspec.Struct):
    """A filter. It is in effect while its receive queue runs."""

    filter: int
    owner: str
    queue: int
    in_effect: bool
    text: str
    priority: int
    flags: list[FlagName]
    tests: list[FieldTestRecord]


class CapabilitiesRecord(msgspec.Struct):
    queues: int
    properties: list[str]
    filter_tests: list[Kind]
    filter_fields: list[Field]
    filter_flags: list[FlagName]
    any_vlan: bool
    tests_per_filter: int


class GlobalRecord(msgspec.Struct):
    enabled_queue_types: list[str]
    enabled_filter_types: list[str]


class VerdictRecord(msgspec.Struct, kw_only=True):
    """What a measurement says. Costs are medians in ns a frame, with the median distance from them."""

    answer: str
    why: str
    own: float
    plain: float
    own_spread: float
    plain_spread: float
    ratio: float
    pairs: int
    slower_in: int
    error: float


class ProofRecord(msgspec.Struct, kw_only=True):
    """A measurement: samples so far, and what came of them."""

    vm: str
    running: bool
    done: int
    wanted: int
    verdict: VerdictRecord | None
    wrong: str


Rows = list[dict[str, Any]]  # of `vmq show`: their members are those of the version that runs


class Event(msgspec.Struct, tag_field="event", kw_only=True):
    """What has happened. Numbers go up by one; `time` is in seconds since 1970."""

    number: int
    time: float | None


class Missed(Event, tag="missed", kw_only=True):
    """So many records are no longer kept."""

    records: int


class VmState(Event, tag="vm_state", kw_only=True):
    """A VM port is in another state."""

    vm: str
    state: str
    before: str


class VmError(Event, tag="vm_error", kw_only=True):
    """What stands in the way of a VM port."""

    vm: str
    what: str
    remedy: str


class Learned(Event, tag="learned", kw_only=True):
    """A VM has added an address to its filters."""

    vm: str
    mac: str


class Followed(Event, tag="followed", kw_only=True):
    """The addresses that a VM has set in its network device, as QEMU says, are others now."""

    vm: str
    came: list[str]
    went: list[str]


class QueueLack(Event, tag="queue_lack", kw_only=True):
    """A VM port has no receive queue of its own, and why; nothing: it has one now."""

    vm: str
    what: str | None


class Moved(Event, tag="moved", kw_only=True):
    """The receive queues of a VM port are served by another processor."""

    vm: str
    processor: int
    before: int
    why: str


class QueueSwap(Event, tag="queue_swap", kw_only=True):
    """A receive queue was taken from a VM port for another one; nobody: a place was free."""

    uplink: str | None = None
    loser: str | None
    winner: str
    why: str


class Guarded(Event, tag="guard", kw_only=True):
    """A VM is served by its own receive queue or (plain) by the default queue from now on, as measured."""

    vm: str
    path: str
    why: str


class Placed(Event, tag="placement", kw_only=True):
    """Frames for a VM are written by the kernel (direct) or by the engine (switched) from now on."""

    vm: str
    placement: str
    why: str
    waited_ms: float
    """How long frames for it waited for the change; to become direct, none does."""


class Configured(Event, tag="configured", kw_only=True):
    """A configuration was brought about, or refused."""

    actions: int
    wrong: str | None
    remedy: str | None


class Missing(Event, tag="missing", kw_only=True):
    """A refused configuration is taken back, and this of the one from before ("vm a", "uplink lan") cannot be had back."""

    subject: str
    what: str
    remedy: str


class Found(Event, tag="finding", kw_only=True):
    """The doctor has found what was not there before (`found`), or it has gone (`cleared`)."""

    code: str
    status: str
    severity: str
    subject: str
    title: str
    why: str
    fix: str | None


class OfContract(Event, kw_only=True):
    """What a contract tells; without an uplink it is that of VMs without one."""

    uplink: str | None = None


class QueueState(OfContract, tag="queue_state", kw_only=True):
    """A receive queue is in another state."""

    queue: int
    owner: str
    state: str
    step: str


class DmaStopped(OfContract, tag="dma_stopped", kw_only=True):
    """Nothing writes to the buffers of a receive queue that is freed any more. Once for each."""

    queue: int
    owner: str
    state: str
    step: str


class HardwareChanged(OfContract, tag="hardware_capabilities", kw_only=True):
    """The uplink can do something else now."""

    capabilities: CapabilitiesRecord


class CurrentChanged(OfContract, tag="current_capabilities", kw_only=True):
    """Something else is in force now."""

    capabilities: CapabilitiesRecord
    lost: list[str]


class WasReset(OfContract, tag="reset", kw_only=True):
    """Receive queues have begun anew."""


AnyEvent = (
    Missed
    | VmState
    | VmError
    | Learned
    | Followed
    | QueueLack
    | Moved
    | QueueSwap
    | Guarded
    | Placed
    | Configured
    | Missing
    | Found
    | QueueState
    | DmaStopped
    | HardwareChanged
    | CurrentChanged
    | WasReset
)
