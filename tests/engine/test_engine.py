# SPDX-License-Identifier: Apache-2.0
"""A whole engine with guests on real sockets: what changes disturbs nobody else, and what goes leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.running import (
    FIRST_CPU,
    MACS,
    NO_FRAMES,
    TWO_CPUS,
    Running,
    exchange,
    frame,
    gone,
    guest_maps,
    held,
    open_files,
    two_processors,
    until,
)
from vmq.abi.ethernet import mac_number
from vmq.abi.vhost_user import Request
from vmq.config import Memory
from vmq.engine import engine as module
from vmq.engine.engine import Engine
from vmq.guest.guest import Guest
from vmq.topology import read

# --- guests -----------------------------------------------------------------------------------------------------


def test_two_guests_talk_and_leave_nothing(running: Running):
    running.pair()
    before = held(running)
    for _round in range(3):
        with running.guest("a") as a, running.guest("b") as b:
            exchange(a, b)
        gone(running, "a", "b")
        assert held(running) == before


def test_a_guest_with_two_pairs_works_with_any_of_them(running: Running):
    """It sends on either; what is for it comes on the first."""
    running.configure(a=running.vm("a", 1, queue_pairs=4), b=running.vm("b", 2))
    with running.guest("a", queues=2) as a, running.guest("b") as b:
        exchange(a, b)
        a.send([frame(b.mac, a.mac, 9)], queue=1)
        assert b.receive(1) == [frame(b.mac, a.mac, 9)]
        assert [row["queue"] for row in running.show("queues") if row["vm"] == "a"] == [0, 1]


def test_a_paused_guest_goes_on_where_it_stopped(running: Running):
    """GET_VRING_BASE, then the same memory and indices."""
    running.pair()
    with running.guest("a") as a, running.guest("b") as b:
        for _round in range(3):
            exchange(a, b)
            a.stop()
            assert running.show("vms", "a")["state"] == "connected"
            a.start()
        a.stop()
        a.reset()
        a.start()
        exchange(a, b)


def test_a_guest_reconnects_and_its_neighbour_notices_nothing(running: Running):
    running.pair()
    with running.guest("a") as a, running.guest("b") as b:
        session = running.engine.vms["b"].session
        for _round in range(5):
            exchange(a, b)
            a.reconnect()
        assert running.engine.vms["b"].session is session
        assert running.show("vms", "a")["connects"] == 6


def test_connect_mode_serves_a_guest_that_listens(running: Running):
    """mode = "connect": and again when it comes back."""
    running.configure(a=running.vm("a", 1, mode="connect"), b=running.vm("b", 2))
    assert running.show("vms", "a")["state"] == "connecting"
    with running.guest("a", server=True) as a, running.guest("b") as b:
        exchange(a, b)
        a.reconnect()
        exchange(a, b)


def test_h24_8_a_thousand_connections_leave_nothing(running: Running):
    """H24.8: connect, shake hands, hang up."""
    running.pair()
    before = held(running)
    with running.guest("b") as b:
        lender = running.guest("a")
        front = lender.frontend
        for _ in range(1000):
            front.connect()
            front.handshake(lender.features)
            front.disconnect()
        gone(running, "a")
        assert running.engine.vms["a"].connects == 1000
        lender.close()
        with running.guest("a") as a:
            exchange(a, b)
    gone(running, "a", "b")
    assert held(running) == before


def steps(guest: Guest) -> Iterator[str]:
    """A start, message by message."""
    front = guest.frontend
    front.connect()
    yield "connected"
    front.handshake(guest.features)
    yield "handshake"
    front.set_features()
    yield "features"
    front.set_memory(guest.memory)
    yield "memory"
    for one in guest.virtqueues:
        one.agree(mergeable=True, event_idx=True, indirect=True)
        guest._post(one)
        ring = one.place()
        front.tell(Request.SET_VRING_NUM, struct.pack("=II", ring.index, ring.size))
        yield f"size {ring.index}"
        front.start_ring(ring, 0)
        yield f"ring {ring.index}"
        front.enable(ring.index)
        yield f"enabled {ring.index}"
    front.stop_ring(0)
    yield "stopped 0"


STEPS = ["connected", "handshake", "features", "memory"]
STEPS += [f"{what} {index}" for index in (0, 1) for what in ("size", "ring", "enabled")] + ["stopped 0"]


@pytest.mark.parametrize("last", STEPS)
def test_h24_6_a_front_end_may_go_at_any_step_and_its_neighbours_talk_on(running: Running, last: str):
    """H24.6: by a hang-up in the middle of a message, too."""
    running.configure(a=running.vm("a", 1), b=running.vm("b", 2), c=running.vm("c", 3))
    with running.guest("b") as b, running.guest("c") as c:
        before = held(running)
        guest = running.guest("a")
        for name in steps(guest):
            if name == last:
                break
        guest.frontend.wire.send(b"\x0d\x00\x00")
        guest.close()
        gone(running, "a")
        exchange(b, c)
        assert held(running) == before
        with running.guest("a") as a:
            exchange(a, b)
        gone(running, "a")


# --- hostile front-ends -----------------------------------------------------------------------------------------


def test_a_flood_of_nonsense_on_one_socket_leaves_the_others_alone(running: Running):
    """O3 to O5, O8: refused messages are few lines in the log, and the port works afterwards."""
    running.configure(a=running.vm("a", 1), b=running.vm("b", 2), c=running.vm("c", 3))
    with running.guest("b") as b, running.guest("c") as c:
        hostile = running.guest("a")
        for number in range(2000):
            with contextlib.suppress(ConnectionError):  # closed, since it reads no answers
                if not hostile.frontend.connected:
                    hostile.frontend.connect()
                hostile.frontend.send(number % 64, os.urandom(number % 40))
            if number % 500 == 0:
                exchange(b, c)
        hostile.close()
        exchange(b, c)
        gone(running, "a")
        assert len(running.log.lines) < 20
        with running.guest("a") as a:
            exchange(a, b)


def test_h24_9_a_front_end_that_reads_no_replies_is_closed(running: Running):
    """And the loop serves others meanwhile."""
    running.pair()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(running.path("a"))
        deaf.settimeout(20)
        question = struct.pack("=III", 1, 1, 0) * 1000
        with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):
            until(lambda: deaf.send(question) == 0)
        assert "does not read its replies" in running.show("vms", "a")["last_error"]["what"]
    gone(running, "a")


def test_a_second_front_end_is_turned_away_and_the_first_talks_on(running: Running):
    running.pair()
    with running.guest("a") as a, running.guest("b") as b:
        with socket.socket(socket.AF_UNIX) as second:
            second.settimeout(20)
            second.connect(running.path("a"))
            assert second.recv(1) == b""
        exchange(a, b)
        assert "second front-end" in running.show("vms", "a")["last_error"]["what"]


def test_h12_5_who_makes_a_processor_wait_in_a_call_is_cut_off(running: Running):
    """The peer takes O_NONBLOCK back and fills its call: the neighbour and control go on, the peer has to wait."""
    running.configure(a=running.vm("a", 1), b=running.vm("b", 2), c=running.vm("c", 3))
    with running.guest("a", event_idx=False) as a, running.guest("b") as b, running.guest("c") as c:
        exchange(a, b)
        call = a.virtqueue(0, to_guest=True).call_fd
        os.set_blocking(call, False)
        a.virtqueue(0, to_guest=True).want_calls()
        a.virtqueue(0, to_guest=True).drain_calls()
        os.eventfd_write(call, (1 << 64) - 2)
        os.set_blocking(call, True)
        b.send([frame(a.mac, b.mac)])
        until(lambda: not a.frontend.connected, "it is disconnected")
        exchange(b, c)
        assert "blocked a processor" in running.show("vms", "a")["last_error"]["what"]
        with socket.socket(socket.AF_UNIX) as again:
            again.settimeout(20)
            again.connect(running.path("a"))
            assert again.recv(1) == b"", "not at once"


def test_events_wake_control_a_bounded_number_of_times(running: Running):
    """A guest that sends from ever new addresses makes an event a frame."""
    running.pair()
    with running.guest("a") as a, running.guest("b") as b:
        calls: list[float] = []
        judge = running.engine.vms["a"].judge
        running.engine.vms["a"].judge = lambda: (calls.append(time.monotonic()), judge())  # type: ignore[assignment, func-returns-value]
        sent = 0
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            a.send([frame(b.mac, f"02:00:00:00:{sent % 256:02x}:{n:02x}") for n in range(32)])
            sent += 32
        span = time.monotonic() - began
        a.sent()
        assert sent > 200
        assert len(calls) <= span / module.EVENTS_PAUSE_SECONDS + 5
        exchange(a, b)


# --- uplinks ----------------------------------------------------------------------------------------------------


def test_what_no_filter_names_leaves_by_the_uplink(running: Running):
    running.configure({"lan": NO_FRAMES}, a=running.vm("a", 1, uplink="lan"))
    with running.guest("a") as a:
        a.send([frame(MACS[40], a.mac, number) for number in range(5)])
        assert a.sent()
        until(lambda: running.show("uplinks", "lan")["frames_to_wire"] == 5)


def test_an_announcement_leaves_through_the_uplink(running: Running, monkeypatch: pytest.MonkeyPatch):
    """SEND_RARP after a migration."""
    running.configure({"lan": NO_FRAMES}, a=running.vm("a", 1, uplink="lan", vlan=7), b=running.vm("b", 2))
    sent: list[bytes] = []
    monkeypatch.setattr(running.engine.uplinks["lan"].uplink, "send", sent.append)
    with running.guest("a") as a, running.guest("b") as b:
        for guest in (a, b):
            guest.frontend.tell(Request.SEND_RARP, struct.pack("=Q", mac_number(guest.mac)))
    (one,) = sent
    assert one[6:12] == bytes.fromhex(MACS[0].replace(":", ""))
    assert one[12:18] == b"\x81\x00\x00\x07\x80\x35"


def test_a_paused_engine_takes_nothing_from_the_wire(running: Running):
    """Until its guests are there; then what the uplink makes is for its VMs in turn."""
    running.engine.paused = True
    running.configure(
        {"lan": Memory(count=8, flows=2)},
        a=running.vm("a", 1, uplink="lan"),
        b=running.vm("b", 2, uplink="lan"),
    )
    with running.guest("a") as a, running.guest("b") as b:
        assert running.show("uplinks", "lan")["frames_from_wire"] == 0
        running.engine.paused = False
        running.do(running.engine.publish)
        assert [len(one.receive(4)) for one in (a, b)] == [4, 4]
        assert running.show("uplinks", "lan")["frames_from_wire"] == 8


# --- the end ---------------------------------------------------------------------------------------------------


def test_a_dead_processor_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """H28.5: never silent."""

    def broken(_address: int) -> None:
        raise RuntimeError("in a kernel")

    def make() -> Engine:
        monkeypatch.setattr("vmq.worker.loop.run", broken)
        return Engine("test.toml", (FIRST_CPU,), "a test")

    running = Running(tmp_path, make=make)
    until(lambda: running.problems)
    assert str(running.problems[0]) == "in a kernel"
    running.configure(a=running.vm("a"))  # nobody waits for it
    running.close()


def test_a_stuck_processor_ends_the_engine_and_its_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What it may still use stays mapped; nothing waits for ever."""
    monkeypatch.setattr("vmq.publisher.SETTLE_SECONDS", 0.05)
    running = Running(tmp_path)
    running.pair()
    monkeypatch.setattr(running.engine.publisher, "reached", lambda: 0)
    running.close()
    assert os.listdir(tmp_path) == []
    assert [type(problem) for problem in running.problems] == [TimeoutError]


def test_everything_is_given_back_at_the_end(tmp_path: Path):
    """Threads, sockets, descriptors, mappings, the anchor: with guests connected."""
    import threading

    before = open_files(), guest_maps(), threading.active_count()
    maps = Path("/proc/self/maps").read_text().count("\n")
    for _round in range(5):
        running = Running(tmp_path)
        running.configure(
            {"lan": NO_FRAMES}, a=running.vm("a", 1, uplink="lan"), b=running.vm("b", 2, uplink="lan")
        )
        a, b = running.guest("a").start(), running.guest("b").start()
        exchange(a, b)
        running.close()
        assert os.listdir(tmp_path) == []
        a.close()
        b.close()
    assert (open_files(), guest_maps(), threading.active_count()) == before
    assert Path("/proc/self/maps").read_text().count("\n") < maps + 60


def test_an_engine_that_was_never_started_can_be_closed(tmp_path: Path):
    """Something before it could not be opened."""
    before = open_files()

    async def make_and_close() -> None:
        Engine("test.toml", (FIRST_CPU,), "a test").close()

    asyncio.run(make_and_close())
    assert open_files() == before


@two_processors
def test_control_keeps_off_the_processors_of_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It, and what it starts; what a configuration may name stays the same, and in the end it is where it was."""
    before, after = os.sched_getaffinity(0), list[set[int]]()
    with Running(tmp_path, cpus=(FIRST_CPU,)) as running:
        engine = running.engine
        worker, watchdog = engine.workers[0], engine.watchdog._thread.native_id
        until(lambda: worker.thread_id and os.sched_getaffinity(worker.thread_id) == {FIRST_CPU})
        assert watchdog is not None
        assert os.sched_getaffinity(watchdog) == before - {FIRST_CPU}
        assert running.do(os.sched_getaffinity, 0) == before - {FIRST_CPU}
        assert running.do(lambda: read().allowed) == tuple(sorted(before))

        def close(really: Callable[[], None] = engine.close) -> None:
            really()
            after.append(os.sched_getaffinity(0))

        monkeypatch.setattr(engine, "close", close)
    assert after == [before]


@two_processors
def test_control_stays_where_there_is_no_other_processor(tmp_path: Path):
    with Running(tmp_path, cpus=tuple(TWO_CPUS)) as running:
        before = running.do(os.sched_getaffinity, 0)
        assert before == (os.sched_getaffinity(0) - set(TWO_CPUS) or os.sched_getaffinity(0))
