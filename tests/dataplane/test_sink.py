# SPDX-License-Identifier: Apache-2.0
"""A byte ring is emptied by whole parcels; what control makes of them: tests/uplink/test_sink.py."""

from __future__ import annotations

import numpy as np

from tests.dataplane.harness_wire import aligned
from vmq.dataplane import state
from vmq.dataplane.sink import drain_ring
from vmq.jit import address_of, at

SIZE = 1024


def test_all_that_is_written_comes_out_and_its_room_is_given_back() -> None:
    memory, out = aligned(state.byte_ring.itemsize + SIZE), aligned(SIZE + 64)
    ring = at(address_of(memory), 1, state.byte_ring)[0]
    ring["size"], ring["data"] = SIZE, address_of(memory) + state.byte_ring.itemsize
    data = memory[state.byte_ring.itemsize :]
    rng = np.random.default_rng(1)
    for _ in range(40):
        length = int(rng.integers(0, SIZE // 16 + 1)) * 16
        start = int(ring["head"]) % SIZE
        written = rng.integers(0, 255, length, np.uint8)
        data[(start + np.arange(length)) % SIZE] = written
        ring["head"] += length
        out[:] = 255

        first = int(drain_ring(address_of(memory), address_of(out)))
        got = bytes(out[:first])
        second = int(drain_ring(address_of(memory), address_of(out)))
        got += bytes(out[:second])

        assert first == min(length, SIZE - start)
        assert got == bytes(written)
        assert ring["tail"] == ring["head"]
        assert set(out[max(first, second) :]) <= {255}
        assert drain_ring(address_of(memory), address_of(out)) == 0
