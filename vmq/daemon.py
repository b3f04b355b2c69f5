# SPDX-License-Identifier: Apache-2.0
"""The life of `vmq run`: compile, open everything, serve, reload on SIGHUP, stop on SIGTERM or SIGINT.

Nothing is half-started: kernels are compiled before a socket exists, and whatever cannot be opened undoes what was
opened before it. A reload that fails leaves the old configuration in force and says why. A worker that dies takes
the process with it, loudly; the service manager starts it again and the guests reconnect.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from vmq.config import Config, load
from vmq.control.capture import capture
from vmq.control.contracts import Contracts
from vmq.control.explain import explain
from vmq.control.histograms import measure
from vmq.control.schema import Function, bound, schema
from vmq.control.server import Server
from vmq.control.session import subscribe
from vmq.control.views import show
from vmq.control.ward import Ward
from vmq.dataplane import faults
from vmq.dataplane.classify import slot_of
from vmq.engine.engine import Engine
from vmq.engine.observed import compile_captures
from vmq.errors import ApiError, ConfigError, HostError, VmqError
from vmq.jit import compile_for, watch_compilation
from vmq.placement import choose, devices
from vmq.topology import read
from vmq.uplink.sink import compile_sink
from vmq.worker import compile_loop

SWITCH = 0.0005  # seconds that the event loop may wait for the doctor's thread (ward.py) to let go of the interpreter
LOG = logging.getLogger("vmq")


def compile_kernels(*others: Callable[[], None]) -> int:
    """Compile or load every kernel of the engine and what `others` compile, with progress; how many were compiled."""
    names: list[str] = []

    def note(name: str) -> None:
        names.append(name)
        if sys.stderr.isatty():
            sys.stderr.write(f"\rcompiling the data plane, once: {len(names)} functions, now {name:<30.30}")
            sys.stderr.flush()
        elif len(names) == 1:
            sys.stderr.write("compiling the data plane, once: about 20 seconds\n")

    with watch_compilation(note):
        compile_loop()
        faults.on_sigbus()
        compile_for(slot_of, "int64", "int64", "int64")
        compile_sink()
        compile_captures()
        for other in others:
            other()
    if names and sys.stderr.isatty():
        sys.stderr.write("\r" + " " * 90 + "\r")
    return len(names)


def choose_processors(config: Config, where: str = "") -> tuple[tuple[int, ...], str]:
    """The processors of the workers, and why these."""
    choice = choose(config, read(devices(config)), where)
    return choice.cpus, choice.why


def group_number(where: str, name: str | None) -> int:
    """The id of the group that owns sockets; -1 to leave it."""
    if name is None:
        return -1
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise HostError(
            f"{where}: [engine] group", f"no group {name!r}", f"addgroup {name}, or leave it out"
        ) from error


class Daemon:
    """An engine with its API, from one configuration file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = load(path)
        cpus, why = choose_processors(self.config, str(path))
        self.engine = Engine(str(path), cpus, why, group_number(str(path), self.config.engine.group))
        self.server = Server(self.config.engine.api, self.engine.group, bound(self._functions()))
        self.ward = Ward(self.engine)
        self.ended = asyncio.Event()
        self.problem: BaseException | None = None
        self.compiled: list[str] = []  # kernels compiled while frames flowed: a stall, and our fault

    def _functions(self) -> dict[str, Function]:
        """What answers the methods of the API."""
        engine = self.engine
        return {
            "ping": lambda _, __: {"pid": os.getpid(), "compiled_after_start": self.compiled},
            "schema": lambda _, __: schema(),
            "show": lambda _, asked: show(engine, asked.what),
            "explain": lambda _, asked: explain(engine, asdict(asked)),
            "events": lambda _, asked: engine.journal.since(asked.since),
            "prove": lambda _, asked: self._prove(asked.vm, asked.pairs),
            "proof": lambda _, __: self._proof(),
            "subscribe": lambda session, asked: subscribe(engine.journal, session, asked.since),
            "capture": lambda session, asked: capture(engine, session, asked),
            "measure": lambda _, asked: measure(engine, asked),
            **Contracts(engine).functions(),
        }

    def _prove(self, vm: str, pairs: int) -> dict[str, str]:
        self.engine.proving.start(vm, pairs)
        return {"status": "SUCCESS"}

    def _proof(self) -> dict[str, Any]:
        proof = self.engine.proving.proof
        if proof is None:
            raise ApiError("NOT_FOUND", "nothing has been measured yet", "vmq doctor --prove VM")
        return proof.record()

    async def serve(self) -> None:
        """Open, serve until told to stop, close."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ended.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        self.engine.failed = self._failed
        try:
            self.engine.start()
            await self.server.start(f"{self.path}: [engine] api")
            self.engine.reconfigure(self.config)
            vms = _count(len(self.config.vms), "VM port")
            LOG.warning("ready: %s, api %s", vms, self.config.engine.api)
            self.ward.start()
            with watch_compilation(self._compiling):
                await self.ended.wait()
        finally:
            await self.ward.close()
            await self.server.close()
            self.engine.close()
        if self.problem is not None:
            raise self.problem

    def _compiling(self, name: str) -> None:
        """A running engine never compiles; if it does, say so."""
        self.compiled.append(name)
        LOG.error("a kernel was compiled while running, which stalls: %s", name)

    def _failed(self, problem: BaseException) -> None:
        self.problem = problem
        self.ended.set()

    def reload(self) -> None:
        """Read the file again; on any error of the operator's the old configuration stays in force."""
        try:
            new = self._read_again()
            actions = self.engine.reconfigure(new)
            self.config = new
            self.ward.reloaded()
            LOG.warning("reloaded: %s", _count(len(actions), "change"))
        except VmqError as error:
            LOG.error("reload refused, the old configuration stays in force: %s", error)  # noqa: TRY400 - said in words
        except Exception as problem:  # noqa: BLE001 - half a change is ours: the process ends, and says why
            self._failed(problem)

    def _read_again(self) -> Config:
        """The file as it is now; a refusal is in the journal, where whoever changed the file looks for it."""
        try:
            new = load(self.path)
            fixed = [key for key in ("api", "processors", "group") if self._differs(new, key)]
            if fixed:
                where = f"{self.path}: [engine] {fixed[0]}"
                raise ConfigError(where, "it cannot change while vmq runs", "restart vmq run")
        except VmqError as error:
            self.engine.configured(0, error)
            raise
        return new

    def _differs(self, new: Config, key: str) -> bool:
        return bool(getattr(new.engine, key) != getattr(self.config.engine, key))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def run(path: Path) -> int:
    """`vmq run`: serve until a signal; VmqError when it cannot."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    logging.basicConfig(level=logging.INFO, format="vmq: %(message)s", stream=sys.stderr)
    load(path)
    compile_kernels()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a front-end with 16 queue pairs takes some 100
    sys.setswitchinterval(SWITCH)

    async def main() -> None:
        await Daemon(path).serve()

    asyncio.run(main())
    return 0
