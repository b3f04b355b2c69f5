# SPDX-License-Identifier: Apache-2.0
"""A processor: one thread that enters `run` once and leaves it at the end.

        run ─► adopt the newest tables
            ─► one round for each source it owns: its lanes, the rings from other processors, its guests' rings
                 round:  take a burst ─► steer every frame ─► deliver queue by queue ─► send what leaves
            ─► nothing to do for IDLE_ROUNDS: ask for kicks, look once more, epoll_wait

Tables change only between rounds; `epoch` tells control what this worker has let go of. No lock, no Python, no
allocation. The only places that wait are epoll_wait and what a descriptor in non-blocking mode can take.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.dataplane.clock import now
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
from vmq.dataplane.lanes import rx_burst, tx_burst
from vmq.dataplane.moderate import remind
from vmq.dataplane.observe import captures_of
from vmq.dataplane.overload import fill
from vmq.dataplane.ports import call, fault
from vmq.dataplane.replay import keep_backlog, paced, replay_backlog, until_due
from vmq.dataplane.split import ask_for_kicks, available, give_back, head_at, publish, refuse_kicks
from vmq.dataplane.state import (
    BURST,
    DELIVERIES,
    EPOCH_GONE,
    FAULT_BASE,
    FRAMES,
    FROM_GUEST_DISABLED,
    LANE_ACCOUNT,
    LANE_REPLAY,
    LANE_STATE,
    MAX_LANES,
    MAX_QUEUES,
    MAX_VPORTS,
    NO_FAULT,
    NONE,
    QUEUE_ACCOUNT,
    QUEUE_STATE,
    READY,
    RING_OBSERVED,
    byte_ring,
    engine,
    frame,
    job,
    lane,
    lane_state,
    port_state,
    queue,
    queue_state,
    ring_state,
    tables,
    todo,
    virtqueue,
    vport,
    worker,
)
from vmq.dataplane.steer import ruled, steer
from vmq.dataplane.to_guest import EXPECT_STEPS, expect
from vmq.jit import (
    at,
    c_epoll_wait,
    fence,
    int64,
    kernel,
    load_acquire,
    load_once,
    store_release,
)

# Empty rounds before a worker sleeps: some 50 µs of polling. A guest that answers at once finds the worker awake.
IDLE_ROUNDS = 64
# Rings of guests that have sent nothing for so many rounds are looked at in every QUIET_SHARE-th (a power of two), and in
# the first after a sleep: somebody has kicked. With 256 silent guests a frame from the wire costs 59 ns otherwise, and 40
# without them: each look takes five lines of the cache.
QUIET_ROUNDS, QUIET_SHARE = 64, 16
REPLAY_WAIT_MS = 1  # a replay whose destination is full looks again after this long
# So does a worker that owes an indication, or at the ring of a front-end that does not kick (vhost-user SET_VRING_KICK).
POLL_WAIT_MS = 1


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
            if handed or direct(t, w, touched[index]):
                expect(t, w, touched[index], step)
    for index in range(w["touched_count"]):
        number = touched[index]
        if handed or direct(t, w, number):
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
    rules = ruled(t, int64(row["uplink"]))
    for index in range(w["frame_count"]):
        steer(t, w, index, 0, row["forward_link_local"], rules)
    finish(t, w, row["lossless"], 0)
    if row["lossless"]:
        keep_backlog(t, w, row, state, first, 0)
    return taken


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
    tail = keep_parcels(w, address, tail, own)
    # us: copy out, then tail | writer: reads tail, then writes over it.
    store_release(ring, "tail", tail)
    return 1 if tail != before else 0


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
    """One burst from the guest of receive queue `number`; whether anything moved."""
    shared = at(w["engine"], 1, engine)[0]
    owner = int64(at(t["queues"], t["queue_count"], queue)[number]["vport"])
    port = at(t["vports"], t["vport_count"], vport)[owner]
    vq = at(t["virtqueues"], 2 * t["queue_count"], virtqueue)[2 * number + 1]
    ring = at(shared["ring_state"], 2 * MAX_QUEUES, ring_state)[2 * number + 1]
    if at(shared["port_state"], MAX_VPORTS, port_state)[owner]["fault"] != NO_FAULT:
        return 0
    ready = available(vq, ring)
    if ready == 0:
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
        chains = at(w["chains"], BURST, np.int64)
        for index in range(taken):
            give_back(vq, ring, chains[index], 0)
    else:
        discard(vq, ring, books, ready)
    if publish(vq, ring):
        call(w, vq, books)
    if w["broken"] != NO_FAULT:
        fault(w, owner, vq, int64(w["broken"]))
    return 1


@kernel
def all_rounds(t: Any, w: Any) -> int:
    """One round for each source of this worker; whether anything moved."""
    shared = at(w["engine"], 1, engine)[0]
    mine = at(t["jobs"], shared["worker_count"], job)[w["index"]]
    lanes = at(t["own_lanes"], max(int64(t["own_lane_count"]), 1), np.int64)
    polls = at(t["polls"], max(int64(t["poll_count"]), 1), np.int64)
    moved = int64(0)
    for place in range(mine["lane_first"], mine["lane_first"] + mine["lane_count"]):
        moved += lane_round(t, w, lanes[place])
    for sender in range(shared["worker_count"]):
        moved += parcels_round(t, w, sender, 0)
        moved += parcels_round(t, w, sender, 1)
    quiet = at(w["quiet"], MAX_QUEUES, np.int32)
    for place in range(mine["poll_first"], mine["poll_first"] + mine["poll_count"]):
        number = polls[place]
        if quiet[number] > QUIET_ROUNDS and (w["rounds"] + place) & (QUIET_SHARE - 1) and not w["eager"]:
            continue
        if guest_round(t, w, number):
            quiet[number] = 0
            moved += 1
        else:
            quiet[number] += quiet[number] <= QUIET_ROUNDS
    w["eager"] = 0
    moderated = at(t["moderated"], max(int64(t["moderated_count"]), 1), np.int64)
    for place in range(mine["moderated_first"], mine["moderated_first"] + mine["moderated_count"]):
        remind(t, w, moderated[place])
    w["rounds"] += 1
    return moved


@kernel
def timed_rounds(t: Any, w: Any) -> int:
    """The same, with a clock: what the rounds cost that moved something."""
    began = now(w)
    moved = all_rounds(t, w)
    if moved > 0:
        w["work_ns"] += now(w) - began
    return moved


@kernel
def sooner(timeout: int, wait: int) -> int:
    """The shorter of two times to sleep, the first of which may be for ever (-1)."""
    return wait if timeout < 0 else min(timeout, wait)


@kernel
def prepare_sleep(t: Any, w: Any) -> int:
    """Ask every driver for kicks; how long to sleep in ms: -1 until something happens, 0 not at all."""
    shared = at(w["engine"], 1, engine)[0]
    mine = at(t["jobs"], shared["worker_count"], job)[w["index"]]
    virtqueues = at(t["virtqueues"], 2 * t["queue_count"], virtqueue)
    rings = at(shared["ring_state"], 2 * MAX_QUEUES, ring_state)
    polls = at(t["polls"], max(int64(t["poll_count"]), 1), np.int64)
    lanes = at(t["own_lanes"], max(int64(t["own_lane_count"]), 1), np.int64)
    rows = at(t["lanes"], max(int64(t["lane_count"]), 1), lane)
    states = at(shared["lane_state"], MAX_LANES, lane_state)
    queues = at(t["queues"], t["queue_count"], queue)
    ports = at(shared["port_state"], MAX_VPORTS, port_state)
    timeout = int64(-1)
    for place in range(mine["poll_first"], mine["poll_first"] + mine["poll_count"]):
        number = 2 * polls[place] + 1
        if ports[queues[polls[place]]["vport"]]["fault"] != NO_FAULT:
            continue
        if virtqueues[number]["polled"]:
            timeout = sooner(timeout, POLL_WAIT_MS)
        if not rings[number]["asleep"] and ask_for_kicks(virtqueues[number], rings[number]):
            timeout = int64(0)
    for place in range(mine["lane_first"], mine["lane_first"] + mine["lane_count"]):
        row, progress = rows[lanes[place]], states[lanes[place]]
        if progress["pending"] > 0:
            timeout = sooner(timeout, REPLAY_WAIT_MS)
        elif paced(row, progress):
            timeout = sooner(timeout, until_due(w, progress))
    moderated = at(t["moderated"], max(int64(t["moderated_count"]), 1), np.int64)
    for place in range(mine["moderated_first"], mine["moderated_first"] + mine["moderated_count"]):
        if rings[2 * moderated[place]]["owed"] > 0:
            timeout = sooner(timeout, POLL_WAIT_MS)
    store_release(w, "sleeping", 1)
    # us: write sleeping, then read rings and tables | another worker, control: write those, then read sleeping.
    fence()
    for sender in range(shared["worker_count"]):
        address = ring_of(w, sender, w["index"], 0)
        if address != 0 and parcels_waiting(address):
            timeout = int64(0)
        address = ring_of(w, sender, w["index"], 1)
        if address != 0 and parcels_waiting(address):
            timeout = sooner(timeout, REPLAY_WAIT_MS)
    if int64(load_acquire(shared, "tables")) != int64(w["tables"]) or load_once(shared, "stop"):
        timeout = int64(0)
    return timeout


@kernel
def sleep(t: Any, w: Any) -> None:
    """Wait until a guest kicks, a lane has frames, another processor or control rings."""
    timeout = prepare_sleep(t, w)
    if timeout != 0:
        began = now(w)
        w["busy_ns"] += began - int64(w["woke"])
        w["sleeps"] += 1
        if c_epoll_wait(w["epoll_fd"], w["ready"], READY, timeout) > 0:
            w["wakeups"] += 1
        w["woke"] = now(w)
        w["eager"] = 1
        w["slept_ns"] += int64(w["woke"]) - began
    store_release(w, "sleeping", 0)


@kernel
def run(address: int) -> None:
    """The life of a worker, from start to stop. `address`: its row."""
    w = at(address, 1, worker)[0]
    shared = at(w["engine"], 1, engine)[0]
    w["woke"] = now(w)
    idle = int64(0)
    while not load_acquire(shared, "stop"):
        version = int64(load_acquire(shared, "tables"))
        t = at(version, 1, tables)[0]
        if version != w["tables"]:
            w["tables"] = version
            # us: last use of older rows, then epoch | control: reads epoch, then frees them.
            store_release(w, "epoch", t["epoch"])
            idle = int64(0)
        if (timed_rounds(t, w) if t["timed"] else all_rounds(t, w)) > 0:
            idle = int64(0)
        else:
            idle += 1
        if idle > IDLE_ROUNDS:
            sleep(t, w)
            idle = int64(IDLE_ROUNDS // 2)
    store_release(w, "epoch", EPOCH_GONE)
