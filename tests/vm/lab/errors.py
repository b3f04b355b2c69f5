# SPDX-License-Identifier: Apache-2.0
"""What the laboratory raises: its own failure, never a verdict about what is tested.

A wait that runs out is a `LabTimeoutError`, a guest that ended a `GuestGoneError`; both quote the guest's last lines. A
command that failed in a guest or a namespace is a `CommandError` with its output.
"""

from __future__ import annotations


class LabError(Exception):
    """The laboratory cannot do what was asked."""


class LabTimeoutError(LabError):
    """A condition did not come true within its limit."""


class GuestGoneError(LabError):
    """The guest's process ended while something was expected of it."""


class CommandError(LabError):
    """A command ended with a status other than zero."""

    def __init__(self, where: str, command: str, status: int, output: str) -> None:
        super().__init__(f"{where}: status {status}: {command}\n{output}")
        self.status = status
        self.output = output
