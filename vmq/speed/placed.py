# SPDX-License-Identifier: Apache-2.0
"""What a frame costs that the kernel places in guest memory, beside one that the engine copies there: the same engine and wire.

    generator ─► veth ─► the NIC's program ─┬─ VM "switched": socket of the engine ─► engine copies ─► guest
                                            └─ VM "direct":   pair of the VM ─► guest memory, engine tells the guest
    generator ─► veth ─► a program that drops them: what the generator itself takes; it is taken off

What the kernel takes is the generator's time (wire.py). Meanwhile the engine is stopped (SIGSTOP), so none of it is done on its
processor: before each burst it has had nothing to do for longer than it polls (vmq/direct/polling.py). Then it finds a full ring, and its time is that of its
processor's thread. What the guest gives back it posts when it
wakes for one more frame, which is in its time, too. Of both, a burst less a shorter one: what system calls, a wake-up, looking for more, and polls
that find nothing cost is in neither. Every frame is compared, and at the end counted on the way that it was to take; a burst of which
some are lost is made again.

`Served` is an engine as a process of its own; `Stand` measures with it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple, Self

from vmq.abi.xdp import AF_XDP
from vmq.affinity import on_processor
from vmq.direct.pair import Apart
from vmq.errors import ApiError, HostError, VmqError
from vmq.guest.guest import Guest
from vmq.speed.stand import RING, mac, processors
from vmq.speed.wire import Wire, a_frame, counts_apart, refusal

WHERE = "vmq bench --placement"
PLACEMENTS = ("switched", "direct")
# Frames of a burst, so many that the kernel keeps enough buffers for the engine not to look for more, and of a shorter one.
BURST, SHORTER = 800, 160
BURSTS = 12  # of each, for one round
ASLEEP_SECONDS = 0.003  # until a processor looks no more
READY_SECONDS, PATIENCE, STOP_SECONDS = 120.0, 20.0, 10.0
TRIES, ARRIVE_SECONDS = 5, 3.0
LOOK_SECONDS = 0.0002
SOURCE = mac(len(PLACEMENTS))
Ask = Callable[..., Any]  # vmq/cli/client.py: an engine's socket, a method, its parameters


class Took(NamedTuple):
    """ns a frame."""

    kernel: float
    engine: float


class Served:
    """An engine on the near end of a wire, and a guest of each placement; both end with the block."""

    def __init__(self, one: Wire, folder: Path, ask: Ask, placements: Sequence[str] = PLACEMENTS) -> None:
        self.wire, self.folder, self.placements = one, folder, placements
        self.cpu, others = processors()
        self.other = others[0]  # of the generator, and of the guests
        self.api, self._ask = str(folder / "api.sock"), ask
        self.guests: dict[str, Guest] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            for number, placement in enumerate(self.placements):
                guest = Guest(self._socket(placement), mac(number), size=RING, timeout=PATIENCE)
                self.guests[placement] = stack.enter_context(guest)
            for placement in self.placements:
                self.until_placed(placement)
            self.thread = int(self.ask("show", what="processors")[0]["thread"])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _socket(self, placement: str) -> Path:
        return self.folder / f"{placement}.sock"

    def _text(self) -> str:
        """The guard and the doctor would have frames look for nothing but themselves."""
        text = (
            f'[engine]\napi = "{self.api}"\nprocessors = "{self.cpu}"\nguard = false\n[doctor]\nevery = 0\n'
        )
        text += f'[uplink.wire]\nkind = "xdp"\ndevice = "{self.wire.near}"\nprepared = true\n'
        for number, placement in enumerate(self.placements):
            text += f'[vm.{placement}]\nsocket = "{self._socket(placement)}"\nmac = "{mac(number)}"\n'
            text += f'uplink = "wire"\nplacement = "{placement}"\n'
        return text

    def _start(self, stack: ExitStack) -> None:
        file = self.folder / "vmq.toml"
        file.write_text(self._text())
        log = stack.enter_context((self.folder / "vmq.log").open("w+b"))
        argv = (sys.executable, "-m", "vmq", "run", "--config", str(file))
        self.process = self.wire.call(
            lambda: subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603 - ourselves
        )
        stack.callback(self._stop)
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "vmq.log").read_text(errors="replace").strip().splitlines()
                raise VmqError(
                    f"the engine does not serve: {said[-1] if said else 'it said nothing'}", place=WHERE
                )
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            return bool(self.ask("ping")["pid"])
        except ApiError:
            return False

    def _stop(self) -> None:
        """It may be stopped."""
        for number in (signal.SIGCONT, signal.SIGTERM):
            self.process.send_signal(number)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(self, method: str, **params: Any) -> Any:
        """One question to it."""
        return self._ask(self.api, method, **params)

    def placed_as(self, placement: str) -> tuple[str, str]:
        """How the frames of a VM are placed, and why so."""
        (row,) = (
            row
            for row in self.ask("show", what="settings")
            if (row["of"], row["name"]) == (f"vm {placement}", "placement")
        )
        return str(row["effective"]), str(row["why"])

    def until_placed(self, vm: str, wanted: str = "") -> None:
        """Wait until a VM is placed as its name says, or as is `wanted`; VmqError if it never is."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.placed_as(vm))[0] != (wanted or vm):
            if time.monotonic() > deadline:
                wrong = f"placement is {found[0]}, not {wanted or vm}: {found[1]}"
                raise VmqError(wrong, "docs/direct.md says what is in the way", place=WHERE)
            time.sleep(0.02)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """None of its threads runs."""
        tasks, deadline = Path(f"/proc/{self.process.pid}/task"), time.monotonic() + PATIENCE
        self.process.send_signal(signal.SIGSTOP)
        try:
            while any(_state(one) != "T" for one in tasks.iterdir()):
                if time.monotonic() > deadline:
                    raise VmqError("the engine cannot be stopped", "Run it without a debugger", place=WHERE)
                time.sleep(LOOK_SECONDS)
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def worked(self) -> int:
        """Ns that its thread has had its processor: linux, /proc/PID/task/TID/schedstat, the first number."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.thread}/schedstat").read_text().split()[0])


class Stand:
    """What measures: an engine on one wire, and a wire on which the generator alone is measured. HostError where that cannot be had."""

    def __init__(self, ask: Ask, prepare: Callable[[], None] = lambda: None) -> None:
        self.ask, self._prepare = ask, prepare  # done when it is known that all of it can be had
        self.sent, self.arrived = dict.fromkeys(PLACEMENTS, 0), dict.fromkeys(PLACEMENTS, 0)
        self._order = list(PLACEMENTS)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if counts_apart():
                wrong = "this kernel counts what softirqs do as nobody's time (CONFIG_IRQ_TIME_ACCOUNTING)"
                raise HostError(WHERE, wrong, "Boot it with tsc=noirqtime, to measure")
            try:
                apart = stack.enter_context(closing(Apart()))
                apart.call(lambda: socket.socket(AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC).close())
                self.wire, self._bare = (stack.enter_context(closing(Wire(apart, n))) for n in range(2))
                self._bare.drop()
                self._bare.call(lambda: self._bare.send(a_frame(mac(0), SOURCE, 64), 1))
            except OSError as error:
                raise refusal(WHERE, "a network of its own with AF_XDP is refused", error) from error
            self._prepare()
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmq-bench-")))
            self.served = stack.enter_context(Served(self.wire, folder, self.ask))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def generator(self, size: int) -> float:
        """Ns a frame of the generator and of the wire."""
        data = a_frame(mac(0), SOURCE, size)
        spent = self._bare.call(
            lambda: [[self._bare.send(data, count) for _ in range(BURSTS)] for count in (BURST, SHORTER)]
        )
        return _a_frame(*spent)

    def round(self, size: int) -> dict[str, Took]:
        """Both placements in turn, and before them the generator, whose time is taken off the kernel's."""
        with on_processor(self.served.other):
            return self._round(size)

    def _round(self, size: int) -> dict[str, Took]:
        bare = self.generator(size)
        self._order.reverse()
        took = {}
        for placement in self._order:
            self._burst(
                placement, size, SHORTER
            )  # the engine looks on for as long as it has learned to: learn
            bursts = [
                self._burst(placement, size, count) for _ in range(BURSTS) for count in (BURST, SHORTER)
            ]
            kernel, engine = (
                _a_frame(*([one[part] for one in bursts[first::2]] for first in range(2)))
                for part in range(2)
            )
            took[placement] = Took(kernel - bare, engine)
        return took

    def _burst(self, placement: str, size: int, count: int) -> tuple[int, int]:
        """Ns of the kernel with the generator, and of the engine, for so many frames."""
        data = a_frame(mac(PLACEMENTS.index(placement)), SOURCE, size)
        for _ in range(TRIES):
            if found := self._tried(placement, data, count):
                return found
        wrong = f"{placement}: some of {count} frames are lost, {TRIES} times in a row"
        raise VmqError(wrong, "Try again while nothing else runs", place=WHERE)

    def _tried(self, placement: str, data: bytes, count: int) -> tuple[int, int] | None:
        """None if some are lost: who shares the generator's processor may keep the kernel off it until a ring is full."""
        served = self.served
        with served.stopped():
            before = served.worked()
            kernel = self.wire.call(lambda: self.wire.send(data, count))
        got = self._received(placement, data, count)
        # For one more frame the engine wakes, and posts what the guest has given back.
        self.wire.call(lambda: self.wire.send(data, 1))
        self._received(placement, data, 1)
        time.sleep(ASLEEP_SECONDS)
        return (kernel, served.worked() - before) if got == count else None

    def _received(self, placement: str, data: bytes, count: int) -> int:
        """How many frames arrived; VmqError if one is another."""
        got = self.served.guests[placement].receive(count, ARRIVE_SECONDS)
        self.sent[placement] += count
        self.arrived[placement] += len(got)
        if strange := sum(one != data for one in got):
            raise VmqError(f"{placement}: {strange} of {len(got)} frames did not arrive whole", place=WHERE)
        return len(got)

    def check(self) -> None:
        """VmqError unless all frames took the way that they were to take."""
        (row,) = self.served.ask("show", what="uplinks")
        told = {"switched": row["verdicts"]["steered"], "direct": row["verdicts"]["direct"]}
        if not all(self.arrived[one] <= told[one] <= self.sent[one] for one in PLACEMENTS):
            raise VmqError(f"of {self.sent} frames took these ways: {told}", place=WHERE)


def _a_frame(whole: Sequence[int], shorter: Sequence[int]) -> float:
    """Ns a frame, of what bursts of both lengths took."""
    return (statistics.median(whole) - statistics.median(shorter)) / (BURST - SHORTER)


def _state(task: Path) -> str:
    """One letter of proc(5), /proc/PID/stat, behind the name."""
    with contextlib.suppress(OSError):  # it has ended since
        return (task / "stat").read_text().rpartition(")")[2].split()[0].upper()
    return "T"
