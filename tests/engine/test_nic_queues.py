# SPDX-License-Identifier: Apache-2.0
"""VMs with a receive queue of the NIC for their own: an engine in a namespace, on a veth that chooses queues by destination."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from pyroute2 import netns

from tests.direct.harness_nic import Nic
from tests.direct.holes import punch
from tests.engine.running import (
    FIRST_CPU,
    MACS,
    PATIENCE,
    TWO_CPUS,
    Running,
    frame,
    gone,
    two_processors,
    until,
)
from tests.vm.lab.netns import Namespace
from vmq.abi.ethernet import mac_number
from vmq.config import Xdp
from vmq.dataplane.reasons import TO_GUEST_NOT_RUNNING, TO_GUEST_TOO_LONG
from vmq.engine import directing as module
from vmq.engine.engine import Engine
from vmq.engine.mover import Move
from vmq.engine.nic_queues import WAITED
from vmq.linux import PAGE

pytestmark = pytest.mark.root
QUEUE = 2
FAR = "0e:00:00:00:00:01"
ALL = "ff:ff:ff:ff:ff:ff"
BATCH = 32


class Wired(Running):
    """An engine whose uplink `lan` is a NIC with rules; `nic` is that."""

    nic: Nic


@contextmanager
def rig(folder: Path, cpus: Sequence[int] = (FIRST_CPU,)) -> Iterator[Wired]:
    with Namespace("engine") as near, Namespace("far") as far:
        for end in (near, far):
            end.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        with Nic(near, far) as nic:

            def make() -> Engine:
                netns.setns(near.name, flags=0)
                return Engine("test.toml", tuple(cpus), "a test")

            with Wired(folder, make=make) as running:
                running.nic = nic
                nic.rule(mac_number(MACS[0]), QUEUE)
                yield running


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Wired]:
    with rig(tmp_path) as running:
        yield running


def configure(running: Wired, **keys: Any) -> None:
    keys = {"uplink": "lan", "placement": "direct", "nic_queue": QUEUE} | keys
    running.configure(
        {"lan": Xdp(device="nic0", prepared=True)},
        a=running.vm("a", 1, **keys),
        b=running.vm("b", 2, uplink="lan"),
    )


def stage(running: Wired, wanted: str = "led") -> None:
    vm = running.engine.vms["a"]
    until(
        lambda: running.do(running.engine.directing.stage, vm) == wanted,
        f"{wanted}: {running.engine.directing.whys}",
    )


def words(running: Wired, name: str = "a") -> tuple[str, str]:
    """What is in effect of its placement, and why."""
    (found,) = (
        one for one in running.show("settings") if (one["of"], one["name"]) == (f"vm {name}", "placement")
    )
    return found["effective"], found["why"]


def sends(running: Wired, guest: Any, first: int, count: int, to: str = "") -> None:
    """So many frames by the wire, a few at a time: the guest gets them in order."""
    for start in range(first, first + count, BATCH):
        numbers = range(start, min(start + BATCH, first + count))
        frames = [frame(to or guest.mac, FAR, number, 60 + number * 13 % 1400) for number in numbers]
        running.nic.send(*frames)
        assert guest.receive(len(frames), PATIENCE) == frames


def own_of(running: Wired) -> Any:
    return running.engine.directing.nic_queues._owns["a"]


def events(running: Wired) -> list[tuple[str, str]]:
    told = [one for one in running.do(running.engine.journal.since, 0) if one["event"] == "placement"]
    return [(one["placement"], one["why"]) for one in told]


def test_frames_of_the_queue_land_in_guest_memory_and_those_of_others_do_not(wired: Wired) -> None:
    configure(wired)
    with wired.guest("a") as a, wired.guest("b") as b:
        stage(wired)
        assert words(wired) == ("direct", "by a NIC queue of its own")
        for lap in range(60):
            sends(wired, a, lap * BATCH, BATCH)
            sends(wired, b, lap, 1)
        found = wired.show("vms", "a")
        assert (found["frames_placed"], found["bytes_copied"]) == (60 * BATCH, 0)
        assert wired.show("vms", "b")["frames_placed"] == 0
        (asked,) = (
            one for one in wired.show("settings") if (one["of"], one["name"]) == ("vm a", "nic_queue")
        )
        assert (asked["requested"], asked["effective"]) == (QUEUE, QUEUE)
        assert asked["why"].startswith("who owns the NIC leads its addresses there: nic0 takes no rules")
        lane = wired.show("uplinks", "lan")
        assert lane["verdicts"]["own_queue"] == 60 * BATCH
        assert lane["frames_from_wire"] == lane["forwarded"] + sum(lane["drops"].values())


def test_a_broadcast_has_it_switched_for_a_moment_and_nothing_is_lost(wired: Wired) -> None:
    configure(wired)
    with wired.guest("a") as a, wired.guest("b") as b:
        for lap in range(4):
            stage(wired)
            sends(wired, a, lap, 1)
            data = frame(ALL, FAR, lap)
            wired.nic.send(data)
            assert (a.receive(1, PATIENCE), b.receive(1, PATIENCE)) == ([data], [data])
            sends(wired, a, lap, BATCH)
        assert events(wired)[:3] == [("direct", ""), ("switched", WAITED), ("direct", "")]


def test_a_neighbours_frame_and_its_own_by_another_queue_come_too(wired: Wired) -> None:
    configure(wired)
    with wired.guest("a") as a, wired.guest("b") as b:
        stage(wired)
        b.send([frame(a.mac, b.mac, 1)])
        assert a.receive(1, PATIENCE) == [frame(a.mac, b.mac, 1)]
        stage(wired)
        wired.nic.rule(mac_number(a.mac), 1)
        sends(wired, a, 0, BATCH)
        wired.nic.rule(mac_number(a.mac), QUEUE)
        stage(wired)
        sends(wired, a, 0, BATCH)
        assert [why for _, why in events(wired)] == ["", WAITED, "", WAITED, ""]


def test_frames_of_others_that_come_by_its_queue_are_theirs(wired: Wired) -> None:
    configure(wired)
    with wired.guest("a") as a, wired.guest("b") as b:
        stage(wired)
        for mac in (b.mac, MACS[7]):
            wired.nic.rule(mac_number(mac), QUEUE)
        for number in range(BATCH):
            wired.nic.send(frame(MACS[7], FAR, number))
            sends(wired, b, number, 1)
            sends(wired, a, number, 1)
        assert int(wired.show("vms", "a")["frames_to_guest"]) == BATCH
        assert wired.do(wired.engine.directing.stage, wired.engine.vms["a"]) == "led"


def test_a_frame_that_is_longer_than_its_mtu_is_dropped_by_name_and_it_stays_direct(wired: Wired) -> None:
    configure(wired, mtu=1000)
    rows = wired.engine.vms["a"].queue_rows
    with wired.guest("a") as a, wired.guest("b") as b:
        stage(wired)
        for number in range(3):
            wired.nic.send(frame(a.mac, FAR, number, 1200))
            b.send([frame(a.mac, b.mac, number, 1200)])
        until(lambda: int(rows()[0]["to_guest_drops"][TO_GUEST_TOO_LONG]) == 6)
        sends(wired, a, 0, 1)
        assert events(wired) == [("direct", "")]


def test_it_is_made_once_and_kept_while_something_is_in_the_way(wired: Wired) -> None:
    configure(wired)
    with wired.guest("a") as a:
        stage(wired)
        made = own_of(wired).socket
        for number, (on, wanted) in enumerate([(True, "kept"), (False, "led")]):
            wired.do(lambda on=on: wired.engine.vms["a"].observed.measure(on=on))
            stage(wired, wanted)
            assert own_of(wired).socket is made
            sends(wired, a, number, BATCH)
        assert wired.show("vms", "a")["frames_placed"] == BATCH


def test_auto_is_direct_whatever_the_length_of_frames(wired: Wired) -> None:
    """The kernel does the same for them in both placements."""
    configure(wired, placement="auto")
    with wired.guest("a") as a:
        stage(wired)
        sends(wired, a, 0, BATCH)


def test_a_driver_that_stops_and_starts_gets_the_same_and_other_memory_another(wired: Wired) -> None:
    configure(wired)
    with wired.guest("a") as a:
        stage(wired)
        made = own_of(wired).socket
        for number in range(3):
            a.stop()
            assert wired.do(wired.engine.directing.stage, wired.engine.vms["a"]) == "kept"
            a.start()
            stage(wired)
            assert own_of(wired).socket is made
            sends(wired, a, number, BATCH)
    gone(wired, "a")
    until(lambda: "a" not in wired.engine.directing.nic_queues._owns)
    with wired.guest("a") as a:
        stage(wired)
        assert own_of(wired).socket is not made
        sends(wired, a, 0, BATCH)


def test_memory_of_which_pages_were_given_back_is_never_direct_again(wired: Wired) -> None:
    configure(wired)
    with wired.guest("a") as a:
        stage(wired)
        descriptor = wired.do(lambda: wired.engine.vms["a"].session.regions[0].fd)
        punch(descriptor, os.fstat(descriptor).st_size - PAGE)
        stage(wired, "switched")
        assert "given back to the host" in wired.engine.directing.whys["a"]
        sends(wired, a, 0, BATCH)


def test_buffers_that_are_none_for_the_kernel_leave_it_switched_and_lose_nothing(wired: Wired) -> None:
    configure(wired)
    with wired.guest("a", buffer_bytes=512) as a:
        until(lambda: "none for the kernel" in wired.engine.directing.whys.get("a", ""))
        for number in range(BATCH):
            sends(wired, a, number, 1)
        assert wired.show("vms", "a")["frames_placed"] == 0


REFUSED = [
    ({"nic_queue": 7}, "4 receive queues, 0 to 3"),
    ({"nic_queue": 1}, "queues 0 to 1 of nic0 are the engine's"),
    ({"vlan": 5}, "VLAN tag"),
]


@pytest.mark.parametrize(("keys", "why"), REFUSED[::2])
def test_a_queue_that_cannot_be_had_is_refused_in_words_and_the_vm_gets_a_pair(
    wired: Wired, keys: dict[str, Any], why: str
) -> None:
    configure(wired, **keys)
    with wired.guest("a") as a:
        stage(wired)
        assert words(wired)[1].startswith("by a pair of its own")
        assert why in wired.do(wired.engine.directing.nic_queues.refused, wired.engine.vms["a"])
        if "vlan" not in keys:
            sends(wired, a, 0, BATCH)


def test_a_queue_that_somebody_has_a_socket_on_is_refused_too(wired: Wired) -> None:
    with wired.nic.busy(QUEUE):
        configure(wired)
        with wired.guest("a") as a:
            stage(wired)
            assert words(wired)[1].startswith("by a pair of its own")
            assert "busy" in wired.do(wired.engine.directing.nic_queues.refused, wired.engine.vms["a"])
            sends(wired, a, 0, BATCH)


def test_another_queue_in_the_configuration_and_none_and_back(wired: Wired) -> None:
    configure(wired)
    with wired.guest("a") as a:
        for queue, way in ((QUEUE, "NIC queue"), (3, "NIC queue"), (None, "pair"), (QUEUE, "NIC queue")):
            wired.nic.rule(mac_number(a.mac), queue or 1)
            configure(wired, nic_queue=queue)
            stage(wired)
            assert way in words(wired)[1]
            sends(wired, a, 0, BATCH)
        configure(wired, placement="switched")
        sends(wired, a, 0, BATCH)
        assert wired.engine.directing.nic_queues._owns == {}


def test_addresses_come_and_go_while_it_is_led(wired: Wired) -> None:
    configure(wired)
    with wired.guest("a") as a:
        stage(wired)
        wired.nic.rule(mac_number(MACS[7]), QUEUE)
        for _ in range(2):
            configure(wired, mac=(MACS[0], MACS[7]))
            for number in range(BATCH):
                sends(wired, a, number, 1, to=MACS[7])
                sends(wired, a, number, 1)
            configure(wired)
            wired.nic.send(frame(MACS[7], FAR, 1))
            sends(wired, a, 0, 1)
        assert events(wired) == [("direct", "")]
        assert wired.show("vms", "a")["frames_placed"] == 4 * BATCH + 2


class Flow:
    """Frames by the wire from a thread, numbered, never more on their way than the guest has buffers: none may be lost."""

    ROOM = 24

    def __init__(self, running: Wired, guest: Any, groups: int = 0) -> None:
        self.running, self.guest, self.groups = running, guest, groups
        self.sent = self.got = self.cast = self.heard = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        while not self._stop.is_set():
            if self.sent + self.cast - self.got - self.heard >= self.ROOM:
                self._stop.wait(0.0002)
                continue
            if self.groups and self.sent % self.groups == self.groups - 1:
                self.running.nic.send(frame(ALL, FAR, self.cast))
                self.cast += 1
            self.running.nic.send(frame(self.guest.mac, FAR, self.sent, 60 + self.sent % 1400))
            self.sent += 1

    def until(self, condition: Callable[[], bool]) -> None:
        """Take what comes until something holds."""
        deadline = time.monotonic() + 3 * PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            self.take()

    def take(self, timeout: float = 0.01) -> None:
        """What has come: each path in order, nothing twice, nothing left out."""
        for data in self.guest.receive(self.ROOM, timeout):
            if data[0] & 1:
                assert data == frame(ALL, FAR, self.heard)
                self.heard += 1
            else:
                assert data == frame(self.guest.mac, FAR, self.got, 60 + self.got % 1400)
                self.got += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        deadline = time.monotonic() + PATIENCE
        while (self.got, self.heard) != (self.sent, self.cast):
            assert time.monotonic() < deadline, (self.got, self.sent, self.heard, self.cast)
            self.take()


def test_while_frames_never_stop_it_leaves_and_enters_and_all_come_once_and_in_order(wired: Wired) -> None:
    configure(wired)
    vm = wired.engine.vms["a"]
    with wired.guest("a") as a, Flow(wired, a) as flow:
        for turn in range(60):
            wired.do(lambda on=turn % 2 == 0: vm.observed.measure(on=on))
            wired.do(wired.engine.directing.look)
            for _ in range(3):
                flow.take()
        stage(wired)
    assert flow.got > 1000
    assert len(events(wired)) > 40
    found = wired.show("vms", "a")
    assert found["frames_placed"] > 0
    assert found["bytes_copied"] > 0


def test_among_broadcasts_each_path_comes_once_and_in_order(
    wired: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LITTLE_SECONDS", 0.05)
    monkeypatch.setattr(module, "LITTLE_MOST", 0.05)
    configure(wired)
    with wired.guest("a") as a, Flow(wired, a, groups=200) as flow:
        flow.until(lambda: len(events(wired)) > 20)
    assert flow.heard > 5


@two_processors
def test_its_receive_queue_moves_while_frames_flow(tmp_path: Path) -> None:
    with rig(tmp_path, TWO_CPUS) as wired:
        configure(wired, nic_queue=3)
        wired.nic.rule(mac_number(MACS[0]), 3)
        vm = wired.engine.vms["a"]
        with wired.guest("a") as a, Flow(wired, a) as flow:
            stage(wired)
            for turn in range(20):
                wired.do(lambda to=turn % 2: wired.engine.mover.move_all([Move(vm, 0, to)]))
                wired.do(wired.engine.publish)
                for _ in range(3):
                    flow.take()
            flow.until(lambda: wired.do(wired.engine.directing.stage, vm) == "led")
        assert flow.got > 200


@two_processors
def test_a_queue_that_is_the_engines_is_refused(tmp_path: Path) -> None:
    keys, why = REFUSED[1]
    with rig(tmp_path, TWO_CPUS) as wired:
        configure(wired, **keys)
        wired.nic.rule(mac_number(MACS[0]), 1)
        with wired.guest("a") as a:
            stage(wired)
            assert why in wired.do(wired.engine.directing.nic_queues.refused, wired.engine.vms["a"])
            sends(wired, a, 0, BATCH)


def test_a_fault_stops_it_and_its_driver_starts_anew(wired: Wired) -> None:
    configure(wired)
    with wired.guest("a") as a:
        stage(wired)
        vm = wired.engine.vms["a"]
        rows = wired.engine.segment.rows["port_state"]
        wired.do(lambda: rows["fault"].__setitem__(vm.number, 1))
        wired.nic.send(frame(a.mac, FAR, 66))
        stage(wired, "kept")
        until(lambda: int(vm.queue_rows()[0]["to_guest_drops"][TO_GUEST_NOT_RUNNING]) == 1)
        a.stop()
        a.start()
        stage(wired)
        sends(wired, a, 0, BATCH)


def test_an_engine_that_ends_leaves_the_queue_and_the_device_to_others(wired: Wired) -> None:
    def end() -> None:
        assert wired.engine._tick is not None
        wired.engine._tick.cancel()
        wired.engine.directing.close()

    configure(wired)
    with wired.guest("a") as a:
        stage(wired)
        sends(wired, a, 0, BATCH)
        wired.do(end)
        with wired.nic.busy(QUEUE):
            assert wired.engine.directing.nic_queues._owns == {}
        sends(wired, a, 0, BATCH)  # by packet sockets


def test_frames_of_other_paths_have_it_rest_longer_each_time_unless_it_was_direct_for_long(
    running: Running,
) -> None:
    directing, vm = running.engine.directing, SimpleNamespace(name="a")
    pauses = []
    for _ in range(7):
        directing.rest_a_little(vm, "a test")  # type: ignore[arg-type]
        pauses.append(directing._little["a"].pause)
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    last = directing._little["a"]
    directing._little["a"] = replace(last, until=last.until - 5.0 - module.WELL * 5.0)
    directing.rest_a_little(vm, "a test")  # type: ignore[arg-type]
    assert directing._little["a"].pause == 0.2
