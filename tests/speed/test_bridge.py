# SPDX-License-Identifier: Apache-2.0
"""The way without vmq: frames go by the kernel's bridge to the guest that they name, and nothing is made outside a namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from vmq.abi.virtio import vring_used, vring_used_elem
from vmq.jit import address_of, at
from vmq.speed.bridge import BUFFER, GUEST, deliver
from vmq.speed.stand import RING


def test_a_frame_lies_in_as_many_buffers_as_it_takes() -> None:
    """Byte for byte; a used element for each, and the index behind them."""
    memory = np.zeros(RING * BUFFER + RING * vring_used_elem.itemsize + 64, np.uint8)
    row = np.zeros(1, GUEST)
    row["buffers"], row["used"], row["next"] = (
        address_of(memory),
        address_of(memory) + RING * BUFFER,
        RING - 1,
    )
    frame = np.arange(BUFFER + 100, dtype=np.uint8)

    deliver(row[0], address_of(frame), len(frame))

    used = int(row["used"][0])
    elements = at(used + vring_used.itemsize, RING, vring_used_elem)
    assert memory[(RING - 1) * BUFFER : RING * BUFFER].tobytes() == frame[:BUFFER].tobytes()
    assert memory[:100].tobytes() == frame[BUFFER:].tobytes()
    assert [tuple(elements[slot]) for slot in (RING - 1, 0)] == [(RING - 1, BUFFER), (0, 100)]
    assert int(at(used, 1, vring_used)["idx"][0]) == RING + 1
    assert int(row["frames"][0]) == 1


@pytest.mark.root
@pytest.mark.compiled
def test_every_frame_arrives_and_each_guest_has_its_share() -> None:
    """In a namespace that goes with the process."""
    before = sorted(os.listdir("/sys/class/net"))
    argv = ("unshare", "--net", sys.executable, "-m", "vmq.speed.bridge", "1514", "2")

    ran = subprocess.run(argv, input="0.02\n0.02\n", capture_output=True, text=True, timeout=100)

    ready, *answers = ran.stdout.splitlines()
    assert ready == "ready", ran.stderr
    for told in map(json.loads, answers):
        assert len(told["frames"]) == 2
        assert min(told["frames"]) > 0
        assert told["p50_ns"] <= told["p99_ns"]
        assert told["writing_ns_a_frame"] > 0
    assert len(answers) == 2
    assert sorted(os.listdir("/sys/class/net")) == before
