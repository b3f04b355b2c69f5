# SPDX-License-Identifier: Apache-2.0
"""Byte rings with one writer and one reader: from processor to processor, and from a lane to its sink.

        tail ──► [parcel header | frame, contiguous | pad] [parcel …] ◄── head        (bytes ever read / written)

The sender's worker copies a frame in and completes its own descriptor at once; the owner of the receive queue
copies out. A parcel never wraps: where the end of the ring is too short, a parcel of negative size says so. The
reader judges each frame again by its own version of the tables, so that no filter change is overtaken; what has
moved to yet another processor meanwhile is a named drop.

Lossless sources have rings of their own. There a parcel whose receive queue is full stays, and so does everything
behind it for the same queue; what was delivered from behind it is marked and passed over. When the ring is full, its
source waits, and nobody else does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import MAC_GROUP_BIT
from vmq.dataplane.classify import lookup, mac_at, note
from vmq.dataplane.ports import signal
from vmq.dataplane.state import (
    DELIVERIES,
    FRAMES,
    HANDOVER_FULL,
    HANDOVER_MOVED,
    HANDOVER_RINGS,
    MAX_QUEUES,
    MAX_WORKERS,
    NONE,
    PIECES,
    QUEUE_ACCOUNT,
    QUEUE_STATE,
    account,
    byte_ring,
    delivery,
    engine,
    frame,
    parcel,
    piece,
    queue,
    queue_state,
    todo,
    vport,
    worker,
)
from vmq.jit import at, copy, fence, int64, kernel, load_acquire, load_once, store_release

PARCEL = parcel.itemsize
ALIGN = 16


@kernel
def flatten(row: Any, pieces: Any, to: int) -> None:
    """Copy all bytes of a frame, without tag, to contiguous memory."""
    copy(to, row["address"], row["head"])
    to += int64(row["head"])
    for index in range(row["piece_first"], row["piece_first"] + row["piece_count"]):
        copy(to, pieces[index]["address"], pieces[index]["length"])
        to += int64(pieces[index]["length"])


@kernel
def push(address: int, row: Any, pieces: Any, number: int) -> bool:
    """Copy a frame into the ring at `address`, for receive queue `number`; False if there is no room."""
    ring = at(address, 1, byte_ring)[0]
    size, head = int64(ring["size"]), int64(ring["head"])
    need = (PARCEL + int64(row["length"]) + ALIGN - 1) & ~(ALIGN - 1)
    offset = head & (size - 1)
    skip = size - offset if size - offset < need else int64(0)
    # us: read tail, then write over what was read | reader: reads the parcel, then writes tail.
    if head + skip + need - int64(load_acquire(ring, "tail")) > size:
        return False
    if skip:
        at(ring["data"] + offset, 1, np.int64)[0] = -skip
        offset = int64(0)
    place = int64(ring["data"]) + offset
    header = at(place, 1, parcel)[0]
    header["size"] = need
    header["length"] = row["length"]
    header["vid"] = row["vid"]
    header["tci"] = row["tci"]
    header["tagged"] = row["tagged"]
    header["queue"] = number
    header["source"] = row["source"]
    header["uplink"] = row["uplink"]
    flatten(row, pieces, place + PARCEL)
    # us: parcel, then head | reader: head, then parcel.
    store_release(ring, "head", head + skip + need)
    return True


@kernel
def ring_of(w: Any, sender: int, owner: int, hold: int) -> int:
    """Address of the ring from one processor to another, for sources that wait (`hold`) or do not; 0 without."""
    shared = at(w["engine"], 1, engine)[0]
    rings = at(shared["rings"], HANDOVER_RINGS, np.int64)
    return int64(rings[(hold * MAX_WORKERS + sender) * MAX_WORKERS + owner])


@kernel
def hand_over(t: Any, w: Any, number: int, hold: int) -> None:
    """Everything noted for receive queue `number` of another processor, in order; one doorbell if it sleeps."""
    shared = at(w["engine"], 1, engine)[0]
    owner = int64(at(t["queues"], t["queue_count"], queue)[number]["worker"])
    ring = ring_of(w, w["index"], owner, hold)
    deliveries = at(w["deliveries"], DELIVERIES, delivery)
    frames = at(w["frames"], FRAMES, frame)
    pieces = at(w["pieces"], PIECES, piece)
    index = int64(at(w["todo"], MAX_QUEUES, todo)[number]["first"])
    while index != NONE:
        one = frames[deliveries[index]["frame"]]
        if not push(ring, one, pieces, number):
            if hold:
                break
            at(one["account"], 1, account)[0]["drops"][HANDOVER_FULL] += 1
        deliveries[index]["done"] = 1
        index = int64(deliveries[index]["next"])
    other = at(shared["workers"], shared["worker_count"], worker)[owner]
    # us: write head, then read sleeping | the other worker: writes sleeping, then reads head.
    fence()
    if load_once(other, "sleeping"):
        signal(w, other["doorbell_fd"])


@kernel
def still_named(t: Any, row: Any, number: int) -> bool:
    """Whether, by our version of the tables, the frame is for this receive queue."""
    if number >= t["queue_count"]:
        return False
    target = int64(at(t["queues"], t["queue_count"], queue)[number]["vport"])
    if target < 0:
        return False
    mac = mac_at(row["address"])
    if not mac & MAC_GROUP_BIT:
        return lookup(t, mac, int64(row["vid"]), int64(row["uplink"])) == target
    port = at(t["vports"], t["vport_count"], vport)[target]
    return bool(port["active"] and port["vlan"] == row["vid"] and port["uplink"] == row["uplink"])


@kernel
def accept_parcels(t: Any, w: Any, address: int) -> int:
    """Frames of one ring into the round, each noted for its queue; the tail to store when all are delivered."""
    ring = at(address, 1, byte_ring)[0]
    size, tail = int64(ring["size"]), int64(ring["tail"])
    head = int64(load_acquire(ring, "head"))
    frames = at(w["frames"], FRAMES, frame)
    shared = at(w["engine"], 1, engine)[0]
    while tail < head and w["frame_count"] < t["frame_limit"]:
        place = int64(ring["data"]) + (tail & (size - 1))
        skip = int64(at(place, 1, np.int64)[0])
        if skip < 0:
            tail -= skip
            continue
        header = at(place, 1, parcel)[0]
        number = int64(header["queue"])
        tail += int64(header["size"])
        if number == NONE:
            continue
        index = int64(w["frame_count"])
        row = frames[index]
        row["address"] = place + PARCEL
        row["head"] = row["length"] = header["length"]
        row["piece_first"] = row["piece_count"] = 0
        row["vid"] = header["vid"]
        row["tci"] = header["tci"]
        row["tagged"] = header["tagged"]
        row["source"] = header["source"]
        row["uplink"] = header["uplink"]
        row["account"] = int64(shared["queue_state"]) + number * QUEUE_STATE + QUEUE_ACCOUNT
        books = at(shared["queue_state"], MAX_QUEUES, queue_state)[number]
        if (
            still_named(t, row, number)
            and at(t["queues"], t["queue_count"], queue)[number]["worker"] == w["index"]
        ):
            note(w, index, number)
            w["frame_count"] += 1
        else:
            header["queue"] = NONE
            books["to_guest_drops"][HANDOVER_MOVED] += 1
    return tail


@kernel
def keep_parcels(w: Any, address: int, end: int) -> int:
    """After delivery, the tail to store: in front of the first parcel that has to wait, else `end`."""
    ring = at(address, 1, byte_ring)[0]
    deliveries = at(w["deliveries"], DELIVERIES, delivery)
    frames = at(w["frames"], FRAMES, frame)
    for index in range(w["delivery_count"]):
        if deliveries[index]["done"]:
            place = int64(frames[deliveries[index]["frame"]]["address"]) - PARCEL
            at(place, 1, parcel)[0]["queue"] = NONE
    size, tail = int64(ring["size"]), int64(ring["tail"])
    while tail < end:
        header = at(int64(ring["data"]) + (tail & (size - 1)), 1, parcel)[0]
        length = int64(header["size"])
        if length > 0 and header["queue"] != NONE:
            break
        tail += abs(length)
    return tail


@kernel
def parcels_waiting(address: int) -> bool:
    """Whether the ring holds anything."""
    ring = at(address, 1, byte_ring)[0]
    return int64(load_acquire(ring, "head")) != int64(ring["tail"])
