# SPDX-License-Identifier: Apache-2.0
"""Which VMs are direct, when one begins and ceases to be, and what stays meanwhile: an engine in a namespace."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyroute2 import netns

from tests.direct.holes import punch
from tests.engine.running import FIRST_CPU, MACS, PATIENCE, Running, frame, gone, until
from tests.vm.lab.netns import Namespace
from vmq.config import Xdp
from vmq.dataplane import state
from vmq.dataplane.reasons import TO_GUEST_PAIR, TO_GUEST_TOO_LONG
from vmq.direct import lengths
from vmq.direct.queue import DirectQueue
from vmq.engine import directing as module
from vmq.engine.engine import Engine
from vmq.guest.guest import Guest
from vmq.linux import PAGE
from vmq.uplink.xdp import XdpUplink

pytestmark = pytest.mark.root


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Running]:
    """An engine whose uplink `lan` is one end of a veth."""
    with Namespace("engine") as near, Namespace("far") as far:
        for end in (near, far):
            end.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        near.veth("wire0", far, "host0")

        def make() -> Engine:
            netns.setns(near.name, flags=0)
            return Engine("test.toml", (FIRST_CPU,), "a test")

        with Running(tmp_path, make=make) as running:
            yield running


def configure(running: Running, **keys: Any) -> None:
    keys = {"uplink": "lan", "placement": "direct"} | keys
    running.configure(
        {"lan": Xdp(device="wire0", prepared=True)},
        a=running.vm("a", 1, **keys),
        b=running.vm("b", 2, uplink="lan"),
    )


def stage(running: Running, wanted: str = "led") -> None:
    vm = running.engine.vms["a"]
    until(
        lambda: running.do(running.engine.directing.stage, vm) == wanted,
        f"{wanted}: {running.engine.directing.whys}",
    )


def queue_of(running: Running) -> Any:
    return running.engine.directing._directs["a"].queue


def carries(a: Guest, b: Guest, number: int) -> None:
    """One frame from b to a, however it goes."""
    data = frame(a.mac, b.mac, number)
    b.send([data])
    assert a.receive(1, PATIENCE) == [data]


def test_it_is_made_once_and_kept_while_something_is_in_the_way(wired: Running) -> None:
    configure(wired)
    with wired.guest("a") as a, wired.guest("b") as b:
        stage(wired)
        made = queue_of(wired)
        carries(a, b, 1)
        assert made.verdicts()["placed"] == 1
        for number, (on, wanted) in enumerate([(True, "kept"), (False, "led")]):
            wired.do(lambda on=on: wired.engine.vms["a"].observed.measure(on=on))
            stage(wired, wanted)
            assert queue_of(wired) is made
            carries(a, b, 2 + number)
        assert made.verdicts()["placed"] == 2
        told = [one for one in wired.do(wired.engine.journal.since, 0) if one["event"] == "placement"]
        assert [(one["placement"], one["why"]) for one in told] == [
            ("direct", ""), ("switched", "it is captured or measured"), ("direct", ""),
        ]  # fmt: skip


def test_a_driver_that_stops_and_starts_gets_the_same_and_other_memory_another(wired: Running) -> None:
    configure(wired)
    with wired.guest("b") as b:
        with wired.guest("a") as a:
            stage(wired)
            made = queue_of(wired)
            a.stop()
            assert wired.do(wired.engine.directing.stage, wired.engine.vms["a"]) == "kept"
            a.start()
            stage(wired)
            assert queue_of(wired) is made
            carries(a, b, 1)
        gone(wired, "a")
        until(lambda: "a" not in wired.engine.directing._directs)
        with wired.guest("a") as a:
            stage(wired)
            assert queue_of(wired) is not made
            carries(a, b, 2)


def test_memory_of_which_pages_were_given_back_is_never_direct_again_and_other_memory_is(
    wired: Running,
) -> None:
    configure(wired)
    with wired.guest("b") as b:
        with wired.guest("a") as a:
            stage(wired)
            descriptor = wired.do(lambda: wired.engine.vms["a"].session.regions[0].fd)
            punch(descriptor, os.fstat(descriptor).st_size - PAGE)
            stage(wired, "switched")
            assert "given back to the host" in wired.engine.directing.whys["a"]
            for number in range(3):
                carries(a, b, number)
                wired.do(wired.engine.directing.look)
            assert wired.do(wired.engine.directing.stage, wired.engine.vms["a"]) == "switched"
        gone(wired, "a")
        with wired.guest("a") as a:
            stage(wired)
            carries(a, b, 4)


def test_auto_is_direct_while_frames_are_long(wired: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(lengths, "FEWEST", 1)
    configure(wired, placement="auto")
    with wired.guest("a") as a, wired.guest("b") as b:
        until(lambda: "few frames" in wired.engine.directing.whys.get("a", ""))
        for length, wanted, why in ((1514, "led", ""), (60, "kept", "60 bytes"), (1514, "led", "")):
            number = 0
            while wired.do(wired.engine.directing.stage, wired.engine.vms["a"]) != wanted:
                data = frame(a.mac, b.mac, number, length)
                b.send([data])
                assert a.receive(1, PATIENCE) == [data]
                number += 1
                assert number < PATIENCE * 10_000
            until(lambda why=why: why in wired.engine.directing.whys.get("a", ""))  # type: ignore[misc]


def test_a_buffer_that_is_none_for_the_kernel_ends_it_for_a_while_and_longer_each_time(
    wired: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REST_SECONDS", 0.1)
    configure(wired)
    with wired.guest("a") as a, wired.guest("b") as b:
        for number in range(3):
            stage(wired)
            wired.do(lambda: queue_of(wired).row.__setitem__("unfit", 1))
            stage(wired, "kept")
            assert "none for the kernel" in wired.engine.directing.whys["a"]
            carries(a, b, number)
        assert wired.engine.directing._rests["a"][1] == pytest.approx(0.4)


def test_a_frame_that_is_longer_than_its_mtu_is_dropped_by_name_and_it_stays_direct(wired: Running) -> None:
    """Where the engine places it, it would be dropped as well: a neighbour decides nothing by sending it."""
    configure(wired, mtu=1000)
    vm = wired.engine.vms["a"]
    with wired.guest("a") as a, wired.guest("b") as b:
        stage(wired)
        for number in range(3):
            b.send([frame(a.mac, b.mac, number, 1200)])
            carries(a, b, number)
        assert int(vm.queue_rows()[0]["to_guest_drops"][TO_GUEST_TOO_LONG]) == 3
        assert wired.do(wired.engine.directing.stage, vm) == "led"


def test_what_is_lost_is_counted_though_nothing_else_wakes_its_processor(wired: Running) -> None:
    configure(wired)
    vm = wired.engine.vms["a"]
    with wired.guest("a") as a, wired.guest("b") as b:
        stage(wired)
        queue_of(wired).near.send(bytes(10) + frame(MACS[7], b.mac, 1))  # another's: the far end drops it
        until(lambda: int(vm.queue_rows()[0]["to_guest_drops"][TO_GUEST_PAIR]) == 1)
        carries(a, b, 1)


def test_a_rest_is_forgotten_when_it_was_well_for_long_or_the_vm_is_gone(
    wired: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    directing, vm = wired.engine.directing, SimpleNamespace(name="a")
    pauses = []
    for _ in range(3):
        directing._rest(vm, "a test")  # type: ignore[arg-type]
        pauses.append(directing._rests["a"][1])
    until_then, pause = directing._rests["a"]
    directing._rests["a"] = until_then - 2 * module.REST_MOST, pause
    directing._rest(vm, "a test")  # type: ignore[arg-type]
    assert [*pauses, directing._rests["a"][1]] == [1, 2, 4, 1]
    wired.do(directing.look)
    assert (directing._rests, directing.whys) == ({}, {})


def test_addresses_come_and_go_while_it_is_led(wired: Running) -> None:
    configure(wired)
    with wired.guest("a") as a, wired.guest("b") as b:
        stage(wired)
        made = queue_of(wired)
        configure(wired, mac=(MACS[0], MACS[7]))
        until(lambda: len(made.filters_now) == 2)
        assert queue_of(wired) is made
        b.send([frame(MACS[7], b.mac, 5)])
        assert a.receive(1, PATIENCE) == [frame(MACS[7], b.mac, 5)]
        assert made.verdicts() == dict.fromkeys(made.verdicts(), 0) | {"placed": 1}


def test_buffers_that_are_none_for_the_kernel_leave_it_switched_and_lose_nothing(wired: Running) -> None:
    """Too short for the longest frame: none is ever posted, and the engine fills several with a frame, as before."""
    configure(wired)
    with wired.guest("a", buffer_bytes=512) as a, wired.guest("b") as b:
        until(lambda: "none for the kernel" in wired.engine.directing.whys.get("a", ""))
        for number in range(5):
            carries(a, b, number)


def test_addresses_that_the_kernel_has_no_room_for_make_it_switched_and_others_go_on(
    wired: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What leaving publishes asks for the same addresses again: once is enough."""
    configure(wired)
    with wired.guest("a") as a, wired.guest("b") as b:
        stage(wired)
        monkeypatch.setattr(queue_of(wired).filters, "update", full)
        configure(wired, mac=(MACS[0], MACS[7]))
        stage(wired, "kept")
        assert "the kernel refuses" in wired.engine.directing.whys["a"]
        carries(a, b, 1)


def full(*_: object) -> None:
    raise OSError(7, "Argument list too long")


def test_what_landed_and_was_not_told_does_not_come_with_the_next_driver(wired: Running) -> None:
    """A port with a fault is served by nobody; its driver starts again on the same memory."""
    configure(wired)
    with wired.guest("a") as a, wired.guest("b") as b:
        stage(wired)
        made, vm = queue_of(wired), wired.engine.vms["a"]
        rows = wired.engine.segment.rows["port_state"]
        wired.do(lambda: rows["fault"].__setitem__(vm.number, 1))
        made.near.send(bytes(10) + frame(a.mac, b.mac, 66))
        stage(wired, "kept")
        assert (made.socket.untold, made.socket.is_harvested()) == (1, True)
        a.stop()
        a.start()
        stage(wired)
        assert queue_of(wired) is made
        carries(a, b, 1)


def test_an_engine_ends_while_queues_are_still_made(wired: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is under way, the next waits for its turn."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        begun.set()
        go_on.wait(PATIENCE)
        return DirectQueue(*arguments, **options)

    def end() -> None:
        assert wired.engine._tick is not None
        wired.engine._tick.cancel()
        wired.engine.directing.close()

    monkeypatch.setattr("vmq.engine.directing.DirectQueue", slow)
    keys = {"uplink": "lan", "placement": "direct"}
    wired.configure(
        {"lan": Xdp(device="wire0", prepared=True)}, a=wired.vm("a", 1, **keys), b=wired.vm("b", 2, **keys)
    )
    with wired.guest("a"), wired.guest("b"):
        until(lambda: len(wired.engine.directing._directs) == 2)
        begun.wait(PATIENCE)
        threading.Timer(0.2, go_on.set).start()
        wired.do(end)
        assert wired.engine.directing._directs == {}


OBSTACLES: list[tuple[Callable[[Any], None], str]] = [
    (lambda vm: setattr(vm.config, "placement", "switched"), "not asked for"),
    (lambda vm: vm.engine.uplinks.clear(), "not of kind xdp"),
    (lambda vm: setattr(vm.queues[0], "shared", True), "no receive queue of its own"),
    (lambda vm: setattr(vm.queues[0], "former", 1), "on its way to another processor"),
    (lambda vm: setattr(vm.config, "overload", "hold"), "are to wait"),
    (lambda vm: vm.config.accept.append("unknown"), "frames to other addresses"),
    (lambda vm: setattr(vm, "mtu", 9000), "MTU of 9000"),
    (lambda vm: setattr(vm.observed, "any", True), "captured or measured"),
    (lambda vm: vm.running.clear(), "must run"),
    (lambda vm: setattr(vm, "fault", "broken"), "must run"),
]


@pytest.mark.parametrize(("spoil", "why"), OBSTACLES, ids=[why for _, why in OBSTACLES])
def test_each_obstacle_is_said(spoil: Callable[[Any], None], why: str) -> None:
    """A port that has nothing in its way, but for one thing."""
    uplink = XdpUplink.__new__(XdpUplink)
    uplink.config, uplink.steering = Xdp(device="wire0"), SimpleNamespace(mode="native")  # type: ignore[assignment]
    engine: Any = SimpleNamespace(uplinks={"lan": SimpleNamespace(uplink=uplink)})
    vm: Any = SimpleNamespace(
        engine=engine, name="a", mtu=1500, running=[0], fault="", observed=SimpleNamespace(any=False),
        config=SimpleNamespace(uplink="lan", placement="direct", overload="drop-newest", accept=[], vlan=None),
        queues=[SimpleNamespace(shared=False, former=state.NONE)],
        home=SimpleNamespace(effects=SimpleNamespace(entry=SimpleNamespace(tests=[]))),
    )  # fmt: skip
    directing = module.Directing(engine)
    assert directing.obstacle(vm) == ""
    spoil(vm)
    assert why in directing.obstacle(vm)
