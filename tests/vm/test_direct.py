# SPDX-License-Identifier: Apache-2.0
"""Direct placement from outside: an engine in a namespace, a wire, guests whose frames the kernel places."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.arena import MACS, PATIENCE, frame, until, until_equal
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.netns import Namespace
from tests.vm.test_xdp import UPLINK, WIRE, guest, reload, station, tagged, vm
from vmq.guest.guest import Guest

pytestmark = pytest.mark.root
DIRECT = 'placement = "direct"'


def placement(engine: EngineProcess, name: str) -> dict[str, Any]:
    (row,) = [
        row
        for row in engine.ask("show", what="settings")
        if row["of"] == f"vm {name}" and row["name"] == "placement"
    ]
    return dict(row)


def is_placed(engine: EngineProcess, name: str, wanted: str) -> bool:
    return bool(placement(engine, name)["effective"] == wanted)


def meanwhile(engine: EngineProcess, name: str, wanted: str, one: Guest) -> list[bytes]:
    """What a guest gets until its placement is another: however long that takes, it has buffers."""
    got, deadline = list[bytes](), time.monotonic() + PATIENCE
    while not is_placed(engine, name, wanted):
        assert time.monotonic() < deadline, placement(engine, name)
        got += one.receive(one.virtqueue(to_guest=True).size, 0.01)
    return got


@contextmanager
def direct(engine: EngineProcess, name: str) -> Iterator[Any]:
    """A guest whose frames the kernel places."""
    with guest(engine, name) as one:
        until(lambda: is_placed(engine, name, "direct"))
        yield one


def test_frames_of_the_wire_land_in_order_and_are_counted(tmp_path: Path, ends: tuple[Namespace, Namespace]):
    near, far = ends
    config = UPLINK + vm("attacker", DIRECT) + vm("third", f"vlan = 5\n{DIRECT}")
    ours = [frame("attacker", WIRE, number, size=60 + number) for number in range(200)]
    theirs = [frame("third", WIRE, number) for number in range(50)]
    with EngineProcess(tmp_path, config, near) as engine, station(far) as wire:
        with direct(engine, "attacker") as one, direct(engine, "third") as third:
            for data in ours:
                wire.send(data)
            for data in theirs:
                wire.send(tagged(data, 5))
            assert one.receive(len(ours), PATIENCE) == ours
            assert third.receive(len(theirs), PATIENCE) == theirs
        assert engine.show("uplinks")["wire"]["verdicts"]["direct"] == len(ours) + len(theirs)
        row = engine.show("vms")["attacker"]
        assert (row["frames_placed"], row["bytes_placed"]) == (len(ours), sum(map(len, ours)))
        assert row["bytes_copied"] == 0
        assert len(near.run("ip", "-brief", "link").splitlines()) == 2  # lo, wire0


def test_a_broadcast_and_a_neighbours_frame_take_their_turn(
    tmp_path: Path, ends: tuple[Namespace, Namespace]
):
    near, far = ends
    everybody = frame("ff:ff:ff:ff:ff:ff", WIRE, 99)
    with (
        EngineProcess(tmp_path, UPLINK + vm("attacker", DIRECT) + vm("peer"), near) as engine,
        station(far) as wire,
        direct(engine, "attacker") as one,
        guest(engine, "peer") as peer,
    ):
        wire.send(everybody)
        assert one.receive(1, PATIENCE) == [everybody]
        assert peer.receive(1, PATIENCE) == [everybody]
        peer.send([frame("attacker", MACS["peer"], 5)])
        assert one.receive(1, PATIENCE) == [frame("attacker", MACS["peer"], 5)]
        one.send([frame(WIRE, MACS["attacker"], 7)])
        deadline = time.monotonic() + PATIENCE
        while wire.recv(2000) != frame(WIRE, MACS["attacker"], 7):
            assert time.monotonic() < deadline


def test_it_leaves_and_enters_while_frames_flow_and_none_is_lost(
    tmp_path: Path, ends: tuple[Namespace, Namespace]
):
    """A capture makes it switched, and its end direct again."""
    near, far = ends
    with (
        EngineProcess(tmp_path, UPLINK + vm("attacker", DIRECT), near) as engine,
        station(far) as wire,
        direct(engine, "attacker") as one,
    ):
        number = 0
        for keys in ("", DIRECT, "", DIRECT):
            for _ in range(50):
                wire.send(frame("attacker", WIRE, number))
                number += 1
            engine.configure(UPLINK + vm("attacker", keys))
            reload(engine)
            wanted = "direct" if keys else "switched"
            until(partial(is_placed, engine, "attacker", wanted))
        got = one.receive(number, PATIENCE)
        assert got == [frame("attacker", WIRE, index) for index in range(number)]


def test_while_frames_never_stop_it_leaves_and_enters_and_none_is_lost_or_comes_twice(
    tmp_path: Path, ends: tuple[Namespace, Namespace]
):
    near, far = ends
    stop, sent = threading.Event(), list[bytes]()

    def flow(wire: socket.socket) -> None:
        while not stop.is_set():
            sent.append(frame("attacker", WIRE, len(sent)))
            wire.send(sent[-1])
            time.sleep(0.002)  # a guest has buffers for what comes while nobody looks

    with (
        EngineProcess(tmp_path, UPLINK + vm("attacker", DIRECT), near) as engine,
        station(far) as wire,
        direct(engine, "attacker") as one,
    ):
        got = list[bytes]()
        thread = threading.Thread(target=flow, args=(wire,))
        thread.start()
        try:
            for _ in range(4):
                for wanted in ("switched", "direct"):
                    engine.ask("measure", vm="attacker", on=wanted == "switched")
                    got += meanwhile(engine, "attacker", wanted, one)
                    got += one.receive(20, PATIENCE)
        finally:
            stop.set()
            thread.join()
        got += one.receive(len(sent) - len(got), PATIENCE)
        assert sorted(got) == sent  # the way to direct keeps no order: docs/adr/0011


def test_frames_without_a_buffer_are_named(tmp_path: Path, ends: tuple[Namespace, Namespace]):
    near, far = ends
    with (
        EngineProcess(tmp_path, UPLINK + vm("attacker", DIRECT), near) as engine,
        station(far) as wire,
        direct(engine, "attacker") as one,
    ):
        posted = one.virtqueue(to_guest=True).size
        for number in range(posted + 100):
            wire.send(frame("attacker", WIRE, number))

        def drops() -> int:
            (row,) = [row for row in engine.ask("show", what="queues") if row["vm"] == "attacker"]
            return int(row["drops"].get("to_guest_no_buffer", 0))

        until_equal(drops, 100)
        assert one.receive(posted, PATIENCE) == [frame("attacker", WIRE, number) for number in range(posted)]


def test_a_guest_that_goes_and_comes_again_is_direct_again(tmp_path: Path, ends: tuple[Namespace, Namespace]):
    near, far = ends
    with EngineProcess(tmp_path, UPLINK + vm("attacker", DIRECT), near) as engine, station(far) as wire:
        for number in range(3):
            with direct(engine, "attacker") as one:
                wire.send(frame("attacker", WIRE, number))
                assert one.receive(1, PATIENCE) == [frame("attacker", WIRE, number)]
            until(lambda: placement(engine, "attacker")["effective"] == "switched")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ('accept = ["unknown"]', "frames to other addresses"),
        ("weight = 0", "through the default queue"),
        ("mtu = 9000", "more than one buffer"),
    ],
)
def test_what_is_in_the_way_is_said(tmp_path: Path, ends: tuple[Namespace, Namespace], keys: str, why: str):
    near, _ = ends
    with (
        EngineProcess(tmp_path, UPLINK + vm("attacker", f"{DIRECT}\n{keys}"), near) as engine,
        guest(engine, "attacker"),
    ):
        until(lambda: why in placement(engine, "attacker")["why"], why)
        assert placement(engine, "attacker")["effective"] != "direct"


def test_a_crash_loses_no_buffer(tmp_path: Path, ends: tuple[Namespace, Namespace]):
    near, far = ends
    with EngineProcess(tmp_path, UPLINK + vm("attacker", DIRECT), near) as engine, station(far) as wire:
        with direct(engine, "attacker"):
            engine.kill()
        engine.start()
        with direct(engine, "attacker") as one:
            wire.send(frame("attacker", WIRE, 7))
            assert one.receive(1, PATIENCE) == [frame("attacker", WIRE, 7)]
