# SPDX-License-Identifier: Apache-2.0
"""`vmq run` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.engine.running import FIRST_CPU, MACS, until
from vmq.cli.client import ask
from vmq.guest.guest import Guest

START_SECONDS = 240  # cold, compiled with bounds checks, on a busy machine


class Process:
    """An engine of the configuration that `write` wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "vmq.toml"
        self.api = str(folder / "api.sock")
        self._log = folder / "log"
        self.child: subprocess.Popen[bytes] | None = None

    def write(self, *names: str, more: str = "", **keys: str) -> Self:
        """VMs of these names, numbered; `more` is TOML, `keys` are keys of [engine]."""
        lines = ["[engine]", f'api = "{self.api}"', f'processors = "{FIRST_CPU}"']
        lines += [f"{key} = {value}" for key, value in keys.items()]
        for number, name in enumerate(names):
            lines += [f"[vm.{name}]", f'mac = "{MACS[number]}"', "queue_pairs = 1"]
        self.path.write_text("\n".join([*lines, more, ""]))
        return self

    def start(self) -> Self:
        """Without waiting."""
        with self._log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "vmq", "run", "--config", str(self.path)],
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )
        return self

    def ready(self) -> Self:
        """Wait until it serves."""
        until(lambda: "ready: " in self.log or not self.alive, "ready", START_SECONDS)
        assert self.alive, self.log
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child is not None and self.alive:
            self.child.kill()
            self.child.wait()

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def kill(self, number: int) -> None:
        assert self.child
        os.kill(self.child.pid, number)

    def reload(self) -> str:
        """SIGHUP, and the line that answers."""
        before = len(self.log)
        self.kill(signal.SIGHUP)
        until(lambda: "\n" in self.log[before:], "an answer to SIGHUP")
        return self.log[before:]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Stop it; the exit code."""
        self.kill(number)
        return self.wait()

    def wait(self) -> int:
        assert self.child
        return self.child.wait(START_SECONDS)

    def ask(self, method: str, **params: Any) -> Any:
        return ask(self.api, method, **params)

    def show(self, what: str, name: str = "") -> Any:
        rows = self.ask("show", what=what)
        return next(row for row in rows if row.get("name") == name) if name else rows

    def guest(self, name: str, mac: str, **options: Any) -> Guest:
        return Guest(self.folder / f"{name}.sock", mac, **{"size": 64, "room": 1 << 16} | options)

    @property
    def sockets(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.sock"))
