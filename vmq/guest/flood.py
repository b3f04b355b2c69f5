# SPDX-License-Identifier: Apache-2.0
"""A guest at full speed, compiled: take and check every frame, send from a table, sleep when there is nothing to do.

    run ─┬─► receive: every receive virtqueue, a batch each, buffers posted again
         ├─► transmit: every transmit virtqueue, from its part of the table, in a cycle
         └─► rest: after some rounds without work, yield the processor or sleep until the device calls

Received frames are compared, byte for byte, with a table of expected frames in its cyclic order. One that is not
the next of the table is searched for further on: if it is there, the frames between are `missing` (modulo a lap)
and the frame is `out_of_place`; if it is nowhere, it is `wrong`. So one lost frame costs one count, and
frames = verified + out_of_place + wrong. Without a table frames are only counted.

Frames to send lie in guest memory, packet header included, and are sent from where they lie.

`FLOOD` is shared with Python, which writes `stop` and `hold` and reads the counters at any time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import ETH_HLEN, ETH_TYPE_OFFSET, MAC_GROUP_BIT, TPID_8021Q_LE, VLAN_HLEN, VLAN_VID_MASK
from vmq.abi.layout import i64, layout, offset, rows
from vmq.abi.virtio import net_hdr
from vmq.clock import now
from vmq.guest.driver import (
    HEADER,
    M16,
    RING,
    ask_for_calls,
    claim,
    describe,
    kick,
    offer,
    refuse_calls,
    release,
    show,
    take,
    used,
)
from vmq.jit import (
    at,
    c_epoll_wait,
    c_read,
    c_sched_yield,
    compile_for,
    copy,
    int64,
    kernel,
    load_acquire,
    load_once,
    peek,
    same_bytes,
)

BATCH = 64  # chains a round takes from one virtqueue, and frames it puts into one
BOUNCE = 1 << 17  # one frame that spans several buffers, made contiguous
CLOCK_ROUNDS = 64  # rounds between two looks at the clock, when no rate needs it
SLEEP_MS, PACED_SLEEP_MS = (
    50,
    1,
)  # longest sleeps: so late is `stop` seen, so long are the gaps of a paced sender
NS = 1_000_000_000
REST_CALL, REST_YIELD = 0, 1

FRAME = layout(16, ("address", i64), ("length", i64))
FRAME_BYTES = FRAME.itemsize
SENDER = layout(24, ("first", i64), ("count", i64), ("cursor", i64))  # the part of the table of one virtqueue

FLOOD = rows(
    ("stop", i64), ("hold", i64),  # Python: leave; send nothing for now
    ("rings", i64), ("pairs", i64),
    ("expected", i64), ("expected_count", i64),  # FRAME rows, our addresses, without packet header; 0: count only
    ("macs", i64), ("mac_count", i64), ("vid", i64),  # frames to somebody else, or with another tag, are `stray`
    ("transmit", i64), ("senders", i64),  # FRAME rows, guest addresses, with packet header; one SENDER a pair
    ("window", i64),  # frames in flight a virtqueue, at most
    ("rate", i64), ("limit", i64),  # frames a second, frames in all; 0: without bound
    ("duration_ns", i64),  # 0: until `stop`
    ("rest", i64), ("spins", i64),  # REST_*, and rounds without work before it
    ("epoll_fd", i64), ("events", i64), ("clock", i64), ("bounce", i64), ("scratch", i64),
    # From here on the kernel writes.
    ("started_ns", i64), ("elapsed_ns", i64), ("cursor", i64),
    ("frames", i64), ("bytes", i64), ("verified", i64), ("wrong", i64), ("out_of_place", i64), ("missing", i64),
    ("stray", i64), ("empty", i64), ("broken", i64),
    ("sent", i64), ("sent_bytes", i64), ("returned", i64),
    ("calls", i64), ("rounds", i64), ("sleeps", i64),
)  # fmt: skip
COUNTERS = (
    "frames", "bytes", "verified", "wrong", "out_of_place", "missing", "stray", "empty", "broken",
    "sent", "sent_bytes", "returned", "calls", "rounds", "sleeps", "elapsed_ns",
)  # fmt: skip
NUM_BUFFERS = offset(net_hdr, "num_buffers")


@kernel
def equal(row: Any, address: int, length: int) -> bool:
    """Whether a frame is the one of this row of the table."""
    return row["length"] == length and same_bytes(row["address"], address, length)


@kernel
def is_own(flood: Any, mac: int) -> bool:
    """Whether this is one of the guest's addresses; the first is the most likely."""
    for own in at(flood["macs"], flood["mac_count"], np.int64):  # noqa: SIM110 - no generators in kernels
        if own == mac:
            return True
    return False


@kernel
def is_stray(flood: Any, address: int, length: int) -> bool:
    """Whether a frame should never have come here: it names another station, or another VLAN."""
    if length < ETH_HLEN:
        return True
    mac = int64(peek(address, np.uint32)) | (int64(peek(address + 4, np.uint16)) << 32)
    if not mac & MAC_GROUP_BIT and not is_own(flood, mac):
        return True
    if int64(peek(address + ETH_TYPE_OFFSET, np.uint16)) != TPID_8021Q_LE or length < ETH_HLEN + VLAN_HLEN:
        return False
    tci = int64(peek(address + ETH_HLEN, np.uint16))
    vid = (((tci & 255) << 8) | (tci >> 8)) & VLAN_VID_MASK
    return vid != 0 and vid != flood["vid"]


@kernel
def check(flood: Any, address: int, length: int) -> None:
    """Count one frame, and compare it with the table."""
    flood["frames"] += 1
    flood["bytes"] += length
    if is_stray(flood, address, length):
        flood["stray"] += 1
    count = int64(flood["expected_count"])
    if count == 0:
        return
    table = at(flood["expected"], count, FRAME)
    place = int64(flood["cursor"])
    for skipped in range(count):
        if equal(table[place], address, length):
            if skipped == 0:
                flood["verified"] += 1
            else:
                flood["out_of_place"] += 1
                flood["missing"] += skipped
            flood["cursor"] = 0 if place + 1 == count else place + 1
            return
        place = 0 if place + 1 == count else place + 1
    flood["wrong"] += 1


@kernel
def gather(flood: Any, ring: Any, slot: int, length: int, count: int) -> int:
    """Make a frame contiguous that begins in `slot` and spans `count` chains; its length with header, -1: broken."""
    stride = int64(ring["stride"])
    total = int64(0)
    left = count
    while True:
        if slot >= 0 and length <= stride and total + length <= BOUNCE:
            copy(int64(flood["bounce"]) + total, int64(ring["buffers"]) + slot * stride, length)
            total += length
            offer(ring, slot)
        else:
            return -1
        left -= 1
        if left == 0:
            return total
        slot, length = take(ring)


@kernel
def receive_frame(flood: Any, ring: Any, ready: int) -> None:
    """Take one frame, which spans at most `ready` used chains."""
    slot, length = take(ring)
    stride = int64(ring["stride"])
    if slot < 0 or length > stride:
        flood["broken"] += 1
        return
    address = int64(ring["buffers"]) + slot * stride
    if length < HEADER:
        flood["empty"] += 1
        offer(ring, slot)
        return
    count = int64(peek(address + NUM_BUFFERS, np.uint16)) if ring["mergeable"] else int64(1)
    if count == 1:
        check(flood, address + HEADER, length - HEADER)
        offer(ring, slot)
        return
    total = gather(flood, ring, slot, length, count) if 0 < count <= ready else int64(-1)
    if total < 0:
        flood["broken"] += 1
        return
    check(flood, int64(flood["bounce"]) + HEADER, total - HEADER)


@kernel
def receive(flood: Any, ring: Any) -> int:
    """Take what waits in a receive virtqueue, about a batch, and post the buffers again; chains taken."""
    ready = used(ring)
    first = int64(ring["next_used"])
    taken = int64(0)
    while taken < min(ready, BATCH):
        receive_frame(flood, ring, ready - taken)
        taken = (int64(ring["next_used"]) - first) & M16
    if show(ring):
        kick(ring)
    return taken


@kernel
def allowance(flood: Any) -> int:
    """Frames that rate and limit let through now."""
    if load_once(flood, "hold"):
        return int64(0)
    allowed = int64(BATCH)
    if flood["limit"] > 0:
        allowed = min(allowed, int64(flood["limit"]) - int64(flood["sent"]))
    if flood["rate"] > 0:
        # In doubles: frames times nanoseconds may pass 2^63 within hours.
        due = int(float(flood["elapsed_ns"]) / NS * float(flood["rate"]))
        allowed = min(allowed, due - int64(flood["sent"]))
    return max(allowed, 0)


@kernel
def reclaim(flood: Any, ring: Any) -> int:
    """Take back sent frames of a transmit virtqueue, at most a batch; how many."""
    ready = min(used(ring), BATCH)
    for _ in range(ready):
        slot, _length = take(ring)
        if slot >= 0:
            release(ring, slot)
            flood["returned"] += 1
    return ready


@kernel
def room(flood: Any, ring: Any) -> int:
    """Frames that may be sent now, by all bounds."""
    free = int64(ring["free_count"])
    in_flight = int64(ring["slots"]) - free
    return max(min(allowance(flood), free, int64(flood["window"]) - in_flight), 0)


@kernel
def send(flood: Any, ring: Any, sender: Any, count: int) -> None:
    """Send the next `count` frames of the sender's part of the table, round and round."""
    table = at(int64(flood["transmit"]) + int64(sender["first"]) * FRAME_BYTES, sender["count"], FRAME)
    for _ in range(count):
        row = table[sender["cursor"]]
        slot = claim(ring)
        describe(ring, slot, int64(row["address"]), int64(row["length"]))
        offer(ring, slot)
        flood["sent"] += 1
        flood["sent_bytes"] += int64(row["length"]) - HEADER
        sender["cursor"] = 0 if sender["cursor"] + 1 == sender["count"] else sender["cursor"] + 1
    if show(ring):
        kick(ring)


@kernel
def transmit(flood: Any, ring: Any, sender: Any) -> int:
    """Take back sent frames of a transmit virtqueue and send the next ones; frames moved."""
    ready = reclaim(flood, ring)
    if sender["count"] == 0:
        return ready
    count = room(flood, ring)
    send(flood, ring, sender, count)
    return ready + count


@kernel
def work(flood: Any) -> int:
    """One round over all queue pairs; what was moved."""
    pairs = int64(flood["pairs"])
    rings = at(flood["rings"], 2 * pairs, RING)
    senders = at(flood["senders"], pairs, SENDER)
    moved = int64(0)
    for pair in range(pairs):
        moved += receive(flood, rings[2 * pair])
        moved += transmit(flood, rings[2 * pair + 1], senders[pair])
    flood["rounds"] += 1
    return moved


@kernel
def sleep(flood: Any) -> None:
    """Ask every virtqueue that we wait for to call, and sleep until one does."""
    pairs = int64(flood["pairs"])
    rings = at(flood["rings"], 2 * pairs, RING)
    waiting = False
    for index in range(2 * pairs):
        ring = rings[index]
        # A transmit virtqueue is waited for only when it holds all that it may.
        if ring["writable"] or int64(ring["slots"]) - int64(ring["free_count"]) >= flood["window"]:
            waiting |= ask_for_calls(ring)
    if not waiting:
        flood["sleeps"] += 1
        longest = PACED_SLEEP_MS if flood["rate"] > 0 else SLEEP_MS
        c_epoll_wait(flood["epoll_fd"], flood["events"], 1, longest)
    for index in range(2 * pairs):
        refuse_calls(rings[index])
        if c_read(rings[index]["call_fd"], flood["scratch"], 8) == 8:
            flood["calls"] += int64(peek(flood["scratch"], np.int64))


@kernel
def run(address: int) -> None:
    """The whole life of a flood: `address` of its row."""
    flood = at(address, 1, FLOOD)[0]
    flood["started_ns"] = now(flood)
    idle = int64(0)
    while not load_acquire(flood, "stop"):
        if flood["rate"] > 0 or idle > 0 or flood["rounds"] % CLOCK_ROUNDS == 0:
            flood["elapsed_ns"] = now(flood) - flood["started_ns"]
            if 0 < flood["duration_ns"] <= flood["elapsed_ns"]:
                break
        idle = int64(0) if work(flood) else idle + 1
        if idle > flood["spins"]:
            if flood["rest"] == REST_YIELD:
                c_sched_yield()
            else:
                sleep(flood)
                idle = int64(0)
    flood["elapsed_ns"] = now(flood) - flood["started_ns"]


def compile_kernels() -> None:
    compile_for(run, "int64")
