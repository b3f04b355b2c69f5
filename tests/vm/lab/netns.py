# SPDX-License-Identifier: Apache-2.0
"""A network namespace of its own for each test: the host's end of the wire, and room for the engine.

    with Namespace("host") as host, Namespace("peer") as peer:
        host.veth("up0", peer, "up0")
        host.address("up0", "10.0.0.1/24", "fd00::1/64")
        host.run("ping", "-c1", "10.0.0.2")
        sender = host.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))

Names are unique on the machine. IPv6 addresses are usable at once (no duplicate address detection). A process
started with `popen` is ended, by its id, before the namespace goes; closing does not fail.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from pyroute2 import netns

from tests.vm.lab.errors import CommandError, LabError, LabTimeoutError

T = TypeVar("T")
_numbers = itertools.count()


class Namespace:
    """A network namespace with `lo` up."""

    def __init__(self, tag: str = "ns") -> None:
        self.name = f"vmq-{os.getpid()}-{next(_numbers)}-{tag}"
        self._processes: list[subprocess.Popen[Any]] = []
        made = subprocess.run(["ip", "netns", "add", self.name], capture_output=True, text=True, check=False)
        if made.returncode:
            raise LabError(f"cannot make a network namespace: {made.stderr.strip()}")
        for scope in ("default", "all"):
            self.sysctl(f"net/ipv6/conf/{scope}/accept_dad", 0)
        self.up("lo")

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside, as the same process."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str, timeout: float = 30, check: bool = True, stdin: str | None = None) -> str:
        """Run a program inside and return its output, both streams; CommandError unless its status is 0."""
        try:
            done = subprocess.run(
                self.command(argv),
                input=stdin or "",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            raise LabTimeoutError(
                f"{self.name}: not within {timeout} s: {' '.join(argv)}\n{expired.output}"
            ) from None
        if check and done.returncode:
            raise CommandError(self.name, " ".join(argv), done.returncode, done.stdout)
        return done.stdout

    def popen(self, *argv: str, log: Path | IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start a program inside that is ended with the namespace; `log` takes both of its streams."""
        output = log.open("wb") if isinstance(log, Path) else log
        try:
            process = subprocess.Popen(
                self.command(argv), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        finally:
            if isinstance(log, Path) and not isinstance(output, int):
                output.close()
        self._processes.append(process)
        return process

    def call(self, function: Callable[[], T], timeout: float = 30) -> T:
        """Run a function in a thread that has entered the namespace: the sockets it makes stay there."""
        results: list[T] = []
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                netns.setns(self.name, flags=0)
                results.append(function())
            except BaseException as error:  # raised again where `call` was called
                errors.append(error)

        thread = threading.Thread(target=enter, name=self.name, daemon=True)
        thread.start()
        thread.join(timeout)
        if errors:
            raise errors[0]
        if not results:
            raise LabTimeoutError(f"{self.name}: a call did not end within {timeout} s")
        return results[0]

    def veth(self, link: str, peer: Namespace, peer_link: str) -> None:
        """A pair of links, up: `link` here and `peer_link` there."""
        self.run("ip", "link", "add", link, "type", "veth", "peer", "name", peer_link, "netns", peer.name)
        self.up(link)
        peer.up(peer_link)

    def move(self, link: str, to: Namespace) -> None:
        """Give a link to another namespace. It arrives down and without addresses."""
        self.run("ip", "link", "set", link, "netns", to.name)

    def address(self, link: str, *addresses: str) -> None:
        for address in addresses:
            self.run("ip", "address", "add", address, "dev", link)

    def up(self, link: str) -> None:
        self.run("ip", "link", "set", link, "up")

    def mac(self, link: str) -> str:
        (shown,) = json.loads(self.run("ip", "-json", "link", "show", link))
        return str(shown["address"])

    def sysctl(self, path: str, value: int | str) -> None:
        """Write one setting; `path` with slashes, because a link's name may hold dots."""
        self.call(lambda: Path("/proc/sys", path).write_text(f"{value}\n"))

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, check=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def joined() -> Iterator[tuple[Namespace, Namespace]]:
    """An engine's host with `wire0`, and `host0` at its other end, which says nothing of its own."""
    with Namespace("engine") as near, Namespace("host") as far:
        for end in (near, far):
            end.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        near.veth("wire0", far, "host0")
        yield near, far
