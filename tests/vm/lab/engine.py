# SPDX-License-Identifier: Apache-2.0
"""A real engine for tests: `vmq run` as a process of its own, in a namespace of its own.

    with EngineProcess(folder, config, namespace) as engine:
        engine.show("vms")["web"]["frames_to_guest"]
        engine.kill()          # SIGKILL, as a crash
        engine.start()

It is asked over its API socket, like any client, and ended by its process id.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from tests.vm.lab.errors import LabError, LabTimeoutError
from tests.vm.lab.netns import Namespace

READY_SECONDS = 120.0  # the first start of these sources compiles


class EngineProcess:
    """`vmq run` with this configuration; `{folder}` in its text is the folder of its sockets."""

    def __init__(self, folder: Path, config: str, namespace: Namespace | None = None) -> None:
        self.folder, self.namespace = folder, namespace
        self.file, self.log_file = folder / "vmq.toml", folder / "vmq.log"
        self.api = folder / "api.sock"
        self.configure(config)
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, config: str) -> None:
        """Write the configuration; `reload` makes a running engine read it."""
        text = config.replace("{folder}", str(self.folder))
        if "[engine]" not in text:
            text = f'[engine]\napi = "{self.api}"\n{text}'
        self.file.write_text(text)

    def start(self) -> Self:
        """Start it and wait until it serves."""
        argv = [sys.executable, "-m", "vmq", "run", "--config", str(self.file)]
        if self.namespace is not None:
            argv = self.namespace.command(argv)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            if self.process.poll() is not None:
                raise LabError(f"vmq run ended with {self.process.returncode}:\n{self.log}")
            if time.monotonic() > deadline:
                raise LabTimeoutError(f"vmq run did not serve within {READY_SECONDS:g} s:\n{self.log}")
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        try:
            return bool(self.ask("ping")["pid"])
        except (OSError, LabError):
            return False

    @property
    def pid(self) -> int:
        """The process that serves: `ip netns exec` becomes it."""
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """What it said on stderr so far, over all starts."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def ask(self, method: str, **params: Any) -> Any:
        """One request to its API."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.api))
            sock.sendall(json.dumps({"api": 1, "method": method, "params": params}).encode() + b"\n")
            with sock.makefile("rb") as answer:
                told = json.loads(answer.readline() or b"{}")
        if "result" not in told:
            raise LabError(f"{method}: {told}")
        return told["result"]

    def show(self, what: str) -> dict[str, dict[str, Any]]:
        """The rows of a view by their name (queues: "vm/queue", processors: the cpu, filters: the MAC)."""
        keys = {
            "queues": lambda row: f"{row['vm']}/{row['queue']}",
            "processors": lambda row: str(row["cpu"]),
        }
        keys["filters"] = lambda row: row["mac"]
        return {keys.get(what, lambda row: row["name"])(row): row for row in self.ask("show", what=what)}

    def wait_for(self, vm: str, state: str, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until a VM port is in this state; its row."""
        deadline = time.monotonic() + timeout
        while (row := self.show("vms")[vm])["state"] != state:
            if time.monotonic() > deadline:
                raise LabTimeoutError(f"{vm} is {row['state']}, not {state}: {row['last_error']}\n{self.log}")
            time.sleep(0.02)
        return row

    def reload(self) -> None:
        """SIGHUP."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """SIGKILL: what a crash is to everybody else."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; its exit status. An engine that compiled while it ran has stalled: LabError."""
        assert self.process is not None
        compiled = self.ask("ping")["compiled_after_start"] if self._answers() else []
        self.process.terminate()
        try:
            status = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise LabTimeoutError(f"vmq run did not stop:\n{self.log}") from None
        if compiled:
            raise LabError(f"the engine compiled after its start: {compiled}")
        return status

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
