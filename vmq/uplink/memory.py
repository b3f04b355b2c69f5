# SPDX-License-Identifier: Apache-2.0
"""Frames made in memory as an uplink, for tests and benchmarks: a generator, or the very frames a test gives.

The generator addresses the `targets`, (MAC, VLAN id) of every receive filter, in turn. What leaves is counted; with
`sink` it is kept for `taken`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vmq.config.records import Memory
from vmq.errors import ConfigError
from vmq.uplink.base import setting
from vmq.uplink.recording import BYTES_MAX, Recording, generate, record, rows_for
from vmq.uplink.replay import ReplayUplink


class MemoryUplink(ReplayUplink):
    """Lanes that replay frames made here."""

    kind = "memory"

    def __init__(
        self,
        name: str,
        config: Memory,
        worker_count: int,
        targets: Sequence[tuple[int, int]] = (),
        *,
        frames: Sequence[bytes] | None = None,
        laps: int = 1,
        sink: bool = False,
    ) -> None:
        super().__init__(name, config, worker_count)
        self.flows = max(config.flows, len(targets))
        self._asked = config.flows
        self._taken: list[bytes] = []
        if frames is not None:
            self.play(record((frame, len(frame)) for frame in frames), laps)
        else:
            self.play(*self._generate(config, targets))
        if sink:
            self.collect()

    def _generate(self, config: Memory, targets: Sequence[tuple[int, int]]) -> tuple[Recording, int]:
        if rows_for(config.size, self.flows, None) is None:
            raise ConfigError(
                self.place("flows"),
                f"{self.flows} flows of {config.size} bytes take more than {BYTES_MAX >> 20} MiB",
                "Set fewer flows, or a smaller size",
            )
        found = rows_for(config.size, self.flows, config.count)
        if found is None:
            raise ConfigError(
                self.place("count"),
                f"{config.count} frames are no whole number of rounds of {self.flows} or more",
                f"Set a multiple of {self.flows}",
            )
        return generate(config.size, self.flows, found[0], targets), found[1]

    def send(self, frame: bytes) -> None:
        if self.sinks:
            self._taken.append(frame)

    def tick(self) -> None:
        """Keep what has left."""
        self._taken.extend(self.left())

    def taken(self) -> list[bytes]:
        """Frames that left since the last call, tags inside."""
        self.tick()
        frames, self._taken = self._taken, []
        return frames

    def status(self) -> dict[str, Any]:
        why = "every receive filter has a flow" if self.flows != self._asked else ""
        return super().status() | {"settings": [setting("flows", self._asked, self.flows, why)]}
