# SPDX-License-Identifier: Apache-2.0
"""What changes under load do to those who are there: filters, VMs, and receive queues that move.

    numbered frames (numbered.py) ─► engine in this process ─► guests that are followed
                                          ▲
                                     the change, in the engine's own loop, on the guests' processor

Every run is checked against the source's cursor when the source has stopped. One in which a frame was lost, came twice, at
the wrong guest or out of order has no figure, whatever the change took; nor has one whose guest itself was too slow.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.core import mac
from bench.delivery import RefusedError
from bench.numbered import BUFFERS, LOOK_NS, NUMBERS, Followers, Verdict, addresses, source
from bench.stats import Figure
from bench.systems import ENGINE_CPU, GUEST_CPU
from tests.engine.running import Running
from vmq.affinity import on_processor
from vmq.config import Vm as VmConfig
from vmq.contract import CONFIG
from vmq.engine.queues import address_filter

UPLINK = "source"
STANDING = 1000  # filters that are there while others change
CHANGE_SECONDS, BATCH = 1.0, 20
SELDOM_NS = 1_000_000  # between two looks where no gap is looked for: control has the processor to itself
MOVES, MOVE_PAUSE_SECONDS = 100, 0.002
CROWDS = (4, 64, 256)  # VMs
PAIRS = 16
LEAST_SECONDS = 0.1  # of a span in which the longest gap is looked for
DRAIN_SECONDS, ARRIVE_SECONDS = 0.05, 1.0


@dataclass
class Load:
    """A running engine whose guests get numbered frames."""

    running: Running
    vms: dict[str, VmConfig]
    followers: Followers

    def configure(self, vms: dict[str, VmConfig]) -> None:
        """These VMs, on the same uplink."""
        self.running.configure(self.running.engine.config.uplinks, **vms)

    def pause(self, paused: bool) -> None:
        """Let the source stop or go on."""

        def change() -> None:
            self.running.engine.paused = paused
            self.running.engine.publish()

        self.running.do(change)
        time.sleep(DRAIN_SECONDS)

    def end(self) -> Verdict:
        """Stop the source; what became of its frames. RefusedError if it is not what must become of all of them."""
        self.pause(True)
        lane = self.running.engine.segment.rows["lane_state"][0]
        sent = int(lane["lap"]) * NUMBERS + int(lane["cursor"])
        deadline = time.monotonic() + ARRIVE_SECONDS
        while self.followers.frames < sent and time.monotonic() < deadline:
            time.sleep(DRAIN_SECONDS)
        drops = {row["vm"]: row["drops"] for row in self.running.show("queues") if row["drops"]}
        if any("to_guest_no_buffer" in one for one in drops.values()):
            raise RefusedError(f"a guest was too slow: {drops}")
        verdict = self.followers.verdict(sent)
        if not sent or not verdict.perfect:
            drops |= {row["name"]: row["drops"] for row in self.running.show("uplinks") if row["drops"]}
            raise RefusedError(f"of {sent} frames: {faults(verdict)}, dropped by name: {drops}")
        return verdict

    def gap(self, what: Callable[[], None], least: float = LEAST_SECONDS) -> tuple[float, float]:
        """The longest gap at a guest while something is done, µs, and how long that took, ms."""
        self.followers.begin()
        began = time.perf_counter()
        what()
        taken = time.perf_counter() - began
        time.sleep(max(least - taken, 0))
        return self.followers.longest(), taken * 1000


def port(folder: Path, number: int, pairs: int = 1) -> VmConfig:
    """VM `number`, with the address of that number."""
    (address,) = addresses(number + 1)[number:]
    socket = str(folder / f"v{number}.sock")
    return VmConfig(socket=socket, mac=(address,), uplink=UPLINK, queue_pairs=pairs)


@contextlib.contextmanager
def engine(cpus: tuple[int, ...] = (ENGINE_CPU,)) -> Iterator[Running]:
    """An engine on these processors; control runs where the guests do."""
    with (
        tempfile.TemporaryDirectory(prefix="vmq-bench-") as name,
        on_processor(GUEST_CPU),
        Running(Path(name), cpus) as running,
    ):
        try:
            yield running
        finally:
            running.configure()


@contextlib.contextmanager
def load(
    vms: int, may: list[list[int]], cpus: tuple[int, ...] = (ENGINE_CPU,), look_ns: int = LOOK_NS
) -> Iterator[Load]:
    """So many VMs, all with a guest; the first of them are followed (`may`). The source waits for `pause`."""
    streams = 1 + max(number for numbers in may for number in numbers)
    with engine(cpus) as running, contextlib.ExitStack() as stack:
        ports = {f"v{number}": port(running.folder, number) for number in range(vms)}
        running.engine.paused = True
        running.configure({UPLINK: source(running.folder, streams)}, **ports)
        guests = []
        for number, name in enumerate(ports):
            size, bytes_ = (BUFFERS, 256) if number < len(may) else (64, 2048)
            guest = running.guest(name, size=size, buffer_bytes=bytes_, room=1 << 16)
            guests.append(stack.enter_context(guest))
        followers = stack.enter_context(Followers(guests[: len(may)], may, streams, look_ns))
        yield Load(running, ports, followers)


def spread(values: list[dict[str, float]]) -> dict[str, Figure]:
    """A figure of each thing that every run has."""
    return {name: Figure.of([run[name] for run in values]) for name in values[0]}


def faults(verdict: Verdict) -> dict[str, float]:
    """What is 0 in every run that has figures, and is told since it was looked for."""
    return {
        "frames lost": verdict.lost,
        "frames doubled": verdict.doubled,
        "frames at the wrong guest": verdict.strays,
        "frames out of order": verdict.overtaken,
    }


# --- filters -------------------------------------------------------------------------------------------------


def filter_changes(runs: int) -> dict[str, Figure]:
    """Filters set, moved and cleared as fast as control can, one of them between two guests that receive by it."""
    return spread([change_filters() for _ in range(runs)])


def change_filters() -> dict[str, float]:
    """Addresses 0 and 1 are those of two guests; 2 goes back and forth between them, and either may get it."""
    with load(2, [[0, 2], [1, 2]], look_ns=SELDOM_NS) as one:
        steps = one.running.do(changer, one.running)
        one.pause(False)
        before, began, changes = one.followers.frames, time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < CHANGE_SECONDS:
            one.running.do(lambda: [next(steps) for _ in range(BATCH)])
            changes += BATCH
        frames = one.followers.frames - before
        verdict = one.end()
    return {
        "changes a second": changes / passed,
        "frames a second meanwhile": frames / passed,
        **faults(verdict),
    }


def changer(running: Running) -> Iterator[None]:
    """Sets a filter, moves it, moves the one that frames come by, clears the first; for ever."""
    contract = running.engine.contracts[UPLINK]
    here, there = (vm.queue_id for vm in running.engine.vms.values())

    def a_filter(number: int) -> int:
        return contract.set_filter(CONFIG, here, address_filter(mac(number), None))

    travels = a_filter(2)
    for number in range(STANDING):
        a_filter(3 + number)

    def steps() -> Iterator[None]:
        number = 3 + STANDING
        while True:
            for goal in (there, here):
                new = a_filter(number)
                yield
                contract.move_filter(CONFIG, new, there)
                yield
                contract.move_filter(CONFIG, travels, goal)
                yield
                contract.clear_filter(CONFIG, new)
                yield
                number += 1

    return steps()


# --- VMs -----------------------------------------------------------------------------------------------------


def neighbours(vms: int, runs: int) -> dict[str, Figure]:
    """What a guest among so many VMs notices while one more VM is added."""
    found = []
    with load(vms, [[0]]) as one:
        one.pause(False)
        more = one.vms | {"more": port(one.running.folder, vms)}
        for _ in range(runs):
            stopped, taken = one.gap(partial(one.configure, more))
            quiet, _ = one.gap(partial(time.sleep, taken / 1000))
            one.configure(one.vms)
            found.append(
                {
                    "µs, longest gap at a neighbour": stopped,
                    "µs, longest gap without a change": quiet,
                    "ms, the change": taken,
                }
            )
        verdict = one.end()
    return spread(found) | spread([faults(verdict)])


def publications(vms: int, runs: int) -> dict[str, Figure]:
    """ms of one publication, with so many VMs that listen."""
    figures = {}
    for pairs in (1, PAIRS):
        with engine() as running:
            ports = {f"v{number}": port(running.folder, number, pairs) for number in range(vms)}
            running.configure({UPLINK: source(running.folder, 1)}, **ports)
            times = [running.do(timed, running.engine.publish) for _ in range(5 * runs)]
        figures[f"ms, {vms} VMs of {pairs} queue pairs"] = Figure.of(times)
    return figures


def timed(what: Callable[[], object]) -> float:
    """ms."""
    began = time.perf_counter()
    what()
    return (time.perf_counter() - began) * 1000


# --- moves ---------------------------------------------------------------------------------------------------


def moves(runs: int) -> dict[str, Figure]:
    """A receive queue that goes between two processors while its guest receives."""
    return spread([move() for _ in range(runs)])


def move() -> dict[str, float]:
    """The guest of address 0 moves, that of address 1 does not."""
    cpus = (ENGINE_CPU, GUEST_CPU)
    with load(2, [[0], [1]], cpus) as one:
        one.pause(False)
        contract, vm = one.running.engine.contracts[UPLINK], one.running.engine.vms["v0"]
        times = []

        def go() -> None:
            for turn in range(MOVES):
                goal = {"processor": cpus[(turn + 1) % 2]}
                times.append(
                    one.running.do(timed, partial(contract.set_parameters, CONFIG, vm.queue_id, goal))
                )
                time.sleep(MOVE_PAUSE_SECONDS)

        stopped, taken = one.gap(go)
        quiet, _ = one.gap(partial(time.sleep, taken / 1000))
        verdict = one.end()
    return {
        "ms, a move": sorted(times)[MOVES // 2],
        "ms, the slowest move": max(times),
        "µs, longest gap at a guest": stopped,
        "µs, longest gap without a move": quiet,
        **faults(verdict),
    }


ROWS: dict[str, Callable[[int], dict[str, Figure]]] = {
    "filter-changes": filter_changes,
    **{f"add-vm-{vms}": partial(neighbours, vms) for vms in CROWDS},
    **{f"publish-{vms}": partial(publications, vms) for vms in CROWDS},
    "moves": moves,
}
