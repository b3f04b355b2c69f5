# SPDX-License-Identifier: Apache-2.0
"""A client of QEMU's machine protocol: JSON objects, one a line (its `docs/interop/qmp-spec.txt`).

One command at a time, each waited for with a limit. Events that arrive meanwhile are kept in `events`, in order.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from tests.vm.lab.errors import LabError, LabTimeoutError


class QmpError(LabError):
    """QEMU refused a command."""


class Qmp:
    """A negotiated connection to one QEMU process."""

    def __init__(self, path: Path, timeout: float = 10) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._received = b""
        self._socket.settimeout(timeout)
        self._socket.connect(str(path))
        self._read(time.monotonic() + timeout)  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, timeout: float = 10, **arguments: Any) -> Any:
        """Run one command and return its result."""
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + timeout
        while True:
            answer = self._read(deadline)
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(f"{command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def wait_event(self, name: str, timeout: float = 10) -> dict[str, Any]:
        """The first event of this name that was not yet taken."""
        deadline = time.monotonic() + timeout
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            self.events.append(self._read(deadline))

    def close(self) -> None:
        self._socket.close()

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._received:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise LabTimeoutError("QEMU did not answer on its QMP socket") from None
            if not data:
                raise LabError("QEMU closed its QMP socket")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer
