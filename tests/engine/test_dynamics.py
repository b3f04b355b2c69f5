# SPDX-License-Identifier: Apache-2.0
"""Processors and receive queues that follow the load of a running engine; no frame is lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.engine.running import (
    NO_FRAMES,
    PATIENCE,
    TWO_CPUS,
    Running,
    exchange,
    frame,
    two_processors,
    until,
)
from vmq.config import Config, Engine
from vmq.dynamic import Balancer, Marks, Scarce, Terms
from vmq.engine import dynamics
from vmq.guest.guest import Guest

LAN = msgspec.structs.replace(NO_FRAMES, queues=1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty looks a second."""
    monkeypatch.setattr(dynamics, "LOOK_SECONDS", 0.05)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path, tuple(TWO_CPUS)) as one:
        yield one


def told(running: Running, kind: str) -> list[dict[str, Any]]:
    return [record for record in running.do(running.engine.journal.since, 0) if record["event"] == kind]


class Numbered:
    """Frames with numbers from one guest to another, and a look at what arrived."""

    def __init__(self, sender: Guest, receiver: Guest) -> None:
        self.sender, self.receiver = sender, receiver
        self.sent, self.got = 0, list[int]()

    def burst(self, count: int = 16) -> None:
        frames = [frame(self.receiver.mac, self.sender.mac, self.sent + n) for n in range(count)]
        self.sender.send(frames)
        self.sent += count
        self.got += [int.from_bytes(data[14:18], "big") for data in self.receiver.receive(count, PATIENCE)]

    def check(self) -> None:
        assert self.got == list(range(self.sent))


@pytest.mark.usefixtures("quick")
def test_a_busy_vm_gets_the_receive_queue_of_an_idle_one_and_gives_it_back(running: Running):
    """By weight times traffic; the idle one is served by the default queue meanwhile, and nobody loses a frame."""
    vms = {name: running.vm(name, place, uplink="lan") for place, name in enumerate("abc", 1)}
    running.configure({"lan": LAN}, **vms)
    fast = Terms(busy_rate=50, looks_busier=3, looks_idle=10, hold=0.3, half_life=0.05)
    running.engine.dynamics._scarce["lan"] = Scarce(fast)
    shared = [running.engine.vms[name].queues[0].shared for name in "abc"]
    assert shared == [False, True, True]
    with running.guest("a") as a, running.guest("b") as b, running.guest("c") as c:
        exchange(a, c)
        traffic = Numbered(c, b)

        def swapped() -> bool:
            traffic.burst()
            return not running.engine.vms["b"].queues[0].shared

        until(swapped, "b has the queue")
        assert running.engine.vms["a"].queues[0].shared
        for _ in range(20):
            traffic.burst()
        traffic.check()
        exchange(a, c)
        until(lambda: not running.engine.vms["a"].queues[0].shared, "a has it back")
        exchange(a, b)
    swaps = told(running, "queue_swap")
    assert [(one["loser"], one["winner"]) for one in swaps[:2]] == [("a", "b"), ("b", "a")]
    assert all(one["why"] for one in swaps)
    assert [row["state"] for row in running.do(running.engine.contracts["lan"].enum_queues, None)].count(
        "Running"
    ) == 2


@two_processors
@pytest.mark.usefixtures("quick")
def test_idle_queues_gather_on_one_processor_and_busy_ones_spread(running: Running):
    """Where placement is dynamic; the reason of the move is that of the VM's place from then on."""
    vms = {name: running.vm(name, place) for place, name in enumerate("ab", 1)}
    running.engine.dynamics._balancer = Balancer(Marks(hold=0.2, half_life=0.05))
    config = Config(engine=Engine(placement="dynamic"), vms=vms)
    running.do(running.engine.reconfigure, config)
    assert {vm.worker for vm in running.engine.vms.values()} == {0, 1}
    with running.guest("a") as a, running.guest("b") as b:
        until(lambda: len({vm.worker for vm in running.engine.vms.values()}) == 1, "gathered")
        exchange(a, b, 20)
        (move,) = told(running, "moved")[:1]
        assert running.show("vms", move["vm"])["why"] == move["why"]
        assert running.show("vms", move["vm"])["processors"] == [move["processor"]]
