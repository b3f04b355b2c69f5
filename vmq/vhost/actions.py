# SPDX-License-Identifier: Apache-2.0
"""What has to happen outside when a vhost-user session changes: the actions, and the plan that finds them.

`plan` compares two sessions; no message handler lists its consequences, so none can be forgotten on one path.
The order of the classes below is the order of a plan, and it is the whole point:

    check, map        may fail, and has disturbed nobody yet
    Apply             the data plane follows, and lets go of what is no longer there
    unmap, close      nobody looks there any more
    SignalCall        the driver looks at its rings again
    tell              the front-end learns that it is done

The executor (`connection`) has old and new session; Apply means "make the tables say what the new session says".
A check or mapping that fails raises a ProtocolError; the executor takes back what it has mapped for this plan,
closes nothing, and runs the plan of `protocol.refusal` instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmq.vhost.message import Log, Message, Region
from vmq.vhost.session import Session


@dataclass(frozen=True, slots=True)
class CheckEventFd:
    """May fail: the descriptor is no eventfd."""

    fd: int


@dataclass(frozen=True, slots=True)
class MapRegion:
    """May fail: the file is no memory, or shorter than the region."""

    region: Region


@dataclass(frozen=True, slots=True)
class MapLog:
    """May fail. Marks beyond its end are clipped by whoever marks: memory may have grown meanwhile."""

    log: Log


@dataclass(frozen=True, slots=True)
class Apply:
    """The data plane follows the new session, and has let go of what is gone before the next action.

    Rings that a kernel had and has no more: their places come back by `stopped_at`, before the next action too.
    """


@dataclass(frozen=True, slots=True)
class UnmapRegion:
    region: Region


@dataclass(frozen=True, slots=True)
class UnmapLog:
    log: Log


@dataclass(frozen=True, slots=True)
class CloseFd:
    fd: int


@dataclass(frozen=True, slots=True)
class SignalCall:
    """One call without a used buffer: the driver may have been missed meanwhile, and accepts a spurious one."""

    index: int


@dataclass(frozen=True, slots=True)
class Announce:
    """The VM is here now: its RARP leaves by the uplink, and neighbours learn where it is."""

    mac: int


@dataclass(frozen=True, slots=True)
class Reply:
    data: bytes


@dataclass(frozen=True, slots=True)
class ReplyRingBase:
    """Send `ring_base(session, index)` of the session after Apply."""

    index: int


Change = CheckEventFd | MapRegion | MapLog | Apply | UnmapRegion | UnmapLog | CloseFd | SignalCall
Telling = Announce | Reply | ReplyRingBase
Action = Change | Telling


def plan(before: Session, after: Session, message: Message | None = None) -> tuple[Change, ...]:
    """What leads from one session to the other. Nothing, if they are the same."""
    adopted = after.fds - before.fds
    dropped = [fd for fd in message.fds if fd not in adopted] if message else []
    rings = [fd for ring in after.rings for fd in (ring.kick, ring.call, ring.err) if fd in adopted]
    new_log = after.log if after.log and after.log != before.log else None
    old_log = before.log if before.log and after.log != before.log else None
    had, has = set(before.regions), set(after.regions)  # tables may have hundreds of rows
    return (
        *(CheckEventFd(fd) for fd in rings),
        *(MapRegion(region) for region in after.regions if region not in had),
        *([MapLog(new_log)] if new_log else []),
        *([Apply()] if _seen(before) != _seen(after) else []),
        *(UnmapRegion(region) for region in before.regions if region not in has),
        *([UnmapLog(old_log)] if old_log else []),
        *(CloseFd(fd) for fd in [*sorted(before.fds - after.fds), *dropped]),
        *(SignalCall(index) for index in _disturbed(before, after)),
    )


def _seen(session: Session) -> object:
    """What the data plane knows of a session: nothing, unless a kernel has one of its rings."""
    rings = [(index, session.rings[index], session.enabled(index)) for index in session.started]
    return rings and (rings, session.features, session.mtu, session.regions, session.log)


def _disturbed(before: Session, after: Session) -> list[int]:
    """Rings that may have missed their driver: just started or changed, or everything behind them has moved."""
    moved = before.regions != after.regions
    return [
        i for i in after.started if after.rings[i].call >= 0 and (moved or after.rings[i] != before.rings[i])
    ]
