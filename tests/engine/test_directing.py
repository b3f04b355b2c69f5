# SPDX-License-Identifier: Apache-2.0
"""Which VMs can be direct, by which tier, and how long one rests; and what holds of frames whatever happens in whatever order.

What a tier does: test_pairs.py, test_own_queues.py.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.conftest import INTERPRETED
from tests.engine import test_own_queues, test_pairs
from tests.engine.running import FIRST_CPU, MACS, PATIENCE, Running, frame, gone, until
from vmq.config import AnyUplink, Tap, Xdp
from vmq.dataplane import state
from vmq.direct.costs import Band
from vmq.direct.figures import BUILT_IN
from vmq.engine import directing as module
from vmq.guest.driver import HEADER
from vmq.uplink.tap import TapUplink
from vmq.uplink.xdp import XdpUplink


def test_a_rest_is_forgotten_when_it_was_well_for_long_or_the_vm_is_gone(running: Running) -> None:
    directing, vm = running.engine.directing, SimpleNamespace(name="a")
    pauses = []
    for _ in range(3):
        directing.rest(vm, "a test")  # type: ignore[arg-type]
        pauses.append(directing._rests["a"].pause)
    last = directing._rests["a"]
    directing._rests["a"] = replace(last, until=last.until - 2 * module.REST_MOST)
    directing.rest(vm, "a test")  # type: ignore[arg-type]
    assert [*pauses, directing._rests["a"].pause] == [1, 2, 4, 1]
    running.do(directing.look)
    assert (directing._rests, directing.whys) == ({}, {})


Spoil = tuple[Callable[[Any], None], str]
OF_ALL: list[Spoil] = [
    (lambda vm: setattr(vm.config, "placement", "switched"), "not asked for"),
    (lambda vm: vm.engine.uplinks.clear(), "not of kind xdp or tap"),
    (lambda vm: setattr(vm.queues[0], "shared", True), "no receive queue of its own"),
    (lambda vm: setattr(vm.queues[0], "former", 1), "on its way to another processor"),
    (lambda vm: setattr(vm.observed, "any", True), "captured or measured"),
    (lambda vm: vm.home.effects.entry.tests.append(1), "more than addresses"),
    (lambda vm: setattr(vm, "fault", "broken"), "does not run"),
]
OF_PAIRS: list[Spoil] = [
    (lambda vm: setattr(vm.config, "overload", "hold"), "are to wait"),
    (lambda vm: vm.config.accept.append("unknown"), "frames to other addresses"),
    (lambda vm: setattr(vm, "mtu", 9000), "MTU of 9000"),
    (lambda vm: vm.running.clear(), "must run"),
    (lambda vm: setattr(vm.uplink.steering, "mode", ""), "steers nothing"),
]
OF_OWN_QUEUES: list[Spoil] = [
    (lambda vm: setattr(vm.uplink, "several", False), "one queue only"),
    (lambda vm: setattr(vm.uplink, "shared", True), "somebody else"),
    (lambda vm: vm.running.remove(0), "does not run"),
]
CASES = [(kind, *one) for kind in ("xdp", "tap") for one in OF_ALL]
CASES += [("xdp", *one) for one in OF_PAIRS] + [("tap", *one) for one in OF_OWN_QUEUES]


def port(kind: str) -> Any:
    """A port that has nothing in its way."""
    uplink: Any
    if kind == "xdp":
        uplink = XdpUplink.__new__(XdpUplink)
        uplink.config, uplink.steering = Xdp(device="wire0"), SimpleNamespace(mode="native")
    else:
        uplink = TapUplink.__new__(TapUplink)
        uplink.several, uplink.shared = True, False
    engine: Any = SimpleNamespace(uplinks={"lan": SimpleNamespace(uplink=uplink)})
    return SimpleNamespace(
        engine=engine, name="a", mtu=1500, running=[0], fault="", observed=SimpleNamespace(any=False), uplink=uplink,
        config=SimpleNamespace(uplink="lan", placement="direct", overload="drop-newest", accept=[], vlan=None, nic_queue=None),
        queues=[SimpleNamespace(shared=False, former=state.NONE)],
        home=SimpleNamespace(effects=SimpleNamespace(entry=SimpleNamespace(tests=[]))),
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "spoil", "why"), CASES, ids=[f"{kind}: {why}" for kind, _, why in CASES])
def test_each_obstacle_is_said(kind: str, spoil: Callable[[Any], None], why: str) -> None:
    vm = port(kind)
    directing = module.Directing(vm.engine)
    assert directing.obstacle(vm) == ""
    spoil(vm)
    assert why in directing.obstacle(vm)


def test_what_one_tier_cannot_do_is_nothing_to_another() -> None:
    vm = port("tap")
    for spoil, _ in OF_PAIRS[:3]:
        spoil(vm)
    vm.running.append(1)
    directing = module.Directing(vm.engine)
    assert directing.obstacle(vm) == ""
    assert directing.words(vm) == "by a queue of its own"
    vm.engine.uplinks.clear()
    assert (directing.words(vm), directing.stage(vm)) == ("", "switched")


@pytest.mark.parametrize(("kind", "long"), [("xdp", 300.0), ("tap", BUILT_IN.long)])
def test_figures_are_of_the_tier_that_was_measured(kind: str, long: float) -> None:
    vm = port(kind)
    vm.config.placement, vm.connects, vm.received = "auto", 1, lambda: (0, 0)
    directing = module.Directing(vm.engine)
    directing.known.band = Band(100.0, 300.0, "measured here")
    directing._measure(vm)
    assert directing._lengths["a"][1].band.long == long
    assert f"pays from {long:.0f} on" in directing.obstacle(vm)
    assert f"pays from {long:.0f} on" in directing.words(vm)


# --- whatever happens, in whatever order ----------------------------------------------------------------------

WIRE, GROUP, SECOND = test_own_queues.WIRE, "ff:ff:ff:ff:ff:ff", MACS[7]
PATHS = [(to, source) for to in (MACS[0], SECOND, GROUP) for source in (WIRE, MACS[1])]
BURST = st.tuples(st.sampled_from(PATHS), st.integers(1, 8), st.sampled_from([60, 600, 1514]))
BURSTS = st.lists(BURST, min_size=1, max_size=6)
Burst = tuple[tuple[str, str], int, int]
EXAMPLES, STEPS, RING = 5 if INTERPRETED else 25, 30, 64


class Deliveries(RuleBasedStateMachine):
    """Frames to VM a, of the wire and of VM b, while it becomes direct and switched, stops, starts, and gets other addresses.

    The model is what was sent on each path. What the guest gets is the next of a path, or a later one; and each that it does not get
    is dropped by name. The device uses its buffers in the order in which it was given them.
    """

    running: Running
    wire: socket.socket
    uplink: AnyUplink

    def __init__(self) -> None:
        super().__init__()
        self.sent: defaultdict[tuple[str, str], list[bytes]] = defaultdict(list)
        self.next: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.given = list[int]()  # slots, in the order in which they were made available
        self.number = self.due = self.got = 0
        self.keys: dict[str, Any] = {"placement": "direct", "mac": (MACS[0],)}
        self.runs = True

    @initialize()
    def begin(self) -> None:
        self.configure()
        self.a = self.running.guest("a", size=RING)
        self.b = self.running.guest("b", size=1024)
        self.row = self.running.engine.segment.rows["queue_state"][self.vm.first_queue]
        self.before = self.counted()
        for guest in (self.a, self.b):
            guest.start()
        self.note_given()
        self.enter()

    @property
    def vm(self) -> Any:
        return self.running.engine.vms["a"]

    def configure(self, **other: Any) -> None:
        vms = {
            "a": self.running.vm("a", 1, uplink="lan", **self.keys | other),
            "b": self.running.vm("b", 2, uplink="lan"),
        }
        self.running.configure({"lan": self.uplink}, **vms)

    def counted(self) -> tuple[int, int, int]:
        """Frames that were for its receive queue, that its guest got, and that were dropped by name."""
        drops = int(self.row["to_guest_drops"].sum())
        return int(self.row["offered_to_guest"]), int(self.row["frames_to_guest"]), drops

    def note_given(self) -> None:
        """The available ring as the guest has written it."""
        ring = self.a.virtqueue(to_guest=True)
        end = len(self.given) + (int(ring.avail["idx"][0]) - len(self.given)) % (1 << 16)
        self.given += [int(ring.entries[place % RING]) for place in range(len(self.given), end)]

    # --- what happens -------------------------------------------------------------------------------------------

    @rule(bursts=BURSTS)
    def send(self, bursts: list[Burst]) -> None:
        for burst in bursts:
            self.send_one(*burst)

    def meanwhile(self, bursts: list[Burst], action: Callable[[], object]) -> None:
        """Control does something while frames go on, a few at a time."""
        with ThreadPoolExecutor(1) as control:
            doing = control.submit(action)
            for path, _, size in itertools.cycle(bursts):
                self.send_one(path, 1, size)
                time.sleep(0.0003)
                if doing.done():
                    break
            doing.result()

    def send_one(self, path: tuple[str, str], count: int, size: int) -> None:
        to, source = path
        if to == SECOND and SECOND not in self.keys["mac"]:
            return
        frames = [frame(to, source, self.number + index, size) for index in range(count)]
        self.number, self.due = self.number + count, self.due + count
        self.sent[path] += frames
        if source == WIRE:
            for one in frames:
                self.wire.send(one)
        else:
            self.b.send(frames)

    @rule()
    def take(self) -> None:
        """What has come, each in the next buffer; the guest gives them back."""
        ring = self.a.virtqueue(to_guest=True)
        used = ring.harvest()
        for slot, length in used:
            assert slot == self.given[self.got]
            self.got += 1
            data = self.a.memory.read(ring.buffer(slot), length)[HEADER:]
            path = data[:6].hex(":"), data[6:12].hex(":")
            self.next[path] = self.sent[path].index(data, self.next[path]) + 1
        ring.give_slots([slot for slot, _ in used])
        if self.runs:
            self.a._post(ring)
            self.note_given()
        self.b.receive(1024, 0)

    @rule()
    def enter(self) -> None:
        """Whatever is in the way. On a NIC frames that wait in the engine's socket come later: none does."""
        if not self.runs:
            self.start()
        self.settle()
        self.take()
        self.running.do(lambda: self.vm.observed.measure(on=False))
        self.keys["placement"] = "direct"
        self.configure()
        deadline = time.monotonic() + PATIENCE
        while self.running.do(self.running.engine.directing.stage, self.vm) != "led":
            assert time.monotonic() < deadline, self.running.engine.directing.whys
            time.sleep(0.001)
            self.running.do(self.running.engine.directing.look)

    @rule(bursts=BURSTS)
    def measure(self, bursts: list[Burst]) -> None:
        """While that is on, it is switched from the next look on."""
        self.running.do(lambda: self.vm.observed.measure(on=True))
        self.meanwhile(bursts, lambda: self.running.do(self.running.engine.directing.look))

    @rule(bursts=BURSTS, placement=st.sampled_from(["direct", "switched"]), more=st.booleans())
    def reload(self, bursts: list[Burst], placement: str, more: bool) -> None:
        """Frames to an address that goes are lost as those of nobody: none is on its way."""
        if not more:
            self.settle()
        macs = (MACS[0], SECOND) if more else (MACS[0],)
        self.keys = {"placement": placement, "mac": macs[: len(self.keys["mac"])]}
        self.meanwhile(bursts, partial(self.configure, mac=macs))
        self.keys["mac"] = macs

    @precondition(lambda self: self.runs)
    @rule(bursts=BURSTS)
    def stop(self, bursts: list[Burst]) -> None:
        self.meanwhile(bursts, self.a.stop)
        self.runs = False

    @precondition(lambda self: not self.runs)
    @rule()
    def start(self) -> None:
        self.a.start()
        self.runs = True
        self.note_given()

    # --- what holds -----------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Every frame that was sent is counted once: its guest gets it, or it is dropped by name."""
        pairs = self.running.engine.directing.pairs

        def done() -> bool:
            self.running.do(lambda: pairs._count([queue for _, queue in pairs._active()]))
            offered, delivered, dropped = map(int.__sub__, self.counted(), self.before)
            return offered == self.due and delivered + dropped == offered

        until(done, f"{self.due} frames counted: {self.counted()} from {self.before}")

    def teardown(self) -> None:
        try:
            if hasattr(self, "before"):
                self.settle()
                self.take()
                assert self.got == self.counted()[1] - self.before[1]
        finally:
            for guest in (self.a, self.b):
                guest.close()
            gone(self.running, "a", "b")


@contextlib.contextmanager
def on_tap(folder: Path) -> Iterator[test_own_queues.Tapped]:
    with test_own_queues.engine(folder, (FIRST_CPU,)) as running:
        running.begin()
        yield running


TIERS: dict[str, tuple[AnyUplink, Callable[[Path], AbstractContextManager[Any]]]] = {
    "xdp": (Xdp(device="wire0", prepared=True), test_pairs.engine),
    "tap": (Tap(device="vmqtap0"), on_tap),
}


@pytest.mark.root
@pytest.mark.parametrize("kind", TIERS)
def test_each_frame_comes_once_and_in_order_or_is_named_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Control looks when it is told to, and not twenty times a second: what is not reached by chance is by drawing."""
    uplink, opened = TIERS[kind]
    monkeypatch.setattr("vmq.engine.own_queues.SETTLE_SECONDS", 0.0)
    with opened(tmp_path) as running:
        running.do(running.engine._tick.cancel)
        bound = type("Bound", (Deliveries,), {"running": running, "wire": running.wire, "uplink": uplink})
        run_state_machine_as_test(
            bound, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None)
        )
