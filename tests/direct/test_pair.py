# SPDX-License-Identifier: Apache-2.0
"""Veth pairs in a namespace without a name: what crosses them, what they are silent about, and that nobody else sees them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dataplane.harness_wire import plain
from tests.vm.lab.netns import Namespace
from vmq.abi.linux import SOL_PACKET
from vmq.direct.pair import Apart, Pair
from vmq.uplink import link

pytestmark = pytest.mark.root
PATIENCE = 20
PACKET_QDISC_BYPASS = 20


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace("host") as made:
        yield made


@pytest.fixture
def apart() -> Iterator[Apart]:
    made = Apart()
    yield made
    made.close()
    made.close()


def raw(device: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.bind((device, 3))
    made.settimeout(PATIENCE)
    return made


def witness(host: Namespace, process: int, descriptor: int) -> None:
    """A device of the host whose other end is in a namespace, and goes with it."""
    host.run(
        "ip",
        "link",
        "add",
        "witness",
        "type",
        "veth",
        "peer",
        "name",
        "other",
        "netns",
        f"/proc/{process}/fd/{descriptor}",
    )


def gone(host: Namespace, name: str) -> bool:
    deadline = time.monotonic() + PATIENCE
    while name in host.run("ip", "-brief", "link"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_what_is_sent_into_the_near_end_comes_out_at_the_far_one_and_the_host_sees_neither(
    host: Namespace, apart: Apart
) -> None:
    before = host.run("ip", "-brief", "link")
    pair = host.call(lambda: Pair(apart, 3, 1500))
    with apart.call(lambda: raw("near3")) as near, apart.call(lambda: raw("far3")) as far:
        for number in range(50):
            near.send(plain(number, 1514))
        assert [far.recv(2000) for _ in range(50)] == [plain(number, 1514) for number in range(50)]
    assert apart.call(lambda: (link.index_of("near3"), link.index_of("far3"))) == (pair.index, pair.far_index)
    assert host.run("ip", "-brief", "link") == before
    pair.close()
    pair.close()
    assert apart.call(lambda: (link.index_of("near3"), link.index_of("far3"))) == (0, 0)


def test_neither_end_has_an_address_or_says_anything(apart: Apart) -> None:
    pair = Pair(apart, 0, 1400)
    for end in apart.call(lambda: [link.describe(index) for index in (pair.index, pair.far_index)]):
        assert end is not None
        assert (end.up, end.mtu, end.virtual) == (True, 1400, "veth")
    assert apart.call(lambda: Path("/proc/thread-self/net/if_inet6").read_text()) == ""
    for made in (apart.call(lambda: raw("near0")), apart.call(lambda: raw("far0"))):
        with made:
            made.settimeout(0.3)
            with pytest.raises(TimeoutError):
                made.recv(100)


def test_frames_that_find_no_room_at_the_far_end_are_counted(apart: Apart) -> None:
    """Whoever sent them: here a far end that is down takes none."""
    pair = Pair(apart, 0, 1500)
    assert pair.refused(apart.devices()) == 0
    with apart.call(lambda: raw("near0")) as near:
        apart.call(lambda: link.set_down("far0"))
        near.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)  # a queue that knows of it would drop them first
        for _ in range(3):
            with contextlib.suppress(OSError):
                near.send(plain(1))
    assert pair.refused(apart.devices()) == 3
    pair.close()
    assert pair.refused(apart.devices()) == 0


def test_with_its_namespace_all_pairs_go(host: Namespace) -> None:
    apart = Apart()
    for number in range(3):
        Pair(apart, number, 1500)
    witness(host, os.getpid(), apart.fd)
    apart.close()
    assert gone(host, "witness")


def test_a_name_that_is_taken_is_refused_and_the_first_stays(apart: Apart) -> None:
    first = Pair(apart, 1, 1500)
    with pytest.raises(FileExistsError):
        Pair(apart, 1, 1500)
    assert apart.call(lambda: link.index_of("near1")) == first.index


KILLED = """
import time
from vmq.abi.linux import SOL_PACKET
from vmq.direct.pair import Apart, Pair
apart = Apart()
pair = Pair(apart, 0, 1500)
print(apart.fd, flush=True)
time.sleep(60)
"""


def test_a_process_that_is_killed_leaves_no_pair(host: Namespace) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
        text=True,
    )
    try:
        assert process.stdout is not None
        witness(host, process.pid, int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        assert gone(host, "witness")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
