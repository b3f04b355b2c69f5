# SPDX-License-Identifier: Apache-2.0
"""The way without vmq: frames go by the kernel's bridge to the guest that they name, and nothing is made outside a namespace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from vmq.abi.ethernet import mac_number
from vmq.abi.virtio import vring_used, vring_used_elem
from vmq.jit import address_of, at
from vmq.speed.bridge import BUFFER, GUEST, HOST, Bridge, compare, cost_of, deliver, destination
from vmq.speed.stand import RING, mac, recording


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


def proving(guests: int) -> tuple[Any, Any, Any]:
    """A recording of frames of 64 bytes, the row of a host that plays it, and its guests' rows."""
    played = recording(64, guests)
    host, rows = np.zeros(1, HOST), np.zeros(guests, GUEST)
    host["frames"], host["count"] = address_of(played.rows), len(played.rows)
    rows["mac"] = [mac_number(mac(number)) for number in range(guests)]
    return played, host, rows


def test_frames_are_compared_with_those_that_name_the_guest_byte_for_byte_and_in_order() -> None:
    played, host, rows = proving(2)
    for row in played.rows[:8]:
        number = int(destination(int(row["address"])) == rows["mac"][1])
        compare(host[0], rows[number], int(row["address"]), 64)
    assert rows["faults"].tolist() == [0, 0]

    mine = [
        int(row["address"]) for row in played.rows[8:64] if destination(int(row["address"])) == rows["mac"][0]
    ]
    changed = np.array(at(mine[0], 64, np.uint8))
    changed[63] ^= 1
    for address, length in ((address_of(changed), 64), (mine[1], 60), (mine[3], 64)):
        compare(host[0], rows[0], address, length)
    assert rows["faults"].tolist() == [3, 0]


def test_nothing_is_compared_for_a_guest_that_no_frame_names() -> None:
    played, host, rows = proving(1)
    host["count"] = 16
    rows["mac"] = mac_number(mac(9))
    compare(host[0], rows[0], int(played.rows[0]["address"]), 64)
    assert rows["faults"].tolist() == [1]


@pytest.mark.parametrize(
    ("got", "faults", "lost", "said"),
    [
        ((64, 64), 0, 0, ""),
        ((63, 65), 0, 0, "guest 0 got 63 frames and not 64"),
        ((64, 64), 1, 0, "1 of them not as they were written, or to another"),
        ((64, 64), 0, 2, "2 frames could not be written"),
    ],
)
def test_a_copy_too_many_does_not_make_up_for_a_lost_frame(
    got: tuple[int, int], faults: int, lost: int, said: str
) -> None:
    """Frames are counted guest by guest."""
    bridge = object.__new__(Bridge)
    bridge.row, bridge.rows = np.zeros(1, HOST), np.zeros(2, GUEST)
    bridge.row["lost"] = lost
    bridge.rows["due"], bridge.rows["frames"], bridge.rows["faults"] = 64, got, (0, faults)
    if not said:
        assert bridge._count() == list(got)
        return
    with pytest.raises(RuntimeError, match=said):
        bridge._count()


def test_a_way_that_costs_nothing_beside_the_writing_is_refused() -> None:
    assert cost_of(300.0, 100.0) == 200.0
    with pytest.raises(RuntimeError, match="a frame took 100 ns all the way, and 100 for the writing alone"):
        cost_of(100.0, 100.0)


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
        assert told["host_ns"] > 0
        assert "seconds" not in told
    assert len(answers) == 2
    assert sorted(os.listdir("/sys/class/net")) == before


FORGETFUL = """
import subprocess
from vmq.speed.bridge import BRIDGE, Bridge
bridge = Bridge(64, 2)
bridge.measure(0.01)
subprocess.run(("ip", "link", "set", BRIDGE, "type", "bridge", "fdb_flush"), check=True)
bridge.measure(0.01)
"""


@pytest.mark.root
@pytest.mark.compiled
def test_a_bridge_that_floods_is_refused() -> None:
    """It has forgotten where guests are, so each gets a copy of the other's frames too."""
    argv = ("unshare", "--net", sys.executable, "-c", FORGETFUL)

    ran = subprocess.run(argv, capture_output=True, text=True, timeout=100)

    assert re.search(r"RuntimeError: guest 0 got (\d+) frames and not \d+, [1-9]\d* of them not", ran.stderr)
