# SPDX-License-Identifier: Apache-2.0
"""From one configuration to another under connected guests: whole or not at all, and what the plan says."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroute2 import netns

from tests.engine.configs import configs
from tests.engine.running import (
    MACS,
    NO_FRAMES,
    TWO_CPUS,
    Running,
    exchange,
    frame,
    gone,
    held,
    open_files,
    two_processors,
    until,
)
from tests.test_topology import host, record
from tests.vm.lab.netns import Namespace
from vmq.abi.ethernet import MAC_GROUP_BIT, mac_number, mac_text
from vmq.config import Config, Memory, Pcap, parse
from vmq.config.records import Packet, Tap
from vmq.daemon import choose_processors
from vmq.dataplane import state
from vmq.engine import changes
from vmq.engine.engine import Engine
from vmq.engine.queues import address_filter
from vmq.errors import ConfigError, HostError
from vmq.forecast import forecast
from vmq.placement import plan
from vmq.topology import read
from vmq.uplink import Uplink, link, open_uplink
from vmq.uplink.memory import MemoryUplink
from vmq.uplink.pcap import PcapUplink
from vmq.uplink.pcapfile import CaptureWriter, read_capture
from vmq.vhost.port import Port

FCOE = "0e:fc:00:00:00:00/24"


# --- reload -----------------------------------------------------------------------------------------------------


def test_adding_and_removing_a_vm_does_not_disturb_a_connected_guest(running: Running):
    """Its session, its socket and its counters stay."""
    running.pair()
    a_and_b = {name: running.engine.vms[name].config for name in "ab"}
    with running.guest("a") as a, running.guest("b") as b:
        exchange(a, b)
        vm = running.engine.vms["a"]
        before = vm, vm.port.connection, vm.session
        inode = os.stat(running.path("a")).st_ino
        for _round in range(3):
            running.configure(**a_and_b, c=running.vm("c", 3))
            with running.guest("c") as c:
                exchange(a, c)
            running.configure(**a_and_b)
            assert not Path(running.path("c")).exists()
        assert running.engine.vms["a"] is vm
        assert (vm, vm.port.connection, vm.session) == before
        assert os.stat(running.path("a")).st_ino == inode
        assert running.show("vms", "a")["frames_to_guest"] == 3 + 3 * 3
        exchange(a, b)


def test_removing_a_vm_ends_its_guest(running: Running):
    running.pair()
    with running.guest("a") as a, running.guest("b"):
        running.configure(b=running.engine.vms["b"].config)
        until(lambda: not a.frontend.connected)
        assert os.listdir(running.folder) == ["b.sock"]
    gone(running, "b")


def test_no_change_is_no_action_and_publishes_what_is(running: Running):
    running.pair()
    assert running.do(running.engine.reconfigure, running.engine.config) == ()


def test_filters_change_under_a_connected_guest(running: Running):
    """A new address, another VLAN: the guest notices nothing but its frames."""
    running.pair()
    b_config = running.engine.vms["b"].config
    with running.guest("a") as a, running.guest("b") as b:
        running.configure(a=running.vm("a", mac=(MACS[0], MACS[6])), b=b_config)
        b.send([frame(MACS[6], b.mac, 1)])
        assert a.receive(1) == [frame(MACS[6], b.mac, 1)]
        running.configure(a=running.vm("a", vlan=9), b=b_config)
        b.send([frame(a.mac, b.mac, 2)])
        assert b.sent()
        until(lambda: running.show("vms", "b")["drops"] == {"no_filter": 1})
        assert a.frontend.connected
        running.configure(a=running.vm("a"), b=b_config)
        exchange(a, b)


def test_a_configured_address_is_taken_from_whoever_learned_it(running: Running):
    """One owner an address; a learned one has the weaker claim."""
    a = running.vm("a", 1, learn=(FCOE,))
    running.configure(a=a)
    taken, kept = (mac_number(f"0e:fc:00:00:00:0{digit}") for digit in "12")
    assert running.do(running.engine.vms["a"].learn, taken)
    assert running.do(running.engine.vms["a"].learn, kept)

    running.configure(a=a, b=running.vm("b", mac=("0e:fc:00:00:00:01",)))

    assert {row["mac"]: row["vm"] for row in running.show("filters")} == {
        MACS[0]: "a",
        "0e:fc:00:00:00:02": "a",
        "0e:fc:00:00:00:01": "b",
    }
    running.configure(a=running.vm("a", 1, learn=(FCOE,), vlan=7))
    assert running.show("vms", "a")["learned"] == []


@pytest.mark.parametrize("taken", ["listened on", "a file"])
def test_a_configuration_that_cannot_be_had_changes_nothing(running: Running, taken: str):
    """One line with file, key and remedy; the old configuration is in force, also where it had changed already."""
    running.pair()
    old = running.engine.config
    with running.guest("a") as a, running.guest("b") as b, socket.socket(socket.AF_UNIX) as other:
        if taken == "a file":
            Path(running.path("z")).write_text("mine")
        else:
            other.bind(running.path("z"))
            other.listen(1)
        session = running.engine.vms["a"].session
        before = held(running)
        with pytest.raises(HostError, match=r"test.toml: \[vm.z\] socket: ") as refused:
            running.configure(
                {"lan": NO_FRAMES},
                a=running.vm("a", mac=(MACS[7],)),
                c=running.vm("c", 3, uplink="lan"),
                z=running.vm("z", 4),
            )
        assert refused.value.remedy
        assert running.engine.config == old
        assert running.engine.vms["a"].session is session
        assert sorted(os.listdir(running.folder)) == ["a.sock", "b.sock", "z.sock"]
        assert held(running) == before
        assert running.show("uplinks") == []
        exchange(a, b)


def refused(name: str, *_: object) -> Any:
    raise HostError(f"[uplink.{name}] device", "it is gone", "plug it in")


def test_a_vm_whose_uplink_is_lost_joins_no_other_segment(
    running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Neither the new uplink nor the old one can be opened: the VM is missing, and everybody is told, until it is back."""
    lan = Pcap(write=str(tmp_path / "out.pcap"))
    vms = {"a": running.vm("a", 1, uplink="lan"), "b": running.vm("b", 2)}
    running.configure({"lan": lan}, **vms)
    old = running.engine.config
    with monkeypatch.context() as patch:
        patch.setattr(changes, "open_uplink", refused)
        with pytest.raises(HostError, match="it is gone"):
            running.configure({"lan": Pcap(write=lan.write, mtu=1400)}, **vms)

    assert list(running.engine.vms) == ["b"]
    assert (running.engine.config.uplinks, list(running.engine.config.vms)) == ({}, ["b"])
    assert [row["vm"] for row in running.show("filters")] == ["b"]
    told = [one for one in running.do(running.engine.journal.since, 0) if one["event"] == "missing"]
    assert [one["subject"] for one in told] == ["uplink lan", "vm a"]
    assert told[0]["what"] == "test.toml: [uplink.lan] device: it is gone"
    assert told[1]["what"] == "test.toml: [vm.a]: its uplink lan could not be opened again"
    assert [bool(one["remedy"]) for one in told] == [True, True]
    for one in told:
        assert any(line.startswith(f"{one['subject']} is not in force") for line in running.log.lines)
    (row,) = running.show("configuration")
    assert row["missing"] == [f"{one['subject']}: {one['what']}" for one in told]
    rows = [one for one in running.show("settings") if one["name"] == "table"]
    assert [(one["of"], one["requested"], one["effective"]) for one in rows] == [
        ("uplink lan", "[uplink.lan]", None),
        ("vm a", "[vm.a]", None),
    ]

    with pytest.raises(ConfigError):
        running.configure(z=running.vm("z", processor=4000))
    assert len(running.show("configuration")[0]["missing"]) == 2
    running.do(running.engine.reconfigure, old)
    assert running.engine.config == old
    assert running.show("uplinks", "lan")["state"] == "up"
    assert running.show("configuration")[0]["missing"] == []


def test_a_successor_that_cannot_be_opened_disturbs_nobody(running: Running, monkeypatch: pytest.MonkeyPatch):
    """Guests stay connected; receive queues and filters of clients are those from before."""
    running.configure(
        {"lan": NO_FRAMES},
        a=running.vm("a", 1, uplink="lan", queue_pairs=2),
        b=running.vm("b", 2, uplink="lan"),
    )
    contract, vms = running.engine.contracts["lan"], running.engine.config.vms
    mine = running.do(contract.allocate, "x", {"vm": "a"})
    running.do(contract.set_filter, "x", mine, address_filter(mac_number(MACS[50]), None))
    running.do(contract.allocation_complete, "x", [mine])
    opened = dict(running.engine.uplinks)
    with running.guest("a", queues=2) as a, running.guest("b") as b:
        exchange(a, b)
        before = running.do(contract.enum_queues, None), running.do(contract.enum_filters, None, mine)
        with monkeypatch.context() as patch:
            patch.setattr(changes, "open_uplink", refused)
            with pytest.raises(HostError, match="it is gone"):
                running.configure({"lan": Packet(device="nosuch0")}, **vms)
        assert running.engine.uplinks == opened
        assert running.engine.contracts["lan"] is contract
        assert before == (
            running.do(contract.enum_queues, None),
            running.do(contract.enum_filters, None, mine),
        )
        assert [running.show("vms", name)["connects"] for name in "ab"] == [1, 1]
        exchange(a, b)
    assert running.show("configuration")[0]["missing"] == []


def test_link_local_changes_under_connected_guests(running: Running):
    """It is in the next version of the tables; nothing is opened anew."""
    vms = {"a": running.vm("a", 1, uplink="lan"), "b": running.vm("b", 2, uplink="lan")}
    running.configure({"lan": NO_FRAMES}, **vms)
    opened = running.engine.uplinks["lan"].uplink
    with running.guest("a") as a, running.guest("b") as b:
        to_bridges = frame("01:80:c2:00:00:0e", a.mac)
        for link_local in ("forward", "drop"):
            running.configure({"lan": msgspec.structs.replace(NO_FRAMES, link_local=link_local)}, **vms)
            a.send([to_bridges])
            assert a.sent()
            row = next(
                one
                for one in running.show("settings")
                if (one["of"], one["name"]) == ("uplink lan", "link_local")
            )
            assert (row["requested"], row["effective"]) == (link_local, link_local)
        assert b.receive(1) == [to_bridges]
        exchange(a, b)
    assert running.engine.uplinks["lan"].uplink is opened
    assert running.show("vms", "a")["drops"] == {"link_local": 1}


def test_a_successor_that_was_opened_is_closed_when_another_is_refused(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    """Nothing of it is left; and where none is refused, each is the uplink that was opened aside."""
    made: list[Uplink] = []

    def opening(name: str, *what: Any) -> Uplink:
        if name == "wan" and len(made) == 1:
            refused(name)
        made.append(open_uplink(name, *what))
        return made[-1]

    both = {"lan": NO_FRAMES, "wan": NO_FRAMES}
    running.configure(both, a=running.vm("a", 1, uplink="lan"))
    opened = dict(running.engine.uplinks)
    other = {"lan": Memory(count=0, mtu=1400), "wan": Memory(count=0, mtu=1400)}
    monkeypatch.setattr(changes, "open_uplink", opening)
    closed: list[Uplink] = []

    def close(self: Uplink) -> None:
        closed.append(self)

    monkeypatch.setattr(MemoryUplink, "close", close)
    with pytest.raises(HostError):
        running.configure(other, a=running.vm("a", 1, uplink="lan"))
    assert (closed, running.engine.uplinks) == (made, opened)
    running.configure(other, a=running.vm("a", 1, uplink="lan"))
    assert [one.uplink for one in running.engine.uplinks.values()] == made[1:]
    assert [running.show("uplinks", name)["mtu"] for name in both] == [1400, 1400]


def test_a_processor_that_is_not_the_engine_s_is_refused(running: Running):
    with pytest.raises(ConfigError, match=r"\[vm.a\] processor: 4000 is not one of the engine's"):
        running.configure(a=running.vm("a", processor=4000))
    assert running.engine.vms == {}


def test_limits_are_said_in_words(running: Running, monkeypatch: pytest.MonkeyPatch):
    """Too many VMs, receive queues, uplinks."""
    running.configure(a=running.vm("a"))
    monkeypatch.setattr(state, "MAX_VPORTS", 1)
    with pytest.raises(ConfigError, match="too many VMs"):
        running.configure(a=running.vm("a"), b=running.vm("b", 2))
    monkeypatch.undo()
    monkeypatch.setattr(state, "MAX_QUEUES", 3)
    with pytest.raises(ConfigError, match="no receive queues are left"):
        running.configure(a=running.vm("a"), b=running.vm("b", 2, queue_pairs=3))
    monkeypatch.undo()
    monkeypatch.setattr(state, "MAX_LANES", 1)
    with pytest.raises(ConfigError, match="too many uplinks"):
        running.configure({"x": NO_FRAMES, "y": NO_FRAMES}, a=running.vm("a"))
    assert list(running.engine.vms) == ["a"]
    assert running.engine.uplinks == {}


def test_numbers_of_removed_vms_are_used_again(running: Running):
    """Rows are few; a reused one starts from zero."""
    running.configure(
        a=running.vm("a", 1, queue_pairs=3), b=running.vm("b", 2), c=running.vm("c", 3, queue_pairs=2)
    )
    running.engine.segment.rows["queue_state"][3]["frames_to_guest"] = 99
    running.configure(a=running.vm("a", 1, queue_pairs=3), c=running.vm("c", 3, queue_pairs=2))
    running.configure(
        a=running.vm("a", 1, queue_pairs=3), c=running.vm("c", 3, queue_pairs=2), d=running.vm("d", 4)
    )
    places = {name: (vm.number, vm.first_queue) for name, vm in running.engine.vms.items()}
    assert places == {"a": (0, 0), "d": (1, 3), "c": (2, 4)}
    assert running.show("vms", "d")["frames_to_guest"] == 0


def test_a_reload_without_descriptors_leaves_the_old_configuration_in_force(running: Running, monkeypatch):
    """Whatever runs out, wherever: it is the host's refusal, and neighbours notice nothing."""
    running.pair()
    with running.guest("a") as a, running.guest("b") as b:
        exchange(a, b)
        before = running.engine.config

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        for place in ("vmq.listener.socket.socket", "vmq.engine.vm.Port.open"):
            third = running.vm("c", 3)
            with monkeypatch.context() as patch:
                patch.setattr(place, full)
                with pytest.raises(HostError, match="open files") as refused:
                    running.configure(a=running.vm("a", 1), b=running.vm("b", 2), c=third)
            assert "open files" in refused.value.remedy
            assert running.engine.config == before
            exchange(a, b)
    assert running.problems == []


def test_a_socket_that_cannot_be_watched_is_not_left_behind(running: Running, monkeypatch):
    """It listens already when the event loop refuses it: ENOSPC, fs.epoll.max_user_watches."""
    before = open_files()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("vmq.vhost.port.Port._listen", refuse)
        with pytest.raises(HostError, match="No space left"):
            running.configure(a=running.vm("a", 1))
    assert not Path(running.path("a")).exists()
    assert open_files() == before
    running.configure(a=running.vm("a", 1))


def test_a_replay_begins_when_all_vms_of_its_configuration_have_their_filters(
    running: Running, tmp_path: Path
):
    """A capture that is played once must not be over before."""
    with CaptureWriter(str(tmp_path / "in.pcap")) as capture:
        for number in range(100):
            capture.write(frame(MACS[number % 2], MACS[5], number))
    running.configure(
        {"lan": Pcap(read=str(tmp_path / "in.pcap"))},
        a=running.vm("a", 1, uplink="lan"),
        b=running.vm("b", 2, uplink="lan"),
    )
    until(lambda: running.show("uplinks", "lan")["frames_from_wire"] == 100)
    assert running.show("uplinks", "lan")["drops"] == {}
    until(lambda: running.show("vms", "a")["drops"] == {"to_guest_not_running": 50})


def captured(path: Path) -> list[bytes]:
    return [packet.data for packet in read_capture(str(path))]


def test_a_refused_reload_loses_no_capture(running: Running, tmp_path: Path):
    """One that is written goes on at its end; a file that was to be written is as it was, or is not there."""
    out, mine, new = tmp_path / "out.pcap", tmp_path / "mine.pcap", tmp_path / "new.pcap"
    mine.write_text("mine")
    lan, vm = Pcap(write=str(out)), running.vm("a", 1, uplink="lan")
    running.configure({"lan": lan}, a=vm)
    running.do(running.engine.uplinks["lan"].uplink.send, frame(MACS[0], MACS[1], 1))
    Path(running.path("taken")).write_text("mine")
    for successor in (msgspec.structs.replace(lan, mtu=1400), Pcap(read=str(out), write=str(new))):
        uplinks = {"lan": successor, "wan": Pcap(write=str(mine))}
        opened = running.engine.uplinks["lan"].uplink
        with pytest.raises(HostError):
            running.configure(uplinks, a=msgspec.structs.replace(vm, socket=running.path("taken")))
        assert running.engine.uplinks["lan"].uplink is not opened, "the refusal came too early"
        assert captured(out) == [frame(MACS[0], MACS[1], 1)]
        assert mine.read_text() == "mine"
        assert not new.exists()
        assert [one for one in open_files().values() if one.endswith(".pcap")] == [str(out)]
    assert running.engine.changes.missing == {}
    running.do(running.engine.uplinks["lan"].uplink.send, frame(MACS[0], MACS[1], 2))
    assert captured(out) == [frame(MACS[0], MACS[1], number) for number in (1, 2)]
    running.configure({"wan": Pcap(write=str(mine))})
    assert captured(mine) == []


def test_a_capture_is_replayed_with_all_that_its_writer_had(running: Running, tmp_path: Path):
    """Also with what did not stand in the file yet."""
    out = str(tmp_path / "out.pcap")
    running.configure({"lan": Pcap(write=out)})
    uplink = running.engine.uplinks["lan"].uplink
    assert isinstance(uplink, PcapUplink)
    writer = uplink._writer
    assert writer is not None

    def reload() -> None:  # no tick in between
        for number in range(3):
            writer.write(frame(MACS[0], MACS[1], number))
        running.engine.reconfigure(Config(uplinks={"lan": Pcap(read=out)}))

    running.do(reload)
    assert running.show("uplinks", "lan")["frames"] == 3


@pytest.mark.root
@pytest.mark.parametrize("kind", [Tap, Packet])
def test_a_refused_reload_leaves_no_mtu_behind(running: Running, kind: type[Tap | Packet]):
    """On a device that is new in it, and on the one of an uplink that has to be opened again; what is accepted stays."""
    with Namespace("engine") as engine_host:
        for device in ("tap7", "tap8"):
            engine_host.run("ip", "tuntap", "add", device, "mode", "tap")
        running.do(lambda: netns.setns(engine_host.name, flags=0))

        def mtus() -> list[int]:
            known = [running.do(lambda at=at: link.describe(link.index_of(at))) for at in ("tap7", "tap8")]
            return [one.mtu for one in known if one is not None]

        def reload(socket_name: str, *mtus: int) -> None:
            uplinks = {
                name: kind(device=device, mtu=mtu)
                for name, device, mtu in zip(("lan", "wan"), ("tap7", "tap8"), mtus, strict=False)
            }
            running.configure(uplinks, a=running.vm("a", 1, uplink="lan", socket=running.path(socket_name)))

        Path(running.path("taken")).write_text("mine")
        with pytest.raises(HostError):
            reload("taken", 1300)
        assert mtus() == [1500, 1500]
        reload("a", 1400)
        assert mtus() == [1400, 1500]
        opened = running.engine.uplinks["lan"].uplink
        with pytest.raises(HostError):
            reload("taken", 1300, 1300)
        assert running.engine.uplinks["lan"].uplink is not opened, "the refusal came too early"
        assert mtus() == [1400, 1500]
        assert running.show("uplinks", "lan")["mtu"] == 1400
        reload("a", 1300, 1300)
        running.configure()
        assert mtus() == [1300, 1300]


# --- properties -------------------------------------------------------------------------------------------------


def below(config: Config, folder: str) -> Config:
    """With its sockets, which are in /x, in this folder."""
    vms = {
        name: msgspec.structs.replace(vm, socket=folder + vm.socket[2:]) for name, vm in config.vms.items()
    }
    return Config(uplinks=config.uplinks, vms=vms)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs(Path("/x")), configs(Path("/x")))
def test_applying_a_plan_gives_the_sockets_and_filters_of_the_new_configuration(old: Config, new: Config):
    """From `old`, and nothing else; back to nothing leaves nothing."""
    with tempfile.TemporaryDirectory() as folder, Running(Path(folder)) as running:
        for config in (below(old, folder), below(new, folder), Config()):
            running.do(running.engine.reconfigure, config)
            expected = sorted(Path(vm.socket).name for vm in config.vms.values())
            assert sorted(os.listdir(folder)) == expected
            assert sorted(
                (row["vm"], row["mac"], row["vlan"], row["uplink"])
                for row in map(flat, running.show("filters"))
            ) == sorted(
                (name, mac, vm.vlan or 0, vm.uplink or "")
                for name, vm in config.vms.items()
                for mac in vm.mac
            )
            assert published_filters(running.engine) == {
                (mac, vm.vlan or 0, vm.uplink, name) for name, vm in config.vms.items() for mac in vm.mac
            }


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs(Path("/x")), configs(Path("/x")), st.sets(st.integers(0, 6)))
def test_whatever_is_refused_every_vm_port_is_on_its_uplink_and_what_there_is_is_in_force(
    old: Config, new: Config, refusals: set[int]
):
    """The n-th socket or device that is asked for is not to be had, of the new configuration or of the one from before."""
    asked = itertools.count()

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*what: Any) -> Any:
            if next(asked) in refusals:
                raise HostError("[here]", "refused", "")
            return function(*what)

        return maybe

    with tempfile.TemporaryDirectory() as folder, Running(Path(folder)) as running:
        engine = running.engine
        running.do(engine.reconfigure, below(old, folder))
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(HostError):
            patch.setattr(changes, "open_uplink", refusing(open_uplink))
            patch.setattr(Port, "open", refusing(Port.open))
            running.do(engine.reconfigure, below(new, folder))
        assert engine.config == Config(
            uplinks={name: one.config for name, one in engine.uplinks.items()},
            vms={name: vm.config for name, vm in engine.vms.items()},
        )
        for vm in engine.vms.values():
            assert vm.home is engine.queues[vm.config.uplink]
        assert set(engine.queues) == {None, *engine.uplinks}
        assert sorted(os.listdir(folder)) == sorted(Path(vm.config.socket).name for vm in engine.vms.values())
        assert published_filters(engine) == {
            (mac, vm.vlan or 0, vm.uplink, name) for name, vm in engine.config.vms.items() for mac in vm.mac
        }
        lost = {f"vm {name}" for name in old.vms.keys() - engine.vms.keys()}
        lost |= {f"uplink {name}" for name in old.uplinks.keys() - engine.uplinks.keys()}
        assert engine.refused is None or set(engine.changes.missing) == lost
        running.do(engine.reconfigure, below(old, folder))
        assert (engine.config, engine.changes.missing) == (below(old, folder), {})


def flat(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"vlan": row["vlan"] or 0, "uplink": row["uplink"] or ""}


def published_filters(engine: Engine) -> set[tuple[str, int, str | None, str]]:
    """What the kernels see."""
    from vmq.jit import at

    tables = at(int(engine.segment.engine["tables"]), 1, state.tables)[0]
    rows = at(int(tables["buckets"]), int(tables["bucket_mask"]) + 1, state.bucket)
    names = {vm.number: vm.name for vm in engine.vms.values()}
    queues = at(int(tables["queues"]), int(tables["queue_count"]), state.queue)["vport"]
    uplinks = {opened.number: name for name, opened in engine.uplinks.items()}
    found = set()
    for row in rows[rows["key"] >= 0]:
        mac, vlan = int(row["key"]) & ((1 << 48) - 1), int(row["key"]) >> 48
        if not mac & MAC_GROUP_BIT:  # members of segments
            found.add(
                (mac_text(mac), vlan, uplinks.get(int(row["uplink"])), names[int(queues[int(row["value"])])])
            )
    return found


# --- processors -------------------------------------------------------------------------------------------------


@two_processors
def test_vms_are_spread_and_talk_across_processors(tmp_path: Path):
    """The one with the fewest VMs, unless it asks for another."""
    with Running(tmp_path, tuple(TWO_CPUS)) as running:
        running.configure(
            a=running.vm("a", 1),
            b=running.vm("b", 2),
            c=running.vm("c", 3, processor=TWO_CPUS[0]),
            d=running.vm("d", 4),
        )
        cpus = {row["name"]: row["processors"] for row in running.show("vms")}
        assert cpus == {"a": [TWO_CPUS[1]], "b": [TWO_CPUS[0]], "c": [TWO_CPUS[0]], "d": [TWO_CPUS[1]]}
        with running.guest("a") as a, running.guest("b") as b:
            exchange(a, b, 10)


@two_processors
def test_a_vm_moves_to_another_processor_under_its_guest(tmp_path: Path):
    """Reload with another `processor`: connection and rings stay, nobody serves a ring twice."""
    with Running(tmp_path, tuple(TWO_CPUS)) as running:
        b_config = running.vm("b", 2, processor=TWO_CPUS[0])
        running.configure(a=running.vm("a", 1, processor=TWO_CPUS[0]), b=b_config)
        with running.guest("a") as a, running.guest("b") as b:
            session = running.engine.vms["a"].session
            for number in (1, 0, 1):
                running.configure(a=running.vm("a", 1, processor=TWO_CPUS[number]), b=b_config)
                assert running.show("vms", "a")["processors"] == [TWO_CPUS[number]]
                exchange(a, b)
            assert running.engine.vms["a"].session is session
        gone(running, "a", "b")


@two_processors
def test_a_vm_moves_with_the_processors_of_its_uplink(tmp_path: Path):
    """The uplink stays open, the guest connected; a reload that fails half-way brings it back."""
    with Running(tmp_path, tuple(TWO_CPUS)) as running:

        def reload(number: int, **more: Any) -> None:
            lan = Memory(count=0, processors=(TWO_CPUS[number],))
            vms = {name: running.vm(name, place, uplink="lan") for place, name in enumerate("ab", 1)}
            running.configure({"lan": lan}, **vms, **more)

        def served() -> list[list[int]]:
            return [running.show("vms", name)["processors"] for name in "ab"]

        reload(0, x=running.vm("x", 3))
        opened = running.engine.uplinks["lan"].uplink
        with running.guest("a") as a, running.guest("b") as b:
            for number in (1, 0):
                reload(number, x=running.vm("x", 3))
                assert served() == [[TWO_CPUS[number]]] * 2
                exchange(a, b)
            Path(running.path("c")).write_text("mine")
            with pytest.raises(HostError):  # the address is x's, so c comes last, when a and b have moved
                reload(1, c=running.vm("c", 3))
            assert served() == [[TWO_CPUS[0]]] * 2
            exchange(a, b)
            reload(0)
            assert running.engine.uplinks["lan"].uplink is opened
            assert running.show("vms", "a")["connects"] == 1


PLANS = {
    "nothing said": "",
    "a processor each": "[engine]\nprocessors = '2,4,6'",
    "some bound": "[engine]\nprocessors = '2-7'\n[vm.d]\nmac = '52:54:00:00:00:0d'\nprocessor = 2",
    "an uplink with few": "[engine]\nprocessors = '2,4,6'\n[uplink.lan]\nkind = 'memory'\ncount = 0\n"
    "processors = '4'\n[vm.d]\nmac = '52:54:00:00:00:0d'\nuplink = 'lan'",
    "named by uplinks and VMs": "[uplink.lan]\nkind = 'memory'\ncount = 0\nnuma_node = 0\nprocessors = '2-3'\n"
    "[vm.d]\nmac = '52:54:00:00:00:0d'\nuplink = 'lan'\n[vm.e]\nmac = '52:54:00:00:00:0e'\nprocessor = 5",
}


@pytest.mark.parametrize("text", PLANS.values(), ids=list(PLANS))
def test_vmq_plan_says_what_the_engine_then_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str):
    """The same VMs and processors in the same words, on a host of four cores with two threads."""
    files = host("0-7", "0-1", "2-3", "4-5", "6-7", nodes=("0-7",))
    topology = read(root=record(tmp_path / "host", files))
    for module_name in ("vmq.engine.changes", "vmq.daemon"):
        monkeypatch.setattr(f"{module_name}.read", lambda _: topology)
    monkeypatch.setattr("vmq.worker.os.sched_setaffinity", lambda *_: None)  # processors that are not here
    vms = "".join(f"\n[vm.{name}]\nmac = '52:54:00:00:00:0{name}'" for name in "abc")
    config = parse(text + vms, str(tmp_path / "vmq.toml"), topology.allowed)
    config = msgspec.structs.replace(
        config,
        vms={
            name: msgspec.structs.replace(vm, socket=str(tmp_path / f"{name}.sock"))
            for name, vm in config.vms.items()
        },
    )

    said = forecast(config, topology, plan(config, topology))

    def make() -> Engine:
        return Engine("vmq.toml", *choose_processors(config))

    with Running(tmp_path, make=make) as running:
        running.do(running.engine.reconfigure, config)
        for what, keys in (
            ("vms", ("name", "mac", "vlan", "uplink", "queue_pairs", "processors", "why")),
            ("processors", ("cpu", "vms", "why")),
        ):
            rows = [{key: row[key] for key in keys} for row in running.show(what)]
            assert rows == [{key: row[key] for key in keys} for row in said[what]]


def test_vms_swap_their_addresses_in_one_reload_and_have_them_back_when_it_fails(running: Running):
    """Each is the other's from one version of the tables to the next; connected guests go on."""
    running.pair()
    vms = {"a": running.vm("a", 2), "b": running.vm("b", 1)}
    with running.guest("a") as a, running.guest("b") as b:
        exchange(a, b)
        Path(running.path("c")).write_text("mine")
        with pytest.raises(HostError):
            running.configure(**vms, c=running.vm("c", 3))
        assert [len(running.engine.vms[name].filters) for name in "ab"] == [1, 1]
        exchange(a, b)
        running.configure(**vms)
        a.mac, b.mac = b.mac, a.mac
        exchange(a, b)
        running.configure(b=running.vm("b", 2))
        assert list(running.engine.vms["b"].filters) == [mac_number(MACS[1])]
    assert not running.engine.vms["b"].queues[0].shared


def test_vms_have_their_own_addresses_again_when_a_swap_is_refused_late(running: Running):
    """The socket of a VM that stays is opened last, when the others have changed."""
    kept = {"a": running.vm("a", 1), "b": running.vm("b", 2), "c": running.vm("c", 3)}
    running.configure(**kept)
    Path(running.path("taken")).write_text("mine")
    swapped = {"a": running.vm("a", 2), "b": running.vm("b", 1)}
    with pytest.raises(HostError):
        running.configure(**swapped, c=running.vm("c", 3, socket=running.path("taken")))
    assert running.engine.changes.missing == {}
    owned = {name: [mac_number(mac) for mac in vm.mac] for name, vm in kept.items()}
    assert {name: list(vm.filters) for name, vm in running.engine.vms.items()} == owned
    with running.guest("a") as a, running.guest("b") as b:
        exchange(a, b)
