# SPDX-License-Identifier: Apache-2.0
"""A real guest: QEMU under emulation (TCG), a Debian kernel, commands through a serial port.

    with Guest("web", [vhost_user(path, "52:54:00:00:00:01", "10.0.0.1/24")]) as web:
        web.run("ping -c 1 10.0.0.2")          # waits for the boot; CommandError unless status 0
        job = web.start("nc -l -p 5001 | md5sum")
        web.qmp.execute("query-rx-filter")
        job.wait(60)                           # its output

The process starts when the object is made and nothing waits for the boot until the first command, so that guests
made one after the other boot together. Every wait has a limit and ends early when the process is gone; the error
quotes the end of the guest's console. QEMU is ended by its own process id. The kernel ends it too when the thread
that made the guest ends: make guests in a thread that outlives them.

Memory is a shared memfd, as vhost-user wants it, unless a test has another `backend`. KVM is not used: where it is
software itself it does not run Debian's kernel, and tests would differ from machine to machine.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.vm.lab.console import Console
from tests.vm.lab.errors import CommandError, GuestGoneError, LabError, LabTimeoutError
from tests.vm.lab.image import NET, Contents, build
from tests.vm.lab.netns import Namespace
from tests.vm.lab.nic import Nic
from tests.vm.lab.qmp import Qmp

PROGRAM = "qemu-system-x86_64"
BOOT_SECONDS = 90
CONSOLE_LINES = 25
# panic=-1 with -no-reboot makes a guest's panic the end of the process. no_timer_check: the check fails when an
# emulated guest does not get a processor for some milliseconds. ramfs: files may fill the memory, not half of it.
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 no_timer_check rootfstype=ramfs"


class Job:
    """A command that runs in a guest in the background."""

    def __init__(self, guest: Guest, number: int, script: str) -> None:
        self._guest, self._stem = guest, f"/run/job{number}"
        guest.run(
            f"(sh -c {quoted(script)} >{self._stem}.out 2>&1; echo $? >{self._stem}.status) </dev/null &"
        )

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self._guest.run(f"cat {self._stem}.out")

    def wait(self, timeout: float) -> str:
        """Wait for its end and return its output; CommandError unless its status is 0."""
        deadline = time.monotonic() + timeout
        while not (status := self._guest.run(f"cat {self._stem}.status 2>/dev/null || true").strip()):
            if time.monotonic() > deadline:
                raise LabTimeoutError(
                    f"{self._guest.name}: a job did not end within {timeout} s:\n{self.output}"
                )
            time.sleep(0.1)
        if status != "0":
            raise CommandError(self._guest.name, "a job", int(status), self.output)
        return self.output


class Guest:
    """One QEMU process and what runs in it. `image=None` boots from the first device's network."""

    def __init__(
        self,
        name: str,
        nics: Sequence[Nic] = (),
        *,
        image: Contents | None = NET,
        memory: int = 256,
        processors: int = 1,
        machine: str = "q35",
        backend: str = "memory-backend-memfd,share=on",
        namespace: Namespace | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.boot_seconds: float | None = None
        self._numbers = itertools.count()
        self._qmp: Qmp | None = None
        self._console: Console | None = None
        argv = self._firmware(image, nics)
        self._folder = Path(tempfile.mkdtemp(prefix="vmq-guest-"))
        argv += self._machine(machine, f"{backend},id=memory,size={memory}M", memory, processors)
        for number, nic in enumerate(nics):
            argv += nic.command_line(number, netboot=image is None)
        self._process = self._launch([*argv, *arguments], nics, namespace)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def serial(self) -> str:
        """The console's text so far: firmware, kernel, `init`."""
        path = self._folder / "serial.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def qmp(self) -> Qmp:
        """QEMU's control socket. QEMU answers once its vhost-user devices are connected."""
        if self._qmp is None:
            path = self._folder / "qmp"
            self._await(path.exists, 10, "QEMU to open its QMP socket")
            self._qmp = Qmp(path)
        return self._qmp

    def wait_for(self, pattern: str, timeout: float) -> re.Match[str]:
        """Wait until the console's text matches."""
        self._await(lambda: re.search(pattern, self.serial) is not None, timeout, f"console: {pattern}")
        found = re.search(pattern, self.serial)
        assert found is not None
        return found

    def ready(self, timeout: float = BOOT_SECONDS) -> Self:
        """Wait until the guest has booted and takes commands."""
        if self._console is None:
            self.wait_for(r"READY", timeout)
            self.boot_seconds = time.monotonic() - self._started
            self._console = Console(self._folder / "console")
        return self

    def run(self, script: str, timeout: float = 30, *, check: bool = True) -> str:
        """Run a shell script in the guest and return its output; CommandError unless its status is 0."""
        self.ready()
        assert self._console is not None
        try:
            result = self._console.run(script, timeout)
        except LabError as error:
            raise type(error)(f"{self.name}: {error}\n{self._evidence()}") from None
        if check and result.status:
            raise CommandError(self.name, script, result.status, result.output)
        return result.output

    def start(self, script: str) -> Job:
        """Run a shell script in the background."""
        return Job(self, next(self._numbers), script)

    def reboot(self, how: Callable[[], object], timeout: float = BOOT_SECONDS) -> None:
        """Have the guest started anew by `how`, and wait until it takes commands again; QEMU stays."""
        boots = self.ready().serial.count("READY")
        self.qmp.execute("set-action", reboot="reset")  # -no-reboot would make it the end of QEMU
        how()
        self._await(lambda: self.serial.count("READY") > boots, timeout, "the guest to be READY again")

    def close(self) -> None:
        """End the guest and remove its files; a guest that is gone already is fine."""
        for connection in (self._qmp, self._console):
            if connection is not None:
                connection.close()
        self._process.kill()
        self._process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _machine(self, machine: str, backend: str, memory: int, processors: int) -> list[str]:
        thread = "single" if processors == 1 else "multi"
        ports = [f"socket,id=console,path={self._folder}/console,server=on,wait=off"]
        return [
            *("-accel", f"tcg,thread={thread}", "-cpu", "max", "-smp", str(processors)),
            *("-machine", f"{machine},memory-backend=memory,graphics=off", "-m", str(memory)),
            *("-object", backend),
            *("-nodefaults", "-no-reboot", "-display", "none"),
            *("-serial", f"file:{self._folder}/serial.log", "-chardev", *ports, "-serial", "chardev:console"),
            *("-qmp", f"unix:{self._folder}/qmp,server=on,wait=off"),
            *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"),
        ]

    def _firmware(self, image: Contents | None, nics: Sequence[Nic]) -> list[str]:
        if image is None:
            return ["-boot", "order=n"]
        made = build(image)
        addresses = [f"vmq.eth{i}={','.join(nic.addresses)}" for i, nic in enumerate(nics) if nic.addresses]
        line = " ".join([KERNEL_OPTIONS, *addresses])
        return ["-kernel", str(made.vmlinux), "-initrd", str(made.initramfs), "-append", line]

    def _launch(
        self, arguments: list[str], nics: Sequence[Nic], namespace: Namespace | None
    ) -> subprocess.Popen[bytes]:
        # setpriv has QEMU ended when we die without closing it. It and the namespace keep the process id.
        argv = ["setpriv", "--pdeathsig", "KILL", PROGRAM, *arguments]
        descriptors = [number for nic in nics for number in nic.descriptors]
        self._started = time.monotonic()
        with (self._folder / "errors.log").open("wb") as log:
            return subprocess.Popen(
                namespace.command(argv) if namespace else argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
                start_new_session=True,
            )

    def _await(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if not self.alive:
                raise GuestGoneError(f"{self.name}: ended, waited for {what}\n{self._evidence()}")
            if time.monotonic() > deadline:
                raise LabTimeoutError(f"{self.name}: not within {timeout} s: {what}\n{self._evidence()}")
            time.sleep(0.02)

    def _evidence(self) -> str:
        lines = self.serial.splitlines()[-CONSOLE_LINES:]
        return "\n".join([*lines, (self._folder / "errors.log").read_text(errors="replace")])


def quoted(script: str) -> str:
    """One word for a shell."""
    return "'" + script.replace("'", "'\\''") + "'"
