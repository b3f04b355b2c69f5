# SPDX-License-Identifier: Apache-2.0
"""Fixes that were applied, in a file, so that the last one can be taken back.

    doctor.json        where vmq/kept.py says

What takes a step back is written before the step is done: whatever ends the doctor in the middle, power included, the
file knows the way back. Taking back a step that was not done changes nothing. One doctor at a time writes it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from vmq.doctor.hands import replace_file
from vmq.doctor.steps import Back, Step
from vmq.errors import HostError
from vmq.kept import kept

LENGTH = 100  # fixes that are kept


class Applied(msgspec.Struct):
    """One fix. `back` takes its steps back, in this order."""

    at: float  # seconds since 1970
    code: str
    subject: str
    title: str
    file: str  # the configuration
    steps: list[Step] = msgspec.field(default_factory=list)
    back: list[Back] = msgspec.field(default_factory=list)


def default_path() -> Path:
    return kept("doctor.json")


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HostError(str(path), "another vmq doctor changes something", "Wait until it ends") from None


class History:
    """The fixes of a file, the last one last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.applied = self._load()

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[History]:
        """For one doctor alone; HostError if another has it, or the directory cannot be written."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(path.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            where = error.filename or str(path)
            raise HostError(where, f"cannot be written: {error.strerror}", "Run it as root") from None
        try:
            _lock(lock, path)
            yield cls(path)
        finally:
            os.close(lock)

    def push(self, fix: Applied) -> None:
        self.applied.append(fix)
        del self.applied[:-LENGTH]
        self.save()

    def drop(self, fix: Applied) -> None:
        self.applied.remove(fix)
        self.save()

    def save(self) -> None:
        """As it stands in memory."""
        try:
            replace_file(self.path, msgspec.json.format(msgspec.json.encode(self.applied)).decode())
        except OSError as error:
            raise HostError(str(self.path), f"cannot be written: {error.strerror}", "Make room") from None

    def _load(self) -> list[Applied]:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=list[Applied])
        except FileNotFoundError:
            return []
        except OSError as error:
            raise HostError(
                str(self.path), f"cannot be read: {error.strerror}", "Run it as the same user"
            ) from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise HostError(
                str(self.path), f"is no list of fixes: {problem}", "Move it away: those fixes are by hand now"
            ) from None
