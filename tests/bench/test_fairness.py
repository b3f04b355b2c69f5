# SPDX-License-Identifier: Apache-2.0
"""A slow guest and a flooding one: what is counted is what happened."""

from __future__ import annotations

import pytest

from bench import fairness
from bench.core import compile_kernels
from bench.fairness import GUESTS, REST, TAKE, Contest, Neighbours, flood
from vmq.dataplane import state
from vmq.dataplane.reasons import TO_GUEST_NO_BUFFER


@pytest.mark.parametrize("keep", [0, 8])
def test_a_slow_guest_loses_its_own_frames_only(monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    compile_kernels()
    monkeypatch.setattr(fairness, "COUNT", 1024)
    monkeypatch.setattr(fairness, "REST", 1 << 20)
    with Neighbours(slow=True, keep=keep, posted=4096, rounds=32) as core:
        assert core.nanoseconds(6) > 0
        drops = core.segment.rows["queue_state"]["to_guest_drops"][:GUESTS, TO_GUEST_NO_BUFFER].tolist()
        assert drops[: GUESTS - 1] == [0] * (GUESTS - 1)
        assert drops[GUESTS - 1] > 0
        assert REST > 1


def test_senders_have_equal_turns_while_a_sink_takes_all() -> None:
    rounds = 20
    with Contest() as stage:
        shares, part = stage.shares(GUESTS * state.BURST, rounds)
        assert shares == [rounds * state.BURST] * GUESTS
        assert part == 1.0


def test_frames_that_a_sink_has_no_buffer_for_are_nobody_s_share() -> None:
    rounds = 20
    with Contest() as stage:
        shares, part = stage.shares(TAKE, rounds)
        assert 0 < sum(shares) < rounds * GUESTS * state.BURST
        assert part < 1


def test_a_sink_in_its_own_time_ends_with_the_contest() -> None:
    with Contest() as stage:
        shares, part = stage.shares(0, 20)
        assert sum(shares) > 0
        assert 0 < part <= 1


def test_where_a_slow_sink_takes_all_there_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contest, "shares", lambda *_: ([1] * GUESTS, 1.0))
    with pytest.raises(ValueError, match="took 100% of the frames: nothing was contested"):
        flood(1)


@pytest.mark.parametrize("take", [GUESTS * state.BURST, TAKE, 0])
def test_a_frame_that_neither_arrived_nor_has_a_name_refuses_the_shares(
    monkeypatch: pytest.MonkeyPatch, take: int
) -> None:
    """One frame, whatever was dropped by name meanwhile."""
    with Contest() as stage:
        fought = fairness.contest

        def lossy(address: int) -> int:
            taken = fought(address)
            stage._counts[0] -= 1
            return taken

        monkeypatch.setattr(fairness, "contest", lossy)
        with pytest.raises(ValueError, match="frames were taken"):
            stage.shares(take, 20)
