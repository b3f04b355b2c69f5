# SPDX-License-Identifier: Apache-2.0
"""Keys of a configuration file, changed in its text: comments, order and spelling of everything else stay.

    text ──edited(text, changes)──► text          what tomllib reads of the two differs in those keys, and in nothing else

The text is edited by a library that keeps what it does not understand. Whether it did is not believed but read: tomllib
reads both texts, and a difference that nobody asked for is refused. Whether the new text is a good configuration is
judged by whoever reads it (reader.py); nothing here touches a file.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable
from typing import Any

import msgspec

from vmq.errors import ConfigError

Value = bool | int | str | tuple[str, ...]


class Change(msgspec.Struct, frozen=True):
    """A key of a table ("engine", "vm.web") and its new value; None leaves the key out."""

    table: str
    key: str
    value: Value | None


def edited(text: str, changes: Iterable[Change], where: str) -> str:
    """The text with the changes made; ConfigError where that cannot be done without touching anything else."""
    import tomlkit  # slow to import, and needed by whoever changes a file only
    from tomlkit.exceptions import TOMLKitError

    changes = tuple(changes)
    try:
        before = tomllib.loads(text)
        document = tomlkit.parse(text)
        for change in changes:
            _change(document, change, tomlkit.table)
        new = tomlkit.dumps(document)
        after = tomllib.loads(new)
    except (tomllib.TOMLDecodeError, TOMLKitError, TypeError) as problem:
        keys = ", ".join(f"[{one.table}] {one.key}" for one in changes)
        raise ConfigError(where, f"{keys} cannot be changed: {problem}", "Change it by hand") from None
    expected: dict[str, Any] = copy.deepcopy(before)
    for change in changes:
        _change(expected, change, dict)
    if after != expected:
        raise ConfigError(where, "a change of a key would change others", "Change it by hand")
    return new


def value_of(text: str, table: str, key: str) -> Any:
    """What stands there for a key; None if it is left out."""
    found: Any = tomllib.loads(text)
    for name in _path(table):
        found = found.get(name, {})
    return found.get(key)


def _path(table: str) -> tuple[str, ...]:
    """Names may have dots: only the first one divides."""
    noun, dot, name = table.partition(".")
    return (noun, name) if dot else (noun,)


def _change(document: Any, change: Change, new_table: Any) -> None:
    """The same steps on the library's document and on what tomllib has read."""
    place = document
    for name in _path(change.table):
        if name not in place:
            if change.value is None:
                return
            place[name] = new_table()
        place = place[name]
    if change.value is not None:
        place[change.key] = list(change.value) if isinstance(change.value, tuple) else change.value
    elif change.key in place:
        del place[change.key]
