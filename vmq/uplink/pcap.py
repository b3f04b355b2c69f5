# SPDX-License-Identifier: Apache-2.0
"""A capture file as an uplink: what it holds comes from the wire, what leaves is written to another.

The whole capture is laid out in memory when the uplink is opened, so that reading costs no worker anything. What is
written stands in the file after the next tick; a file that was there before is emptied when the uplink begins to serve.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from vmq.config.records import Pcap
from vmq.errors import ConfigError
from vmq.uplink.base import setting
from vmq.uplink.pcapfile import CaptureWriter, read_capture
from vmq.uplink.recording import record
from vmq.uplink.replay import ReplayUplink


class PcapUplink(ReplayUplink):
    """Lanes that replay a capture and write one."""

    kind = "pcap"

    def __init__(self, name: str, config: Pcap, worker_count: int) -> None:
        super().__init__(name, config, worker_count)
        self.read, self.write = config.read, config.write
        self._writer: CaptureWriter | None = None
        self._problem = ""
        self._check_files()
        recording = record(self._packets())
        if self.read is not None and not len(recording.rows):
            why = (
                ", ".join(f"{count} {words}" for words, count in recording.refused.items())
                or "no packet in it"
            )
            raise ConfigError(
                self.place("read"), f"{self.read} has no frame to replay: {why}", "Name another capture"
            )
        self.play(recording, config.repeat)
        if self.write is not None:
            self.collect()
            self._writer = CaptureWriter(self.write, self.place("write"))  # last: nothing is refused after it

    def _check_files(self) -> None:
        if self.read is None or self.write is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samefile(self.read, self.write):
                raise ConfigError(self.place("write"), f"{self.write} is what is read", "Write another file")

    def _packets(self) -> list[tuple[bytes, int]]:
        if self.read is None:
            return []
        return [(packet.data, packet.original) for packet in read_capture(self.read, self.place("read"))]

    def send(self, frame: bytes) -> None:
        if self._writer is not None:
            self._writing(iter([frame]))

    def begin(self, again: bool = False) -> None:
        """Empty the file, or go on at its end if it is `again` ours."""
        self._writing(iter(()), again)

    def tick(self) -> None:
        """Write what has left. A full disk ends the writing, not the engine."""
        self._writing(self.left())

    def _writing(self, frames: Iterator[bytes], again: bool = False) -> None:
        if self._writer is None:
            return
        try:
            self._writer.begin(again)
            for frame in frames:
                self._writer.write(frame)
            self._writer.flush()
        except OSError as error:
            self._problem = f"no longer written: {error.strerror}"
            self._stop()

    def _stop(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()

    def status(self) -> dict[str, Any]:
        effective = self.write if self._writer is not None else None
        return super().status() | {
            "device": self.read,
            "settings": [setting("write", self.write, effective, self._problem)],
        }

    def discard(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.discard()
        super().discard()

    def close(self) -> None:
        self.tick()
        self._stop()
        super().close()
