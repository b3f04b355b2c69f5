# SPDX-License-Identifier: Apache-2.0
"""Frames of a NIC that the host keeps, to one guest, as many as come: vmq in both placements, DPDK's AF_XDP driver to its vhost.

    generator ─► veth ─► AF_XDP ─► vmq, or dpdk-testpmd net_af_xdp ─► net_vhost ─► guest

The forwarder has one processor. Generator and guest share the other, and the kernel brings each frame to a socket or into guest
memory there, too: so this is what such a pair of processors delivers, whichever of them is the slower. The guest comes first
whenever it wants to look. Nothing makes the generator wait: what finds a full ring is dropped.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bench.delivery import MEASURED_SECONDS, WARM_SECONDS, RefusedError, in_turn
from bench.direct import PATIENCE, frame
from bench.quiet import say
from bench.stats import Figure, Measure
from bench.systems import ENGINE_CPU, GUEST_CPU, Served
from tests.dpdk.lab import Testpmd, until
from tests.vm.lab.engine import EngineProcess
from tests.vm.test_direct import is_placed
from vmq.affinity import on_processor
from vmq.guest.driver import USED_PAIR, harvest, submit
from vmq.guest.guest import Guest
from vmq.jit import address_of
from vmq.speed.stand import RING, mac
from vmq.speed.wire import Wire, wire

MANY = 1_000_000  # frames of a call of the generator
# The pages of the generator's frames come back to a pool of so many, as those of a NIC do, whose pool is far larger; those for
# which there is no room are given back to the kernel's heap, which takes longer than all else that is done for a frame here.
AT_ONCE = 192  # the ring of a veth has 256
BATCH = 64  # of the proof
LOOK_SECONDS = 0.0002  # of a ring of 1024: at a few million frames a second there is room left
SIZES = (64, 512, 1514)


@contextlib.contextmanager
def engine(one: Wire, folder: Path, placement: str) -> Iterator[Served]:
    """vmq on the near end."""
    text = f'[engine]\napi = "{folder}/api.sock"\nprocessors = "{ENGINE_CPU}"\n'
    text += f'[uplink.wire]\nkind = "xdp"\ndevice = "{one.near}"\nprepared = true\n'
    text += (
        f'[vm.v]\nsocket = "{folder}/v.sock"\nmac = "{mac(0)}"\nuplink = "wire"\nplacement = "{placement}"\n'
    )
    running = EngineProcess(folder, text)
    with contextlib.ExitStack() as stack:
        stack.push(one.call(running.start))
        yield Served([folder / "v.sock"], False, running.log_file, running)


@contextlib.contextmanager
def testpmd(one: Wire, folder: Path, budget: int) -> Iterator[Served]:
    """DPDK's drivers on the near end; nothing is classified. `budget`: frames of a busy poll of the device, 0: none."""
    devices = [
        f"net_af_xdp0,iface={one.near},start_queue=0,queue_count=1,busy_budget={budget}",
        f"net_vhost0,iface={folder}/v.sock,queues=1",
    ]
    back_end = Testpmd(folder, devices, name="be", cpu=ENGINE_CPU)
    try:
        one.call(back_end.launch)
        back_end.ready().say("start")
        yield Served([folder / "v.sock"], False, back_end.log_file)
    finally:
        back_end.kill()


System = Callable[[Wire, Path], contextlib.AbstractContextManager[Served]]
SYSTEMS: dict[str, System] = {
    "vmq": partial(engine, placement="direct"),
    "vmq, switched": partial(engine, placement="switched"),
    "net_af_xdp": partial(testpmd, budget=64),  # its default
    "net_af_xdp, busy_budget=0": partial(testpmd, budget=0),
}


@contextlib.contextmanager
def flow(one: Wire, data: bytes) -> Iterator[None]:
    """Frames without end, from the processor of the guest."""
    ended = threading.Event()

    def send() -> None:
        with on_processor(GUEST_CPU):
            while not ended.is_set():
                one.send(data, MANY, AT_ONCE)

    thread = threading.Thread(target=one.call, args=(send,))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def first_of_all() -> Iterator[None]:
    """This thread has its processor whenever it wants it."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class Taker:
    """A guest that looks every LOOK_SECONDS, and gives each buffer back as it is described."""

    def __init__(self, guest: Guest) -> None:
        self.queue = guest.virtqueue(to_guest=True)
        self.slots, self.pairs = (np.zeros(size, np.int64) for size in (RING, USED_PAIR * RING))

    def run(self, seconds: float) -> float:
        """Frames a second that arrived."""
        frames, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            taken = harvest(self.queue.row_address, address_of(self.pairs), RING)
            self.slots[:taken] = self.pairs[: USED_PAIR * taken : USED_PAIR]
            submit(self.queue.row_address, address_of(self.slots), taken)
            frames += taken
            time.sleep(LOOK_SECONDS)
        return frames / (time.monotonic() - began)


def once(name: str, size: int) -> float:
    """One run: million frames a second that arrived."""
    data = frame(size)
    with (
        tempfile.TemporaryDirectory(prefix="vmq-bench-") as folder,
        wire() as one,
        SYSTEMS[name](one, Path(folder)) as served,
        Guest(served.sockets[0], mac(0), size=RING, timeout=PATIENCE) as guest,
    ):
        running = served.engine
        if running is not None and name == "vmq":
            until(lambda: is_placed(running, "v", "direct"), "direct placement")
        prove(one, guest, data)
        with flow(one, data), on_processor(GUEST_CPU), first_of_all():
            taker = Taker(guest)
            taker.run(WARM_SECONDS)
            found = taker.run(MEASURED_SECONDS)
        if running is not None:
            check_placed(running, direct=name == "vmq")
        return found / 1e6


def prove(one: Wire, guest: Guest, data: bytes) -> None:
    """The first frames arrive whole."""
    one.call(lambda: one.send(data, BATCH))
    got = guest.receive(BATCH, PATIENCE)
    if got != [data] * BATCH:
        raise RefusedError(f"{len(got)} of {BATCH} frames arrived, or not whole")


def check_placed(running: EngineProcess, *, direct: bool) -> None:
    """All frames were written by whom they were to be written."""
    row = running.show("vms")["v"]
    if row["frames_placed"] != (row["frames_to_guest"] if direct else 0):
        raise RefusedError(f"of {row['frames_to_guest']} frames the kernel placed {row['frames_placed']}")


def xdp(size: int, runs: int) -> dict[str, Figure]:
    """All systems in turn."""
    return in_turn({name: partial(once, name, size) for name in SYSTEMS}, f"xdp-{size}", runs, say)


ROWS: dict[str, Measure] = {f"xdp-{size}": partial(xdp, size) for size in SIZES}
