# SPDX-License-Identifier: Apache-2.0
"""Guests that cost nothing: every frame arrives, span after span, and where it should."""

from __future__ import annotations

import numpy as np
import pytest

from bench.core import ROUNDS, Core, Rings, compile_kernels, in_runs, mac, recording, scattered
from vmq.abi.ethernet import mac_text
from vmq.abi.virtio import vring_avail, vring_desc
from vmq.dataplane import state
from vmq.jit import at
from vmq.publisher import QueueEntry

FRAMES = 1024


def test_addresses_differ_and_are_unicast() -> None:
    assert [mac_text(mac(number)) for number in (0, 255, 256)] == [
        "52:54:00:00:00:00",
        "52:54:00:00:00:ff",
        "52:54:00:00:01:00",
    ]


def test_a_recording_goes_where_the_order_says() -> None:
    macs, order = [mac(number) for number in range(5)], scattered(FRAMES, 5)
    made = recording(64, macs, order, vlans=[7, 7, 8, 8, 9])
    found = [int.from_bytes(at(int(row["address"]), 6, np.uint8).tobytes(), "little") for row in made.rows]
    assert found == [macs[to] for to in order]
    assert [int(row["tci"]) for row in made.rows[:8]] == [[7, 7, 8, 8, 9][to] for to in order[:8]]


def test_a_burst_goes_to_one_target_and_the_next_to_the_next() -> None:
    order = in_runs(4 * state.BURST, 3)
    assert [int(order[burst * state.BURST]) for burst in range(4)] == [0, 1, 2, 0]
    assert len(set(order[: state.BURST])) == 1


def test_a_ring_names_each_buffer_once() -> None:
    rings = Rings(8)
    table = at(rings.receive.desc, 8, vring_desc)
    assert len(set(table["addr"].tolist())) == 8
    assert int(at(rings.receive.avail, 1, vring_avail)["idx"][0]) == 8


@pytest.mark.parametrize("shared", [False, True])
def test_every_frame_of_every_span_arrives(shared: bool) -> None:
    compile_kernels()
    macs = [mac(number) for number in range(2)]
    entry = QueueEntry(0, shared=shared, generation=1)
    with Core(recording(64, macs, scattered(FRAMES, 2)), macs, 2, entry=entry, posted=16384) as core:
        assert core.nanoseconds(4) > 0
        arrived = core.segment.rows["queue_state"]["frames_to_guest"][:2]
        assert arrived.sum() == 4 * ROUNDS * state.BURST
        assert arrived.min() > 0


def test_frames_that_do_not_arrive_have_no_figure() -> None:
    compile_kernels()
    played = recording(64, [mac(0)], scattered(FRAMES, 1))
    with Core(played, [mac(0)], posted=64) as core, pytest.raises(ValueError, match="frames arrived"):
        core.nanoseconds(1)
