# SPDX-License-Identifier: Apache-2.0
"""Frames a guest sends: take the chains of one virtqueue, copy and check the head of each frame, let it in or not.

What is checked is what is delivered. The packet header and the first HEAD bytes of a frame are copied once into
memory of the engine; address, VLAN and source are judged on that copy, and that copy is what the receiver gets,
followed by the rest of the guest's buffers. A guest that rewrites its buffer meanwhile changes its payload, never
the header that a filter or the source check saw.

Chains are completed in order, after their frames were delivered: a reader of guest memory never outlives a round.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import (
    ETH_ALEN,
    ETH_HLEN,
    ETH_TYPE_OFFSET,
    MAC_GROUP_BIT,
    TPID_8021AD_LE,
    TPID_8021Q_LE,
    VLAN_HLEN,
    VLAN_VID_MASK,
)
from vmq.abi.layout import offset
from vmq.abi.virtio import NET_HDR_F_NEEDS_CSUM, net_hdr
from vmq.clock import now
from vmq.dataplane.classify import lookup, mac_at, owner_of
from vmq.dataplane.memory import drain
from vmq.dataplane.observe import capture_all
from vmq.dataplane.ports import report
from vmq.dataplane.reasons import (
    FAULT_BASE,
    FROM_GUEST_OFFLOAD,
    FROM_GUEST_SHORT,
    FROM_GUEST_SOURCE,
    FROM_GUEST_SPOOFED,
    FROM_GUEST_STORM,
    FROM_GUEST_TOO_LONG,
    FROM_GUEST_VLAN,
    VLAN_TRUNCATED,
)
from vmq.dataplane.split import read_ahead, walk
from vmq.dataplane.state import (
    BURST,
    CHAIN_MAX,
    EVENT_LEARN,
    EVENT_SPOOFED,
    FRAMES,
    FROM_GUEST,
    HEAD,
    HEAD_STRIDE,
    MAX_VPORTS,
    PIECES,
    STEPS,
    chain,
    engine,
    frame,
    learn,
    piece,
    port_state,
)
from vmq.jit import at, copy_short, int64, kernel, peek, poke

HEADER = net_hdr.itemsize
ADMITTED = 0
GSO_TYPE = offset(net_hdr, "gso_type")


@kernel
def untag(row: Any) -> int:
    """Take the outer 802.1Q tag of a frame out of band: ADMITTED, or -1 - drop. The first part is ours to move."""
    address = int64(row["address"])
    if int64(peek(address + ETH_TYPE_OFFSET, np.uint16)) != TPID_8021Q_LE:
        return ADMITTED
    if row["length"] < ETH_HLEN + VLAN_HLEN:
        return -1 - VLAN_TRUNCATED
    tci = int64(peek(address + ETH_HLEN, np.uint16))
    row["tci"] = ((tci & 255) << 8) | (tci >> 8)
    row["tagged"] = 1
    low, high = peek(address, np.uint64), peek(address + 8, np.uint32)
    poke(address + VLAN_HLEN, np.uint64, low)
    poke(address + VLAN_HLEN + 8, np.uint32, high)
    row["address"] = address + VLAN_HLEN
    row["head"] -= VLAN_HLEN
    row["length"] -= VLAN_HLEN
    return ADMITTED


@kernel
def into_segment(port: Any, row: Any) -> int:
    """Put a frame into the segment of its VM port: ADMITTED, or -1 - drop."""
    outcome = untag(row)
    if outcome != ADMITTED:
        return outcome
    vlan = int64(port["vlan"])
    if row["tagged"] and row["tci"] & VLAN_VID_MASK:
        return -1 - FROM_GUEST_VLAN
    # A tag behind a priority tag, or a service tag, would name a VLAN to the next switch.
    inner = int64(peek(int64(row["address"]) + ETH_TYPE_OFFSET, np.uint16))
    if inner in (TPID_8021Q_LE, TPID_8021AD_LE):
        return -1 - FROM_GUEST_VLAN
    if vlan:
        row["tci"] = (int64(row["tci"]) & ~VLAN_VID_MASK) | vlan
        row["tagged"] = 1
    row["vid"] = vlan
    return ADMITTED


@kernel
def may_learn(t: Any, port: Any, mac: int) -> bool:
    """Whether the source lies in one of the VM's `learn` prefixes, and there is room."""
    table = at(t["learns"], t["learn_count"], learn)
    for index in range(port["learn_first"], port["learn_first"] + port["learn_count"]):
        if (mac & table[index]["mask"]) == table[index]["value"]:
            return int64(port["learn_left"]) > 0
    return False


@kernel
def check_source(t: Any, w: Any, port: Any, number: int, row: Any) -> int:
    """The source-MAC check: ADMITTED, or -1 - drop. A new address in a learn prefix is reported and let in."""
    mac = mac_at(row["address"] + ETH_ALEN)
    if mac == 0 or mac & MAC_GROUP_BIT:
        return -1 - FROM_GUEST_SOURCE
    if mac == port["mac"]:
        return ADMITTED
    owner = owner_of(t, lookup(t, mac, int64(row["vid"]), int64(port["uplink"])))
    if owner == number:
        return ADMITTED
    if owner < 0 and may_learn(t, port, mac):
        report(w, EVENT_LEARN, number, mac)
        return ADMITTED
    if not port["spoof_check"]:
        return ADMITTED
    state = at(at(w["engine"], 1, engine)[0]["port_state"], MAX_VPORTS, port_state)[number]
    if state["spoofed"] == 0:  # once: a guest that changes its source with every frame floods nobody
        report(w, EVENT_SPOOFED, number, mac)
    state["spoofed"] = mac
    return -1 - FROM_GUEST_SPOOFED


@kernel
def check_storm(w: Any, port: Any, number: int, row: Any) -> int:
    """The limit of broadcast and multicast frames a second: ADMITTED, or -1 - drop. A burst of BURST is let through."""
    gap = int64(port["storm_gap"])
    if gap == 0 or not mac_at(row["address"]) & MAC_GROUP_BIT:
        return ADMITTED
    state = at(at(w["engine"], 1, engine)[0]["port_state"], MAX_VPORTS, port_state)[number]
    time = now(w)
    due = max(int64(state["storm_due"]), time - BURST * gap)
    if due > time:
        return -1 - FROM_GUEST_STORM
    state["storm_due"] = due + gap
    return ADMITTED


@kernel
def read_head(pieces: Any, first: int, end: int, header: int, to: int, count: int) -> int:
    """Copy the packet header and `count` bytes of the frame off the pieces of a chain; the first piece still in use."""
    row = pieces[first]
    if end != first + 1:
        first = drain(pieces, first, end, header, HEADER)
        return drain(pieces, first, end, to, count)
    base = int64(row["address"])
    copy_short(header, base, HEADER)
    copy_short(to, base + HEADER, count)
    row["address"] = base + HEADER + count
    row["length"] -= HEADER + count
    return first + 1 if row["length"] == 0 else first


@kernel
def take(t: Any, w: Any, port: Any, number: int, row: Any, first: int, end: int) -> int:
    """Make `row` of the chain pieces[first:end]: ADMITTED, or -1 - drop."""
    pieces = at(w["pieces"], PIECES, piece)
    total = int64(w["total"])
    if total < HEADER + ETH_HLEN:
        return -1 - FROM_GUEST_SHORT
    if total - HEADER > port["frame_max"] + VLAN_HLEN:
        return -1 - FROM_GUEST_TOO_LONG
    header = at(w["header"], 1, net_hdr)[0]
    length = total - HEADER
    head = min(length, HEAD)
    row["address"] = int64(w["heads"]) + int64(w["frame_count"]) * HEAD_STRIDE
    first = read_head(pieces, first, end, int64(w["header"]), int64(row["address"]), head)
    if header["flags"] & NET_HDR_F_NEEDS_CSUM or header["gso_type"]:
        return -1 - FROM_GUEST_OFFLOAD
    row["head"] = head
    row["length"] = length
    row["piece_first"] = first
    row["piece_count"] = end - first
    row["tci"] = 0
    row["tagged"] = 0
    row["source"] = number
    row["uplink"] = port["uplink"]
    if w["captures"]:  # as it came: what is refused below is what somebody looks for
        capture_all(w, int64(w["captures"]), row, 0, FROM_GUEST, int64(w["taken"]))
    outcome = into_segment(port, row)
    if outcome != ADMITTED:
        return outcome
    if row["length"] > port["frame_max"]:
        return -1 - FROM_GUEST_TOO_LONG
    outcome = check_source(t, w, port, number, row)
    return outcome if outcome != ADMITTED else check_storm(w, port, number, row)


@kernel
def take_at_once(w: Any, port: Any, number: int, row: Any, ahead: Any) -> bool:
    """The common frame: in one buffer, untagged, from the VM's own address to one station. Else nothing happened: `take` it.

    What `take` would do, without its lists and tests that such a frame passes; judged on the one copy, too.
    """
    host, length = int64(ahead["address"]), int64(ahead["length"]) - HEADER
    if host == 0 or length < ETH_HLEN or length > port["frame_max"] or w["captures"]:
        return False
    if int64(peek(host, np.uint8)) & NET_HDR_F_NEEDS_CSUM or peek(host + GSO_TYPE, np.uint8):
        return False
    head = min(length, HEAD)
    address = int64(w["heads"]) + int64(w["frame_count"]) * HEAD_STRIDE
    copy_short(address, host + HEADER, head)
    source, tpid = mac_at(address + ETH_ALEN), int64(peek(address + ETH_TYPE_OFFSET, np.uint16))
    if source != port["mac"] or source == 0 or (source | mac_at(address)) & MAC_GROUP_BIT:
        return False
    if tpid in (TPID_8021Q_LE, TPID_8021AD_LE):
        return False
    vlan, count = int64(port["vlan"]), int64(w["piece_count"])
    row["address"], row["head"], row["length"] = address, head, length
    row["piece_first"], row["piece_count"] = count, 0
    row["vid"], row["tci"], row["tagged"] = vlan, vlan, 1 if vlan else 0
    row["source"], row["uplink"] = number, port["uplink"]
    if length > head:
        rest = at(w["pieces"], PIECES, piece)[count]
        rest["address"], rest["length"] = host + HEADER + head, length - head
        row["piece_count"], w["piece_count"] = 1, count + 1
    return True


@kernel
def collect(t: Any, w: Any, number: int, port: Any, vq: Any, ring: Any, books: Any, ready: int) -> int:
    """Take up to `ready` chains: frames in w["frames"], chains in w["chains"], a fault in w["broken"]; chains taken.

    The chains stay available until `give_back`. One in more pieces, or of more descriptors, than this round has left
    waits for the next.
    """
    w["steps_left"] = STEPS
    frames = at(w["frames"], FRAMES, frame)
    pieces = at(w["pieces"], PIECES, piece)
    chains = at(w["chains"], BURST, chain)
    taken = volume = int64(0)
    account = books["account"]
    read_ahead(t, port, vq, ring, 0, chains, ready)
    while taken < ready and w["piece_count"] < PIECES - 2 * CHAIN_MAX:
        row, ahead = frames[w["frame_count"]], chains[taken]
        if take_at_once(w, port, number, row, ahead):
            volume += row["length"]
            w["frame_count"] += 1
            taken += 1
            continue
        first = int64(w["piece_count"])
        end = walk(t, w, port, vq, ring, int64(ahead["head"]), 0, pieces, first)
        if end <= -1 - FAULT_BASE:
            w["broken"] = -1 - FAULT_BASE - end
            break
        if end == -1 - FROM_GUEST_TOO_LONG and taken > 0:
            break
        outcome = end if end < 0 else take(t, w, port, number, row, first, end)
        if end >= 0:
            volume += max(int64(w["total"]) - HEADER, 0)
        if outcome < 0:
            account["drops"][-1 - outcome] += 1
        else:
            w["frame_count"] += 1
            w["piece_count"] = end
        taken += 1
    books["frames_from_guest"] += taken
    books["bytes_from_guest"] += volume
    return taken
