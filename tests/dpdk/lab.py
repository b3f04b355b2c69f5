# SPDX-License-Identifier: Apache-2.0
"""dpdk-testpmd for tests: an independent front-end (virtio_user) or back-end (net_vhost), driven and asked.

    with Testpmd(folder, [virtio_user(0, socket, MAC), pcap(1, read=IN, write=OUT)]) as pmd:
        pmd.say("set fwd io", "start")                      # as typed at its prompt; the answer
        pmd.stats(0)["ipackets"], pmd.xstats(0)["rx_q0_size_64_packets"], pmd.link(0)

Commands go in through a pipe that stays open: the end of its input ends it, so it cannot outlive us. Counters come
from its telemetry socket, the same that `show port stats` and `show port xstats` print. All its files lie in
`folder`. Its memory is 4 KiB pages of a memfd, unless `hugepages` names where larger ones are.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.vm.lab.errors import GuestGoneError, LabTimeoutError

START_SECONDS, COMMAND_SECONDS, END_SECONDS = 60.0, 30.0, 20.0
T = TypeVar("T")

# The paths of DPDK's virtio driver that split virtqueues have: options, and the name that it logs.
PATHS = {
    "mergeable": ("mrg_rxbuf=1,in_order=0", "mergeable buffer Rx path"),
    "non-mergeable": ("mrg_rxbuf=0,in_order=0", "standard Rx path"),
    "vector": ("mrg_rxbuf=0,in_order=0,vectorized=1", "vectorized Rx path"),
}


def until(condition: Callable[[], T], what: str, timeout: float = 30.0) -> T:
    """Wait until a condition holds; its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise LabTimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(0.01)
    return value


def virtio_user(
    number: int, path: Path, mac: str, ring: str = "mergeable", size: int = 1024, *, server: bool = False
) -> str:
    """A front-end at a vhost-user socket, on one of PATHS; `server`: it listens, and the back-end connects."""
    options = f"path={path},mac={mac},queues=1,queue_size={size},{PATHS[ring][0]}"
    return f"net_virtio_user{number},{options},server={int(server)}"


def pcap(number: int, read: Path | None = None, write: Path | None = None, *, endless: bool = False) -> str:
    """A port whose frames come from a capture, once or endlessly, and go into another."""
    parts = [f"net_pcap{number}"]
    parts += [f"rx_pcap={read}"] if read else []
    parts += [f"tx_pcap={write}"] if write else []
    return ",".join([*parts, *(["infinite_rx=1"] if endless else [])])


class Testpmd:
    """One process on one processor, with these virtual devices as its ports 0, 1, …"""

    __test__ = False  # not a test, whatever its name begins with

    def __init__(
        self,
        folder: Path,
        devices: Sequence[str],
        *,
        name: str = "fe",
        cpu: int = 0,
        forward: str = "io",
        hugepages: Path | None = None,
        memory: int = 256,
        buffers: int = 16384,
        descriptors: int = 1024,
        eal: Sequence[str] = (),
        options: Sequence[str] = (),
        log_level: str = "pmd.net.virtio.init:info",
    ) -> None:
        self.folder, self.name, self.devices = folder, name, devices
        self.log_file = folder / f"{name}.log"
        pages = ["--single-file-segments", "--huge-dir", str(hugepages)] if hugepages else ["--no-huge"]
        self.argv = [
            *("stdbuf", "-oL", "dpdk-testpmd", "--lcores", f"(0,1)@{cpu}", "--no-pci", "-m", str(memory)),
            *("--file-prefix", name, "--log-level", log_level, *pages, *eal),
            *(word for device in devices for word in ("--vdev", device)),
            *("--", "-i", "--nb-cores=1", f"--forward-mode={forward}", f"--total-num-mbufs={buffers}"),
            *(f"--rxd={descriptors}", f"--txd={descriptors // 2}", "--no-flush-rx", *options),
        ]
        self.process: subprocess.Popen[bytes] | None = None
        self._telemetry: socket.socket | None = None
        self._said = 0

    # --- life ----------------------------------------------------------------------------------------------

    def launch(self) -> Self:
        """Start it without waiting: a front-end that listens is ready only when its back-end has come."""
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | {"RUNTIME_DIRECTORY": str(self.folder)},
            )
        return self

    def ready(self) -> Self:
        """Wait until its ports are started and it takes commands."""
        self._settle(START_SECONDS)
        assert "probe failed" not in self.log, self.log
        assert "Start ports failed" not in self.log, self.log
        self._telemetry = self._connect()
        return self

    def start(self) -> Self:
        return self.launch().ready()

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(COMMAND_SECONDS)
        sock.connect(str(self.folder / "dpdk" / self.name / "dpdk_telemetry.v2"))
        sock.recv(1 << 16)  # who it is
        return sock

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """What it said so far."""
        return self.log_file.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL: what a crash is to its back-end."""
        assert self.process is not None
        self.process.kill()
        self._ended()

    def quit(self) -> None:
        """Let it end; captures that it writes are whole afterwards."""
        assert self.process is not None
        if self.process.poll() is None:
            self._type("quit")
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LabTimeoutError(f"testpmd {self.name} did not end:\n{self.log[-2000:]}") from None
        self._ended()

    def _ended(self) -> None:
        assert self.process is not None
        self.process.wait(END_SECONDS)
        if self._telemetry is not None:
            self._telemetry.close()
            self._telemetry = None
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.returncode is None:
            self.kill()

    # --- talk ----------------------------------------------------------------------------------------------

    def _type(self, *lines: str) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise GuestGoneError(f"testpmd {self.name} has ended:\n{self.log[-2000:]}") from None

    def _settle(self, timeout: float) -> None:
        """Wait until everything typed was done: a comment typed behind it is echoed by then."""
        self._said += 1
        mark = f"testpmd> # {self._said}."
        self._type(f"# {self._said}.")

        def echoed() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise GuestGoneError(f"testpmd {self.name} has ended:\n{self.log[-2000:]}")
            return mark in self.log

        until(echoed, f"testpmd {self.name} takes commands: {self.log_file}", timeout)

    def say(self, *commands: str) -> str:
        """Type commands; what they printed, when all are done."""
        before = len(self.log)
        self._type(*commands)
        self._settle(COMMAND_SECONDS)
        said = self.log[before:]
        for complaint in ("Command not found", "Bad arguments", "Ambiguous command"):
            assert complaint not in said, said
        return said

    def ask(self, command: str) -> Any:
        """One question to its telemetry."""
        assert self._telemetry is not None
        self._telemetry.send(command.encode())
        return json.loads(self._telemetry.recv(1 << 17))[command.partition(",")[0]]

    def stats(self, port: int) -> dict[str, int]:
        """ipackets, opackets, ibytes, obytes, oerrors, …"""
        found: dict[str, int] = self.ask(f"/ethdev/stats,{port}")
        return found

    def xstats(self, port: int) -> dict[str, int]:
        """Counters by virtqueue, size and kind of address."""
        found: dict[str, int] = self.ask(f"/ethdev/xstats,{port}")
        return found

    def received(self, port: int) -> int:
        """Frames that arrived at a port so far."""
        return self.stats(port)["ipackets"]

    def wait_received(self, port: int, count: int, timeout: float = 60.0) -> None:
        """Wait until so many frames have arrived at a port."""
        until(lambda: self.received(port) >= count, f"{count} frames at port {port} of {self.name}", timeout)

    def link(self, port: int) -> bool:
        """Whether the port's link is up."""
        return bool(self.ask(f"/ethdev/link_status,{port}")["status"] == "UP")

    def path_is(self, ring: str) -> bool:
        """Whether its driver says that it runs on this one of PATHS."""
        return f"virtio: using {PATHS[ring][1]} on port" in self.log
