# SPDX-License-Identifier: Apache-2.0
"""The contract under real guests: their receive queues move, are taken away and given back while TCP runs; filters steer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.vm.lab.image import NET, Contents
from tests.vm.lab.site import HOST, Site, configuration, mac, site

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.timeout(300)]

SLOW_GUEST = {"to_guest_no_buffer", "to_guest_not_running"}  # it boots, and is emulated: its own doing
CPUS = sorted(os.sched_getaffinity(0))[:2]


def engine_keys(here: Site) -> str:
    processors = ",".join(map(str, CPUS))
    return f'[engine]\napi = "{here.engine.api}"\nprocessors = "{processors}"\n'


def reload(here: Site, keys: dict[str, str], uplink: str = "") -> None:
    """Another configuration, in force when this returns."""
    told = here.engine.ask("events")[-1]["number"]
    text = configuration(keys, None).replace("[vm.a]", f"{uplink}\n[vm.a]", 1)
    here.engine.configure(engine_keys(here) + text)
    here.engine.reload()
    deadline = time.monotonic() + 10
    while True:
        news = [one for one in here.engine.ask("events", since=told) if one["event"] == "configured"]
        if news:
            assert news[-1]["wrong"] is None, news
            return
        assert time.monotonic() < deadline, here.engine.log
        time.sleep(0.02)


@contextmanager
def meanwhile(change: Callable[[int], None]) -> Iterator[list[int]]:
    """Something happens again and again."""
    stop, turns, wrong = threading.Event(), [0], list[BaseException]()

    def work() -> None:
        try:
            while not stop.wait(0.05):
                change(turns[0])
                turns[0] += 1
        except BaseException as problem:
            wrong.append(problem)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield turns
    finally:
        stop.set()
        worker.join(30)
    assert not wrong, wrong


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    if len(CPUS) < 2:
        pytest.skip("needs two processors")
    with site(tmp_path) as one:
        one.engine.stop()
        one.engine.configure(engine_keys(one) + configuration({}, None))
        one.engine.start()
        one.join()
        yield one


def test_tcp_notices_nothing_of_queues_that_move_and_come_and_go(here: Site) -> None:
    """Both ways, between processors and the default queue, many times: every byte, and no frame is lost on the way there."""

    def change(turn: int) -> None:
        own = f"processor = {CPUS[turn % 2]}" if turn % 3 else "weight = 0"
        reload(here, {"a": own})

    with here.guest("a") as a:
        here.await_ping("a")
        with meanwhile(change) as turns:
            here.download(a, 16)
            here.upload(a, 16)
        assert turns[0] >= 10
        row = here.row("a")
        assert set(row["drops"]) <= SLOW_GUEST
        assert row["connects"] == 1


def test_who_has_no_receive_queue_works_through_the_default_queue(here: Site) -> None:
    """One queue for two guests: the other is told why, and talks all the same."""
    reload(here, {"b": "weight = 10"}, "queues = 1")
    with here.guest("a") as a, here.guest("b") as b:
        here.await_ping("a")
        here.await_ping("b")
        rows = here.engine.show("vms")
        assert [rows[name]["own_queue"] for name in "ab"] == [True, False]
        assert rows["b"]["why"].startswith("default queue: ")
        assert len(rows["b"]["why"]) > len("default queue: ")
        b.run("ping -c 3 -W 2 10.0.0.1")
        here.download(b, 8)
        here.upload(a, 8)
        assert set(here.row("b")["drops"]) <= SLOW_GUEST


def test_a_filter_of_the_command_line_steers_into_the_second_queue_of_a_guest(here: Site) -> None:
    """A guest with two queues: UDP to one port arrives in the second, TCP goes on in the first; moved, and cleared."""

    def vmq(*words: str) -> str:
        argv = [sys.executable, "-m", "vmq", *words, "--api", str(here.engine.api)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout

    def frames() -> list[int]:
        rows = here.engine.show("queues")
        return [rows[f"a/{pair}"]["frames_to_guest"] if f"a/{pair}" in rows else 0 for pair in range(2)]

    image = Contents(NET.modules, ("ethtool",))
    with here.guest("a", here.nic("a", queues=2), image=image, processors=2) as a:
        here.await_ping("a")
        a.run("ethtool -L eth0 combined 2")
        deadline = time.monotonic() + 20
        while here.row("a")["queues_running"] != 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        queue = vmq("queue", "allocate", "--vm", "a", "--name", "dns", "--uplink", "lan", "--json")
        number = next(int(word) for word in queue.replace(",", " ").split() if word.isdigit())
        vmq("filter", "set", str(number), f"mac_destination=={mac('a')}", "udp_destination==5353", "--untagged-or-zero",
            "--priority", "1", "--uplink", "lan")  # fmt: skip
        before = frames()
        send = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        send += "for port in [5353] * 20 + [5354] * 10: s.sendto(b'x' * 64, ('10.0.0.1', port))\n"
        here.host.run(sys.executable, "-c", send)
        deadline = time.monotonic() + 10
        while frames()[1] - before[1] < 20:
            assert time.monotonic() < deadline, (before, frames())
            time.sleep(0.05)
        assert frames()[1] - before[1] == 20
        assert frames()[0] - before[0] >= 10
        assert "dns" in vmq("queue", "list", "--uplink", "lan")
        here.download(a, 4)


def test_doctor_proves_with_the_traffic_of_a_guest(here: Site) -> None:
    """Between a busy guest and the host: both ways are printed, and nothing is lost by it."""
    with here.guest("a") as a:
        here.await_ping("a")
        a.run(f"ping -f -s 64 -c 400000 -q {HOST} >/dev/null 2>&1 &")
        argv = [
            sys.executable,
            "-m",
            "vmq",
            "doctor",
            "--prove",
            "a",
            "--json",
            "--api",
            str(here.engine.api),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        a.run("killall ping || true")
        assert done.returncode in (0, 1), done.stderr
        proof: dict[str, Any] = json.loads(done.stdout)
        assert proof["done"] == proof["wanted"] == 32
        assert proof["verdict"]["answer"] in {"not slower", "slower", "cannot tell"}
        assert set(here.row("a")["drops"]) <= SLOW_GUEST
        assert here.row("a")["own_queue"] is True
