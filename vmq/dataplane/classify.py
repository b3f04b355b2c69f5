# SPDX-License-Identifier: Apache-2.0
"""Receive filters by address: whose is a frame, and what is remembered of those that nobody gets.

One hash table holds the plain receive filters of every uplink: (MAC, VLAN id, uplink) → receive queue. The groups of
a segment (uplink, VLAN id), who accepts what beside its filters, stand there too (GROUP_KEYS). It is open addressing at
most half full, so the search is short and always ends. Frames arrive here in normal form: without tag, its VLAN id
beside it.

Deliveries are only noted, linked per receive queue; `deliver` (to_guest.py) writes them afterwards, queue by queue (two
passes a burst).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import ETH_ALEN, MAC_BROADCAST, MAC_GROUP_BIT
from vmq.dataplane.state import (
    DELIVERIES,
    HASH_FACTOR,
    HASH_MASK,
    LINE,
    MAX_QUEUES,
    MAX_VPORTS,
    NONE,
    STRANGERS,
    VID_SHIFT,
    account,
    bucket,
    delivery,
    engine,
    near_miss,
    port_state,
    queue,
    queue_state,
    ring_state,
    stranger,
    todo,
    virtqueue,
    vport,
)
from vmq.jit import at, int64, kernel, peek, prefetch

# Under which address a group stands. Each is a group address, and plain filters have none (filters/compiled.py); a
# frame's own address is looked up only if it is unicast. So no frame finds a group where it looks for a receive queue,
# and no receive queue where it looks for its group.
BROADCASTS, MULTICASTS, UNKNOWNS = MAC_BROADCAST, MAC_GROUP_BIT, MAC_GROUP_BIT | 2
GROUP_KEYS = {"broadcast": BROADCASTS, "multicast": MULTICASTS, "unknown": UNKNOWNS}

COUNTED = 2 * LINE  # of a receive queue's counters: those that each burst changes


@kernel
def mac_at(address: int) -> int:
    """Six bytes as the number vmq.abi.ethernet describes."""
    return int64(peek(address, np.uint32)) | (int64(peek(address + 4, np.uint16)) << 32)


@kernel
def slot_of(key: int, uplink: int, mask: int) -> int:
    """Where the search for a key begins."""
    folded = (key ^ (key >> 29) ^ uplink) & HASH_MASK
    return ((folded * HASH_FACTOR) >> 24) & mask


@kernel
def search(address: int, mask: int, key: int, uplink: int) -> int:
    """Value of a key in the hash table at `address`, or NONE."""
    table = at(address, mask + 1, bucket)
    slot = slot_of(key, uplink, mask)
    while True:
        row = table[slot]
        held = int64(row["key"])
        if held == key and int64(row["uplink"]) == uplink:
            return int64(row["value"])
        if held < 0:
            return NONE
        slot = (slot + 1) & mask


@kernel
def expect_filter(t: Any, row: Any) -> None:
    """Bring nearer where the search for a frame's receive queue begins."""
    mask = int64(t["bucket_mask"])
    key = mac_at(row["address"]) | (int64(row["vid"]) << VID_SHIFT)
    prefetch(int64(t["buckets"]) + slot_of(key, int64(row["uplink"]), mask) * bucket.itemsize, 0)


@kernel
def lookup(t: Any, mac: int, vid: int, uplink: int) -> int:
    """Receive queue of a filter (of one of GROUP_KEYS: the group), or NONE."""
    return search(int64(t["buckets"]), int64(t["bucket_mask"]), mac | (vid << VID_SHIFT), uplink)


@kernel
def owner_of(t: Any, number: int) -> int:
    """The VM port of a receive queue, NONE of none."""
    return int64(at(t["queues"], t["queue_count"], queue)[number]["vport"]) if number >= 0 else NONE


@kernel
def count_drop(address: int, code: int) -> None:
    """Count a frame that goes nowhere, in the account of its source."""
    at(address, 1, account)[0]["drops"][code] += 1


@kernel
def expect_receiver(t: Any, w: Any, number: int) -> None:
    """Bring the rows of a receive queue nearer: `deliver` needs them when the burst is steered. Not another worker's own."""
    place = int64(t["queues"]) + number * queue.itemsize
    row = at(place, 1, queue)[0]
    expect_row(place, queue.itemsize)
    expect_row(int64(t["virtqueues"]) + 2 * number * virtqueue.itemsize, virtqueue.itemsize)
    expect_row(int64(t["vports"]) + int64(row["vport"]) * vport.itemsize, vport.itemsize)
    if row["worker"] == w["index"]:
        shared = at(w["engine"], 1, engine)[0]
        expect_row(int64(shared["ring_state"]) + 2 * number * ring_state.itemsize, ring_state.itemsize)
        expect_row(int64(shared["queue_state"]) + number * queue_state.itemsize, COUNTED)
        expect_row(
            int64(shared["port_state"]) + int64(row["vport"]) * port_state.itemsize, port_state.itemsize
        )


@kernel
def expect_row(address: int, size: int) -> None:
    """Bring all lines of a row nearer."""
    for line in range(0, size, LINE):
        prefetch(address + line, 0)


@kernel
def note(t: Any, w: Any, frame_index: int, queue: int) -> None:
    """Note one delivery: link it to the others of its receive queue."""
    rows = at(w["deliveries"], DELIVERIES, delivery)
    lists = at(w["todo"], MAX_QUEUES, todo)
    index = int64(w["delivery_count"])
    rows[index]["frame"] = frame_index
    rows[index]["next"] = NONE
    rows[index]["queue"] = queue
    rows[index]["done"] = 0
    if lists[queue]["first"] < 0:
        lists[queue]["first"] = index
        lists[queue]["count"] = 0
        expect_receiver(t, w, queue)
        at(w["touched"], DELIVERIES, np.int64)[w["touched_count"]] = queue
        w["touched_count"] += 1
    else:
        rows[int64(lists[queue]["last"])]["next"] = index
    lists[queue]["last"] = index
    lists[queue]["count"] += 1
    w["delivery_count"] = index + 1


@kernel
def remember(w: Any, mac: int, vid: int, uplink: int) -> None:
    """Count an address that no filter names. Few rows hold those seen most often.

    A new one takes the rarest's place, and its count plus one: a count is too high by that at most ("space saving").
    """
    rows = at(w["strangers"], STRANGERS, stranger)
    rarest = int64(0)
    for index in range(STRANGERS):
        row = rows[index]
        if row["count"] > 0 and row["mac"] == mac and row["vid"] == vid and row["uplink"] == uplink:
            row["count"] += 1
            return
        if row["count"] < rows[rarest]["count"]:
            rarest = int64(index)
    rows[rarest]["mac"] = mac
    rows[rarest]["vid"] = vid
    rows[rarest]["uplink"] = uplink
    rows[rarest]["count"] += 1


@kernel
def note_miss(t: Any, w: Any, row: Any, mac: int) -> None:
    """A unicast frame that no filter names: its address belongs to a VM port of another VLAN, or to nobody."""
    uplink = int64(row["uplink"])
    owner = owner_of(t, search(int64(t["near_buckets"]), int64(t["near_mask"]), mac, uplink))
    if owner < 0:
        remember(w, mac, int64(row["vid"]), uplink)
        return
    miss = at(w["misses"], MAX_VPORTS, near_miss)[owner]
    miss["wrong_vlan"] += 1
    miss["seen_vlan"] = row["vid"]


@kernel
def note_duplicate(t: Any, w: Any, row: Any) -> None:
    """A frame from the wire that a VM of ours seems to have sent: somebody there has its address."""
    mac = mac_at(row["address"] + ETH_ALEN)
    number = NONE if mac & MAC_GROUP_BIT else lookup(t, mac, int64(row["vid"]), int64(row["uplink"]))
    owner = owner_of(t, number)
    if owner >= 0:
        at(w["misses"], MAX_VPORTS, near_miss)[owner]["duplicate"] += 1
