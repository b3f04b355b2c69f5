# SPDX-License-Identifier: Apache-2.0
"""The life of `vmq run`: nothing half-started, atomic reload, clean stop, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.daemon import Process
from tests.engine.running import MACS, exchange, frame, until
from vmq import daemon
from vmq.config import Config, Engine, Vm
from vmq.control.ward import SETTLED
from vmq.errors import ConfigError, HostError
from vmq.topology import Topology


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    with Process(tmp_path) as one:
        yield one


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_guests_connected(process: Process, number: int):
    """Exit 0; sockets are gone."""
    process.write("a", "b").start().ready()
    assert process.sockets == ["a.sock", "api.sock", "b.sock"]
    with process.guest("a", MACS[0]) as a, process.guest("b", MACS[1]) as b:
        exchange(a, b)
        assert process.end(number) == 0
        until(lambda: not a.frontend.connected)
    assert process.sockets == []
    assert "Traceback" not in process.log


def test_a_killed_engine_is_started_again_and_its_guest_goes_on(process: Process):
    """kill -9 leaves sockets; the next start replaces them, and the guest continues at its used index."""
    process.write("a", "b").start().ready()
    with process.guest("a", MACS[0]) as a, process.guest("b", MACS[1]) as b:
        exchange(a, b)
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
        assert process.sockets == ["a.sock", "api.sock", "b.sock"]
        (process.folder / "log").unlink()
        process.start().ready()
        a.reconnect()
        b.reconnect()
        exchange(a, b)


def test_sighup_brings_about_what_the_file_says_now(process: Process):
    """And the guest that is connected notices nothing."""
    process.write("a", "b").start().ready()
    with process.guest("a", MACS[0]) as a, process.guest("b", MACS[1]) as b:
        process.write("a", "b", "c")
        assert "reloaded: 1 change\n" in process.reload()
        assert process.sockets == ["a.sock", "api.sock", "b.sock", "c.sock"]
        exchange(a, b)
        assert "reloaded: 0 changes\n" in process.reload()
        process.write("a", "b")
        assert "reloaded: 1 change\n" in process.reload()
        assert process.show("vms", "a")["connects"] == 1
        exchange(a, b)
    assert process.sockets == ["a.sock", "api.sock", "b.sock"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("[vm.c", "vmq.toml"),
        ('[vm.c]\nmac = "nonsense"', "[vm.c] mac"),
        ('[vm.c]\nmac = "52:54:00:00:00:01"', "[vm.c] mac"),
        ('[vm.c]\nmac = "52:54:00:00:00:09"\nsocket = "{taken}"', "in use by another process"),
        ('[vm.c]\nmac = "52:54:00:00:00:09"\nsocket = "{file}"', "exists and is no socket"),
        ('[uplink.lan]\nkind = "packet"\ndevice = "nosuch0"', "there is no device nosuch0"),
    ],
)
def test_a_bad_file_leaves_the_old_configuration_in_force_and_says_why(
    process: Process, more: str, words: str
):
    """One line with file, key and remedy; nothing of it is left."""
    process.write("a", "b").start().ready()
    taken, file = process.folder / "taken", process.folder / "file"
    file.write_text("mine")
    with (
        socket.socket(socket.AF_UNIX) as other,
        process.guest("a", MACS[0]) as a,
        process.guest("b", MACS[1]) as b,
    ):
        other.bind(str(taken))
        other.listen(1)
        process.write("a", "b", "d", more=more.format(taken=taken, file=file))
        answer = process.reload()
        assert "reload refused, the old configuration stays in force" in answer
        assert words in answer
        assert "Remedy: " in answer
        assert process.sockets == ["a.sock", "api.sock", "b.sock"]
        assert process.show("uplinks") == []
        exchange(a, b)
        assert file.read_text() == "mine"
        process.write("a", "b", "d")
        assert "reloaded: 1 change" in process.reload()


def test_what_cannot_change_while_it_runs_is_refused(process: Process):
    process.write("a").start().ready()
    process.path.write_text(process.path.read_text().replace("api.sock", "other.sock"))
    assert "[engine] api: it cannot change while vmq runs. Remedy: restart vmq run" in process.reload()
    assert process.show("vms", "a")["state"] == "listening"


@pytest.mark.parametrize("which", ["vm", "api", "uplink", "group", "file"])
def test_what_cannot_be_opened_ends_it_with_one_line_and_leaves_nothing(process: Process, which: str):
    """Exit 2; nothing half-started, nothing left behind."""
    process.write("a", "b")
    if which == "vm":
        (process.folder / "b.sock").write_text("mine")
    elif which == "api":
        (process.folder / "api.sock").write_text("mine")
    elif which == "uplink":
        process.write("a", more='[uplink.lan]\nkind = "packet"\ndevice = "nosuch0"')
    elif which == "group":
        process.write("a", group='"nosuchgroup"')
    else:
        process.path.unlink()

    assert process.start().wait() == 2

    lines = [line for line in process.log.splitlines() if not line.startswith("compiling")]
    assert len(lines) == 1
    assert "vmq.toml" in lines[0]
    assert "Remedy: " in lines[0]
    assert [path for path in process.folder.glob("*.sock") if path.is_socket()] == []


@pytest.mark.slow
def test_a_running_engine_tells_what_vmq_doctor_finds(process: Process):
    """By itself, once its start has settled, and nothing is compiled for it; at its end nobody waits for the doctor."""

    def told() -> set[tuple[str, str]]:
        events = process.ask("events", since=0)
        return {(one["code"], one["subject"]) for one in events if one["event"] == "finding"}

    process.write("a", "b", more="mtu = 9000\n[doctor]\nwake_us = 1").start().ready()
    assert told() == set()
    until(told, "a finding", SETTLED + 10)
    words = ["doctor", "--json", "--config", str(process.path), "--api", process.api]
    done = subprocess.run(
        [sys.executable, "-m", "vmq", *words], capture_output=True, cwd=Path(__file__).parents[1], timeout=60
    )
    found = [one for one in json.loads(done.stdout) if one["status"] == "found"]
    assert told() == {(one["code"], one["subject"]) for one in found}
    assert process.ask("ping")["compiled_after_start"] == []
    assert process.end() == 0


def test_a_running_engine_keeps_a_second_one_out(process: Process, tmp_path: Path):
    """And is not disturbed by it."""
    process.write("a").start().ready()
    with Process(tmp_path) as second:
        second._log = tmp_path / "log2"
        second.write("a")
        assert second.start().wait() == 2
        assert "in use by another process" in second.log
    assert process.show("vms", "a")["state"] == "listening"
    assert process.sockets == ["a.sock", "api.sock"]


def test_a_sighup_that_comes_too_early_does_no_harm(process: Process):
    """While kernels are compiled there is nothing to reload."""
    process.write("a").start()
    until(lambda: _ignores_hangup(process))
    process.kill(signal.SIGHUP)
    process.ready()
    assert process.end() == 0


def _ignores_hangup(process: Process) -> bool:
    assert process.child
    status = Path(f"/proc/{process.child.pid}/status").read_text()
    masks = [
        int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigIgn", "SigCgt"))
    ]
    return any(mask >> (signal.SIGHUP - 1) & 1 for mask in masks)


@pytest.mark.compiled
def test_h20_9_truncated_memory_stops_one_port_and_the_process_lives(process: Process):
    """H20.9, H28.4: SIGBUS in a kernel is contained; the port says why, and works again after a reconnect."""
    process.write("a", "b", "c").start().ready()
    with process.guest("b", MACS[1]) as b, process.guest("c", MACS[2]) as c:
        victim = process.guest("a", MACS[0], sealed=False).start()
        exchange(victim, b)
        os.ftruncate(victim.memory.fd, 0)
        b.send([frame(MACS[0], b.mac, number) for number in range(4)])
        until(lambda: process.show("vms", "a")["state"] == "faulted")
        assert "truncated" in process.show("vms", "a")["last_error"]["what"]
        exchange(b, c)
        for fd in (
            victim.memory.fd,
            *(fd for v in victim.virtqueues for fd in (v.kick_fd, v.call_fd, v.err_fd)),
        ):
            os.close(fd)  # its rings cannot be touched any more, not even to close them
        victim.frontend.close()
        until(lambda: process.show("vms", "a")["state"] == "listening")
        with process.guest("a", MACS[0]) as again:
            exchange(again, b)
            assert process.show("vms", "a")["last_error"] is None
    assert process.end() == 0
    assert process.log.count("its file was truncated") == 1


@pytest.mark.compiled
def test_memory_truncated_before_a_ring_starts_is_contained_too(process: Process):
    """Control reads the used index when it hands a ring over."""
    process.write("a", "b", "c").start().ready()
    with process.guest("b", MACS[1]) as b, process.guest("c", MACS[2]) as c:
        victim = process.guest("a", MACS[0], sealed=False)
        rings = [one.place() for one in victim.virtqueues]
        front = victim.frontend
        front.connect()
        front.handshake(victim.features)
        front.set_features()
        front.set_memory(victim.memory)
        os.ftruncate(victim.memory.fd, 0)
        for ring in rings:
            front.start_ring(ring, 0)
            front.enable(ring.index)
        until(lambda: process.show("vms", "a")["state"] == "faulted")
        exchange(b, c)
        for fd in (
            victim.memory.fd,
            *(fd for v in victim.virtqueues for fd in (v.kick_fd, v.call_fd, v.err_fd)),
        ):
            os.close(fd)
        front.close()
    assert process.end() == 0


# --- in this process --------------------------------------------------------------------------------------------


def vm(**keys: object) -> Vm:
    return Vm(mac=(MACS[0],), **keys)  # type: ignore[arg-type]


def test_processors_are_the_configured_ones():
    config = Config(engine=Engine(processors=(2, 5)), vms={"a": vm(processor=5)})
    assert daemon.choose_processors(config) == ((2, 5), "processors in the configuration")


def test_without_any_they_are_those_that_vms_ask_for():
    config = Config(vms={"a": vm(processor=7), "b": vm(processor=3), "c": vm()})
    assert daemon.choose_processors(config) == ((3, 7), "the processors that VMs ask for")


@pytest.mark.parametrize(
    ("allowed", "chosen"), [((0,), (0,)), ((0, 1), (1,)), ((2, 3, 4), (3, 4)), (range(16), (1, 2, 3, 4))]
)
def test_else_they_are_chosen_and_it_says_why(
    monkeypatch: pytest.MonkeyPatch, allowed: tuple[int, ...], chosen: tuple[int, ...]
):
    monkeypatch.setattr("vmq.daemon.read", lambda _: Topology(tuple(allowed)))
    cpus, why = daemon.choose_processors(Config())
    assert cpus == chosen
    assert f"chosen from {len(allowed)} allowed" in why


def test_too_many_processors_are_refused_with_the_file():
    config = Config(engine=Engine(processors=tuple(range(65))))
    with pytest.raises(
        ConfigError, match=r"^vmq.toml: \[engine\] processors: 65 processors, and an engine has"
    ):
        daemon.choose_processors(config, "vmq.toml")


def test_a_group_is_a_number_or_an_error_with_the_remedy():
    assert daemon.group_number("vmq.toml", None) == -1
    assert daemon.group_number("vmq.toml", "root") == 0
    with pytest.raises(
        HostError, match=r"vmq.toml: \[engine\] group: no group 'nosuch'. Remedy: addgroup nosuch"
    ):
        daemon.group_number("vmq.toml", "nosuch")


def test_compiling_twice_compiles_nothing():
    """What is compiled stays; and others may bring their kernels."""
    asked: list[int] = []
    daemon.compile_kernels()
    assert daemon.compile_kernels(lambda: asked.append(1)) == 0
    assert asked == [1]
