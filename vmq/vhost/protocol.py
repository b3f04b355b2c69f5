# SPDX-License-Identifier: Apache-2.0
"""The vhost-user protocol of a network back-end: a message and a session in, a new session and actions out.

    outcome = handle(session, message)          pure: no I/O, the old session stays as it was
    run(outcome.actions)                        in order; the connection keeps outcome.session afterwards

RULES has a row a request: how its payload is read, what it makes of the session, how it is answered. What must be
done outside is not written there but found by `actions.plan`, which compares the two sessions; answers come last.

A refused message leaves the session as it was, its descriptors are closed, and it is answered if an answer is due.
SET_FEATURES is the exception: a driver that believes in other features than we do must not run, so its rings are
held back until it makes an acceptable choice.

Where QEMU and the specification leave a choice: a question is answered whoever asks, a change needs its protocol
feature; need_reply is honoured even without REPLY_ACK; descriptors on messages that take none are closed and the
message is done; SET_OWNER forgets all but the protocol features, which QEMU sets before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from vmq.abi import virtio
from vmq.abi.ethernet import MAC_GROUP_BIT, MAC_MASK, MTU_MAX, MTU_MIN
from vmq.abi.vhost_user import (
    U64,
    VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    VHOST_USER_PROTOCOL_F_LOG_SHMFD,
    VHOST_USER_PROTOCOL_F_MTU,
    VHOST_USER_PROTOCOL_F_RARP,
    VHOST_USER_PROTOCOL_F_RESET_DEVICE,
    VHOST_USER_PROTOCOL_F_STATUS,
    VHOST_VRING_F_LOG,
    VRING_STATE,
    Request,
)
from vmq.errors import ProtocolError
from vmq.vhost import message as wire
from vmq.vhost.actions import Action, Announce, Reply, ReplyRingBase, Telling, plan
from vmq.vhost.message import Log, Message, Region, VringAddr, VringFd, VringState
from vmq.vhost.session import (
    NEXT,
    PARTS,
    RING_STATES,
    SPLIT,
    Addresses,
    Ring,
    RingState,
    Session,
    lacking,
    mask,
    ring_placement,
    settle,
)

MESSAGES = 'vhost-user "Front-end message types"'
MEMORY = 'vhost-user "Memory region description"'
FEATURE_BITS = "virtio-1.2 §2.2 Feature Bits"
ADDRESS_LIMIT = 1 << 63  # beyond is no file offset, and a negative number to a kernel
REFUSED = U64.pack(1)
DONE = U64.pack(0)


# --- entries --------------------------------------------------------------------------------------------------


class Answer(Enum):
    """When a request is answered; never more than once."""

    ACK_IF_ASKED = "0 or not 0, if need_reply is set"
    ACK = "0 or not 0, always"
    VALUE = "what was asked for, always"


@dataclass(frozen=True, slots=True)
class Rule:
    """One request: how to read it, what it changes, what is told, and the protocol feature it needs."""

    parse: Callable[[Message], Any]
    change: Callable[[Session, Any], Session]
    answer: Answer = Answer.ACK_IF_ASKED
    tell: Callable[[Session, Any], tuple[Telling, ...]] = lambda _session, _body: ()
    needs: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    session: Session
    actions: tuple[Action, ...]
    error: ProtocolError | None = None  # why the message was refused
    idle: bool = False  # accepted without effect: a repetition, or something to ignore


def handle(session: Session, message: Message) -> Outcome:
    """What a message does. Never raises for what a front-end sends."""
    try:
        rule = _rule(session, message)
        body = rule.parse(message)
        after = rule.change(session, body)
    except ProtocolError as error:
        return refusal(session, message, error)
    after = session if after == session else settle(after)
    actions = plan(session, after, message)
    told = rule.tell(after, body)
    idle = after is session and not told
    if rule.answer is Answer.ACK or (rule.answer is Answer.ACK_IF_ASKED and message.need_reply):
        told = (*told, Reply(wire.reply(message.request, DONE)))
    return Outcome(after, (*actions, *told), idle=idle)


def refusal(session: Session, message: Message, error: ProtocolError) -> Outcome:
    """The message is not done: its descriptors are closed, an answer that is due says so."""
    error = ProtocolError(error.rule, f"{message.name}: {error.wrong}", error.remedy)
    after = session
    if message.request == Request.SET_FEATURES:
        after = settle(replace(session, refused=str(error)))
    told: tuple[Telling, ...] = ()
    rule = RULES.get(message.request)
    answer = rule.answer if rule else REFUSED_WITH.get(message.request, Answer.ACK_IF_ASKED)
    if answer is Answer.VALUE:  # any number would be believed; none cannot be
        told = (Reply(wire.reply(message.request, b"")),)
    elif answer is Answer.ACK or message.need_reply:
        told = (Reply(wire.reply(message.request, REFUSED)),)
    return Outcome(after, (*plan(session, after, message), *told), error)


def disconnect(session: Session) -> Outcome:
    """The front-end has gone: let go of everything, from whatever state."""
    after = Session.new(session.offer)
    return Outcome(after, plan(session, after))


def ring_base(session: Session, index: int) -> Reply:
    """The answer to GET_VRING_BASE."""
    return Reply(wire.reply(Request.GET_VRING_BASE, VRING_STATE.pack(index, session.rings[index].base)))


# --- what messages make of a session --------------------------------------------------------------------------


def _ring(session: Session, request: Request, index: int, **changes: Any) -> Session:
    """The session with one ring changed as a message says. Every message about a ring comes through here."""
    if index >= len(session.rings):
        wrong = f"ring {index} does not exist: this VM port has rings 0 to {len(session.rings) - 1}"
        raise ProtocolError('vhost-user "Multiple queue support"', wrong)
    ring = session.rings[index]
    state = NEXT.get((ring.state, request))
    if state is None:
        wrong = f"ring {index}: not while the ring is {ring.state.name.lower()}"
        raise ProtocolError(RING_STATES, wrong)
    changed = replace(ring, state=state, **changes)
    return replace(session, rings=(*session.rings[:index], changed, *session.rings[index + 1 :]))


def _fitting(session: Session, index: int) -> Session:
    """The same session; ProtocolError if this ring is to run and has all parts, but in a wrong place."""
    if session.rings[index].state is not RingState.STOPPED and not lacking(session, index):
        ring_placement(session, index)
    return session


def _same(session: Session, _body: object) -> Session:
    return session


def _set_features(session: Session, features: int) -> Session:
    unknown = [bit for bit in range(64) if features & ~session.offer.features & mask(bit)]
    if unknown:
        raise ProtocolError(FEATURE_BITS, f"feature bits {unknown} were not offered")
    if not features & mask(virtio.VIRTIO_F_VERSION_1):
        raise ProtocolError(
            "virtio-1.2 §6.1 Driver Requirements: Reserved Feature Bits",
            "the driver did not choose VIRTIO_F_VERSION_1: it is a legacy driver (virtio 0.95)",
            "use a driver of virtio 1.0 or later; QEMU: disable-legacy=on,disable-modern=off on the device",
        )
    changed = (features ^ (session.features or 0)) & ~mask(virtio.VHOST_F_LOG_ALL)
    if session.started and changed:
        raise ProtocolError(FEATURE_BITS, "features changed while rings are started")
    return replace(session, features=features, refused="")


def _set_protocol_features(session: Session, features: int) -> Session:
    unknown = [bit for bit in range(64) if features & ~session.offer.protocol_features & mask(bit)]
    if unknown:
        raise ProtocolError('vhost-user "Protocol features"', f"bits {unknown} were not offered")
    return replace(session, protocol_features=features)


def _set_owner(session: Session, _body: None) -> Session:
    return replace(Session.new(session.offer), owned=True, protocol_features=session.protocol_features)


def _reset_owner(session: Session, _body: None) -> Session:
    """Deprecated; QEMU 7.2 sends it for a reset when RESET_DEVICE is absent. State must survive it."""
    return replace(session, rings=tuple(replace(ring, enabled=False) for ring in session.rings))


def _reset_device(session: Session, _body: None) -> Session:
    """Connection, owner and memory stay, and the eventfds that QEMU gives only once."""
    rings = tuple(
        Ring(NEXT[ring.state, Request.RESET_DEVICE], call=ring.call, err=ring.err) for ring in session.rings
    )
    return replace(session, rings=rings, features=None, refused="", status=0, mtu=0)


def _set_mem_table(session: Session, regions: tuple[Region, ...]) -> Session:
    table: tuple[Region, ...] = ()
    for region in regions:
        table = _with_region(table, region)
    return replace(session, regions=table)


def _add_mem_reg(session: Session, region: Region) -> Session:
    table = _with_region(session.regions, region)
    if len(table) > session.offer.mem_slots:
        raise ProtocolError(MESSAGES, f"more than {session.offer.mem_slots} memory regions")
    return replace(session, regions=table)


def _rem_mem_reg(session: Session, region: Region) -> Session:
    """One that is not there is no fault: QEMU 7.2 repeats the message for each queue pair."""
    return replace(session, regions=tuple(known for known in session.regions if known.place != region.place))


def _with_region(table: tuple[Region, ...], region: Region) -> tuple[Region, ...]:
    """The table with one more region; unchanged if it is there (QEMU 7.2 sends each once a queue pair)."""
    where = f"region at guest address {region.gpa:#x}"
    if not region.size:
        raise ProtocolError(MEMORY, f"{where}: size 0")
    if any(start + region.size > ADDRESS_LIMIT for start in (region.gpa, region.uaddr, region.offset)):
        raise ProtocolError(MEMORY, f"{where}: size {region.size:#x} goes beyond 2^63")
    # What is aligned for the driver and the front-end must be so where we map it: atomics need it.
    if len({start % virtio.DESC_ALIGN for start in (region.gpa, region.uaddr, region.offset)}) > 1:
        raise ProtocolError(MEMORY, f"{where}: its addresses and its offset are not aligned alike")
    for known in table:
        if known.place == region.place:
            return table
        if region.gpa < known.gpa + known.size and known.gpa < region.gpa + region.size:
            raise ProtocolError(MEMORY, f"{where}: overlaps the region at {known.gpa:#x}")
    return (*table, region)


def _set_log_base(session: Session, log: Log) -> Session:
    if not log.size or log.size + log.offset > ADDRESS_LIMIT:
        wrong = f"size {log.size:#x} at offset {log.offset:#x} is no part of a file"
        raise ProtocolError('vhost-user "Log description"', wrong)
    return replace(session, log=log)


def _set_vring_num(session: Session, state: VringState) -> Session:
    after = _ring(session, Request.SET_VRING_NUM, state.index, size=state.num)
    if not 0 < state.num <= session.offer.ring_size_max:
        limit = session.offer.ring_size_max
        raise ProtocolError(SPLIT, f"ring {state.index}: size {state.num} is not 1 to {limit}")
    if state.num & (state.num - 1):
        raise ProtocolError(SPLIT, f"ring {state.index}: size {state.num} is not a power of two")
    return _fitting(after, state.index)


def _set_vring_addr(session: Session, addr: VringAddr) -> Session:
    addresses = Addresses(addr.desc, addr.avail, addr.used, addr.flags, addr.log)
    after = _ring(session, Request.SET_VRING_ADDR, addr.index, addresses=addresses)
    if addr.flags & ~VHOST_VRING_F_LOG:
        wrong = f"ring {addr.index}: flags {addr.flags:#x} has unknown bits"
        raise ProtocolError('vhost-user "A vring address description"', wrong)
    aligns = (virtio.DESC_ALIGN, virtio.AVAIL_ALIGN, virtio.USED_ALIGN)
    for name, uaddr, align in zip(PARTS, (addr.desc, addr.avail, addr.used), aligns, strict=True):
        if uaddr % align:
            wrong = f"ring {addr.index}: {name} at {uaddr:#x} is not aligned to {align}"
            raise ProtocolError(SPLIT, wrong)
    return _fitting(after, addr.index)


def _set_vring_base(session: Session, state: VringState) -> Session:
    return _ring(session, Request.SET_VRING_BASE, state.index, base=state.num)


def _get_vring_base(session: Session, state: VringState) -> Session:
    """Addresses are given anew at each start: a driver may come back with fewer rings, elsewhere."""
    return _ring(session, Request.GET_VRING_BASE, state.index, addresses=None, kick=-1)


def _set_vring_kick(session: Session, ring: VringFd) -> Session:
    return _fitting(_ring(session, Request.SET_VRING_KICK, ring.index, kick=ring.fd), ring.index)


def _set_vring_call(session: Session, ring: VringFd) -> Session:
    return _ring(session, Request.SET_VRING_CALL, ring.index, call=ring.fd)


def _set_vring_err(session: Session, ring: VringFd) -> Session:
    return _ring(session, Request.SET_VRING_ERR, ring.index, err=ring.fd)


def _set_vring_enable(session: Session, state: VringState) -> Session:
    after = _ring(session, Request.SET_VRING_ENABLE, state.index, enabled=bool(state.num))
    if state.num > 1:
        raise ProtocolError(RING_STATES, f"ring {state.index}: {state.num} is neither 0 nor 1")
    return after


def _net_set_mtu(session: Session, mtu: int) -> Session:
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise ProtocolError(MESSAGES, f"{mtu} is not {MTU_MIN} to {MTU_MAX}")
    return replace(session, mtu=mtu)


def _set_status(session: Session, status: int) -> Session:
    """Recorded, no more: 0 comes from QEMU 7.2 before the last GET_VRING_BASE, and must not touch an index."""
    if status >= 1 << 8:
        raise ProtocolError("virtio-1.2 §2.1 Device Status Field", f"{status} is not one byte")
    return replace(session, status=status)


def _announced(_session: Session, value: int) -> tuple[Telling, ...]:
    """The address is in the first six bytes; a group address or none is not anybody's."""
    mac = value & MAC_MASK
    return (Announce(mac),) if mac and not mac & MAC_GROUP_BIT else ()


# --- the table ------------------------------------------------------------------------------------------------


def _question(request: Request) -> Rule:
    def tell(session: Session, _body: None) -> tuple[Telling, ...]:
        return (Reply(wire.reply(request, U64.pack(QUESTIONS[request](session)))),)

    return Rule(wire.nothing, _same, Answer.VALUE, tell)


def _asks_base(_session: Session, state: VringState) -> tuple[Telling, ...]:
    return (ReplyRingBase(state.index),)


QUESTIONS: dict[Request, Callable[[Session], int]] = {
    Request.GET_FEATURES: lambda session: session.offer.features,
    Request.GET_PROTOCOL_FEATURES: lambda session: session.offer.protocol_features,
    Request.GET_QUEUE_NUM: lambda session: session.offer.max_pairs,
    Request.GET_MAX_MEM_SLOTS: lambda session: session.offer.mem_slots,
    Request.GET_STATUS: lambda session: session.status,
}

RULES: dict[int, Rule] = {
    **{request: _question(request) for request in QUESTIONS},
    Request.SET_FEATURES: Rule(wire.u64, _set_features),
    Request.SET_OWNER: Rule(wire.nothing, _set_owner),
    Request.RESET_OWNER: Rule(wire.nothing, _reset_owner),
    Request.SET_MEM_TABLE: Rule(wire.regions, _set_mem_table),
    Request.SET_LOG_BASE: Rule(wire.log, _set_log_base, Answer.ACK, needs=VHOST_USER_PROTOCOL_F_LOG_SHMFD),
    Request.SET_LOG_FD: Rule(wire.nothing, _same, needs=VHOST_USER_PROTOCOL_F_LOG_SHMFD),
    Request.SET_VRING_NUM: Rule(wire.vring_state, _set_vring_num),
    Request.SET_VRING_ADDR: Rule(wire.vring_addr, _set_vring_addr),
    Request.SET_VRING_BASE: Rule(wire.vring_state, _set_vring_base),
    Request.GET_VRING_BASE: Rule(wire.vring_state, _get_vring_base, Answer.VALUE, _asks_base),
    Request.SET_VRING_KICK: Rule(wire.vring_fd, _set_vring_kick),
    Request.SET_VRING_CALL: Rule(wire.vring_fd, _set_vring_call),
    Request.SET_VRING_ERR: Rule(wire.vring_fd, _set_vring_err),
    Request.SET_PROTOCOL_FEATURES: Rule(wire.u64, _set_protocol_features),
    Request.SET_VRING_ENABLE: Rule(wire.vring_state, _set_vring_enable),
    Request.SEND_RARP: Rule(wire.u64, _same, tell=_announced, needs=VHOST_USER_PROTOCOL_F_RARP),
    Request.NET_SET_MTU: Rule(wire.u64, _net_set_mtu, needs=VHOST_USER_PROTOCOL_F_MTU),
    Request.RESET_DEVICE: Rule(wire.nothing, _reset_device, needs=VHOST_USER_PROTOCOL_F_RESET_DEVICE),
    Request.ADD_MEM_REG: Rule(
        wire.added_region, _add_mem_reg, needs=VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS
    ),
    Request.REM_MEM_REG: Rule(
        wire.removed_region, _rem_mem_reg, needs=VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS
    ),
    Request.SET_STATUS: Rule(wire.u64, _set_status, needs=VHOST_USER_PROTOCOL_F_STATUS),
}

# Requests of features that are never offered, whose sender waits for an answer all the same.
REFUSED_WITH: dict[int, Answer] = {
    Request.IOTLB_MSG: Answer.ACK,
    Request.GET_CONFIG: Answer.VALUE,
    Request.CREATE_CRYPTO_SESSION: Answer.VALUE,
    Request.POSTCOPY_ADVISE: Answer.VALUE,
    Request.POSTCOPY_END: Answer.ACK,
    Request.GET_INFLIGHT_FD: Answer.VALUE,
    Request.GET_SHARED_OBJECT: Answer.VALUE,
    Request.SET_DEVICE_STATE_FD: Answer.ACK,
    Request.CHECK_DEVICE_STATE: Answer.ACK,
}


def _rule(session: Session, message: Message) -> Rule:
    rule = RULES.get(message.request)
    if rule is None:
        raise ProtocolError(MESSAGES, "this back-end does not offer it")
    if rule.needs is not None and not session.protocol_features >> rule.needs & 1:
        wrong = f"protocol feature {rule.needs} was not chosen"
        raise ProtocolError('vhost-user "Protocol features"', wrong)
    return rule
