# SPDX-License-Identifier: Apache-2.0
"""What has happened, as numbered records: for whoever comes later, and for whoever follows.

A record has a number, the time (seconds since 1970), an event, and what belongs to it. The last LENGTH are kept; who
asks for older ones is told how many are missed. Told by control alone: nothing in the way of a frame waits for it,
and what a guest can make happen without end is told once (said.py). Watchers are told of each record in the middle of
what has made it: they put it aside, and neither fail nor ask back.

    vm_state         vm, state, before        listening | connecting | connected | running | faulted
    vm_error         vm, what, remedy         what stands in its way
    learned          vm, mac                  an address that it added to its receive filters
    queue_lack       vm, what                 why it has no receive queue of its own; nothing: it has one now
    queue_swap       uplink, loser, winner, why        a receive queue was taken from one VM for another
    moved            vm, processor, before, why        another processor serves it
    followed         vm, came, went           addresses that its guest gave its device, or took back
    configured       actions, wrong, remedy   a configuration was brought about, or refused
    finding          code, status, …          what the doctor has found, or finds no more
    queue_state, dma_stopped, hardware_capabilities, current_capabilities, reset        uplink, and docs/queues.md

Every event is a record of vmq/control/answers.py, for the schema of the API.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

LENGTH = 1024
Record = dict[str, Any]


class Journal:
    """The records of one engine."""

    def __init__(self, length: int = LENGTH) -> None:
        self.number = 0  # of the last record
        self.watchers: list[Callable[[Record], None]] = []
        self._records: deque[Record] = deque(maxlen=length)

    def tell(self, event: str, **what: Any) -> None:
        """Note that something has happened."""
        self.number += 1
        record = {"number": self.number, "time": round(time.time(), 3), "event": event, **what}
        self._records.append(record)
        for watcher in self.watchers:
            watcher(record)

    def since(self, number: int) -> list[Record]:
        """The records after a number; first, if some of them are no longer kept, one that says how many."""
        records = [record for record in self._records if record["number"] > number]
        oldest = records[0]["number"] if records else self.number + 1
        if oldest > max(number, 0) + 1:
            missed = oldest - 1 - max(number, 0)
            records.insert(0, {"number": oldest - 1, "time": None, "event": "missed", "records": missed})
        return records
