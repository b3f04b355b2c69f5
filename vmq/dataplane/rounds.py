# SPDX-License-Identifier: Apache-2.0
"""One round of one source: a burst from the wire, from another processor, or from a guest.

        begin ─► take a burst ─► steer every frame ─► finish: deliver, receive queue by receive queue ─► send what leaves

Each returns whether anything moved. Which sources a processor goes round, and when, is loop.py's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.clock import now
from vmq.dataplane.classify import expect_filter
from vmq.dataplane.direct import book_lost, exchange, poll_pair
from vmq.dataplane.from_guest import collect
from vmq.dataplane.handover import (
    OTHERS,
    OWN,
    OWN_KEPT,
    accept_parcels,
    direct,
    hand_over,
    keep_parcels,
    parcels_waiting,
    ring_of,
)
from vmq.dataplane.lanes import own_burst, rx_burst, sign, tx_burst
from vmq.dataplane.moderate import indicate
from vmq.dataplane.nic_queue import let_go, lose, place_frames, take, withdraw
from vmq.dataplane.observe import captures_of
from vmq.dataplane.overload import fill
from vmq.dataplane.ports import call, fault
from vmq.dataplane.reasons import FAULT_BASE, FROM_GUEST_DISABLED, NO_FAULT
from vmq.dataplane.replay import keep_backlog, replay_backlog
from vmq.dataplane.split import available, give_back, head_at, publish, refuse_kicks
from vmq.dataplane.state import (
    BURST,
    DELIVERIES,
    FRAMES,
    LANE_ACCOUNT,
    LANE_REPLAY,
    LANE_STATE,
    LEAVING,
    LED,
    MAX_LANES,
    MAX_QUEUES,
    MAX_VPORTS,
    NONE,
    QUEUE_ACCOUNT,
    QUEUE_STATE,
    RING_OBSERVED,
    byte_ring,
    chain,
    direct_queue,
    engine,
    frame,
    lane,
    lane_state,
    nic_queue,
    port_state,
    queue,
    queue_state,
    ring_state,
    todo,
    virtqueue,
    vport,
)
from vmq.dataplane.steer import ruled, steer
from vmq.dataplane.straight import straight
from vmq.dataplane.to_guest import EXPECT_STEPS, expect
from vmq.dataplane.xdp import borrow
from vmq.jit import (
    at,
    int64,
    kernel,
    load_once,
    store_release,
)

# A table of filters of so many buckets does not fit the nearest cache: the search of a frame some places on is begun by a
# prefetch. With 4096 filters a frame costs 28.5 ns and not 31; it costs 1 ns where the table is small.
FAR, FILTER_AHEAD = 4096, 4


@kernel
def begin(w: Any) -> None:
    """An empty round."""
    w["frame_count"] = 0
    w["piece_count"] = 0
    w["delivery_count"] = 0
    w["touched_count"] = 0
    w["outgoing_count"] = 0
    w["arena_used"] = 0
    w["broken"] = NO_FAULT
    w["taken"] = now(w) if load_once(at(w["engine"], 1, engine)[0], "measured") else int64(0)


@kernel
def finish(t: Any, w: Any, hold: int, handed: int) -> None:
    """Second pass: every receive queue that was noted, here or through a ring; what came out of one, here.

    `handed`: 0 it did not, 1 it did, 2 it had waited there for buffers.
    """
    touched = at(w["touched"], DELIVERIES, np.int64)
    lists = at(w["todo"], MAX_QUEUES, todo)
    for step in range(EXPECT_STEPS):
        for index in range(w["touched_count"]):
            if handed or direct(t, w, touched[index], hold):
                expect(t, w, touched[index], step)
    for index in range(w["touched_count"]):
        number = touched[index]
        if handed or direct(t, w, number, hold):
            fill(t, w, number, hold, handed == 2)
        else:
            hand_over(t, w, number, hold)
        lists[number]["first"] = NONE
    if w["touched_count"] > 0:
        w["bursts"] += 1


@kernel
def lane_round(t: Any, w: Any, number: int) -> int:
    """One burst from the wire; whether anything moved."""
    shared = at(w["engine"], 1, engine)[0]
    row = at(t["lanes"], t["lane_count"], lane)[number]
    if not row["receives"]:
        return 0
    state = at(shared["lane_state"], MAX_LANES, lane_state)[number]
    begin(w)
    if row["kind"] == LANE_REPLAY and state["pending"] > 0:
        before = int64(state["pending"])
        replay_backlog(t, w, row, state)
        finish(t, w, 1, 0)
        keep_backlog(t, w, row, state, NONE, w["frame_count"])
        return before - int64(state["pending"])
    first = int64(state["cursor"])
    account = int64(shared["lane_state"]) + number * LANE_STATE + LANE_ACCOUNT
    taken = rx_burst(t, w, row, state, account)
    switch(t, w, row)
    if row["lossless"]:
        keep_backlog(t, w, row, state, first, 0)
    return taken


@kernel
def switch(t: Any, w: Any, row: Any) -> None:
    """Steer and deliver what a lane has brought."""
    rules = ruled(t, int64(row["uplink"]))
    frames = at(w["frames"], FRAMES, frame)
    far = t["bucket_mask"] >= FAR
    for index in range(w["frame_count"]):
        if far and index + FILTER_AHEAD < w["frame_count"]:
            expect_filter(t, frames[index + FILTER_AHEAD])
        steer(t, w, index, 0, row["forward_link_local"], rules)
    finish(t, w, row["lossless"], 0)


@kernel
def parcels_round(t: Any, w: Any, sender: int, hold: int) -> int:
    """One burst that another processor handed over, of sources that wait (`hold`) or do not; whether anything moved."""
    address = ring_of(w, sender, w["index"], hold)
    if address == 0 or not parcels_waiting(address):
        return 0
    begin(w)
    ring = at(address, 1, byte_ring)[0]
    before = int64(ring["tail"])
    own = int64(OTHERS)
    if sender == w["index"]:
        own = int64(OWN_KEPT if hold else OWN)
    tail = accept_parcels(t, w, address, own, hold)
    finish(t, w, hold, 2 if own == OWN_KEPT else 1)
    parked = int64(w["parked"])
    tail = keep_parcels(t, w, address, tail, own)
    # us: copy out, then tail | writer: reads tail, then writes over it.
    store_release(ring, "tail", tail)
    delivered = w["frame_count"] > w["parked"] - parked  # also from behind one that waits
    return 1 if delivered or tail != before else 0


@kernel
def discard(vq: Any, ring: Any, books: Any, count: int) -> None:
    """A ring that is started but disabled: take and throw away (vhost-user "Ring states")."""
    for _ in range(count):
        give_back(vq, ring, head_at(vq, ring, 0), 0)
        books["frames_from_guest"] += 1
        books["account"]["drops"][FROM_GUEST_DISABLED] += 1


@kernel
def forward(t: Any, w: Any, number: int, port: Any) -> None:
    """Steer, deliver and send the frames of one guest burst."""
    shared = at(w["engine"], 1, engine)[0]
    frames = at(w["frames"], FRAMES, frame)
    account = int64(shared["queue_state"]) + number * QUEUE_STATE + QUEUE_ACCOUNT
    first_lane = int64(port["first_lane"])
    number = first_lane + w["index"] if first_lane >= 0 else int64(0)
    lanes = at(t["lanes"], max(int64(t["lane_count"]), 1), lane)
    link_local = lanes[number]["forward_link_local"] if first_lane >= 0 else 0
    rules = ruled(t, int64(port["uplink"]))
    for index in range(w["frame_count"]):
        frames[index]["account"] = account
        steer(t, w, index, 1 if first_lane >= 0 else 0, link_local, rules)
    finish(t, w, 0, 0)
    if w["outgoing_count"] > 0:
        tx_burst(w, lanes[number], at(shared["lane_state"], MAX_LANES, lane_state)[number])


@kernel
def guest_round(t: Any, w: Any, number: int) -> int:
    """One burst from the guest of receive queue `number`; whether anything moved. A ring without frames costs three lines."""
    shared = at(w["engine"], 1, engine)[0]
    vq = at(t["virtqueues"], 2 * t["queue_count"], virtqueue)[2 * number + 1]
    ring = at(shared["ring_state"], 2 * MAX_QUEUES, ring_state)[2 * number + 1]
    ready = available(vq, ring)
    if ready == 0:
        return 0
    owner = int64(at(t["queues"], t["queue_count"], queue)[number]["vport"])
    port = at(t["vports"], t["vport_count"], vport)[owner]
    if at(shared["port_state"], MAX_VPORTS, port_state)[owner]["fault"] != NO_FAULT:
        return 0
    if ready < 0:
        fault(w, owner, vq, -1 - FAULT_BASE - ready)
        return 0
    if ring["asleep"]:
        refuse_kicks(vq, ring)
    books = at(shared["queue_state"], MAX_QUEUES, queue_state)[number]
    ready = min(ready, BURST, int64(t["frame_limit"]))
    begin(w)
    w["captures"] = captures_of(w, number) if vq["features"] & RING_OBSERVED else int64(0)
    if vq["enabled"]:
        taken = collect(t, w, owner, port, vq, ring, books, ready)
        forward(t, w, number, port)
        chains = at(w["chains"], BURST, chain)
        for index in range(taken):
            give_back(vq, ring, chains[index]["head"], 0)
    else:
        discard(vq, ring, books, ready)
    if publish(vq, ring):
        call(w, vq, books)
    if w["broken"] != NO_FAULT:
        fault(w, owner, vq, int64(w["broken"]))
    return 1


@kernel
def own_round(t: Any, w: Any, number: int) -> int:
    """One burst from the own queue of receive queue `number` in a TAP; whether anything moved.

    What finds no buffer for the longest frame, and all where a VM is not to be direct now, goes the way of all others.
    """
    shared = at(w["engine"], 1, engine)[0]
    queues = at(t["queues"], t["queue_count"], queue)
    ports = at(t["vports"], t["vport_count"], vport)
    place = int64(ports[queues[number]["vport"]]["first_lane"]) + int64(w["index"])
    row = at(t["lanes"], t["lane_count"], lane)[place]
    if not row["receives"]:
        return 0
    state = at(shared["lane_state"], MAX_LANES, lane_state)[place]
    begin(w)
    taken, other = straight(t, w, number, row, state)
    if other:
        account = int64(shared["lane_state"]) + place * LANE_STATE + LANE_ACCOUNT
        taken += own_burst(t, w, row, state, account, int64(queues[number]["tap"]))
        switch(t, w, row)
    return taken


@kernel
def led_round(t: Any, w: Any, number: int, own: Any, state: Any) -> int:
    """What the kernel has placed for receive queue `number` in its own queue of a NIC; whether anything moved."""
    shared = at(w["engine"], 1, engine)[0]
    row = at(t["queues"], t["queue_count"], queue)[number]
    owner, leaving = int64(row["vport"]), int64(row["led"] == LEAVING)
    vq = at(t["virtqueues"], 2 * t["queue_count"], virtqueue)[2 * number]
    ring = at(shared["ring_state"], 2 * MAX_QUEUES, ring_state)[2 * number]
    books = at(shared["queue_state"], MAX_QUEUES, queue_state)[number]
    if leaving and not own["withdrawn"]:
        withdraw(own)
    if not vq["running"] or at(shared["port_state"], MAX_VPORTS, port_state)[owner]["fault"] != NO_FAULT:
        taken = lose(own, state, books)
    else:
        taken = place_frames(vq, ring, own, state, books, leaving)
        if taken < 0:
            fault(w, owner, vq, -1 - FAULT_BASE - taken)
        elif taken > 0:
            indicate(w, row, vq, ring, books, taken, publish(vq, ring))
    if leaving:
        let_go(own)
    return abs(taken)


@kernel
def nic_round(t: Any, w: Any, number: int) -> int:
    """One burst from the own queue of receive queue `number` in a NIC; whether anything moved."""
    shared = at(w["engine"], 1, engine)[0]
    row = at(t["queues"], t["queue_count"], queue)[number]
    owner, own = int64(row["vport"]), at(row["nic"], 1, nic_queue)[0]
    place = int64(at(t["vports"], t["vport_count"], vport)[owner]["first_lane"]) + int64(w["index"])
    source = at(t["lanes"], t["lane_count"], lane)[place]
    state = at(shared["lane_state"], MAX_LANES, lane_state)[place]
    taken = int64(0)
    if row["led"] and not own["free"]:
        taken = led_round(t, w, number, own, state)
        if taken or own["bound"] or not own["unfit"]:
            return taken
    begin(w)
    if source["receives"]:
        taken = borrow(t, w, source, state, own["receive"], int64(own["memory"]), int64(own["bounce"]))
        sign(w, source, int64(shared["lane_state"]) + place * LANE_STATE + LANE_ACCOUNT)
        switch(t, w, source)
        take(own, taken)
    return taken


@kernel
def direct_round(t: Any, w: Any, number: int) -> int:
    """What the kernel has placed for receive queue `number`, and buffers for what it will; whether anything moved.

    That a guest gives buffers back one by one keeps no processor awake, as long as the kernel has some.
    """
    shared = at(w["engine"], 1, engine)[0]
    row = at(t["queues"], t["queue_count"], queue)[number]
    if row["tap"] != NONE:
        return own_round(t, w, number)
    if row["nic"] != 0:
        return nic_round(t, w, number)
    owner = int64(row["vport"])
    vq = at(t["virtqueues"], 2 * t["queue_count"], virtqueue)[2 * number]
    if not vq["running"] or at(shared["port_state"], MAX_VPORTS, port_state)[owner]["fault"] != NO_FAULT:
        return 0
    ring = at(shared["ring_state"], 2 * MAX_QUEUES, ring_state)[2 * number]
    books = at(shared["queue_state"], MAX_QUEUES, queue_state)[number]
    placed = at(row["direct"], 1, direct_queue)[0]
    led = bool(row["led"] == LED)
    if led:
        poll_pair(placed)
    taken, posted = exchange(vq, ring, placed, books, led)
    if taken > 0:
        indicate(w, row, vq, ring, books, taken, publish(vq, ring))
    book_lost(placed, books)
    if posted < 0:
        fault(w, owner, vq, -1 - FAULT_BASE - posted)
        return 1
    return taken + posted
