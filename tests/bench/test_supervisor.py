# SPDX-License-Identifier: Apache-2.0
"""Whatever a measurement leaves, however it ends, its supervisor cleans up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dpdk.hugepages import POOL
from tests.engine.running import until

SUPERVISED = (
    "import sys; from bench import supervisor; sys.exit(supervisor.run(sys.argv[1:], patience=1.0, end=0.3))"
)
# A program with a child, and a daemon in a session of its own that ignores SIGTERM.
CARELESS = """
import os, signal, sys, tempfile, time
def last():
    os.environ["PLACE"] = "x"
    time.sleep(600)
if os.fork() == 0:
    last()
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    last()
signal.signal(signal.SIGTERM, {handler})
made = tempfile.mkdtemp()
{more}
print(made, flush=True)
{end}
"""
TIMELY, DEAF = "lambda *_: sys.exit(7)", "signal.SIG_IGN"


def start(handler: str = TIMELY, end: str = "time.sleep(600)", more: str = "") -> subprocess.Popen[str]:
    program = CARELESS.format(handler=handler, end=end, more=more)
    environment = os.environ | {"VMQ_TEST_MARK": f"{os.getpid()}-supervised"}
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, sys.executable, "-c", program],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def marked() -> list[int]:
    """Processes that the supervisor or its program started, themselves included."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"VMQ_TEST_MARK={os.getpid()}-supervised".encode() in place.read_bytes():
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


def ended(process: subprocess.Popen[str], tell: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Wait until it has made its folder, tell it, and wait for its end: exit code, and what it said. Nothing is left."""
    assert process.stdout is not None
    made = Path(process.stdout.readline().strip())
    tell()
    _, said = process.communicate(timeout=60)
    assert not made.parent.exists()
    assert marked() == []
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_after_a_signal_no_process_and_no_folder_is_left(number: signal.Signals) -> None:
    """A daemon that ignores SIGTERM, neither."""
    process = start()
    code, said = ended(process, lambda: process.send_signal(number))
    assert code == 128 + number
    assert "cleaned up after it: process" in said


def test_more_signals_do_not_disturb_it() -> None:
    process = start(DEAF)

    def twice() -> None:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)

    assert ended(process, twice)[0] == 128 + signal.SIGINT


def test_a_program_that_ends_by_itself_gives_its_exit_code() -> None:
    assert ended(start(end="sys.exit(3)"))[0] == 3
    assert ended(start(end="os.kill(os.getpid(), signal.SIGKILL)"))[0] == 128 + signal.SIGKILL


def test_the_program_ends_when_the_supervisor_is_killed() -> None:
    """What the program left then stays: there is nobody to look after it. So the test does."""
    process = start()
    assert process.stdout is not None
    made = Path(process.stdout.readline().strip())
    program = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    process.kill()
    until(lambda: program not in marked(), "the program ends")
    for pid in marked():
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    until(lambda: marked() == [])
    made.rmdir()
    made.parent.rmdir()


@pytest.mark.root
def test_mounts_namespaces_and_hugepages_go_too() -> None:
    pages = int((POOL / "nr_hugepages").read_text()) if POOL.exists() else 0
    more = f"""
import subprocess
subprocess.run(["ip", "netns", "add", f"vmq-{{os.getpid()}}-0-left"], check=True)
os.mkdir(made + "/huge")
subprocess.run(["mount", "-t", "tmpfs", "none", made + "/huge"], check=True)
if {POOL.exists()}:
    open("{POOL}/nr_hugepages", "w").write("{pages + 2}")
"""
    process = start(DEAF, more=more)
    code, said = ended(process, lambda: process.send_signal(signal.SIGTERM))

    assert code == 128 + signal.SIGTERM
    assert "-0-left" in said
    assert "/huge" in said
    assert not any("-0-left" in one.name for one in Path("/run/netns").iterdir())
    assert "/huge" not in Path("/proc/self/mounts").read_text().replace("/dev/huge", "")
    assert not POOL.exists() or int((POOL / "nr_hugepages").read_text()) <= pages
