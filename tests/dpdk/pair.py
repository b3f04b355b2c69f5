# SPDX-License-Identifier: Apache-2.0
"""Two front-ends in one testpmd, each with a capture to send and one to write: guest to guest in both directions.

    a.in ─► pcap 1 ─► virtio 0 ══ engine ══ virtio 2 ─► pcap 3 ─► b.out
    a.out ◄─ pcap 1 ◄─ virtio 0 ══ engine ══ virtio 2 ◄─ pcap 3 ◄─ b.in

One thread serves both in turn, 16 frames at a time, and waits for room where a ring is full. So never more is on the
way than a sender's ring and 16 frames; testpmd sends into half a ring and receives into a whole one: nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.dpdk.frames import difference, read_capture, write_capture
from tests.dpdk.lab import Testpmd, pcap, virtio_user

A, B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
VMS = {"a": A, "b": B}
PORT = {"a": 0, "b": 2}
PATIENT = ("set burst 16", "set fwd io retry", "set burst tx delay 20 retry 100000")


@dataclass
class Pair:
    """The two guests; `frames` is what each sends."""

    pmd: Testpmd
    folder: Path
    frames: dict[str, list[bytes]]

    def start(self) -> None:
        self.pmd.say(*PATIENT, "start")

    def arrived(self, timeout: float = 60.0) -> None:
        """Wait until everything has arrived."""
        for name, sender in (("a", "b"), ("b", "a")):
            self.pmd.wait_received(PORT[name], len(self.frames[sender]), timeout)

    def quit_and_compare(self) -> None:
        """End it; what each guest got is what the other sent, byte for byte and in order."""
        self.pmd.quit()
        for name, sender in (("a", "b"), ("b", "a")):
            got = read_capture(self.folder / f"{name}.out")
            assert not difference(got, self.frames[sender]), f"at {name}"


def pair(
    folder: Path,
    frames: Mapping[str, Sequence[bytes]],
    ring: str = "mergeable",
    size: int = 1024,
    *,
    server: bool = False,
    sockets: Path | None = None,
    **options: Any,
) -> Pair:
    """The pair, not yet started."""
    devices = []
    for number, (name, mac) in enumerate(VMS.items()):
        source = write_capture(folder / f"{name}.in", frames[name])
        path = (sockets or folder) / f"{name}.sock"
        devices.append(virtio_user(number, path, mac, ring, size, server=server))
        devices.append(pcap(number, source, folder / f"{name}.out"))
    own = {name: list(sent) for name, sent in frames.items()}
    return Pair(Testpmd(folder, devices, descriptors=size, **options), folder, own)
