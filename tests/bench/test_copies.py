# SPDX-License-Identifier: Apache-2.0
"""memcpy moves what the engine moves: the same bytes, from the same places to the same places, in the same order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from bench.copies import GUESTS, Copier, moves
from bench.core import Core, compile_kernels, in_runs, mac, recording, scattered
from vmq.abi.ethernet import ETH_ALEN
from vmq.dataplane import state
from vmq.dataplane.to_guest import HEADER
from vmq.jit import at

COUNT, SIZE, STRIDE, ROUNDS = 1024, 300, 512, 4
ORDER = scattered(COUNT, GUESTS)


@pytest.fixture
def core() -> Iterator[Core]:
    compile_kernels()
    macs = [mac(number) for number in range(GUESTS)]
    with Core(recording(SIZE, macs, ORDER), macs, GUESTS, posted=COUNT, stride=STRIDE, rounds=ROUNDS) as made:
        yield made


def written(core: Core) -> list[bytes]:
    """What lies in every receive buffer, without the packet header."""
    return [
        at(guest.buffers + STRIDE * index + HEADER, SIZE, np.uint8).tobytes()
        for guest in core.guests
        for index in range(guest.receive.size)
    ]


def test_memcpy_writes_what_the_engine_wrote(core: Core) -> None:
    core.nanoseconds(COUNT // (ROUNDS * state.BURST))
    by_engine = written(core)
    for guest in core.guests:
        at(guest.buffers, guest.receive.size * STRIDE, np.uint8)[:] = 0

    Copier(core, ORDER, STRIDE, ahead=True).nanoseconds()

    assert written(core) == by_engine
    assert by_engine[0][: 2 * ETH_ALEN] != bytes(2 * ETH_ALEN)


def test_a_burst_is_copied_receive_queue_by_receive_queue(core: Core) -> None:
    made = moves(core, ORDER, STRIDE)
    numbers = {int(row["address"]): number for number, row in enumerate(core.played.rows)}
    copied = [numbers[int(source)] for source in made["source"]]
    assert sorted(copied) == list(range(COUNT))
    first = copied[: state.BURST]
    queues = [int(ORDER[number]) for number in first]
    assert sorted(first) == list(range(state.BURST))
    assert len([1 for one, other in itertools.pairwise(queues) if one != other]) == GUESTS - 1
    assert all(first[i] < first[i + 1] for i in range(state.BURST - 1) if queues[i] == queues[i + 1])


def test_a_lap_that_ends_in_the_middle_of_a_ring_is_refused(core: Core) -> None:
    with pytest.raises(ValueError, match="whole number of times"):
        moves(core, in_runs(COUNT, GUESTS - 1), STRIDE)
