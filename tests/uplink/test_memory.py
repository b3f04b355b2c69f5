# SPDX-License-Identifier: Apache-2.0
"""The generator and the sink."""

from __future__ import annotations

import pytest

from tests.dataplane.harness_wire import Round, plain
from vmq.abi.ethernet import mac_number
from vmq.config.records import Memory
from vmq.errors import ConfigError
from vmq.uplink.memory import MemoryUplink

TARGETS = [(mac_number(f"52:54:00:00:00:0{number}"), number % 2) for number in range(1, 5)]


def test_every_filter_has_a_flow() -> None:
    uplink, worker = MemoryUplink("a", Memory(size=64, count=400), 1, TARGETS), Round()

    frames = worker.drain(uplink.lanes[0])

    assert len(frames) == 400
    assert {
        frame[5]: sum(1 for other in frames if other[5] == frame[5]) for frame in frames
    } == dict.fromkeys((1, 2, 3, 4), 100)
    assert uplink.status()["settings"] == [
        {"name": "flows", "requested": 1, "effective": 4, "why": "every receive filter has a flow"}
    ]


def test_the_very_frames_of_a_test_are_presented() -> None:
    frames = [plain(1), plain(2)[:12] + b"\x81\x00\x00\x05" + plain(2)[12:]]
    uplink = MemoryUplink("a", Memory(), 1, frames=frames, laps=2)

    assert Round().drain(uplink.lanes[0]) == frames * 2


def test_what_leaves_is_kept_where_asked() -> None:
    worker = Round()
    for sink in (True, False):
        uplink = MemoryUplink("a", Memory(count=0), 2, sink=sink)
        worker.begin()
        worker.put(plain(1))
        worker.transmit(uplink.lanes[1])
        uplink.send(plain(2))
        assert uplink.taken() == ([plain(2), plain(1)] if sink else [])
        assert worker.state_of(uplink.lanes[1])["frames_to_wire"] == 1
        uplink.close()


def test_lossless_and_link_local_reach_the_lane() -> None:
    for config, lossless, forward in (
        (Memory(count=1), 1, 0),
        (Memory(count=1, lossless=False, link_local="forward"), 0, 1),
    ):
        lane = MemoryUplink("a", config, 1).lanes[0]
        assert (int(lane["lossless"]), int(lane["forward_link_local"])) == (lossless, forward)
        assert lane["backlog"] != 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            Memory(size=65535, flows=1048576),
            r"\[uplink.a\] flows: 1048576 flows of 65535 bytes take more than",
        ),
        (Memory(flows=4096, count=10_000_019), r"\[uplink.a\] count: 10000019 frames are no whole number of"),
    ],
)
def test_what_cannot_be_made_is_refused_in_words(config: Memory, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MemoryUplink("a", config, 1)
