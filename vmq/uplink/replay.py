# SPDX-License-Identifier: Apache-2.0
"""What replaying uplinks share: a recording that lane 0 plays, and sinks for what leaves.

Only lane 0 receives: one recording has one order. Every lane sends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vmq.abi.ethernet import ETH_HLEN
from vmq.config.records import Memory, Pcap
from vmq.dataplane import state
from vmq.jit import address_of
from vmq.uplink.base import MTU_DEFAULT, Uplink
from vmq.uplink.recording import Recording
from vmq.uplink.sink import Sink, sink_bytes


class ReplayUplink(Uplink):
    """Lanes that replay a recording."""

    def __init__(self, name: str, config: Memory | Pcap, worker_count: int) -> None:
        super().__init__(name, config, worker_count)
        self.config: Memory | Pcap = config
        self.recording: Recording | None = None
        self.laps = 1
        self.sinks: list[Sink] = []
        for row in self.lanes:
            row["kind"] = state.LANE_REPLAY

    def play(self, recording: Recording, laps: int) -> None:
        """Let lane 0 replay a recording; without an MTU in the configuration, the longest frame decides."""
        self.recording, self.laps = recording, laps
        self.set_mtu(self.config.mtu or max(MTU_DEFAULT, recording.longest - ETH_HLEN))
        lane = self.lanes[0]
        lane["lossless"] = self.config.lossless
        lane["receives"] = len(recording.rows) > 0
        lane["source"], lane["source_count"] = address_of(recording.rows), len(recording.rows)
        lane["laps"] = laps
        rate = self.config.rate if isinstance(self.config, Pcap) else None
        lane["gap"] = round(10**9 * state.GAP_PARTS / rate) if rate else 0
        lane["backlog"] = self.memory(state.DELIVERIES * state.waiting.itemsize)

    def collect(self) -> None:
        """Give every lane a sink."""
        for row in self.lanes:
            row["sink"] = self.memory(sink_bytes())
            self.sinks.append(Sink(int(row["sink"])))

    def left(self) -> Iterator[bytes]:
        """Frames that left since the last call, lane by lane."""
        for sink in self.sinks:
            yield from sink.frames()

    def status(self) -> dict[str, Any]:
        recording = self.recording
        return {
            "kind": self.kind,
            "device": None,
            "state": "up",
            "mtu": self.mtu,
            "frames": len(recording.rows) if recording is not None else 0,
            "laps": self.laps,
            "refused": dict(recording.refused) if recording is not None else {},
            "settings": [],
        }
