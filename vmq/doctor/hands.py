# SPDX-License-Identifier: Apache-2.0
"""What carries steps out: one at a time, whole or not at all, and each with what takes it back.

    way_back(step)   what would take it back, read before anything is changed
    do(step)         VmqError if it was not done; then everything is as it was

A program is started with its words, not through a shell, without input and for a bounded time. A configuration is
judged before it takes the place of the old one, in one step: whoever reads the file sees the one or the other. A running
engine is then told to read it, and asked whether it did; if it did not, the old file is put back and it reads that.

Everything hangs below one directory, as in facts.py, so that tests change a recorded host.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vmq import ethtool
from vmq.config import Config
from vmq.config.edit import Change, edited, value_of
from vmq.doctor.steps import Back, Command, Edit, Feature, Restore, Step, Write, words
from vmq.errors import ConfigError, HostError, VmqError

PATIENCE = 10.0  # seconds for a program; ethtool -L and the like take some
READ_AGAIN = "Run vmq doctor again: it is not as it was read"


def run(argv: Sequence[str]) -> None:
    """A program of the host; HostError unless it ends well."""
    where = words(Command(tuple(argv), ()))
    try:
        done = subprocess.run(  # noqa: S603 - words of a rule, and no shell
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except OSError as error:
        raise HostError(where, str(error.strerror), f"Install {argv[0]}") from None
    except subprocess.TimeoutExpired:
        raise HostError(where, f"did not end within {PATIENCE:.0f} s", "Run it by hand") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or "no reason given"
        raise HostError(where, f"exit code {done.returncode}: {said}", "Run it by hand, to see more")


def replace_file(path: Path, text: str) -> None:
    """Another text in one step; owner and rights of the file stay, and a link leads where it led."""
    target = Path(os.path.realpath(path))
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            if target.exists():
                stands = target.stat()
                os.fchmod(descriptor, stands.st_mode & 0o7777)
                if (stands.st_uid, stands.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, stands.st_uid, stands.st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Hands:
    """`read` raises ConfigError for a text that is no configuration, `check` VmqError for one that has new errors, `reload`
    unless the engine has taken it. What was there before is not checked when it is put back: its errors are known.
    """

    def __init__(
        self,
        file: str,
        read: Callable[[str], Config],
        check: Callable[[Config], None],
        reload: Callable[[], None] | None = None,
        root: Path = Path("/"),
    ) -> None:
        self.file, self.read, self.check, self.reload, self.root = Path(file), read, check, reload, root

    def way_back(self, step: Step) -> Back:
        """What takes a step back; HostError if what stands there cannot be read."""
        if isinstance(step, Command):
            return Command(step.back, step.argv)
        if isinstance(step, Write):
            return Write(step.path, self._read(self._place(step.path)).strip())
        if isinstance(step, Feature):
            said = ethtool.describe(step.device)
            if said is None or step.name not in said.features:
                raise HostError(step.device, f"does not say whether {step.name} is on", READ_AGAIN)
            return Feature(step.device, step.name, said.features[step.name])
        before = self._read(self.file)
        return Restore(step.changes, before, edited(before, step.changes, str(self.file)))

    def do(self, step: Step | Back) -> None:
        """Carry a step out."""
        if isinstance(step, Command):
            run(step.argv)
        elif isinstance(step, Write):
            self._write(self._place(step.path), step.value)
        elif isinstance(step, Feature):
            ethtool.switch(step.device, step.name, on=step.on)
        elif isinstance(step, Edit):
            before = self._read(self.file)
            new = edited(before, step.changes, str(self.file))
            self.check(self.read(new))
            self._take(before, new)
        else:
            before = self._read(self.file)
            old = self._restored(step, before)
            self.read(old)
            self._take(before, old)

    def _restored(self, step: Restore, now: str) -> str:
        """The file as it was; if somebody else has changed it since, that stays, and our keys go back."""
        if now in (step.after, step.before):
            return step.before
        for change in step.changes:
            stands = value_of(now, change.table, change.key)
            if _plain(change.value) != stands:
                raise ConfigError(
                    f"{self.file}: [{change.table}] {change.key}", "changed since", "Change it by hand"
                )
        old = [Change(one.table, one.key, value_of(step.before, one.table, one.key)) for one in step.changes]
        return edited(now, old, str(self.file))

    def _take(self, before: str, text: str) -> None:
        """Let another text take effect: in the file, and read by the engine."""
        self._replace(text)
        if self.reload is None:
            return
        try:
            self.reload()
        except BaseException:
            self._replace(before)
            with contextlib.suppress(VmqError):  # the first refusal is what is told
                self.reload()
            raise

    def _replace(self, text: str) -> None:
        try:
            replace_file(self.file, text)
        except OSError as error:
            raise HostError(
                str(self.file), f"cannot be written: {error.strerror}", "Run it as root"
            ) from None

    def _place(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    @staticmethod
    def _read(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise HostError(str(path), f"cannot be read: {error.strerror}", READ_AGAIN) from None

    @staticmethod
    def _write(path: Path, value: str) -> None:
        """To a file of the kernel, which takes a value in one write or refuses it."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(descriptor, f"{value}\n".encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise HostError(
                str(path), f"{value}: {error.strerror}", "Run it as root; some are fixed"
            ) from None


def _plain(value: object) -> object:
    """A value as tomllib reads it."""
    return list(value) if isinstance(value, tuple) else value
