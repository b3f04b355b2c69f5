# SPDX-License-Identifier: Apache-2.0
"""Lanes on an AF_XDP socket: frames lie in memory that the kernel and we share, and four rings say whose they are.

        fill        we ──► kernel      chunks that it may write frames to
        receive     kernel ──► we      frames; their chunks are ours until they stand in the fill ring again
        transmit    we ──► kernel      frames that it is to send
        completion  kernel ──► we      chunks that it has sent

Each ring has one producer and one consumer; either owns its index. Half of the chunks are for receiving, and there are
no more of them than entries in either ring, so neither ring can be full: a chunk leaves the receive ring before it
stands in the fill ring. A round reads frames where they lie, so their chunks go back with the next round. What the
kernel keeps of the wire, broadcasts above all, comes to the packet socket of the lane: it is read when there is nothing
else, and before anything else each PACKET_TURNS rounds.

Sending copies a frame into a chunk. A driver that takes frames only when it is asked says so in the ring's flags
(NEED_WAKEUP; in copy mode, always); the system call then sends 32 frames at most, and is repeated while it does. Frames
that it leaves in the ring are `pending`: the next round asks again. A frame counts as sent when the kernel has taken it:
those that stand in the ring of a device that went down (`refused`) wait there for its return, and later ones are dropped.
A ring cannot be unwound: the kernel remembers how far it was filled. linux-if_xdp.h
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import ETH_HLEN, ETH_TYPE_OFFSET, TPID_8021Q_LE, VLAN_HLEN
from vmq.abi.linux import EAGAIN, EBUSY, ENOBUFS, ENOMEM, MSG_DONTWAIT
from vmq.abi.xdp import XDP_RING_NEED_WAKEUP, desc
from vmq.dataplane.offload import swap16
from vmq.dataplane.packet import packet_receive
from vmq.dataplane.reasons import FROM_WIRE_ASTRAY, TO_WIRE_ERROR, TO_WIRE_FULL
from vmq.dataplane.state import BURST, FRAMES, M32, PIECES, frame, piece, super_frame, xdp_socket
from vmq.dataplane.wire import admit, normalise, refuse
from vmq.jit import (
    at,
    copy,
    int64,
    kernel,
    load_acquire,
    load_once,
    poke,
    store_release,
    system_call,
)

c_sendto = system_call("sendto", 6, wide=True)
c_recvfrom = system_call("recvfrom", 6, wide=True)

PACKET_TURNS = 16  # a read of an empty packet socket costs as much as some ten frames
OFFSET_BITS = 48  # of an address: above them, how far the frame begins behind it
KICKS = 64  # system calls of one burst at most


@kernel
def own_index(address: int) -> int:
    """An index that we alone write."""
    return int64(at(address, 1, np.uint32)[0])


@kernel
def their_index(address: int) -> int:
    """An index that the kernel writes. us: read it, then the entries | kernel: writes entries, then the index."""
    return int64(load_acquire(at(address, 1, np.uint32), 0))


@kernel
def advance(address: int, index: int) -> None:
    """Move an index of ours. us: last access to the entries, then the index | kernel: reads the index, then entries."""
    store_release(at(address, 1, np.uint32), 0, np.uint32(index & M32))


@kernel
def needs_wakeup(ring: Any) -> bool:
    """Whether the kernel wants to be called for what is in this ring."""
    return bool(int64(load_once(at(ring["flags"], 1, np.uint32), 0)) & XDP_RING_NEED_WAKEUP)


@kernel
def recycle(xsk: Any) -> None:
    """Give the chunks of the last round back to be filled: the entries that named them stand in the ring still."""
    lent = int64(xsk["lent"])
    if lent > 0:
        receive, fill = xsk["receive"], xsk["fill"]
        entries = at(receive["entries"], receive["size"], desc)
        slots = at(fill["entries"], fill["size"], np.uint64)
        first, place = own_index(receive["consumer"]), own_index(fill["producer"])
        for index in range(lent):
            entry = int64(entries[(first + index) & (int64(receive["size"]) - 1)]["addr"])
            slots[(place + index) & (int64(fill["size"]) - 1)] = entry & -int64(xsk["chunk"])
        advance(receive["consumer"], first + lent)
        advance(fill["producer"], place + lent)
        xsk["lent"] = 0
    if needs_wakeup(xsk["fill"]):  # its driver had run out of chunks
        c_recvfrom(xsk["fd"], 0, 0, MSG_DONTWAIT, 0, 0)


@kernel
def offset_of(address: int) -> int:
    """Where in the socket's memory a frame begins: how far behind its chunk, if the kernel says that, stands above the offset of that."""
    return (address & ((1 << OFFSET_BITS) - 1)) + (address >> OFFSET_BITS)


@kernel
def borrow(t: Any, w: Any, lane: Any, state: Any, receive: Any, memory: int, least: int) -> int:
    """Frames of a receive ring into the round; how many entries. Ours is what begins at `least` of the memory or behind it."""
    frames = at(w["frames"], FRAMES, frame)
    entries = at(receive["entries"], receive["size"], desc)
    first = own_index(receive["consumer"])
    room = min(BURST, int64(t["frame_limit"]) - int64(w["frame_count"]))
    count = max(min((their_index(receive["producer"]) - first) & M32, room), 0)
    for index in range(count):
        entry = entries[(first + index) & (int64(receive["size"]) - 1)]
        place = offset_of(int64(entry["addr"]))
        row = frames[w["frame_count"]]
        if place < least:
            refuse(state, int64(entry["len"]), FROM_WIRE_ASTRAY)
        elif normalise(state, row, memory + place, int64(entry["len"])):
            admit(w, lane, state, row, False)
    return count


@kernel
def xdp_receive(t: Any, w: Any, lane: Any, state: Any) -> int:
    """Fill the round from the AF_XDP socket, and in turn from the packet socket; whether there was anything."""
    xsk = at(lane["xdp"], 1, xdp_socket)[0]
    settle(xsk, state)
    if state["pending"] > 0 and state["refused"] == 0:
        kick(xsk, state)
    recycle(xsk)
    big = at(lane["held"], 1, super_frame)[0]
    begun = state["taken"] < state["have"] or big["next"] < big["count"]
    xsk["turn"] += 1
    turn = begun or xsk["turn"] >= PACKET_TURNS
    taken = packet_receive(t, w, lane, state) if turn else int64(0)
    xsk["lent"] = borrow(t, w, lane, state, xsk["receive"], int64(xsk["umem"]), 0)
    taken += xsk["lent"]
    if taken == 0 and not turn:
        turn = True
        taken = packet_receive(t, w, lane, state)
    if turn:
        xsk["turn"] = 0
    return taken


@kernel
def reclaim(xsk: Any) -> None:
    """Take back the chunks that were sent. An address is good for its chunk alone: kernels have lost its lowest bit."""
    ring = xsk["completion"]
    spare = at(xsk["spare"], xsk["transmit"]["size"], np.int64)
    slots = at(ring["entries"], ring["size"], np.uint64)
    first = own_index(ring["consumer"])
    count = (their_index(ring["producer"]) - first) & M32
    for index in range(count):
        spare[xsk["spare_count"]] = int64(slots[(first + index) & (int64(ring["size"]) - 1)]) & -int64(
            xsk["chunk"]
        )
        xsk["spare_count"] += 1
    if count > 0:
        advance(ring["consumer"], first + count)


@kernel
def waiting_to_leave(xsk: Any) -> int:
    """Frames that the kernel has not taken out of the transmit ring."""
    ring = xsk["transmit"]
    return (own_index(ring["producer"]) - their_index(ring["consumer"])) & M32


@kernel
def settle(xsk: Any, state: Any) -> None:
    """Count what the kernel has taken out of the transmit ring. It tells of a frame that it lost before it shows its index."""
    ring = xsk["transmit"]
    lengths = at(xsk["lengths"], ring["size"], np.int64)
    first, end = int64(xsk["counted"]), their_index(ring["consumer"])
    count = (end - first) & M32
    lost = min(count, int64(xsk["lost"]))
    xsk["lost"] -= lost
    for index in range(count - lost):
        state["frames_to_wire"] += 1
        state["bytes_to_wire"] += lengths[(first + index) & (int64(ring["size"]) - 1)]
    state["to_wire_drops"][TO_WIRE_FULL] += lost
    xsk["counted"] = end


@kernel
def kick(xsk: Any, state: Any) -> None:
    """Have the kernel send what is in the transmit ring, as far as it will; a frame that it takes and loses is named."""
    state["refused"] = 0
    left = waiting_to_leave(xsk)
    for _ in range(KICKS):
        if left == 0 or not needs_wakeup(xsk["transmit"]):
            break
        xsk["kicks"] += 1
        got = c_sendto(xsk["fd"], 0, 0, MSG_DONTWAIT, 0, 0)
        before, left = left, waiting_to_leave(xsk)
        xsk["lost"] += 1 if got == -EBUSY else 0  # it has taken one, and the device has not
        settle(xsk, state)
        reclaim(xsk)  # the kernel sends nothing more when the completion ring is full
        if got < 0 and got != -EBUSY and got != -EAGAIN and got != -ENOBUFS and got != -ENOMEM:
            state["refused"] = got
            break
        if got != -EBUSY and left == before:
            break
    state["pending"] = left if needs_wakeup(xsk["transmit"]) else 0


@kernel
def lay_down(w: Any, row: Any, to: int) -> int:
    """Write a frame with its tag at `to`; its length."""
    address, head = int64(row["address"]), int64(row["head"])
    place = to
    if row["tagged"]:
        copy(to, address, ETH_TYPE_OFFSET)
        poke(to + ETH_TYPE_OFFSET, np.uint16, np.uint16(TPID_8021Q_LE))
        poke(to + ETH_HLEN, np.uint16, np.uint16(swap16(int64(row["tci"]))))
        place += ETH_TYPE_OFFSET + VLAN_HLEN
        address, head = address + ETH_TYPE_OFFSET, head - ETH_TYPE_OFFSET
    copy(place, address, head)
    place += head
    pieces = at(w["pieces"], PIECES, piece)
    for index in range(row["piece_first"], row["piece_first"] + row["piece_count"]):
        copy(place, pieces[index]["address"], pieces[index]["length"])
        place += int64(pieces[index]["length"])
    return place - to


@kernel
def xdp_transmit(w: Any, lane: Any, state: Any) -> None:
    """Send what leaves."""
    xsk = at(lane["xdp"], 1, xdp_socket)[0]
    frames = at(w["frames"], FRAMES, frame)
    outgoing = at(w["outgoing"], FRAMES, np.int64)
    ring = xsk["transmit"]
    entries = at(ring["entries"], ring["size"], desc)
    spare = at(xsk["spare"], ring["size"], np.int64)
    lengths = at(xsk["lengths"], ring["size"], np.int64)
    settle(xsk, state)
    reclaim(xsk)
    if state["refused"] != 0 or xsk["spare_count"] < w["outgoing_count"]:
        kick(xsk, state)
    place = own_index(ring["producer"])
    for index in range(w["outgoing_count"]):
        row = frames[outgoing[index]]
        if state["refused"] != 0 or row["length"] > lane["frame_max"]:
            state["to_wire_drops"][TO_WIRE_ERROR] += 1
            continue
        if xsk["spare_count"] == 0:
            state["to_wire_drops"][TO_WIRE_FULL] += 1
            continue
        xsk["spare_count"] -= 1
        chunk = spare[xsk["spare_count"]]
        entry = entries[place & (int64(ring["size"]) - 1)]
        entry["addr"] = chunk
        entry["len"] = lay_down(w, row, int64(xsk["umem"]) + chunk)
        entry["options"] = 0
        lengths[place & (int64(ring["size"]) - 1)] = row["length"]
        place += 1
    advance(ring["producer"], place)
    kick(xsk, state)
