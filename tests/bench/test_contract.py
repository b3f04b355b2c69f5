# SPDX-License-Identifier: Apache-2.0
"""Changes under load, a few of each: the books close, or there is no figure; nor is there one of a guest that was too slow."""

from __future__ import annotations

import time

import pytest

from bench import contract, numbered
from bench.delivery import RefusedError
from bench.numbered import BUFFERS, RATE
from bench.systems import ENGINE_CPU, GUEST_CPU
from tests.engine.running import until

pytestmark = pytest.mark.root  # real-time priority
NAUGHT = {"frames lost", "frames doubled", "frames at the wrong guest", "frames out of order"}


@pytest.mark.parametrize("what", [contract.change_filters, contract.move])
def test_nothing_is_lost_doubled_astray_or_overtaken(what, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbered, "RATE", 100_000)  # a busy machine must not make a guest too slow
    monkeypatch.setattr(contract, "CHANGE_SECONDS", 0.1)
    monkeypatch.setattr(contract, "STANDING", 5)
    monkeypatch.setattr(contract, "MOVES", 4)
    found = what()
    assert {name: found[name] for name in NAUGHT} == dict.fromkeys(NAUGHT, 0)
    assert all(found[name] > 0 for name in set(found) - NAUGHT)


def test_a_neighbour_receives_while_a_vm_is_added() -> None:
    found = contract.neighbours(2, 1)
    assert {name: found[name].median for name in NAUGHT} == dict.fromkeys(NAUGHT, 0)
    assert 0 < found["µs, longest gap at a neighbour"].median < 1e6


def lose(one: contract.Load) -> None:
    one.followers.arrived[7] -= 1


def double(one: contract.Load) -> None:
    one.followers.arrived[7] += 1


def stray(one: contract.Load) -> None:
    one.followers.rows["strays"][0] += 1


def overtake(one: contract.Load) -> None:
    one.followers.rows["overtaken"][0] += 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [(lose, "lost"), (double, "doubled"), (stray, "at the wrong guest"), (overtake, "out of order")],
)
def test_one_frame_refuses_a_run_in_which_many_went_on(
    fault, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frame is lost, doubled, … while others come."""
    monkeypatch.setattr(numbered, "RATE", 100_000)
    with contract.load(1, [[0]]) as one:
        one.pause(False)
        until(lambda: one.followers.frames > BUFFERS, "frames arrive")
        one.end()
        fault(one)
        one.pause(False)
        with pytest.raises(RefusedError, match=f"'frames {said}': 1\\b"):
            one.end()


def test_a_run_without_frames_has_no_figure() -> None:
    with contract.load(1, [[0]]) as one, pytest.raises(RefusedError, match="of 0 frames"):
        one.end()


def test_a_guest_that_was_too_slow_has_no_figure() -> None:
    with contract.load(1, [[0]], (ENGINE_CPU, GUEST_CPU), look_ns=999_999_999) as one:
        one.pause(False)
        time.sleep(4 * BUFFERS / RATE)
        with pytest.raises(RefusedError, match="too slow"):
            one.end()


def test_publications_are_timed() -> None:
    found = contract.publications(2, 1)
    assert list(found) == ["ms, 2 VMs of 1 queue pairs", "ms, 2 VMs of 16 queue pairs"]
