# SPDX-License-Identifier: Apache-2.0
"""A link keeps a program on a device of a namespace of the test's own, and nothing keeps it longer."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.lab.netns import Namespace
from vmq.abi import bpf
from vmq.bpf.assembler import R0, Code
from vmq.bpf.link import Link
from vmq.bpf.program import Program
from vmq.uplink import link as devices

pytestmark = pytest.mark.root
ROOT = Path(__file__).resolve().parents[2]


def program(verdict: int) -> Program:
    code = Code()
    code.let(R0, "=", verdict)
    code.exit()
    return Program(bpf.BPF_PROG_TYPE_XDP, "test", code)


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace("host") as host, Namespace("peer") as peer:
        host.veth("v0", peer, "v1")
        yield host


def attached(host: Namespace) -> int | None:
    """The number of the program on v0."""
    (shown,) = json.loads(host.run("ip", "-json", "link", "show", "v0"))
    return shown.get("xdp", {}).get("prog", {}).get("id")


def linked(host: Namespace, one: Program, flags: int = bpf.XDP_FLAGS_DRV_MODE) -> Link:
    return host.call(lambda: Link(one, devices.index_of("v0"), flags=flags))


def test_a_program_is_there_until_its_link_is_closed(host: Namespace):
    with program(bpf.XDP_PASS) as one:
        with linked(host, one):
            assert attached(host) is not None
        assert attached(host) is None


@pytest.mark.parametrize("flags", [bpf.XDP_FLAGS_DRV_MODE, bpf.XDP_FLAGS_SKB_MODE])
def test_nobody_else_takes_its_place(host: Namespace, flags: int):
    with program(bpf.XDP_PASS) as one, linked(host, one, flags):
        with pytest.raises(OSError) as caught:
            linked(host, one, flags)
        assert caught.value.errno == errno.EBUSY


KEEPING = """
import signal, socket
from tests.bpf.test_link import program
from vmq.abi import bpf
from vmq.bpf.link import Link
kept = Link(program(bpf.XDP_DROP), socket.if_nametoindex("v0"), flags=bpf.XDP_FLAGS_DRV_MODE)
print(kept.fd, flush=True)
signal.pause()
"""


def test_a_process_that_is_killed_leaves_no_program(host: Namespace):
    """SIGKILL: no line of ours runs any more."""
    keeper = subprocess.Popen(
        host.command([sys.executable, "-c", KEEPING]),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with keeper:
        assert keeper.stdout is not None
        assert int(keeper.stdout.readline()) >= 0
        assert attached(host) is not None
        keeper.kill()
    assert attached(host) is None
