# SPDX-License-Identifier: Apache-2.0
"""Nothing of a measurement outlives it, however it ends: an interrupt, a signal, a crash, a kill.

    make bench ─► supervisor ─► python -m bench.run … ─► engines, guests, dpdk-testpmd, OVS's daemons
                     │                 its TMPDIR: one folder
                     └─ afterwards: processes, mounts in the folder, the folder, namespaces, hugepages

The program that measures puts everything back itself; the supervisor looks after it. Interrupts of a terminal reach
the supervisor alone, which tells the program once, by SIGTERM, and gives it some time. It adopts whatever loses its
parent (PR_SET_CHILD_SUBREAPER, prctl(2)), daemons too, so that what is left are its own descendants and nobody
else's; it ends them by their ids. If the supervisor itself is killed, the program gets SIGTERM from the kernel
(PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
PATIENCE_SECONDS, END_SECONDS = 60.0, 5.0  # for the program that measures; for what it left
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
NAMESPACES = Path("/run/netns")
_libc = ctypes.CDLL(None, use_errno=True)


def run(argv: Sequence[str], patience: float = PATIENCE_SECONDS, end: float = END_SECONDS) -> int:
    """Run a program and clean up after it; its exit code, 128 + n after signal n."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pages, supervisor = _hugepages(), os.getpid()
    folder = tempfile.mkdtemp(prefix="vmq-bench-")
    told: list[int] = []

    def tell(number: int, _frame: object) -> None:
        """Once, and it is killed if that does not help; later ones are too many."""
        if number == signal.SIGALRM:
            process.kill()
        elif not told:
            told.append(number)
            process.terminate()
            signal.setitimer(signal.ITIMER_REAL, patience)

    process = subprocess.Popen(
        argv,
        env=os.environ | {"TMPDIR": folder},
        start_new_session=True,
        preexec_fn=lambda: _end_with(supervisor),  # noqa: PLW1509 - there is one thread
    )
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                signal.signal(number, tell)
        code = _wait(process)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        left = [*_processes(end), *_mounts(folder), *_namespaces(process.pid), *_pages(pages)]
        shutil.rmtree(folder, ignore_errors=True)
    if left:
        sys.stderr.write(f"bench: cleaned up after it: {', '.join(left)}\n")
    return 128 + told[0] if told else 128 - code if code < 0 else code


def _end_with(supervisor: int) -> None:
    """In the program, before it begins: it ends when the supervisor does."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != supervisor:
        os._exit(1)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Until it has ended. What was adopted is reaped on the way: who waits for a daemon's end looks for its id."""
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        if ended is None or ended.si_pid == process.pid:
            return process.wait()
        os.waitpid(ended.si_pid, 0)


def children() -> list[int]:
    """Processes whose parent we are, by birth or adoption, that still run; those that have ended are reaped."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def _processes(patience: float) -> list[str]:
    """End what is left: as children end, theirs become ours."""
    ended: dict[int, str] = {}
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + patience
        while (left := children()) and time.monotonic() < deadline:
            for pid in left:
                if pid not in ended or number == signal.SIGKILL:
                    ended[pid] = f"process {pid} ({_name(pid)})"
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            time.sleep(0.02)
    return list(ended.values())


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return "gone"


def _mounts(folder: str) -> list[str]:
    """Unmount what is mounted in the folder, the last first."""
    places = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    inside = [place for place in places if place.startswith(f"{folder}/")]
    for place in reversed(inside):
        subprocess.run(["umount", "--lazy", place], check=False, capture_output=True, timeout=30)
    return [f"mount {place}" for place in inside]


def _namespaces(pid: int) -> list[str]:
    """Delete network namespaces that the program made: they have its number in their names."""
    made = sorted(NAMESPACES.glob(f"vmq-{pid}-*")) if NAMESPACES.is_dir() else []
    for place in made:
        subprocess.run(["ip", "netns", "delete", place.name], check=False, capture_output=True, timeout=30)
    return [f"namespace {place.name}" for place in made]


def _hugepages() -> int | None:
    return int(HUGEPAGES.read_text()) if HUGEPAGES.exists() else None


def _pages(before: int | None) -> list[str]:
    """Give back hugepages that were reserved."""
    now = _hugepages()
    if before is None or now is None or now <= before:
        return []
    with contextlib.suppress(OSError):
        HUGEPAGES.write_text(str(before))
    return [f"{now - before} hugepages"]
