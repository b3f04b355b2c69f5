# SPDX-License-Identifier: Apache-2.0
"""One engine on a TAP in a namespace of its own, with VM ports `a` and `b`: what most tests of front-ends need.

    with site(folder) as here, here.guest("a") as a:
        here.ping("a")                      # the host, at the other end of the TAP
        a.run(f"ping -c 1 {here.address('b')}")

A port's MAC and the address of its guest follow from its name, so that a guest can be ended and started again, or
take the place of another, without a word about either.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.vm.lab import recipes
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.image import NET, Contents
from tests.vm.lab.netns import Namespace
from tests.vm.lab.nic import Nic, vhost_user
from tests.vm.lab.qemu import Guest

TAP, HOST = "vmqtap0", "10.0.0.254"
NUMBERS = {"a": 1, "b": 2}
HTTP_PORT = 8080


def configuration(keys: Mapping[str, str], mtu: int | None) -> str:
    """The engine's; `keys` are more lines for a VM."""
    text = f'[uplink.lan]\nkind = "tap"\ndevice = "{TAP}"\n' + (f"mtu = {mtu}\n" if mtu else "")
    for name in NUMBERS:
        text += f'[vm.{name}]\nsocket = "{{folder}}/{name}.sock"\nuplink = "lan"\nmac = "{mac(name)}"\n'
        text += keys.get(name, "") + "\n"
    return text


def mac(name: str) -> str:
    return f"52:54:00:00:00:{NUMBERS[name]:02x}"


class Holdings(NamedTuple):
    """What the engine holds of its peers: open descriptors, and mappings of guest memory."""

    descriptors: int
    mappings: int


@dataclass(frozen=True)
class Site:
    """What a test gets."""

    host: Namespace
    engine: EngineProcess
    folder: Path

    def address(self, name: str) -> str:
        return f"10.0.0.{NUMBERS[name]}"

    def nic(
        self, name: str, device: Mapping[str, Any] | None = None, *, queues: int = 1, server: bool = False
    ) -> Nic:
        """The network device that belongs to a VM port; `device` are its properties, as QEMU names them."""
        path, address = self.folder / f"{name}.sock", f"{self.address(name)}/24"
        return vhost_user(path, mac(name), address, queues=queues, server=server, **(device or {}))

    def guest(
        self, name: str, nic: Nic | None = None, *, image: Contents | None = NET, **options: Any
    ) -> Guest:
        """A guest on a VM port; `options` are those of Guest."""
        return Guest(name, [nic or self.nic(name)], image=image, **options)

    def join(self) -> None:
        """Give the host its address; the TAP is the engine's, and new after each of its starts."""
        self.host.address(TAP, f"{HOST}/24")

    def crash(self) -> None:
        """kill -9 the engine, and start it again."""
        self.engine.kill()
        self.engine.start()
        self.join()

    def row(self, name: str) -> dict[str, Any]:
        """A VM port as `vmq show vms` shows it."""
        return self.engine.show("vms")[name]

    def holdings(self) -> Holdings:
        """What the engine holds now."""
        time.sleep(0.2)  # until it has closed the connection of our last question
        process = Path(f"/proc/{self.engine.pid}")
        maps = (process / "maps").read_text()
        return Holdings(len(os.listdir(process / "fd")), maps.count("/memfd:memory-backend"))

    def ping(self, name: str, *options: str, count: int = 3) -> int:
        """Ping a guest from the host, waiting for its first answer; how many of `count` came back.

        After the last one ping waits no longer than twice the longest answer took, or one interval: 0.1 s is too short
        for a guest that shares a busy processor.
        """
        argv = ("ping", "-c", str(count), "-i", "0.4", "-W", "1", *options, self.address(name))
        told = self.host.run(*argv, timeout=count + 20, check=False)
        found = re.search(r"(\d+) received", told)
        assert found is not None, told
        return int(found[1])

    def await_ping(self, name: str, seconds: float = 20.0) -> None:
        """Wait until a guest answers the host."""
        deadline = time.monotonic() + seconds
        while not self.ping(name, count=1):
            assert time.monotonic() < deadline, f"{name} does not answer: {self.row(name)}\n{self.engine.log}"

    def download(self, guest: Guest, mebibytes: int = 8) -> None:
        """The guest fetches a file from the host, by HTTP; the hash is that of what was served."""
        data = os.urandom(mebibytes << 20)
        folder = self.folder / "srv"
        folder.mkdir(exist_ok=True)
        (folder / "file").write_bytes(data)
        server = self.host.popen("busybox", "httpd", "-f", "-h", str(folder), "-p", f"{HOST}:{HTTP_PORT}")
        try:
            time.sleep(0.3)
            got = recipes.fetch(guest, f"http://{HOST}:{HTTP_PORT}/file")
        finally:
            server.terminate()
            server.wait(5)
        assert got == hashlib.md5(data, usedforsecurity=False).hexdigest()

    def upload(self, guest: Guest, mebibytes: int = 8) -> None:
        """The host fetches a file from the guest, by HTTP; the hash is the guest's."""
        total = recipes.make_file(guest, "/srv/file", mebibytes)
        recipes.serve_http(guest)
        got = self.folder / "fetched"
        self.host.run("wget", "-q", "-O", str(got), f"http://{self.address(guest.name)}/file", timeout=60)
        assert hashlib.md5(got.read_bytes(), usedforsecurity=False).hexdigest() == total


@contextmanager
def site(folder: Path, keys: Mapping[str, str] | None = None, *, mtu: int | None = None) -> Iterator[Site]:
    """The engine runs and the host has its address; `keys` are more lines for a VM, by its name."""
    text = configuration(keys or {}, mtu)
    with Namespace("site") as host, EngineProcess(folder, text, host) as engine:
        here = Site(host, engine, folder)
        here.join()
        yield here
