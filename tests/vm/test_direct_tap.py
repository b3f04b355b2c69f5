# SPDX-License-Identifier: Apache-2.0
"""Direct placement from a TAP, from outside: an engine in a namespace, whose stack sends, and guests with queues of their own."""

from __future__ import annotations

import fcntl
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.engine.running import FIRST_CPU
from tests.hostile.arena import MACS, PATIENCE, frame, until, until_equal
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.netns import Namespace
from tests.vm.test_direct import DIRECT, direct, is_placed, meanwhile, placement
from tests.vm.test_xdp import WIRE, guest, reload, tagged, vm
from vmq.abi.linux import IFF_NO_PI, IFF_TAP, TUNSETIFF
from vmq.guest.guest import Guest
from vmq.uplink import link

pytestmark = pytest.mark.root
# One processor: with several the first VM that becomes direct changes the ways of all flows once.
ENGINE = '[engine]\napi = "{folder}/api.sock"\n' + f'processors = "{FIRST_CPU}"\n'
UPLINK = ENGINE + '[uplink.wire]\nkind = "tap"\ndevice = "vmqtap0"\n'
TEN = f"vlan = 10\n{DIRECT}"


@pytest.fixture
def near() -> Iterator[Namespace]:
    with Namespace("engine") as made:
        made.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        yield made


@contextmanager
def host(near: Namespace, device: str = "vmqtap0") -> Iterator[socket.socket]:
    """The host's stack, at the other end of the TAP."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind((device, 3))
        made.settimeout(PATIENCE)
        return made

    with near.call(make) as one:
        yield one


def row(engine: EngineProcess, name: str) -> dict[str, Any]:
    """The counters of a VM's first receive queue."""
    (found,) = [one for one in engine.ask("show", what="queues") if (one["vm"], one["queue"]) == (name, 0)]
    return dict(found)


def placed(engine: EngineProcess, name: str) -> tuple[int, int]:
    """Frames that a guest got, and those of them that the kernel placed."""
    found = row(engine, name)
    return found["frames_to_guest"], found["frames_placed"]


def test_frames_land_in_order_untagged_and_from_a_vlan(tmp_path: Path, near: Namespace):
    config = UPLINK + vm("attacker", DIRECT) + vm("third", TEN) + vm("peer")
    ours = [frame("attacker", WIRE, number, size=60 + number) for number in range(200)]
    theirs = [frame("third", WIRE, number, size=1514 - number) for number in range(100)]
    others = [frame("peer", WIRE, number) for number in range(20)]
    everybody = frame("ff:ff:ff:ff:ff:ff", WIRE, 99)
    with EngineProcess(tmp_path, config, near) as engine, host(near) as wire:
        with (
            direct(engine, "attacker") as one,
            direct(engine, "third") as third,
            guest(engine, "peer") as peer,
        ):
            assert placement(engine, "attacker")["why"] == "by a queue of its own"
            for index, data in enumerate(ours):
                wire.send(data)
                if index < len(theirs):
                    wire.send(tagged(theirs[index], 0x600A))
                if index < len(others):
                    wire.send(others[index])
            assert one.receive(len(ours), PATIENCE) == ours
            assert third.receive(len(theirs), PATIENCE) == theirs
            assert peer.receive(len(others), PATIENCE) == others
            assert (placed(engine, "attacker"), placed(engine, "third")) == ((200, 200), (100, 100))
            assert placed(engine, "peer") == (20, 0)
            assert row(engine, "third")["bytes_placed"] == sum(map(len, theirs))
            wire.send(everybody)
            wire.send(tagged(frame("attacker", WIRE), 10))  # in another VLAN it is nobody's
            assert one.receive(1, PATIENCE) == [everybody]
            assert peer.receive(1, PATIENCE) == [everybody]
            peer.send([frame("attacker", MACS["peer"], 5)])
            assert one.receive(1, PATIENCE) == [frame("attacker", MACS["peer"], 5)]
            one.send([frame(WIRE, MACS["attacker"], 7)])
            until(lambda: wire.recv(2000) == frame(WIRE, MACS["attacker"], 7))
        shown = engine.show("uplinks")["wire"]
        assert shown["verdicts"]["own_queue"] == len(ours) + len(theirs)
        assert shown["frames_from_wire"] == shown["forwarded"] + sum(shown["drops"].values())
        assert shown["drops"] == {"default_queue": 1}


def test_tags_that_the_kernel_has_taken_out_of_the_frame_lead_to_the_same_vms(
    tmp_path: Path, near: Namespace
):
    """As of frames that a bridge has received: a tag of another kind is payload."""
    config = UPLINK + 'bridge = "br0"\n' + vm("attacker", DIRECT) + vm("third", TEN)
    with Namespace("far") as far:
        far.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        near.run("ip", "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0")
        near.up("br0")
        near.veth("port0", far, "host0")
        near.run("ip", "link", "set", "port0", "master", "br0")
        with (
            EngineProcess(tmp_path, config, near) as engine,
            direct(engine, "attacker") as one,
            direct(engine, "third") as third,
            host(far, "host0") as wire,
        ):
            number = 0

            def crosses() -> bool:
                """Whether the ports of the bridge forward by now."""
                nonlocal number
                number += 1
                wire.send(frame("attacker", WIRE, number))
                return bool(one.receive(1, 0.2))

            until(crosses)
            while one.receive(1, 0.2):
                pass
            service = (
                frame("attacker", WIRE, 1)[:12] + bytes.fromhex("88a8000a") + frame("attacker", WIRE)[12:]
            )
            ours = [frame("attacker", WIRE, 1), tagged(frame("attacker", WIRE, 2), 0x6000), service]
            for data in (*ours, tagged(frame("third", WIRE, 4), 10), tagged(frame("attacker", WIRE, 5), 10)):
                wire.send(data)
            assert one.receive(len(ours), PATIENCE) == ours
            assert third.receive(1, PATIENCE) == [frame("third", WIRE, 4)]
            assert placed(engine, "third") == (1, 1)
            assert engine.show("uplinks")["wire"]["drops"] == {"default_queue": 1}


def flow(wire: socket.socket, make: Callable[[int], bytes], sent: list[bytes], stop: threading.Event) -> None:
    """Send until told otherwise."""
    while not stop.is_set():
        sent.append(make(len(sent)))
        wire.send(sent[-1])
        time.sleep(0.002)  # a guest has buffers for what comes while nobody looks


@contextmanager
def flowing(wire: socket.socket, make: Callable[[int], bytes]) -> Iterator[list[bytes]]:
    """Frames without end while the block runs; all that were sent."""
    sent, stop = list[bytes](), threading.Event()
    thread = threading.Thread(target=flow, args=(wire, make, sent, stop))
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()


def adds_up(engine: EngineProcess, sent: int) -> None:
    """So many frames were sent, each to one VM: each was read once, and was placed, copied or dropped by name."""
    shown = engine.show("uplinks")["wire"]
    assert shown["frames_from_wire"] == sent == shown["forwarded"] + sum(shown["drops"].values())
    rows = engine.ask("show", what="queues")
    assert sum(one["offered_to_guest"] for one in rows) == shown["forwarded"]
    assert all(map(is_told_of, rows))
    assert all(one["frames_placed"] <= one["frames_to_guest"] for one in rows)


def is_told_of(queue: dict[str, Any]) -> bool:
    """Of a receive queue: offered = delivered + named drops."""
    lost = sum(count for name, count in queue["drops"].items() if name.startswith("to_guest"))
    return bool(queue["offered_to_guest"] == queue["frames_to_guest"] + lost)


def test_while_frames_never_stop_it_goes_to_and_fro_and_none_is_lost_overtaken_or_doubled(
    tmp_path: Path, near: Namespace
):
    """By another configuration, and by a measurement."""
    with (
        EngineProcess(tmp_path, UPLINK + vm("attacker"), near) as engine,
        host(near) as wire,
        Guest(
            engine.folder / "attacker.sock", MACS["attacker"], size=1024, room=1 << 17, timeout=PATIENCE
        ) as one,
    ):
        got = list[bytes]()
        with flowing(wire, lambda number: frame("attacker", WIRE, number)) as sent:
            for _ in range(3):
                for keys, wanted in ((DIRECT, "direct"), ("", "switched")):
                    engine.configure(UPLINK + vm("attacker", keys))
                    reload(engine)
                    got += meanwhile(engine, "attacker", wanted, one)
                    got += one.receive(20, PATIENCE)
            engine.configure(UPLINK + vm("attacker", DIRECT))
            reload(engine)
            for _ in range(3):
                for wanted in ("direct", "switched"):
                    engine.ask("measure", vm="attacker", on=wanted == "switched")
                    got += meanwhile(engine, "attacker", wanted, one)
                    got += one.receive(20, PATIENCE)
        got += one.receive(len(sent) - len(got), PATIENCE)
        assert got == sent
        adds_up(engine, len(sent))
        frames, straight = placed(engine, "attacker")
        assert frames == len(sent)
        assert 60 <= straight < frames


def test_frames_without_a_buffer_are_named(tmp_path: Path, near: Namespace):
    with (
        EngineProcess(tmp_path, UPLINK + vm("attacker", DIRECT), near) as engine,
        host(near) as wire,
        direct(engine, "attacker") as one,
    ):
        posted = one.virtqueue(to_guest=True).size
        for number in range(posted + 100):
            wire.send(frame("attacker", WIRE, number))
        until_equal(lambda: row(engine, "attacker")["drops"].get("to_guest_no_buffer", 0), 100)
        adds_up(engine, posted + 100)
        assert one.receive(posted, PATIENCE) == [frame("attacker", WIRE, number) for number in range(posted)]
        assert placed(engine, "attacker") == (posted, posted)


def test_memory_that_goes_away_under_a_read_stops_its_vm_alone(tmp_path: Path, near: Namespace):
    config = UPLINK + vm("attacker", DIRECT) + vm("peer", DIRECT)
    with EngineProcess(tmp_path, config, near) as engine, host(near) as wire, direct(engine, "peer") as peer:
        path = engine.folder / "attacker.sock"
        with Guest(path, MACS["attacker"], room=1 << 17, timeout=PATIENCE, sealed=False) as one:
            until(lambda: is_placed(engine, "attacker", "direct"))
            one.memory.truncate(0)
            for number in range(10):
                wire.send(frame("attacker", WIRE, number))
                wire.send(frame("peer", WIRE, number))
            assert peer.receive(10, PATIENCE) == [frame("peer", WIRE, number) for number in range(10)]
            engine.wait_for("attacker", "faulted")
            until(lambda: not is_placed(engine, "attacker", "direct"))
            assert placed(engine, "peer") == (10, 10)


MOVING, MARK = "52:54:00:00:00:99", b"number:"


def with_moving(owner: str) -> str:
    """Two VMs, one of which has a second address."""

    def own(name: str) -> str:
        macs = f'["{MACS[name]}", "{MOVING}"]' if name == owner else f'["{MACS[name]}"]'
        return vm(name, DIRECT).replace(f'mac = "{MACS[name]}"', f"mac = {macs}")

    return UPLINK + own("attacker") + own("peer")


def marked(number: int) -> bytes:
    return frame(MOVING, WIRE, number)[:60] + MARK + number.to_bytes(4, "big")


def last(one: Guest) -> int:
    """The highest number of a frame that any byte of a guest's memory tells of."""
    data = os.pread(one.memory.fd, one.memory.size, 0)
    found = re.findall(re.escape(MARK) + b"(....)", data, re.DOTALL)
    return max((int.from_bytes(number, "big") for number in found), default=-1)


def test_an_address_that_goes_to_another_vm_takes_no_byte_with_it(tmp_path: Path, near: Namespace):
    """Frames to it never stop, and both VMs are direct: from when it is another's, nothing of them is in a VM's memory."""
    with (
        EngineProcess(tmp_path, with_moving("attacker"), near) as engine,
        host(near) as wire,
        direct(engine, "attacker") as one,
        direct(engine, "peer") as peer,
    ):
        guests, got = {"attacker": one, "peer": peer}, {"attacker": list[bytes](), "peer": list[bytes]()}
        with flowing(wire, marked) as sent:
            for owner, other in (("peer", "attacker"), ("attacker", "peer"), ("peer", "attacker")):
                engine.configure(with_moving(owner))
                reload(engine)
                mark = len(sent)
                while not is_placed(engine, other, "direct") or last(guests[owner]) < mark:
                    for name, each in guests.items():
                        got[name] += each.receive(each.virtqueue(to_guest=True).size, 0.05)
                assert last(guests[other]) < mark
                assert placed(engine, owner)[1] > 0
        rest = len(sent) - sum(map(len, got.values()))
        got["peer"] += peer.receive(rest, PATIENCE)
        assert sorted([*got["attacker"], *got["peer"]]) == sorted(sent)
        assert all(frames == sorted(frames) for frames in got.values())
        adds_up(engine, len(sent))
        assert "from_wire_astray" not in engine.show("uplinks")["wire"]["drops"]


@contextmanager
def stack(inside: Namespace, one: Guest, address: str) -> Iterator[None]:
    """The guest has the network stack of a namespace: what it gets goes in there, and what comes out it sends."""

    def make() -> int:
        made = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(made, TUNSETIFF, link.interface_request("eth0", IFF_TAP | IFF_NO_PI))
        return made

    device, stop = inside.call(make), threading.Event()
    inside.run("ip", "link", "set", "eth0", "address", MACS["attacker"])
    inside.up("eth0")
    inside.address("eth0", address)

    def carry() -> None:
        while not stop.is_set():
            for data in one.receive(64, 0.001):
                os.write(device, data)
            with suppress(BlockingIOError):
                for _ in range(64):
                    one.send([os.read(device, 2000)])

    carrier = threading.Thread(target=carry)
    carrier.start()
    try:
        yield
    finally:
        stop.set()
        carrier.join()
        os.close(device)


def test_a_stream_of_the_hosts_own_stack_arrives_whole_and_is_placed(tmp_path: Path, near: Namespace):
    """With super-frames and unfinished checksums, which the device has finished before they are in its queue."""
    there, back = random.Random(1).randbytes(1 << 20), random.Random(2).randbytes(1 << 18)
    with (
        Namespace("inside") as inside,
        EngineProcess(tmp_path, UPLINK + vm("attacker", DIRECT), near) as engine,
        direct(engine, "attacker") as one,
    ):
        inside.sysctl("net/ipv6/conf/all/disable_ipv6", 1)
        near.address("vmqtap0", "10.9.0.254/24")
        with stack(inside, one, "10.9.0.1/24"):
            listener = inside.call(lambda: socket.create_server(("10.9.0.1", 7)))
            listener.settimeout(PATIENCE)
            client = near.call(lambda: socket.create_connection(("10.9.0.1", 7), PATIENCE))
            server, _ = listener.accept()
            with listener, client, server:
                for end, other, data in ((client, server, there), (server, client, back)):
                    other.settimeout(PATIENCE)
                    sender = threading.Thread(target=end.sendall, args=(data,))
                    sender.start()
                    got = b""
                    while len(got) < len(data):
                        got += other.recv(1 << 16)
                    sender.join()
                    assert got == data
        frames, straight = placed(engine, "attacker")
        assert row(engine, "attacker")["bytes_placed"] > len(there)
        assert straight > frames // 2  # the others are broadcasts, or came when its buffers were few
        assert "from_wire_offload" not in engine.show("uplinks")["wire"]["drops"]
