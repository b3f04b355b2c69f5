# SPDX-License-Identifier: Apache-2.0
"""When a VM with a queue of its own in a TAP begins and ceases to be direct, and whose the queue is meanwhile: in a namespace."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import netns

from tests.engine.running import MACS, PATIENCE, TWO_CPUS, Running, frame, gone, two_processors, until
from tests.engine.test_mover import move
from tests.uplink.test_tap import Namesake
from tests.vm.lab.netns import Namespace
from tests.vm.test_direct_tap import flowing
from vmq.abi.ethernet import mac_number
from vmq.config import Tap
from vmq.dataplane import state
from vmq.dataplane.classify import lookup
from vmq.engine import directing, own_queues
from vmq.engine.directing import Rest
from vmq.engine.engine import Engine
from vmq.guest.guest import Guest
from vmq.jit import at, python_of
from vmq.uplink.tap import TapUplink

pytestmark = pytest.mark.root
WIRE = "02:00:00:00:00:77"


class Tapped(Running):
    """An engine whose uplink `lan` is a TAP; `wire` is the host's stack at its other end."""

    near: Namespace
    wire: socket.socket

    def begin(self, **keys: Any) -> None:
        self.tap(**keys)

        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            made.bind(("vmqtap0", 0))
            return made

        self.wire = self.near.call(make)

    def tap(self, **keys: Any) -> None:
        """VM `a` is to be direct, `b` is not."""
        keys = {"uplink": "lan", "placement": "direct"} | keys
        self.configure(
            {"lan": Tap(device="vmqtap0")}, a=self.vm("a", 1, **keys), b=self.vm("b", 2, uplink="lan")
        )

    @property
    def uplink(self) -> TapUplink:
        found = self.engine.uplinks["lan"].uplink
        assert isinstance(found, TapUplink)
        return found

    def own(self, name: str = "a") -> Any:
        return self.engine.directing.own_queues._owns[name]

    def stage(self, wanted: str = "led", name: str = "a") -> None:
        vm = self.engine.vms[name]
        until(
            lambda: self.do(self.engine.directing.stage, vm) == wanted,
            f"{wanted}: {self.engine.directing.whys}",
        )

    def placed(self, name: str = "a") -> int:
        return int(self.show("queues", name)["frames_placed"])

    def carries(self, guest: Guest, number: int) -> None:
        """One frame of the host's, however it goes."""
        data = frame(guest.mac, WIRE, number)
        self.wire.send(data)
        assert guest.receive(1, PATIENCE) == [data]


@contextmanager
def engine(folder: Path, cpus: tuple[int, ...]) -> Iterator[Tapped]:
    with Namespace("engine") as near:
        near.sysctl("net/ipv6/conf/default/disable_ipv6", 1)

        def make() -> Engine:
            netns.setns(near.name, flags=0)
            return Engine("test.toml", cpus, "a test")

        with Tapped(folder, make=make) as running:
            running.near = near
            try:
                yield running
            finally:
                running.wire.close()


@pytest.fixture
def tapped(tmp_path: Path) -> Iterator[Tapped]:
    with engine(tmp_path, tuple(TWO_CPUS[:1])) as running:
        yield running


def test_it_has_one_queue_as_long_as_it_is_there_whoever_writes_its_frames(tapped: Tapped) -> None:
    tapped.begin()
    with tapped.guest("a") as a:
        tapped.stage()
        own = tapped.own()
        tapped.carries(a, 1)
        for number, (on, wanted) in enumerate([(True, "kept"), (False, "led")]):
            tapped.do(lambda on=on: tapped.engine.vms["a"].observed.measure(on=on))
            tapped.stage(wanted)
            tapped.carries(a, 2 + number)
        a.stop()
        tapped.stage("kept")
        a.start()
        tapped.stage()
        tapped.tap(placement="switched")
        tapped.stage("kept")
        tapped.carries(a, 5)
        assert tapped.own() is own
        assert tapped.placed() == 2
        told = [one for one in tapped.do(tapped.engine.journal.since, 0) if one["event"] == "placement"]
        assert [(one["placement"], one["why"]) for one in told] == [
            ("direct", ""), ("switched", "it is captured or measured"), ("direct", ""),
            ("switched", "its first receive queue does not run"), ("direct", ""), ("switched", "it is not asked for"),
        ]  # fmt: skip


def test_the_queue_of_one_that_is_gone_is_the_next_ones_and_empty(
    tapped: Tapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_queues, "SETTLE_SECONDS", 1000.0)
    tapped.begin()
    with tapped.guest("a"):
        tapped.stage()
        number = tapped.own().number
    gone(tapped, "a")
    keys = {"uplink": "lan", "placement": "direct"}
    tapped.configure({"lan": Tap(device="vmqtap0")}, b=tapped.vm("b", 2, **keys))
    tapped.wire.send(frame(MACS[0], WIRE, 9))
    with tapped.guest("b") as b:
        tapped.stage("settling", "b")
        monkeypatch.setattr(own_queues, "SETTLE_SECONDS", 0.1)
        tapped.stage("led", "b")
        assert tapped.own("b").number == number
        tapped.carries(b, 1)
        assert tapped.placed("b") == 1


def test_buffers_too_short_for_the_longest_frame_leave_it_switched_for_a_while_and_longer_each_time(
    tapped: Tapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directing, "REST_SECONDS", 0.05)
    tapped.begin()

    def rested(pause: float) -> bool:
        return tapped.engine.directing._rests.get("a", Rest()).pause >= pause

    with tapped.guest("a", buffer_bytes=512, mergeable=False) as a:
        for number, pause in enumerate((0.05, 0.1, 0.2)):
            until(partial(rested, pause))
            tapped.carries(a, number)
        assert tapped.placed() == 0
        told = {
            one["why"] for one in tapped.do(tapped.engine.journal.since, 0) if one["event"] == "placement"
        }
        assert any("too short" in why for why in told)


def test_a_frame_of_another_in_its_queue_is_a_named_drop_and_ends_it_for_a_while(tapped: Tapped) -> None:
    """Somebody has led it there behind our back."""
    tapped.begin()
    with tapped.guest("a") as a:
        tapped.stage()
        led = dict.fromkeys(tapped.own().led, tapped.own().number)
        tapped.do(lambda: tapped.uplink.lead(led | {(mac_number(MACS[7]), 0): tapped.own().number}))
        tapped.wire.send(frame(MACS[7], WIRE, 66))
        tapped.stage("settling")
        assert tapped.show("uplinks", "lan")["drops"] == {"from_wire_astray": 1}
        tapped.carries(a, 1)
        assert "a" in tapped.engine.directing._rests


def test_an_address_that_goes_has_it_settle_and_one_that_comes_does_not(
    tapped: Tapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_queues, "SETTLE_SECONDS", 1000.0)
    tapped.begin()
    with tapped.guest("a") as a:
        tapped.stage()
        tapped.tap(mac=(MACS[0], MACS[7]))
        tapped.stage()
        tapped.wire.send(frame(MACS[7], WIRE, 1))
        assert a.receive(1, PATIENCE) == [frame(MACS[7], WIRE, 1)]
        assert tapped.placed() == 1
        tapped.tap()
        tapped.stage("settling")
        tapped.wire.send(frame(MACS[7], WIRE, 2))
        tapped.carries(a, 3)
        monkeypatch.setattr(own_queues, "SETTLE_SECONDS", 0.1)
        tapped.stage()
        tapped.carries(a, 4)
        tapped.tap(vlan=5)
        tapped.stage()
        tapped.wire.send(frame(a.mac, WIRE, 5))
        data = frame(a.mac, WIRE, 6)
        tapped.wire.send(data[:12] + b"\x81\0\0\5" + data[12:])
        assert a.receive(1, PATIENCE) == [data]
        until(lambda: tapped.show("uplinks", "lan")["drops"] == {"default_queue": 2})
        assert tapped.placed() == 3


def test_what_the_kernel_has_no_room_for_comes_by_the_queues_of_all(
    tapped: Tapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(7, "no more fit")

    tapped.begin()
    monkeypatch.setattr(TapUplink, "lead", full)  # before there is anything to lead
    with tapped.guest("a") as a:
        until(lambda: "no more fit" in tapped.engine.directing.whys.get("a", ""))
        tapped.carries(a, 1)
        assert "a" not in tapped.engine.directing.own_queues._owns
        monkeypatch.undo()
        tapped.stage()
        with monkeypatch.context() as patch:
            patch.setattr(TapUplink, "lead", full)
            tapped.tap(mac=(MACS[0], MACS[7]))
            tapped.wire.send(frame(MACS[7], WIRE, 2))
            assert a.receive(1, PATIENCE) == [frame(MACS[7], WIRE, 2)]
        assert any("no more fit" in line for line in tapped.log.lines)


MOVING = MACS[10], MACS[11]


def owners(tapped: Tapped, first: str, second: str) -> None:
    """VMs a and b are both direct; two addresses more are theirs, each at once."""
    vms = {}
    for number, name in ((1, "a"), (2, "b")):
        more = [mac for mac, owner in zip(MOVING, (first, second), strict=True) if owner == name]
        macs = (MACS[number - 1], *more)
        vms[name] = tapped.vm(name, number, uplink="lan", placement="direct", mac=macs)
    tapped.configure({"lan": Tap(device="vmqtap0")}, **vms)


def owner(tapped: Tapped, mac: int, vid: int = 0) -> int:
    """The receive queue that the newest tables have for an address."""
    tables = at(int(tapped.engine.segment.engine["tables"]), 1, state.tables)[0]
    return int(python_of(lookup)(tables, mac, vid, tapped.engine.uplink_number("lan")))


def test_while_addresses_change_owners_each_has_one_and_no_queue_gets_what_is_anothers(
    tapped: Tapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every version, and each time that the program is told: until all have moved two VMs have the same ones."""
    tapped.begin()
    told, versions, lead, publish = 0, 0, TapUplink.lead, tapped.engine.publish

    def checked(self: TapUplink, queues: Mapping[tuple[int, int], int]) -> None:
        nonlocal told
        owns = tapped.engine.directing.own_queues._owns.values()
        first = {own.number: own.vm.first_queue for own in owns}
        for key, number in queues.items():
            assert owner(tapped, *key) == first[number]
        told += len(queues)
        lead(self, queues)

    def published() -> None:
        nonlocal versions
        publish()
        assert all(owner(tapped, mac_number(mac)) >= 0 for mac in MOVING)
        versions += 1

    with tapped.guest("a"), tapped.guest("b"):
        owners(tapped, "a", "a")
        tapped.stage("led", "a")
        tapped.stage("led", "b")
        monkeypatch.setattr(TapUplink, "lead", checked)
        monkeypatch.setattr(tapped.engine, "publish", published)
        for first, second in (("b", "b"), ("a", "b"), ("b", "a"), ("a", "a"), ("b", "b")):
            owners(tapped, first, second)
        assert told
        assert versions


def numbered(mac: str, number: int) -> bytes:
    return frame(mac, WIRE, number, 100) + mac.encode() + number.to_bytes(4, "big")


def newest(one: Guest, mac: str) -> int:
    """The highest number of a frame to an address that any byte of a guest's memory tells of."""
    found = re.findall(re.escape(mac.encode()) + b"(....)", one.memory.read(0, one.memory.size), re.DOTALL)
    return max((int.from_bytes(number, "big") for number in found), default=-1)


def test_addresses_that_change_owners_at_once_lose_nothing_under_flow_and_leave_no_byte_behind(
    tapped: Tapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From when a configuration is in force, frames to an address are in the memory of its owner alone."""
    monkeypatch.setattr(own_queues, "SETTLE_SECONDS", 0.05)
    tapped.begin()
    owners(tapped, "a", "b")
    got: list[bytes] = []
    with tapped.guest("a", size=1024) as a, tapped.guest("b", size=1024) as b:
        guests = {"a": a, "b": b}

        def both_led() -> bool:
            got.extend(data for one in guests.values() for data in one.receive(1024, 0.01))
            stages = [tapped.do(tapped.engine.directing.stage, vm) for vm in tapped.engine.vms.values()]
            return stages == ["led", "led"]

        until(both_led)

        def both_led_and_more(placed: int) -> bool:
            return both_led() and sum(map(tapped.placed, guests)) > placed

        with flowing(tapped.wire, lambda number: numbered(MOVING[number % 2], number)) as sent:
            for now in (("b", "a"), ("a", "b"), ("b", "b"), ("a", "a"), ("b", "a")):
                owners(tapped, *now)
                mark = len(sent)
                until(both_led)
                placed = sum(map(tapped.placed, guests))
                until(partial(both_led_and_more, placed + 10))
                for mac, owner in zip(MOVING, now, strict=True):
                    assert newest(guests["b" if owner == "a" else "a"], mac) < mark
        deadline = time.monotonic() + PATIENCE
        while len(got) < len(sent):
            assert time.monotonic() < deadline, f"{len(sent) - len(got)} of {len(sent)} missing"
            both_led()
        assert sorted(got) == sorted(sent)
        assert tapped.show("uplinks", "lan")["drops"] == {}


def sending(wire: socket.socket, mac: str, meanwhile: Callable[[], None]) -> int:
    """Numbered frames without a pause until something has been done; how many."""
    stop, count = threading.Event(), 0

    def send() -> None:
        nonlocal count
        while not stop.is_set():
            wire.send(frame(mac, WIRE, count))
            count += 1
            time.sleep(0.0005)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        meanwhile()
    finally:
        stop.set()
        sender.join()
    return count


TURNS, EACH = 6, 10  # from processor to processor; frames that are placed by each at least


def adds_up(tapped: Tapped, count: int) -> None:
    """What the program, the lanes and the queue say of so many frames to one VM: each was led, read, and placed or copied."""
    uplink, row = tapped.show("uplinks", "lan"), tapped.show("queues", "a")
    assert (uplink["verdicts"], uplink["drops"]) == ({"own_queue": count, "ordinary": 0}, {})
    assert uplink["frames_from_wire"] == uplink["forwarded"] == uplink["copies"] == count
    assert row["offered_to_guest"] == row["frames_to_guest"] == count
    assert TURNS * EACH <= row["frames_placed"] <= count
    assert row["bytes_placed"] == 60 * row["frames_placed"]
    assert row["bytes_copied"] == 60 * (count - row["frames_placed"])


@two_processors
def test_under_flow_it_goes_from_processor_to_processor_and_no_frame_is_lost_or_overtaken(
    tmp_path: Path,
) -> None:
    with engine(tmp_path, tuple(TWO_CPUS)) as tapped:
        tapped.begin()
        with tapped.guest("a", size=1024) as a:
            tapped.stage()  # the program changes the ways of all flows once
            got, vm = list[bytes](), tapped.engine.vms["a"]
            stage_of = tapped.engine.directing.stage

            def there_and_back() -> None:
                deadline = time.monotonic() + PATIENCE
                for turn in range(TURNS):
                    before = tapped.placed()
                    tapped.do(lambda turn=turn: move(tapped, "a", (turn + 1) % 2))
                    while tapped.do(stage_of, vm) != "led" or tapped.placed() < before + EACH:
                        assert time.monotonic() < deadline
                        got.extend(a.receive(64, 0.01))

            count = sending(tapped.wire, a.mac, there_and_back)
            got += a.receive(count - len(got), PATIENCE)
            assert got == [frame(a.mac, WIRE, number) for number in range(count)]
            adds_up(tapped, count)


def test_where_somebody_else_had_queues_of_the_device_none_is_read_straight(tapped: Tapped) -> None:
    """When a stranger's queue is closed, another takes its number: nobody knows whose frames stand where."""
    tapped.begin(placement="switched")
    stranger = Namesake(tapped.near)
    tapped.tap()
    with tapped.guest("a") as a:
        until(lambda: "somebody else has queues" in tapped.engine.directing.whys.get("a", ""))
        tapped.carries(a, 1)
        stranger.close()
        for _ in range(3):
            tapped.do(tapped.uplink.tick)
            tapped.do(tapped.engine.directing.look)
        until(lambda: "somebody else has queues" in tapped.engine.directing.whys["a"])
        tapped.carries(a, 2)
        assert tapped.placed() == 0
