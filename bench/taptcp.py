# SPDX-License-Identifier: Apache-2.0
"""TCP between two namespaces, by a TAP uplink of the engine, and by a Linux bridge and TAPs, in turn.

    vmq      iperf3 ─ TAP of the engine ─► engine ─► guest ─ its TAP ─ iperf3        switched, and in direct placement
    bridge   iperf3 ─ veth ─ Linux bridge ─ TAP ─► a program that reads and writes ─ its TAP ─ iperf3

The engine has its processor; everything else is on the other one. The guest is tapguest.py, and so is the program that stands
between the bridge and the other TAP, where no VM is involved: its time for a byte is what reading and writing TAPs take.
The machine's time has kernels, programs and iperf3 in it. Frames of 1514 bytes, no offloads to TAPs on either side.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import quiet
from bench.delivery import RefusedError
from bench.quiet import say
from bench.stats import Figure, Measure
from bench.systems import ENGINE_CPU, GUEST_CPU, mac
from tests.dpdk.lab import until
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.netns import Namespace
from tests.vm.test_direct import is_placed
from vmq.speed.stand import process_ns

SECONDS, READY_SECONDS = 2, 100.0
HERE, THERE = "10.77.0.1", "10.77.0.2"
UPLINK, INSIDE, BETWEEN = "vmqtap0", "inside", "between"
DIRECTIONS = {"to": (), "from": ("-R",)}  # the guest
TICKS = os.sysconf("SC_CLK_TCK")  # a second, of /proc/stat


@dataclass
class Way:
    """Two namespaces that reach each other, and the process that stands between."""

    here: Namespace
    there: Namespace
    pid: int


@contextlib.contextmanager
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Two, whose links will say nothing of their own."""
    with Namespace("here") as here, Namespace("there") as there:
        for one in (here, there):
            for scope in ("default", "all"):
                one.sysctl(f"net/ipv6/conf/{scope}/disable_ipv6", 1)
        yield here, there


def between(namespace: Namespace, folder: Path, *arguments: str) -> int:
    """Start tapguest.py; its process id when it is ready."""
    log = folder / "tapguest.log"
    argv = ("taskset", "-c", str(GUEST_CPU), sys.executable, "-m", "bench.tapguest", INSIDE, *arguments)
    process = namespace.popen(*argv, log=log)

    def ready() -> bool:
        if process.poll() is not None:
            raise RefusedError(f"tapguest ended:\n{log.read_text(errors='replace')}")
        return "ready" in log.read_text(errors="replace")

    until(ready, "tapguest is ready", READY_SECONDS)
    return process.pid


@contextlib.contextmanager
def vmq(placement: str) -> Iterator[Way]:
    """The engine's TAP here, the guest's there."""
    with tempfile.TemporaryDirectory(prefix="vmq-bench-") as name:
        folder = Path(name)
        text = f'[engine]\napi = "{folder}/api.sock"\nprocessors = "{ENGINE_CPU}"\n'
        text += f'[uplink.lan]\nkind = "tap"\ndevice = "{UPLINK}"\n'
        text += f'[vm.v]\nsocket = "{folder}/v.sock"\nmac = "{mac(0)}"\nuplink = "lan"\nqueue_pairs = 1\n'
        text += f'placement = "{placement}"\n'
        with namespaces() as (here, there), EngineProcess(folder, text, here) as engine:
            between(there, folder, "--socket", str(folder / "v.sock"), "--mac", mac(0))
            there.run("ip", "link", "set", INSIDE, "address", mac(0))
            here.address(UPLINK, f"{HERE}/24")
            there.address(INSIDE, f"{THERE}/24")
            until(lambda: is_placed(engine, "v", placement), f"{placement} placement")
            yield Way(here, there, engine.pid)


@contextlib.contextmanager
def bridge() -> Iterator[Way]:
    """A veth here, a bridge in the middle, a TAP there."""
    with tempfile.TemporaryDirectory(prefix="vmq-bench-") as name:
        folder = Path(name)
        with namespaces() as (here, there), Namespace("middle") as middle:
            pid = between(there, folder, "--tap", BETWEEN)
            there.move(BETWEEN, middle)
            middle.run("ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0")
            here.veth("up0", middle, "up0")
            for device in ("up0", BETWEEN):
                middle.run("ip", "link", "set", device, "master", "br0")
                middle.up(device)
            middle.up("br0")
            # As with a TAP, the stack has to finish checksums and segments itself.
            here.run("ethtool", "-K", "up0", "tx", "off", "tso", "off", "gso", "off")
            here.address("up0", f"{HERE}/24")
            there.address(INSIDE, f"{THERE}/24")
            yield Way(here, there, pid)


WAYS: dict[str, tuple[Callable[[], contextlib.AbstractContextManager[Way]], str]] = {
    "vmq": (partial(vmq, "switched"), "the engine's"),
    "vmq, direct": (partial(vmq, "direct"), "the engine's"),
    "bridge": (bridge, "the reader's"),
}


def stream(way: Way, direction: str) -> tuple[float, float, float]:
    """Gbit/s of one TCP stream; ns of the process between and of the machine, for each byte."""
    pinned = ("taskset", "-c", str(GUEST_CPU), "iperf3")
    server = way.there.popen(*pinned, "-s", "-1", "-B", THERE)
    until(lambda: "5201" in way.there.run("ss", "-Hltn", "sport = 5201"), "iperf3 listens")
    spent, (idle, total) = process_ns(way.pid), quiet.read()
    argv = (*pinned, "-J", "-t", str(SECONDS), "-c", THERE, *DIRECTIONS[direction])
    told = json.loads(way.here.run(*argv, timeout=SECONDS + 20))
    idle_then, total_then = quiet.read()
    spent = process_ns(way.pid) - spent
    server.wait(10)
    arrived = told.get("end", {}).get("sum_received", {})
    if not arrived.get("bytes"):
        raise RefusedError(f"no byte arrived: {told.get('error')}")
    busy = (total_then - total - (idle_then - idle)) / TICKS
    count = arrived["bytes"]
    return arrived["bits_per_second"] / 1e9, spent / count, busy / count * 1e9


def tap_tcp(runs: int) -> dict[str, Figure]:
    """Both ways and both directions, in turn."""
    values: dict[str, list[float]] = {}
    for run in range(runs):
        for name, (made, whose) in WAYS.items():
            with made() as way:
                for direction in DIRECTIONS:
                    rate, own, machine = stream(way, direction)
                    found = {"Gbit/s": rate, f"ns a byte, {whose}": own, "ns a byte, the machine's": machine}
                    for what, value in found.items():
                        values.setdefault(f"{name}, {direction} the guest: {what}", []).append(value)
            say(f"tap-tcp: {run + 1}/{runs}, {name} {rate:.2f} Gbit/s")
    return {name: Figure.of(several) for name, several in values.items()}


ROWS: dict[str, Measure] = {"tap-tcp": tap_tcp}
