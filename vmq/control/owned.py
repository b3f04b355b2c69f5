# SPDX-License-Identifier: Apache-2.0
"""What clients of the API have beside the configuration, as settings: requested, effective, why.

Each receive queue and each filter of an owner that is not the configuration is a thing of its own in `vmq show settings`:

    queue 3 of backup, uplink lan      its state, and each member of its parameters
    filter 7 of backup, uplink lan     where its frames are to go, and whether they do: others may be asked before it
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vmq.contract import CONFIG, DEFAULT_QUEUE, DROP_QUEUE
from vmq.control.filtered import taken_from
from vmq.engine.engine import Engine
from vmq.engine.queues import UplinkQueues
from vmq.engine.vm import Vm
from vmq.uplink.base import setting

Row = dict[str, Any]
PLACES = {DEFAULT_QUEUE: "the default queue", DROP_QUEUE: "the drop queue"}
RING_DECIDES = "the guest's ring decides"
COMPLETED = "it counts when a receive queue is completed: free it, and allocate one with that weight"


def of_owners(engine: Engine) -> Iterator[Row]:
    """The receive queues of everybody but the configuration, then their filters, uplink by uplink."""
    for uplink, queues in engine.queues.items():
        where = f", uplink {uplink}" if uplink is not None else ""
        records = [one for one in queues.contract.enum_queues(None) if one["owner"] not in ("", CONFIG)]
        for record in records:
            of = f"queue {record['queue']} of {record['owner']}{where}"
            yield from ({"of": of, **row} for row in _of_queue(queues, record))
        states = {record["queue"]: record for record in records}
        holders = [record["queue"] for record in records if record["filters"]]
        for number in (*holders, DEFAULT_QUEUE, DROP_QUEUE):
            for one in queues.contract.enum_filters(None, number):
                if one["owner"] != CONFIG:
                    of = f"filter {one['filter']} of {one['owner']}{where}"
                    yield {"of": of, **_of_filter(queues, one, states.get(number, {}))}


def _of_queue(queues: UplinkQueues, record: Row) -> Iterator[Row]:
    """Its state, then what was asked for, member by member."""
    bound = queues.effects.bound.get(record["queue"])
    lost = not_enabled(bound.vm, bound.pair) if bound is not None and not record["why"] else ""
    state = f"{record['state']}, and not enabled" if lost else record["state"]
    yield setting("state", "Running", state, record["why"] or lost)
    told = parameters(bound.vm, bound.pair, record) if bound is not None else record
    requested, effective = _flat(record["requested"]), _flat(told["effective"])
    for name in ("vm", "processor", "suggested_buffers", "weight", "indications", "indication_frames"):
        asked, has = requested[name], effective.get(name)
        if name == "vm":
            has = bound.vm.name if bound is not None else None
        why = "" if asked == has else told["difference"].get(name) or record["why"]
        yield setting(name, asked, has, why)


def not_enabled(vm: Vm, pair: int) -> str:
    """What becomes of frames for a queue pair that a guest which runs others has not enabled."""
    if pair == 0 or pair in vm.running or not vm.running:
        return ""
    lost = f"the guest has not enabled queue pair {pair}: frames for it are dropped (to_guest_not_running)"
    return f"{lost}; ethtool -L DEVICE combined {pair + 1} in the guest"


def _flat(members: Row) -> Row:
    """Parameters with the two halves of moderation by the names that a VM has for them."""
    moderation = members.get("moderation", {})
    names = {"indications": "indications", "indication_frames": "frames"}
    return members | {name: moderation[half] for name, half in names.items() if half in moderation}


def parameters(vm: Vm, pair: int, asked: Row) -> Row:
    """What the owner of a receive queue asked for, and what is in force: the contract's word, and the VM port's."""
    effective, difference = dict(asked.get("effective", {})), dict(asked.get("difference", {}))
    if effective:
        entry, size = vm.queues[pair], vm.session.rings[2 * pair].size
        indications = 10**9 // entry.gap if entry.gap else 0
        wanted = asked["requested"]["moderation"]
        if wanted["indications"] and 10**9 // wanted["indications"] == entry.gap:
            indications = wanted["indications"]  # a gap is a whole number of nanoseconds
        bound = vm.home.effects.bound[asked["queue"]]
        weight = asked["requested"]["weight"]
        if asked["owner"] != CONFIG and bound.weight != weight:  # a VM's counts at every look
            weight, difference["weight"] = bound.weight, COMPLETED
        effective |= {
            "weight": weight,
            "moderation": {"indications": indications, "frames": entry.gather},
            "suggested_buffers": size or None,
        }
        difference["suggested_buffers"] = RING_DECIDES
    return {"requested": asked.get("requested", {}), "effective": effective, "difference": difference}


def _of_filter(queues: UplinkQueues, record: Row, queue: Row) -> Row:
    """Where its frames are to go. Filters of everybody's receive queues are always in effect."""
    place = PLACES.get(record["queue"], f"receive queue {record['queue']}")
    words = f"{record['text']}, priority {record['priority']}: {place}"
    if not record["in_effect"]:
        return setting("filter", words, None, str(queue.get("why")))
    found = list(taken_from(queues, record["queue"], record["filter"]))
    whole = any(one for one, _ in found)
    effective = None if whole else words + " in part" * bool(found)
    return setting("filter", words, effective, "; ".join(why for _, why in found))
