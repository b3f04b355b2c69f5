# SPDX-License-Identifier: Apache-2.0
"""What one vhost-user connection has agreed on: a plain record that never changes, and questions about it.

A message does not alter a session, it makes a new one (`protocol`). So a message is either done or not done at
all, and what has to happen outside follows from comparing the two. The session owns the descriptors it names.

A virtqueue is in one of three states. KICKED is ours: the front-end has started the ring, a part is still
missing, in whatever order the parts come. The table NEXT has all transitions; those on Settled are taken by
`settle` after each message, because memory, features and the other parts belong to several rings at once.

              SET_VRING_KICK              all parts are there
    STOPPED ─────────────────► KICKED ◄─────────────────────────► STARTED
       ▲                          │        a part has gone           │
       └──────────────────────────┴──────────────────────────────────┘
                 GET_VRING_BASE, RESET_DEVICE, SET_OWNER

Enabled is a separate bit, recorded at any time. Rings are addressed by the front-end's user addresses, packets by
guest addresses; user addresses are kept and translated again (`ring_placement`) whenever the memory changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from vmq.abi import vhost_user, virtio
from vmq.abi.vhost_user import Request
from vmq.errors import ProtocolError
from vmq.vhost.message import MEMORY_REMEDY, Log, Region

SPLIT = "virtio-1.2 §2.7 Split Virtqueues"
PARTS = ("descriptor table", "available ring", "used ring")
RING_STATES = 'vhost-user "Ring states"'
MEM_SLOTS = 512  # front-ends refuse a number that shrinks from one connection to the next, so it is fixed


def mask(*bits: int) -> int:
    """The feature word with these bits."""
    return sum(1 << bit for bit in set(bits))


FEATURES = mask(
    virtio.VIRTIO_F_VERSION_1,
    virtio.VIRTIO_F_ANY_LAYOUT,
    virtio.VIRTIO_RING_F_INDIRECT_DESC,
    virtio.VIRTIO_RING_F_EVENT_IDX,
    virtio.VIRTIO_NET_F_MRG_RXBUF,
    virtio.VIRTIO_NET_F_MTU,
    virtio.VIRTIO_NET_F_MQ,
    virtio.VIRTIO_NET_F_GUEST_ANNOUNCE,
    virtio.VHOST_USER_F_PROTOCOL_FEATURES,
)
PROTOCOL_FEATURES = mask(
    vhost_user.VHOST_USER_PROTOCOL_F_MQ,
    vhost_user.VHOST_USER_PROTOCOL_F_RARP,
    vhost_user.VHOST_USER_PROTOCOL_F_REPLY_ACK,
    vhost_user.VHOST_USER_PROTOCOL_F_MTU,
    vhost_user.VHOST_USER_PROTOCOL_F_RESET_DEVICE,
    vhost_user.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    vhost_user.VHOST_USER_PROTOCOL_F_STATUS,
)


class RingState(Enum):
    """Who may touch a virtqueue's row."""

    STOPPED = "protocol code owns it; no kernel sees it"
    KICKED = "the same; it starts by itself once nothing is missing"
    STARTED = "a kernel owns the indices; protocol code may only plan"


class Settled(Enum):
    """What `settle` finds after a message."""

    COMPLETE = "features, memory, size and addresses are there and fit"
    INCOMPLETE = "one of them is missing or does not fit"


_ANY = tuple(RingState)
_UNSEEN = (RingState.STOPPED, RingState.KICKED)
_SETTING_UP = (Request.SET_VRING_NUM, Request.SET_VRING_BASE)
_LIVE = (  # change nothing that a kernel counts on: enabled, a descriptor, logging of the used ring
    Request.SET_VRING_ENABLE,
    Request.SET_VRING_CALL,
    Request.SET_VRING_ERR,
    Request.SET_VRING_ADDR,
    Request.RESET_OWNER,
)
_STOPPING = (Request.GET_VRING_BASE, Request.RESET_DEVICE, Request.SET_OWNER)

# vhost-user "Ring states". A pair not listed is the front-end's fault: ProtocolError.
NEXT: dict[tuple[RingState, Request | Settled], RingState] = {
    **{(state, request): state for state in _ANY for request in _LIVE},
    **{(state, request): state for state in _UNSEEN for request in _SETTING_UP},
    # This message starts the ring, not the first kick: a driver that has already kicked may never kick again.
    **{(state, Request.SET_VRING_KICK): RingState.KICKED for state in _UNSEEN},
    (RingState.STARTED, Request.SET_VRING_KICK): RingState.STARTED,  # a new descriptor, nothing else
    **{(state, request): RingState.STOPPED for state in _ANY for request in _STOPPING},
    (RingState.STOPPED, Settled.COMPLETE): RingState.STOPPED,
    (RingState.STOPPED, Settled.INCOMPLETE): RingState.STOPPED,
    (RingState.KICKED, Settled.COMPLETE): RingState.STARTED,
    (RingState.KICKED, Settled.INCOMPLETE): RingState.KICKED,
    (RingState.STARTED, Settled.COMPLETE): RingState.STARTED,
    (RingState.STARTED, Settled.INCOMPLETE): RingState.KICKED,
}


class Addresses(NamedTuple):
    """Where the front-end says a ring is: user addresses, and a guest address for the log."""

    desc: int
    avail: int
    used: int
    flags: int
    log: int


@dataclass(frozen=True, slots=True)
class Ring:
    """One virtqueue. Size 0, no addresses, descriptor -1: not given."""

    state: RingState = RingState.STOPPED
    enabled: bool = False  # as SET_VRING_ENABLE said; ask Session.enabled
    size: int = 0
    base: int = 0  # as the front-end gave it, or where the data plane stopped
    addresses: Addresses | None = None
    kick: int = -1  # -1 and not STOPPED: the front-end does not kick, the ring is polled
    call: int = -1
    err: int = -1


@dataclass(frozen=True, slots=True)
class Offer:
    """What the engine offers on a VM port; the same on every connection."""

    features: int = FEATURES
    protocol_features: int = PROTOCOL_FEATURES
    max_pairs: int = 1
    ring_size_max: int = virtio.SPLIT_MAX_SIZE
    mem_slots: int = MEM_SLOTS


@dataclass(frozen=True, slots=True)
class Session:
    """The state of one connection. A new connection starts from `Session.new`: nothing survives the old one."""

    offer: Offer
    rings: tuple[Ring, ...]
    owned: bool = False
    features: int | None = None  # None: the driver has not chosen yet
    refused: str = ""  # why the last SET_FEATURES was refused; no ring runs then
    protocol_features: int = 0
    status: int = 0  # as SET_STATUS said; means nothing to the rings
    mtu: int = 0  # 0: the front-end has not said
    regions: tuple[Region, ...] = ()
    log: Log | None = None

    @classmethod
    def new(cls, offer: Offer) -> Session:
        return cls(offer, (Ring(),) * (2 * offer.max_pairs))

    def acked(self, bit: int) -> bool:
        """Whether the driver chose this feature."""
        return self.features is not None and bool(self.features >> bit & 1)

    def enabled(self, index: int) -> bool:
        """vhost-user "Ring states": without VHOST_USER_F_PROTOCOL_FEATURES a ring starts enabled."""
        without = self.features is not None and not self.acked(virtio.VHOST_USER_F_PROTOCOL_FEATURES)
        return without or self.rings[index].enabled

    @property
    def started(self) -> tuple[int, ...]:
        """The rings that a kernel owns."""
        return tuple(index for index, ring in enumerate(self.rings) if ring.state is RingState.STARTED)

    @property
    def fds(self) -> frozenset[int]:
        """Every descriptor the session owns."""
        fds = [fd for ring in self.rings for fd in (ring.kick, ring.call, ring.err) if fd >= 0]
        fds += [region.fd for region in self.regions]
        return frozenset([*fds, self.log.fd] if self.log else fds)


class Area(NamedTuple):
    """A part of a ring: so many bytes into a region of guest memory."""

    region: Region
    offset: int


class Placement(NamedTuple):
    desc: Area
    avail: Area
    used: Area


def obstacle(session: Session, index: int) -> str:
    """Why this ring does not run, in words; empty if it does."""
    if session.rings[index].state is RingState.STOPPED:
        return f"ring {index}: the driver has not started it"
    return _trouble(session, index)


def remedy(session: Session, index: int) -> str:
    """What to do about the obstacle; empty where the front-end's own remedy is not known."""
    unshared = session.features is not None and not session.refused and not session.regions
    return MEMORY_REMEDY if unshared and session.rings[index].state is RingState.KICKED else ""


def lacking(session: Session, index: int) -> str:
    """The part that has not come yet; empty if all have."""
    ring = session.rings[index]
    if session.refused:
        return session.refused
    if session.features is None:
        return f"ring {index}: no features chosen yet (SET_FEATURES)"
    if not session.regions:
        return f"ring {index}: no guest memory yet: it is not shared"
    if not ring.size:
        return f"ring {index}: no size yet (SET_VRING_NUM)"
    if ring.addresses is None:
        return f"ring {index}: no addresses yet (SET_VRING_ADDR)"
    return ""


def ring_placement(session: Session, index: int) -> Placement:
    """Where a ring's three areas are; ProtocolError if one is not wholly within one region, or two overlap."""
    ring = session.rings[index]
    if ring.addresses is None:
        raise ProtocolError(RING_STATES, f"ring {index}: no addresses")
    addresses = (ring.addresses.desc, ring.addresses.avail, ring.addresses.used)
    sizes = virtio.split_ring_bytes(ring.size)
    areas = []
    for name, uaddr, size in zip(PARTS, addresses, sizes, strict=True):
        within = (r for r in session.regions if r.uaddr <= uaddr and uaddr + size <= r.uaddr + r.size)
        region = next(within, None)
        if region is None:
            where = f"ring {index}: {name}: {size} bytes at user address {uaddr:#x}"
            raise ProtocolError(SPLIT, f"{where} are not within one memory region")
        areas.append(Area(region, uaddr - region.uaddr))
    spans = sorted(zip(addresses, sizes, strict=True))
    if any(start + size > after for (start, size), (after, _) in pairwise(spans)):
        raise ProtocolError(SPLIT, f"ring {index}: its parts overlap")
    return Placement(*areas)


def settle(session: Session) -> Session:
    """Start the rings that have become complete, hold back those that no longer are."""
    return replace(session, rings=tuple(_settled(session, index) for index in range(len(session.rings))))


def _settled(session: Session, index: int) -> Ring:
    ring = session.rings[index]
    found = Settled.COMPLETE
    if ring.state is not RingState.STOPPED and _trouble(session, index):
        found = Settled.INCOMPLETE
    state = NEXT[ring.state, found]
    return ring if state is ring.state else replace(ring, state=state)


def _trouble(session: Session, index: int) -> str:
    missing = lacking(session, index)
    if not missing:
        try:
            ring_placement(session, index)
        except ProtocolError as error:
            return str(error)
    return missing


def stopped_at(session: Session, bases: Mapping[int, int]) -> Session:
    """The same session with the places where the data plane has let go of rings (after Apply)."""
    rings = [replace(ring, base=bases[i]) if i in bases else ring for i, ring in enumerate(session.rings)]
    return replace(session, rings=tuple(rings))
