# SPDX-License-Identifier: Apache-2.0
"""A whole engine, its event loop in a thread of its own, and what it holds: so that a test can be the guest."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pytest

from vmq.config import AnyUplink, Config, Memory
from vmq.config import Vm as VmConfig
from vmq.control.views import show
from vmq.daemon import compile_kernels
from vmq.engine.engine import Engine
from vmq.guest.guest import Guest

T = TypeVar("T")
PATIENCE = 20.0
MACS = [f"52:54:00:00:00:{number:02x}" for number in range(1, 100)]
TWO_CPUS = sorted(os.sched_getaffinity(0))[:2]
FIRST_CPU = TWO_CPUS[0]
two_processors = pytest.mark.skipif(len(TWO_CPUS) < 2, reason="needs two processors")


def until(condition: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> Any:
    """Wait until something holds."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what or condition}"
        time.sleep(0.002)
    return found


def open_files() -> dict[str, str]:
    """What this process has open: descriptor → what it is."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[entry] = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue  # the listing's own
    return found


def guest_maps() -> int:
    """How many mappings of guest memory this process has."""
    return Path("/proc/self/maps").read_text().count("memfd:guest")


class Lines(logging.Handler):
    """What the engine logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Running:
    """An engine that runs. Everything of it happens in its loop: `do` goes there and comes back."""

    def __init__(
        self,
        folder: Path,
        cpus: tuple[int, ...] = (FIRST_CPU,),
        make: Callable[[], Engine] | None = None,
    ) -> None:
        compile_kernels()
        self.folder = folder
        self.loop = asyncio.new_event_loop()
        self.problems: list[BaseException] = []
        self.loop.set_exception_handler(self._unhandled)
        self._thread = threading.Thread(target=self.loop.run_forever, name="control")
        self._thread.start()
        self.log = Lines()
        logging.getLogger("vmq").addHandler(self.log)
        self.engine: Engine = self.do(make or (lambda: Engine("test.toml", cpus, "a test")))
        self.engine.failed = self.problems.append
        self.do(self.engine.start)

    def _unhandled(self, _loop: object, context: dict[str, Any]) -> None:
        self.problems.append(context.get("exception") or RuntimeError(context["message"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        assert self.problems == []

    def close(self) -> None:
        """Stop it; its sockets are gone afterwards."""
        try:
            self.do(self.engine.close)
        finally:
            logging.getLogger("vmq").removeHandler(self.log)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(PATIENCE)
            self.loop.close()

    def do(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the loop."""
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(function(*arguments))
            except BaseException as problem:
                done.set_exception(problem)

        self.loop.call_soon_threadsafe(call)
        return done.result(PATIENCE)

    # --- configurations ---------------------------------------------------------------------------------------

    def path(self, name: str) -> str:
        """The socket of a VM."""
        return str(self.folder / f"{name}.sock")

    def vm(self, name: str, number: int = 1, **keys: Any) -> VmConfig:
        """A VM port of one queue pair, with an address of its number."""
        fields: dict[str, Any] = {
            "socket": self.path(name),
            "mac": (MACS[number - 1],),
            "queue_pairs": 1,
        } | keys
        return VmConfig(**fields)

    def configure(self, uplinks: Mapping[str, AnyUplink] | None = None, /, **vms: VmConfig) -> Any:
        """Bring about these; the actions."""
        return self.do(self.engine.reconfigure, Config(uplinks=uplinks or {}, vms=vms))

    def pair(self) -> None:
        """Two VMs, a and b, on one segment without uplink."""
        self.configure(a=self.vm("a", 1), b=self.vm("b", 2))

    def guest(self, name: str, **options: Any) -> Guest:
        """A guest at the socket of a VM, not started."""
        mac = self.engine.vms[name].config.mac[0]
        return Guest(self.path(name), mac, **{"size": 64, "room": 1 << 16} | options)

    # --- what it says -------------------------------------------------------------------------------------------

    def show(self, what: str, name: str = "") -> Any:
        """A view, or its row of a name."""
        rows = self.do(show, self.engine, what)
        return next(row for row in rows if row.get("name", row.get("vm")) == name) if name else rows

    def mappings(self) -> int:
        """Rows of the table of guest memory."""
        return int(np.count_nonzero(self.engine.segment.rows["mappings"]["length"]))

    def barrier(self) -> None:
        """All that was ready in the loop is done."""
        self.do(lambda: None)


def frame(to: str, source: str, number: int = 0, size: int = 60) -> bytes:
    """A frame with a number in its payload."""
    head = bytes.fromhex((to + source).replace(":", "")) + b"\x88\xb5" + number.to_bytes(4, "big")
    return head.ljust(size, b"\xaa")


def exchange(one: Guest, other: Guest, count: int = 3) -> None:
    """Frames both ways, byte for byte."""
    for sender, receiver in ((one, other), (other, one)):
        frames = [frame(receiver.mac, sender.mac, number) for number in range(count)]
        sender.send(frames)
        assert receiver.receive(count, PATIENCE) == frames


NO_FRAMES = Memory(count=0)


def held(running: Running) -> tuple[Any, ...]:
    """All that a front-end could make grow."""
    return open_files(), guest_maps(), running.mappings()


def gone(running: Running, *names: str) -> None:
    """Wait until the front-ends of these VMs have hung up."""
    until(lambda: all(running.show("vms", name)["state"] == "listening" for name in names))
