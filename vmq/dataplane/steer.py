# SPDX-License-Identifier: Apache-2.0
"""First pass of a burst, before a byte is written: for which receive queues is a frame, or where else does it go?

        link-local group address ──► dropped, as on any bridge
        generic filters of the uplink, if it has any ──► a receive queue takes the frame, or the drop queue
        group address ──► a copy for each VM port of its segment that accepts such frames, and the uplink
        plain filter (address, VLAN) ──► its receive queue
        none ──► a copy for each VM port that accepts unknown frames, and the uplink; for nobody: a named drop

Every frame ends in `forwarded` or in one drop of the account of its source.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import LINK_LOCAL_MASK, LINK_LOCAL_VALUE, MAC_BROADCAST, MAC_GROUP_BIT
from vmq.dataplane.classify import (
    BROADCASTS,
    MULTICASTS,
    UNKNOWNS,
    count_drop,
    lookup,
    mac_at,
    note,
    note_duplicate,
    note_miss,
    owner_of,
)
from vmq.dataplane.match import columns, field_test, match, parse
from vmq.dataplane.reasons import DEFAULT_QUEUE, DROP_QUEUE, LINK_LOCAL, NO_FILTER, OWN_ADDRESS
from vmq.dataplane.state import FRAMES, TO_DROP_QUEUE, account, frame, group, rule, vport
from vmq.jit import at, int64, kernel

FIELD_TEST = field_test.itemsize


@kernel
def flood(t: Any, w: Any, index: int, row: Any, key: int) -> int:
    """Note a delivery for each member of this group of the frame's segment but its source; how many."""
    number = lookup(t, key, int64(row["vid"]), int64(row["uplink"]))
    if number < 0:
        return 0
    segment = at(t["groups"], t["group_count"], group)[number]
    members = at(t["members"], t["member_count"], np.int64)
    ports = at(t["vports"], t["vport_count"], vport)
    copies = int64(0)
    for place in range(segment["first"], segment["first"] + segment["count"]):
        member = members[place]
        if member != row["source"]:
            note(t, w, index, ports[member]["first_queue"])
            copies += 1
    return copies


@kernel
def ruled(t: Any, uplink: int) -> bool:
    """Whether an uplink has generic filters; asked once a burst, all of which is of one uplink."""
    return bool(
        uplink + 1 < t["rule_count"] and at(t["rules"], t["rule_count"], rule)[uplink + 1]["count"] > 0
    )


@kernel
def judge(t: Any, w: Any, row: Any) -> int:
    """What a generic filter says of a frame: receive queue, TO_DROP_QUEUE, TO_DEFAULT_QUEUE, or NONE of nothing."""
    rules = at(t["rules"], t["rule_count"], rule)
    place = int64(row["uplink"]) + 1
    fields = at(w["columns"], 1, columns)[0]
    parse(row, fields)
    first = int64(t["field_tests"]) + int64(rules[place]["first"]) * FIELD_TEST
    return match(first, int64(rules[place]["count"]), fields)


@kernel
def claimed(t: Any, w: Any, index: int, row: Any) -> bool:
    """Whether a generic filter takes the frame; then it is noted, or dropped. What a VM sends is not for itself."""
    target = judge(t, w, row)
    if target == TO_DROP_QUEUE:
        count_drop(row["account"], DROP_QUEUE)
        return True
    if target < 0 or owner_of(t, target) == row["source"]:
        return False
    note(t, w, index, target)
    books = at(row["account"], 1, account)[0]
    books["forwarded"] += 1
    books["copies"] += 1
    return True


@kernel
def miss(t: Any, w: Any, index: int, row: Any, mac: int, outgoing: bool) -> int:
    """No filter names its address: note those who accept such frames; how many. One that stays here was a miss."""
    if not outgoing:
        note_miss(t, w, row, mac)
    return flood(t, w, index, row, UNKNOWNS) if t["unknown_count"] > 0 else int64(0)


@kernel
def steer(t: Any, w: Any, index: int, has_uplink: int, forward_link_local: int, rules: bool) -> None:
    """Decide for one frame; every frame ends in `forwarded` or in one drop of its account."""
    row = at(w["frames"], FRAMES, frame)[index]
    books = at(row["account"], 1, account)[0]
    from_guest = row["source"] >= 0
    mac = mac_at(row["address"])
    copies = int64(0)
    outgoing = False
    if mac & MAC_GROUP_BIT and (mac & LINK_LOCAL_MASK) == LINK_LOCAL_VALUE and not forward_link_local:
        count_drop(row["account"], LINK_LOCAL)
        return
    if mac & MAC_GROUP_BIT and not from_guest:
        note_duplicate(t, w, row)
    if rules and claimed(t, w, index, row):
        return
    if mac & MAC_GROUP_BIT:
        copies = flood(t, w, index, row, BROADCASTS if mac == MAC_BROADCAST else MULTICASTS)
        outgoing = from_guest and has_uplink != 0
    else:
        target = lookup(t, mac, int64(row["vid"]), int64(row["uplink"]))
        if target >= 0 and owner_of(t, target) == row["source"]:
            count_drop(row["account"], OWN_ADDRESS)
            return
        if target >= 0:
            note(t, w, index, target)
            copies = int64(1)
        outgoing = target < 0 and from_guest and has_uplink != 0
        if target < 0:
            copies = miss(t, w, index, row, mac, outgoing)
    if outgoing:
        at(w["outgoing"], FRAMES, np.int64)[w["outgoing_count"]] = index
        w["outgoing_count"] += 1
    if copies == 0 and not outgoing:
        count_drop(row["account"], NO_FILTER if from_guest else DEFAULT_QUEUE)
        return
    books["forwarded"] += 1
    books["copies"] += copies
