# SPDX-License-Identifier: Apache-2.0
"""One attack: the attacker and its peer on their VM ports, and what must hold afterwards.

    head = attack.launch(way, chain)             a chain, put where it does harm
    attack.dropped(way, head, "a_named_drop")    class *drop*; `accepted`, `stopped` are the others

The counters that move are exact, so one bad item moves one counter by one. `aftermath` and `recovered` check what
holds for every attack; the fixture calls them when the test has passed.
"""

from __future__ import annotations

import select
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.hostile.arena import CANARY, PATIENCE, Arena, Neighbours, Way, frame, until, until_equal
from vmq.abi.vhost_user import FLAG_VERSION, Request
from vmq.abi.vhost_user import HEADER as MESSAGE_HEADER
from vmq.abi.virtio import split_ring_bytes
from vmq.dataplane import reasons
from vmq.errors import ProtocolError
from vmq.guest.driver import HEADER
from vmq.guest.frontend import Frontend
from vmq.guest.guest import NO_HEADER, Guest
from vmq.guest.rings import Descriptor, Virtqueue


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
        assert row["last_error"]["what"] == reasons.FAULTS[fault][1]
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


def assert_untouched(guest: Guest, before: Any, allowed: Iterable[tuple[int, int]]) -> None:
    """No byte of guest memory has changed outside of `allowed`."""
    changed = guest.memory._bytes != before
    for address, size in allowed:
        start = guest.memory.own(address, size) - guest.memory.regions[0].own
        changed[start : start + size] = False
    places = np.flatnonzero(changed)
    assert not len(places), f"{len(places)} bytes changed, the first at {places[0]:#x} of the file"


def raw(request: int, payload: bytes = b"", flags: int = FLAG_VERSION, size: int | None = None) -> bytes:
    return MESSAGE_HEADER.pack(request, flags, len(payload) if size is None else size) + payload


def connected(attack: Attack) -> Guest:
    """A guest whose front-end has handed over memory, and no ring."""
    guest = attack.guest(start=False)
    guest.frontend.connect()
    guest.frontend.handshake(guest.features)
    guest.frontend.set_features()
    guest.frontend.set_memory(guest.memory)
    return guest


def refuses(front: Frontend, request: Request, payload: bytes, fds: list[int] | None = None) -> None:
    with pytest.raises(ProtocolError, match="refused"):
        front.tell(request, payload, fds or [])
