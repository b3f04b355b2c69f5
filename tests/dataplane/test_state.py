# SPDX-License-Identifier: Apache-2.0
"""Rows that two threads never share a cache line of."""

from __future__ import annotations

import numpy as np
import pytest

from vmq.dataplane import reasons, state

ROWS = (
    "tables",
    "vport",
    "queue",
    "virtqueue",
    "lane",
    "engine",
    "worker",
    "queue_state",
    "ring_state",
    "port_state",
    "lane_state",
    "watch",
    "latency",
)


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_whole_cache_lines(name):
    assert getattr(state, name).itemsize % 64 == 0


def test_the_two_sides_of_a_byte_ring_write_different_cache_lines():
    fields = state.byte_ring.fields
    assert fields is not None
    lines = {name: fields[name][1] // 64 for name in ("head", "tail", "size")}
    assert len(set(lines.values())) == 3
    assert state.byte_ring.itemsize % 64 == 0


@pytest.mark.parametrize(("row", "stride", "place"), [
    (state.queue_state, state.QUEUE_STATE, state.QUEUE_ACCOUNT), (state.lane_state, state.LANE_STATE, state.LANE_ACCOUNT),
])  # fmt: skip
def test_an_account_is_found_by_its_address(row, stride, place):
    rows = np.zeros(3, row)
    rows[2]["account"]["drops"][reasons.NO_FILTER] = 7
    begin = 2 * stride + place
    account = rows.view(np.uint8).reshape(-1)[begin : begin + state.account.itemsize].view(state.account)[0]
    assert int(account["drops"][reasons.NO_FILTER]) == 7


def test_a_burst_fits_into_the_scratch_of_a_round():
    """What bounds one thing must not be less than what bounds another."""
    assert state.BURST <= state.FRAMES
    assert state.CHAIN_MAX * 2 < state.PIECES
    assert state.HEAD <= state.HEAD_STRIDE
    assert state.FRAME_MAX <= state.BOUNCE
    assert state.DELIVERIES // state.MAX_VPORTS > 0


def test_keys_of_filters_are_never_the_empty_key():
    largest = ((1 << 48) - 1) | (4095 << state.VID_SHIFT)
    assert 0 <= largest < 1 << 63
    assert state.KEY_EMPTY < 0
