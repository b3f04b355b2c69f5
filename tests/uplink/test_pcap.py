# SPDX-License-Identifier: Apache-2.0
"""A capture in, a capture out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.dataplane.harness_wire import Round, plain
from vmq.config.records import Pcap
from vmq.errors import ConfigError
from vmq.uplink.pcap import PcapUplink
from vmq.uplink.pcapfile import CaptureWriter, read_capture

FRAMES = [plain(1), plain(2)[:12] + b"\x81\x00\x00\x05" + plain(2)[12:], plain(3, 1514)]


@pytest.fixture
def capture(tmp_path: Path) -> str:
    path = str(tmp_path / "in.pcap")
    with CaptureWriter(path) as file:
        for frame in [*FRAMES, b"runt"]:
            file.write(frame)
    return path


def written(path: str) -> list[bytes]:
    return [packet.data for packet in read_capture(path)]


@pytest.mark.parametrize("repeat", [1, 2])
def test_a_capture_is_replayed(capture: str, repeat: int) -> None:
    uplink = PcapUplink("a", Pcap(read=capture, repeat=repeat), 2)

    assert Round().drain(uplink.lanes[0]) == FRAMES * repeat
    told = uplink.status()
    assert (told["device"], told["frames"], told["laps"]) == (capture, 3, repeat)
    assert told["refused"] == {"shorter than an Ethernet header": 1}


def test_what_leaves_stands_in_the_file_after_a_tick(tmp_path: Path) -> None:
    path = str(tmp_path / "out.pcap")
    uplink, worker = PcapUplink("a", Pcap(write=path), 2), Round()
    assert not any(row["receives"] for row in uplink.lanes)
    for lane, number in zip(uplink.lanes, (1, 2), strict=True):
        worker.begin()
        worker.put(plain(number), tci=number)
        worker.transmit(lane)
    uplink.tick()

    tagged = [plain(n)[:12] + b"\x81\x00\x00" + bytes([n]) + plain(n)[12:] for n in (1, 2)]
    assert written(path) == tagged
    worker.begin()
    worker.put(plain(3))
    worker.transmit(uplink.lanes[0])
    uplink.send(plain(4))
    uplink.close()
    uplink.close()
    assert written(path) == [*tagged, plain(4), plain(3)]


def test_a_file_is_emptied_when_the_uplink_begins_to_serve(capture: str) -> None:
    """Not when it is opened, since it may be refused yet; and it goes on when it served before."""
    uplink = PcapUplink("a", Pcap(write=capture), 1)
    assert written(capture) == [*FRAMES, b"runt"]
    uplink.begin()
    assert written(capture) == []
    uplink.send(plain(4))
    uplink.close()

    uplink = PcapUplink("a", Pcap(write=capture), 1)
    uplink.begin(again=True)
    uplink.send(plain(5))
    uplink.close()
    assert written(capture) == [plain(4), plain(5)]


def test_what_is_not_to_serve_after_all_leaves_its_file_as_it_was(
    capture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.listdir("/proc/self/fd")
    for path in (capture, str(tmp_path / "new")):
        uplink = PcapUplink("a", Pcap(write=path), 1)
        uplink.discard()
        uplink.close()
    assert written(capture) == [*FRAMES, b"runt"]
    assert os.listdir(tmp_path) == ["in.pcap"]

    def full(_: PcapUplink) -> None:
        raise MemoryError

    monkeypatch.setattr(PcapUplink, "collect", full)
    with pytest.raises(MemoryError):
        PcapUplink("a", Pcap(write=capture), 1)
    assert written(capture) == [*FRAMES, b"runt"]
    assert os.listdir("/proc/self/fd") == before


def test_a_full_disk_ends_the_writing_only() -> None:
    uplink, worker = PcapUplink("a", Pcap(write="/dev/full"), 1), Round()
    worker.put(plain(1))
    worker.transmit(uplink.lanes[0])

    uplink.tick()

    assert uplink.status()["settings"] == [
        {
            "name": "write",
            "requested": "/dev/full",
            "effective": None,
            "why": "no longer written: No space left on device",
        }
    ]
    uplink.tick()
    uplink.close()


def test_what_cannot_be_replayed_is_refused_in_one_line(capture: str, tmp_path: Path) -> None:
    runts = str(tmp_path / "runts.pcap")
    with CaptureWriter(runts) as file:
        file.write(b"runt")
    before = os.listdir("/proc/self/fd")
    for config, words in (
        (Pcap(read="/nosuch"), r"^\[uplink.a\] read: cannot read /nosuch: No such file or directory. Remedy"),
        (
            Pcap(read=runts),
            r"has no frame to replay: 1 shorter than an Ethernet header. Remedy: Name another",
        ),
        (Pcap(read=capture, write=capture), r"^\[uplink.a\] write: .*in.pcap is what is read. Remedy"),
        (Pcap(read=capture, write="/nosuch/x"), r"^\[uplink.a\] write: cannot write /nosuch/x"),
    ):
        with pytest.raises(ConfigError, match=words):
            PcapUplink("a", config, 1)
    assert os.listdir("/proc/self/fd") == before
    assert written(capture) == [*FRAMES, b"runt"]
