# SPDX-License-Identifier: Apache-2.0
"""What lanes put into a sink comes out, in order and whole."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataplane.harness_wire import Round, aligned, plain
from vmq.dataplane import state
from vmq.jit import address_of
from vmq.uplink.sink import RING, Sink, sink_bytes


def lane_with_sink() -> tuple[np.void, Sink, np.ndarray]:
    memory = aligned(sink_bytes())
    lane = np.zeros(1, state.lane)[0]
    lane["kind"], lane["sink"] = state.LANE_REPLAY, address_of(memory)
    return lane, Sink(address_of(memory)), memory


def test_frames_come_out_as_they_stand_on_the_wire() -> None:
    lane, sink, _memory = lane_with_sink()
    worker = Round()
    worker.put(plain(1))
    worker.put(plain(2), tci=0x6007, cuts=(20, 30))
    worker.transmit(lane)

    assert list(sink.frames()) == [plain(1), plain(2)[:12] + b"\x81\x00\x60\x07" + plain(2)[12:]]
    assert list(sink.frames()) == []


def test_a_full_sink_is_a_named_drop() -> None:
    lane, sink, _memory = lane_with_sink()
    worker = Round()
    sent = 0
    while not worker.drops(lane):
        worker.begin()
        for _ in range(20):
            worker.put(plain(1, 60000))
        worker.transmit(lane)
        sent += 20

    kept = len(list(sink.frames()))
    assert worker.drops(lane) == {"to_wire_full": sent - kept}
    assert kept >= RING // 60100 - 1
    assert worker.state_of(lane)["frames_to_wire"] == kept


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(14, 65000), min_size=1, max_size=20), min_size=1, max_size=12))
def test_the_ring_goes_round_and_nothing_is_lost_or_reordered(bursts: list[list[int]]) -> None:
    lane, sink, _memory = lane_with_sink()
    worker, number = Round(), 0
    for lengths in bursts * 4:
        worker.begin()
        frames = []
        for length in lengths:
            number += 1
            frames.append(plain(number & 0xFFFF, length))
            worker.put(frames[-1])
        worker.transmit(lane)
        assert list(sink.frames()) == frames
    assert worker.drops(lane) == {}
