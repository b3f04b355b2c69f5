# SPDX-License-Identifier: Apache-2.0
"""Lanes that replay: what lane 0 presents, and how often."""

from __future__ import annotations

import pytest

from tests.dataplane.harness_wire import Round, plain
from vmq.config.records import Memory
from vmq.uplink.recording import record
from vmq.uplink.replay import ReplayUplink

FRAMES = [plain(number, 60 + number) for number in range(5)]


class Uplink(ReplayUplink):
    kind = "test"


@pytest.mark.parametrize("laps", [1, 3])
def test_a_recording_is_replayed_so_often_in_its_order(laps: int) -> None:
    uplink, worker = Uplink("a", Memory(), 2), Round()
    uplink.play(record((frame, len(frame)) for frame in FRAMES), laps)

    assert worker.drain(uplink.lanes[0]) == FRAMES * laps
    assert worker.receive(uplink.lanes[0]) == 0
    assert [int(row["receives"]) for row in uplink.lanes] == [1, 0]
    assert worker.state_of(uplink.lanes[0])["frames_from_wire"] == 5 * laps


def test_a_recording_without_end_does_not_end() -> None:
    uplink, worker = Uplink("a", Memory(), 1), Round(frame_limit=7)
    uplink.play(record((frame, len(frame)) for frame in FRAMES), 0)

    assert worker.drain(uplink.lanes[0], bursts=50) == FRAMES * 70


def test_the_longest_frame_decides_about_the_mtu_if_nobody_else_does() -> None:
    recording = record([(bytes(9014), 9014)])
    for config, mtu in ((Memory(), 9000), (Memory(mtu=1500), 1500)):
        uplink = Uplink("a", config, 1)
        uplink.play(recording, 1)
        assert (uplink.mtu, int(uplink.lanes[0]["frame_max"])) == (mtu, mtu + 14)


def test_an_empty_recording_is_not_read() -> None:
    uplink = Uplink("a", Memory(), 1)
    uplink.play(record([]), 1)

    assert not uplink.lanes[0]["receives"]
    assert uplink.status()["frames"] == 0
    assert uplink.descriptors() == [None]
