# SPDX-License-Identifier: Apache-2.0
"""Where a hostile guest fights an engine: a real process, real sockets, and neighbours on the same processor.

    attacker ──┐
    peer ──────┼── one engine process, one processor        left ◄──► right: numbered frames all the time, in
    left ──────┤                                            another VLAN; they lose nothing, whatever happens
    right ─────┘

A test says what it does, and the counters that move: `attack.counts(attacker={...}, peer={...})` is exact, so one
bad item moves one counter by one. What must hold after every attack is checked by `aftermath` and `recovered`: the
engine lives (O1), no byte of guest memory changed that the device had no business with (O2), the neighbours go on and
have lost nothing (O3), the books balance (O4), and a guest that behaves works on the same socket (O8).
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from tests.conftest import INTERPRETED
from tests.vm.lab.engine import EngineProcess
from vmq.abi.virtio import split_ring_bytes
from vmq.dataplane import state
from vmq.guest.driver import HEADER
from vmq.guest.guest import NO_HEADER, Guest
from vmq.guest.rings import WRITE, Descriptor, Virtqueue
from vmq.guest.traffic import Traffic, compile_kernels

PATIENCE = 20.0  # seconds until something that must happen is given up
MACS = {name: f"52:54:00:00:00:{number:02x}" for number, name in enumerate(
    ("attacker", "peer", "left", "right", "wide", "widepeer", "giant", "giantpeer", "learner", "third"), 10
)}  # fmt: skip
NEIGHBOURS = ("left", "right")
RATE = 200 if INTERPRETED else 2000  # frames a second of each neighbour
CANARY = 0xA5
CONFIG = "".join(
    f'[vm.{name}]\nsocket = "{{folder}}/{name}.sock"\nmac = "{mac}"\n{keys}'
    for name, mac, keys in (
        *((name, MACS[name], "queue_pairs = 2\n") for name in ("attacker", "peer", "third")),
        *((name, MACS[name], "queue_pairs = 1\nvlan = 7\n") for name in NEIGHBOURS),
        *((name, MACS[name], "queue_pairs = 1\nvlan = 8\nmtu = 9004\n") for name in ("wide", "widepeer")),
        *((name, MACS[name], "queue_pairs = 1\nvlan = 9\nmtu = 65535\n") for name in ("giant", "giantpeer")),
        ("learner", MACS["learner"], 'queue_pairs = 1\nlearn = ["0e:fc:00:00:00:00/24"]\nlearn_max = 4\n'),
    )
)


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait until something holds; its value."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what or condition}"
        time.sleep(0.002)
    return found


def frame(to: str, source: str, number: int = 0, size: int = 100) -> bytes:
    """A frame with a number in its payload; `to` and `source` are VM ports or addresses."""
    addresses = "".join(MACS.get(name, name) for name in (to, source)).replace(":", "")
    head = bytes.fromhex(addresses) + b"\x88\xb5" + number.to_bytes(4, "big")
    return (head + bytes(i * 7 & 255 for i in range(max(size - len(head), 0))))[:size]


@dataclass(frozen=True)
class Way:
    """One path through the kernels, which every attack on a ring takes."""

    name: str
    to_guest: bool
    mergeable: bool = True
    indirect: bool = False  # the hostile chain stands in an indirect table

    @property
    def flags(self) -> int:
        """Of a descriptor that belongs on this way."""
        return WRITE if self.to_guest else 0


WAYS = (
    Way("from_guest", to_guest=False),
    Way("from_guest_indirect", to_guest=False, indirect=True),
    Way("to_guest_mergeable", to_guest=True),
    Way("to_guest_non_mergeable", to_guest=True, mergeable=False),
    Way("to_guest_indirect", to_guest=True, indirect=True),
    Way("to_guest_non_mergeable_indirect", to_guest=True, mergeable=False, indirect=True),
)
DIRECT_WAYS = tuple(way for way in WAYS if not way.indirect)


class Neighbours:
    """Two guests that exchange numbered frames, paced, and check every byte and the order."""

    def __init__(self, arena: Arena) -> None:
        self.guests = [arena.new(name, size=4096, room=1 << 18) for name in NEIGHBOURS]
        self.traffic: list[Traffic] = []
        for guest in self.guests:
            guest.start()
        lists = [[frame(to, source, n) for n in range(512)] for to, source in (NEIGHBOURS, NEIGHBOURS[::-1])]
        for guest, incoming, outgoing in zip(self.guests, lists, lists[::-1], strict=True):
            self.traffic.append(Traffic(guest, incoming, outgoing, rate=RATE, spins=1).start())

    def verified(self) -> list[int]:
        return [one.counters()["verified"] for one in self.traffic]

    def advance(self, frames: int = 10) -> None:
        """Wait until both got so many more frames; that none was lost, changed or out of order."""
        before = self.verified()
        until(
            lambda: all(now >= then + frames for now, then in zip(self.verified(), before, strict=True)),
            f"{frames} more frames between the neighbours",
        )
        self.intact()

    def intact(self) -> None:
        for one in self.traffic:
            counters = one.counters()
            assert [
                counters[name] for name in ("wrong", "out_of_place", "missing", "stray", "broken", "bad")
            ] == [0] * 6

    def hold(self, *, on: bool) -> None:
        for one in self.traffic:
            one.hold(on=on)

    def close(self) -> None:
        for one in self.traffic:
            one.stop()
        for guest in self.guests:
            guest.close()


class Arena:
    """One engine process and its neighbours."""

    def __init__(self, folder: Path, config: str = CONFIG) -> None:
        self.engine = EngineProcess(folder, config)
        self.started = time.monotonic()
        self.neighbours: Neighbours | None = None

    def __enter__(self) -> Self:
        compile_kernels()
        self.engine.start()
        self.neighbours = Neighbours(self)
        return self

    def __exit__(self, *problem: object) -> None:
        if self.neighbours:
            self.neighbours.close()
        self.engine.__exit__()

    def path(self, name: str) -> str:
        return str(self.engine.folder / f"{name}.sock")

    def new(self, name: str, **options: Any) -> Guest:
        """A guest at the socket of a VM port, not started."""
        return Guest(
            self.path(name), MACS[name], **{"size": 256, "room": 1 << 17, "timeout": PATIENCE} | options
        )

    def alive(self) -> None:
        """O1: the process lives, no thread of it has ended."""
        assert self.engine.process is not None
        assert self.engine.process.poll() is None, self.engine.log
        assert {row["state"] for row in self.engine.show("processors").values()} <= {"busy", "sleeping"}
        assert "Traceback" not in self.engine.log, self.engine.log

    def books(self, name: str) -> Counter[str]:
        """The counters of a VM port, over its receive queues; drops by their names."""
        total: Counter[str] = Counter()
        for row in self.engine.ask("show", what="queues"):
            if row["vm"] == name:
                total.update({key: row[key] for key in COUNTED} | row["drops"])
        return total

    def balanced(self, name: str) -> None:
        """O4: nothing is lost without a name, in either direction."""
        books = self.books(name)
        to_guest = sum(count for key, count in books.items() if key.startswith("to_guest_"))
        others = sum(count for key, count in books.items() if key in SOURCE_DROPS)
        assert books["offered_to_guest"] == books["frames_to_guest"] + to_guest
        assert books["frames_from_guest"] == books["forwarded"] + others

    def lines(self, name: str) -> list[str]:
        """What the engine has logged of a VM port."""
        return [line for line in self.engine.log.splitlines() if line.startswith(f"vmq: vm {name}:")]

    def quiet(self) -> None:
        """O5: one line a VM port and reason a minute, and not many reasons."""
        minutes = 2 + (time.monotonic() - self.started) // 60
        for name in MACS:
            lines = Counter(self.lines(name))
            assert all(count <= minutes for count in lines.values()), lines
            assert len(lines) <= 8 * minutes

    def size(self) -> Counter[str]:
        """O7: descriptors and mappings that the engine has, by kind."""
        process = Path(f"/proc/{self.engine.pid}")
        asking = {
            line.split()[6] for line in (process / "net/unix").read_text().splitlines() if "api.sock" in line
        }
        found: Counter[str] = Counter()
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                kind, _, number = os.readlink(entry).partition(":")
                found[f"fd {kind}"] += number.strip("[]") not in asking
        found["mappings of guests"] = (process / "maps").read_text().count("memfd:guest")
        return found

    def resident(self) -> int:
        """Bytes of private memory that the engine holds (guest memory is shared)."""
        text = Path(f"/proc/{self.engine.pid}/status").read_text()
        return int(text.split("RssAnon:")[1].split()[0]) << 10


COUNTED = ("frames_from_guest", "forwarded", "copies", "offered_to_guest", "frames_to_guest")
SOURCE_DROPS = {
    name for name, _ in state.DROPS if not name.startswith(("to_guest_", "handover_", "to_wire_"))
}


@dataclass
class Attack:
    """One test: the attacker and its peer on their ports, and what must hold afterwards."""

    arena: Arena
    name: str = "attacker"
    partner: str = "peer"
    guests: dict[str, Guest] = field(default_factory=dict)
    _canaries: list[tuple[Guest, Any, list[tuple[int, int]]]] = field(default_factory=list)
    _expected: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = {name: self.arena.books(name) for name in (self.name, self.partner)}

    def close(self) -> None:
        """Everybody leaves; who is asked for again comes anew."""
        for guest in self.guests.values():
            guest.close()
        self.guests.clear()

    # --- who takes part ---------------------------------------------------------------------------------------

    def guest(self, name: str = "", *, start: bool = True, **options: Any) -> Guest:
        """The attacker's guest (or another's), made at the first call."""
        name = name or self.name
        if name not in self.guests:
            if name == self.name:
                self.peer  # noqa: B018 - the peer is there before anything happens
            self.guests[name] = self.arena.new(name, **options)
            if start:
                self.guests[name].start()
        return self.guests[name]

    @property
    def peer(self) -> Guest:
        return self.guest(self.partner)

    def on(self, way: Way, **options: Any) -> Virtqueue:
        """The attacked ring of an attacker who has posted nothing of its own."""
        guest = self.guest(**{"post": 0, "mergeable": way.mergeable} | options)
        return guest.virtqueue(to_guest=way.to_guest)

    # --- chains -----------------------------------------------------------------------------------------------

    def packet(self, way: Way, size: int = 100) -> bytes:
        """Packet header and frame as they pass on this way."""
        to, source = (self.name, self.partner) if way.to_guest else (self.partner, self.name)
        header = b"\0" * 10 + b"\1\0" if way.to_guest else NO_HEADER
        return header + frame(to, source, 1, size)

    def buffers(self, way: Way, *sizes: int, size: int = 100) -> list[Descriptor]:
        """A chain for a packet of a frame of `size` bytes, cut into pieces of `sizes` and the rest."""
        packet = self.packet(way, size)
        sizes = (*sizes, len(packet) - sum(sizes))
        memory, chain, place = self.guest().memory, list[Descriptor](), 0
        for part in sizes:
            guest = memory.allocate(max(part, 1) + 128)  # room behind it, to see an overrun
            memory.array(guest, max(part, 1) + 128, np.uint8)[:] = CANARY
            if not way.to_guest:
                memory.write(guest, packet[place : place + part])
            place += part
            chain.append((guest, part, way.flags))
        return chain

    def launch(self, way: Way, chain: Sequence[Descriptor], size: int = 100) -> int:
        """Put a chain where it does harm, and let it: a frame of the peer's to the attacker finds it; its head."""
        ring = self.on(way)
        head = ring.write_chain(chain, indirect=way.indirect)
        self.watch()
        ring.push(head)
        ring.show()
        ring.kick()
        if way.to_guest:
            self.send(way, size)
        return head

    def send(self, way: Way, size: int = 100) -> None:
        """The peer's frame to the attacker."""
        self.peer.send([self.packet(way, size)[HEADER:]])

    def watch(self, *allowed: tuple[int, int]) -> None:
        """From here on nothing but the attacker's rings and `allowed` (address, bytes) may change."""
        guest = self.guest()
        ranges = [*allowed]
        for one in guest.virtqueues:
            places = (one.desc_guest, one.avail_guest, one.used_guest)
            ranges += zip(places, split_ring_bytes(one.size), strict=True)
        self._canaries.append((guest, guest.memory._bytes.copy(), ranges))

    # --- outcomes ---------------------------------------------------------------------------------------------

    def counts(self, **expected: dict[str, int]) -> None:
        """Wait until the counters have moved by this since the beginning; no other has."""
        for name in (self.name, self.partner):
            self._expected[name] = expected.get(name, {})
            until_equal(partial(self.moved, name), self._expected[name])

    def moved(self, name: str) -> dict[str, int]:
        """By how much the counters of a VM port have moved."""
        now = self.arena.books(name)
        now.subtract(self._before[name])
        return {key: count for key, count in now.items() if count}

    def frames(self, way: Way, drop: str = "", count: int = 1) -> None:
        """The counters after `count` frames on a way: each is delivered, or dropped by `drop`, and nothing else moved."""
        if way.to_guest:
            theirs = {"frames_from_guest": count, "forwarded": count, "copies": count}
            ours = {"offered_to_guest": count, drop or "frames_to_guest": count}
            self.counts(**{self.name: ours, self.partner: theirs})
        elif drop:
            self.counts(**{self.name: {"frames_from_guest": count, drop: count}})
        else:
            ours = {"frames_from_guest": count, "forwarded": count, "copies": count}
            theirs = {"offered_to_guest": count, "frames_to_guest": count}
            self.counts(**{self.name: ours, self.partner: theirs})

    def dropped(self, way: Way, head: int, drop: str) -> None:
        """Class *drop*: counted once, the chain comes back with length 0, the port runs on."""
        self.frames(way, drop)
        ring = self.on(way)
        until(lambda: ring.used_index == 1, "the chain to come back")
        assert ring.returned(1) == [(head, 0)]
        assert self.row["state"] == "running"

    def accepted(self, way: Way, chain: Sequence[Descriptor], size: int = 100) -> None:
        """Class *accept*: the frame arrived byte for byte."""
        packet = self.packet(way, size)
        if way.to_guest:
            ring = self.on(way)
            until(lambda: ring.used_index == 1, "the chain to come back")
            assert ring.returned(1)[0][1] == len(packet)
            memory, (_, _, allowed) = self.guest().memory, self._canaries[-1]
            allowed += [(place, part) for place, part, *_ in chain]
            assert b"".join(memory.read(place, part) for place, part, *_ in chain)[: len(packet)] == packet
        else:
            assert self.peer.receive(1, PATIENCE) == [packet[HEADER:]]
        self.frames(way)
        assert self.row["state"] == "running"

    def stopped(self, way: Way, fault: int, *, told: bool = True) -> None:
        """Class *stop*: the port is faulted in words, its ring untouched from here on; its socket answers.

        `told`: the front-end has given its err eventfd before, and finds it signalled.
        """
        guest, ring = self.guest(), self.on(way)
        self.arena.engine.wait_for(self.name, "faulted")
        row = until(lambda: self.row["last_error"] and self.row, "words for it")
        assert row["last_error"]["what"] == state.FAULTS[fault][1]
        assert row["last_error"]["remedy"]
        assert not told or select.select([ring.err_fd], [], [], PATIENCE)[0], (
            "the err eventfd is not signalled"
        )
        used = [one.used_index for one in guest.virtqueues]
        if way.to_guest:
            self.frames(way, "to_guest_not_running")
        else:
            self.counts()
        for one in guest.virtqueues:
            one.kick()
        self.arena_neighbours.advance()
        assert [one.used_index for one in guest.virtqueues] == used
        guest.frontend.barrier()

    def restarts(self) -> None:
        """A reset by the driver leaves the fault behind, without a new connection."""
        guest = self.guest()
        self._expected.clear()
        self._canaries.clear()
        guest.stop()
        guest.reset()
        guest.post = None
        guest.start()
        assert self.arena.engine.wait_for(self.name, "running")["last_error"] is None
        exchange(guest, self.peer, (self.name, self.partner))

    @property
    def row(self) -> dict[str, Any]:
        return self.arena.engine.show("vms")[self.name]

    @property
    def arena_neighbours(self) -> Neighbours:
        assert self.arena.neighbours is not None
        return self.arena.neighbours

    # --- what always holds ------------------------------------------------------------------------------------

    def aftermath(self) -> None:
        self.arena_neighbours.advance()
        self.arena.alive()
        for name, expected in self._expected.items():
            assert self.moved(name) == expected, "a counter moved afterwards"
        for guest, before, allowed in self._canaries:
            assert_untouched(guest, before, allowed)

    def recovered(self) -> None:
        """O8, O4: guests that behave, on the same sockets."""
        guest = self.guests.pop(self.name, None)
        if guest:
            guest.close()
        self.peer.receive(1 << 16, 0)
        exchange(self.guest(), self.peer, (self.name, self.partner))
        row = self.row
        assert row["state"] == "running"
        assert row["last_error"] is None or "sends from" in row["last_error"]["what"]
        for name in (self.name, self.partner):
            self.arena.balanced(name)


def exchange(one: Guest, other: Guest, names: Sequence[str], count: int = 3) -> None:
    """Frames both ways, byte for byte."""
    ways: list[tuple[Guest, Guest, str, str]] = [
        (one, other, names[1], names[0]),
        (other, one, names[0], names[1]),
    ]
    for sender, receiver, to, source in ways:
        frames = [frame(to, source, number) for number in range(count)]
        sender.send(frames)
        assert receiver.receive(count, PATIENCE) == frames


def until_equal(now: Callable[[], Any], expected: Any) -> None:
    """Wait until something has a value; the assertion that fails shows the last one."""
    deadline = time.monotonic() + PATIENCE / 4
    while (found := now()) != expected and time.monotonic() < deadline:
        time.sleep(0.002)
    assert found == expected


def assert_untouched(guest: Guest, before: Any, allowed: Iterable[tuple[int, int]]) -> None:
    """No byte of guest memory has changed outside of `allowed`."""
    changed = guest.memory._bytes != before
    for address, size in allowed:
        start = guest.memory.own(address, size) - guest.memory.regions[0].own
        changed[start : start + size] = False
    places = np.flatnonzero(changed)
    assert not len(places), f"{len(places)} bytes changed, the first at {places[0]:#x} of the file"
