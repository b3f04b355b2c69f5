# SPDX-License-Identifier: Apache-2.0
"""What a fix is made of, for the machine: steps, each with what takes it back.

    Command   a program of the host and its words; no shell reads them          the program's words that take it back
    Write     a value for a file of the kernel, below /proc or /sys             the value that stood there
    Feature   an offload of a network device                                    the other state
    Edit      keys of the configuration, all at once                            Restore: the file as it was

A rule that knows what to do gives the steps beside the words of its fix, and a step prints as the words would: what is
shown is what is done. A fix without steps is for hands: a guest or QEMU has to be started again, or somebody has to choose.

Steps are plain data. hands.py carries them out; history.py keeps them.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

import msgspec

from vmq.config.edit import Change

HOST = "until the host is started again: what configures it then has to say it, too"


class Command(msgspec.Struct, frozen=True, tag_field="kind", tag="command"):
    argv: tuple[str, ...]
    back: tuple[str, ...]


class Write(msgspec.Struct, frozen=True, tag_field="kind", tag="write"):
    path: str
    value: str


class Feature(msgspec.Struct, frozen=True, tag_field="kind", tag="feature"):
    device: str
    name: str  # the kernel's
    on: bool


class Edit(msgspec.Struct, frozen=True, tag_field="kind", tag="edit"):
    changes: tuple[Change, ...]

    @property
    def restarts(self) -> bool:
        """Whether a running engine would have to be started again."""
        return any(change.table == "engine" for change in self.changes)


class Restore(msgspec.Struct, frozen=True, tag_field="kind", tag="restore"):
    """A configuration as it was. If the file changed meanwhile, only the keys are set back, if they still stand."""

    changes: tuple[Change, ...]  # that were made
    before: str
    after: str


Step = Command | Write | Feature | Edit
Back = Command | Write | Feature | Restore


def words(step: Step | Back, file: str = "the configuration") -> str:
    """A step, as somebody would do it by hand."""
    if isinstance(step, Command):
        return shlex.join(step.argv)
    if isinstance(step, Write):
        return f"echo {shlex.quote(step.value)} > {step.path}"
    if isinstance(step, Feature):
        return f"ethtool -K {step.device} {step.name} {'on' if step.on else 'off'}"
    if isinstance(step, Restore):
        return f"{file} as it was before"
    return f"{'; '.join(_key(change) for change in step.changes)}; in {file}"


def _key(change: Change) -> str:
    if change.value is None:
        return f"leave {change.key} out of [{change.table}]"
    return f"{change.key} = {json.dumps(change.value, ensure_ascii=False)} in [{change.table}]"


def edit(table: str, **keys: Any) -> Edit:
    """Keys of one table."""
    return Edit(tuple(Change(table, key, value) for key, value in keys.items()))


def writes(paths: tuple[str, ...], value: str) -> tuple[Write, ...]:
    """One value for several files."""
    return tuple(Write(path, value) for path in paths)
