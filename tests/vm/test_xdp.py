# SPDX-License-Identifier: Apache-2.0
"""An engine on an xdp uplink, from outside: guests, the host beside them, crashes, and a device that goes away."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.arena import MACS, PATIENCE, frame, until
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.netns import Namespace
from vmq.guest.guest import Guest

pytestmark = pytest.mark.root
WIRE = "02:00:00:00:00:77"
UPLINK = '[uplink.wire]\nkind = "xdp"\ndevice = "wire0"\nprepared = true\n'


def vm(name: str, keys: str = "") -> str:
    return f'[vm.{name}]\nsocket = "{{folder}}/{name}.sock"\nuplink = "wire"\nmac = "{MACS[name]}"\n{keys}\n'


TWO = vm("attacker") + vm("third", "vlan = 5")


def guest(engine: EngineProcess, name: str) -> Guest:
    return Guest(engine.folder / f"{name}.sock", MACS[name], room=1 << 17, timeout=PATIENCE)


@contextmanager
def station(far: Namespace) -> Iterator[socket.socket]:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind(("host0", 3))
        made.settimeout(PATIENCE)
        return made

    with far.call(make) as one:
        yield one


def tagged(data: bytes, tci: int) -> bytes:
    return data[:12] + b"\x81\0" + tci.to_bytes(2, "big") + data[12:]


def program(near: Namespace) -> Any:
    (shown,) = json.loads(near.run("ip", "-json", "link", "show", "wire0"))
    return shown.get("xdp")


def reload(engine: EngineProcess) -> None:
    """Have it read its configuration again, and wait until that is in force."""
    told = engine.ask("events")[-1]["number"]
    engine.reload()

    def in_force() -> bool:
        return any(one["event"] == "configured" for one in engine.ask("events", since=told))

    until(in_force)


def setting(engine: EngineProcess, name: str) -> Any:
    return next(row for row in engine.show("uplinks")["wire"]["settings"] if row["name"] == name)


def test_guests_send_and_receive_and_the_books_balance(tmp_path: Path, ends: tuple[Namespace, Namespace]):
    near, far = ends
    ours = [frame("attacker", WIRE, number, size=60 + number) for number in range(50)]
    theirs = [frame("third", WIRE, number) for number in range(10)]
    everybody = frame("ff:ff:ff:ff:ff:ff", WIRE, 99)
    with EngineProcess(tmp_path, UPLINK + TWO, near) as engine, station(far) as wire:
        with guest(engine, "attacker") as one, guest(engine, "third") as third:
            for data in ours:
                wire.send(data)
            for data in theirs:
                wire.send(tagged(data, 5))
            assert one.receive(len(ours), PATIENCE) == ours
            assert third.receive(len(theirs), PATIENCE) == theirs
            wire.send(everybody)
            assert one.receive(1, PATIENCE) == [everybody]
            for number in range(20):
                one.send([frame(WIRE, MACS["attacker"], number)])
                assert wire.recv(200) == frame(WIRE, MACS["attacker"], number)
        row = engine.show("uplinks")["wire"]
        assert row["verdicts"]["steered"] == len(ours) + len(theirs)
        assert row["frames_from_wire"] == row["forwarded"] + sum(row["drops"].values())
        assert (setting(engine, "mode")["effective"], setting(engine, "mode")["why"]) == (
            "native",
            "the driver runs the program",
        )


def test_a_crash_leaves_no_program_and_the_next_engine_serves(
    tmp_path: Path, ends: tuple[Namespace, Namespace]
):
    near, far = ends
    with EngineProcess(tmp_path, UPLINK + TWO, near) as engine, station(far) as wire:
        assert program(near) is not None
        engine.kill()
        assert program(near) is None
        engine.start()
        with guest(engine, "attacker") as one:
            wire.send(frame("attacker", WIRE, 7))
            assert one.receive(1, PATIENCE) == [frame("attacker", WIRE, 7)]
    assert program(near) is None


def test_a_reload_moves_an_address_and_what_vms_accept(tmp_path: Path, ends: tuple[Namespace, Namespace]):
    near, far = ends
    stranger = frame("02:00:00:00:00:99", WIRE, 3)
    with EngineProcess(tmp_path, UPLINK + vm("attacker"), near) as engine, station(far) as wire:
        wire.send(tagged(frame("third", WIRE), 5))
        until(lambda: engine.show("uplinks")["wire"]["verdicts"]["nobody"] == 1)
        engine.configure(UPLINK + vm("third", "vlan = 5") + vm("attacker", 'accept = ["unknown"]'))
        engine.reload()
        until(lambda: setting(engine, "watched")["effective"] == "everything")
        with guest(engine, "attacker") as one, guest(engine, "third") as third:
            wire.send(tagged(frame("third", WIRE, 2), 5))
            assert third.receive(1, PATIENCE) == [frame("third", WIRE, 2)]
            wire.send(stranger)
            assert one.receive(1, PATIENCE) == [stranger]


def test_an_uplink_that_changes_or_gets_another_name_steers_as_before(
    tmp_path: Path, ends: tuple[Namespace, Namespace]
):
    """A device has one program, so the old one is off before the new one comes."""
    near, far = ends
    later = UPLINK + 'zero_copy = "off"\n', UPLINK + 'mode = "native"\nmtu = 1400\n', UPLINK
    with EngineProcess(tmp_path, UPLINK + TWO, near) as engine, station(far) as wire:
        for number, uplink in enumerate((*later, later[1].replace("uplink.wire", "uplink.renamed"))):
            name = "renamed" if "renamed" in uplink else "wire"
            engine.configure(uplink + TWO.replace('uplink = "wire"', f'uplink = "{name}"'))
            reload(engine)
            rows = {row["name"]: row for row in engine.show("uplinks")[name]["settings"]}
            assert (rows["mode"]["effective"], rows["vlan_stripping"]["effective"]) == ("native", "off")
            with guest(engine, "attacker") as one:
                wire.send(frame("attacker", WIRE, number))
                assert one.receive(1, PATIENCE) == [frame("attacker", WIRE, number)]


def test_a_device_that_goes_away_is_named_and_guests_reach_each_other(
    tmp_path: Path, ends: tuple[Namespace, Namespace]
):
    near, _ = ends
    config = UPLINK + vm("attacker") + vm("peer")
    with EngineProcess(tmp_path, config, near) as engine:
        one, other = guest(engine, "attacker"), guest(engine, "peer")
        with one, other:
            near.run("ip", "link", "delete", "wire0")
            until(lambda: engine.show("uplinks")["wire"]["state"] == "gone")
            one.send([frame(WIRE, MACS["attacker"], 1)])
            one.send([frame("peer", MACS["attacker"], 2)])
            assert other.receive(1, PATIENCE) == [frame("peer", MACS["attacker"], 2)]
            sleeps = asleep(engine)
            time.sleep(0.3)
            assert asleep(engine) - sleeps < 150  # nobody is woken for a socket that is gone


def asleep(engine: EngineProcess) -> int:
    return sum(int(row["sleeps"]) for row in engine.show("processors").values())


def test_the_host_is_reached_beside_its_guests(tmp_path: Path, ends: tuple[Namespace, Namespace]):
    near, far = ends
    near.address("wire0", "10.9.0.1/24")
    far.address("host0", "10.9.0.2/24")
    with EngineProcess(tmp_path, UPLINK + TWO, near) as engine:
        assert " 0% packet loss" in far.run("ping", "-c", "3", "-i", "0.2", "-W", "5", "10.9.0.1")
        assert engine.show("uplinks")["wire"]["verdicts"]["nobody"] >= 3
