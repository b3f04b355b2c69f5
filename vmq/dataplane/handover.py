# SPDX-License-Identifier: Apache-2.0
"""Byte rings with one writer and one reader: from processor to processor, and from a lane to its sink.

        tail ──► [parcel header | frame, contiguous | pad] [parcel …] ◄── head        (bytes ever read / written)

The sender's worker copies a frame in and completes its own descriptor at once; the owner of the receive queue
copies out. A parcel never wraps: where the end of the ring is too short, a parcel of negative size says so. A frame
was steered when it came, by one version of the tables, and goes where that version said: a filter that moves
meanwhile loses nothing. A receive queue that was paused or freed has another generation since: a named drop.

Lossless sources have rings of their own. There a parcel whose receive queue is full stays, and so does everything
behind it for the same queue; what was delivered from behind it is marked and passed over. When the ring is full, its
source waits, and nobody else does.

**A receive queue that moves** from processor A to B is `former` A, `worker` B for one version: every source hands over
to B, which leaves it in the ring, while A delivers what it was handed before. When A's rings are empty, control
publishes a version without `former`, and B goes on: no frame is lost, and none is overtaken.

**The default queue** is the ring of a processor to itself. Frames of VM ports without a receive queue of their own
(`shared`) lie there one after the other, as they came, and are sorted out afterwards: a copy more for every frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.dataplane.classify import note
from vmq.dataplane.ports import report, signal
from vmq.dataplane.reasons import (
    HANDOVER_FULL,
    HANDOVER_MOVED,
    TO_GUEST_NO_BUFFER,
    TO_GUEST_TOO_LONG,
)
from vmq.dataplane.split import available
from vmq.dataplane.state import (
    DELIVERIES,
    EVENT_WAITS,
    FRAMES,
    HANDOVER_RINGS,
    M32,
    MAX_QUEUES,
    MAX_WORKERS,
    NONE,
    PIECES,
    QUEUE_ACCOUNT,
    QUEUE_STATE,
    WAITING,
    account,
    byte_ring,
    delivery,
    engine,
    frame,
    nic_queue,
    parcel,
    piece,
    queue,
    queue_state,
    ring_state,
    todo,
    virtqueue,
    vport,
    worker,
)
from vmq.jit import at, copy, fence, int64, kernel, load_acquire, load_once, store_release

PARCEL = parcel.itemsize
ALIGN = 16
# Whose ring: another processor's to this one; this one's to itself, its default queue; the same for sources that wait.
OTHERS, OWN, OWN_KEPT = range(3)
ASIDE = 2  # in `tagged`: an overload policy has put the frame aside


@kernel
def flatten(row: Any, pieces: Any, to: int) -> None:
    """Copy all bytes of a frame, without tag, to contiguous memory."""
    copy(to, row["address"], row["head"])
    to += int64(row["head"])
    for index in range(row["piece_first"], row["piece_first"] + row["piece_count"]):
        copy(to, pieces[index]["address"], pieces[index]["length"])
        to += int64(pieces[index]["length"])


@kernel
def reserve(ring: Any, need: int) -> int:
    """Where in the ring's bytes ever written a record of `need` bytes begins; NONE if there is no room."""
    size, head = int64(ring["size"]), int64(ring["head"])
    offset = head & (size - 1)
    skip = size - offset if size - offset < need else int64(0)
    # us: read tail, then write over what was read | reader: reads the record, then writes tail.
    if head + skip + need - int64(load_acquire(ring, "tail")) > size:
        return NONE
    if skip:
        at(ring["data"] + offset, 1, np.int64)[0] = -skip
    return head + skip


@kernel
def push(address: int, row: Any, pieces: Any, number: int, generation: int, taken: int) -> bool:
    """Copy a frame into the ring at `address`, for receive queue `number`; False if there is no room."""
    ring = at(address, 1, byte_ring)[0]
    need = (PARCEL + int64(row["length"]) + ALIGN - 1) & ~(ALIGN - 1)
    start = reserve(ring, need)
    if start == NONE:
        return False
    place = int64(ring["data"]) + (start & (int64(ring["size"]) - 1))
    header = at(place, 1, parcel)[0]
    header["size"] = need
    header["length"] = row["length"]
    header["vid"] = row["vid"]
    header["tci"] = row["tci"]
    header["tagged"] = row["tagged"]
    header["queue"] = number
    header["generation"] = generation
    header["source"] = row["source"]
    header["uplink"] = row["uplink"]
    header["taken"] = taken
    flatten(row, pieces, place + PARCEL)
    # us: parcel, then head | reader: head, then parcel.
    store_release(ring, "head", start + need)
    return True


@kernel
def taken_of(w: Any, row: Any) -> int:
    """When a frame of this round was taken, ns, 0 if nobody asked: one that came out of a ring has it in its parcel."""
    if w["taken"] != NONE:
        return int64(w["taken"])
    return int64(at(int64(row["address"]) - PARCEL, 1, parcel)[0]["taken"])


@kernel
def ring_of(w: Any, sender: int, owner: int, hold: int) -> int:
    """Address of the ring from one processor to another, for sources that wait (`hold`) or do not; 0 without."""
    shared = at(w["engine"], 1, engine)[0]
    rings = at(shared["rings"], HANDOVER_RINGS, np.int64)
    return int64(rings[(hold * MAX_WORKERS + sender) * MAX_WORKERS + owner])


@kernel
def bound(row: Any) -> bool:
    """Whether the guest's next buffers are the kernel's, and frames of all paths but one wait until it is switched (nic_queue.py)."""
    return bool(row["nic"] != 0 and row["led"] != 0)


@kernel
def direct(t: Any, w: Any, number: int, hold: int) -> bool:
    """Whether this worker delivers to the receive queue at once, or puts aside (overload.py), and not through a ring."""
    row = at(t["queues"], t["queue_count"], queue)[number]
    if row["worker"] != w["index"] or row["shared"] or row["former"] != NONE or bound(row):
        return False
    waits = at(w["todo"], MAX_QUEUES, todo)[number]
    return bool(waits["held"] == 0 or (not hold and waits["held"] == waits["aside"]))


@kernel
def hand_over(t: Any, w: Any, number: int, hold: int) -> None:
    """Everything noted for receive queue `number`, in order, to its processor; one doorbell if that sleeps."""
    shared = at(w["engine"], 1, engine)[0]
    row = at(t["queues"], t["queue_count"], queue)[number]
    owner, generation = int64(row["worker"]), int64(row["generation"])
    ring = ring_of(w, w["index"], owner, hold)
    deliveries = at(w["deliveries"], DELIVERIES, delivery)
    frames = at(w["frames"], FRAMES, frame)
    pieces = at(w["pieces"], PIECES, piece)
    lists = at(w["todo"], MAX_QUEUES, todo)
    index = int64(lists[number]["first"])
    while index != NONE:
        one = frames[deliveries[index]["frame"]]
        if push(ring, one, pieces, number, generation, taken_of(w, one)):
            lists[number]["held"] += int64(owner == w["index"])
            lists[number]["kept"] += int64(owner == w["index"] and hold != 0)
        elif hold:
            break
        else:
            at(one["account"], 1, account)[0]["drops"][HANDOVER_FULL] += 1
        deliveries[index]["done"] = 1
        index = int64(deliveries[index]["next"])
    other = at(shared["workers"], shared["worker_count"], worker)[owner]
    # us: write head, then read sleeping | the other worker: writes sleeping, then reads head.
    fence()
    if load_once(other, "sleeping"):
        signal(w, other["doorbell_fd"])


@kernel
def still_there(t: Any, number: int, generation: int) -> bool:
    """Whether a receive queue is the one that a frame was steered to: it was not paused or freed since."""
    if number >= t["queue_count"]:
        return False
    row = at(t["queues"], t["queue_count"], queue)[number]
    return bool(row["vport"] >= 0 and row["generation"] == generation)


@kernel
def ours(t: Any, w: Any, number: int) -> int:
    """Whether a parcel's receive queue is ours to fill: 1, 0 while it is on its way here, NONE if another's."""
    row = at(t["queues"], t["queue_count"], queue)[number]
    if row["former"] == w["index"] or (row["worker"] == w["index"] and row["former"] == NONE):
        return 0 if bound(row) else 1
    return 0 if row["worker"] == w["index"] else NONE


@kernel
def unwrap(w: Any, row: Any, place: int) -> None:
    """Make `row` of the parcel at `place`."""
    header = at(place, 1, parcel)[0]
    row["address"] = place + PARCEL
    row["head"] = row["length"] = header["length"]
    row["piece_first"] = row["piece_count"] = 0
    row["vid"] = header["vid"]
    row["tci"] = header["tci"]
    row["tagged"] = header["tagged"] & 1
    row["source"] = header["source"]
    row["uplink"] = header["uplink"]
    books = int64(at(w["engine"], 1, engine)[0]["queue_state"])
    row["account"] = books + int64(header["queue"]) * QUEUE_STATE + QUEUE_ACCOUNT


@kernel
def pass_over(w: Any, header: Any, own: int) -> None:
    """This parcel is done."""
    if own != OTHERS:
        waits = at(w["todo"], MAX_QUEUES, todo)[header["queue"]]
        waits["held"] -= 1
        waits["kept"] -= int64(own == OWN_KEPT)
        waits["aside"] -= int64(header["tagged"] & ASIDE != 0)
    header["queue"] = NONE


@kernel
def too_old(w: Any, header: Any, own: int) -> bool:
    """Whether a parcel that was put aside has to make room for later ones (overload.py)."""
    if own != OWN_KEPT or not header["tagged"] & ASIDE:
        return False
    waits = at(w["todo"], MAX_QUEUES, todo)[header["queue"]]
    if waits["excess"] == 0:
        return False
    waits["excess"] -= 1
    return True


@kernel
def no_room(t: Any, w: Any, number: int) -> bool:
    """Whether a receive queue that runs has no buffer for another frame of this round: nobody waits behind it."""
    waits = at(w["todo"], MAX_QUEUES, todo)[number]
    if waits["closed"] == w["accepts"]:  # a buffer that has come since would let this one overtake
        return True
    vq = at(t["virtqueues"], 2 * t["queue_count"], virtqueue)[2 * number]
    ring = at(at(w["engine"], 1, engine)[0]["ring_state"], 2 * MAX_QUEUES, ring_state)[2 * number]
    noted = int64(waits["count"]) if waits["first"] >= 0 else int64(0)
    if vq["running"] and vq["enabled"] and 0 <= available(vq, ring) <= noted:
        waits["closed"] = w["accepts"]
        return True
    return False


@kernel
def note_waiting(ring: Any, number: int) -> None:
    """Frames for a receive queue stay in the ring. Of more than WAITING none is remembered, and all are looked at again."""
    count = int64(ring["waiting_count"])
    for place in range(min(count, WAITING)):
        if ring["waiting"][place] == number:
            return
    if count < WAITING:
        ring["waiting"][count] = number
    ring["waiting_count"] = min(count, WAITING) + 1


@kernel
def seen_before(t: Any, w: Any, ring: Any) -> int:
    """Up to where the ring need not be looked at: its frames wait for receive queues that have no buffer yet; else its tail."""
    tail, count = int64(ring["tail"]), int64(ring["waiting_count"])
    if ring["version"] != t["epoch"] or ring["seen"] <= tail or not 0 < count <= WAITING:
        return tail
    for place in range(count):
        number = int64(ring["waiting"][place])
        if ours(t, w, number) == 1 and not no_room(t, w, number):
            return tail
    return int64(ring["seen"])


@kernel
def surplus(w: Any, ring: Any, own: int) -> int:
    """Frames that have to make room for later ones, and are looked for from the oldest on."""
    lists, total = at(w["todo"], MAX_QUEUES, todo), int64(0)
    if own == OWN_KEPT:
        for place in range(min(int64(ring["waiting_count"]), WAITING)):
            total += int64(lists[ring["waiting"][place]]["excess"])
    return total


@kernel
def too_long(t: Any, number: int, length: int) -> bool:
    """Whether a frame that waits is longer than its guest takes: nobody can have a queue switched by sending such frames."""
    row = at(t["queues"], t["queue_count"], queue)[number]
    return bool(bound(row) and length > at(t["vports"], t["vport_count"], vport)[row["vport"]]["frame_max"])


@kernel
def tell_waiting(t: Any, w: Any, number: int) -> None:
    """A frame waits for a queue to be switched: tell control, once."""
    row = at(t["queues"], t["queue_count"], queue)[number]
    if bound(row):
        own = at(row["nic"], 1, nic_queue)[0]
        if not own["waits"]:
            own["waits"] = 1
            report(w, EVENT_WAITS, int64(row["vport"]), 0)


@kernel
def accept_parcels(t: Any, w: Any, address: int, own: int, hold: int) -> int:
    """Frames of one ring into the round, each noted for its queue; the tail to store when all are delivered."""
    ring = at(address, 1, byte_ring)[0]
    size, tail = int64(ring["size"]), int64(ring["tail"])
    # us: head, then the parcels | writer: parcels, then head.
    head = int64(load_acquire(ring, "head"))
    frames = at(w["frames"], FRAMES, frame)
    shared = at(w["engine"], 1, engine)[0]
    w["parked"] = 0
    w["accepts"] = (int64(w["accepts"]) + 1) & (M32 >> 1)
    w["taken"] = NONE
    seen = seen_before(t, w, ring)
    if seen == tail:
        ring["waiting_count"] = 0
    excess = surplus(w, ring, own)
    while tail < head and w["frame_count"] < t["frame_limit"]:
        if tail < seen and excess == 0:
            tail = seen
            w["parked"] += 1
            continue
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
        books = at(shared["queue_state"], MAX_QUEUES, queue_state)[number]
        verdict = ours(t, w, number) if still_there(t, number, int64(header["generation"])) else NONE
        late = verdict == 0 and not hold and at(t["queues"], t["queue_count"], queue)[number]["late"]
        if late or too_old(w, header, own):
            books["offered_to_guest"] += 1
            books["to_guest_drops"][TO_GUEST_NO_BUFFER] += 1
            excess -= 0 if late else 1
            pass_over(w, header, own)
        elif verdict == 0 and too_long(t, number, int64(header["length"])):
            books["offered_to_guest"] += 1
            books["to_guest_drops"][TO_GUEST_TOO_LONG] += 1
            pass_over(w, header, own)
        elif verdict == 0 or (verdict == 1 and hold and no_room(t, w, number)):
            note_waiting(ring, number)
            tell_waiting(t, w, number)
            w["parked"] += 1
        elif verdict == 1:
            index = int64(w["frame_count"])
            unwrap(w, frames[index], place)
            note(t, w, index, number)
            w["frame_count"] += 1
        else:
            books["to_guest_drops"][HANDOVER_MOVED] += 1
            pass_over(w, header, own)
    return tail


@kernel
def keep_parcels(t: Any, w: Any, address: int, end: int, own: int) -> int:
    """After delivery, the tail to store: in front of the first parcel that has to wait, else `end`; those that do in w["parked"]."""
    ring = at(address, 1, byte_ring)[0]
    deliveries = at(w["deliveries"], DELIVERIES, delivery)
    frames = at(w["frames"], FRAMES, frame)
    for index in range(w["delivery_count"]):
        if deliveries[index]["done"]:
            place = int64(frames[deliveries[index]["frame"]]["address"]) - PARCEL
            pass_over(w, at(place, 1, parcel)[0], own)
        else:
            note_waiting(ring, int64(deliveries[index]["queue"]))
            w["parked"] += 1
    size, tail = int64(ring["size"]), int64(ring["tail"])
    ring["seen"], ring["version"] = end, t["epoch"]
    if w["parked"] == 0:
        return end
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
