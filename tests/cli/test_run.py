# SPDX-License-Identifier: Apache-2.0
"""vmq run and vmq demo hand over to what they start, and give its exit code back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import vmq as package


def started(monkeypatch, name: str, code: int) -> list[tuple[Any, ...]]:
    """Put a stand-in where the verb imports from, and collect what it is called with."""
    calls: list[tuple[Any, ...]] = []

    def run(*given: Any) -> int:
        calls.append(given)
        return code

    monkeypatch.setattr(package, name, SimpleNamespace(run=run), raising=False)
    return calls


def test_run_starts_the_engine_with_its_file(vmq, monkeypatch) -> None:
    """The engine's exit code is the command's."""
    calls = started(monkeypatch, "daemon", 3)

    assert vmq("run", "--config", "x.toml") == (3, "", "")
    assert vmq("run")[0] == 3
    assert calls == [(Path("x.toml"),), (Path("/etc/vmq/vmq.toml"),)]


def test_demo_is_told_how_long_and_how_to_print(vmq, monkeypatch) -> None:
    """Five seconds and a live table, if nothing is said."""
    calls = started(monkeypatch, "demo", 0)

    assert vmq("demo") == (0, "", "")
    assert vmq("demo", "--seconds", "0.5", "--json", "--plain")[0] == 0
    assert calls == [(5.0, False, False), (0.5, True, True)]


def test_demo_direct_is_another_program(vmq, monkeypatch) -> None:
    """It is told the same, and the plain demo is not started."""
    plain, calls = started(monkeypatch, "demo", 0), started(monkeypatch, "demo_direct", 1)

    assert vmq("demo", "--direct") == (1, "", "")
    assert vmq("demo", "--direct", "--seconds", "2", "-j")[0] == 1
    assert (plain, calls) == ([], [(5.0, False, False), (2.0, True, False)])


def test_an_error_at_start_is_one_line(vmq, monkeypatch) -> None:
    """Missing device or permission: file, key, remedy, exit 2."""
    from vmq.errors import HostError

    def run(_: Path) -> int:
        raise HostError("vmq.toml: [uplink.lan] device", "there is no eth7", "Name a device of ip link")

    monkeypatch.setattr(package, "daemon", SimpleNamespace(run=run), raising=False)

    assert vmq("run") == (
        2,
        "",
        "vmq.toml: [uplink.lan] device: there is no eth7. Remedy: Name a device of ip link\n",
    )
