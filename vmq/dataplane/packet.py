# SPDX-License-Identifier: Apache-2.0
"""Lanes on a packet socket: a burst of messages a system call, each with the ten-byte virtio header in front.

    buffer   [room | header 10 | frame ........]      the frame begins at LEAD, on a boundary of 16 bytes
    control  [cmsghdr | tpacket_auxdata]              the VLAN tag that the kernel took out of the frame

The kernel hands frames up as its stack sees them: with checksums unfinished (veth) and as super-frames (GRO, veth).
Both are finished here in software, so that every receiver can take them; what cannot be is a named drop. A super-frame
makes many frames: the messages of one call, and the segments of one message, are therefore turned into frames over
as many rounds as it takes (`have`, `taken`, lane["held"]), and only then is the socket read again.

Sending leaves tags inside the frames (the kernel moves them) and an empty header in front. linux-if_packet.h
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import ETH_HLEN, ETH_P_8021Q, ETH_TYPE_OFFSET, VLAN_HLEN
from vmq.abi.layout import offset
from vmq.abi.linux import (
    EAGAIN,
    EINVAL,
    ENOBUFS,
    MSG_DONTWAIT,
    MSG_TRUNC,
    PACKET_AUXDATA,
    SOL_PACKET,
    TP_STATUS_VLAN_VALID,
    UIO_MAXIOV,
    cmsghdr,
    iovec,
    mmsghdr,
    tpacket_auxdata,
)
from vmq.abi.virtio import NET_HDR_F_NEEDS_CSUM, NET_HDR_GSO_ECN, NET_HDR_GSO_NONE, net_hdr
from vmq.dataplane.offload import checksum_offset, finish_checksum, plan, segment, segment_length, swap16
from vmq.dataplane.reasons import FROM_WIRE_OFFLOAD, RUNT, TO_WIRE_ERROR, TO_WIRE_FULL
from vmq.dataplane.state import ARENA, BURST, FRAMES, frame, super_frame
from vmq.dataplane.wire import VECTOR, admit, frame_vector, fresh, normalise, refuse
from vmq.jit import at, copy, int64, kernel, peek, poke, system_call

c_recvmmsg = system_call("recvmmsg", 5)
c_sendmmsg = system_call("sendmmsg", 4)

HEADER = offset(net_hdr, "num_buffers")  # a packet socket's header ends before this field
LEAD = 16
CONTROL = 64  # room for one message's control data
CONTROL_LEAST = cmsghdr.itemsize + tpacket_auxdata.itemsize
HEADER_STRIDE = 32  # an empty header and, at wire.TAG_ROOM, a tag
ADDRESSES = ETH_TYPE_OFFSET  # bytes of the two addresses


@kernel
def refill(lane: Any, state: Any) -> None:
    """Receive up to BURST messages. What the kernel wrote over in the headers of the last call is put right first."""
    messages = at(lane["messages"], BURST, mmsghdr)
    for index in range(BURST):
        message = messages[index]["hdr"]
        message["namelen"] = 0
        message["controllen"] = CONTROL
        message["flags"] = 0
    got = c_recvmmsg(lane["fd"], lane["messages"], BURST, MSG_DONTWAIT, 0)
    state["taken"] = 0
    state["have"] = max(got, 0)
    if got == -EINVAL:  # a super-frame of a kind that the header cannot express; the kernel threw it away
        refuse(state, 0, FROM_WIRE_OFFLOAD)


@kernel
def outer_tag(message: Any) -> tuple[int, int]:
    """TPID and TCI of the tag that the kernel took out; (0, 0) without."""
    if int64(message["controllen"]) < CONTROL_LEAST:
        return int64(0), int64(0)
    control = at(message["control"], 1, cmsghdr)[0]
    if control["level"] != SOL_PACKET or control["type"] != PACKET_AUXDATA:
        return int64(0), int64(0)
    told = at(int64(message["control"]) + cmsghdr.itemsize, 1, tpacket_auxdata)[0]
    if not int64(told["status"]) & TP_STATUS_VLAN_VALID:
        return int64(0), int64(0)
    return int64(told["vlan_tpid"]), int64(told["vlan_tci"])


@kernel
def put_back(row: Any, tpid: int, tci: int) -> None:
    """Put a tag that is not 802.1Q's back into its frame: to us it is payload. LEAD has room for it."""
    address = int64(row["address"])
    low, high = peek(address, np.uint64), peek(address + 8, np.uint32)
    address -= VLAN_HLEN
    poke(address, np.uint64, low)
    poke(address + 8, np.uint32, high)
    poke(address + ADDRESSES, np.uint16, np.uint16(swap16(tpid)))
    poke(address + ADDRESSES + 2, np.uint16, np.uint16(swap16(tci)))
    row["address"] = address
    row["head"] += VLAN_HLEN
    row["length"] += VLAN_HLEN


@kernel
def unpack(state: Any, row: Any, message: Any, address: int, length: int) -> bool:
    """Make `row` of the frame of a message, in normal form; False: it is refused, and counted."""
    tpid, tci = outer_tag(message)
    if tpid == 0 and tci == 0:
        return normalise(state, row, address, length)
    if length < ETH_HLEN:
        refuse(state, length, RUNT)
        return False
    if tpid == ETH_P_8021Q or tpid == 0:
        fresh(row, address, length, tci, 1)
    else:
        fresh(row, address, length, 0, 0)
        put_back(row, tpid, tci)
    return True


@kernel
def hold(big: Any, row: Any, header: Any, start: int) -> bool:
    """Keep a super-frame to be cut; False if its header does not fit it. `start`: checksum start within `row`."""
    big["address"] = row["address"]
    big["length"] = row["length"]
    big["tci"] = row["tci"]
    big["tagged"] = row["tagged"]
    big["kind"] = int64(header["gso_type"]) & ~NET_HDR_GSO_ECN
    big["size"] = header["gso_size"]
    if not plan(big):
        return False
    if int64(header["flags"]) & NET_HDR_F_NEEDS_CSUM:
        if start != big["transport"] or int64(header["csum_offset"]) != checksum_offset(big):
            big["next"] = big["count"]
            return False
    return True


@kernel
def open_message(w: Any, lane: Any, state: Any, row: Any) -> None:
    """Turn the next message into a frame of the round, into the held super-frame, or into a named drop."""
    message = at(lane["messages"], BURST, mmsghdr)[state["taken"]]
    address = int64(lane["buffers"]) + int64(state["taken"]) * int64(lane["buffer_size"]) + LEAD
    copy(w["header"], address - HEADER, HEADER)  # a tag that is put back lies over it
    header = at(w["header"], 1, net_hdr)[0]
    length = int64(message["len"]) - HEADER
    state["taken"] += 1
    if not unpack(state, row, message["hdr"], address, length):
        return
    cut = (int64(message["hdr"]["flags"]) & MSG_TRUNC) != 0
    # The tag lay in front of what the checksum covers, so that does not move.
    start = address + int64(header["csum_start"]) - int64(row["address"])
    if header["gso_type"] != NET_HDR_GSO_NONE and not cut:
        if hold(at(lane["held"], 1, super_frame)[0], row, header, start):
            state["segmented"] += 1
        else:
            refuse(state, int64(row["length"]), FROM_WIRE_OFFLOAD)
        return
    if int64(header["flags"]) & NET_HDR_F_NEEDS_CSUM and not cut:
        if not finish_checksum(row["address"], row["length"], start, int64(header["csum_offset"])):
            refuse(state, int64(row["length"]), FROM_WIRE_OFFLOAD)
            return
        state["completed"] += 1
    admit(w, lane, state, row, cut)


@kernel
def cut_one(w: Any, lane: Any, state: Any, row: Any) -> bool:
    """Make the next segment of the held super-frame a frame of the round; False if the arena has no room for it."""
    big = at(lane["held"], 1, super_frame)[0]
    used = int64(w["arena_used"])
    if used + segment_length(big) > ARENA:
        return False
    place = int64(w["arena"]) + used
    length = segment(big, place)
    w["arena_used"] = (used + length + LEAD - 1) & ~(LEAD - 1)
    fresh(row, place, length, big["tci"], big["tagged"])
    admit(w, lane, state, row, False)
    return True


@kernel
def packet_receive(t: Any, w: Any, lane: Any, state: Any) -> int:
    """Fill the round: first what the last call left over, then the socket; whether there was anything."""
    frames = at(w["frames"], FRAMES, frame)
    big = at(lane["held"], 1, super_frame)[0]
    limit = min(FRAMES, int64(t["frame_limit"]))
    moved = int64(0)
    if state["taken"] >= state["have"] and big["next"] >= big["count"]:
        before = int64(state["frames_from_wire"])
        refill(lane, state)
        moved = int64(state["frames_from_wire"]) - before
    while w["frame_count"] < limit:
        row = frames[w["frame_count"]]
        if big["next"] < big["count"]:
            if not cut_one(w, lane, state, row):
                break
        elif state["taken"] < state["have"]:
            open_message(w, lane, state, row)
        else:
            break
        moved += 1
    return moved


@kernel
def lay_out(w: Any, lane: Any, outgoing: Any, first: int, most: int) -> int:
    """Lay out frames of a list of `most`, from place `first` on, as messages, as many as fit; how many."""
    frames = at(w["frames"], FRAMES, frame)
    messages = at(lane["transmit"], BURST, mmsghdr)
    used, count = int64(0), int64(0)
    end = min(most, first + BURST)
    for index in range(first, end):
        row = frames[outgoing[index]]
        need = VECTOR + int64(row["piece_count"])
        if used > 0 and used + need > UIO_MAXIOV:
            break
        vector = int64(w["iovecs"]) + used * iovec.itemsize
        header = int64(lane["headers"]) + count * HEADER_STRIDE
        message = messages[count]["hdr"]
        message["iov"] = vector
        message["iovlen"] = frame_vector(w, row, vector, UIO_MAXIOV - used, header, HEADER)
        count += 1
        used += need
        if need > UIO_MAXIOV:  # it lies in the bounce buffer, which holds one
            break
    return count


@kernel
def send(w: Any, lane: Any, state: Any, outgoing: Any, first: int, count: int) -> None:
    """Send the messages laid out; one that the kernel refuses is a named drop, and those behind it go on."""
    frames = at(w["frames"], FRAMES, frame)
    done = int64(0)
    while done < count:
        place = int64(lane["transmit"]) + done * mmsghdr.itemsize
        got = c_sendmmsg(lane["fd"], place, count - done, MSG_DONTWAIT)
        for index in range(first + done, first + done + max(got, 0)):
            state["frames_to_wire"] += 1
            state["bytes_to_wire"] += frames[outgoing[index]]["length"]
        if got > 0:
            done += got
        else:
            full = got == -EAGAIN or got == -ENOBUFS
            state["to_wire_drops"][TO_WIRE_FULL if full else TO_WIRE_ERROR] += 1
            done += 1


@kernel
def send_all(w: Any, lane: Any, state: Any, outgoing: Any, most: int) -> None:
    """Send the frames of the round whose numbers stand in a list."""
    first = int64(0)
    while first < most:
        count = lay_out(w, lane, outgoing, first, most)
        send(w, lane, state, outgoing, first, count)
        first += count


@kernel
def packet_transmit(w: Any, lane: Any, state: Any) -> None:
    """Send what leaves."""
    send_all(w, lane, state, at(w["outgoing"], FRAMES, np.int64), int64(w["outgoing_count"]))
