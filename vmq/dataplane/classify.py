# SPDX-License-Identifier: Apache-2.0
"""Before a byte is written: which receive queues a frame is for (receive filters), or where else it goes.

One hash table holds every receive filter of every uplink: (MAC, VLAN id, uplink) → VM port. The members of a
segment (uplink, VLAN id) stand under the broadcast address. It is open addressing at most half full, so the
search is short and always ends. Frames arrive here in normal form: without tag, its VLAN id beside it.

`steer` only notes deliveries, linked per receive queue; `deliver` (to_guest.py) writes them afterwards, queue by
queue (two passes a burst).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import ETH_ALEN, LINK_LOCAL_MASK, LINK_LOCAL_VALUE, MAC_BROADCAST, MAC_GROUP_BIT
from vmq.dataplane.state import (
    DEFAULT_QUEUE,
    DELIVERIES,
    FRAMES,
    HASH_FACTOR,
    HASH_MASK,
    LINK_LOCAL,
    MAX_QUEUES,
    MAX_VPORTS,
    NO_FILTER,
    NONE,
    OWN_ADDRESS,
    STRANGERS,
    VID_SHIFT,
    account,
    bucket,
    delivery,
    frame,
    group,
    near_miss,
    stranger,
    todo,
    vport,
)
from vmq.jit import at, int64, kernel, peek


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
            return int64(row["vport"])
        if held < 0:
            return NONE
        slot = (slot + 1) & mask


@kernel
def lookup(t: Any, mac: int, vid: int, uplink: int) -> int:
    """VM port (for the broadcast address: group) of a filter, or NONE."""
    return search(int64(t["buckets"]), int64(t["bucket_mask"]), mac | (vid << VID_SHIFT), uplink)


@kernel
def count_drop(address: int, code: int) -> None:
    """Count a frame that goes nowhere, in the account of its source."""
    at(address, 1, account)[0]["drops"][code] += 1


@kernel
def note(w: Any, frame_index: int, queue: int) -> None:
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
    """A unicast frame that nobody gets: its address belongs to a VM port of another VLAN, or to nobody."""
    uplink = int64(row["uplink"])
    owner = search(int64(t["near_buckets"]), int64(t["near_mask"]), mac, uplink)
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
    owner = NONE if mac & MAC_GROUP_BIT else lookup(t, mac, int64(row["vid"]), int64(row["uplink"]))
    if owner >= 0:
        at(w["misses"], MAX_VPORTS, near_miss)[owner]["duplicate"] += 1


@kernel
def flood(t: Any, w: Any, index: int, row: Any) -> int:
    """Note a delivery for each member of the frame's segment but its source; how many."""
    number = lookup(t, MAC_BROADCAST, int64(row["vid"]), int64(row["uplink"]))
    if number < 0:
        return 0
    segment = at(t["groups"], t["group_count"], group)[number]
    members = at(t["members"], t["member_count"], np.int64)
    ports = at(t["vports"], t["vport_count"], vport)
    copies = int64(0)
    for place in range(segment["first"], segment["first"] + segment["count"]):
        member = members[place]
        if member != row["source"]:
            note(w, index, ports[member]["first_queue"])
            copies += 1
    return copies


@kernel
def steer(t: Any, w: Any, index: int, has_uplink: int, forward_link_local: int) -> None:
    """Decide for one frame; every frame ends in `forwarded` or in one drop of its account."""
    row = at(w["frames"], FRAMES, frame)[index]
    books = at(row["account"], 1, account)[0]
    from_guest = row["source"] >= 0
    mac = mac_at(row["address"])
    copies = int64(0)
    outgoing = False
    if mac & MAC_GROUP_BIT:
        if (mac & LINK_LOCAL_MASK) == LINK_LOCAL_VALUE and not forward_link_local:
            count_drop(row["account"], LINK_LOCAL)
            return
        copies = flood(t, w, index, row)
        if not from_guest:
            note_duplicate(t, w, row)
        outgoing = from_guest and has_uplink != 0
    else:
        target = lookup(t, mac, int64(row["vid"]), int64(row["uplink"]))
        if target >= 0 and target == row["source"]:
            count_drop(row["account"], OWN_ADDRESS)
            return
        if target >= 0:
            note(w, index, at(t["vports"], t["vport_count"], vport)[target]["first_queue"])
            copies = int64(1)
        outgoing = target < 0 and from_guest and has_uplink != 0
        if target < 0 and not outgoing:
            note_miss(t, w, row, mac)
    if outgoing:
        at(w["outgoing"], FRAMES, np.int64)[w["outgoing_count"]] = index
        w["outgoing_count"] += 1
    if copies == 0 and not outgoing:
        count_drop(row["account"], NO_FILTER if from_guest else DEFAULT_QUEUE)
        return
    books["forwarded"] += 1
    books["copies"] += copies
