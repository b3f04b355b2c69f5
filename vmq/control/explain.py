# SPDX-License-Identifier: Apache-2.0
"""Where a frame would go, and why: the decision of the data plane, taken again in plain Python and told in words.

    parameters ──► Question ──► admit (source, VLAN) ──► decide (filter, group, default) ──► what stands behind it

`decide` is dataplane/classify.py once more, over the engine's VM ports instead of its hash table, and `admit` is
dataplane/from_guest.py. That they agree is a test's to see: it asks both about every pair of the truth table. Nothing
is sent and nothing counted.

A frame comes from the wire if an uplink is named; else from the VM that is named, or that has its source address as
a filter; else from the wire.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vmq.abi.ethernet import (
    ETH_ALEN,
    ETH_HLEN,
    ETH_P_8021Q,
    ETH_TYPE_OFFSET,
    LINK_LOCAL_MASK,
    LINK_LOCAL_VALUE,
    MAC_BROADCAST,
    MAC_GROUP_BIT,
    VLAN_HLEN,
    VLAN_VID_MASK,
    mac_number,
    mac_text,
)
from vmq.control.filtered import Frame, Outline, rule
from vmq.control.misses import filters_of, of_vm
from vmq.control.views import drops, last_error
from vmq.dataplane import reasons, state
from vmq.engine.engine import Engine
from vmq.engine.vm import Vm, prefix_of
from vmq.errors import ApiError

_SENTENCES = dict(reasons.DROPS)
Answer = dict[str, Any]


@dataclass
class Question:
    """One frame: what a filter sees of it, and where it comes from."""

    mac: int
    source_mac: int | None = None  # None: nobody has said; a VM's own
    tag: int | None = None  # VLAN id of its tag
    length: int | None = None  # without tag
    truncated: bool = False  # it ends inside its tag
    data: bytes | None = None  # all of it, without tag
    tci: int | None = None  # of its tag
    vm: Vm | None = None  # who sends it; None: the wire
    uplink: str | None = None


@dataclass
class Decision:
    """What becomes of it: a drop by name, or deliveries and perhaps the wire."""

    drop: str = ""
    vms: list[Vm] = field(default_factory=list)
    pair: int = 0  # of the one VM: which of its receive queues
    to_wire: bool = False
    flooded: bool = False  # for all who accept such frames
    unless: str = ""  # which filter might decide otherwise
    steps: list[str] = field(default_factory=list)
    remedy: str | None = None


def explain(engine: Engine, params: dict[str, Any]) -> Answer:
    """The API's method: which filter and which receive queue a frame meets, or why none."""
    question = ask(engine, params)
    decision = Decision()
    vid = admit(engine, question, decision)
    if not decision.drop:
        decide(engine, question, vid, decision)
    return _answer(question, vid, decision)


# --- the question -----------------------------------------------------------------------------------------------


def ask(engine: Engine, params: dict[str, Any]) -> Question:
    """The parameters, understood; ApiError when they are not."""
    unknown = sorted(set(params) - {"mac", "vlan", "uplink", "source", "hex"})
    if unknown:
        raise _wrong(f"no parameter {unknown[0]!r}", "one of mac, vlan, uplink, source, hex")
    question = _of_bytes(params["hex"]) if params.get("hex") is not None else None
    if params.get("mac") is not None:
        destination = _mac("mac", params["mac"])
        question = question or Question(destination)
        question.mac = destination
    if question is None:
        raise _wrong("no frame is given", "give mac, hex or both")
    vlan = params.get("vlan")
    if vlan is not None:
        if type(vlan) is not int or not 0 <= vlan <= VLAN_VID_MASK:
            raise _wrong(f"vlan: {vlan!r} is no VLAN id", f"give a number from 0 to {VLAN_VID_MASK}")
        question.tag = vlan
        question.tci = (question.tci or 0) & ~VLAN_VID_MASK | vlan
    _sender(engine, question, params.get("source"), params.get("uplink"))
    return question


def _wrong(message: str, remedy: str) -> ApiError:
    return ApiError("INVALID_PARAMETER", message, remedy)


def _mac(key: str, text: object) -> int:
    try:
        return mac_number(str(text))
    except ValueError as error:
        raise _wrong(f"{key}: {text!r} is no MAC address", "write it as 52:54:00:00:00:01") from error


def _of_bytes(text: object) -> Question:
    """Destination, source and tag of a whole frame."""
    digits = str(text)
    if not re.fullmatch(r"(?:[0-9a-fA-F]{2})+", digits) or len(digits) > 2 * state.FRAME_MAX:
        raise _wrong("hex: this is no frame", f"two digits a byte, at most {state.FRAME_MAX} bytes")
    frame = bytes.fromhex(digits)
    if len(frame) < ETH_HLEN:
        raise _wrong(f"hex: {len(frame)} bytes are no frame", f"give at least {ETH_HLEN} bytes")
    question = Question(
        mac=int.from_bytes(frame[:ETH_ALEN], "little"),
        source_mac=int.from_bytes(frame[ETH_ALEN : 2 * ETH_ALEN], "little"),
        length=len(frame),
    )
    if int.from_bytes(frame[ETH_TYPE_OFFSET:ETH_HLEN], "big") == ETH_P_8021Q:
        question.truncated = len(frame) < ETH_HLEN + VLAN_HLEN
        question.tag = int.from_bytes(frame[ETH_HLEN : ETH_HLEN + 2], "big") & VLAN_VID_MASK
        question.length = len(frame) - VLAN_HLEN
        question.tci = int.from_bytes(frame[ETH_HLEN : ETH_HLEN + 2], "big")
        frame = frame[:ETH_TYPE_OFFSET] + frame[ETH_TYPE_OFFSET + VLAN_HLEN :]
    question.data = frame
    return question


def _sender(engine: Engine, question: Question, source: object, uplink: object) -> None:
    """Which VM sends it, or from which uplink it comes."""
    if uplink is not None and not (isinstance(uplink, str) and uplink in engine.uplinks):
        known = ", ".join(engine.uplinks) or "there is none"
        raise _wrong(f"uplink: no uplink {uplink!r}", f"one of: {known}")
    if isinstance(source, str) and source in engine.vms:
        question.vm = engine.vms[source]
    else:
        if source is not None:
            question.source_mac = _mac("source", source)
        if source is not None or uplink is None:
            owners = (vm for vm in engine.vms.values() if question.source_mac in vm.macs)
            question.vm = next(owners, None)
    if question.vm is not None:
        if uplink is not None and uplink != question.vm.config.uplink:
            own = question.vm.config.uplink
            raise _wrong(f"uplink: {question.vm.name} is not on {uplink}", f"leave it out, or give {own}")
        question.uplink = question.vm.config.uplink
        return
    if uplink is None and len(engine.uplinks) > 1:
        known = ", ".join(engine.uplinks)
        raise _wrong("uplink: there are several", f"say which one the frame comes from: {known}")
    question.uplink = uplink if uplink is not None else next(iter(engine.uplinks), None)


# --- the decision -----------------------------------------------------------------------------------------------


def admit(engine: Engine, question: Question, decision: Decision) -> int:
    """Let the frame in, or name the drop; the VLAN id of its segment."""
    vm, tag = question.vm, question.tag or 0
    steps = decision.steps
    carried = "untagged" if question.tag is None else f"tagged with VLAN {tag}" if tag else "priority-tagged"
    if vm is None:
        where = f"uplink {question.uplink}" if question.uplink else "nowhere: there is no uplink"
        steps.append(f"it comes from {where}, {carried}: it belongs to {_segment(question.uplink, tag)}")
        opened = engine.uplinks.get(question.uplink or "")
        if question.truncated:
            decision.drop = "vlan_truncated"
        elif opened and question.length is not None and question.length > _longest(opened.uplink.lanes[0]):
            decision.drop = "from_wire_too_long"
        return tag
    vlan = vm.config.vlan or 0
    steps.append(f"VM {vm.name} sends it {carried}: it belongs to {_segment(question.uplink, vlan)}")
    if question.truncated:
        decision.drop = "vlan_truncated"
    elif tag:
        decision.drop = "from_guest_vlan"
        decision.remedy = (
            f"send it untagged: the segment of [vm.{vm.name}] is {_segment(question.uplink, vlan)}"
        )
    elif question.length is not None and question.length > vm.entry().frame_max:
        decision.drop = "from_guest_too_long"
        decision.remedy = (
            f"lower the MTU in the guest to {vm.mtu}, or raise mtu of [vm.{vm.name}] and its uplink"
        )
    else:
        _check_source(engine, vm, question.source_mac, decision)
    return vlan


def _longest(lane: Any) -> int:
    return int(lane["frame_max"])


def _check_source(engine: Engine, vm: Vm, mac: int | None, decision: Decision) -> None:
    """The source-MAC check of the data plane."""
    own = vm.macs[0] if mac is None else mac
    text, steps = mac_text(own), decision.steps
    if own in vm.macs:
        steps.append(f"its source {text} is one of the addresses of {vm.name}")
    elif own == 0 or own & MAC_GROUP_BIT:
        decision.drop = "from_guest_source"
    elif not (owner := _owner(engine, own, vm.config.vlan or 0, vm.config.uplink)) and _may_learn(vm, own):
        steps.append(f"its source {text} lies in a prefix that {vm.name} may learn, and becomes its filter")
    elif not vm.config.spoof_check:
        steps.append(f"its source {text} is not {vm.name}'s, but spoof_check is off")
    else:
        decision.drop = "from_guest_spoofed"
        decision.remedy = f'add "{text}" to mac of [vm.{vm.name}], or set its spoof_check = false'
        if owner:
            decision.remedy = f"let it send from its own address: {text} is {owner.name}'s"


def _may_learn(vm: Vm, mac: int) -> bool:
    within = any(mac & mask == value for mask, value in map(prefix_of, vm.config.learn))
    return within and vm.room > 0


def decide(engine: Engine, question: Question, vid: int, decision: Decision) -> None:
    """Find the receive queues, as dataplane/classify.py does."""
    from_guest, uplink, steps = question.vm is not None, question.uplink, decision.steps
    text, group = mac_text(question.mac), question.mac & MAC_GROUP_BIT
    if group and question.mac & LINK_LOCAL_MASK == LINK_LOCAL_VALUE and not _forwards(engine, uplink):
        decision.drop = "link_local"
        decision.remedy = f'set link_local = "forward" in [uplink.{uplink}]' if uplink else None
        return
    if _claimed(engine, question, vid, decision):
        return
    if group:
        decision.flooded, decision.to_wire = True, from_guest and uplink is not None
        steps.append(f"{text} is a group address")
        _flood(engine, question, vid, decision, "broadcast" if question.mac == MAC_BROADCAST else "multicast")
    else:
        owner = _owner(engine, question.mac, vid, uplink)
        if owner is not None and owner is question.vm:
            decision.drop = "own_address"
            return
        if owner is not None:
            source = owner.source(question.mac)
            kind = "configured" if source == "config" else source
            steps.append(f"{text} in {_segment(uplink, vid)} is a receive filter of VM {owner.name} ({kind})")
            decision.vms = [owner]
        else:
            steps.append(f"no receive filter names {text} in {_segment(uplink, vid)}")
            _near_misses(engine, question, vid, decision)
            _flood(engine, question, vid, decision, "unknown")
            decision.flooded = bool(decision.vms)
        decision.to_wire = owner is None and from_guest and uplink is not None
    if decision.to_wire:
        steps.append(f"it leaves through uplink {uplink}")
    if not decision.vms and not decision.to_wire:
        decision.drop = "no_filter" if from_guest else "default_queue"


def _flood(engine: Engine, question: Question, vid: int, decision: Decision, kind: str) -> None:
    """The VMs of its segment that accept such frames; nobody usually wants unknown ones, and that needs no words."""
    here = [vm for vm in engine.vms.values() if _in(vm, vid, question.uplink) and vm is not question.vm]
    decision.vms = [vm for vm in here if kind in vm.config.accept]
    if decision.vms or kind != "unknown":
        names = ", ".join(vm.name for vm in decision.vms) or "no other VM"
        decision.steps.append(
            f"every VM of {_segment(question.uplink, vid)} that accepts {kind} frames gets it: {names}"
        )
    without = [vm.name for vm in here if vm not in decision.vms]
    if without and kind != "unknown":
        decision.steps.append(f'without "{kind}" in accept: {", ".join(without)}')


def _claimed(engine: Engine, question: Question, vid: int, decision: Decision) -> bool:
    """Whether a generic filter takes it."""
    queues = engine.queues.get(question.uplink, engine.queues[None])
    ruling = rule(queues.effects, _seen(question, vid), question.vm, decision.steps)
    found = ruling.claim
    if ruling.doubtful:
        decision.unless = f", unless {'another' if found else 'a'} filter takes it"
    if found is None:
        return False
    decision.steps.append(found.words)
    decision.pair = found.pair
    if found.vm is None:
        decision.drop = "drop_queue"
    else:
        decision.vms = [found.vm]
    return True


def _seen(question: Question, vid: int) -> Frame | Outline:
    """What filters see of it: its bytes, to the destination that was asked for; else what is known without them."""
    vm = question.vm
    if question.data is not None:
        data = question.mac.to_bytes(ETH_ALEN, "little") + question.data[ETH_ALEN:]
        return Frame(data, question.tci, vid, vm is not None)
    source = vm.macs[0] if vm is not None and question.source_mac is None else question.source_mac
    return Outline(question.mac, vid, question.tag is not None or (vm is not None and vid > 0), source)


def _owner(engine: Engine, mac: int, vid: int, uplink: str | None) -> Vm | None:
    """The VM with this receive filter."""
    return next((vm for vm in engine.vms.values() if _in(vm, vid, uplink) and mac in vm.macs), None)


def _in(vm: Vm, vid: int, uplink: str | None) -> bool:
    return (vm.config.vlan or 0, vm.config.uplink) == (vid, uplink)


def _segment(uplink: str | None, vid: int) -> str:
    where = f"on uplink {uplink}" if uplink else "without uplink"
    return f"VLAN {vid} {where}" if vid else f"the untagged segment {where}"


def _forwards(engine: Engine, uplink: str | None) -> bool:
    opened = engine.uplinks.get(uplink or "")
    return opened is not None and opened.config.link_local == "forward"


def _near_misses(engine: Engine, question: Question, vid: int, decision: Decision) -> None:
    """The same address elsewhere: the usual mistake."""
    uplink = question.uplink
    for vm in engine.vms.values():
        if vm.config.uplink == uplink:
            decision.steps += [
                f"near miss: {words}" for mac, _, words in filters_of(vm) if mac == question.mac
            ]
        if question.mac not in vm.macs:
            continue
        own = vm.config.vlan or 0
        decision.steps.append(
            f"near miss: VM {vm.name} has this address in {_segment(vm.config.uplink, own)}"
        )
        seen = of_vm(vm)
        if seen.wrong_vlan:
            tag = f"VLAN {seen.seen_vlan}" if seen.seen_vlan else "no VLAN"
            decision.steps.append(f"so far {seen.wrong_vlan} frames to {vm.name} came so, the last in {tag}")
        if vm.config.uplink == uplink:
            ours = f"set vlan of [vm.{vm.name}] to {vid}" if vid else f"leave vlan out of [vm.{vm.name}]"
            decision.remedy = f"{ours}, or send " + (f"in VLAN {own}" if own else "untagged")
        elif decision.remedy is None:
            ours = (
                f'set uplink of [vm.{vm.name}] to "{uplink}"'
                if uplink
                else f"leave uplink out of [vm.{vm.name}]"
            )
            decision.remedy = (
                f"{ours}, or send it on {vm.config.uplink or 'no uplink: from a VM without one'}"
            )
    if decision.remedy is None and not (question.vm and uplink):
        decision.remedy = "add the address to mac of the VM that it is for"


# --- the answer -------------------------------------------------------------------------------------------------


def _answer(question: Question, vid: int, decision: Decision) -> Answer:
    names = [vm.name for vm in decision.vms]
    answer: Answer = {
        "verdict": "dropped",
        "vm": None,
        "queue": None,
        "reason": "",
        "steps": decision.steps,
        "remedy": decision.remedy,
        "drop": decision.drop or None,
        "vlan": vid,
        "members": names,
        "to_wire": decision.to_wire,
    }
    stands = [(vm, _obstacle(vm, decision.pair, question.length)) for vm in decision.vms]
    decision.steps += [line for vm, (_, why, _) in stands for line in _behind(vm, decision.pair, why)]
    reached = [vm for vm, (drop, _, _) in stands if not drop]
    if decision.drop:
        default = decision.drop == "default_queue"
        answer |= {"verdict": "default queue" if default else "dropped", "queue": 0 if default else None}
        answer["reason"] = f"{decision.drop}: {_SENTENCES[decision.drop]}"
    elif decision.flooded:
        answer["verdict"] = f"flooded to {_count(len(names))}" + (" and the wire" if decision.to_wire else "")
        missed = [f"{vm.name}: {why}" for vm, (drop, why, _) in stands if drop]
        answer["reason"] = f"not everybody gets it: {'; '.join(missed)}" if missed else ""
    elif decision.to_wire:
        answer["verdict"] = "sent to the wire"
    else:
        (vm,) = decision.vms
        drop, why, remedy = stands[0][1]
        answer |= {"vm": vm.name, "queue": decision.pair, "verdict": "delivered" if reached else "dropped"}
        if drop:
            answer |= {"drop": drop, "reason": f"{drop}: {why}", "remedy": remedy}
    return answer | {"verdict": answer["verdict"] + decision.unless}


def _count(number: int) -> str:
    return f"{number} VM{'' if number == 1 else 's'}"


def _obstacle(vm: Vm, pair: int, length: int | None) -> tuple[str, str, str | None]:
    """(drop, why, remedy) of a VM that gets nothing now; empty if it would get the frame."""
    error = last_error(vm)
    if vm.fault:
        return "to_guest_not_running", reasons.FAULTS[vm.fault][1], error["remedy"] if error else None
    if pair not in vm.running:
        remedy = (
            "start the VM: QEMU connects to "
            if vm.config.mode == "listen"
            else "start the VM: it listens at "
        )
        connected = vm.port.connection is not None
        known = (error["remedy"] if error else "") or "look into the guest: its driver starts the queue"
        why = vm.obstacle or f"the guest has not enabled receive queue {pair}"
        return "to_guest_not_running", why, known if connected else remedy + vm.config.socket
    if length is not None and length > vm.entry().frame_max:
        why = f"{length} bytes are more than the MTU of {vm.mtu} allows"
        return "to_guest_too_long", why, f"raise mtu of [vm.{vm.name}], or lower it at the sender"
    return "", "", None


def _behind(vm: Vm, pair: int, why: str) -> Iterator[str]:
    """What stands behind a decision for a VM."""
    cpu = vm.engine.workers[vm.queues[pair].worker].cpu
    how = "default queue" if vm.queues[pair].shared else f"receive queue {pair}"
    yield f"VM {vm.name}: {vm.state}, {how} on processor {cpu}" + (f"; {why}" if why else "")
    if duplicate := of_vm(vm).duplicate:
        yield f"VM {vm.name}: somebody on the wire sends from its address, {duplicate} frames so far"
    counted = drops(vm.queue_rows()["to_guest_drops"])
    if counted:
        listed = ", ".join(f"{name} {number}" for name, number in counted.items())
        yield f"VM {vm.name} has missed frames so far: {listed}"
