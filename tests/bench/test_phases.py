# SPDX-License-Identifier: Apache-2.0
"""The parts of a frame's time: each is there, and no frame is lost while a clock runs or nothing is copied."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from bench.core import Core, mac, recording, scattered
from bench.phases import (
    BETWEEN,
    COPY,
    PARTS,
    QUEUES,
    STAMPS,
    TOGETHER,
    WHOLE,
    Parted,
    check,
    no_copy,
    stamps,
    with_clock,
)
from bench.stats import Figure
from vmq import linux
from vmq.dataplane import state
from vmq.dataplane.to_guest import HEADER
from vmq.jit import at, copy_short

SPANS, ROUNDS = 2, 4


@pytest.fixture
def core() -> Iterator[Core]:
    linux.map_fixed(STAMPS, linux.PAGE)
    macs = [mac(number) for number in range(QUEUES)]
    with Core(recording(64, macs, scattered(1024, QUEUES)), macs, QUEUES, posted=4096, rounds=ROUNDS) as made:
        yield made


def test_every_part_ends_once_a_burst_or_once_an_indication(core: Core) -> None:
    parts = Parted(core, with_clock({})).nanoseconds(SPANS)

    assert tuple(parts) == PARTS
    assert COPY not in parts
    bursts = SPANS * ROUNDS
    marks = at(STAMPS, 1, stamps)[0]["marks"].tolist()
    assert marks[: PARTS.index("look ahead")] == [bursts, bursts]
    assert marks[PARTS.index("look at the rest")] == bursts + SPANS
    assert bursts < marks[PARTS.index("show")] <= QUEUES * bursts
    assert marks[BETWEEN] == SPANS


def test_parts_that_are_not_the_whole_are_refused() -> None:
    whole = {WHOLE: Figure.of([30.0, 31.0, 50.0])}
    check(whole | {TOGETHER: Figure.of([29.0])})
    with pytest.raises(ValueError, match=r"takes 31\.0 ns, and its parts together 35\.0 ns"):
        check(whole | {TOGETHER: Figure.of([35.0])})


def test_without_the_copy_everything_else_is_done(core: Core) -> None:
    Parted(core, with_clock({copy_short: no_copy})).nanoseconds(SPANS)

    assert core.arrived() == SPANS * ROUNDS * state.BURST
    packet = at(core.guests[0].buffers, HEADER + 64, np.uint8)
    assert packet[:HEADER].tobytes() == bytes(10) + b"\1\0"
    assert not packet[HEADER:].any()
