# SPDX-License-Identifier: Apache-2.0
"""A queue of the NIC for one receive queue: its frames are switched from memory of ours, or land in the guest's buffers.

        frames      n          n+1        n+2        n+3   …  n+SIZE-1       the kernel shows frame n under the number of its entry
        entries     buffer     buffer     ours       ours  …  ours           what may be written anew until the kernel uses it
        chains      a          a+1        a+2        -     …  -              `bound` of them, in the order of the guest

The fill ring is always full. An entry names a chunk of ours, or the buffer of the chain that its frame is **bound** to. Frames are bound
in order, to the next available chains, and a bound frame goes to its chain wherever it has landed: one that the kernel has copied to a chunk
of ours, because its entry was written anew too late, or was short of chains, is copied on. So chains are given back in the order of the guest,
and `next_avail` is the first that was not, as everywhere.

    switched    no frame is bound; frames go the way of any lane's
    led         frames are bound (`bind`) and given to the guest (`harvest`); what comes by other paths waits in the rings of processors
    leaving     entries name our chunks again (`withdraw`), and all frames are copied on; control waits for a grace period and says from
                which frame on (`until`) nothing can land in a buffer any more: when that is next, no frame is bound (`let_go`)

Only a chain of one buffer is bound, as in direct.py. Another one is `unfit`: frames behind those that are bound wait with those of other
paths. A frame for which there is no chain is dropped by name, as where the engine places it. linux-if_xdp.h
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import VLAN_HLEN
from vmq.abi.xdp import desc
from vmq.dataplane.direct import HEADER, LEAD, ONE_BUFFER, fit
from vmq.dataplane.reasons import DIRECT_ORDER, FAULT_BASE, TO_GUEST_NO_BUFFER, TO_GUEST_NOT_RUNNING
from vmq.dataplane.split import available, give_back, head_at
from vmq.dataplane.state import BURST, M32, NONE
from vmq.dataplane.xdp import advance, offset_of, own_index, their_index
from vmq.jit import at, copy, int64, kernel, load_acquire, poke, prefetch, store_release

OUT_OF_ORDER = -1 - FAULT_BASE - DIRECT_ORDER


@kernel
def waiting(own: Any) -> int:
    """Frames that the kernel has shown and nobody has taken, a burst at most."""
    receive = own["receive"]
    return min((their_index(receive["producer"]) - own_index(receive["consumer"])) & M32, BURST)


@kernel
def name_ours(own: Any, first: int, count: int) -> None:
    """Entries name chunks of ours. A store of eight bytes: the kernel reads the old address or the new one."""
    fill = own["fill"]
    slots = at(fill["entries"], fill["size"], np.uint64)
    for index in range(count):
        number = (first + index) & (int64(fill["size"]) - 1)
        slots[number] = int64(own["bounce"]) + number * int64(own["chunk"])


@kernel
def take(own: Any, count: int) -> None:
    """So many frames are done with: their entries are the last ones now, and name chunks of ours."""
    receive, fill = own["receive"], own["fill"]
    end = own_index(fill["producer"])
    name_ours(own, end, count)
    advance(receive["consumer"], own_index(receive["consumer"]) + count)
    advance(fill["producer"], end + count)


@kernel
def bind(vq: Any, ring: Any, own: Any, leaving: int) -> int:
    """Bind the next frames to the next available chains, a burst at most; how many, or a negative fault.

    Of a queue that is `leaving` they are copied there, and their entries go on naming chunks of ours.
    """
    ready = available(vq, ring)
    if ready < 0:
        return ready
    fill, bound = own["fill"], int64(own["bound"])
    size, first = int64(fill["size"]), own_index(own["receive"]["consumer"])
    slots = at(fill["entries"], size, np.uint64)
    heads, places = at(own["heads"], size, np.int64), at(own["places"], size, np.int64)
    count = int64(0)
    while count < min(min(ready, size) - bound, BURST) and not own["unfit"]:
        head = head_at(vq, ring, bound + count)
        place = fit(vq, own, head)
        if place == NONE:
            own["unfit"] = 1
            break
        number = (first + bound + count) & (size - 1)
        heads[number], places[number] = head, place
        if not leaving:
            slots[number] = place - LEAD
        count += 1
    own["bound"] = bound + count
    return count


@kernel
def withdraw(own: Any) -> None:
    """The entries of bound frames name chunks of ours, from when the kernel sees it."""
    name_ours(own, own_index(own["receive"]["consumer"]), int64(own["bound"]))
    # us: entries, then withdrawn | control: withdrawn, then a grace period, then the kernel's index.
    store_release(own, "withdrawn", 1)


@kernel
def let_go(own: Any) -> None:
    """No frame is bound any more, when all of those have been taken that may lie in the guest's buffers."""
    until = int64(load_acquire(own, "until"))
    if until != NONE and (own_index(own["receive"]["consumer"]) - until) & M32 <= M32 >> 1:
        own["bound"] = 0
        # us: last use of chains, then free | control: free, then the version in which others use them.
        store_release(own, "free", 1)


@kernel
def fetch_ahead(own: Any, first: int, count: int) -> None:
    """Bring the first lines of buffers nearer, where the packet headers go."""
    size = int64(own["fill"]["size"])
    places = at(own["places"], size, np.int64)
    for index in range(min(count, int64(own["bound"]))):
        prefetch(int64(own["memory"]) + places[(first + index) & (size - 1)], 1)


@kernel
def hand_in(own: Any, number: int, entry: Any) -> int:
    """Have the frame of an entry lie in the buffer of its chain, behind its header: 1 if it did, 0 if it was copied, or a fault."""
    length, memory = int64(entry["len"]), int64(own["memory"])
    place = int64(at(own["places"], own["fill"]["size"], np.int64)[number])
    found = offset_of(int64(entry["addr"])) - HEADER
    ours = found >= own["bounce"]
    if length > own["longest"] + VLAN_HLEN or (not ours and found != place):
        return OUT_OF_ORDER
    if ours:
        copy(memory + place + HEADER, memory + found + HEADER, length)
    poke(memory + place, np.uint64, np.uint64(0))
    poke(memory + place + 8, np.uint32, ONE_BUFFER)
    return int64(not ours)


@kernel
def book(state: Any, books: Any, taken: int, volume: int) -> None:
    """Count frames from the wire, all for this receive queue."""
    state["frames_from_wire"] += taken
    state["bytes_from_wire"] += volume
    state["account"]["forwarded"] += taken
    state["account"]["copies"] += taken
    books["offered_to_guest"] += taken


@kernel
def harvest(vq: Any, ring: Any, own: Any, state: Any, books: Any) -> int:
    """Give bound frames to the guest, a burst at most; how many frames are done with, or a negative fault."""
    size = int64(own["fill"]["size"])
    entries, heads = at(own["receive"]["entries"], size, desc), at(own["heads"], size, np.int64)
    first, count, bound = own_index(own["receive"]["consumer"]), waiting(own), int64(own["bound"])
    fetch_ahead(own, first, count)
    taken = volume = placed = placed_volume = given = given_volume = int64(0)
    while taken < count:
        number = (first + taken) & (size - 1)
        length = int64(entries[number]["len"])
        if taken < bound:
            outcome = hand_in(own, number, entries[number])
            if outcome < 0:
                return outcome
            give_back(vq, ring, heads[number], HEADER + length)
            given, given_volume = given + 1, given_volume + length
            placed, placed_volume = placed + outcome, placed_volume + outcome * length
        elif own["unfit"]:
            break
        else:
            books["to_guest_drops"][TO_GUEST_NO_BUFFER] += 1
        taken, volume = taken + 1, volume + length
    take(own, taken)
    own["bound"] = max(bound - taken, 0)
    book(state, books, taken, volume)
    books["frames_to_guest"] += given
    books["bytes_to_guest"] += given_volume
    books["frames_placed"] += placed
    books["bytes_placed"] += placed_volume
    return taken


@kernel
def lose(own: Any, state: Any, books: Any) -> int:
    """Drop frames, a burst at most, whose VM port has a fault: nothing is written to its rings any more."""
    size, volume = int64(own["fill"]["size"]), int64(0)
    entries = at(own["receive"]["entries"], size, desc)
    first, count = own_index(own["receive"]["consumer"]), waiting(own)
    for index in range(count):
        volume += int64(entries[(first + index) & (size - 1)]["len"])
    take(own, count)
    own["bound"] = max(int64(own["bound"]) - count, 0)
    book(state, books, count, volume)
    books["to_guest_drops"][TO_GUEST_NOT_RUNNING] += count
    return count


@kernel
def place_frames(vq: Any, ring: Any, own: Any, state: Any, books: Any, leaving: int) -> int:
    """A round of a queue that is led, or `leaving`: frames that are done with, or a negative fault."""
    bound = bind(vq, ring, own, leaving)
    taken = harvest(vq, ring, own, state, books) if bound >= 0 else bound
    if taken > 0:
        bound = bind(vq, ring, own, leaving)
    return bound if bound < 0 else taken
