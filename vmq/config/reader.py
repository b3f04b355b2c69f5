# SPDX-License-Identifier: Apache-2.0
"""From a file's text to a Config: keys one at a time, so that one wrong key hides no other.

A key is looked up, read by its form (forms.py), made a path if it is one, and converted to the type of its
record. Whatever goes wrong is kept as a ConfigError and the reading goes on; a table with an error yields no
record. At the end `judge` sees all records together. One error or more, and there is no Config.

A path that is not absolute counts from the directory of the file, not from wherever the process was started.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from vmq.affinity import processors
from vmq.config.forms import FORMS, shown
from vmq.config.judge import Complaints, judge
from vmq.config.records import KINDS, AnyUplink, Config, Doctor, Engine, Record, Vm
from vmq.errors import HostError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")  # becomes part of paths and of QEMU's ids
PATHS = frozenset({"api", "socket", "qmp", "read", "write", "placement_figures"})
TABLES = ("engine", "uplink", "vm", "doctor")
LATER = {
    "vm": frozenset({"trunk", "lossless"}),
    "uplink": frozenset(),
    "engine": frozenset(),
}

R = TypeVar("R", bound=Record)


def load(path: str | Path, available: Collection[int] | None = None) -> Config:
    """The configuration of a file. `available`: the processors it may name, else those of this process."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise HostError(
            str(path), f"cannot be read: {error.strerror}", "Give the path of a readable file"
        ) from None
    except UnicodeDecodeError:
        raise HostError(str(path), "is not UTF-8", "Save it as UTF-8, as TOML demands") from None
    return parse(text, str(path), processors() if available is None else available)


def parse(text: str, where: str, available: Collection[int] | None = None) -> Config:
    """The configuration of a text. `where` names it in errors; relative paths count from its directory."""
    complaints = Complaints(where)
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        complaints.add("", f"not TOML: {error}", "Correct that place: texts need quotes, a table comes once")
        raise complaints.error() from None
    reader = _Reader(complaints, Path(where).absolute().parent)
    config = reader.config(raw)
    judge(config, complaints, named=reader.named, available=available)
    if complaints:
        raise complaints.error()
    return config


class _Reader:
    """The reading of one file."""

    def __init__(self, complaints: Complaints, base: Path) -> None:
        self.complaints = complaints
        self.base = base
        self.named: tuple[str, ...] = ()  # the uplinks the file has a table for, right or wrong

    def config(self, raw: dict[str, Any]) -> Config:
        for key in raw:
            if key not in TABLES:
                self.unknown("", key, TABLES)
        engine = self.record("[engine]", Engine, raw.get("engine", {})) or Engine()
        tables = self.tables(raw, "uplink")
        self.named = tuple(name for name, _ in tables)
        uplinks = {name: self.uplink(name, table) for name, table in tables}
        vms = {name: self.vm(name, table, engine) for name, table in self.tables(raw, "vm")}
        return Config(
            engine=engine,
            uplinks={name: uplink for name, uplink in uplinks.items() if uplink is not None},
            vms={name: vm for name, vm in vms.items() if vm is not None},
            doctor=self.record("[doctor]", Doctor, raw.get("doctor", {})) or Doctor(),
        )

    def tables(self, raw: dict[str, Any], noun: str) -> list[tuple[str, dict[str, Any]]]:
        """The tables [noun.NAME] of the file, in its order, with those left out that are none."""
        group = raw.get(noun, {})
        if not isinstance(group, dict):
            self.complaints.add(noun, "not a table", f"Write [{noun}.NAME] and its keys below")
            return []
        found = []
        for name, table in group.items():
            if not isinstance(table, dict):
                self.complaints.add(f"[{noun}] {name}", "outside of a table", f"Write it below [{noun}.NAME]")
            elif not NAME.fullmatch(name):
                self.complaints.add(
                    f"[{noun}.{shown(name)}]",
                    "not usable as a name",
                    "Use at most 63 letters, digits, and after the first also _ . and -",
                )
            else:
                found.append((name, table))
        return found

    def uplink(self, name: str, table: dict[str, Any]) -> AnyUplink | None:
        title, kind = f"[uplink.{name}]", table.get("kind")
        if isinstance(kind, str) and kind in KINDS:
            rest = {key: value for key, value in table.items() if key != "kind"}
            return self.record(title, KINDS[kind], rest)
        wrong = "missing" if kind is None else f"{shown(kind)} is no kind of uplink"
        remedy = f"Set kind to one of {', '.join(KINDS)}"
        self.complaints.add(f"{title} kind", wrong, remedy)
        return None

    def vm(self, name: str, table: dict[str, Any], engine: Engine) -> Vm | None:
        vm = self.record(f"[vm.{name}]", Vm, table)
        if vm is None or vm.socket:
            return vm
        return msgspec.structs.replace(vm, socket=str(Path(engine.api).with_name(f"{name}.sock")))

    def record(self, title: str, kind: type[R], table: object) -> R | None:
        """One table as its record; None if anything in it is wrong."""
        if not isinstance(table, dict):
            self.complaints.add(title.strip("[]"), "not a table", f"Write {title} and its keys below")
            return None
        before = len(self.complaints)
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        values: dict[str, Any] = {}
        meant = set(table)
        for key, value in table.items():
            if key in fields:
                values[key] = self.value(f"{title} {key}", fields[key], value)
            else:
                meant.add(self.unknown(title, key, tuple(fields)))
        for key, field in fields.items():
            if field.required and key not in meant:
                self.complaints.add(f"{title} {key}", "missing", _remedy(field))
        return kind(**values) if len(self.complaints) == before else None

    def value(self, place: str, field: msgspec.structs.FieldInfo, value: object) -> Any:
        """One value as its record holds it; whatever, once a complaint was made."""
        try:
            read = FORMS[field.name][0](value) if field.name in FORMS else value
            converted = msgspec.convert(read, field.type)
            if isinstance(converted, str):
                converted = self.text(field.name, converted)
        except msgspec.ValidationError:
            self.complaints.add(place, f"{shown(value)} is not valid", _remedy(field))
        except ValueError as error:
            self.complaints.add(place, str(error), _remedy(field))
        else:
            return converted
        return None

    def text(self, key: str, text: str) -> str:
        if not text or "\0" in text:
            raise ValueError(f"{shown(text)} is not valid")
        return os.path.normpath(self.base / text) if key in PATHS else text

    def unknown(self, title: str, key: str, known: tuple[str, ...]) -> str:
        """Complain of a key that is none, and return the one that was probably meant, or ""."""
        noun = title.strip("[]").partition(".")[0]
        place = f"{title} {key}".strip()
        if key in LATER.get(noun, ()):
            self.complaints.add(place, "not available in this version", "Remove the key")
            return ""
        from difflib import get_close_matches  # slow to import, and needed by mistakes only

        close = get_close_matches(key, known, n=1)
        remedy = f"Did you mean {close[0]}?" if close else f"Use one of {', '.join(known)}"
        self.complaints.add(place, "unknown key" if title else "unknown table", remedy)
        return close[0] if close else ""


def _remedy(field: msgspec.structs.FieldInfo) -> str:
    """The words of the key's declaration, as an instruction."""
    kinds = (field.type, *get_args(field.type))  # of a key that may be left out: Annotated[…] | None
    says = next(kind.__metadata__[0] for kind in kinds if hasattr(kind, "__metadata__"))
    return f"Set {field.name} to {says.description}"
