# SPDX-License-Identifier: Apache-2.0
"""What generic receive filters say of a frame, for `vmq explain`: the definition (vmq/filters/reference.py), asked in order.

All filters in effect on an uplink are one list: the first that matches decides. One that leads to the first receive
queue of the VM port with that address changes nothing; any other takes the frame. Only the bytes of a frame can say:
without them a filter that looks at more than addresses and VLAN is named, and not decided.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmq.abi.ethernet import VLAN_HLEN, VLAN_VID_MASK
from vmq.contract import DEFAULT_QUEUE, DROP_QUEUE
from vmq.dataplane.state import HEAD
from vmq.engine.queues import TableEffects
from vmq.engine.vm import Vm
from vmq.filters import Filter, matches
from vmq.filters.compiled import in_order, plain


@dataclass(frozen=True)
class Frame:
    """A frame in normal form: without tag, its VLAN id and priority beside it."""

    data: bytes
    tci: int | None  # of its tag; None: it has none
    vid: int  # of its segment
    from_guest: bool

    @property
    def head(self) -> bytes:
        """What filters may look at: of a guest's frame, what was copied before it was checked."""
        priority_tag = self.from_guest and self.tci is not None
        return self.data[: HEAD - VLAN_HLEN * priority_tag] if self.from_guest else self.data

    def passes(self, one: Filter) -> bool:
        tci = (self.tci or 0) & ~VLAN_VID_MASK | self.vid
        tagged = self.tci is not None or (self.from_guest and self.vid > 0)
        return matches(one, self.head, self.vid, tci, tagged)


@dataclass(frozen=True)
class Claim:
    """A filter takes the frame: to a queue pair of a VM, or (None) to the drop queue."""

    vm: Vm | None
    pair: int
    words: str


def claim(effects: TableEffects, frame: Frame | None, sender: Vm | None, steps: list[str]) -> Claim | None:
    """The generic filter that takes a frame, if one does; what else is worth saying goes to `steps`."""
    found = {one: queue for queue, filters in effects.in_effect.items() for one in filters.values()}
    for one, queue in in_order(found.items()):
        bound = effects.bound.get(queue)
        if bound is not None and bound.pair == 0 and plain(one) is not None:
            if frame is not None and frame.passes(one):
                return None
            continue
        if frame is None:
            steps.append(f"a filter may take it, which only its bytes can say: {one}")
        elif frame.passes(one):
            words = f"a filter of priority {one.priority} takes it: {one}"
            if queue == DROP_QUEUE:
                return Claim(None, 0, words)
            if queue == DEFAULT_QUEUE or bound is None or bound.vm is sender:
                steps.append(f"a filter leaves it to the addresses: {one}")
                return None
            return Claim(bound.vm, bound.pair, words)
    return None
