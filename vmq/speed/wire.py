# SPDX-License-Identifier: Apache-2.0
"""A wire for measurements, where nobody else is, and what sends frames into it from inside the kernel.

    generator ─► far end ══ veth ══ near end ─► the program that is there

The generator is a program that the kernel runs on frames of its own (BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18): all that the
kernel does for a frame, up to where a socket has it, happens on the processor and in the time of the thread that calls. What is
polled late happens there, too: a pair whose VM's processor polls it while frames are many (vmq/direct/polling.py) is looked at by a timer
when nobody has come for 50 µs, each time but the first of a burst, and the timer is the sending processor's. So the thread goes on with work of
a fixed amount until that is over, in every call, and a difference of two calls has none of it.

A program that is on a device somewhere can be run at once; for any other the kernel builds a call into itself, and waits some 25 ms
for that. A thread's time is what it had of a processor: a kernel that accounts interrupts apart (CONFIG_IRQ_TIME_ACCOUNTING) does not
count what softirqs do as its, and says so by `counts_apart`.

The namespace has no name, and goes with this process; the host sees neither end.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np

from vmq import linux
from vmq.abi import bpf
from vmq.abi.ethernet import mac_number
from vmq.bpf.assembler import R0, R1, R2, Code
from vmq.bpf.link import Link
from vmq.bpf.maps import attribute
from vmq.bpf.program import Program
from vmq.direct.pair import FAR, Apart, Pair
from vmq.errors import HostError
from vmq.speed.stand import LOCAL_TYPE, USUAL_MTU

HOLDERS = 256  # from this number on a pair is there for a program to be on a device
BATCH = 64  # frames that the kernel makes before it lets others work: as many as a device is polled for
SETTLING = 1000  # rounds of a hash: 0.3 ms, twice what timers take to be done with a pair
REMEDIES = {
    errno.EPERM: "Run it as root",
    errno.EACCES: "Run it as root",
    errno.EAFNOSUPPORT: "Use a kernel with CONFIG_XDP_SOCKETS",
    errno.EOPNOTSUPP: "Use a kernel with CONFIG_VETH",
    errno.EINVAL: "Use a newer kernel, Linux 5.18 or later",
}
T = TypeVar("T")
ROOT = Path("/")


def refusal(where: str, wrong: str, error: OSError, besides: str = "") -> HostError:
    """What the host refuses, and what would help."""
    remedy = REMEDIES.get(error.errno or 0, "Free what the kernel wants")
    return HostError(where, f"{wrong}: {error.strerror or error}", f"{remedy}{besides}")


def a_program(name: str, verdict: int, index: int = 0) -> Program:
    """Frames go to a device, or meet one verdict."""
    code = Code()
    code.let(R0, "=", verdict)
    if index:
        code.let(R1, "=", index)
        code.let(R2, "=", 0)
        code.call(bpf.BPF_FUNC_redirect)
    code.exit()
    return Program(bpf.BPF_PROG_TYPE_XDP, name, code)


class Wire:
    """Two ends in a namespace, `near` and `far` their names, and what sends frames into the far one."""

    def __init__(self, apart: Apart, number: int = 0) -> None:
        self.apart, self.number = apart, number
        with ExitStack() as stack:
            self.pair = stack.enter_context(closing(Pair(apart, number, USUAL_MTU)))
            self.generator = stack.enter_context(a_program("generator", bpf.XDP_PASS, self.pair.far_index))
            holder = stack.enter_context(closing(Pair(apart, number + HOLDERS, USUAL_MTU)))
            held = apart.call(lambda: Link(self.generator, holder.index, flags=bpf.XDP_FLAGS_DRV_MODE))
            stack.enter_context(held)
            self._stack = stack.pop_all()

    @property
    def near(self) -> str:
        return self.pair.name

    @property
    def far(self) -> str:
        return FAR.format(self.number)

    def call(self, function: Callable[[], T]) -> T:
        """What a function gives there: sockets and processes that it makes stay there."""
        return self.apart.call(function)

    def send(self, frame: bytes, count: int, batch: int = BATCH) -> int:
        """So many frames, `batch` at once, and until no timer has any of them; ns of this thread. To be called there."""
        given = np.frombuffer(frame, np.uint8)
        asked = attribute(
            bpf.test_run,
            prog_fd=self.generator.fd,
            data_size_in=len(frame),
            data_in=given.ctypes.data,
            repeat=count,
            flags=bpf.BPF_F_TEST_XDP_LIVE_FRAMES,
            batch_size=batch,
        )
        began = time.thread_time_ns()
        linux.bpf(bpf.BPF_PROG_TEST_RUN, asked)
        hashlib.pbkdf2_hmac("sha256", b"", b"", SETTLING)
        return time.thread_time_ns() - began

    def drop(self) -> Program:
        """Frames end at the near end from now on, as long as the wire is there; the program that does it."""
        program = self._stack.enter_context(a_program("drop", bpf.XDP_DROP))
        self._stack.enter_context(
            self.call(lambda: Link(program, self.pair.index, flags=bpf.XDP_FLAGS_DRV_MODE))
        )
        return program

    def close(self) -> None:
        """Take it away. It may be called again."""
        self._stack.close()


@contextmanager
def wire() -> Iterator[Wire]:
    """One in a namespace of its own."""
    with closing(Apart()) as apart, closing(Wire(apart)) as one:
        yield one


def counts_apart() -> bool:
    """Whether the kernel says that what softirqs do is in no thread's time; False where it does not tell."""
    if "tsc=noirqtime" in (ROOT / "proc/cmdline").read_text():
        return False
    for path in (ROOT / "proc/config.gz", ROOT / f"boot/config-{platform.release()}"):
        with suppress(OSError):
            content = path.read_bytes()
            return b"CONFIG_IRQ_TIME_ACCOUNTING=y" in (
                gzip.decompress(content) if path.suffix == ".gz" else content
            )
    return False


def a_frame(to: str, source: str, size: int) -> bytes:
    """A frame of so many bytes, of a type for local experiments."""
    ends = b"".join(mac_number(mac).to_bytes(6, "little") for mac in (to, source))
    return (ends + LOCAL_TYPE).ljust(size, b"\x5a")
