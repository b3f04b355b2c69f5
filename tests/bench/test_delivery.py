# SPDX-License-Identifier: Apache-2.0
"""What refuses a figure: a frame without a name in the books, a frame that a guest should not have."""

from __future__ import annotations

import pytest

from bench.delivery import RefusedError, check_books, in_turn, strays, unnamed
from tests.dpdk.frames import frame

A, B, HOST = (f"02:00:00:00:00:0{number}" for number in (1, 2, 3))
ADDRESS = bytes.fromhex(A.replace(":", ""))


def book(offered: int, arrived: int, no_buffer: int = 0) -> dict:
    drops = {"to_guest_no_buffer": no_buffer, "from_guest_short": 7}
    return {"offered_to_guest": offered, "frames_to_guest": arrived, "drops": drops}


def test_frames_that_arrived_or_have_a_named_drop_are_accounted_for() -> None:
    """Drops of what a guest sends are not of its receive queue."""
    assert unnamed({"v/0": book(100, 60, 40)}, {"v/0": book(300, 200, 90)}) == ""


def test_frames_on_the_way_between_two_looks_are_no_loss() -> None:
    assert unnamed({"v/0": book(100, 90)}, {"v/0": book(120, 100)}) == ""


@pytest.mark.parametrize("then", [book(100, 59, 40), book(90, 90)])
def test_missing_and_surplus_frames_are_said(then: dict) -> None:
    assert "v/0" in unnamed({"v/0": book(100, 60, 40)}, {"v/0": then})


def test_burst_that_is_under_way_is_waited_for() -> None:
    looks = iter([book(100, 40), book(100, 40), book(100, 100)])

    check_books(lambda: {"v/0": next(looks)})

    with pytest.raises(StopIteration):
        next(looks)


def test_frame_that_never_settles_refuses_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.delivery.BURST_SECONDS", 0.01)

    with pytest.raises(RefusedError, match="100 frames offered, 99"):
        check_books(lambda: {"v/0": book(100, 99)})


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
