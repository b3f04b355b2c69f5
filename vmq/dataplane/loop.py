# SPDX-License-Identifier: Apache-2.0
"""A processor: one thread that enters `run` once and leaves it at the end.

        run ─► adopt the newest tables
            ─► one round for each source it owns: its lanes, the rings from other processors, its guests' rings,
               what the kernel has placed
                 round:  take a burst ─► steer every frame ─► deliver queue by queue ─► send what leaves
            ─► nothing to do for a while (patience.py): ask for kicks, look once more, epoll_wait; never, if it polls

Tables change only between rounds; `epoch` tells control what this worker has let go of. No lock, no Python, no
allocation. The only places that wait are epoll_wait and what a descriptor in non-blocking mode can take.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.clock import now
from vmq.dataplane.direct import FEW
from vmq.dataplane.handover import (
    parcels_waiting,
    ring_of,
)
from vmq.dataplane.moderate import remind
from vmq.dataplane.patience import ROUNDS, found, learn, tired
from vmq.dataplane.reasons import NO_FAULT
from vmq.dataplane.replay import paced, until_due
from vmq.dataplane.rounds import direct_round, guest_round, lane_round, parcels_round
from vmq.dataplane.split import ask_for_kicks
from vmq.dataplane.state import (
    EPOCH_GONE,
    MAX_LANES,
    MAX_QUEUES,
    MAX_VPORTS,
    READY,
    direct_queue,
    engine,
    job,
    lane,
    lane_state,
    port_state,
    queue,
    ring_state,
    tables,
    virtqueue,
    worker,
)
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

# A guest that has sent nothing for QUIET_ROUNDS rounds is silent: in each round QUIET_LOOKS of those are looked at and one in
# QUIET_SHARE, and all of them in the first after a sleep, for somebody has kicked. With 256 silent guests a frame from the
# wire costs half as much again otherwise: each look takes three lines of the cache.
QUIET_ROUNDS, QUIET_LOOKS, QUIET_SHARE = 64, 2, 128
REPLAY_WAIT_MS = 1  # a replay whose destination is full looks again after this long
# So does a worker that owes an indication, or at the ring of a front-end that does not kick (vhost-user SET_VRING_KICK).
POLL_WAIT_MS = 1


@kernel
def rouse(t: Any, w: Any, mine: Any) -> None:
    """Every ring is looked at in the next round; one that still has nothing goes back to sleep at once."""
    polls = at(t["polls"], max(int64(t["poll_count"]), 1), np.int64)
    order = at(w["order"], MAX_QUEUES, np.int64)
    for place in range(mine["poll_count"]):
        order[place] = polls[mine["poll_first"] + place]
    w["awake"], w["turn"] = mine["poll_count"], mine["poll_count"]
    w["ordered"], w["eager"] = t["epoch"], 0


@kernel
def nod_off(w: Any, place: int) -> None:
    """The ring at this place of the order is looked at now and then only."""
    order = at(w["order"], MAX_QUEUES, np.int64)
    w["awake"] -= 1
    order[place], order[w["awake"]] = order[w["awake"]], order[place]


@kernel
def wake_up(w: Any, place: int) -> None:
    """The ring at this place of the order is looked at in every round; who changes places with it waits a turn more."""
    order = at(w["order"], MAX_QUEUES, np.int64)
    at(w["quiet"], MAX_QUEUES, np.int32)[order[place]] = 0
    order[place], order[w["awake"]] = order[w["awake"]], order[place]
    w["awake"] += 1


@kernel
def look_at(t: Any, w: Any, place: int, end: int) -> int:
    """One round for each guest at these places of the order; how many moved anything."""
    order = at(w["order"], MAX_QUEUES, np.int64)
    quiet = at(w["quiet"], MAX_QUEUES, np.int32)
    moved = int64(0)
    while place < min(end, int64(w["awake"])):
        number = order[place]
        place += 1
        if guest_round(t, w, number):
            quiet[number] = 0
            moved += 1
        elif quiet[number] < QUIET_ROUNDS:
            quiet[number] += 1
        else:
            place -= 1
            nod_off(w, place)
    return moved


@kernel
def guest_rounds(t: Any, w: Any, mine: Any) -> int:
    """One round for each guest that has sent of late, and for a share of the silent ones; how many moved anything."""
    if w["ordered"] != t["epoch"] or w["eager"]:
        rouse(t, w, mine)
    order = at(w["order"], MAX_QUEUES, np.int64)
    # Another one begins each time: a receiver whose buffers come once a round would get the frames of the same few.
    first = int64(w["rounds"]) % max(int64(w["awake"]), 1)
    moved = look_at(t, w, first, MAX_QUEUES) + look_at(t, w, 0, first)
    count = int64(mine["poll_count"])
    silent = count - int64(w["awake"])
    for _ in range(min(silent, QUIET_LOOKS + silent // QUIET_SHARE)):
        turn = int64(w["turn"]) if w["awake"] <= w["turn"] < count else int64(w["awake"])
        w["turn"] = turn + 1
        if guest_round(t, w, order[turn]):
            wake_up(w, turn)
            moved += 1
    return moved


@kernel
def all_rounds(t: Any, w: Any) -> int:
    """One round for each source of this worker; whether anything moved."""
    shared = at(w["engine"], 1, engine)[0]
    mine = at(t["jobs"], shared["worker_count"], job)[w["index"]]
    lanes = at(t["own_lanes"], max(int64(t["own_lane_count"]), 1), np.int64)
    moved = int64(0)
    for place in range(mine["lane_first"], mine["lane_first"] + mine["lane_count"]):
        moved += lane_round(t, w, lanes[place])
    for sender in range(shared["worker_count"]):
        moved += parcels_round(t, w, sender, 0)
        moved += parcels_round(t, w, sender, 1)
    moved += guest_rounds(t, w, mine)
    directs = at(t["directs"], max(int64(t["direct_count"]), 1), np.int64)
    for place in range(mine["direct_first"], mine["direct_first"] + mine["direct_count"]):
        moved += direct_round(t, w, directs[place])
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
        if progress["pending"] > 0 and progress["refused"] == 0:
            timeout = sooner(timeout, REPLAY_WAIT_MS)
        elif paced(row, progress):
            timeout = sooner(timeout, until_due(w, progress))
    moderated = at(t["moderated"], max(int64(t["moderated_count"]), 1), np.int64)
    for place in range(mine["moderated_first"], mine["moderated_first"] + mine["moderated_count"]):
        if rings[2 * moderated[place]]["owed"] > 0:
            timeout = sooner(timeout, POLL_WAIT_MS)
    directs = at(t["directs"], max(int64(t["direct_count"]), 1), np.int64)
    for place in range(mine["direct_first"], mine["direct_first"] + mine["direct_count"]):
        # Its driver does not kick for receive buffers, and without one nothing lands that would wake us.
        given = int64(queues[directs[place]]["direct"])
        if given != 0 and at(given, 1, direct_queue)[0]["posted"] < FEW:
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
        until = int64(w["idle_since"]) if w["idle_since"] else began  # to look for work is none
        w["busy_ns"] += until - int64(w["woke"])
        w["idle_since"] = 0
        w["sleeps"] += 1
        woken = c_epoll_wait(w["epoll_fd"], w["ready"], READY, timeout) > 0
        w["wakeups"] += 1 if woken else 0
        w["woke"] = now(w)
        learn(w, int64(w["woke"]) - began, woken)
    else:
        found(w, ROUNDS)
    w["eager"] = (
        1  # also when it did not sleep: who was asked for kicks with a frame standing there gives none for it
    )
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
            found(w, idle)
            idle = int64(0)
        if (timed_rounds(t, w) if t["timed"] else all_rounds(t, w)) > 0:
            found(w, idle)
            idle = int64(0)
            continue
        idle += 1
        if tired(w, idle) and not load_once(shared, "polls"):
            sleep(t, w)
            idle = int64(0)
    store_release(w, "epoch", EPOCH_GONE)
