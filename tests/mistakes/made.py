# SPDX-License-Identifier: Apache-2.0
"""What mistakes are made of: an engine of a file that changes, processes that are QEMU by their words, hosts by their files.

    Made      `vmq run` as a process; its file is written anew and taken on SIGHUP, or left unread
    Doctor    `vmq doctor … --json` on that file: what was found, by code
    qemu      a process whose command line is QEMU's, with vCPU threads that may be pinned; it runs no guest
    laid_out  a host's files below a directory, in the place of / for the doctor's own readers

Every address is this run's own: QEMU processes of other tests run on the same machine, and the doctor sees them, too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.control.daemon import Process
from tests.doctor.hosts import record
from tests.engine.running import FIRST_CPU, PATIENCE, until
from vmq.cli import main
from vmq.doctor import Facts

OWN = f"52:54:00:{os.getpid() >> 8 & 0xFF:02x}:{os.getpid() & 0xFF:02x}"
A, B, C = (f"{OWN}:{number:02x}" for number in range(1, 4))
STRANGER = f"{OWN}:99"
ANSWER = re.compile(r"reloaded: \d+|reload refused")
Finding = dict[str, Any]

FEW = "[doctor]\nbusy_frames = 100\n"
MEMORY = '[uplink.lan]\nkind = "memory"\nlossless = false\n'
PCAP = '[uplink.lan]\nkind = "pcap"\nlossless = false\nread = "{}"\n'
LAN = 'uplink = "lan"\n'

# A guest's threads as QEMU names them, each where it may run; then wait for the end of stdin.
VCPUS = """
import os, sys, threading
def vcpu(number, cpus, ready):
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as comm:
        comm.write(f"CPU {number}/KVM")
    os.sched_setaffinity(0, cpus)
    ready.wait()
    threading.Event().wait()
pinned = [{int(cpu) for cpu in cpus.split(",")} for cpus in os.environ["VCPUS"].split()]
ready = threading.Barrier(len(pinned) + 1)
for number, cpus in enumerate(pinned):
    threading.Thread(target=vcpu, args=(number, cpus, ready), daemon=True).start()
ready.wait()
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""


class Made(Process):
    """An engine whose file a test writes. `vms`: tables of VMs a, b, … with the same keys."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.head = f'[engine]\napi = "{self.api}"\nprocessors = "{FIRST_CPU}"\nguard = false\n'
        self.says("")

    def says(self, text: str) -> None:
        """The file says so from now on; nobody tells the engine."""
        self.path.write_text(self.head + text)

    def told(self) -> str:
        """SIGHUP, and what the engine answers."""
        before = len(self.log)
        self.reload()
        until(lambda: ANSWER.search(self.log, before), "an answer to SIGHUP")
        return self.log[before:]

    def takes(self, text: str) -> None:
        """What was there is gone, with its counters; this is in force."""
        for one in ("", text):
            self.says(one)
            assert "reloaded: " in self.told(), self.log

    def changes(self, text: str) -> None:
        """The same, in one step: what stays keeps its counters."""
        self.says(text)
        assert "reloaded: " in self.told(), self.log

    def queue(self, vm: str, pair: int = 0) -> dict[str, Any]:
        rows = self.show("queues")
        return next((one for one in rows if (one["vm"], one["queue"]) == (vm, pair)), {})

    def offered(self, vm: str, frames: int) -> None:
        """Wait until so many frames came for a VM."""
        until(lambda: self.queue(vm).get("offered_to_guest", 0) >= frames, f"{frames} frames for {vm}")


def vms(keys: str = "", **macs: str) -> str:
    return "".join(f'[vm.{name}]\nmac = "{mac}"\nqueue_pairs = 1\n{keys}' for name, mac in macs.items())


class Doctor:
    """`vmq doctor`, as a user runs it."""

    def __init__(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file, self.code, self._capsys = file, 0, capsys
        self.root = file.parent / "root"  # of a host that is laid out

    def all(self, *words: str) -> list[Finding]:
        """Every answer of these rules."""
        self._capsys.readouterr()
        self.code = main(["doctor", *words, "--json", "--config", str(self.file)])
        printed = self._capsys.readouterr()
        assert printed.err == ""
        answers: list[Finding] = json.loads(printed.out)
        return answers

    def found(self, code: str, *words: str) -> dict[str, Finding]:
        """What a rule found, by subject; each with evidence, why and fix."""
        found = {one["subject"]: one for one in self.all(code, *words) if one["status"] == "found"}
        for one in found.values():
            assert one["evidence"]
            assert one["why"]
            assert one["fix"]
        return found

    def refused(self) -> str:
        """The words in which its file is refused."""
        self._capsys.readouterr()
        assert main(["doctor", "--config", str(self.file)]) == 2
        return self._capsys.readouterr().err

    def statuses(self, code: str) -> set[str]:
        return {one["status"] for one in self.all(code)}

    def clear(self, code: str) -> bool:
        """Looked, and nothing is there."""
        return self.statuses(code) == {"clear"}


def seen(finding: Finding) -> dict[str, str]:
    """Evidence: where → what stood there."""
    return {one["where"]: one["value"] for one in finding["evidence"]}


def device(
    folder: Path, vm: str, mac: str, *, queues: int = 1, netdev: str = "", more: str = "", socket: str = ""
) -> list[str]:
    """A vhost-user network device of QEMU at the socket of a VM port."""
    path = socket or f"{folder}/{vm}.sock"
    return [
        *("-chardev", f"socket,id=c,path={path},reconnect=1{netdev}"),
        *("-netdev", f"vhost-user,id=n,chardev=c,queues={queues}"),
        *("-device", f"virtio-net-pci,netdev=n,mac={mac},rx_queue_size=1024{more}"),
    ]


def shared(backend: str = "memory-backend-memfd,share=on") -> list[str]:
    """Guest memory."""
    return ["-object", f"{backend},id=m,size=64M", "-machine", "q35,memory-backend=m"]


@contextmanager
def qemu(name: str, *words: str, vcpus: tuple[tuple[int, ...], ...] = ()) -> Iterator[None]:
    """A process with QEMU's command line. `vcpus`: where each vCPU's thread may run."""
    environment = os.environ | {"VCPUS": " ".join(",".join(map(str, one)) for one in vcpus)}
    program = VCPUS if vcpus else "print('ready', flush=True); import sys; sys.stdin.read()"
    with subprocess.Popen(
        ["qemu-system-x86_64", "-I", "-S", "-c", program, "-name", name, *words],
        executable=sys.executable,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.stdin.close()
            process.wait(PATIENCE)


def laid_out(monkeypatch: pytest.MonkeyPatch, root: Path) -> Callable[[Mapping[str, str]], None]:
    """From now on the doctor's readers find these files below `root`, in the place of /, and may use that host's processors."""
    read = Facts.read
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    def below(_: Path = root, ask: Any = None, *, machines: bool = True) -> Facts:
        return read(root, lambda _: None, machines=machines)

    monkeypatch.setattr(Facts, "read", below)

    def lay(files: Mapping[str, str]) -> None:
        record(root, files)

    return lay
