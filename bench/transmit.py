# SPDX-License-Identifier: Apache-2.0
"""What the kernel takes to send a guest's frame: from a socket of the NIC, or from guest memory by way of the VM's pair.

    copy     engine copies ─► its AF_XDP socket of the NIC ─► NIC
    direct   AF_XDP socket on guest memory ─► far end of the pair ─► near end: program that looks once more ─► NIC

Both sockets copy the frame into a buffer of the kernel's, as a guest may change its memory meanwhile. The time is that of
the thread that tells the kernel to send, in which it does all of it, up to the other end of the NIC's wire, where a program drops
the frames. The engine's own copy (docs/nanoseconds.md) is in neither; it is what `direct` would save. The program at the near end
only redirects here: one that checks source and VLAN takes longer.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import time
from collections.abc import Iterator
from functools import partial

import numpy as np

from bench.delivery import RefusedError
from bench.direct import frame
from bench.placement import MTU
from bench.quiet import say
from bench.stats import Figure, Measure
from bench.systems import GUEST_CPU
from tests.dpdk.lab import until
from vmq.abi import bpf, xdp
from vmq.affinity import on_processor
from vmq.bpf.assembler import R1, R2, R3, Code
from vmq.bpf.link import Link
from vmq.bpf.maps import Map, device_map
from vmq.bpf.program import Program
from vmq.dataplane import state
from vmq.direct.pair import Apart, Pair
from vmq.jit import address_of, at
from vmq.speed.wire import Wire, a_program, wire
from vmq.uplink import link
from vmq.uplink.xdp_socket import CHUNKS, LISTS, XdpSocket

BATCH, BATCHES = 64, 200
CHUNK = 2048
CALLS = 1000  # of the kernel, for a batch
SIZES = (64, 1514)


class Sender:
    """An AF_XDP socket that sends one frame from all of its chunks in turn. `index`: its device, here."""

    def __init__(self, index: int) -> None:
        self._row, self._lists = np.zeros(1, state.xdp_socket), np.zeros(LISTS, np.uint8)
        self.row = self._row[0]
        self.socket = XdpSocket(index, 0, CHUNK, xdp.XDP_COPY, self.row, address_of(self._lists))
        self._tell = socket.socket(xdp.AF_XDP, socket.SOCK_RAW, 0, os.dup(self.socket.fileno()))
        self.sent = 0

    def load(self, data: bytes) -> None:
        """The frame that is sent from now on."""
        chunks = at(int(self.row["umem"]) + CHUNKS * CHUNK, CHUNKS * CHUNK, np.uint8).reshape(CHUNKS, CHUNK)
        chunks[:, : len(data)] = np.frombuffer(data, np.uint8)
        entries = at(int(self.row["transmit"]["entries"]), CHUNKS, xdp.desc)
        entries["addr"] = (CHUNKS + np.arange(CHUNKS)) * CHUNK
        entries["len"], entries["options"] = len(data), 0

    def batch(self) -> int:
        """BATCH frames; ns of this thread until the kernel has sent them."""
        self.sent += BATCH
        self._index("transmit", "producer")[0] = self.sent
        taken, began = self._index("transmit", "consumer"), time.thread_time_ns()
        for _ in range(CALLS):
            if int(taken[0]) == self.sent:
                break
            with contextlib.suppress(BlockingIOError):  # it takes some at a time
                self._tell.send(b"", socket.MSG_DONTWAIT)
        spent = time.thread_time_ns() - began
        completed = self._index("completion", "producer")
        until(lambda: int(completed[0]) == self.sent, f"the kernel has sent {self.sent} frames")
        self._index("completion", "consumer")[0] = self.sent
        return spent

    def _index(self, ring: str, name: str) -> np.ndarray:
        return at(int(self.row[ring][name]), 1, np.uint32)

    def close(self) -> None:
        """Give the queue of the device free."""
        self._tell.close()
        self.socket.close()


def _onward(devices: Map) -> Code:
    """Every frame to the one device of a map."""
    code = Code()
    code.load_map(R1, devices)
    code.let(R2, "=", 0)
    code.let(R3, "=", bpf.XDP_DROP)
    code.call(bpf.BPF_FUNC_redirect_map)
    code.exit()
    return code


@contextlib.contextmanager
def senders() -> Iterator[tuple[Wire, dict[str, Sender]]]:
    """Both ways to one NIC, whose other end drops what comes."""
    with contextlib.ExitStack() as stack:
        keep = stack.enter_context
        one = keep(wire())
        apart = keep(contextlib.closing(Apart()))
        pair = keep(contextlib.closing(Pair(apart, 1, MTU)))
        devices = keep(device_map("vmq_out", 1))
        index = one.call(lambda: link.index_of(one.near))
        one.call(lambda: devices.update(bytes(4), index.to_bytes(4, "little")))
        drop, onward = (
            keep(a_program("drop", bpf.XDP_DROP)),
            keep(Program(bpf.BPF_PROG_TYPE_XDP, "out", _onward(devices))),
        )
        keep(one.call(lambda: Link(drop, link.index_of(one.far), flags=bpf.XDP_FLAGS_DRV_MODE)))
        keep(apart.call(lambda: Link(onward, pair.index, flags=bpf.XDP_FLAGS_DRV_MODE)))
        made = {
            "copy": one.call(lambda: Sender(index)),
            "direct": apart.call(lambda: Sender(pair.far_index)),
        }
        for sender in made.values():
            keep(contextlib.closing(sender))
        yield one, made


def arrived(one: Wire) -> int:
    """Frames that the NIC's other end has had: proc(5), /proc/net/dev."""
    return int(one.apart.devices().partition(f"{one.far}:")[2].split()[1])


def transmit(size: int, runs: int) -> dict[str, Figure]:
    """Both ways in turn."""
    values: dict[str, list[float]] = {}
    with senders() as (one, made), on_processor(GUEST_CPU):
        for run in range(runs):
            for way, sender in made.items():
                sender.load(frame(size))
                before = arrived(one)
                spent = statistics.median(sender.batch() for _ in range(BATCHES)) / BATCH
                if arrived(one) - before != BATCH * BATCHES:
                    raise RefusedError(f"{way}: {arrived(one) - before} of {BATCH * BATCHES} frames arrived")
                values.setdefault(f"ns a frame of the kernel, {way}", []).append(spent)
                say(f"direct-transmit-{size}: {run + 1}/{runs}, {way} {spent:.0f} ns a frame")
    return {name: Figure.of(found) for name, found in values.items()}


ROWS: dict[str, Measure] = {f"direct-transmit-{size}": partial(transmit, size) for size in SIZES}
