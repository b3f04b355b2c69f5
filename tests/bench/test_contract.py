# SPDX-License-Identifier: Apache-2.0
"""Changes under load, a few of each: the books close, and a guest that was too slow has no figure."""

from __future__ import annotations

import time

import pytest

from bench import contract, numbered
from bench.delivery import RefusedError
from bench.numbered import BUFFERS, RATE
from bench.systems import ENGINE_CPU, GUEST_CPU

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
    assert found["frames lost"].median == 0
    assert 0 < found["µs, longest gap at a neighbour"].median < 1e6


def test_a_guest_that_was_too_slow_has_no_figure() -> None:
    with contract.load(1, [[0]], (ENGINE_CPU, GUEST_CPU), look_ns=999_999_999) as one:
        one.pause(False)
        time.sleep(4 * BUFFERS / RATE)
        with pytest.raises(RefusedError, match="too slow"):
            one.end()


def test_publications_are_timed() -> None:
    found = contract.publications(2, 1)
    assert list(found) == ["ms, 2 VMs of 1 queue pairs", "ms, 2 VMs of 16 queue pairs"]
