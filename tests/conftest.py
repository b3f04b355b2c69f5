# SPDX-License-Identifier: Apache-2.0
"""Which tests run here, that none is passed over in silence, and that no process is left behind.

A test says what it needs by a marker; one that cannot run here is skipped, and the summary says why. Where every
test that can run must run (CI), VMQ_NO_SKIP=1 turns each other skip into a failure: only a reason of `cannot_run`
that holds on this machine is believed. A skip inside a test that is not about the machine is a failure there too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")

# Durations on a shared machine say nothing about a property; CI repeats the same examples.
hypothesis.settings.register_profile(
    "vmq",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("vmq")


def _has_af_xdp() -> bool:
    try:
        socket.socket(44, socket.SOCK_RAW).close()  # AF_XDP has no name in the standard library
    except OSError:
        return False
    return True


def cannot_run() -> dict[str, bool]:
    """Reason of a skip: whether it holds here. A marker's reason begins with the marker."""
    return {
        "root: needs root": os.geteuid() != 0,
        "compiled: has no meaning in interpreted code": INTERPRETED,
        "interpreted: has no meaning in compiled code": not INTERPRETED,
        "needs a C compiler": shutil.which("cc") is None,
        "needs KVM": not os.access("/dev/kvm", os.R_OK | os.W_OK),
        "needs TUN": not Path("/dev/net/tun").exists(),
        "needs AF_XDP": not _has_af_xdp(),
        "needs hugepages": not Path("/sys/kernel/mm/hugepages/hugepages-2048kB").exists(),
        "needs VLAN devices": not Path("/proc/net/vlan").exists(),
        "needs two processors": len(os.sched_getaffinity(0)) < 2,
    }


REASONS_HERE = frozenset(reason for reason, holds in cannot_run().items() if holds)


def pytest_configure() -> None:
    """A shell lets what it starts in the background ignore interrupts, nohup hang-ups; so would all that tests start."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for reason in REASONS_HERE:
            if item.get_closest_marker(reason.split(":")[0]):
                item.add_marker(pytest.mark.skip(reason=reason))


def refuse_skip(report: Report) -> Report:
    """The report, failed if it is a skip that this machine does not explain."""
    if os.environ.get("VMQ_NO_SKIP") != "1" or not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if reason.removeprefix("Skipped: ") not in REASONS_HERE:
        report.outcome = "failed"
        report.longrepr = f"skipped, and VMQ_NO_SKIP=1 allows only what cannot run here: {reason}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return refuse_skip((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return refuse_skip((yield))


def children() -> dict[int, str]:
    """Our living child processes: command line by id. Python's own helpers end with us."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        listed = ""
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            listed = (task / "children").read_text()
        for pid in map(int, listed.split()):
            with contextlib.suppress(OSError):
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
                if state != "Z" and "multiprocessing." not in command:
                    found[pid] = command
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A process that a test started and forgot is ended, by its id, and fails the run."""
    yield
    left = children()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not left, f"processes left behind by tests: {left}"
