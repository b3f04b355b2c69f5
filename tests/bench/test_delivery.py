# SPDX-License-Identifier: Apache-2.0
"""What refuses a figure: a frame without a name in the books, a frame that a guest should not have."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import pytest

from bench import delivery
from bench.delivery import NOBODYS_VLAN, RefusedError, check_books, check_uplink, in_turn, strays, unbalanced
from tests.dpdk.frames import frame
from vmq.config import load

A, B, HOST = (f"02:00:00:00:00:0{number}" for number in (1, 2, 3))
ADDRESS = bytes.fromhex(A.replace(":", ""))
BURST = 64
MOVING = 10  # looks for which frames go on
LOSSES = ["uplink", "way", "queue", "guest", "surplus"]
WORDS = {
    "uplink": "1 of .* frames from the wire have no name",
    "way": "steered to guests",
    "queue": "v0/0: .* offered",
    "guest": "v0: .* by the guest's",
    "surplus": "v0: .* by the guest's",
}


def book(offered: int, arrived: int, no_buffer: int = 0, vm: str = "v0") -> dict[str, Any]:
    """Drops of what a guest sends are not of its receive queue."""
    drops = {"to_guest_no_buffer": no_buffer, "from_guest_short": 7}
    return {"vm": vm, "offered_to_guest": offered, "frames_to_guest": arrived, "drops": drops}


def wire(taken: int, forwarded: int, copies: int, **drops: int) -> dict[str, Any]:
    return {
        "frames_from_wire": taken,
        "forwarded": forwarded,
        "copies": copies,
        "waiting": 0,
        "drops": drops,
    }


class Engine:
    """Books of an engine that moves: each look finds more frames, for the guest until these are turned away.

    `lost`: the way on which it loses one frame, once and for all. A third of what is offered has no buffer.
    """

    log = "nothing to say"

    def __init__(self, folder: Path, lost: str = "") -> None:
        self.lost, self.bursts, self.steered, self.hushed, self._moves = lost, 0, 0, False, MOVING
        self.file = folder / "vmq.toml"
        self.configure(
            f'[uplink.source]\nkind = "memory"\n[vm.v0]\nsocket = "{folder}/v0.sock"\n'
            f'uplink = "source"\nmac = "{A}"\nspoof_check = false\n'
        )

    def configure(self, text: str) -> None:
        self.file.write_text(text)

    def reload(self) -> None:
        self.hushed = True

    def _at(self, *ways: str) -> int:
        return int(self.lost in ways)

    def show(self, what: str) -> dict[str, dict[str, Any]]:
        self.bursts += 1
        self._moves -= self.hushed
        if self._moves > 0:
            self.steered = self.bursts * BURST
        if what == "vms":
            return {"v0": {"vlan": NOBODYS_VLAN if self.hushed else None}}
        if what == "uplinks":
            taken = self.bursts * BURST
            turned = taken - self.steered - self._at("uplink")
            return {"source": wire(taken, self.steered, self.steered, default_queue=turned)}
        offered = self.steered - self._at("way")
        no_buffer = offered // 3
        return {"v0/0": book(offered, offered - no_buffer - self._at("queue"), no_buffer)}

    def meter(self) -> list[tuple[int, float]]:
        """The guest's own count."""
        has = self.steered - self.steered // 3 - self._at("guest") + self._at("surplus")
        return [(has, 0.0)]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "DRAIN_SECONDS", 0.2)
    monkeypatch.setattr(delivery, "LOOK_SECONDS", 0.0001)


def test_books_that_move_are_brought_to_rest_and_close(tmp_path: Path) -> None:
    engine: Any = Engine(tmp_path)

    check_books(engine, engine.meter)

    assert engine.hushed
    assert load(engine.file).vms["v0"].vlan == NOBODYS_VLAN


@pytest.mark.parametrize("way", LOSSES)
def test_one_lost_frame_refuses_the_figure_though_the_books_move(
    tmp_path: Path, hasty: None, way: str
) -> None:
    """Whatever is delivered meanwhile, and on whichever way it was lost."""
    engine: Any = Engine(tmp_path, lost=way)

    with pytest.raises(RefusedError, match=WORDS[way]):
        check_books(engine, engine.meter)


def test_engine_that_does_not_turn_frames_away_has_no_figure(tmp_path: Path, hasty: None) -> None:
    engine: Any = Engine(tmp_path)
    engine.reload = lambda: None

    with pytest.raises(RefusedError, match="did not turn frames away:\nnothing to say"):
        check_books(engine, engine.meter)


def test_frames_that_arrived_or_have_a_named_drop_are_accounted_for() -> None:
    """A frame that was dropped between two processors has been offered to nobody."""
    lane = wire(400, 300, 300, handover_full=10)
    queues = {"v0/0": book(100, 60, 40), "v1/0": book(190, 190, vm="v1")}

    assert unbalanced(queues, lane, [60, 190]) == ""
    assert "v1" in unbalanced(queues, lane, [60, 189])


def judged_late() -> Iterator[int]:
    """Frames of a burst that are not judged yet."""
    return chain.from_iterable(repeat((0, 64, 0, 13, 0, 40)))


def test_frames_of_a_burst_that_is_under_way_are_no_loss() -> None:
    taken, late = count(BURST, BURST), judged_late()

    check_uplink(lambda: wire(now := next(taken), now - next(late), 0))


def test_processor_that_stands_still_within_a_burst_is_waited_for() -> None:
    looks = chain(repeat((BURST, 0), 1000), ((BURST * turn, BURST * turn) for turn in count(2)))

    check_uplink(lambda: wire(*next(looks), 0))


def test_frame_that_an_uplink_has_lost_is_found_beside_those_under_way(hasty: None) -> None:
    taken, late = count(BURST, BURST), judged_late()

    with pytest.raises(RefusedError, match="3 of"):
        check_uplink(lambda: wire(now := next(taken), now - next(late) - 3, 0))


def test_only_frames_of_the_capture_to_this_guest_may_be_there() -> None:
    own, other = frame(A, HOST, 64, 1), frame(B, HOST, 64, 2)
    allowed = frozenset([own, other])

    assert strays([own, own], allowed, ADDRESS) == ""
    assert strays([], allowed, ADDRESS) == "nothing"
    assert strays([own, other], allowed, ADDRESS) == f"a frame to {B}"
    assert strays([own[:-1] + b"?"], allowed, ADDRESS).startswith("a frame that was never sent")


def test_systems_are_measured_in_turn_when_nothing_else_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A B A B: what changes on the machine meanwhile concerns both."""
    order: list[str] = []
    said: list[str] = []

    def wait() -> float:
        order.append("wait")
        return 0.5

    def measure(name: str, value: float) -> float:
        order.append(name)
        return value

    monkeypatch.setattr("bench.quiet.wait", wait)
    found = in_turn({"a": lambda: measure("a", 2.0), "b": lambda: measure("b", 3.0)}, "row", 2, said.append)

    assert order == ["wait", "a", "wait", "b"] * 2
    assert {name: figure.values for name, figure in found.items()} == {"a": (2.0, 2.0), "b": (3.0, 3.0)}
    assert said[0] == "row: 1/2, a 2.00 Mpps (others took 50% of the machine)"
