# SPDX-License-Identifier: Apache-2.0
"""Shell commands in a guest, through its second serial port.

A request is one line: token, limit in seconds, the script in base64. The answer is one line: the token, the exit
status, the output in base64 (both streams together). `guest/init` is the other end. Base64 keeps the line discipline
and the shell out of it. A line that does not begin with the request's token is left over from a request that ran out
of time, and is dropped.
"""

from __future__ import annotations

import base64
import itertools
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from tests.vm.lab.errors import GuestGoneError, LabTimeoutError

# The guest ends a script at its limit; its answer may still take a while on a loaded machine.
GRACE_SECONDS = 10


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    status: int
    output: str


class Console:
    """The host's end. One command at a time."""

    def __init__(self, path: Path) -> None:
        self._tokens = itertools.count(time.monotonic_ns())
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(5)
        self._socket.connect(str(path))

    def run(self, script: str, timeout: float) -> Result:
        """Run a shell script in the guest, ended there after `timeout` seconds (status 143)."""
        token = b"%d" % next(self._tokens)
        limit = b"%d" % max(1, round(timeout))
        # The empty line in front ends whatever an earlier client left unfinished.
        self._socket.sendall(b"\n%b %b %b\n" % (token, limit, base64.b64encode(script.encode())))
        deadline = time.monotonic() + timeout + GRACE_SECONDS
        while True:
            fields = self._line(deadline, script).split(b" ")
            if fields[0] == token:
                output = base64.b64decode(fields[2]).decode(errors="replace")
                return Result(int(fields[1]), output)

    def close(self) -> None:
        self._socket.close()

    def _line(self, deadline: float, script: str) -> bytes:
        while b"\n" not in self._received:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise LabTimeoutError(f"the guest did not answer to: {script}") from None
            if not data:
                raise GuestGoneError(f"the guest ended during: {script}")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.rstrip(b"\r")
