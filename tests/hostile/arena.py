# SPDX-License-Identifier: Apache-2.0
"""Where a hostile guest fights an engine: a real process, real sockets, and neighbours on the same processor.

    attacker ──┐
    peer ──────┼── one engine process, one processor        left ◄──► right: numbered frames all the time, in
    left ──────┤                                            another VLAN; they lose nothing, whatever happens
    right ─────┘

Everybody else is honest and stays so: what must hold of them during an attack is asked here, what a test does and
what it must lead to is in attack.py.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.conftest import INTERPRETED
from tests.vm.lab.engine import EngineProcess
from vmq.dataplane import reasons
from vmq.guest.guest import Guest
from vmq.guest.rings import WRITE
from vmq.guest.traffic import Traffic, compile_kernels

PATIENCE = 20.0  # seconds until something that must happen is given up
MACS = {name: f"52:54:00:00:00:{number:02x}" for number, name in enumerate(
    ("attacker", "peer", "left", "right", "wide", "widepeer", "giant", "giantpeer", "learner", "third", "stormer",
     "stormpeer"), 10
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
        ("stormer", MACS["stormer"], "queue_pairs = 1\nvlan = 10\nstorm_limit = 100\n"),
        ("stormpeer", MACS["stormpeer"], "queue_pairs = 1\nvlan = 10\n"),
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


def until_equal(now: Callable[[], Any], expected: Any) -> None:
    """Wait until something has a value; the assertion that fails shows the last one."""
    deadline = time.monotonic() + PATIENCE / 4
    while (found := now()) != expected and time.monotonic() < deadline:
        time.sleep(0.002)
    assert found == expected


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
        ended = self.engine.process.poll()
        assert ended is None, f"the engine has ended with {ended}: {self.engine.log}"
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
    name for name, _ in reasons.DROPS if not name.startswith(("to_guest_", "handover_", "to_wire_"))
}
