# SPDX-License-Identifier: Apache-2.0
"""An AF_XDP socket: rings where the kernel put them, chunks shared out, and everything given back."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from tests.vm.lab.netns import Namespace
from vmq.abi import xdp
from vmq.dataplane import state
from vmq.jit import address_of, at
from vmq.uplink import link, xdp_socket
from vmq.uplink.xdp_socket import CHUNKS, XdpSocket, chunk_for


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace("host") as host:
        host.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        host.up("v0")
        host.up("v1")
        yield host


class Made:
    """Memory for a socket's rows, and sockets."""

    def __init__(self, host: Namespace) -> None:
        self.host = host
        self.row = np.zeros(1, state.xdp_socket)
        self.lists = np.zeros(2 * CHUNKS, np.int64)
        self.spare = self.lists[:CHUNKS]

    def socket(self, queue: int = 0, flags: int = xdp.XDP_COPY, chunk: int = 2048) -> XdpSocket:
        def make() -> XdpSocket:
            index = link.index_of("v0")
            return XdpSocket(index, queue, chunk, flags, self.row[0], address_of(self.lists))

        return self.host.call(make)


@pytest.mark.root
def test_rings_are_where_the_row_says_and_chunks_are_shared_out(host: Namespace):
    made = Made(host)
    with closing(made.socket()) as one:
        row = made.row[0]
        for name in ("receive", "transmit", "fill", "completion"):
            ring = row[name]
            assert ring["size"] == CHUNKS
            produced = CHUNKS if name == "fill" else 0
            assert at(int(ring["producer"]), 1, np.uint32)[0] == produced
            assert at(int(ring["consumer"]), 1, np.uint32)[0] == 0
        filled = at(int(row["fill"]["entries"]), CHUNKS, np.uint64)
        assert sorted([*filled, *made.spare]) == [number * 2048 for number in range(2 * CHUNKS)]
        assert row["spare_count"] == CHUNKS
        assert row["fd"] == one.fileno()
        assert not one.zero_copy()
        assert set(one.statistics().values()) == {0}
        wakeup = at(int(row["transmit"]["flags"]), 1, np.uint32)[0]
        assert wakeup == xdp.XDP_RING_NEED_WAKEUP  # copy mode always wants to be called


@pytest.mark.root
def test_a_queue_that_somebody_has_is_refused_after_a_while(host: Namespace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(xdp_socket, "BUSY_SECONDS", 0.05)
    made, other = Made(host), Made(host)
    before = os.listdir("/proc/self/fd")
    with closing(made.socket()), pytest.raises(OSError) as caught:
        other.socket()
    assert caught.value.errno == errno.EBUSY
    monkeypatch.undo()
    other.socket().close()  # free again, if not at once
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.root
@pytest.mark.parametrize(("wrong", "code"), [
    (lambda made: made.socket(queue=99), errno.EINVAL),
    (lambda made: made.socket(flags=xdp.XDP_ZEROCOPY), errno.EOPNOTSUPP),
    (lambda made: made.socket(chunk=1024), errno.EINVAL),
], ids=["queue", "zero-copy", "chunk"])  # fmt: skip
def test_what_the_kernel_refuses_leaves_nothing(host: Namespace, wrong: Callable[[Made], Any], code: int):
    made = Made(host)
    before = os.listdir("/proc/self/fd"), maps()
    with pytest.raises(OSError) as caught:
        wrong(made)
    assert caught.value.errno == code
    assert (os.listdir("/proc/self/fd"), maps()) == before


def maps() -> int:
    """Mappings of AF_XDP rings in this process."""
    with open("/proc/self/maps") as lines:
        return sum("socket:" in line or "XDP" in line for line in lines)


@pytest.mark.parametrize(
    ("longest", "chunk"), [(60, 2048), (1518, 2048), (1792, 2048), (1793, 4096), (3840, 4096), (3841, None)]
)
def test_a_chunk_has_room_for_a_frame_and_what_the_kernel_puts_before_it(longest: int, chunk: int | None):
    assert chunk_for(longest) == chunk


PINS = """
import socket
from vmq import linux
from vmq.abi import xdp
from vmq.uplink.xdp_socket import register
with socket.socket(xdp.AF_XDP, socket.SOCK_RAW) as one:
    try:
        register(one, linux.map_private(1 << 26), 1 << 26, 2048)
    except OSError as error:
        print(error.strerror)
"""


@pytest.mark.root
def test_memory_that_may_not_be_pinned_is_refused_with_the_limit() -> None:
    limited = ["prlimit", "--memlock=1048576", "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]
    done = subprocess.run(
        [*limited, sys.executable, "-c", PINS], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("64 MiB more are to be pinned, of 1 MiB in all: CAP_IPC_LOCK, LimitMEMLOCK")
