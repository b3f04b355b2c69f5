# SPDX-License-Identifier: Apache-2.0
"""When a VM with a pair of its own begins and ceases to be direct, and what stays meanwhile: an engine in a namespace."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyroute2 import netns

from tests.direct.holes import punch
from tests.direct.test_costs import steady
from tests.engine.running import FIRST_CPU, MACS, PATIENCE, Running, frame, gone, until
from tests.vm.lab.netns import joined
from tests.vm.test_xdp import station
from vmq import linux
from vmq.config import Xdp
from vmq.control.views import show
from vmq.dataplane.reasons import TO_GUEST_PAIR, TO_GUEST_TOO_LONG
from vmq.direct import figures, lengths, polling
from vmq.direct.figures import Figures
from vmq.direct.queue import DirectQueue
from vmq.engine import directing as module
from vmq.engine.engine import Engine
from vmq.guest.guest import Guest
from vmq.linux import PAGE

pytestmark = pytest.mark.root


class Wired(Running):
    """An engine whose uplink `lan` is one end of a veth; `wire` is at its other end."""

    wire: socket.socket


@contextmanager
def engine(folder: Path) -> Iterator[Wired]:
    with joined() as (near, far), station(far) as wire:

        def make() -> Engine:
            netns.setns(near.name, flags=0)
            return Engine("test.toml", (FIRST_CPU,), "a test")

        with Wired(folder, make=make) as running:
            running.wire = wire
            yield running


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Wired]:
    with engine(tmp_path) as running:
        yield running


def configure(running: Running, **keys: Any) -> None:
    keys = {"uplink": "lan", "placement": "direct"} | keys
    running.configure(
        {"lan": Xdp(device="wire0", prepared=True)},
        a=running.vm("a", 1, **keys),
        b=running.vm("b", 2, uplink="lan"),
    )


def stage(running: Running, wanted: str = "led", name: str = "a") -> None:
    vm = running.engine.vms[name]
    until(
        lambda: running.do(running.engine.directing.stage, vm) == wanted,
        f"{wanted}: {running.engine.directing.whys}",
    )


def queue_of(running: Running) -> Any:
    return running.engine.directing.pairs._directs["a"].queue


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
        until(lambda: "a" not in wired.engine.directing.pairs._directs)
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


def sends_until(running: Running, a: Guest, b: Guest, length: int, wanted: str) -> None:
    """Frames from b to a, one after the other, until a is placed like this."""
    vm, deadline, number = running.engine.vms["a"], time.monotonic() + PATIENCE, 0
    while running.do(running.engine.directing.stage, vm) != wanted:
        data = frame(a.mac, b.mac, number, length)
        b.send([data])
        assert a.receive(1, PATIENCE) == [data]
        number += 1
        assert time.monotonic() < deadline, running.engine.directing.whys


def test_auto_is_direct_while_frames_are_long(wired: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(lengths, "FEWEST", 1)
    configure(wired, placement="auto")
    whys = wired.engine.directing.whys
    with wired.guest("b") as b:
        with wired.guest("a") as a:
            until(lambda: "few frames" in whys.get("a", ""))
            sends_until(wired, a, b, 1514, "led")
            assert "a" not in whys
            sends_until(wired, a, b, 60, "kept")
            until(lambda: "bytes long in the mean" in whys["a"])
            sends_until(wired, a, b, 1514, "led")
        gone(wired, "a")
        with wired.guest("a"):  # another guest has shown nothing
            until(lambda: "few frames" in whys.get("a", ""), str(whys))


def test_auto_goes_by_what_was_measured_here(
    wired: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that says always, then one that says never, and no good one: then the rule, 1514 bytes being long."""
    monkeypatch.setattr(lengths, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(lengths, "FEWEST", 1)
    monkeypatch.setattr(figures, "LOOK_SECONDS", 0.05)
    path, engine = tmp_path / "placement.json", wired.engine

    def measured(text: str) -> None:
        (tmp_path / "new").write_text(text)
        os.replace(tmp_path / "new", path)

    def settings() -> dict[tuple[str, str], dict[str, Any]]:
        return {(row["of"], row["name"]): row for row in wired.do(show, engine, "settings")}

    def configured() -> None:
        old = engine.config
        named = msgspec.structs.replace(old.engine, placement_figures=str(path))
        engine.reconfigure(msgspec.structs.replace(old, engine=named))

    measured(Figures.of(tuple(steady(1, 1, 1, 1))).text())
    configure(wired, placement="auto")
    wired.do(configured)
    with wired.guest("b") as b, wired.guest("a") as a:
        sends_until(wired, a, b, 60, "led")
        assert "pays for all lengths, measured here on" in settings()["vm a", "placement"]["why"]
        assert settings()["engine", "placement_figures"]["effective"] == str(path)
        measured(Figures.of(tuple(steady(-1, -1, -1, -1))).text())
        sends_until(wired, a, b, 1514, "kept")
        until(lambda: "pays for no length, measured here on" in settings()["vm a", "placement"]["why"])
        measured("garbage")
        sends_until(wired, a, b, 1514, "led")
        found = settings()
        assert "by figures of another machine" in found["vm a", "placement"]["why"]
        assert found["engine", "placement_figures"]["effective"] is None
        assert "has no figures of frames" in found["engine", "placement_figures"]["why"]


def test_why_the_kernel_refuses_stands_as_long_as_it_is_left_switched(
    wired: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(105, "no more may be pinned")

    monkeypatch.setattr("vmq.engine.pairs.DirectQueue", refuse)
    monkeypatch.setattr(module, "REST_SECONDS", 1000.0)
    configure(wired)
    with wired.guest("a"):
        until(lambda: "no more may be pinned" in wired.engine.directing.whys.get("a", ""))
        for _ in range(3):
            wired.do(wired.engine.directing.look)
            (row,) = (
                row
                for row in wired.do(show, wired.engine, "settings")
                if (row["of"], row["name"]) == ("vm a", "placement")
            )
            assert (row["effective"], row["why"].partition(": again")[0]) == (
                "switched",
                "the kernel refuses what it needs: no more may be pinned",
            )


def test_pages_given_back_while_the_kernel_takes_the_memory_are_seen(
    wired: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel pins hides them, but in the end not all are there."""

    def making(*arguments: Any, **options: Any) -> Any:
        made = DirectQueue(*arguments, **options)
        descriptor = wired.engine.vms["a"].session.regions[0].fd
        punch(descriptor, os.fstat(descriptor).st_size - PAGE)
        return made

    monkeypatch.setattr("vmq.engine.pairs.DirectQueue", making)
    configure(wired)
    with wired.guest("a") as a, wired.guest("b") as b:
        until(lambda: "given back to the host" in wired.engine.directing.whys.get("a", ""))
        carries(a, b, 1)
        assert wired.do(wired.engine.directing.stage, wired.engine.vms["a"]) == "switched"


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
        assert wired.engine.directing._rests["a"].pause == pytest.approx(0.4)


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


def test_addresses_that_change_owners_at_once_come_to_their_owners_alone(wired: Running) -> None:
    """Under flow: each frame once, or dropped by name where it was on its way to the one before."""
    moving = MACS[10], MACS[11]

    def owners(*names: str) -> None:
        vms = {"b": wired.vm("b", 2, uplink="lan")}
        for number, name in ((1, "a"), (3, "c")):
            macs = (MACS[number - 1], *(mac for mac, one in zip(moving, names, strict=True) if one == name))
            vms[name] = wired.vm(name, number, uplink="lan", placement="direct", mac=macs)
        wired.configure({"lan": Xdp(device="wire0", prepared=True)}, **vms)

    owners("a", "c")
    with wired.guest("a", size=1024) as a, wired.guest("c", size=1024) as c, wired.guest("b") as b:
        stage(wired)
        stage(wired, name="c")
        sent, got = list[bytes](), list[bytes]()
        for now in (("c", "a"), ("a", "c"), ("c", "c"), ("a", "a")):
            changing = threading.Thread(target=owners, args=now)
            changing.start()
            while changing.is_alive():
                sent += [frame(mac, b.mac, len(sent)) for mac in moving]
                b.send(sent[-2:])
                got += a.receive(64, 0.0005) + c.receive(64, 0.0005)
            changing.join()
            deadline = time.monotonic() + PATIENCE
            while len(got) + lost(wired, "a", "c") < len(sent):
                assert time.monotonic() < deadline
                got += both(a, c)
            for mac, name in zip(moving, now, strict=True):
                b.send([frame(mac, b.mac, 99)])
                assert {"a": a, "c": c}[name].receive(1, PATIENCE) == [frame(mac, b.mac, 99)]
            assert both(a, c) == []
        assert len(set(got)) == len(got)
        assert set(got) <= set(sent)


def both(*guests: Guest) -> list[bytes]:
    return [data for one in guests for data in one.receive(64, 0.01)]


def lost(running: Running, *names: str) -> int:
    """Frames that were dropped by name on their way through the pairs of these."""
    rows = [running.engine.vms[name].queue_rows()[0] for name in names]
    return sum(int(row["to_guest_drops"][TO_GUEST_PAIR]) for row in rows)


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


def together(running: Running, placement: str = "direct") -> None:
    """Three VMs that are direct, and one that is not."""
    keys: dict[str, Any] = {"uplink": "lan", "placement": placement}
    vms = {name: running.vm(name, number, **keys) for number, name in ((1, "a"), (3, "c"), (4, "d"))}
    running.configure({"lan": Xdp(device="wire0", prepared=True)}, b=running.vm("b", 2, uplink="lan"), **vms)


def retire(running: Running) -> None:
    """Its uplink steers nothing any more."""
    uplink: Any = running.engine.uplinks["lan"].uplink
    running.do(setattr, uplink.steering, "mode", "")


def end(running: Running) -> None:
    def close() -> None:
        assert running.engine._tick is not None
        running.engine._tick.cancel()
        running.engine.directing.close()

    running.do(close)


WAYS: dict[str, Callable[[Running], None]] = {
    "configuration": partial(together, placement="switched"),
    "uplink": retire,
    "queues": lambda running: running.do(
        running.engine.directing.set_out, dict.fromkeys(running.engine.vms.values(), 1)
    ),
    "end": end,
}


@pytest.mark.parametrize("way", WAYS)
def test_all_that_leave_at_once_wait_for_the_kernel_once_and_lose_nothing(
    wired: Running, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    together(wired)
    waits, wait = list[None](), linux.grace_period
    with ExitStack() as there:
        b = there.enter_context(wired.guest("b"))
        others = {name: there.enter_context(wired.guest(name, size=1024)) for name in "acd"}
        for name in others:
            stage(wired, name=name)
        monkeypatch.setattr(module, "REST_SECONDS", 1000.0)
        monkeypatch.setattr(linux, "grace_period", lambda: waits.append(wait()))
        got, sent = {name: list[bytes]() for name in others}, 0
        leaving = threading.Thread(target=WAYS[way], args=(wired,))
        leaving.start()
        while leaving.is_alive() or not waits or sent < 50:
            b.send([frame(one.mac, b.mac, sent) for one in others.values()])
            sent += 1
            for name, one in others.items():
                got[name] += one.receive(64, 0.0005)
        leaving.join()
        assert len(waits) == 1
        for name, one in others.items():
            got[name] += one.receive(sent - len(got[name]), PATIENCE)
            assert got[name] == [frame(one.mac, b.mac, number) for number in range(sent)]


def test_a_pair_that_is_polled_loses_and_overtakes_nothing_also_while_it_leaves(
    wired: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the wire; any frame is many here. It enters in a pause: what comes meanwhile may be overtaken."""
    monkeypatch.setattr(polling, "MANY", 1)
    monkeypatch.setattr(polling, "FEW", 0)
    with ThreadPoolExecutor(1) as beside:
        configure(wired)
        with wired.guest("a", size=1024) as a, wired.guest("b") as b:
            got, sent = list[bytes](), 0

            def flow(condition: Callable[[], bool]) -> None:
                nonlocal got, sent
                deadline = time.monotonic() + PATIENCE
                while not condition() or sent % 50:
                    assert time.monotonic() < deadline
                    wired.wire.send(frame(a.mac, b.mac, sent))
                    sent += 1
                    got += a.receive(64, 0)

            for _ in range(3):
                stage(wired)
                flow(lambda: wired.do(wired.engine.directing.polled, 0) == 1)
                flow(beside.submit(configure, wired, placement="switched").done)
                assert wired.do(wired.engine.directing.polled, 0) == 0
                got += a.receive(sent - len(got), PATIENCE)
                configure(wired)
            assert got == [frame(a.mac, b.mac, number) for number in range(sent)]
            row = wired.do(show, wired.engine, "vms")[0]
            assert (row["frames_to_guest"], row["drops"]) == (sent, {})
            assert row["frames_placed"] > 0


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

    monkeypatch.setattr("vmq.engine.pairs.DirectQueue", slow)
    keys = {"uplink": "lan", "placement": "direct"}
    wired.configure(
        {"lan": Xdp(device="wire0", prepared=True)}, a=wired.vm("a", 1, **keys), b=wired.vm("b", 2, **keys)
    )
    with wired.guest("a"), wired.guest("b"):
        until(lambda: len(wired.engine.directing.pairs._directs) == 2)
        begun.wait(PATIENCE)
        threading.Timer(0.2, go_on.set).start()
        end(wired)
        assert wired.engine.directing.pairs._directs == {}
