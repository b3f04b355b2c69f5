# SPDX-License-Identifier: Apache-2.0
"""What one guest can do to the others: by posting buffers rarely, and by sending without end.

**slow-guest** Four guests get frames; the last has its buffers back only after every REST-th span, so that most of its
frames find none. What the other three get a second is compared with when the fourth is as fast as they are. Its frames
are dropped at once, or wait in host memory (`keep`), as its VM port says.

**flood** Three guests and a flooder with sixty-four times their ring send to one sink: each always has more than the
engine takes in a round. The sink is a guest of its own: its driver takes what is used, sees by the source address who
sent it, and offers the same buffers again. Shares of a second are Jain's index: 1 when all are equal, 1/4 when one has
everything.

    sink, all        takes everything there is, after every round
    sink, own time   a thread on the other processor: TAKE frames, a pause, TAKE frames, …: less than what is sent
    sink, in step    half of them after every round: the most unfair that chance could make it

All of it is the worker's own loop on a thread of ours, as in core.py, and not an engine with guests of its own: there,
who comes first would be decided by the one processor that all drivers share. Only the sink in its own time needs the
other processor, for its moments must have nothing to do with the rounds of the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import numpy as np

from bench.core import POSTED, ROUNDS, SPANS, Core, Rings, Stage, in_turn, mac, play, recording, scattered
from bench.stats import Figure
from bench.systems import ENGINE_CPU, GUEST_CPU
from vmq.abi.ethernet import ETH_ALEN
from vmq.abi.layout import i64, rows
from vmq.abi.virtio import vring_avail, vring_desc, vring_used
from vmq.affinity import on_processor
from vmq.clock import now
from vmq.dataplane import state
from vmq.dataplane.loop import all_rounds
from vmq.dataplane.reasons import TO_GUEST_NO_BUFFER
from vmq.dataplane.to_guest import HEADER
from vmq.jit import address_of, at, compile_for, int64, kernel, load_acquire, peek, store_release
from vmq.publisher import QueueEntry
from vmq.speed.trial import jain

GUESTS, COUNT, TIMES = 4, 131072, 3
REST, KEEP = 16, 256
RING, FLOOD_RING, SINK_RING = 256, 16384, 1024
CONTEST_ROUNDS, TAKE, PAUSE_NS = 20000, 64, 8000
CONTESTED = 0.95  # of what is sent: where a sink takes more, nobody can be unfair
SINK = rows(
    ("avail", i64), ("used", i64), ("size", i64), ("buffers", i64), ("stride", i64),
    ("seen", i64), ("counts", i64),  # used index so far; i64 frames by sender
    ("clock", i64), ("pause", i64), ("stop", i64),
)  # fmt: skip
CONTEST = rows(
    ("worker", i64), ("tables", i64), ("rings", i64), ("senders", i64),
    ("rounds", i64), ("sink", i64), ("take", i64),  # frames that the sink takes after every round; 0: it is elsewhere
)  # fmt: skip


@kernel
def serve(sink: int, most: int) -> int:
    """The sink's driver: take up to `most` frames and offer their buffers again; how many."""
    row = at(sink, 1, SINK)[0]
    counts = at(row["counts"], GUESTS, np.int64)
    # us: read idx, then the buffers | engine: writes those, then idx.
    ready = (int64(load_acquire(at(row["used"], 1, vring_used)[0], "idx")) - int64(row["seen"])) & state.M16
    count = min(ready, most)
    for index in range(row["seen"], row["seen"] + count):
        place = row["buffers"] + (index & (row["size"] - 1)) * row["stride"]
        counts[int64(peek(place + HEADER + 2 * ETH_ALEN - 1, np.uint8))] += 1
    row["seen"] = (row["seen"] + count) & state.M16
    if count:
        # us: buffers read, then idx | engine: reads idx, then writes them. Entries name each buffer in turn, as ever.
        store_release(at(row["avail"], 1, vring_avail)[0], "idx", (row["seen"] + row["size"]) & state.M16)
    return count


@kernel
def serve_on(sink: int) -> int:
    """TAKE frames, a pause, until the end; frames."""
    row = at(sink, 1, SINK)[0]
    taken, due = int64(0), now(row)
    while not load_acquire(row, "stop"):
        if now(row) >= due:
            taken += serve(sink, TAKE)
            due += row["pause"]
    return taken


@kernel
def contest(address: int) -> int:
    """Rounds in which every sender has as much as its ring holds."""
    row = at(address, 1, CONTEST)[0]
    w = at(row["worker"], 1, state.worker)[0]
    t = at(row["tables"], 1, state.tables)[0]
    virtqueues = at(t["virtqueues"], 2 * t["queue_count"], state.virtqueue)
    rings = at(row["rings"], 2 * t["queue_count"], state.ring_state)
    began = now(w)
    for _ in range(row["rounds"]):
        for number in range(row["senders"]):
            vq = virtqueues[2 * number + 1]
            index = (int64(rings[2 * number + 1]["next_avail"]) + int64(vq["size"])) & state.M16
            store_release(at(vq["avail"], 1, vring_avail)[0], "idx", index)
        all_rounds(t, w)
        if row["take"]:
            serve(row["sink"], row["take"])
    return now(w) - began


class Neighbours(Core):
    """Four guests, the last of which is `slow`; what is measured is the others' frames."""

    def __init__(
        self, *, slow: bool, keep: int = 0, oldest: bool = False, posted: int = POSTED, rounds: int = ROUNDS
    ) -> None:
        macs, self._slow = [mac(number) for number in range(GUESTS)], GUESTS - 1
        entry = QueueEntry(0, generation=1, keep=keep, oldest=oldest)
        played = recording(64, macs, scattered(COUNT, GUESTS))
        super().__init__(played, macs, GUESTS, entry=entry, posted=posted, rounds=rounds)
        if slow:
            self.row["slow"], self.row["rest"] = self._slow, REST

    def nanoseconds(self, spans: int = SPANS, kernel: Callable[[int], int] = play) -> float:
        """ns a frame of the others; ValueError if one of theirs did not arrive, or another has no name."""
        others, forwarded = slice(0, self._slow), self.forwarded()
        before = self.arrived(others), self._accounted()
        self.row["spans"] = spans
        taken = int(kernel(address_of(self.row)))
        frames, forwarded = self.arrived(others) - before[0], self.forwarded() - forwarded
        lost = int(self.segment.rows["queue_state"]["to_guest_drops"][others].sum())
        if not frames or lost or self._accounted() - before[1] != forwarded:
            raise ValueError(
                f"{self._accounted() - before[1]} of {forwarded} frames are accounted for, {lost} lost"
            )
        return taken / frames

    def _accounted(self) -> int:
        """Frames that arrived, were dropped for want of a buffer, or wait."""
        books = self.segment.rows["queue_state"][self._slow]
        worker = self.segment.rows["workers"][0]
        waits = at(int(worker["todo"]), state.MAX_QUEUES, state.todo)[self._slow]
        return self.arrived() + int(books["to_guest_drops"][TO_GUEST_NO_BUFFER]) + int(waits["kept"])


def slow_guest(runs: int) -> dict[str, Figure]:
    """ns a frame of three guests beside a fourth that is as fast, and beside one that is slow."""
    cores = {
        "the fourth is as fast": partial(Neighbours, slow=False),
        "it is slow, and its frames are dropped": partial(Neighbours, slow=True),
        f"it is slow, and {KEEP} frames wait": partial(Neighbours, slow=True, keep=KEEP),
        f"it is slow, and the last {KEEP} frames wait": partial(
            Neighbours, slow=True, keep=KEEP, oldest=True
        ),
    }
    return in_turn(cores, TIMES * runs)


class Contest(Stage):
    """GUESTS senders, the last of which floods, and a sink."""

    def __init__(self) -> None:
        super().__init__()
        self._senders = [Rings(RING) for _ in range(GUESTS - 1)] + [Rings(FLOOD_RING, 64)]
        for number, sender in enumerate(self._senders):
            self._load(sender, number)
        self._sink_rings = Rings(SINK_RING)
        guests = [*self._senders, self._sink_rings]
        self.publish([
            guest.port(number, [mac(number)], QueueEntry(0, generation=1), uplink=state.NONE)
            for number, guest in enumerate(guests)
        ])  # fmt: skip
        self._counts = np.zeros(GUESTS, np.int64)
        self._sink, self._row = np.zeros(1, SINK), np.zeros(1, CONTEST)
        self._clock = np.zeros(2, np.int64)
        ring = self._sink_rings.receive
        self._sink["avail"], self._sink["used"], self._sink["size"] = ring.avail, ring.used, ring.size
        self._sink["buffers"], self._sink["stride"] = self._sink_rings.buffers, self._sink_rings.stride
        self._sink["counts"], self._sink["clock"] = address_of(self._counts), address_of(self._clock)
        self._sink["pause"] = PAUSE_NS
        self._row["worker"] = address_of(self.segment.rows["workers"][:1])
        self._row["tables"] = self.segment.engine["tables"]
        self._row["rings"] = address_of(self.segment.rows["ring_state"])
        self._row["senders"], self._row["sink"] = GUESTS, address_of(self._sink)

    @staticmethod
    def _load(rings: Rings, number: int) -> None:
        """Every descriptor of its transmit ring is one frame to the sink, which lies where nothing is received."""
        packet = HEADER * b"\0" + mac(GUESTS).to_bytes(6, "little") + mac(number).to_bytes(6, "little")
        packet = packet.ljust(HEADER + 64, b"\x88")
        at(rings.buffers, len(packet), np.uint8)[:] = np.frombuffer(packet, np.uint8)
        ring = rings.transmit
        table = at(ring.desc, ring.size, vring_desc)
        table["addr"], table["len"], table["flags"] = rings.guest_address(rings.buffers), len(packet), 0
        at(ring.avail + vring_avail.itemsize, ring.size, np.uint16)[:] = np.arange(ring.size)

    def shares(self, take: int, rounds: int = CONTEST_ROUNDS) -> tuple[list[int], float]:
        """Frames of each sender that the sink got, and what it got of all; `take` 0: a sink in its own time.

        ValueError if not all were taken from the senders, or one of those neither arrived nor has a name.
        """
        self._counts[:] = 0
        self._sink["stop"], self._row["take"], self._row["rounds"] = 0, take, rounds
        sent, dropped = self._books()
        if take:
            contest(address_of(self._row))
        else:
            thread = threading.Thread(target=self._serve)
            thread.start()
            contest(address_of(self._row))
            self._sink["stop"] = 1
            thread.join()
        serve(address_of(self._sink), SINK_RING)
        sent, dropped = (then - before for then, before in zip(self._books(), (sent, dropped), strict=True))
        if sent != rounds * GUESTS * state.BURST:
            raise ValueError(f"{sent} frames of {rounds * GUESTS * state.BURST} were taken from the senders")
        arrived = int(self._counts.sum())
        if sent != arrived + dropped:
            raise ValueError(
                f"{sent} frames were taken, {arrived} arrived at the sink, {dropped} were dropped by name"
            )
        return self._counts.tolist(), arrived / sent

    def _books(self) -> tuple[int, int]:
        """Frames that were taken from the senders so far, and those that the sink had no buffer for."""
        books = self.segment.rows["queue_state"]
        return int(books["account"]["forwarded"].sum()), int(books["to_guest_drops"][GUESTS].sum())

    def _serve(self) -> None:
        with on_processor(GUEST_CPU):
            serve_on(address_of(self._sink))


def flood(runs: int) -> dict[str, Figure]:
    """Jain's index of four senders' shares, and what share of all frames a sink took."""
    compile_for(contest, "int64")
    compile_for(serve_on, "int64")
    compile_for(serve, "int64", "int64")
    takes = {
        "takes all": GUESTS * state.BURST,
        "is slower, in its own time": 0,
        "takes half, in step": TAKE * 2,
    }
    found: dict[str, list[float]] = {}
    with Contest() as stage, on_processor(ENGINE_CPU):
        for _ in range(TIMES * runs):
            for name, take in takes.items():
                shares, part = stage.shares(take)
                if not take and part > CONTESTED:
                    raise ValueError(
                        f"a sink that {name} took {part:.0%} of the frames: nothing was contested"
                    )
                found.setdefault(f"Jain index, a sink that {name}", []).append(jain(shares))
                found.setdefault(f"share that a sink got that {name}", []).append(part)
    return {name: Figure.of(several) for name, several in found.items()}


ROWS: dict[str, Callable[[int], dict[str, Figure]]] = {"slow-guest": slow_guest, "flood": flood}
