# SPDX-License-Identifier: Apache-2.0
"""What a follower says of numbered frames: lost, doubled, astray, overtaken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bench.numbered import FOLLOWER, NUMBERS, Followers, Verdict, addresses, note, source
from tests.dpdk.frames import mac_bytes, read_capture
from vmq.jit import address_of

pytestmark = pytest.mark.interpreted


def told(numbers: Sequence[int], sent: int, may: int = 0b11, own: int = 0) -> Verdict:
    """The verdict on these numbers of two addresses."""
    followers = Followers([], [], 2)
    followers.rows = np.zeros(1, FOLLOWER)
    row = followers.rows[0]
    row["addresses"], row["may"], row["own"], row["last"] = 2, may, own, -1
    row["arrived"] = address_of(followers.arrived)
    for number in numbers:
        note(row, number)
    return followers.verdict(sent)


def test_all_frames_in_order_are_perfect_over_several_laps() -> None:
    assert told([*range(NUMBERS), *range(5)], NUMBERS + 5) == Verdict(NUMBERS + 5, 0, 0, 0, 0)
    assert told([0, 1, 2], 3).perfect


@pytest.mark.parametrize(
    ("numbers", "wrong"),
    [
        ([0, 1, 3], Verdict(3, 1, 0, 0, 0)),
        ([0, 1, 1, 2, 3], Verdict(5, 0, 1, 0, 0)),
        ([0, 2, 1, 3], Verdict(4, 0, 0, 0, 0)),  # of two addresses, each in order
        ([2, 0, 1, 3], Verdict(4, 0, 0, 0, 1)),
        ([0, 0, 1, 2, 3], Verdict(5, 0, 1, 0, 1)),
    ],
)
def test_what_is_wrong_is_counted(numbers: list[int], wrong: Verdict) -> None:
    assert told(numbers, 4) == wrong


def test_a_frame_of_another_address_is_astray_and_missing() -> None:
    assert told([0, 1], 2, may=0b01) == Verdict(2, 1, 0, 1, 0)


def test_the_capture_has_every_number_once_and_goes_to_the_addresses_in_turn(tmp_path: Path) -> None:
    config = source(tmp_path, 3)
    frames = read_capture(Path(str(config.read)))
    assert [int.from_bytes(one[14:18], "big") for one in frames] == list(range(NUMBERS))
    assert [one[:6] for one in frames[:4]] == [mac_bytes(addresses(3)[number]) for number in (0, 1, 2, 0)]
